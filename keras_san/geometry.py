"""The operation that a kernel stands for: a matrix or a convolution."""

import dataclasses
import math

import keras
from keras import ops

TRANSPOSED = (
    keras.layers.Conv1DTranspose,
    keras.layers.Conv2DTranspose,
    keras.layers.Conv3DTranspose,
)
DEPTHWISE = (keras.layers.DepthwiseConv1D, keras.layers.DepthwiseConv2D)
SEPARABLE = (keras.layers.SeparableConv1D, keras.layers.SeparableConv2D)
CONVOLUTIONS = (
    keras.layers.Conv1D,
    keras.layers.Conv2D,
    keras.layers.Conv3D,
    *TRANSPOSED,
    *DEPTHWISE,
    *SEPARABLE,
)
LINEAR = (*CONVOLUTIONS, keras.layers.Dense, keras.layers.EinsumDense)

# The attributes in which layers keep the weights that can be normalized.
KERNELS = ("kernel", "depthwise_kernel", "pointwise_kernel", "embeddings")


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A kernel that stands for a matrix, as that of a dense layer.

    Args:
        inputs: Axes of the kernel that are summed over.
        outputs: Axes of the kernel that appear in the layer's output.
        batch: Axes that stand for separate matrices.
    """

    inputs: tuple = (0,)
    outputs: tuple = (1,)
    batch: tuple = ()

    def matrices(self, kernel):
        """The kernel as a tensor `(batch, inputs, outputs)`."""
        groups = (self.batch, self.inputs, self.outputs)
        shape = [math.prod(kernel.shape[axis] for axis in g) for g in groups]
        return ops.reshape(ops.transpose(kernel, sum(groups, ())), shape)

    def fans(self, kernel_shape):
        """`(fan_in, fan_out)`, the weights per output and per input."""
        return tuple(
            math.prod(kernel_shape[axis] for axis in axes)
            for axes in (self.inputs, self.outputs)
        )

    def num_filters(self, kernel_shape):
        """The number of filters: 1, as a matrix has none."""
        return 1

    def sharing(self, kernel_shape):
        """The number of outputs that share a weight: 1."""
        return 1


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A kernel that stands for a convolution, `(*kernel_size, in, out)`.

    Args:
        spatial_shape: Extents of the image on the side of the convolution
            that the stride does not thin out (its input; the output of a
            transposed convolution), or `None` if unknown.
        strides: Ints, one for each spatial axis.
        dilation_rate: Ints, one for each spatial axis.
        groups: Int.
        transposed: Boolean, whether the layout is `(*kernel_size, out, in)`.
        depthwise: Boolean, whether it is `(*kernel_size, in, multiplier)`.
        channels_axis: The axis of the layer's inputs that holds the channels
            that the kernel reads, or `None` if it reads something else (the
            `pointwise_kernel` of a separable convolution does).
    """

    spatial_shape: tuple | None
    strides: tuple
    dilation_rate: tuple
    groups: int = 1
    transposed: bool = False
    depthwise: bool = False
    channels_axis: int | None = -1

    def standard(self, kernel):
        """The kernel of a plain or grouped convolution of equal norms."""
        if self.depthwise:
            *kernel_size, channels, multiplier = kernel.shape
            return ops.reshape(kernel, (*kernel_size, 1, channels * multiplier))
        return kernel

    def fans(self, kernel_shape):
        """`(fan_in, fan_out)`, the weights per output and per input."""
        *size, rows, columns = kernel_shape
        taps = math.prod(size)
        if self.depthwise:
            return taps, taps * columns
        if self.transposed:
            rows, columns = columns, rows
        return taps * rows, taps * columns // self.groups

    def num_filters(self, kernel_shape):
        """The number of filters, each from one channel to one channel."""
        return math.prod(kernel_shape[-2:])

    def sharing(self, kernel_shape):
        """The largest number of output positions that read one pixel.

        For a transposed convolution, the largest number of input positions
        that one output pixel is made from.
        """
        size = kernel_shape[:-2]
        return math.prod(math.ceil(k / s) for k, s in zip(size, self.strides))


def kernels_of(layer):
    """The weights of a built layer that can be normalized, by attribute."""
    found = {name: getattr(layer, name, None) for name in KERNELS}
    return {k: v for k, v in found.items() if isinstance(v, keras.Variable)}


def geometry_of(layer, name, rank, input_shape):
    """The operation that a kernel of a layer stands for.

    Args:
        layer: The layer that holds it.
        name: String, the attribute.
        rank: Int, the axes of the kernel.
        input_shape: Tuple, of the layer's input.

    Returns:
        A `Matrix` or `Convolution`.
    """
    if isinstance(layer, CONVOLUTIONS):
        return _convolution(layer, name, input_shape)
    if isinstance(layer, keras.layers.EinsumDense):
        inputs, rest = layer.equation.replace("...", "").split(",")
        kernel, outputs = rest.split("->")
        axes = {axis: letter for axis, letter in enumerate(kernel)}
        return Matrix(
            inputs=tuple(a for a, x in axes.items() if x not in outputs),
            outputs=tuple(a for a, x in axes.items() if x not in inputs),
            batch=tuple(
                a for a, x in axes.items() if x in inputs and x in outputs
            ),
        )
    return Matrix(tuple(range(rank - 1)), (rank - 1,))


def _convolution(layer, name, input_shape):
    spatial_rank = len(layer.kernel_size)
    if name == "pointwise_kernel":
        # One tap has the same transform at every frequency of any image.
        ones = (1,) * spatial_rank
        return Convolution(
            ones, strides=ones, dilation_rate=ones, channels_axis=None
        )
    transposed = isinstance(layer, TRANSPOSED)
    channels_first = layer.data_format == "channels_first"
    spatial = input_shape[2:] if channels_first else input_shape[1:-1]
    if transposed and None not in spatial:
        spatial = [n * s for n, s in zip(spatial, layer.strides)]
    depthwise = isinstance(layer, DEPTHWISE + SEPARABLE)
    channels = input_shape[1] if channels_first else input_shape[-1]
    return Convolution(
        spatial_shape=None if None in spatial else tuple(spatial),
        strides=tuple(layer.strides),
        dilation_rate=tuple(layer.dilation_rate),
        groups=channels if depthwise else getattr(layer, "groups", 1),
        transposed=transposed,
        depthwise=depthwise,
        channels_axis=1 if channels_first else -1,
    )
