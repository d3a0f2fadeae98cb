"""Norms of kernels: a kernel in, one float32 number out.

Kernels are laid out as Keras keeps them, `(*kernel_size, in, out)` with any
number of spatial axes (none for a dense layer). Depthwise, transposed and
grouped kernels share that layout up to the meaning of the last two axes.
Everything here is a pure function of `keras.ops`; state belongs to layers.
"""

import math
import numbers

import keras
import numpy as np
from keras import ops

from keras_san import spectra
from keras_san.checks import check_count
from keras_san.numerics import TINY, float32, largest, matmul, unit_scale

# Elements of the blocks of which `conv_spectral_norm` forms a product at once.
_CHUNK = 2**22

# Frequencies per degree of a filter's transform, along each axis, that stand
# for all of them if the image is unknown.
_PER_TAP = 32

# Repeated squaring raises the Gram matrix to the power 2**14, which leaves a
# singular value 0.1 % below the largest with a weight of e**-32.
_SQUARINGS = 14


def sparsity_aware_norm(
    kernel,
    spatial_shape=None,
    ratio=1.0,
    dilation_rate=1,
    seed=None,
    sample=None,
):
    """The largest gain from any one input channel to any one output channel.

    Under cyclic padding this is the largest modulus of the discrete Fourier
    transform of any single filter `kernel[..., i, j]`, zero-padded to the
    image. The stride is ignored, as in the paper: a strided layer has some of
    the outputs only, and so at most this gain. A filter larger than the image
    wraps around, as a cyclic convolution does. For another padding give the
    extents of a cyclic convolution that the layer is a part of, of which
    `keras_san.geometry.Convolution` tells: the result is then an upper bound.

    Bounds make nearly all of the transforms unnecessary, see
    `keras_san.spectra`; the result is still that of all of them, to about
    1e-6 in float32. On GPUs TensorFlow rounds products to TF32, and with them
    the result to about 1e-3, unless you call
    `tf.config.experimental.enable_tensor_float_32_execution(False)`.

    Args:
        kernel: Tensor of shape `(*kernel_size, in, out)`. Without spatial
            axes every filter is a single weight.
        spatial_shape: Tuple of ints, the height and width (or as many
            extents as the kernel has spatial axes) of the image that the
            layer filters. `None` means every frequency: an upper bound for
            images of any size and padding, from 0 to 0.13 % per axis above
            the supremum.
        ratio: Float in (0, 1], the share of filters to measure, drawn anew
            at each call. Multiply by `subset_gain` to compensate. Drawing
            takes longer than the exact norm of all filters.
        dilation_rate: Int or tuple of ints.
        seed: Int or `keras.random.SeedGenerator` for the draw of filters.
        sample: A draw by `sample_filters`, instead of `ratio` and `seed`.

    Returns:
        A float32 scalar. Zero for a zero kernel, NaN if the kernel holds a
        NaN or an infinity.

    Raises:
        ValueError: if `ratio` is outside (0, 1], or the kernel has fewer
            than two axes, or `spatial_shape` has another rank than it.

    Reference:
        [Kligvasser and Michaeli, 2021](https://arxiv.org/abs/2103.02458),
        Lemma 1 (Eq. 8), and its section "Efficiency" for `ratio`.
    """
    kernel = float32(kernel)
    grid, taps = _grid_and_taps(kernel.shape, spatial_shape, dilation_rate)
    filters = ops.reshape(kernel, (taps.shape[0], -1))
    if sample is None:
        sample = sample_filters(kernel.shape, ratio, seed)
    factor = _grid_factor(kernel.shape, spatial_shape)
    if sample is None:
        return factor * spectra.largest_modulus(filters, taps, grid)
    norm = factor * spectra.largest_modulus(
        ops.take(filters, sample, axis=1), taps, grid
    )
    # A broken filter shows whether it was drawn or not.
    return ops.where(ops.all(ops.isfinite(kernel)), norm, float("nan"))


def sample_filters(kernel_shape, ratio, seed=None):
    """Draws the filters that `sparsity_aware_norm` measures.

    Returns:
        An int tensor of `ceil(in * out * ratio)` different numbers below
        `in * out`, or `None` for all filters if `ratio` is 1.
    """
    check_ratio(ratio)
    if ratio == 1.0:
        return None
    count = kernel_shape[-2] * kernel_shape[-1]
    order = ops.argsort(keras.random.uniform((count,), seed=seed))
    return order[: _subset_size(count, ratio)]


def subset_gain(num_filters, ratio):
    """The factor that makes up for measuring only a share of the filters.

    Args:
        num_filters: Int, in channels times out channels.
        ratio: Float in (0, 1].

    Returns:
        A Python float >= 1: the expected maximum of `num_filters`
        exponential draws over that of `ceil(num_filters * ratio)` draws.

    Raises:
        ValueError: if `ratio` is outside (0, 1].

    Reference:
        [Kligvasser and Michaeli, 2021](https://arxiv.org/abs/2103.02458),
        Eq. 9.
    """
    check_ratio(ratio)

    def harmonic(n):
        return float(np.sum(1.0 / np.arange(1, n + 1)))

    subset = _subset_size(num_filters, ratio)
    return harmonic(num_filters) / harmonic(subset)


def sparse_norm(kernel, sparsity, spatial_shape=None, dilation_rate=1):
    """The largest gain from a few input channels to any one output channel.

    The largest norm that any output channel can have under cyclic padding,
    for signals of norm 1 with at most `sparsity` nonzero channels. With `N_k`
    for that norm, `w_ij` for the filter from input channel `j` to output
    channel `i`, and `F` for the discrete Fourier transform of filters
    zero-padded to the image,

        N_k = max over i and f of sqrt(sum of the k largest |F{w_ij}(f)|^2),

    where the sum is over `j`, at one frequency `f`. The stride is ignored,
    as in `sparsity_aware_norm`, which is `N_1`. `N_k` never falls with `k`,
    and is at most `sqrt(k) N_1`. Once `k` reaches the number of input
    channels, it is the norm of the layer's strongest output channel: at most
    the operator norm, and at least the operator norm over the square root of
    the number of output channels.

    Eq. 6 limits each channel rather than the whole signal. For `k` channels
    of norm 1 each, the result would lie between `max over i and f of the sum
    of the k largest |F{w_ij}(f)|` and `sqrt(k) N_k`.

    Proof. Let `x_j` be the channels, `k` of them or fewer. By Parseval
    `||y_i||^2` is the mean over the frequencies of
    `|sum_j F{w_ij}(f) F{x_j}(f)|^2`, at most `sum_j |F{w_ij}(f)|^2` times
    `sum_j |F{x_j}(f)|^2` (Cauchy and Schwarz). The first factor is at most
    `N_k^2`, the mean of the second is `||x||^2 = 1`. A wave of the best
    frequency (a real one has that of `-f` as well, where the moduli are the
    same) in the best `k` channels, with amplitudes and phases proportional to
    the conjugates of `F{w_ij}(f)`, attains both.

    Args:
        kernel: Tensor of shape `(*kernel_size, in // groups, out)`. Of a
            transposed convolution, swap the last two axes first. Without
            spatial axes every filter is a single weight.
        sparsity: Int >= 1, the largest number of nonzero channels.
        spatial_shape: As that of `sparsity_aware_norm`.
        dilation_rate: Int or tuple of ints.

    Returns:
        A float32 scalar. Zero for a zero kernel, NaN if the kernel holds a
        NaN or an infinity. On GPUs see `sparsity_aware_norm` for TF32.

    Raises:
        ValueError: if `sparsity` is not an int >= 1, or the kernel has fewer
            than two axes, or `spatial_shape` has another rank than it.

    Reference:
        [Kligvasser and Michaeli, 2021](https://arxiv.org/abs/2103.02458),
        Eq. 6 and Lemma 1, which are the case of one channel.
    """
    check_count("sparsity", sparsity)
    kernel = float32(kernel)
    grid, taps = _grid_and_taps(kernel.shape, spatial_shape, dilation_rate)
    factor = _grid_factor(kernel.shape, spatial_shape)
    channels = min(int(sparsity), kernel.shape[-2])
    if channels == 1:
        filters = ops.reshape(kernel, (taps.shape[0], -1))
        return factor * spectra.largest_modulus(filters, taps, grid)
    filters = ops.reshape(kernel, (taps.shape[0], *kernel.shape[-2:]))
    filters = ops.swapaxes(filters, -1, -2)
    return factor * spectra.largest_length(filters, taps, grid, channels)


def rms_modulus(kernel, spatial_shape=None, dilation_rate=1):
    """The root mean square of the moduli of which Lemma 1 takes the largest.

    The mean is over all filters and all frequencies. By Parseval it is the
    Frobenius norm of the kernel over the square root of the number of its
    filters. A kernel larger than the image wraps around it: taps that meet
    are added up first.

    Args:
        kernel: Tensor of shape `(*kernel_size, in, out)`.
        spatial_shape: Tuple of ints, the extents of the image that the layer
            filters, or `None` for an image larger than the kernel.
        dilation_rate: Int or tuple of ints.

    Returns:
        A float32 scalar. Zero for a zero kernel, NaN if the kernel holds a
        NaN or an infinity.

    Raises:
        ValueError: if the kernel has fewer than two axes, or `spatial_shape`
            has another rank than it.
    """
    kernel, scale = unit_scale(kernel)
    grid, taps = _grid_and_taps(kernel.shape, spatial_shape, dilation_rate)
    filters = ops.reshape(kernel, (taps.shape[0], -1))
    place = np.zeros(len(taps), int)
    for tap, extent in zip(taps.T, grid):
        place = place * extent + tap % extent
    places, place = np.unique(place, return_inverse=True)
    if len(places) < len(taps):
        filters = ops.segment_sum(filters, place.astype("int32"), len(places))
    square = ops.sum(ops.square(filters)) / filters.shape[1]
    return scale * ops.sqrt(square)


def active_channels(inputs, groups=1, channels_axis=-1):
    """The effective number of channels in a signal.

    The mean over the examples of `||x||^2 / max_j ||x_j||^2`, where `x_j` is
    channel `j` of one example over space: 1 where all channels but one are
    zero, and the number of channels where all have the same norm.

    Args:
        inputs: Tensor with examples along its first axis.
        groups: Int. If the channels are convolved in groups, each is a signal
            by itself, and the mean is over them, too.
        channels_axis: Int.

    Returns:
        A float32 scalar. Signals that are zero count as 1. NaN or infinity if
        some input is, or has a square that is out of float32's range.
    """
    inputs = float32(inputs)
    rank = len(inputs.shape)
    space = [a for a in range(1, rank) if a != channels_axis % rank]
    energy = ops.square(inputs)
    if space:
        energy = ops.sum(energy, axis=space)
    energy = ops.reshape(energy, (-1, groups, energy.shape[-1] // groups))
    total = ops.sum(energy, axis=-1)
    channels = total / ops.maximum(ops.max(energy, axis=-1), TINY)
    return ops.mean(ops.where(total <= TINY, 1.0, channels))


def spectral_norm(kernel):
    """The top singular value of the kernel as a `(fan_in, out)` matrix.

    For convolutions this is Miyato's approximation. It lies between the norm
    of the operator and that norm over the square root of the kernel's size.

    Args:
        kernel: Tensor of shape `(*kernel_size, in, out)`.

    Returns:
        A float32 scalar, converged (not one step of power iteration).

    Reference:
        [Miyato et al., 2018](https://arxiv.org/abs/1802.05957), section 2.1.
    """
    return top_singular_value(fan_in_matrix(kernel))


def bidirectional_spectral_norm(kernel):
    """The mean of the top singular values of both reshapes of a kernel.

    Args:
        kernel: Tensor of shape `(*kernel_size, in, out)`.

    Returns:
        A float32 scalar: the mean of the norms of the `(fan_in, out)` and of
        the `(fan_out, in)` matrix. Without spatial axes the two are equal.

    Reference:
        [Lin, Sekar and Fanti, 2021](https://arxiv.org/abs/2009.02773), BSN.
    """
    both = [fan_in_matrix(kernel), fan_out_matrix(kernel)]
    return sum(top_singular_value(matrix) for matrix in both) / 2.0


def conv_spectral_norm(
    kernel, spatial_shape, strides=1, dilation_rate=1, groups=1
):
    """The exact operator norm of a convolution with cyclic padding.

    A cyclic convolution is block-diagonal in the Fourier domain. A stride
    folds the frequencies that it makes indistinguishable into one block.

    Args:
        kernel: Tensor of shape `(*kernel_size, in // groups, out)`.
        spatial_shape: Tuple of ints, the extents of the layer's input. For
            another padding than cyclic see
            `keras_san.geometry.Convolution.strided_shape`: the result is then
            an upper bound.
        strides: Int or tuple of ints; each must divide its extent.
        dilation_rate: Int or tuple of ints.
        groups: Int, the groups of channels that are convolved apart.

    Returns:
        A float32 scalar.

    Raises:
        ValueError: if a stride does not divide the image, or `spatial_shape`
            does not fit the kernel.

    Reference:
        [Sedghi, Gupta and Long, 2018](https://arxiv.org/abs/1805.10408).
    """
    kernel, scale = unit_scale(kernel)
    grid, taps = _grid_and_taps(kernel.shape, spatial_shape, dilation_rate)
    strides = _tuple("strides", strides, len(grid))
    num_blocks = len(_block_frequencies(grid, strides))
    size = (
        4
        * math.prod(strides)
        * max(math.prod(kernel.shape[-2:]), taps.shape[0])
    )
    chunk = min(num_blocks, max(1, _CHUNK // size))
    best = ops.zeros((), "float32")
    for start in range(0, num_blocks, chunk):
        blocks = _fourier_blocks(
            kernel, grid, taps, strides, groups, slice(start, start + chunk)
        )
        best = ops.maximum(best, top_singular_value(blocks))
    return scale * best


# Matrices whose top singular values make up the spectral norms. All have a
# leading batch axis: `(batch, rows, columns)`.


def fan_in_matrix(kernel):
    """The kernel as a matrix `(1, prod(kernel_size) * in, out)`."""
    kernel = float32(kernel)
    _check_rank(kernel.shape)
    return ops.reshape(kernel, (1, -1, kernel.shape[-1]))


def fan_out_matrix(kernel):
    """The kernel as a matrix `(1, prod(kernel_size) * out, in)`."""
    kernel = float32(kernel)
    _check_rank(kernel.shape)
    *spatial, fan_in, out = range(len(kernel.shape))
    return fan_in_matrix(ops.transpose(kernel, (*spatial, out, fan_in)))


def fourier_blocks(kernel, spatial_shape, strides=1, dilation_rate=1, groups=1):
    """The blocks of a cyclic convolution, one for each output frequency.

    A complex block `A + iB` is returned as the real matrix
    `[[A, -B], [B, A]]`, which has the same singular values, each twice. Only
    one of two conjugate frequencies is kept: their norms are equal.

    The arguments are those of `conv_spectral_norm`.

    Returns:
        Tensor of shape `(blocks * groups, 2 * prod(strides) * in // groups,
        2 * out // groups)`.
    """
    kernel = float32(kernel)
    grid, taps = _grid_and_taps(kernel.shape, spatial_shape, dilation_rate)
    strides = _tuple("strides", strides, len(grid))
    return _fourier_blocks(kernel, grid, taps, strides, groups, slice(None))


def power_iteration(matrices, u):
    """One step of power iteration on each matrix of a batch.

    Args:
        matrices: Tensor of shape `(batch, rows, columns)`.
        u: Tensor of shape `(batch, columns)`, unit vectors.

    Returns:
        `(sigma, v, u)`: the estimates `v @ matrix @ u` of shape `(batch,)`,
        the left vectors `(batch, rows)` and the new right vectors. Where a
        product vanishes (a zero matrix) `u` stays as it was.

    Reference:
        [Miyato et al., 2018](https://arxiv.org/abs/1802.05957), Algorithm 1.
    """
    v = left_vectors(matrices, u)
    product = _matvec(ops.swapaxes(matrices, -1, -2), v)
    sigma = _length(product)
    u = ops.where(sigma > 0, product / ops.maximum(sigma, TINY), u)
    return sigma[..., 0], v, u


def left_vectors(matrices, u):
    """The unit vectors along `matrices @ u` (zero where that vanishes)."""
    product = _matvec(matrices, u)
    return product / ops.maximum(_length(product), TINY)


def top_right_vectors(matrices):
    """The right singular vectors of the top singular values, converged.

    The Gram matrix is squared again and again: in a few matrix products,
    the form that accelerators like best, all but its dominant directions
    die out.

    Args:
        matrices: Tensor of shape `(batch, rows, columns)`.

    Returns:
        Tensor of shape `(batch, columns)`, unit vectors.
    """
    matrices, _ = unit_scale(matrices)
    transposed = ops.swapaxes(matrices, -1, -2)
    wide = matrices.shape[-1] > matrices.shape[-2]
    if wide:
        matrices, transposed = transposed, matrices
    power = matmul(transposed, matrices)
    for _ in range(_SQUARINGS):
        size = ops.sqrt(ops.sum(power * power, axis=(-2, -1), keepdims=True))
        power = power / ops.maximum(size, TINY)
        power = matmul(power, power)
    # Every column is a multiple of the dominant vector; the one with the
    # largest diagonal entry is the furthest from zero.
    column = ops.argmax(ops.diagonal(power, axis1=-2, axis2=-1), axis=-1)
    u = ops.take_along_axis(power, column[..., None, None], axis=-1)[..., 0]
    if wide:
        u = _matvec(matrices, u)
    length = _length(u)
    any_unit = u.shape[-1] ** -0.5
    return ops.where(length > 0, u / ops.maximum(length, TINY), any_unit)


def top_singular_value(matrices):
    """The top singular value of all matrices, converged.

    Args:
        matrices: Tensor of shape `(batch, rows, columns)`.

    Returns:
        A float32 scalar, the largest over the batch.
    """
    matrices = float32(matrices)
    sigma, _, _ = power_iteration(matrices, top_right_vectors(matrices))
    return largest(sigma)


def check_ratio(ratio):
    """Raises a `ValueError` unless `0 < ratio <= 1`."""
    if not (isinstance(ratio, numbers.Real) and 0.0 < ratio <= 1.0):
        raise ValueError(
            "`ratio` must be in (0, 1]: the share of filters to measure "
            f"(1.0 for all of them). Received: ratio={ratio!r}"
        )


def _subset_size(count, ratio):
    # Less a little, lest 0.07 of 100 filters be 8.
    return max(1, math.ceil(count * ratio - 1e-9))


def _length(x):
    scale = ops.max(ops.abs(x), axis=-1, keepdims=True)
    scale = ops.maximum(scale, TINY)
    unit = x / scale
    return scale * ops.sqrt(ops.sum(unit * unit, axis=-1, keepdims=True))


def _matvec(matrices, vectors):
    return matmul(matrices, vectors[..., None])[..., 0]


def _check_rank(shape):
    if len(shape) < 2:
        raise ValueError(
            "A kernel has at least two axes, `(*kernel_size, in, out)`. "
            f"Received: kernel.shape={tuple(shape)}"
        )


def _tuple(name, value, rank):
    if isinstance(value, numbers.Integral):
        value = (value,) * rank
    entries = tuple(value)
    if len(entries) != rank or not all(
        isinstance(entry, numbers.Integral) and entry > 0 for entry in entries
    ):
        raise ValueError(
            f"`{name}` must have a positive int for each of the kernel's "
            f"{rank} spatial axes. Received: {name}={value}"
        )
    return tuple(int(entry) for entry in entries)


def _grid_and_taps(kernel_shape, spatial_shape, dilation_rate):
    """The grid of frequencies, and where each tap of the kernel lies on it."""
    _check_rank(kernel_shape)
    kernel_size = tuple(kernel_shape[:-2])
    rank = len(kernel_size)
    dilation_rate = _tuple("dilation_rate", dilation_rate, rank)
    if spatial_shape is None:
        # Dilation only permutes the frequencies, so the supremum is that of
        # the dense kernel.
        grid = tuple(max(1, _PER_TAP * (k - 1)) for k in kernel_size)
        dilation_rate = (1,) * rank
    else:
        grid = _tuple("spatial_shape", spatial_shape, rank)
    taps = spectra.indices(kernel_size) * np.array(dilation_rate, int)
    return grid, taps.astype("int32")


def _grid_factor(kernel_shape, spatial_shape):
    """The least factor that makes the result a bound for all frequencies.

    By the bounds (c) and (e) of `keras_san.spectra`: no frequency is further
    than half a step, `pi / (_PER_TAP * (k - 1))`, from the grid of
    `_grid_and_taps`.
    """
    if spatial_shape is not None:
        return 1.0
    axes = sum(k > 1 for k in kernel_shape[:-2])
    return math.cos(math.pi / (2 * _PER_TAP)) ** -axes


def _block_frequencies(grid, strides):
    """Frequencies `(blocks, aliases, axes)`; aliases fold into one block."""
    for extent, stride in zip(grid, strides):
        if extent % stride:
            raise ValueError(
                "A strided cyclic convolution has a block for each output "
                "frequency only if every stride divides its extent of the "
                f"image. Received: spatial_shape={grid}, strides={strides}"
            )
    outputs = [n // s for n, s in zip(grid, strides)]
    kept = outputs[:-1] + [outputs[-1] // 2 + 1] if outputs else []
    base, alias = spectra.indices(kept), spectra.indices(strides)
    return base[:, None] + alias[None] * np.array(outputs, int)


def _fourier_blocks(kernel, grid, taps, strides, groups, chunk):
    frequencies = _block_frequencies(grid, strides)[chunk].astype("int32")
    blocks, aliases, rank = frequencies.shape
    cosine, sine = spectra.phases(
        frequencies.reshape(blocks * aliases, rank), taps, grid
    )
    cosine, sine = cosine.astype("float32"), sine.astype("float32")
    filters = ops.reshape(kernel, (taps.shape[0], -1))
    rows = aliases * kernel.shape[-2]
    columns = kernel.shape[-1] // groups

    def block_matrices(phases):
        matrices = matmul(phases, filters) / math.sqrt(aliases)
        matrices = ops.reshape(matrices, (blocks, rows, groups, columns))
        matrices = ops.transpose(matrices, (0, 2, 1, 3))
        return ops.reshape(matrices, (blocks * groups, rows, columns))

    real, imaginary = block_matrices(cosine), block_matrices(sine)
    return ops.concatenate(
        [
            ops.concatenate([real, -imaginary], axis=-1),
            ops.concatenate([imaginary, real], axis=-1),
        ],
        axis=-2,
    )
