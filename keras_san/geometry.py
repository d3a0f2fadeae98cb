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

    Norms are those of circular convolutions. A layer with another padding is
    a part of one, of which it leaves out inputs (they are zero) and outputs,
    so the norm bounds the layer's from above. Let an axis of the image have
    `n` pixels, the kernel `k` taps and a dilation of `d`.

    - Zero padding, `"same"` or `"causal"`, adds at most `(k - 1) * d` pixels,
      and no output reads beyond them. So on `n + (k - 1) * d` pixels, or
      more, nothing that the layer computes wraps around.
    - `"valid"` has those outputs of `n` pixels that do not wrap around.
    - The transpose has the same norm. That of a `"valid"` convolution of
      stride `s` makes `m = (n - 1) * s + (k - 1) * d + 1` pixels of `n`, all
      that any transposed one writes to: others crop them, or add zeros. So
      `m` pixels are enough, and so is any larger number. With `"same"` it is
      that of an image of `n * s` pixels and zero padding.

    Args:
        spatial_shape: Extents of the images of that circular convolution, on
            the side that the stride does not thin out (its input; the output
            of a transposed convolution), or `None` if unknown.
        strides: Ints, one for each spatial axis.
        dilation_rate: Ints, one for each spatial axis.
        groups: Int.
        transposed: Boolean, whether the layout is `(*kernel_size, out, in)`.
        depthwise: Boolean, whether it is `(*kernel_size, in, multiplier)`.
        channels_axis: The axis of the layer's inputs that holds the channels
            that the kernel reads, or `None` if it reads something else (the
            `pointwise_kernel` of a separable convolution does).
        circular: Boolean, whether the layer is that circular convolution, and
            not just a part of it.
    """

    spatial_shape: tuple | None
    strides: tuple
    dilation_rate: tuple
    groups: int = 1
    transposed: bool = False
    depthwise: bool = False
    channels_axis: int | None = -1
    circular: bool = True

    def strided_shape(self):
        """The extents on which to measure the operator with its stride.

        A circular convolution has outputs `0, s, 2 * s, ...` of the one
        without its stride `s`. Count pixels from the first one that the layer
        reads, and it has some of these, without wrapping around, also on a
        larger image. So an extent may be rounded up to a multiple of `s`,
        unless the layer is circular itself.
        """
        if self.circular or self.spatial_shape is None:
            return self.spatial_shape
        return tuple(
            -(-n // s) * s for n, s in zip(self.spatial_shape, self.strides)
        )

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


def geometry_of(layer, name, rank, input_shape, circular=False):
    """The operation that a kernel of a layer stands for.

    Args:
        layer: The layer that holds it.
        name: String, the attribute.
        rank: Int, the axes of the kernel.
        input_shape: Tuple, of the layer's input.
        circular: Boolean, whether circular padding takes the place of the
            layer's own.

    Returns:
        A `Matrix` or `Convolution`.
    """
    if isinstance(layer, CONVOLUTIONS):
        return _convolution(layer, name, input_shape, circular)
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


def _convolution(layer, name, input_shape, circular):
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
    if None in spatial:
        spatial = None
    else:
        spatial = tuple(
            _extent(*of_axis, transposed, None if circular else layer.padding)
            for of_axis in zip(
                spatial, layer.kernel_size, layer.strides, layer.dilation_rate
            )
        )
    depthwise = isinstance(layer, DEPTHWISE + SEPARABLE)
    channels = input_shape[1] if channels_first else input_shape[-1]
    return Convolution(
        spatial_shape=spatial,
        strides=tuple(layer.strides),
        dilation_rate=tuple(layer.dilation_rate),
        groups=channels if depthwise else getattr(layer, "groups", 1),
        transposed=transposed,
        depthwise=depthwise,
        channels_axis=1 if channels_first else -1,
        circular=circular,
    )


def _extent(n, kernel_size, stride, dilation_rate, transposed, padding):
    """An axis of `Convolution.spatial_shape`; circular if `padding=None`."""
    reach = (kernel_size - 1) * dilation_rate
    if transposed and padding == "valid":
        return (n - 1) * stride + reach + 1
    if transposed:
        n = n * stride
    return n if padding in (None, "valid") else n + reach
