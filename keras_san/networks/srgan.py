"""The networks of SRGAN in the slim form that the SAN paper trains.

Reference:
    [Ledig et al., 2017](https://arxiv.org/abs/1609.04802), as
    [Kligvasser and Michaeli, 2021](https://arxiv.org/abs/2103.02458) have
    changed them in their code.
"""

import keras
from keras import layers, ops

from keras_san.layers import SANConv2D, SANDense
from keras_san.networks.blocks import batch_normalization, fresh, scaled

# The factors by which the stages enlarge.
_STAGES = {2: (2,), 3: (3,), 4: (2, 2), 8: (2, 2, 2)}


def generator(scale=4, channels=3, width=1.0, blocks=16):
    """The generator from small images to large ones.

    It has no batch normalization, and no biases in the residual blocks. Its
    result is added to the input, enlarged bilinearly, and the sum is not
    clipped: values beyond [-1, 1] stand for black and white. At full width and
    `scale=4` it has 1,521,667 parameters.

    Untrained, it hardly changes the enlarged input: the last convolution, and
    the second one of each block, start at a tenth of He's deviation. With all
    of it, sixteen blocks would multiply the signal by some thousands.

    Args:
        scale: 2, 3, 4 or 8: the factor on height and width.
        channels: Int, the channels of the images.
        width: Positive float, a factor on the channels of all hidden layers.
        blocks: Int >= 1, the number of residual blocks.

    Returns:
        A `keras.Model` from `(batch, height, width, channels)` in [-1, 1], of
        any height and width, to
        `(batch, scale * height, scale * width, channels)`.

    Raises:
        ValueError: for any other `scale`.

    Reference:
        [Ledig et al., 2017](https://arxiv.org/abs/1609.04802), Figure 4.
    """
    if scale not in _STAGES:
        raise ValueError(
            f"`scale` must be one of {sorted(_STAGES)}. "
            f"Received: scale={scale!r}"
        )
    hidden = scaled(64, width)

    def convolution(filters, kernel_size, name, gain=1.0, **kwargs):
        return layers.Conv2D(
            filters,
            kernel_size,
            padding="same",
            kernel_initializer=keras.initializers.VarianceScaling(
                2.0 * gain**2, mode="fan_in"
            ),
            name=name,
            **kwargs,
        )

    def activation(x):
        return layers.LeakyReLU(0.1)(x)

    images = keras.Input((None, None, channels), name="images")
    x = activation(convolution(hidden, 5, "conv_in")(images))
    for index in range(blocks):
        name = f"block_{index + 1}"
        y = convolution(hidden, 3, f"{name}_conv_1", use_bias=False)(x)
        y = layers.ReLU()(y)
        y = convolution(hidden, 3, f"{name}_conv_2", 0.1, use_bias=False)(y)
        x = layers.Add()([x, y])
    for index, factor in enumerate(_STAGES[scale]):
        x = convolution(hidden * factor**2, 3, f"enlarge_{index + 1}")(x)
        x = activation(_depth_to_space(x, factor))
    x = activation(convolution(hidden, 3, "conv_hidden")(x))
    x = convolution(channels, 5, "conv_out", 0.1)(x)
    # Half precision has fewer levels than an image.
    precise = keras.config.dtype_policy().variable_dtype
    x = layers.Add(dtype=precise)([x, _enlarge(images, scale, precise)])
    return keras.Model(images, x, name="generator")


def _depth_to_space(maps, factor):
    if hasattr(ops, "depth_to_space"):
        return ops.depth_to_space(maps, factor)
    return DepthToSpace(factor)(maps)


@keras.saving.register_keras_serializable("keras_san")
class DepthToSpace(layers.Layer):
    """`keras.ops.depth_to_space` for versions of Keras that do not have it.

    Args:
        factor: Int, by how much height and width grow.
    """

    def __init__(self, factor, **kwargs):
        super().__init__(**kwargs)
        self.factor = factor

    def call(self, maps):
        batch, height, width, channels = ops.shape(maps)
        factor = self.factor
        rest = channels // factor**2
        x = ops.reshape(maps, (batch, height, width, factor, factor, rest))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
        return ops.reshape(x, (batch, height * factor, width * factor, rest))

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape
        height, width = (n and n * self.factor for n in (height, width))
        return batch, height, width, channels // self.factor**2

    def get_config(self):
        return {**super().get_config(), "factor": self.factor}


def _enlarge(images, scale, dtype):
    """Bilinear interpolation of images of any size.

    `layers.UpSampling2D(scale, interpolation="bilinear")` gives the same, but
    has to know the size in a TensorFlow graph. A mean over `scale` repeated
    pixels interpolates linearly. If `scale` is even, its centre lies between
    two pixels, and a mean of two moves it back.
    """
    edges = [[0, 0], [1, 1], [1, 1], [0, 0]]
    x = ops.pad(images, edges, mode="symmetric")
    x = layers.UpSampling2D(scale, dtype=dtype)(x)
    x = layers.Cropping2D((scale + 1) // 2, dtype=dtype)(x)
    x = layers.AveragePooling2D(scale, strides=1, dtype=dtype)(x)
    if scale % 2:
        return x
    return layers.AveragePooling2D(2, strides=1, dtype=dtype)(x)


def critic(
    resolution=128,
    channels=3,
    width=1.0,
    normalizer="san",
    padding="circular",
    kernel_initializer="he_normal",
    batch_norm=False,
):
    """The critic from images to one logit each.

    It has ten convolutions and two dense layers. In the authors' critic a
    batch normalization follows each convolution and cancels any factor of its
    kernel, so that it makes no difference whether, and by what, a kernel is
    divided: in effect only the dense layers are normalized. The default
    therefore has no batch normalization, as in the theory, and a bias in every
    layer. The authors' form is there to reproduce their results.

    Args:
        resolution: Int, a multiple of 32: the height and width of the images.
        channels: Int, the channels of the images.
        width: Positive float, a factor on the channels of all hidden layers.
        normalizer: What `keras_san.normalizers.get` takes.
        padding: `"circular"`, under which the norm is exact, or `"same"`.
        kernel_initializer: What Keras initializers take.
        batch_norm: Boolean: `True` for the authors' form, where only the
            first two convolutions have biases of their own.

    Returns:
        A `keras.Model` from `(batch, resolution, resolution, channels)` to
        `(batch, 1)`.

    Raises:
        ValueError: if `resolution` is no multiple of 32, or a setting is
            unknown.

    Reference:
        [Ledig et al., 2017](https://arxiv.org/abs/1609.04802), Figure 4.
    """
    if resolution < 32 or resolution % 32:
        raise ValueError(
            "The critic halves its images five times: `resolution` must be a "
            f"multiple of 32. Received: resolution={resolution}"
        )

    def settings(name):
        return {
            "normalizer": normalizer,
            "kernel_initializer": fresh(kernel_initializer),
            "name": name,
        }

    x = images = keras.Input((resolution, resolution, channels), name="images")
    for index, filters in enumerate((64, 128, 256, 512, 512)):
        for place, (kernel_size, strides) in enumerate(((3, 1), (4, 2))):
            name = f"conv_{index + 1}_{place + 1}"
            x = SANConv2D(
                scaled(filters, width),
                kernel_size,
                strides=strides,
                padding=padding,
                use_bias=index == 0 or not batch_norm,
                **settings(name),
            )(x)
            if batch_norm:
                x = batch_normalization(name=f"{name}_norm")(x)
            x = layers.LeakyReLU(0.1)(x)
    x = layers.Flatten()(x)
    x = SANDense(scaled(64, width), **settings("dense_1"))(x)
    x = SANDense(1, **settings("dense_2"))(layers.LeakyReLU(0.1)(x))
    return keras.Model(images, x, name="critic")
