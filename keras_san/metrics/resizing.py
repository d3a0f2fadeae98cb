"""Bicubic resizing as MATLAB does it, the standard of super-resolution."""

import math

import numpy as np

from keras_san.checks import check_count, check_positive


def imresize(image, scale=None, size=None):
    """Resizes an image as MATLAB's `imresize` does by default.

    The kernel is bicubic with a = -0.5. If the image shrinks, the kernel is
    stretched, so that nothing aliases. Beyond the border the image is mirrored
    (old versions of MATLAB repeated the border pixel: use `numpy.pad` and crop
    for their results). The axis that shrinks most goes first. Images of uint8
    are rounded, half up, and clipped after each axis; floats are not, and may
    overshoot.

    Args:
        image: Array `(height, width)` or `(height, width, channels)`, uint8
            or float.
        scale: Positive number. The size becomes `ceil(scale * n)`.
        size: Pair of ints, height and width, in place of `scale`.

    Returns:
        An array of the dtype of `image`.

    Raises:
        ValueError: for any other arguments.

    Reference:
        [Keys, 1981](https://doi.org/10.1109/TASSP.1981.1163711), the kernel.
    """
    image = np.asarray(image)
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise ValueError(
            "`image` must have the shape (height, width) or (height, width, "
            f"channels), and not be empty. Received: shape {image.shape}"
        )
    if image.dtype != np.uint8 and image.dtype.kind != "f":
        raise ValueError(
            "`image` must be of uint8 or of floats. Received: dtype "
            f"{image.dtype}"
        )
    if (scale is None) == (size is None):
        raise ValueError(
            "Pass either `scale` or `size`. Received: "
            f"scale={scale!r}, size={size!r}"
        )
    if size is None:
        check_positive("scale", scale)
        size = [math.ceil(scale * n) for n in image.shape[:2]]
        scales = [float(scale)] * 2
    else:
        size = _pair(size)
        scales = [new / n for new, n in zip(size, image.shape)]
    output = image
    for axis in sorted((0, 1), key=lambda axis: scales[axis]):
        output = _resize_axis(output, axis, size[axis], scales[axis])
        if image.dtype == np.uint8:
            output = np.clip(np.floor(output + 0.5), 0, 255).astype(np.uint8)
    return output.astype(image.dtype)


def _pair(size):
    if not isinstance(size, (tuple, list, np.ndarray)) or len(size) != 2:
        raise ValueError(
            f"`size` must be (height, width). Received: size={size!r}"
        )
    for n in size:
        check_count("size", n)
    return [int(n) for n in size]


def _resize_axis(image, axis, length, scale):
    """Resizes one axis: output lines are weighted sums of input lines."""
    shape = [1] * image.ndim
    shape[axis] = length
    output = 0.0
    for index, weight in zip(*_taps(image.shape[axis], length, scale)):
        output += np.take(image, index, axis) * weight.reshape(shape)
    return output


def _taps(n, length, scale):
    """Indices and weights `(taps, length)` of the lines to sum."""
    stretch = max(1.0, 1.0 / scale)
    # Both grids have their lines at half-integers, and their origins in
    # common.
    centre = (np.arange(length) + 0.5) / scale - 0.5
    taps = math.ceil(4.0 * stretch) + 1
    index = np.floor(centre - 2.0 * stretch) + np.arange(taps)[:, None]
    weight = _cubic((centre - index) / stretch)
    weight /= weight.sum(axis=0)
    # Mirrored with the border line doubled, as often as the kernel is wide.
    index = index.astype(np.int64) % (2 * n)
    index = np.minimum(index, 2 * n - 1 - index)
    used = weight.any(axis=1)
    return index[used], weight[used]


def _cubic(x):
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x**2 + 1.0
    far = ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0
    return np.where(x <= 1.0, near, np.where(x <= 2.0, far, 0.0))
