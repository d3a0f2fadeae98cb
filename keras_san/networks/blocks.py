"""Residual blocks and other parts that the networks share."""

import keras
from keras import layers, ops

from keras_san.checks import check_positive


def scaled(channels, width):
    """The channels of a hidden layer times `width`, at least one."""
    check_positive("width", width)
    return max(1, round(channels * width))


def fresh(initializer):
    """Retrieves an initializer as a new object.

    One object would draw the same kernel for all layers of one shape.
    """
    initializer = keras.initializers.get(initializer)
    if isinstance(initializer, keras.initializers.Initializer):
        initializer = initializer.clone()
    return initializer


def batch_normalization(**kwargs):
    """A `BatchNormalization` with the settings of the papers' codes."""
    return layers.BatchNormalization(momentum=0.9, epsilon=1e-5, **kwargs)


def residual_generator(
    latents, start, filters, channels, dense, convolution, normalize
):
    """Applies a residual generator, each block of which doubles the size.

    Args:
        latents: Tensor `(batch, latent_dim)`.
        start: Int, the height and width of the first maps.
        filters: List of ints, the channels of the first maps and those that
            each block puts out.
        channels: Int, the channels of the images.
        dense: Callable `(units, name)` that returns a layer.
        convolution: Callable `(filters, kernel_size, name, **kwargs)` that
            returns a layer.
        normalize: Callable `(maps, name)` that returns maps.

    Returns:
        Tensor `(batch, height, width, channels)` in [-1, 1], with `height`
        and `width` equal to `start * 2 ** (len(filters) - 1)`.
    """
    x = dense(start * start * filters[0], name="dense")(latents)
    x = layers.Reshape((start, start, filters[0]))(x)
    for index, block_filters in enumerate(filters[1:]):
        name = f"block_{index + 1}"
        x = generator_block(x, block_filters, convolution, normalize, name)
    x = layers.ReLU()(batch_normalization(name="norm")(x))
    return convolution(channels, 3, name="conv", activation="tanh")(x)


def generator_block(x, filters, convolution, normalize, name):
    """Applies a residual block that doubles the size of its maps."""
    y = layers.ReLU()(normalize(x, f"{name}_norm_1"))
    y = layers.UpSampling2D(2)(y)
    y = convolution(filters, 3, name=f"{name}_conv_1")(y)
    y = layers.ReLU()(normalize(y, f"{name}_norm_2"))
    y = convolution(filters, 3, name=f"{name}_conv_2")(y)
    # The papers enlarge first, with the same result at four times the cost.
    shortcut = convolution(filters, 1, name=f"{name}_shortcut")(x)
    return layers.Add()([y, layers.UpSampling2D(2)(shortcut)])


def residual_features(images, blocks, convolution):
    """Applies the residual blocks of a critic, and sums over space.

    Args:
        images: Tensor `(batch, height, width, channels)`.
        blocks: List of pairs: the channels of a block, and whether it halves
            its maps.
        convolution: As in `residual_generator`.

    Returns:
        Tensor `(batch, filters)`, the sums over the maps of the last block.
    """
    x = images
    for index, (filters, halve) in enumerate(blocks):
        name = f"block_{index + 1}"
        x = critic_block(x, filters, halve, index > 0, convolution, name)
    return ops.sum(layers.ReLU()(x), axis=(1, 2))


def critic_block(x, filters, halve, preactivate, convolution, name):
    """Applies a residual block, which halves its maps with `halve`."""
    # Images, the input of the first block, are not cut off at zero.
    y = layers.ReLU()(x) if preactivate else x
    y = convolution(filters, 3, name=f"{name}_conv_1")(y)
    y = convolution(filters, 3, name=f"{name}_conv_2")(layers.ReLU()(y))
    shortcut = x
    if halve:
        y = layers.AveragePooling2D(2)(y)
        # After the first block the papers convolve first, with the same
        # result at four times the cost.
        shortcut = layers.AveragePooling2D(2)(x)
    if halve or x.shape[-1] != filters:
        shortcut = convolution(filters, 1, name=f"{name}_shortcut")(shortcut)
    return layers.Add()([y, shortcut])
