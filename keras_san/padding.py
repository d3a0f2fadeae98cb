"""Circular padding, under which Lemma 1 is exact."""

import functools
import inspect
import math

import keras
from keras import ops

from keras_san import fourier
from keras_san.checks import require
from keras_san.geometry import TRANSPOSED


def circular_amounts(kernel_size, dilation_rate):
    """The number of pixels that a circular convolution adds on each side.

    The sum is always `(kernel_size - 1) * dilation_rate`, whatever the
    stride. So output `i` is output `i * stride` of the same layer without
    stride, and the output has `ceil(extent / stride)` pixels, as with
    `padding="same"`. If the sum is odd (kernels of even size), the extra
    pixel is added below or to the right.

    Args:
        kernel_size: Tuple of ints.
        dilation_rate: Tuple of ints.

    Returns:
        A tuple of pairs `(before, after)`, one for each spatial axis.
    """
    totals = [(k - 1) * d for k, d in zip(kernel_size, dilation_rate)]
    return tuple((total // 2, total - total // 2) for total in totals)


def circular_pad(inputs, amounts, data_format=None):
    """Continues images periodically beyond their borders.

    Args:
        inputs: Tensor `(batch, *spatial, channels)`, or with the channels
            second if `data_format` is `"channels_first"`.
        amounts: Pairs `(before, after)`, one for each spatial axis.
        data_format: `"channels_last"`, `"channels_first"`, or `None` for
            that of the Keras configuration.

    Returns:
        The padded tensor.

    Raises:
        ValueError: if the padding of one side is wider than the image.
    """
    data_format = data_format or keras.config.image_data_format()
    first = 1 if data_format == "channels_last" else 2
    shape = tuple(inputs.shape)
    for axis, (before, after) in enumerate(amounts, start=first):
        # Slices would silently come back short if the image were smaller.
        extent = ops.shape(inputs)[axis]
        if extent is not None:
            require(
                extent >= max(before, after),
                "A circular padding cannot be wider than the image that it "
                "repeats. Use a smaller kernel or dilation, larger images, "
                f'or padding="same". Received: padding={(before, after)} on '
                f"axis {axis} of inputs of shape {shape}",
            )
        known = isinstance(shape[axis], int)
        if known and before + after <= shape[axis]:
            inputs = _wrap(inputs, axis, before, after)
        else:
            inputs = _concatenated(inputs, axis, before, after)
    return inputs


def _wrap(inputs, axis, before, after):
    """Pads one axis, with a gradient that copies as little as possible.

    TensorFlow's own gradient of a slice is as large as the image, mostly
    zeros. JAX compiles that away; PyTorch keeps its own gradient.
    """
    if (
        before == after == 0
        or keras.backend.backend() != "tensorflow"
        or isinstance(inputs, keras.KerasTensor)
    ):
        return _concatenated(inputs, axis, before, after)

    @ops.custom_gradient
    def wrap(x):
        padded = _concatenated(x, axis, before, after)
        return padded, lambda upstream: _fold(upstream, axis, before, after)

    return wrap(inputs)


def _fold(padded, axis, before, after):
    """The transpose of `_wrap`: adds repeated pixels to their originals."""

    @ops.custom_gradient
    def fold(x):
        extent = x.shape[axis] - before - after
        take = functools.partial(_take, x, axis)
        pieces = [take(before + after, extent)]
        if after:
            repeated = take(before + extent, before + extent + after)
            pieces.insert(0, take(before, before + after) + repeated)
        if before:
            repeated = take(0, before)
            pieces.append(take(extent, extent + before) + repeated)
        folded = ops.concatenate(pieces, axis=axis)
        return folded, lambda upstream: _wrap(upstream, axis, before, after)

    return fold(padded)


def _concatenated(x, axis, before, after):
    pieces = [x]
    if before:
        pieces.insert(0, _take(x, axis, -before, None))
    if after:
        pieces.append(_take(x, axis, 0, after))
    return pieces[0] if len(pieces) == 1 else ops.concatenate(pieces, axis=axis)


def _take(x, axis, start, stop):
    return x[(slice(None),) * axis + (slice(start, stop),)]


def _amounts_and_offsets(layer):
    """The padding of the input, and the place of the result in the output.

    Args:
        layer: A convolution of Keras that runs with `padding="valid"`.

    Returns:
        `(amounts, offsets)`: pairs `(before, after)` for each spatial axis of
        the input; for transposed convolutions also the index at which the
        periodic result starts in the output of the padded image, else `None`.
    """
    amounts = circular_amounts(layer.kernel_size, layer.dilation_rate)
    if not isinstance(layer, TRANSPOSED):
        return amounts, None
    # The transpose of the strided circular convolution: output pixel j gets
    # tap t from input pixel (j + before - t) / stride.
    padded = tuple(
        (math.ceil(after / s), math.ceil(before / s))
        for (before, after), s in zip(amounts, layer.strides)
    )
    offsets = tuple(
        p[0] * s + before
        for p, (before, _), s in zip(padded, amounts, layer.strides)
    )
    return padded, offsets


def call_circular(layer, call, inputs):
    """Runs `call(inputs)` as if images continued periodically.

    Args:
        layer: A convolution of Keras that runs with `padding="valid"`.
        call: Its `call`, or a function that calls it.
        inputs: Tensor.
    """
    if _has_transform(layer, call, inputs) and fourier.is_faster(
        inputs, layer.kernel, layer.strides
    ):
        return _call_transformed(layer, inputs)
    amounts, offsets = _amounts_and_offsets(layer)
    first = 1 if layer.data_format == "channels_last" else 2
    if offsets is None:
        read = [
            _read(layer, axis, pair, inputs.shape[first + axis])
            for axis, pair in enumerate(amounts)
        ]
        return call(circular_pad(inputs, read, layer.data_format))
    outputs = call(circular_pad(inputs, amounts, layer.data_format))
    index = [slice(None)] * len(outputs.shape)
    for axis, (offset, pair) in enumerate(zip(offsets, amounts)):
        stride, k = layer.strides[axis], layer.kernel_size[axis]
        # What follows the periodic result has a size of its own, whatever
        # that of the image, which may be unknown.
        reach = max((k - 1) * layer.dilation_rate[axis] + 1, stride)
        after = (sum(pair) - 1) * stride + reach - offset
        index[first + axis] = slice(offset, -after if after else None)
    return outputs[tuple(index)]


def _has_transform(layer, call, inputs):
    """`True` if `_call_transformed` can take the place of the call.

    Symbolic models hold only operations that Keras can save without this
    package.
    """
    plain = keras.layers.Conv2D
    if not isinstance(layer, plain) or isinstance(inputs, keras.KerasTensor):
        return False
    methods = (
        call if inspect.ismethod(call) else layer.call,
        layer.convolution_op,
    )
    return (
        [getattr(method, "__func__", None) for method in methods]
        == [plain.call, plain.convolution_op]
        and layer.groups == 1
        and set(layer.dilation_rate) == {1}
        and layer.data_format == "channels_last"
    )


def _call_transformed(layer, inputs):
    """The call of a `keras.layers.Conv2D`, but for the convolution."""
    outputs = fourier.circular_convolution(inputs, layer.kernel, layer.strides)
    if layer.use_bias:
        outputs = ops.add(outputs, layer.bias)
    return outputs if layer.activation is None else layer.activation(outputs)


def _read(layer, axis, pair, extent):
    """The padding of one axis, without pixels that the stride passes over."""
    before, after = pair
    if not isinstance(extent, int):
        return pair
    stride = layer.strides[axis]
    reach = (layer.kernel_size[axis] - 1) * layer.dilation_rate[axis] + 1
    end = (math.ceil(extent / stride) - 1) * stride + reach
    return before, min(after, max(0, end - before - extent))


def padded_shape(layer, input_shape):
    """The shape of the padded images that `call_circular` runs a layer on.

    Raises:
        ValueError: if the padding of one side is wider than the image.
    """
    amounts, _ = _amounts_and_offsets(layer)
    first = 1 if layer.data_format == "channels_last" else 2
    padded = list(input_shape)
    for axis, pair in enumerate(amounts, start=first):
        if padded[axis] is None:
            continue
        if max(pair) > padded[axis]:
            raise ValueError(
                "A circular padding cannot be wider than the image that it "
                "repeats. Use a smaller kernel or dilation, larger images, or "
                f'padding="same". Received: padding={pair} on axis {axis} of '
                f"an input of shape {tuple(input_shape)} (layer "
                f"'{layer.name}', kernel_size={layer.kernel_size}, "
                f"dilation_rate={layer.dilation_rate})"
            )
        padded[axis] += sum(pair)
    return tuple(padded)


def circular_output_shape(layer, compute_output_shape, input_shape):
    """The shape of the outputs of `call_circular`."""
    _, offsets = _amounts_and_offsets(layer)
    shape = list(compute_output_shape(padded_shape(layer, input_shape)))
    if offsets is not None:
        first = 1 if layer.data_format == "channels_last" else 2
        for axis, stride in enumerate(layer.strides, start=first):
            extent = input_shape[axis]
            shape[axis] = None if extent is None else extent * stride
    return tuple(shape)
