"""The search for the largest modulus, its bounds and its certificate.

References are NumPy's, in float64: `numpy.fft` for spectra, dense grids for
suprema. The kernels that only the scan can solve are made so by hand.
"""

import contextlib
import itertools
import math

import helpers
import hypothesis
import numpy as np
import pytest
from helpers import BACKEND
from hypothesis import strategies as st
from keras import ops

from keras_san import norms, spectra

pytestmark = helpers.ignore_torch_copies

property_test = helpers.property_test(tensorflow=40, jax=3, torch=40)


def number(x):
    return float(ops.convert_to_numpy(x))


@contextlib.contextmanager
def settings(**values):
    with pytest.MonkeyPatch.context() as patch:
        for name, value in values.items():
            patch.setattr(spectra, name, value)
        spectra._tables.cache_clear()
        yield
    spectra._tables.cache_clear()


@contextlib.contextmanager
def counted_scans():
    calls = []
    scan = spectra._scan

    def counting(*args):
        calls.append(args)
        return scan(*args)

    with settings(_scan=counting):
        yield calls


def powers(filters, taps, grid):
    """The powers of each filter in float64, `(n, *grid)`."""
    images = np.zeros((filters.shape[1], *grid))
    for w, tap in zip(np.asarray(filters, np.float64), taps):
        images[(slice(None), *(tap % grid))] += w
    return np.abs(np.fft.fftn(images, axes=range(1, 1 + len(grid)))) ** 2


def expected_modulus(kernel, grid, dilation=1):
    """The largest modulus in float64, of the filters that can have it."""
    *size, _, _ = kernel.shape
    taps = spectra.indices(size) * np.broadcast_to(dilation, len(size))
    filters = kernel.reshape(len(taps), -1).astype("float64")
    # No modulus exceeds the sum of its taps' moduli, and so none of most
    # filters exceeds what is found at a few frequencies already.
    some = np.stack(
        np.meshgrid(*(np.arange(0, n, -(-n // 8)) / n for n in grid)), -1
    )
    waves = np.exp(2j * np.pi * some.reshape(-1, len(grid)) @ taps.T)
    least = np.abs(waves @ filters).max() * (1 - 1e-9)
    filters = filters[:, np.abs(filters).sum(0) >= least]
    at_once = max(1, 2**20 // math.prod(grid))
    return math.sqrt(
        max(
            powers(filters[:, i : i + at_once], taps, grid).max()
            for i in range(0, filters.shape[1], at_once)
        )
    )


def random_kernel(rng, shape, kind):
    if kind == "normal":
        return rng.normal(size=shape)
    if kind == "uniform":
        return rng.uniform(-1, 1, shape)
    if kind == "signs":
        return rng.choice([-1.0, 1.0], shape)
    if kind == "ties":
        return rng.integers(-1, 2, shape).astype(float)
    if kind == "smooth":
        return rng.uniform(0.5, 1.0, shape)
    if kind == "heavy":
        return rng.standard_t(2, shape)
    if kind == "one filter":
        return np.broadcast_to(rng.normal(size=(*shape[:-2], 1, 1)), shape)
    if kind == "nearly tied":
        one = rng.normal(size=(*shape[:-2], 1, 1))
        noise = 10.0 ** -rng.integers(1, 7) * rng.normal(size=shape)
        return rng.choice([-1.0, 1.0], shape[-2:]) * (one + noise)
    if kind == "one tap":
        kernel = np.zeros(shape)
        kernel[tuple(rng.integers(s) for s in shape[:-2])] = rng.normal(
            size=shape[-2:]
        )
        return kernel
    raise ValueError(kind)


KINDS = [
    "normal",
    "uniform",
    "signs",
    "ties",
    "smooth",
    "heavy",
    "one filter",
    "nearly tied",
    "one tap",
]


@st.composite
def problems(draw):
    """A kernel, the image, the dilation, and how much is looked at."""
    rank = draw(st.sampled_from([1, 2, 2, 2, 3]))
    size = [draw(st.integers(1, {1: 9, 2: 5, 3: 3}[rank])) for _ in range(rank)]
    channels = [draw(st.integers(1, 12)), draw(st.integers(1, 12))]
    largest = {1: 200, 2: 40, 3: 12}[rank]
    image = tuple(draw(st.integers(1, largest)) for _ in range(rank))
    dilation = draw(st.integers(1, 3))
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    kernel = random_kernel(
        rng, (*size, *channels), draw(st.sampled_from(KINDS))
    )
    values = {
        "_SMALL": 0,
        "_WORTH": 0,
        "_COARSE": {rank: draw(st.sampled_from([2, 3, 5, 8, 16, 64]))},
        "_EFFORTS": tuple(
            tuple(draw(st.integers(1, 40)) for _ in range(3))
            for _ in range(draw(st.integers(1, 2)))
        ),
        "_AROUND": tuple(draw(st.integers(1, 20)) for _ in range(2)),
        "_BLOCK": draw(st.integers(1, 40)),
    }
    return kernel.astype("float32"), image, dilation, values


@property_test
@hypothesis.given(problems())
def test_the_search_finds_the_largest_modulus(problem):
    kernel, image, dilation, values = problem
    expected = expected_modulus(kernel, image, dilation)
    with settings(**values):
        actual = number(
            norms.sparsity_aware_norm(kernel, image, dilation_rate=dilation)
        )
    # Where nearly all of a filter cancels out, rounding is that of its taps.
    rounding = float(np.abs(kernel).sum(tuple(range(kernel.ndim - 2))).max())
    assert actual == pytest.approx(expected, rel=5e-6, abs=1e-6 * rounding)


@property_test
@hypothesis.given(problems())
def test_a_certificate_is_never_wrong(problem):
    kernel, image, dilation, values = problem
    taps = spectra.indices(kernel.shape[:-2]) * dilation
    filters = kernel.reshape(len(taps), -1)
    axes = [a for a, t in enumerate(taps.T) if t.any() and image[a] > 1]
    if not axes:
        return
    grid = tuple(image[a] for a in axes)
    taps = np.ascontiguousarray(taps[:, axes].astype("int32"))
    expected = powers(filters, taps, grid).max()
    with settings(**values):
        tables = spectra._tables(taps.tobytes(), taps.shape, grid)
        if tables is None:
            return
        results = [
            spectra._search(
                ops.convert_to_tensor(filters), tables, *values["_EFFORTS"][0]
            ),
            spectra._search_around(ops.convert_to_tensor(filters), taps, grid),
        ]
    rounding = float(np.abs(filters).sum(0).max()) ** 2
    for power, certified in results:
        if ops.convert_to_numpy(certified):
            assert number(power) == pytest.approx(
                expected, rel=5e-6, abs=2e-6 * rounding
            )
        else:  # It may have found it, but never more.
            assert number(power) <= expected * (1 + 5e-6) + 2e-6 * rounding


# The bounds, as the module's docstring has them, in float64.


@st.composite
def single_filters(draw):
    rank = draw(st.integers(1, 2))
    size = [draw(st.integers(2, 5)) for _ in range(rank)]
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    return random_kernel(rng, (*size, 1, 1), draw(st.sampled_from(KINDS)))


def dense_powers(kernel, points=240):
    size = kernel.shape[:-2]
    filters = kernel.reshape(-1, 1)
    grid = (points,) * len(size)
    return powers(filters, spectra.indices(size), grid)[0]


@property_test
@hypothesis.given(single_filters())
def test_bounds_a_and_b(kernel):
    supremum = dense_powers(kernel).max()
    w = kernel[..., 0, 0]
    assert supremum <= np.abs(w).sum() ** 2 * (1 + 1e-12)
    # rho by its definition, one sum for each lag.
    total = np.sum(w * w)
    lags = itertools.product(*(range(-k + 1, k) for k in w.shape))
    for lag in lags:
        if lag > (0,) * w.ndim:
            here = tuple(
                slice(max(0, d), k + min(0, d)) for d, k in zip(lag, w.shape)
            )
            there = tuple(
                slice(max(0, -d), k + min(0, -d)) for d, k in zip(lag, w.shape)
            )
            total += 2 * abs(np.sum(w[here] * w[there]))
    assert supremum <= total * (1 + 1e-12)


@property_test
@hypothesis.given(single_filters(), st.sampled_from([2, 3, 4, 5, 8, 12, 20]))
def test_bound_c(kernel, stride):
    dense = dense_powers(kernel)
    coarse = dense[(slice(None, None, stride),) * dense.ndim]
    half = np.pi * stride / 240  # No point is further from the coarse grid.
    factor = 1.0
    for k in kernel.shape[:-2]:
        if half * (k - 1) >= np.pi:
            return
        factor /= np.cos(half * (k - 1) / 2) ** 2
    assert dense.max() <= coarse.max() * factor * (1 + 1e-12)


@property_test
@hypothesis.given(
    single_filters(),
    st.floats(1.0, 1.3),
    st.tuples(st.integers(-40, 40), st.integers(-40, 40)),
)
def test_bound_d(kernel, looseness, shift):
    dense = dense_powers(kernel)
    supremum = dense.max() * looseness
    if supremum == 0.0:
        return
    shift = shift[: dense.ndim]
    elsewhere = np.roll(dense, shift, range(dense.ndim))
    climb = sum(
        2 * np.pi * abs(s) / 240 * (k - 1)
        for s, k in zip(shift, kernel.shape[:-2])
    )
    angle = np.arccos(np.clip(2 * dense / supremum - 1, -1, 1)) - climb
    bound = supremum * (1 + np.cos(np.maximum(angle, 0.0))) / 2
    assert (elsewhere <= bound + 1e-9 * supremum).all()


@property_test
@hypothesis.given(single_filters(), st.floats(0, 1), st.sampled_from([-1, 1]))
def test_bound_f(kernel, noise, sign):
    rng = np.random.default_rng(0)
    centre = kernel + noise * rng.normal(size=kernel.shape)
    distance = np.abs(kernel - centre).sum()
    bound = np.sqrt(dense_powers(centre)) + distance
    moduli = np.sqrt(dense_powers(sign * kernel))
    assert (moduli <= bound * (1 + 1e-12)).all()


def test_rho_are_the_terms_of_the_power_spectrum():
    rng = np.random.default_rng(0)
    for size, dilation in [((4,), 1), ((3, 3), 1), ((2, 4), 3), ((2, 3, 2), 1)]:
        taps = (spectra.indices(size) * dilation).astype("int32")
        grid = (11, 9, 10)[: len(size)]
        tables = spectra._tables(taps.tobytes(), taps.shape, grid)
        filters = rng.normal(size=(len(taps), 5))
        rho = tables.to_rho @ (tables.transform @ filters) ** 2
        found = tables.cosine @ rho
        expected = powers(filters, taps, grid)
        expected = expected[..., : grid[-1] // 2 + 1].reshape(5, -1).T
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_the_tables_hold_the_bounds_of_the_image():
    # 3 and 4 taps on 96 and 64 pixels: 32 cells of 3 and of 2 pixels an axis.
    taps = spectra.indices((3, 4)).astype("int32")
    tables = spectra._tables(taps.tobytes(), taps.shape, (96, 64))
    assert tables.within.shape == (2 * 18, 3 * 2)
    # The half along the last axis reaches from 0 to 32, in steps of 2.
    assert tables.cosine.shape == (32 * 17, 18)
    half = np.pi * 3 / 96, np.pi * 2 / 64
    factor = (np.cos(half[0]) * np.cos(1.5 * half[1])) ** -2
    assert tables.grid_factor == pytest.approx(factor)
    # One pixel at most from the centre of a cell, along either axis.
    climb = 2 * np.pi * (2 / 96 + 3 / 64)
    assert tables.climb == pytest.approx(climb, abs=0.003)
    assert tables.climb > climb


# Real sizes: the certificate holds where it should, and is refused where not.

SHAPES = [
    ((3, 3, 3, 64), (32, 32)),
    ((4, 4, 64, 64), (32, 32)),
    ((3, 3, 128, 128), (16, 16)),
    ((3, 3, 64, 61), (48, 48)),  # no group divides the filters
    ((3, 3, 64, 64), (128, 128)),
    ((4, 4, 39, 64), (256, 512)),
    ((3, 3, 16, 16), (1001, 1000)),
    ((7, 7, 4, 16), (90, 100)),
    ((25, 8, 8), (3000,)),
    ((3, 3, 3, 8, 8), (20, 20, 20)),
]


@pytest.mark.parametrize("shape, image", SHAPES)
def test_common_kernels_are_never_scanned(shape, image):
    rng = np.random.default_rng(1)
    kernel = (0.02 * rng.normal(size=shape)).astype("float32")
    with counted_scans() as scans:
        actual = number(norms.sparsity_aware_norm(kernel, image))
    # Compiled backends trace the scan, so count only where Python decides.
    assert BACKEND == "jax" or not scans
    assert actual == pytest.approx(expected_modulus(kernel, image), rel=2e-6)


def adversarial(name, rng):
    """Kernels `(3, 3, 64, 64)` whose bounds say little."""
    shape = (3, 3, 64, 64)
    if name == "all equal":
        return np.broadcast_to(rng.normal(size=(3, 3, 1, 1)), shape)
    if name == "nearly tied":
        return rng.normal(size=(3, 3, 1, 1)) + 1e-3 * rng.normal(size=shape)
    if name == "one-hot":
        kernel = np.zeros(shape).reshape(9, -1)
        kernel[rng.integers(9, size=4096), np.arange(4096)] = 1.0
        return kernel.reshape(shape)
    if name == "signs":
        # Bound (a) is 9 for each of them.
        return rng.choice([-1.0, 1.0], shape)
    if name == "chirps":
        # cos(pi t^2 / 3) and its shifts: the flattest spectra of all.
        t = np.arange(3) - 1 + rng.integers(3, size=(2, 64, 64))[..., None]
        y, x = np.cos(np.pi * t**2 / 3 + rng.uniform(size=t.shape) * 1e-3)
        return np.einsum("ijy,ijx->yxij", y, x)
    if name == "hidden":
        # All bounds of 4,095 filters exceed the largest modulus, which is
        # that of the filter with the least bound: no number of candidates
        # short of all of them will do.
        signs = rng.choice([-1.0, 1.0], (3, 3, 200_000))
        peak = powers(
            signs.reshape(9, -1)[:, :20_000], spectra.indices((3, 3)), (32, 32)
        ).reshape(20_000, -1)
        flattest = np.argsort(peak.max(axis=1))[:4096]
        kernel = signs.reshape(9, -1)[:, flattest]
        best = np.sqrt(peak.max(axis=1)[flattest[-1]])
        kernel[:, 1234] = 0.0
        kernel[4, 1234] = best * 1.001
        return kernel.reshape(shape)
    raise ValueError(name)


@pytest.mark.parametrize(
    "name, image",
    [
        ("all equal", (32, 32)),
        ("nearly tied", (34, 34)),
        ("one-hot", (32, 32)),
        ("signs", (32, 32)),
        ("hidden", (32, 32)),
        ("signs", (80, 70)),
        ("chirps", (80, 70)),
    ],
)
def test_adversarial_kernels(name, image):
    kernel = adversarial(name, np.random.default_rng(2)).astype("float32")
    with counted_scans() as scans:
        actual = number(norms.sparsity_aware_norm(kernel, image))
    assert actual == pytest.approx(expected_modulus(kernel, image), rel=2e-6)
    if name in ("all equal", "nearly tied") and BACKEND != "jax":
        assert not scans
    if name == "hidden":
        assert len(scans) == 1
        # The bounds of all but one filter exceed what is to be found.
        filters = kernel.reshape(9, -1)
        bounds = np.sort(np.abs(filters).sum(axis=0))
        assert bounds[0] <= actual * (1 + 1e-6) < bounds[1]


@pytest.mark.skipif(
    BACKEND == "jax",
    reason="JAX traces what it does not run; run on tensorflow and torch",
)
def test_few_filters_are_looked_at_in_a_large_kernel():
    rng = np.random.default_rng(3)
    kernel = rng.normal(size=(3, 3, 256, 256)).astype("float32")
    sizes = []
    matmul = spectra.matmul

    def recording(a, b):
        result = matmul(a, b)
        sizes.append(math.prod(result.shape))
        return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spectra, "matmul", recording)
        for image in [(32, 32), (512, 1024)]:
            number(norms.sparsity_aware_norm(kernel, image))
    # Bound (a) has one entry for each filter; nothing else is as large.
    assert max(sizes) <= 256 * 256


@pytest.mark.skipif(
    BACKEND == "torch", reason="the compiled norms of TensorFlow and JAX"
)
@pytest.mark.parametrize("image", [(32, 32), (100, 70)])
def test_the_compiled_search_is_the_same(image):
    rng = np.random.default_rng(4)
    shape = (3, 3, 40, 41)
    kernels = [
        rng.normal(size=shape),
        rng.normal(size=shape) * 1e-12,
        rng.normal(size=shape) * 1e25,
        np.zeros(shape),
        np.broadcast_to(rng.normal(size=(3, 3, 1, 1)), shape),
    ]
    function = norms.sparsity_aware_norm
    if BACKEND == "tensorflow":
        import tensorflow as tf

        function = tf.function(
            lambda k: norms.sparsity_aware_norm(k, image), jit_compile=True
        )
    else:
        import jax

        function = jax.jit(lambda k: norms.sparsity_aware_norm(k, image))
    for kernel in kernels:
        kernel = kernel.astype("float32")
        actual = number(function(ops.convert_to_tensor(kernel)))
        expected = expected_modulus(kernel, image)
        assert actual == pytest.approx(expected, rel=2e-6)
        kernel = kernel.copy()
        for bad in [np.nan, np.inf]:
            kernel[1, 2, 3, 4] = bad
            assert math.isnan(number(function(ops.convert_to_tensor(kernel))))


@pytest.mark.skipif(
    BACKEND == "torch", reason="gradients by TensorFlow's and JAX' transforms"
)
@pytest.mark.parametrize("image", [(6, 5), (32, 32), (100, 70)])
def test_the_gradient_is_that_of_the_largest_modulus(image):
    rng = np.random.default_rng(5)
    kernel = rng.normal(size=(3, 3, 24, 32)).astype("float32")
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            x = tf.constant(kernel)
            tape.watch(x)
            norm = norms.sparsity_aware_norm(x, image)
        gradient = tape.gradient(norm, x)
    else:
        import jax

        gradient = jax.jit(
            jax.grad(lambda k: norms.sparsity_aware_norm(k, image))
        )(ops.convert_to_tensor(kernel))
    gradient = ops.convert_to_numpy(gradient)
    # d|F(x)| / dw_t = Re(conj(F) exp(-i t . x)) / |F| at the maximum.
    taps = spectra.indices((3, 3))
    power = powers(kernel.reshape(9, -1), taps, image)
    where = np.unravel_index(np.argmax(power), power.shape)
    turns = sum(t * f / n for t, f, n in zip(taps.T, where[1:], image))
    wave = np.exp(-2j * np.pi * turns)
    w = kernel.reshape(9, -1)[:, where[0]].astype(float)
    transform = np.sum(w * wave)
    expected = np.zeros((9, 24 * 32))
    expected[:, where[0]] = np.real(np.conj(transform) * wave) / abs(transform)
    np.testing.assert_allclose(
        gradient, expected.reshape(kernel.shape), atol=1e-4
    )
