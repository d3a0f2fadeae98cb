"""The largest modulus in the Fourier transforms of many small filters.

A filter of few taps has a smooth power spectrum, a trigonometric polynomial
of few terms, and most filters are far from the largest. So bounds decide which
filters, and which of their frequencies, are looked at. A result counts only
with a certificate that nothing left out can exceed it. Without one the search
widens, until everything is scanned.

Below, `w` are the taps of one filter, `F` is its Fourier transform and
`P = |F|^2`. With the lags `d` (differences of taps, one of each pair `d, -d`)
and the autocorrelation `r`,

    P(x) = sum_d rho_d cos(d . x),  rho_0 = r_0,  rho_d = 2 r_d.       (1)

The bounds, each of which a test holds up to random filters:

(a) `|F| <= sum |w|`, the triangle inequality.
(b) `P <= sum_d |rho_d|`, the same on (1).
(c) Along one axis, `k` taps make `F`, but for a phase, a trigonometric
    polynomial of degree `k - 1` in `x / 2`. Let its modulus be largest at
    `x0`, and `M` there; let `f` be its real part after the turn that makes it
    `M` there. Then `|f| <= M = f(x0)`, and `f` falls no faster than a cosine
    of its degree (M. Riesz): `f(x0 + t) >= M cos(t (k - 1) / 2)` where
    `|t| (k - 1) <= pi`. If every point is within `t_a` of a grid along each
    axis `a`, then, by one axis after the other,
    `max P <= max_grid P / prod_a cos^2(t_a (k_a - 1) / 2)`.
(d) If `0 <= P <= S`, then `q = 2 P / S - 1` lies in [-1, 1], and along one
    axis has degree `k - 1`, so `|q'| <= (k - 1) sqrt(1 - q^2)` (Bernstein and
    Szego): the angle `arccos q` changes at a rate of at most `k - 1`. So from
    a point where `P = p` to one at distances `t_a` along the axes, `P` climbs
    at most to `S (1 + cos(arccos(2 p / S - 1) - sum_a t_a (k_a - 1))) / 2`, or
    to `S` if that angle is negative.

(e) Bound (c) holds just as well for a sum of P over several filters. Let `u`
    be the unit vector along `(F_1, F_2, ...)` where the sum is largest. There
    `|sum_j conj(u_j) F_j|^2`, of the same degree, is the sum, nowhere more.
    And so it holds for the largest such sum over all choices of filters.

(f) `|F| <= |C| + sum |w - c|`, where `C` is the transform of any filter `c`:
    the triangle inequality again. `-w` has the moduli of `w`, so the sign
    of `w` may be chosen. It tells filters apart of which all are nearly `c`.

With a dilation of `s` read `s (k - 1)` for `k - 1`.
"""

import dataclasses
import functools
import math

import numpy as np
from keras import ops

from keras_san.numerics import largest, matmul, unit_scale

# Transforms of so few entries are all computed at once.
_SMALL = 2**14

# Elements that one step of the scan may produce.
_CHUNK = 2**18

# Filters of which the scan forms the spectra at once.
_BLOCK = 256

# Points of the coarse grid along each axis, at most, by number of axes. In two
# dimensions an image of 32 pixels fits with its zero padding.
_COARSE = {1: 1024, 2: 40, 3: 16}

# Entries of the constant tables, at most. Larger kernels are scanned.
_TABLES = 2**19

# How much is looked at before the search is given up: groups of filters by
# bound (a), filters by bound (b), cells of the coarse grid by bound (d). The
# first is enough for trained kernels, the others for random ones of 4x4 taps,
# of which bound (a) tells less.
_EFFORTS = ((256, 16, 64), (2048, 64, 1024), (16384, 64, 1024))

# What is looked at by bound (f), if no effort is enough: so many frequencies
# of all filters, and all frequencies of one filter in so many.
_AROUND = (16, 12)

# Phases that may be computed at once for it.
_PHASES = 2**22

# An effort is spared if a scan would do no more than so many times its work.
_WORTH = 4

# Of the sums of `largest_length`, the points of the coarse grid along an axis,
# at least, for each degree of F, and which share of the outputs are looked at
# on the image's own grid before all are.
_COARSE_PER_DEGREE = 5
_OUTPUTS = 8

# What rounding may add to a bound, relative to P.
_SLACK = 2e-6

# What rounding of P may add to the angle of bound (d): sqrt(2 * _SLACK).
_ANGLE_SLACK = 2e-3

# Below this, squares lose precision.
_SMALLEST_POWER = 1e-20


def largest_modulus(filters, taps, grid):
    """The largest modulus of the discrete Fourier transform of any filter.

    Args:
        filters: float32 tensor of shape `(taps, n)`, one filter a column.
        taps: int array of shape `(taps, axes)`, where the taps lie.
        grid: Tuple of ints, the extents of the image, one for each axis.

    Returns:
        A float32 scalar. Zero if all filters are zero, NaN if one holds a NaN
        or an infinity.
    """
    taps, grid = _without_idle_axes(taps, grid)
    if not grid:
        return largest(ops.abs(ops.sum(filters, axis=0)))
    if filters.shape[1] * _num_frequencies(grid) <= _SMALL:
        return _scan(filters, taps, grid)
    tables = _tables(taps.tobytes(), taps.shape, grid)
    if tables is None:
        return _scan(filters, taps, grid)

    efforts = [
        effort
        for effort in _EFFORTS
        if _WORTH * _work(filters.shape, tables, effort)
        < 2 * math.prod(filters.shape) * _num_frequencies(grid)
    ]

    searches = [
        functools.partial(_search, filters, tables, *effort)
        for effort in efforts
    ]
    num_phases = _num_frequencies(grid) * len(taps)
    if len(efforts) == len(_EFFORTS) > 0 and num_phases <= _PHASES:
        searches.append(functools.partial(_search_around, filters, taps, grid))

    def search(searches):
        if not searches:
            return _scan(filters, taps, grid)
        power, certified = searches[0]()
        return ops.cond(
            certified, lambda: ops.sqrt(power), lambda: search(searches[1:])
        )

    return search(searches)


def largest_length(filters, taps, grid, count):
    """The largest gain from `count` input channels to one output channel.

    For each output and frequency, add up the `count` largest P: the result is
    the square root of the largest of these sums.

    Args:
        filters: float32 tensor of shape `(taps, outputs, inputs)`.
        taps: int array of shape `(taps, axes)`, where the taps lie.
        grid: Tuple of ints, the extents of the image, one for each axis.
        count: Int between 1 and `inputs`.

    Returns:
        A float32 scalar. Zero if all filters are zero, NaN if one holds a NaN
        or an infinity.
    """
    _, outputs, inputs = filters.shape
    filters, scale = unit_scale(filters)
    taps, grid = _without_idle_axes(taps, grid)
    if not grid:
        power = ops.square(ops.sum(filters, axis=0))
        return scale * ops.sqrt(ops.max(_top_sums(power, count)))

    def sums(filters, steps):
        """The largest sum for each output, at every so many frequencies."""
        flat = ops.reshape(filters, (len(taps), -1))

        def of_chunk(cosine, sine):
            power = _powers(flat, cosine, sine)
            power = ops.reshape(power, (-1, filters.shape[1], inputs))
            return ops.max(_top_sums(power, count), axis=0)

        zero = ops.zeros(filters.shape[1:2], "float32")
        width = max(flat.shape)
        return _over_frequencies(taps, grid, steps, width, of_chunk, zero)

    every = (1,) * len(grid)

    def scan():
        return ops.max(sums(filters, every))

    degrees = np.max(taps, axis=0)
    steps = tuple(
        max(1, n // int(_COARSE_PER_DEGREE * degree))
        for n, degree in zip(grid, degrees)
    )
    if steps == every or outputs < _OUTPUTS:
        return scale * ops.sqrt(scan())
    # Bound (e): most outputs are ruled out by a few of their frequencies.
    half = degrees * np.pi * steps / np.array(grid) / 2.0
    half = np.where(np.array(steps) > 1, half, 0.0)
    factor = float(1.0 / np.prod(np.cos(half) ** 2))
    bounds, index = ops.top_k(sums(filters, steps), outputs // _OUTPUTS)
    best = ops.max(sums(ops.take(filters, index, axis=1), every))
    certified = factor * ops.min(bounds) <= best * (1.0 + _SLACK)
    return scale * ops.sqrt(ops.cond(certified, lambda: best, scan))


def _top_sums(power, count):
    """The sum of the `count` largest entries along the last axis."""
    if count < power.shape[-1]:
        power, _ = ops.top_k(power, count)
    return ops.sum(power, axis=-1)


def _without_idle_axes(taps, grid):
    """Taps and grid without the axes along which the modulus is constant."""
    axes = [axis for axis, t in enumerate(taps.T) if t.any() and grid[axis] > 1]
    return taps[:, axes], tuple(grid[axis] for axis in axes)


@dataclasses.dataclass(frozen=True)
class _Tables:
    """Constants of the search for one kernel size and image, in float32."""

    transform: np.ndarray  # (2 lags, taps): all frequencies that make up rho
    to_rho: np.ndarray  # (lags, 2 lags): rho from the squares of those
    cosine: np.ndarray  # (cells, lags): cos(d . x) at the cells' centres
    sine: np.ndarray  # (cells, lags)
    within: np.ndarray  # (2 lags, points): a cell's points about its centre
    grid_factor: float  # bound (c)
    climb: float  # sum_a t_a (k_a - 1) of bound (d)


@functools.lru_cache(maxsize=256)
def _tables(taps, shape, grid):
    taps = np.frombuffer(taps, "int32").reshape(shape)
    steps = np.gcd.reduce(taps, axis=0)
    lags = _lags(taps)
    # The transform on an odd grid of twice the kernel determines rho. Of its
    # frequencies, which are as many as the differences of taps, one of each
    # pair f, -f is enough.
    frequencies = lags // steps
    odd = 2 * np.max(taps // steps, axis=0) + 1
    transform = np.concatenate(phases(frequencies, taps // steps, odd))
    twice = np.where(np.any(lags, axis=1), 2.0, 1.0)
    to_rho, _ = phases(lags // steps, frequencies, odd)
    to_rho = twice[:, None] * to_rho * twice / math.prod(odd)
    to_rho = np.concatenate([to_rho, to_rho], axis=1)

    # The coarse grid consists of points of the image's grid, the centres of
    # cells of equal size. Beyond the half of the last axis nothing is new.
    most = _COARSE.get(len(grid), 8)
    sizes = np.array([math.ceil(n / most) for n in grid])
    before, after = sizes // 2, (sizes - 1) // 2
    counts = [math.ceil(n / size) for n, size in zip(grid, sizes)]
    counts[-1] = math.ceil((grid[-1] // 2 - after[-1]) / sizes[-1]) + 1
    num_points = math.prod(sizes)
    if (3 * len(taps) + math.prod(counts) + num_points) * len(lags) > _TABLES:
        return None
    cosine, sine = phases(indices(counts) * sizes, lags, grid)
    c, s = phases(indices(sizes) - before, lags, grid)
    within = np.concatenate([c, -s], axis=1).T
    # The rate at which (c) and (d) let P change, per point of the grid.
    rate = np.max(np.abs(lags), axis=0) * 2.0 * np.pi / np.array(grid)
    half = rate * sizes / 4.0
    reachable = np.all(half < np.pi / 2)
    return _Tables(
        *(
            table.astype("float32")
            for table in (transform, to_rho, cosine, sine, within)
        ),
        grid_factor=(
            float(1.0 / np.prod(np.cos(half) ** 2)) if reachable else np.inf
        ),
        climb=float(np.sum(rate * before)) + _ANGLE_SLACK,
    )


def _search(filters, tables, num_groups, num_filters, num_cells):
    """The largest P among the most promising, and whether it is certified.

    Args:
        filters: float32 tensor of shape `(taps, n)`.
        tables: `_Tables`.
        num_groups: Int, the groups of filters that pass bound (a).
        num_filters: Int, the filters that pass bound (b).
        num_cells: Int, the cells of the coarse grid that pass bound (d).

    Returns:
        `(power, certified)`: a float32 and a boolean scalar.
    """
    # `rest` bounds all that is left out; `total` is not finite if
    # anything is not.
    filters, rest, total = _promising_filters(filters, num_groups)
    rho = matmul(tables.to_rho, ops.square(matmul(tables.transform, filters)))
    bounds = ops.sum(ops.abs(rho), axis=0)
    total = total + ops.sum(bounds)
    if filters.shape[1] > num_filters:
        bounds, index = ops.top_k(bounds, num_filters)
        rho = ops.take(rho, index, axis=1)
        rest = ops.maximum(rest, ops.min(bounds))
    power = matmul(tables.cosine, rho)
    best = ops.max(power)
    certified = True
    if tables.within.shape[1] > 1:
        best, certified = _refine(power, rho, bounds, best, tables, num_cells)
    certified = ops.logical_and(certified, rest <= best * (1.0 + _SLACK))
    certified = ops.logical_and(certified, ops.isfinite(total))
    in_range = ops.logical_or(best > _SMALLEST_POWER, ops.equal(total, 0.0))
    return best, ops.logical_and(certified, in_range)


def _promising_filters(filters, num_groups):
    """The filters in the groups that hold the largest sums of moduli.

    A group is a few neighbours: there are fewer maxima to sort, and what is
    gathered lies together.

    Returns:
        `(filters, rest, total)`: bound (a) on P of what is left out, and the
        sum of all moduli.
    """
    taps, n = filters.shape
    group = _group(n)
    if n // group <= num_groups:
        return filters, 0.0, ops.sum(ops.abs(filters))
    # A product with ones: TensorFlow's sum along the first axis is slower.
    ones = np.ones((1, taps), "float32")
    bounds = matmul(ones, ops.abs(filters))
    total = ops.sum(bounds)
    bounds = ops.max(ops.reshape(bounds, (n // group, group)), axis=1)
    bounds, index = ops.top_k(bounds, num_groups)
    filters = ops.reshape(filters, (taps, n // group, group))
    filters = ops.reshape(ops.take(filters, index, axis=1), (taps, -1))
    # The least, not the last: with an entry of its result XLA sorts it all.
    return filters, ops.square(ops.min(bounds)), total


def _group(n):
    """The filters per group that balance sorting groups and looking."""
    return math.gcd(n, 2 ** max(0, round(math.log2(math.sqrt(n) / 64))))


def _work(shape, tables, effort):
    """The multiplications that an effort spends on the terms of (1)."""
    _, n = shape
    looked_at = min(n, effort[0] * _group(n))
    return looked_at * (tables.transform.size + tables.to_rho.size)


def _refine(power, rho, bounds, best, tables, num_cells):
    """Looks at every point of the cells that may hold more than `best`.

    Args:
        power: P at the cells' centres, `(cells, filters)`.
        rho: The filters' coefficients in (1), `(lags, filters)`.
        bounds: Bounds on their P, `(filters,)`.
        best: Scalar, the largest entry of `power`.
        tables: `_Tables`.
        num_cells: Int, how many cells of filters to look at.

    Returns:
        `(best, certified)`.
    """
    supremum = ops.minimum(bounds, ops.max(power, axis=0) * tables.grid_factor)
    # Bound (d) exceeds `best` where P at the centre is above `needed`.
    angle = ops.arccos(ops.clip(2.0 * best / supremum - 1.0, -1.0, 1.0))
    angle = angle + tables.climb
    needed = supremum * (1.0 + ops.cos(angle)) / 2.0
    needed = ops.where(angle < math.pi, needed, -supremum)
    needed = ops.where(supremum <= best * (1.0 + _SLACK), float("inf"), needed)
    excess = ops.reshape(power - needed, (-1,))
    num_cells = min(num_cells, excess.shape[0])
    excess, index = ops.top_k(excess, num_cells)
    columns = rho.shape[1]
    cell = ops.floor_divide(index, columns)
    rho = ops.take(ops.transpose(rho), ops.mod(index, columns), axis=0)
    # cos(d . (centre + offset)), by the theorem of addition.
    turned = [
        rho * ops.take(ops.convert_to_tensor(table), cell, axis=0)
        for table in (tables.cosine, tables.sine)
    ]
    found = matmul(ops.concatenate(turned, axis=1), tables.within)
    all_cells = num_cells == power.shape[0] * columns
    return (
        ops.maximum(best, ops.max(found)),
        True if all_cells else ops.min(excess) <= 0.0,
    )


def _search_around(filters, taps, grid):
    """The largest P of filters that are nearly one, up to their signs.

    Args:
        filters: float32 tensor of shape `(taps, n)`.
        taps: int array of shape `(taps, axes)`.
        grid: Tuple of ints.

    Returns:
        `(power, certified)`, as `_search`.
    """
    few, share = _AROUND
    _, n = filters.shape
    few = min(few, _num_frequencies(grid) - 1)
    ones = np.ones((1, len(taps)), "float32")

    # c is the mean of the filters, each with the sign of one of the largest.
    largest_one = ops.argmax(matmul(ones, ops.abs(filters))[0])
    one = ops.take(filters, largest_one[None], axis=1)
    sign = ops.where(matmul(ops.transpose(one), filters) < 0.0, -1.0, 1.0)
    centre = ops.mean(filters * sign, axis=1, keepdims=True)
    distances = matmul(ones, ops.abs(filters * sign - centre))[0]

    index = ops.arange(_num_frequencies(grid), dtype="int32")
    frequencies = _frequencies(index, grid, (1,) * len(grid))
    phases = _traced_phases(frequencies, taps, grid)
    around, order = ops.top_k(_powers(centre, *phases)[:, 0], few + 1)
    around = ops.sqrt(around)
    # The frequencies where the centre is largest, of all filters.
    best = _largest_power(filters, taps, grid, order[:few])
    rest = around[few] + ops.max(distances)

    def certifies(rest, best):
        # Rounding is that of the taps, of which the sum may exceed |C|.
        return ops.square(rest) * (1.0 + 5.0 * _SLACK) <= best

    def look_further():
        """All frequencies of the filters that are furthest from the centre."""
        bounds, index = ops.top_k(distances, max(1, n // share))
        some = ops.take(filters, index, axis=1)
        found = _largest_power(some, taps, grid)
        return ops.maximum(best, found), around[few] + ops.min(bounds)

    best, rest = ops.cond(
        certifies(rest, best), lambda: (best, rest), look_further
    )
    certified = ops.logical_and(certifies(rest, best), best > _SMALLEST_POWER)
    finite = ops.isfinite(best + ops.sum(distances))
    return best, ops.logical_and(certified, finite)


def _scan(filters, taps, grid):
    """The largest modulus of all filters, at all frequencies, in chunks."""
    filters, scale = unit_scale(filters)
    return scale * ops.sqrt(_largest_power(filters, taps, grid))


def _largest_power(filters, taps, grid, order=None):
    """The largest P, at all frequencies or those of the numbers `order`."""
    n = filters.shape[1]
    every = (1,) * len(grid)
    zero = ops.zeros((), "float32")
    tables = None
    if n * _num_frequencies(grid) > _SMALL:
        tables = _tables(taps.tobytes(), taps.shape, grid)
    if tables is None or order is not None:
        width = max(filters.shape)

        def largest_of_chunk(cosine, sine):
            return ops.max(_powers(filters, cosine, sine))

        return _over_frequencies(
            taps, grid, every, width, largest_of_chunk, zero, order
        )

    # By (1), for a block of filters at a time, so that what is multiplied
    # stays in the cache.
    block = min(n, _BLOCK)
    lags = _lags(taps)

    def of_chunk(cosine, sine):
        def step(number, best):
            # See `_over_frequencies`.
            first = ops.minimum(number * block, n - block)
            first = first + ops.cast(best < 0.0, "int32")
            some = ops.slice(filters, (0, first), (len(taps), block))
            some = ops.square(matmul(tables.transform, some))
            power = matmul(cosine, matmul(tables.to_rho, some))
            return ops.maximum(best, ops.max(power))

        return ops.fori_loop(0, math.ceil(n / block), step, zero)

    width = max(block, len(lags))
    return _over_frequencies(lags, grid, every, width, of_chunk, zero)


def _powers(filters, cosine, sine):
    """P of filters `(taps, n)` at frequencies of such phases."""
    real = matmul(cosine, filters)
    imaginary = matmul(sine, filters)
    return real * real + imaginary * imaginary


def _over_frequencies(positions, grid, steps, width, reduce, zero, order=None):
    """The largest of what `reduce` makes of P, in chunks of frequencies.

    Args:
        positions: int array of shape `(positions, axes)`.
        grid: Tuple of ints.
        steps: Tuple of ints: every so many points of the grid along an axis.
        width: Int, the entries that a frequency takes.
        reduce: Callable from the phases of a chunk of frequencies, their
            cosine and sine `(frequencies, positions)`, to a tensor.
        zero: What `reduce` makes of nothing.
        order: Int tensor, the numbers of the frequencies to look at, or
            `None` for all.

    Returns:
        A tensor, the elementwise maximum over the chunks.
    """
    num_frequencies = math.prod(_extents(grid, steps))
    if order is not None:
        num_frequencies = order.shape[0]
    chunk = max(1, min(num_frequencies, _CHUNK // width))

    def reduced(first):
        # The last chunk may run over the end: it starts again from zero.
        index = ops.mod(
            first + ops.arange(chunk, dtype="int32"), num_frequencies
        )
        if order is not None:
            index = ops.take(order, index)
        frequencies = _frequencies(index, grid, steps)
        return reduce(*_traced_phases(frequencies, positions, grid))

    def step(number, best):
        # `best` is never negative; that a chunk depends on it keeps
        # TensorFlow from running ten of them at once.
        first = number * chunk + ops.cast(ops.any(best < 0.0), "int32")
        return ops.maximum(best, reduced(first))

    chunks = math.ceil(num_frequencies / chunk)
    if chunks == 1:
        return reduced(0)
    return ops.fori_loop(0, chunks, step, zero)


def _extents(grid, steps):
    """The numbers of frequencies along each axis, every so many points."""
    # Filters are real: half of the frequencies along the last axis suffice.
    extents = [math.ceil(n / step) for n, step in zip(grid, steps)]
    extents[-1] = math.ceil((grid[-1] // 2) / steps[-1]) + 1
    return extents


def _frequencies(index, grid, steps):
    """The frequencies of such numbers, an int tensor for each axis."""
    frequencies = []
    extents = _extents(grid, steps)
    for extent, step in zip(reversed(extents), reversed(steps)):
        frequencies.insert(0, step * ops.mod(index, extent))
        index = ops.floor_divide(index, extent)
    return frequencies


def _traced_phases(frequencies, taps, grid):
    """The same as `phases`, of an int tensor of frequencies for each axis."""
    angles = ops.zeros((1, taps.shape[0]), "float32")
    taps = ops.convert_to_tensor(taps)
    for axis, extent in enumerate(grid):
        turns = frequencies[axis][:, None] * taps[None, :, axis]
        turns = ops.cast(ops.mod(turns, extent), "float32")
        angles = angles + turns * (2.0 * math.pi / extent)
    return ops.cos(angles), ops.sin(angles)


def phases(frequencies, positions, grid):
    """Cosine and sine of the angles of a discrete Fourier transform.

    Args:
        frequencies: int array of shape `(frequencies, axes)`.
        positions: int array of shape `(positions, axes)`.
        grid: The extents of the transform, one for each axis.

    Returns:
        Two float64 arrays of shape `(frequencies, positions)`.
    """
    angles = np.zeros((len(frequencies), len(positions)))
    for axis, extent in enumerate(grid):
        turns = np.outer(frequencies[:, axis], positions[:, axis]) % extent
        angles += turns * (2.0 * np.pi / extent)
    return np.cos(angles), np.sin(angles)


def indices(shape):
    """All indices of an array of that shape, `(size, axes)`."""
    return np.indices(shape, int).reshape(len(shape), math.prod(shape)).T


def _lags(taps):
    """Differences of taps, zero first, one of each pair `d, -d`."""
    differences = taps[:, None] - taps[None]
    differences = np.unique(differences.reshape(-1, taps.shape[1]), axis=0)
    return differences[len(differences) // 2 :]


def _num_frequencies(grid):
    return math.prod(grid[:-1]) * (grid[-1] // 2 + 1)
