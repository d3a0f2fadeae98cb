"""The critics of HiFi-GAN, from waveforms to logits.

Each consists of several critics, which look at different parts of the signal.

Reference:
    [Kong, Kim and Bae, 2020](https://arxiv.org/abs/2010.05646), in the sizes
    of their code.
"""

import math

import keras
from keras import layers, ops

from keras_san import normalizers
from keras_san.checks import check_count
from keras_san.layers import SANConv2D, SANWrapper
from keras_san.networks.blocks import scaled

# Channels, kernel size, stride and groups of each convolution but the last.
_PERIODIC = (
    (32, 5, 3),
    (128, 5, 3),
    (512, 5, 3),
    (1024, 5, 3),
    (1024, 5, 1),
)
_SCALED = (
    (128, 15, 1, 1),
    (128, 41, 2, 4),
    (256, 41, 2, 16),
    (512, 41, 4, 16),
    (1024, 41, 4, 16),
    (1024, 41, 1, 16),
    (1024, 5, 1, 1),
)


def multi_period_critic(
    samples=8192,
    periods=(2, 3, 5, 7, 11),
    width=1.0,
    normalizer="weight",
):
    """The critic that folds a waveform, once for each of several periods.

    A waveform becomes an image with a period in each row, on which
    convolutions run along the columns. If the period does not divide the
    number of samples, the end of the waveform is reflected. At full width the
    critic has 41,105,770 parameters.

    Args:
        samples: Int, the length of the waveforms; or `None` for any length
            that is not below the longest period.
        periods: Ints > 1.
        width: Positive float, a factor on the channels of all hidden layers.
        normalizer: What `keras_san.normalizers.get` takes.

    Returns:
        A `keras.Model` from `(batch, samples, 1)` to a list with one entry per
        period: a list of five features and the logits `(batch, rows, period,
        1)`. The authors match the logits as features, too.

    Raises:
        ValueError: if the waveform is shorter than a period, or a setting is
            outside of what is listed above.

    Reference:
        [Kong, Kim and Bae, 2020](https://arxiv.org/abs/2010.05646), section
        2.3 and Figure 2 (b).
    """
    for period in periods:
        check_count("periods", period, least=2)
    if samples is not None and samples < max(periods):
        raise ValueError(
            "A waveform must be at least as long as the longest period. "
            f"Received: samples={samples!r} with periods={tuple(periods)}"
        )

    def critic(waveforms, period):
        x = _fold(waveforms, period)
        found = []
        for index, (filters, size, stride) in enumerate(_PERIODIC):
            x = layers.ZeroPadding2D((size // 2, 0))(x)
            x = convolution(
                scaled(filters, width),
                size,
                stride,
                f"{period}_conv_{index + 1}",
            )(x)
            x = layers.LeakyReLU(0.1)(x)
            found.append(x)
        x = layers.ZeroPadding2D((1, 0))(x)
        found.append(convolution(1, 3, 1, f"{period}_logits")(x))
        return found

    def convolution(filters, size, stride, name):
        # Padded as the authors do, who put half of the kernel on either side.
        return SANConv2D(
            filters,
            (size, 1),
            strides=(stride, 1),
            padding="valid",
            normalizer=normalizer,
            kernel_initializer=_initializer(),
            name=f"period_{name}",
        )

    waveforms = keras.Input((samples, 1), name="waveforms")
    outputs = [critic(waveforms, period) for period in periods]
    return keras.Model(waveforms, outputs, name="multi_period_critic")


def multi_scale_critic(samples=8192, scales=3, width=1.0, normalizer="weight"):
    """The critic that looks at a waveform on several scales.

    The waveform of each scale consists of means over four samples of the one
    before, and has half its length. With the authors' normalizers the critic
    has 29,618,821 parameters at full width.

    Args:
        samples: Int, the length of the waveforms; or `None` for any.
        scales: Int >= 1.
        width: Positive float, a factor on the channels of all hidden layers.
            The groups of a convolution become as few as its channels allow.
        normalizer: What `keras_san.normalizers.get` takes, or a list of that
            with one entry per scale. The authors have `["sn", "weight",
            "weight"]`.

    Returns:
        A `keras.Model` from `(batch, samples, 1)` to a list with one entry per
        scale: a list of seven features and the logits `(batch, places, 1)`.
        The authors match the logits as features, too.

    Raises:
        ValueError: if a setting is outside of what is listed above.

    Reference:
        [Kong, Kim and Bae, 2020](https://arxiv.org/abs/2010.05646), section
        2.3, after [Kumar et al., 2019](https://arxiv.org/abs/1910.06711).
    """
    check_count("scales", scales)
    if not isinstance(normalizer, (list, tuple)):
        normalizer = [normalizer] * scales
    if len(normalizer) != scales:
        raise ValueError(
            "A list of normalizers must have one entry per scale. Received: "
            f"{len(normalizer)} with scales={scales}"
        )

    def critic(x, name, normalizer):
        def convolution(x, filters, size, stride, groups, name):
            groups = math.gcd(groups, x.shape[-1], filters)
            x = layers.ZeroPadding1D(size // 2)(x)
            layer = layers.Conv1D(
                filters,
                size,
                strides=stride,
                groups=groups,
                kernel_initializer=_initializer(),
            )
            return SANWrapper(layer, normalizer, name=name)(x)

        found = []
        for index, (filters, *settings) in enumerate(_SCALED):
            filters = scaled(filters, width)
            x = convolution(x, filters, *settings, f"{name}_conv_{index + 1}")
            x = layers.LeakyReLU(0.1)(x)
            found.append(x)
        found.append(convolution(x, 1, 3, 1, 1, f"{name}_logits"))
        return found

    x = waveforms = keras.Input((samples, 1), name="waveforms")
    outputs = []
    for index, one in enumerate(map(normalizers.get, normalizer)):
        if index:
            # The zeros beside a border count.
            x = layers.AveragePooling1D(4, 2)(layers.ZeroPadding1D(2)(x))
        outputs.append(critic(x, f"scale_{index + 1}", one))
    return keras.Model(waveforms, outputs, name="multi_scale_critic")


def _fold(x, period):
    """Folds waveforms to images `(batch, rows, period, channels)`."""
    # More than is needed, so that the length need not be known.
    x = ops.concatenate([x, ops.flip(x[:, -period:-1], axis=1)], axis=1)
    columns = [
        x[:, start : (start + 1 - period) or None : period]
        for start in range(period)
    ]
    return ops.stack(columns, axis=2)


def _initializer():
    """The initializer of the authors' code: PyTorch's."""
    return keras.initializers.VarianceScaling(
        1 / 3, mode="fan_in", distribution="uniform"
    )
