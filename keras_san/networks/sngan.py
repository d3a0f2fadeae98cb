"""The standard CNN of SN-GAN, which the SAN paper trains, too.

Reference:
    [Miyato et al., 2018](https://arxiv.org/abs/1802.05957), Table 3.
"""

import keras
from keras import layers

from keras_san.layers import SANConv2D, SANDense


def generator(resolution=32, channels=3, latent_dim=128, width=1.0):
    """Latent vectors to images.

    Args:
        resolution: Int, a multiple of 8: the height and width of the images.
        channels: Int, the channels of the images.
        latent_dim: Int.
        width: Positive float, a factor on the channels of all hidden layers.

    Returns:
        A `keras.Sequential` from `(batch, latent_dim)` to
        `(batch, resolution, resolution, channels)` in [-1, 1].

    Raises:
        ValueError: if `resolution` is no multiple of 8.
    """
    start = _start(resolution)

    def normal():
        return keras.initializers.RandomNormal(stddev=0.02)

    model = keras.Sequential(name="generator")
    model.add(keras.Input((latent_dim,), name="latents"))
    first = _channels(512, width)
    model.add(layers.Dense(start * start * first, kernel_initializer=normal()))
    model.add(layers.Reshape((start, start, first)))
    model.add(layers.BatchNormalization())
    model.add(layers.ReLU())
    for filters in (256, 128, 64):
        model.add(
            layers.Conv2DTranspose(
                _channels(filters, width),
                4,
                strides=2,
                padding="same",
                kernel_initializer=normal(),
            )
        )
        model.add(layers.BatchNormalization())
        model.add(layers.ReLU())
    model.add(
        layers.Conv2D(
            channels,
            3,
            padding="same",
            activation="tanh",
            kernel_initializer=normal(),
        )
    )
    return model


def critic(
    resolution=32,
    channels=3,
    width=1.0,
    normalizer="san",
    padding="circular",
    kernel_initializer="he_normal",
):
    """Images to one logit each.

    Args:
        resolution: Int, a multiple of 8: the height and width of the images.
        channels: Int, the channels of the images.
        width: Positive float, a factor on the channels of all hidden layers.
        normalizer: What `keras_san.normalizers.get` takes.
        padding: `"circular"`, under which the norm is exact, or `"same"`.
        kernel_initializer: What Keras initializers take. In the divided form
            the size of the raw kernels sets how far one step of Adam turns
            them: those of N(0, 0.02), the original's, turn so fast that SAN's
            logits run into the thousands.

    Returns:
        A `keras.Sequential` from `(batch, resolution, resolution, channels)`
        to `(batch, 1)`.

    Raises:
        ValueError: if `resolution` is no multiple of 8, or a setting is
            unknown.
    """
    _start(resolution)
    model = keras.Sequential(name="critic")
    model.add(keras.Input((resolution, resolution, channels), name="images"))
    convolutions = (
        (64, 3, 1),
        (64, 4, 2),
        (128, 3, 1),
        (128, 4, 2),
        (256, 3, 1),
        (256, 4, 2),
        (512, 3, 1),
    )
    for index, (filters, kernel_size, strides) in enumerate(convolutions):
        model.add(
            SANConv2D(
                _channels(filters, width),
                kernel_size,
                strides,
                padding,
                normalizer=normalizer,
                # An object each: one with a seed draws once.
                kernel_initializer=keras.initializers.get(kernel_initializer),
                name=f"conv_{index + 1}",
            )
        )
        model.add(layers.LeakyReLU(negative_slope=0.1))
    model.add(layers.Flatten())
    model.add(
        SANDense(
            1,
            normalizer=normalizer,
            kernel_initializer=keras.initializers.get(kernel_initializer),
            name="dense",
        )
    )
    return model


def _channels(channels, width):
    return max(1, round(channels * width))


def _start(resolution):
    if resolution < 8 or resolution % 8:
        raise ValueError(
            "The standard CNN halves its images three times: `resolution` "
            "must be a multiple of 8. "
            f"Received: resolution={resolution}"
        )
    return resolution // 8
