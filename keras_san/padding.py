"""Circular padding, under which Lemma 1 is exact."""

import keras
from keras import ops

from keras_san.checks import require


def circular_amounts(kernel_size, dilation_rate):
    """How many pixels a circular convolution adds before and after.

    The sum is always `(kernel_size - 1) * dilation_rate`, whatever the
    stride: output `i` is then output `i * stride` of the same layer without
    stride, and the output has `ceil(extent / stride)` pixels, as with
    `padding="same"`. Where the sum is odd (kernels of even size) the extra
    pixel goes after: below and to the right.

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
        ValueError: if more is to be added to one side than there is.
    """
    data_format = data_format or keras.config.image_data_format()
    first = 1 if data_format == "channels_last" else 2
    shape = tuple(inputs.shape)
    for axis, (before, after) in enumerate(amounts, start=first):
        if before == after == 0:
            continue
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

        def take(part, axis=axis):
            return inputs[(slice(None),) * axis + (part,)]

        pieces = [inputs]
        if before:
            pieces.insert(0, take(slice(-before, None)))
        if after:
            pieces.append(take(slice(0, after)))
        inputs = ops.concatenate(pieces, axis=axis)
    return inputs
