"""The networks of SPADE, from label maps to photographs.

Reference:
    [Park et al., 2019](https://arxiv.org/abs/1903.07291), in the sizes of
    their code; with SAN: [Kligvasser and Michaeli,
    2021](https://arxiv.org/abs/2103.02458), section 4.2.
"""

import keras
from keras import layers

from keras_san.checks import check_count
from keras_san.layers import SANConv2D
from keras_san.networks.blocks import batch_normalization, fresh, scaled


def generator(
    resolution=(256, 512),
    map_channels=36,
    channels=3,
    width=1.0,
    upsamplings=6,
    normalizer="sn",
    synchronized=False,
):
    """The generator from label maps to images.

    Two convolutions of the label map give the scale and the shift of each
    normalization. At full width, with 36 channels of maps, it has 93,048,003
    parameters.

    Args:
        resolution: Pair of ints, height and width of maps and images, both
            multiples of `2**upsamplings`; or `(None, None)` for any such size.
        map_channels: Int, the channels of a map: one for each class, and one
            for the edges of instances if they are known.
        channels: Int, the channels of the images.
        width: Positive float, a factor on the channels of all hidden layers.
        upsamplings: 5, 6 or 7, how often the first maps are doubled: the
            authors' "normal", "more" and "most".
        normalizer: What `keras_san.normalizers.get` takes, for the
            convolutions of residual blocks.
        synchronized: Boolean. Whether replicas of `tf.distribute` normalize
            their batches together, as the authors do; for TensorFlow only. On
            JAX a distributed batch is always normalized as one.

    Returns:
        A `keras.Model` from `(batch, height, width, map_channels)`, one-hot,
        to `(batch, height, width, channels)` in [-1, 1].

    Raises:
        ValueError: for another resolution or number of upsamplings.

    Reference:
        [Park et al., 2019](https://arxiv.org/abs/1903.07291), Figures 11, 12
        and 14. As in the authors' code, but not in their text, the first, the
        last, and SPADE's own convolutions are not normalized.
    """
    if upsamplings not in (5, 6, 7):
        raise ValueError(
            "`upsamplings` must be 5, 6 or 7. "
            f"Received: upsamplings={upsamplings!r}"
        )
    _check_resolution(resolution, upsamplings)

    def convolution(filters, kernel_size, name, normalizer=None, **kwargs):
        return SANConv2D(
            filters,
            kernel_size,
            padding="same",
            normalizer=normalizer,
            kernel_initializer=_xavier(),
            name=name,
            **kwargs,
        )

    def spade(x, reduced, name):
        """Scales and shifts what has been normalized."""
        hidden = convolution(
            scaled(128, width), 3, f"{name}_hidden", activation="relu"
        )(reduced)
        gamma = convolution(x.shape[-1], 3, f"{name}_gamma")(hidden)
        beta = convolution(x.shape[-1], 3, f"{name}_beta")(hidden)
        return x * (1.0 + gamma) + beta

    def normalize(x, name):
        return batch_normalization(
            center=False, scale=False, synchronized=synchronized, name=name
        )(x)

    def block(x, filters, factor, name):
        reduced = maps[:, ::factor, ::factor]
        middle = min(x.shape[-1], filters)
        # The authors normalize the same once more for the shortcut.
        normalized = normalize(x, f"{name}_norm_1")
        y = spade(normalized, reduced, f"{name}_spade_1")
        y = layers.LeakyReLU(0.2)(y)
        y = convolution(middle, 3, f"{name}_conv_1", normalizer)(y)
        y = spade(normalize(y, f"{name}_norm_2"), reduced, f"{name}_spade_2")
        y = layers.LeakyReLU(0.2)(y)
        y = convolution(filters, 3, f"{name}_conv_2", normalizer)(y)
        if x.shape[-1] != filters:
            x = spade(normalized, reduced, f"{name}_spade_shortcut")
            x = convolution(
                filters, 1, f"{name}_shortcut", normalizer, use_bias=False
            )(x)
        return layers.Add()([x, y])

    maps = keras.Input((*resolution, map_channels), name="maps")
    factor = 2**upsamplings
    x = maps[:, ::factor, ::factor]
    x = convolution(scaled(1024, width), 3, "conv_in")(x)
    filters = [1024, 1024, 1024, 512, 256, 128, 64, 32]
    for index, block_filters in enumerate(filters[: max(7, upsamplings + 1)]):
        # With the fewest upsamplings two blocks have maps of one size.
        if index > 0 and not (upsamplings == 5 and index == 2):
            x = layers.UpSampling2D(2)(x)
            factor //= 2
        x = block(x, scaled(block_filters, width), factor, f"block_{index + 1}")
    x = convolution(channels, 3, "conv_out")(layers.LeakyReLU(0.2)(x))
    # Half precision has fewer levels than an image.
    precise = keras.config.dtype_policy().variable_dtype
    x = layers.Activation("tanh", dtype=precise)(x)
    return keras.Model(maps, x, name="generator")


def critic(
    resolution=(256, 512),
    map_channels=36,
    channels=3,
    width=1.0,
    scales=2,
    normalizer="san",
    padding="circular",
    kernel_initializer=None,
    original=False,
):
    """The critic from images and label maps to logits, on several scales.

    Each logit is that of a patch. In the authors' critic an instance
    normalization without parameters follows each of the three convolutions
    that are normalized. It cancels any factor, so that it makes no difference
    whether, and by what, a kernel is divided, as long as the maps are large
    beside the epsilon of 1e-5 (with the authors' small initial kernels they
    are not). The default therefore has no instance normalization, a bias in
    every convolution, and normalizes all five. The authors' form has 2,800,705
    parameters per scale with 36 channels of maps. It pads as the default does,
    by one or two pixels on a side; the authors pad by two, and their maps have
    up to three more rows and columns.

    Args:
        resolution: Pair of ints, height and width of the images.
        map_channels: Int, the channels of a map.
        channels: Int, the channels of the images.
        width: Positive float, a factor on the channels of all hidden layers.
        scales: Int >= 1. Each scale has a critic of its own, with images half
            as high and wide as those of the scale before.
        normalizer: What `keras_san.normalizers.get` takes.
        padding: `"circular"`, under which the norm is exact, or `"same"`.
        kernel_initializer: What Keras initializers take. By default He's
            normal distribution, or the authors' initializer in their form.
        original: Boolean: `True` for the authors' form.

    Returns:
        A `keras.Model` from `[images, maps]`, `(batch, height, width,
        channels)` and `(batch, height, width, map_channels)`, to a list with
        one entry per scale: a list of four features and the logits
        `(batch, rows, columns, 1)`, an eighth of the scale's height and width.

    Raises:
        ValueError: if the resolution is too small for so many scales, or a
            setting is unknown.

    Reference:
        [Wang et al., 2018](https://arxiv.org/abs/1711.11585), section 3.2;
        [Park et al., 2019](https://arxiv.org/abs/1903.07291), Figure 13.
    """
    check_count("scales", scales)
    least = 32 * 2 ** (scales - 1)
    if min(resolution) < least:
        raise ValueError(
            "Images must have at least 32 x 32 pixels on the last scale, and "
            f"so {least} x {least} with {scales} scales. Received: "
            f"resolution={tuple(resolution)}"
        )
    if kernel_initializer is None:
        kernel_initializer = _xavier() if original else "he_normal"

    def patches(x, name):
        found = []
        for index, filters in enumerate((64, 128, 256, 512, 1)):
            outer = index in (0, 4)
            x = SANConv2D(
                filters if index == 4 else scaled(filters, width),
                4,
                strides=2 if index < 3 else 1,
                padding=padding,
                use_bias=outer or not original,
                normalizer=None if outer and original else normalizer,
                kernel_initializer=fresh(kernel_initializer),
                name=f"{name}_conv_{index + 1}",
            )(x)
            if original and not outer:
                x = layers.GroupNormalization(
                    groups=-1, center=False, scale=False, epsilon=1e-5
                )(x)
            if index < 4:
                x = layers.LeakyReLU(0.2)(x)
            found.append(x)
        return found

    images = keras.Input((*resolution, channels), name="images")
    maps = keras.Input((*resolution, map_channels), name="maps")
    x = layers.Concatenate()([maps, images])
    outputs = []
    for index in range(scales):
        if index:
            x = _halve(x)
        outputs.append(patches(x, f"scale_{index + 1}"))
    return keras.Model([images, maps], outputs, name="critic")


def _halve(x):
    """Halves maps by means of 3 x 3 pixels, of fewer at the border."""
    # Backends differ in what "same" pooling makes of a border.
    pad, pool = layers.ZeroPadding2D(1), layers.AveragePooling2D(3, 2)
    present = keras.ops.ones_like(x[:1, ..., :1])
    return pool(pad(x)) / pool(pad(present))


def _check_resolution(resolution, upsamplings):
    factor = 2**upsamplings
    if any(n is not None and (n < factor or n % factor) for n in resolution):
        raise ValueError(
            f"The generator doubles its first maps {upsamplings} times: "
            f"height and width must be multiples of {factor}, such as {factor} "
            f"or {2 * factor} (with upsamplings=5, multiples of {2**5}). "
            f"Received: resolution={tuple(resolution)}"
        )


def _xavier():
    """The initializer of the authors' code: Xavier's, normal, gain 0.02."""
    return keras.initializers.VarianceScaling(
        0.02**2, mode="fan_avg", distribution="untruncated_normal"
    )
