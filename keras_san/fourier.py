"""Circular convolutions of small images as products of their transforms."""

import functools
import math

import keras
import numpy as np
from keras import ops


def circular_convolution(inputs, kernel, strides=(1, 1)):
    """Convolves images as if they continued periodically.

    On each axis, output `i` of stride `s` sums `kernel[t]` times pixel
    `i * s + t - before` over all taps `t`, with `before` as in
    `keras_san.padding.circular_amounts`. Write `t - before = a * s + p` with
    `0 <= p < s`: in terms of the phases `x_p[j] = inputs[j * s + p]` it sums
    `kernel[t] * x_p[i + a]`, which is a circular correlation without stride.
    Its transform is the product of both transforms, summed over phases and
    channels: one product of matrices for each frequency.

    Args:
        inputs: Tensor `(batch, height, width, channels)`. Height and width
            are known, and multiples of the strides.
        kernel: Tensor `(*kernel_size, channels, filters)`.
        strides: Pair of ints.

    Returns:
        Tensor `(batch, height / strides[0], width / strides[1], filters)`.
    """
    kernel = ops.convert_to_tensor(kernel)
    _, height, width, _ = inputs.shape
    *kernel_size, channels, filters = kernel.shape
    rows, columns = height // strides[0], width // strides[1]
    to_first, to_second, of_kernel, back = _matrices(
        (rows, columns), tuple(kernel_size), tuple(strides)
    )
    products = len(back[0]) // 2
    terms = strides[0] * strides[1] * channels
    # From here on -1 stands for what is as long as the batch.
    x = ops.reshape(
        inputs, (-1, rows, strides[0], columns, strides[1], channels)
    )
    x = ops.transpose(x, (1, 3, 0, 2, 4, 5))
    x = ops.reshape(x, (rows * columns, -1))
    x = ops.concatenate(
        [
            ops.reshape(ops.matmul(matrix, x), (products, -1, terms))
            for matrix in (to_first, to_second)
        ],
        axis=-1,
    )
    w = ops.reshape(kernel, (-1, channels * filters))
    w = ops.reshape(ops.matmul(of_kernel, w), (products, 2 * terms, filters))
    y = ops.reshape(ops.matmul(x, w), (2 * products, -1))
    y = ops.reshape(ops.matmul(back, y), (rows, columns, -1, filters))
    return ops.transpose(y, (2, 0, 1, 3))


def is_faster(inputs, kernel, strides):
    """`True` where `circular_convolution` can and should replace padding.

    Only on TensorFlow and JAX without accelerators: PyTorch was slower in
    inference, and no GPU was at hand.

    The rule counts multiplications per output pixel and pair of channels. A
    convolution has one per tap. Here the matrix products have four for two
    pixels, for each phase. Transforms of images and outputs count twice, and
    each number of the transformed kernel, which is written and read once per
    batch, 48 times, since they are bound by memory.

    Of 150 cases (2 cores; batches of 1 to 128, 2x2 to 16x16 pixels, 2 to 5
    taps, 8 to 512 channels) those that pass took 0.1 to 1.1 times as long as
    padding in a forward pass of at least half a millisecond, and 0.1 to 0.96
    times as long with both gradients; the cases near the limit took longest.
    """
    batch, *image, _ = inputs.shape
    *kernel_size, channels, filters = kernel.shape
    dtypes = {keras.utils.standardize_dtype(x.dtype) for x in (inputs, kernel)}
    if (
        dtypes != {"float32"}
        or None in image
        or any(n % s or n < k for n, s, k in zip(image, strides, kernel_size))
        or keras.backend.backend() == "torch"
        or not keras.distribution.list_devices()[0].startswith("cpu")
    ):
        return False
    if not isinstance(batch, int):
        batch = 64  # As in the papers.
    taps, phases = math.prod(kernel_size), math.prod(strides)
    pixels = math.prod(image) // phases
    time = (
        2 * phases
        + 2 * pixels * (2 * phases / filters + 1 / channels)
        + 48 * phases / max(batch, 1)
    )
    # The transformed kernel has a number for each pixel in place of each tap.
    return time <= taps and pixels * phases <= 16 * taps


@functools.cache
def _matrices(shape, kernel_size, strides):
    """The transforms of phases and kernels, and the inverse one of outputs.

    Images are real, so one of two frequencies `f` and `-f` is enough. Its
    complex product, of `X = A + iB` and `W = C + iD`, is the real one

        [A, -B]   [C]   [AC - BD]
        [B,  A] @ [D] = [AD + BC].

    Where `f` and `-f` are the same there is no imaginary part, and two such
    frequencies `f` and `g` share a product:

        [X_f,   0]   [W_f]   [X_f W_f]
        [  0, X_g] @ [W_g] = [X_g W_g].

    So there are about half as many products as pixels, each with two rows
    and two columns of blocks.

    Returns:
        Four matrices. The first two map the pixels of a phase to the left
        and to the right blocks of all products, `(2 * products, pixels)`. The
        third maps all taps to the blocks of the kernel in each phase,
        `(2 * products * phases, taps)`, and the last one the results of the
        products to the pixels of the output.
    """
    pixels = np.array(list(np.ndindex(*shape)))
    phases = np.array(list(np.ndindex(*strides)))
    taps = np.array(list(np.ndindex(*kernel_size)))
    taps -= (np.array(kernel_size) - 1) // 2
    steps, phase = np.divmod(taps, strides)
    in_phase = np.all(phase == phases[:, None], axis=-1)
    # Frequencies count as pixels do. Of each pair `f` and `-f` the later one.
    order = (pixels - -pixels % shape) @ (shape[1], 1)
    pairs, single = pixels[order > 0], pixels[order == 0]

    def waves(frequencies, places):
        angles = 2 * np.pi * (frequencies / shape) @ places.T
        return np.cos(angles), np.sin(angles)

    def blocks(of_pairs, of_single):
        return np.concatenate(
            [np.stack(of_pairs, 1), np.stack(of_single, 1)]
        ).reshape(-1, of_pairs[0].shape[-1])

    def two_by_two(x):
        if len(x) % 2:
            x = np.concatenate([x, 0 * x])
        return x[::2], x[1::2]

    cos, sin = waves(pairs, pixels)
    f, g = two_by_two(waves(single, pixels)[0])
    to_first = blocks((cos, -sin), (f, 0 * f))
    to_second = blocks((sin, cos), (0 * g, g))
    back = blocks((2 * cos, -2 * sin), (f, g)).T / len(pixels)
    # The other sign, because a correlation conjugates the kernel's.
    cos, sin = waves(pairs, steps)
    f, g = two_by_two(waves(single, steps)[0])
    of_kernel = blocks((cos, sin), (f, g))[:, None] * in_phase
    of_kernel = of_kernel.reshape(-1, len(taps))
    return tuple(
        np.ascontiguousarray(matrix, "float32")
        for matrix in (to_first, to_second, of_kernel, back)
    )
