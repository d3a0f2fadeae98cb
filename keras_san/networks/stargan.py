"""The networks of StarGAN, with SAN in its critic.

Reference:
    [Choi et al., 2018](https://arxiv.org/abs/1711.09020); [Kligvasser and
    Michaeli, 2021](https://arxiv.org/abs/2103.02458).
"""

import keras
from keras import layers, ops

from keras_san.checks import check_count
from keras_san.layers import SANConv2D
from keras_san.networks.blocks import fresh, scaled


def generator(
    num_attributes=5, channels=3, width=1.0, blocks=6, resolution=None
):
    """The generator from images and attributes to images that have them.

    Each attribute is one more channel of the image, the same at all pixels.
    The instance normalization after the first convolution removes everything
    that is the same at all pixels. Attributes pass it only because of the
    zeros around the image, and would not with periodic padding. No convolution
    has a bias. At full width, with five attributes, it has 8,430,528
    parameters.

    It consists of Keras layers only, so that a saved one loads without this
    package.

    Args:
        num_attributes: Int.
        channels: Int, the channels of the images.
        width: Positive float, a factor on the channels of all hidden layers.
        blocks: Int, the number of residual blocks.
        resolution: `None`, or an int, a multiple of 4: the height and width
            of the images, if they have to be known.

    Returns:
        A `keras.Model` from a list of images `(batch, height, width,
        channels)` in [-1, 1] and attributes `(batch, num_attributes)`, floats
        of 0 or 1, to images of the same shape in [-1, 1]. Without
        `resolution` height and width may be any multiples of 4; any others
        come back as the next larger multiple.

    Raises:
        ValueError: if `resolution` is no multiple of 4.

    Reference:
        [Choi et al., 2018](https://arxiv.org/abs/1711.09020), Table 4.
    """
    if resolution is not None and (resolution < 4 or resolution % 4):
        raise ValueError(
            "The generator halves its images twice: `resolution` must be a "
            "multiple of 4, or None for images of any such size. "
            f"Received: resolution={resolution}"
        )
    hidden = [scaled(filters, width) for filters in (64, 128, 256)]

    def convolution(filters, kernel_size, name, strides=1, **kwargs):
        return layers.Conv2D(
            filters,
            kernel_size,
            strides=strides,
            padding="same",
            use_bias=False,
            name=name,
            **kwargs,
        )

    def normalize(x, name):
        # As many groups as channels: an instance normalization.
        return layers.GroupNormalization(-1, epsilon=1e-5, name=name)(x)

    def normalized(layer, x):
        return layers.ReLU()(normalize(layer(x), f"{layer.name}_norm"))

    images = keras.Input((resolution, resolution, channels), name="images")
    attributes = keras.Input((num_attributes,), name="attributes")
    # Not tiled by height and width, which may be unknown.
    tiled = ops.zeros_like(images[..., :1]) + attributes[:, None, None, :]
    x = layers.Concatenate()([images, tiled])
    x = normalized(convolution(hidden[0], 7, "conv_in"), x)
    for index, filters in enumerate(hidden[1:]):
        x = normalized(convolution(filters, 4, f"halve_{index + 1}", 2), x)
    for index in range(blocks):
        name = f"block_{index + 1}"
        y = normalized(convolution(hidden[2], 3, f"{name}_conv_1"), x)
        y = convolution(hidden[2], 3, f"{name}_conv_2")(y)
        x = layers.Add()([x, normalize(y, f"{name}_conv_2_norm")])
    for index, filters in enumerate(hidden[1::-1]):
        double = layers.Conv2DTranspose(
            filters,
            4,
            strides=2,
            padding="same",
            use_bias=False,
            name=f"double_{index + 1}",
        )
        x = normalized(double, x)
    # Half precision has fewer levels than an image.
    precise = keras.config.dtype_policy().variable_dtype
    x = convolution(channels, 7, "conv_out", activation="tanh", dtype=precise)(
        x
    )
    return keras.Model([images, attributes], x, name="generator")


def critic(
    resolution=128,
    num_attributes=5,
    channels=3,
    width=1.0,
    halvings=6,
    normalizer="san",
    padding="circular",
    kernel_initializer="he_normal",
):
    """The critic from images to logits of patches and of attributes.

    All convolutions are normalized except for the last one of the attributes:
    cross entropy needs logits of any size, and the logits of the patches do
    not depend on it. With the default settings it has 44,762,048 parameters.

    Args:
        resolution: Int, a multiple of `2**halvings`: the height and width of
            the images.
        num_attributes: Int.
        channels: Int, the channels of the images.
        width: Positive float, a factor on the channels of all hidden layers.
        halvings: Int >= 1, the number of convolutions of stride 2. The first
            has 64 channels, and each of the others twice as many as the last.
        normalizer: What `keras_san.normalizers.get` takes.
        padding: `"circular"`, under which the norm is exact, or `"same"`.
        kernel_initializer: What Keras initializers take.

    Returns:
        A `keras.Model` from `(batch, resolution, resolution, channels)` to a
        list: the logits of the patches `(batch, size, size, 1)`, with `size`
        equal to `resolution / 2**halvings`, and those of the attributes
        `(batch, num_attributes)`.

    Raises:
        ValueError: if `halvings` is less than 1, if `resolution` is no
            multiple of `2**halvings`, or a setting is unknown.

    Reference:
        [Choi et al., 2018](https://arxiv.org/abs/1711.09020), Table 5.
    """
    check_count("halvings", halvings)
    unit = 2**halvings
    if resolution < unit or resolution % unit:
        raise ValueError(
            f"The critic halves its images {halvings} times: `resolution` "
            f"must be a multiple of {unit}. Received: resolution={resolution} "
            f"with halvings={halvings}"
        )

    def convolution(filters, kernel_size, name, **kwargs):
        return SANConv2D(
            filters,
            kernel_size,
            padding=padding,
            normalizer=normalizer,
            kernel_initializer=fresh(kernel_initializer),
            name=name,
            **kwargs,
        )

    x = images = keras.Input((resolution, resolution, channels), name="images")
    for index in range(halvings):
        filters, name = scaled(64 * 2**index, width), f"conv_{index + 1}"
        x = convolution(filters, 4, name, strides=2)(x)
        x = layers.LeakyReLU(0.01)(x)
    logits = convolution(1, 3, "logits", use_bias=False)(x)
    attributes = layers.Conv2D(
        num_attributes,
        resolution // unit,
        use_bias=False,
        kernel_initializer=fresh(kernel_initializer),
        name="attributes",
    )(x)
    return keras.Model(
        images, [logits, layers.Flatten()(attributes)], name="critic"
    )
