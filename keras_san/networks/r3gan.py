"""The networks of R3GAN, with any normalization in the critic, or none.

Reference:
    [Huang et al., 2024](https://arxiv.org/abs/2501.05441), section 3 and
    appendix.
"""

import keras
from keras import layers

from keras_san.checks import check_count
from keras_san.layers import SANConv2D, SANDense, SANWrapper
from keras_san.networks.blocks import scaled

_SLOPE = 0.2


def generator(
    resolution=32,
    channels=3,
    latent_dim=64,
    width=1.0,
    widths=768,
    blocks=2,
    groups=96,
    num_classes=None,
):
    """The generator from latent vectors to images.

    There is no normalization, and nothing that limits the range of what is put
    out. It consists of Keras layers only, so that a saved one loads without
    this package. With the default settings, those of CIFAR-10, it has
    20,732,160 parameters, with 10 classes 20,781,952.

    Args:
        resolution: Int, 4 times a power of 2: the height and width of images.
        channels: Int, the channels of the images.
        latent_dim: Int.
        width: Positive float, a factor on `widths` and on `groups`.
        widths: Int, or a list of ints from the smallest images (4 x 4) to the
            largest ones: the channels of each stage.
        blocks: Int, the residual blocks of a stage.
        groups: Int, the groups of each 3 x 3 convolution.
        num_classes: `None`, or an int for a class-conditional GAN.

    Returns:
        A `keras.Model` from `(batch, latent_dim)`, with `num_classes` from a
        list of these and labels `(batch,)`, to `(batch, resolution,
        resolution, channels)`.

    Raises:
        ValueError: if `resolution` is another number, or `widths` has not one
            number for each stage.
    """
    widths, groups = _stages(resolution, widths, width, groups)
    depth = blocks * len(widths)
    inputs = [keras.Input((latent_dim,), name="latents")]
    x = inputs[0]
    if num_classes is not None:
        inputs.append(keras.Input((), dtype="int32", name="labels"))
        deviation = num_classes**-0.5
        embedded = layers.Embedding(
            num_classes,
            latent_dim,
            keras.initializers.RandomNormal(0, deviation),
        )
        x = layers.Concatenate()([x, embedded(inputs[1])])
    x = layers.Dense(
        widths[0],
        use_bias=False,
        kernel_initializer=_initializer(),
        name="dense",
    )(x)
    # An image of each channel, times what the latent vector makes of it.
    x = layers.EinsumDense(
        "bc,chw->bhwc",
        (4, 4, widths[0]),
        kernel_initializer=keras.initializers.RandomNormal(0, 1),
        name="basis",
    )(x)
    for stage, filters in enumerate(widths):
        if stage:
            if filters != widths[stage - 1]:
                x = _plain(filters, f"transition_{stage}")(x)
            # Linear, and with zeros outside of the image.
            x = layers.ZeroPadding2D(1)(x)
            x = layers.UpSampling2D(2, interpolation="bilinear")(x)
            x = layers.Cropping2D(2)(x)
        for block in range(blocks):
            name = f"stage_{stage + 1}_block_{block + 1}"
            x = _block(x, filters, groups, depth, layers.Conv2D, True, name)
    outputs = _plain(channels, "images")(x)
    if num_classes is None:
        (inputs,) = inputs
    return keras.Model(inputs, outputs, name="generator")


def critic(
    resolution=32,
    channels=3,
    width=1.0,
    widths=768,
    blocks=2,
    groups=96,
    num_classes=None,
    normalizer=None,
    padding="same",
):
    """The critic from images to one logit each.

    With the default settings it has 20,683,776 parameters, with 10 classes
    21,280,512. In the paper it is held in check by `penalties.R1` and `R2`.

    Args:
        resolution: As in `generator`.
        channels: As in `generator`.
        width: As in `generator`.
        widths: As in `generator`.
        blocks: As in `generator`.
        groups: As in `generator`.
        num_classes: As in `generator`.
        normalizer: What `keras_san.normalizers.get` takes. With one the last
            convolution of each block does not begin at zero: what is divided
            by its norm has no size that could be small.
        padding: `"same"`, or `"circular"`, under which SAN's norm is exact.

    Returns:
        A `keras.Model` from `(batch, resolution, resolution, channels)`, with
        `num_classes` from a list of these and labels `(batch,)`, to
        `(batch, 1)`.

    Raises:
        ValueError: as in `generator`.
    """
    widths, groups = _stages(resolution, widths, width, groups)
    widths = widths[::-1]
    depth = blocks * len(widths)

    def convolution(*args, **kwargs):
        # Only what is larger than a pixel is padded.
        kwargs["padding"] = padding
        return SANConv2D(*args, normalizer=normalizer, **kwargs)

    shape = resolution, resolution, channels
    inputs = [keras.Input(shape, name="images")]
    x = _plain(widths[0], "from_images", convolution)(inputs[0])
    for stage, filters in enumerate(widths):
        if stage:
            # Together a filter of 1, 3, 3, 1 along each axis.
            x = layers.ZeroPadding2D(1)(x)
            x = layers.AveragePooling2D(2, strides=1)(x)
            x = layers.AveragePooling2D(2, strides=1)(x)
            x = layers.AveragePooling2D(2)(x)
            if filters != widths[stage - 1]:
                x = _plain(filters, f"transition_{stage}", convolution)(x)
        for block in range(blocks):
            name = f"stage_{stage + 1}_block_{block + 1}"
            zeros = normalizer is None
            x = _block(x, filters, groups, depth, convolution, zeros, name)
    x = SANWrapper(
        layers.DepthwiseConv2D(
            4, use_bias=False, depthwise_initializer=_initializer()
        ),
        normalizer=normalizer,
        name="pool",
    )(x)
    x = layers.Flatten()(x)
    dense = SANDense(
        1 if num_classes is None else widths[0],
        use_bias=False,
        kernel_initializer=_initializer(),
        normalizer=normalizer,
        name="logit",
    )
    x = dense(x)
    if num_classes is not None:
        inputs.append(keras.Input((), dtype="int32", name="labels"))
        deviation = (num_classes * widths[0]) ** -0.5
        embedded = layers.Embedding(
            num_classes,
            widths[0],
            keras.initializers.RandomNormal(0, deviation),
        )
        x = layers.Dot(axes=1)([x, embedded(inputs[1])])
    else:
        (inputs,) = inputs
    return keras.Model(inputs, x, name="critic")


def _stages(resolution, widths, width, groups):
    """The channels of each stage, from small to large, and the groups."""
    count = 1
    check_count("resolution", resolution, least=4)
    while 4 * 2 ** (count - 1) < resolution:
        count += 1
    if 4 * 2 ** (count - 1) != resolution:
        raise ValueError(
            "The images double from 4 x 4: `resolution` must be 4 times a "
            f"power of 2. Received: resolution={resolution}"
        )
    if isinstance(widths, int):
        widths = [widths] * count
    if len(widths) != count:
        raise ValueError(
            f"Images of {resolution} pixels have {count} stages, each with its "
            f"number of channels. Received: widths={widths}"
        )
    groups = scaled(groups, width)
    # Of each stage a multiple of the groups.
    size = [max(1, round(x * width / groups)) for x in widths]
    return [n * groups for n in size], groups


def _initializer(gain=1.0):
    return keras.initializers.VarianceScaling(
        gain**2, mode="fan_in", distribution="untruncated_normal"
    )


def _plain(filters, name, convolution=layers.Conv2D):
    """A convolution of 1 x 1 without a bias."""
    return convolution(
        *(filters, 1),
        use_bias=False,
        kernel_initializer=_initializer(),
        name=name,
    )


def _block(x, filters, groups, depth, convolution, zeros, name):
    """A residual block; biases are in front of its activations only."""
    gain = (2.0 / (1.0 + _SLOPE**2)) ** 0.5 * depth**-0.25
    y = x
    for index, (size, count) in enumerate(((1, 1), (3, groups))):
        y = convolution(
            *(2 * filters, size),
            padding="same",
            groups=count,
            kernel_initializer=_initializer(gain),
            name=f"{name}_conv_{index + 1}",
        )(y)
        y = layers.LeakyReLU(_SLOPE)(y)
    y = convolution(
        *(filters, 1),
        use_bias=False,
        kernel_initializer="zeros" if zeros else _initializer(),
        name=f"{name}_conv_3",
    )(y)
    return layers.Add()([x, y])
