"""Tests of `keras_san.norms` against plain NumPy in float64.

The references below share no code with the package: they are the DFT of
`numpy.fft`, dense matrices built tap by tap, and NumPy's SVD.
"""

import contextlib
import fractions
import itertools
import math

import helpers
import hypothesis
import keras
import numpy as np
import pytest
from helpers import BACKEND, circular_transform, dense_operator, sparse_gain
from hypothesis import strategies as st
from keras import ops

from keras_san import norms, spectra

pytestmark = helpers.ignore_torch_copies

property_test = helpers.property_test(tensorflow=25, jax=4, torch=25)


def approx(expected, rel=1e-5, abs=0.0):
    # pytest's own absolute tolerance would let any number near 1e-25 pass.
    return pytest.approx(expected, rel=rel, abs=abs)


def number(x):
    x = ops.convert_to_numpy(x)
    assert x.dtype == np.float32
    assert x.shape == ()
    return float(x)


# References.


def powers(kernel, spatial_shape, dilation_rate=1):
    """The powers of filters, wrapped around: `(*spatial_shape, in, out)`."""
    transform = circular_transform(kernel, spatial_shape, dilation_rate)
    return np.abs(transform) ** 2


def filter_gains(kernel, spatial_shape, dilation_rate=1):
    """The largest modulus of each filter's DFT, `(in, out)`."""
    transform = circular_transform(kernel, spatial_shape, dilation_rate)
    return np.abs(transform).max(axis=tuple(range(kernel.ndim - 2)))


def tolerance(kernel, relative=1e-5):
    """Allows for rounding where nearly all of a filter cancels out."""
    magnitude = np.abs(np.asarray(kernel, np.float64))
    per_filter = magnitude.sum(axis=tuple(range(magnitude.ndim - 2)))
    return {"rel": relative, "abs": 5e-7 * per_filter.max()}


# Draws.


def make_kernel(shape, kind, magnitude, seed):
    rng = np.random.default_rng(seed)
    if kind == "normal":
        kernel = rng.normal(size=shape)
    elif kind == "positive":
        kernel = rng.uniform(0.5, 1.0, shape)
    elif kind == "sparse":
        kernel = rng.normal(size=shape) * (rng.uniform(size=shape) < 0.2)
    elif kind == "alternating":
        kernel = (-1.0) ** np.indices(shape).sum(0) + 0.01 * rng.normal(
            size=shape
        )
    elif kind == "ties":
        kernel = rng.integers(-1, 2, shape)
    elif kind == "channels":
        kernel = rng.normal(size=shape) * 10.0 ** rng.uniform(-6, 0, shape[-2:])
    return (kernel * magnitude).astype("float32")


KINDS = ["normal", "positive", "sparse", "alternating", "ties", "channels"]
MAGNITUDES = [1.0, 0.02, 1e-25, 1e25]


@st.composite
def kernels(draw, ranks=(0, 1, 2, 3), largest=5, channels=4):
    rank = draw(st.sampled_from(ranks))
    largest = {0: 0, 1: largest + 2, 2: largest, 3: 3}[rank]
    size = [draw(st.integers(1, largest)) for _ in range(rank)]
    shape = (
        *size,
        draw(st.integers(1, channels)),
        draw(st.integers(1, channels)),
    )
    return make_kernel(
        shape,
        draw(st.sampled_from(KINDS)),
        draw(st.sampled_from(MAGNITUDES)),
        draw(st.integers(0, 10**6)),
    )


@contextlib.contextmanager
def chunk_of(elements):
    """Makes the search scan all transforms, so many elements at a time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(norms, "_CHUNK", elements)
        patch.setattr(spectra, "_CHUNK", elements)
        patch.setattr(spectra, "_EFFORTS", ())
        yield


@contextlib.contextmanager
def recorded_sizes(*names):
    """The number of elements of each result of these functions."""
    sizes = []

    def recording(function):
        def wrapped(*args, **kwargs):
            result = function(*args, **kwargs)
            sizes.append(math.prod(result.shape))
            return result

        return wrapped

    with pytest.MonkeyPatch.context() as patch:
        for name in names:
            owner = spectra if name == "matmul" else ops
            patch.setattr(owner, name, recording(getattr(owner, name)))
        yield sizes


# Lemma 1.


@property_test
@hypothesis.given(kernels(), st.data())
def test_sparsity_aware_norm_is_the_largest_dft_entry(kernel, data):
    rank = kernel.ndim - 2
    largest = {0: 0, 1: 40, 2: 17, 3: 7}[rank]
    image = tuple(data.draw(st.integers(1, largest)) for _ in range(rank))
    dilation = tuple(data.draw(st.integers(1, 3)) for _ in range(rank))
    expected = filter_gains(kernel, image, dilation).max()
    actual = norms.sparsity_aware_norm(kernel, image, dilation_rate=dilation)
    assert number(actual) == approx(expected, **tolerance(kernel))


@pytest.mark.parametrize(
    "size, image",
    [
        ((), ()),
        ((1,), (1,)),
        ((3,), (32,)),
        ((25,), (1001,)),
        ((1, 1), (8, 8)),
        ((3, 3), (32, 32)),
        ((4, 4), (9, 16)),
        ((1, 7), (16, 5)),
        ((5, 1), (3, 33)),
        ((9, 9), (4, 6)),  # larger than the image: it wraps around
        ((11, 11), (64, 96)),
        ((3, 3), (1, 1)),
        ((3, 3, 3), (8, 8, 8)),
        ((2, 1, 5), (3, 4, 2)),
    ],
)
def test_sparsity_aware_norm_on_given_shapes(size, image):
    for kind in ["normal", "ties"]:
        kernel = make_kernel((*size, 3, 5), kind, 0.02, seed=3)
        expected = filter_gains(kernel, image).max()
        actual = number(norms.sparsity_aware_norm(kernel, image))
        assert actual == approx(expected, **tolerance(kernel))


def test_sparsity_aware_norm_follows_the_definition():
    # Eq. 6: each pair of channels by itself is a circulant operator.
    for seed, (size, image) in enumerate(
        [
            ((3,), (7,)),
            ((2, 3), (4, 5)),
            ((3, 3), (2, 6)),
            ((2, 2, 3), (3, 2, 4)),
        ]
    ):
        kernel = make_kernel((*size, 2, 3), "normal", 1.0, seed)
        gains = [
            np.linalg.norm(
                dense_operator(kernel[..., i : i + 1, j : j + 1], image), 2
            )
            for i, j in np.ndindex(2, 3)
        ]
        actual = number(norms.sparsity_aware_norm(kernel, image))
        assert actual == approx(max(gains))


@pytest.mark.parametrize("magnitude", [1e-33, 1e36])
def test_magnitudes_scale_every_norm(magnitude):
    kernel = make_kernel((3, 3, 2, 3), "normal", 1.0, seed=0)
    scaled = (kernel * np.float32(magnitude)).astype("float32")
    for norm in [
        lambda k: norms.sparsity_aware_norm(k, (8, 6)),
        norms.sparsity_aware_norm,
        lambda k: norms.sparse_norm(k, 2, (8, 6)),
        lambda k: norms.rms_modulus(k, (8, 6)),
        norms.spectral_norm,
        norms.bidirectional_spectral_norm,
        lambda k: norms.conv_spectral_norm(k, (8, 6), 2),
    ]:
        expected = number(norm(kernel)) * magnitude
        assert number(norm(scaled)) == approx(expected)


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_zero_kernel_has_norm_zero(rank):
    kernel = np.zeros((3,) * rank + (2, 4), "float32")
    image = (4,) * rank
    assert number(norms.sparsity_aware_norm(kernel, image)) == 0.0
    assert number(norms.sparsity_aware_norm(kernel)) == 0.0
    assert number(norms.sparsity_aware_norm(kernel, image, ratio=0.3)) == 0.0
    assert number(norms.sparse_norm(kernel, 2, image)) == 0.0
    assert number(norms.sparse_norm(kernel, 2)) == 0.0
    assert number(norms.rms_modulus(kernel, image)) == 0.0
    assert number(norms.spectral_norm(kernel)) == 0.0
    assert number(norms.bidirectional_spectral_norm(kernel)) == 0.0
    assert number(norms.conv_spectral_norm(kernel, image)) == 0.0


@property_test
@hypothesis.given(kernels(ranks=(2,), largest=4, channels=3))
def test_without_an_image_all_frequencies_count(kernel):
    # 4 times as fine along each axis as the grid of the search.
    grid = tuple(max(1, 128 * (k - 1)) for k in kernel.shape[:2])
    supremum = filter_gains(kernel, grid).max()
    actual = number(norms.sparsity_aware_norm(kernel))
    assert supremum * (1 - 1e-6) <= actual <= supremum * 1.0013**2


def test_without_an_image_in_one_and_three_dimensions():
    for seed in range(3):
        kernel = make_kernel((5, 2, 2), "normal", 1.0, seed)
        supremum = filter_gains(kernel, (4096,)).max()
        actual = number(norms.sparsity_aware_norm(kernel))
        assert supremum <= actual <= supremum * 1.0013
    kernel = make_kernel((3, 2, 2, 2, 1), "normal", 1.0, seed=5)
    supremum = filter_gains(kernel, (128, 64, 64)).max()
    actual = number(norms.sparsity_aware_norm(kernel))
    assert supremum <= actual <= supremum * 1.0013**3


def test_without_an_image_no_image_has_a_larger_norm():
    kernel = make_kernel((3, 3, 2, 2), "normal", 1.0, seed=4)
    supremum = number(norms.sparsity_aware_norm(kernel))
    extents = [2, 31] if BACKEND == "jax" else [1, 2, 31]
    for image in itertools.product(extents, repeat=2):
        assert filter_gains(kernel, image).max() <= supremum
        dilated = norms.sparsity_aware_norm(kernel, image, dilation_rate=2)
        assert number(dilated) <= supremum


# The scan in chunks.


@property_test
@hypothesis.given(kernels(ranks=(1, 2, 3)), st.data())
def test_chunks_do_not_change_the_norm(kernel, data):
    rank = kernel.ndim - 2
    largest = {1: 40, 2: 9, 3: 4}[rank]
    image = tuple(data.draw(st.integers(1, largest)) for _ in range(rank))
    filters = math.prod(kernel.shape[-2:])
    # From one frequency a step to more than there are.
    frequencies = data.draw(st.integers(1, math.prod(image)))
    expected = filter_gains(kernel, image).max()
    with chunk_of(filters * frequencies):
        actual = number(norms.sparsity_aware_norm(kernel, image))
    assert actual == approx(expected, **tolerance(kernel))


def test_the_last_chunk_may_run_over_the_end():
    # 8 x (7 // 2 + 1) = 32 frequencies, each of them the largest in turn.
    y, x = np.indices((8, 7))
    for v, u in np.ndindex(8, 4):
        wave = np.cos(2 * np.pi * (v * y / 8 + u * x / 7))
        kernel = wave[..., None, None].astype("float32")
        expected = filter_gains(kernel, (8, 7)).max()
        # What is over the end is 3 of 5, then 3 of 7.
        with chunk_of((5 if u % 2 else 7) * 56):
            actual = number(norms.sparsity_aware_norm(kernel, (8, 7)))
        assert actual == approx(expected)


def test_many_filters_are_scanned_in_bounded_memory():
    rng = np.random.default_rng(0)
    kernel = rng.normal(size=(3, 3, 64, 64)).astype("float32") * 0.01
    kernel[:, :, 50, 20] = rng.normal(size=(3, 3))
    expected = filter_gains(kernel[:, :, 50:51, 20:21], (32, 32)).max()
    with chunk_of(10_000), recorded_sizes("matmul", "cos", "sin") as sizes:
        actual = number(norms.sparsity_aware_norm(kernel, (32, 32)))
    assert actual == approx(expected)
    assert 64 * 64 <= max(sizes) <= 10_000


@pytest.mark.parametrize("shape", [(11, 11, 1, 1), (5, 5, 1, 3)])
def test_few_filters_are_scanned_in_bounded_memory(shape):
    # Here the phases, (frequencies, taps), are what is large.
    kernel = make_kernel(shape, "normal", 1.0, seed=1)
    expected = filter_gains(kernel, (64, 64)).max()
    with chunk_of(10_000), recorded_sizes("matmul", "cos", "sin") as sizes:
        actual = number(norms.sparsity_aware_norm(kernel, (64, 64)))
    assert actual == approx(expected)
    assert max(sizes) <= 10_000


@pytest.mark.parametrize("chunk", [4, 400, 4000])
def test_chunks_do_not_change_the_operator_norm(chunk):
    kernel = make_kernel((3, 2, 2, 4), "normal", 1.0, seed=2)
    matrix = dense_operator(kernel, (8, 6), (2, 1))
    with chunk_of(chunk), recorded_sizes("concatenate") as sizes:
        actual = number(norms.conv_spectral_norm(kernel, (8, 6), (2, 1)))
    assert actual == approx(np.linalg.norm(matrix, 2))
    block = 4 * (2 * 2) * 4
    assert max(sizes) <= max(chunk, block)


# Eq. 8 over a subset, and Eq. 9.


@pytest.mark.parametrize(
    "ratio, count, draws", [(0.01, 1, 50), (0.17, 2, 100), (0.9, 6, 2)]
)
def test_ratio_takes_exactly_that_many_different_filters(ratio, count, draws):
    # The filters' norms are 1 to 6. The maximum over `count` different ones
    # is at least `count`, and over the draws it takes every such value: with
    # one filter more the smallest would be missing, with one less, or with
    # one drawn twice, a smaller one would appear.
    kernel = np.zeros((3, 3, 2, 3), "float32")
    kernel[1, 1] = np.array([[4, 1, 6], [3, 5, 2]])
    values = [
        number(norms.sparsity_aware_norm(kernel, (5, 5), ratio, seed=seed))
        for seed in range(draws)
    ]
    assert set(np.round(values, 4)) == set(range(count, 7))


def subset_sizes(count, ratio):
    """The share, rounded up; 90 % of 10 may count as 9 or as 9.0...02."""
    exact = fractions.Fraction(ratio) * count
    almost = exact * (1 - fractions.Fraction(1, 10**12))
    return {math.ceil(exact), math.ceil(almost)}


@property_test
@hypothesis.given(
    st.integers(1, 7),
    st.integers(1, 7),
    st.floats(0.0, 1.0, exclude_min=True, exclude_max=True),
    st.integers(0, 1000),
)
def test_sample_filters_draws_different_filters(m, n, ratio, seed):
    sample = norms.sample_filters((3, 3, m, n), ratio, seed)
    sample = ops.convert_to_numpy(sample).tolist()
    assert len(sample) == len(set(sample))
    assert len(sample) in subset_sizes(m * n, ratio)
    assert 0 <= min(sample) <= max(sample) < m * n


def test_every_filter_is_drawn_equally_often():
    counts = np.zeros(6)
    for seed in range(300):
        sample = norms.sample_filters((2, 3), 0.5, seed)
        counts[ops.convert_to_numpy(sample)] += 1
    # Expected 150 each, with a standard deviation of 8.7.
    assert np.abs(counts - 150).max() < 45


def test_a_sample_in_place_of_a_draw():
    kernel = make_kernel((3, 2, 3, 4), "normal", 1.0, seed=0)
    sample = ops.convert_to_tensor([5, 0, 11])
    taken = np.stack(
        [kernel[..., 1, 1], kernel[..., 0, 0], kernel[..., 2, 3]], -1
    )
    found = norms.sparsity_aware_norm(kernel, (5, 6), sample=sample)
    transform = np.fft.fft2(taken, (5, 6), axes=(0, 1))
    np.testing.assert_allclose(found, np.abs(transform).max(), rtol=1e-5)


def test_ratio_one_looks_at_all_and_draws_nothing():
    assert norms.sample_filters((3, 3, 4, 4), 1.0) is None
    assert norms.sample_filters((3, 3, 4, 4), 1) is None


def test_seeds_of_the_draw():
    kernel = make_kernel((3, 3, 8, 8), "normal", 1.0, seed=0)

    def draws(seeds):
        return [
            number(norms.sparsity_aware_norm(kernel, (4, 4), 0.05, seed=seed))
            for seed in seeds
        ]

    same = draws([7] * 3)
    assert len(set(same)) == 1
    generator = keras.random.SeedGenerator(3)
    first = draws([generator] * 8)
    assert len(set(first)) > 2
    assert first == draws([keras.random.SeedGenerator(3)] * 1) + first[1:]
    generator = keras.random.SeedGenerator(3)
    assert first == draws([generator] * 8)
    gains = filter_gains(kernel, (4, 4)).ravel()
    for value in first:
        assert np.abs(gains / value - 1).min() < 1e-5


def harmonic(n):
    return sum((fractions.Fraction(1, k) for k in range(1, n + 1)), 0)


@property_test
@hypothesis.given(st.integers(1, 200), st.floats(0.0, 1.0, exclude_min=True))
def test_subset_gain_is_equation_9(num_filters, ratio):
    actual = norms.subset_gain(num_filters, ratio)
    assert isinstance(actual, float)
    assert any(
        actual == approx(float(harmonic(num_filters) / harmonic(n)), rel=1e-12)
        for n in subset_sizes(num_filters, ratio)
    )
    assert actual >= 1.0


def test_subset_gain_of_the_paper():
    assert norms.subset_gain(4096, 0.25) == approx(1.185, abs=5e-4)
    assert norms.subset_gain(16384, 0.25) == approx(1.156, abs=5e-4)
    assert norms.subset_gain(4096, 1.0) == 1.0
    assert norms.subset_gain(1, 0.001) == 1.0


def test_subset_gain_makes_up_for_the_subset_of_exponentials():
    draws = np.random.default_rng(0).exponential(size=(40_000, 64))
    whole, subset = draws.max(1).mean(), draws[:, :16].max(1).mean()
    gain = norms.subset_gain(64, 0.25)
    assert gain == approx(whole / subset, rel=0.01)


# Signals of several channels.


@property_test
@hypothesis.given(kernels(channels=9), st.integers(1, 10), st.data())
def test_sparse_norm_is_the_largest_sum(kernel, sparsity, data):
    rank = kernel.ndim - 2
    largest = {0: 0, 1: 40, 2: 24, 3: 7}[rank]
    image = tuple(data.draw(st.integers(1, largest)) for _ in range(rank))
    dilation = tuple(data.draw(st.integers(1, 3)) for _ in range(rank))
    expected = sparse_gain(kernel, sparsity, image, dilation)
    actual = norms.sparse_norm(kernel, sparsity, image, dilation)
    close = tolerance(kernel)
    close["abs"] *= math.sqrt(kernel.shape[-2])
    assert number(actual) == approx(expected, **close)


def supports(channels, sparsity):
    return itertools.combinations(range(channels), min(channels, sparsity))


@pytest.mark.parametrize(
    "size, image, groups, dilation, sparsity",
    [
        ((3,), (7,), 1, 1, 2),
        ((2, 3), (4, 3), 1, 1, 1),
        ((3, 2), (4, 5), 1, 2, 2),
        ((3, 3), (2, 2), 1, 1, 2),
        ((3,), (8,), 2, 1, 2),
        ((3,), (8,), 2, 1, 3),
        ((3,), (8,), 2, 1, 5),
        ((2, 2), (3, 4), 2, 1, 2),
    ],
)
def test_sparse_norm_follows_the_definition(
    size, image, groups, dilation, sparsity
):
    # With the channels given, the supremum is the largest singular value of
    # the rows of one output channel and the columns of those inputs.
    kernel = make_kernel((*size, 3, 2 * groups), "normal", 1.0, seed=sparsity)
    matrix = dense_operator(
        kernel, image, dilation_rate=dilation, groups=groups
    )
    pixels, out = math.prod(image), 2 * groups
    blocks = matrix.reshape(pixels, out, pixels, 3 * groups)
    expected = max(
        np.linalg.norm(blocks[:, i][..., list(support)].reshape(pixels, -1), 2)
        for i in range(out)
        for support in supports(3 * groups, sparsity)
    )
    actual = norms.sparse_norm(kernel, sparsity, image, dilation)
    assert number(actual) == approx(expected)


def channel_norms(y):
    return np.sqrt(np.square(y).sum(axis=tuple(range(y.ndim - 1))))


def test_no_sparse_signal_exceeds_the_sparse_norm_and_a_wave_attains_it():
    rng = np.random.default_rng(0)
    image, channels = (4, 6), 5
    kernel = make_kernel((3, 2, channels, 3), "normal", 1.0, seed=1)
    matrix = dense_operator(kernel, image)

    def gain(x):
        return channel_norms((matrix @ x.ravel()).reshape(*image, 3)).max()

    transform = circular_transform(kernel, image, (1, 1))
    for k in range(1, channels + 1):
        norm = number(norms.sparse_norm(kernel, k, image))
        for _ in range(100):
            x = np.zeros((*image, channels))
            chosen = rng.permutation(channels)[:k]
            x[..., chosen] = rng.normal(size=(*image, k))
            assert gain(x / np.linalg.norm(x)) <= norm * (1 + 1e-5)
            # Eq. 6 with k channels of norm 1 each.
            x[..., chosen] /= channel_norms(x)[chosen]
            assert gain(x) <= math.sqrt(k) * norm * (1 + 1e-5)

        power = np.sort(np.abs(transform) ** 2, axis=-2)[..., -k:, :].sum(-2)
        *frequency, i = np.unravel_index(power.argmax(), power.shape)
        best = transform[(*frequency, slice(None), i)]
        y, x = np.indices(image)
        turns = frequency[0] * y / image[0] + frequency[1] * x / image[1]
        chosen = np.argsort(np.abs(best))[-k:]
        # The layers of Keras correlate: the kernel acts turned around.
        amplitudes = np.zeros(channels, complex)
        amplitudes[chosen] = best[chosen]
        wave = np.exp(2j * np.pi * turns)[..., None] * amplitudes
        assert gain(wave.real / np.linalg.norm(wave.real)) == approx(norm)
        # What the docstring says of Eq. 6: this much is attained.
        moduli = np.sort(np.abs(transform), axis=-2)[..., -k:, :].sum(-2)
        *frequency, i = np.unravel_index(moduli.argmax(), moduli.shape)
        best = transform[(*frequency, slice(None), i)]
        turns = frequency[0] * y / image[0] + frequency[1] * x / image[1]
        chosen = np.argsort(np.abs(best))[-k:]
        amplitudes = np.zeros(channels, complex)
        amplitudes[chosen] = best[chosen] / np.abs(best[chosen])
        wave = (np.exp(2j * np.pi * turns)[..., None] * amplitudes).real
        wave[..., chosen] /= channel_norms(wave)[chosen]
        assert gain(wave) >= moduli.max() * (1 - 1e-5)
        assert moduli.max() <= math.sqrt(k) * norm * (1 + 1e-5)


@property_test
@hypothesis.given(kernels(ranks=(1, 2), largest=4, channels=3), st.data())
def test_order_of_the_sparse_norms(kernel, data):
    rank = kernel.ndim - 2
    image = tuple(data.draw(st.integers(1, 6)) for _ in range(rank))
    channels, out = kernel.shape[-2:]
    first = norms.sparsity_aware_norm(kernel, image)
    values = [
        number(norms.sparse_norm(kernel, k, image))
        for k in range(1, channels + 2)
    ]
    assert values[0] == number(first)
    assert values[-1] == values[-2]
    little = 2 * tolerance(kernel)["abs"] * channels
    for k, (value, after) in enumerate(zip(values, values[1:]), start=1):
        assert value <= after * (1 + 1e-5) + little
        assert value <= math.sqrt(k) * values[0] * (1 + 1e-5) + little
    scale = max(float(np.abs(kernel).max()), 1e-30)
    matrix = scale * dense_operator(kernel / scale, image)
    whole = np.linalg.norm(matrix, 2)
    rows = matrix.reshape(math.prod(image), out, -1)
    strongest = max(np.linalg.norm(rows[:, i], 2) for i in range(out))
    assert values[-1] == approx(strongest, abs=little)
    assert values[-1] <= whole * (1 + 1e-5) + little
    assert whole <= math.sqrt(out) * values[-1] * (1 + 1e-5) + little


@property_test
@hypothesis.given(
    kernels(ranks=(1, 2), channels=5), st.integers(2, 6), st.data()
)
def test_chunks_do_not_change_the_sparse_norm(kernel, sparsity, data):
    rank = kernel.ndim - 2
    largest = {1: 40, 2: 9}[rank]
    image = tuple(data.draw(st.integers(1, largest)) for _ in range(rank))
    filters = math.prod(kernel.shape[-2:])
    frequencies = data.draw(st.integers(1, math.prod(image)))
    expected = sparse_gain(kernel, sparsity, image)
    with chunk_of(filters * frequencies):
        actual = number(norms.sparse_norm(kernel, sparsity, image))
    close = tolerance(kernel)
    close["abs"] *= math.sqrt(kernel.shape[-2])
    assert actual == approx(expected, **close)


@pytest.mark.parametrize(
    "image, out", [((64,), 40), ((20, 33), 7), ((32, 32), 40)]
)
def test_sparse_norm_of_many_outputs(image, out):
    for seed, kind in enumerate(["normal", "channels"]):
        shape = (*(3 - i for i in range(len(image))), 6, out)
        kernel = make_kernel(shape, kind, 0.02, seed)
        for sparsity in (2, 6) if BACKEND == "jax" else (2, 5, 6):
            expected = sparse_gain(kernel, sparsity, image)
            actual = number(norms.sparse_norm(kernel, sparsity, image))
            assert actual == approx(expected)


def test_an_output_that_the_coarse_grid_misjudges_is_found():
    # Sixteen outputs whose largest sum lies on a point of the coarse grid,
    # and one whose larger sum lies between two of them.
    kernel = np.full((3, 2, 17), 0.99, "float32")
    kernel[:, :, 11] = np.array([1.0, -1.0, 1.0])[:, None]
    coarse = powers(kernel, (32,))[::3].sum(axis=1).max(axis=0)
    assert coarse[11] < np.delete(coarse, 11).min()
    actual = number(norms.sparse_norm(kernel, 2, (32,)))
    assert actual == approx(3.0 * math.sqrt(2.0))


@pytest.mark.parametrize("degree", [1, 2, 4])
def test_the_coarse_grid_bounds_the_image(degree):
    # Bound (e), of sums of several filters.
    rng = np.random.default_rng(degree)
    n = 60
    step = n // (spectra._COARSE_PER_DEGREE * degree)
    factor = 1.0 / math.cos(degree * math.pi * step / n / 2) ** 2
    closest = 0.0
    for _ in range(300):
        kernel = rng.normal(size=(degree + 1, 3, 1))
        for k in (1, 2, 3):
            power = np.sort(powers(kernel, (n,)), axis=1)[:, -k:].sum(axis=1)
            ratio = power.max() / power[::step].max()
            closest = max(closest, ratio)
            assert ratio <= factor * (1 + 1e-9)
    # It is no bound by chance: waves come near to it.
    assert closest > 1.0 + 0.4 * (factor - 1.0)


def test_sparse_norm_in_bounded_memory():
    kernel = make_kernel((3, 3, 32, 64), "normal", 1.0, seed=0)
    expected = sparse_gain(kernel, 3, (32, 32))
    with chunk_of(5_000), recorded_sizes("matmul", "cos", "sin") as sizes:
        actual = number(norms.sparse_norm(kernel, 3, (32, 32)))
    assert actual == approx(expected)
    assert 32 * 64 <= max(sizes) <= 5_000


def test_sparse_norm_without_an_image():
    for seed in range(2):
        kernel = make_kernel((3, 2, 4, 9), "normal", 1.0, seed)
        supremum = sparse_gain(kernel, 2, (512, 256))
        actual = number(norms.sparse_norm(kernel, 2))
        assert supremum <= actual <= supremum * 1.0013**2
        assert actual == number(norms.sparse_norm(kernel, 2, dilation_rate=3))


# What the adaptive gain is made of.


@property_test
@hypothesis.given(kernels(), st.data())
def test_rms_modulus_is_that_of_the_transform(kernel, data):
    rank = kernel.ndim - 2
    image = tuple(data.draw(st.integers(1, 9)) for _ in range(rank))
    dilation = tuple(data.draw(st.integers(1, 3)) for _ in range(rank))
    scale = max(float(np.abs(kernel).max()), 1e-30)
    expected = math.sqrt(powers(kernel / scale, image, dilation).mean())
    actual = number(norms.rms_modulus(kernel, image, dilation))
    assert actual / scale == approx(expected, **tolerance(kernel / scale))
    largest = number(norms.sparsity_aware_norm(kernel, image, 1.0, dilation))
    assert actual <= largest * (1 + 1e-5) + tolerance(kernel)["abs"]
    # Where nothing wraps around, Parseval needs no transform.
    frobenius = np.linalg.norm((kernel / scale).astype("float64"))
    frobenius /= math.sqrt(math.prod(kernel.shape[-2:]))
    assert number(norms.rms_modulus(kernel)) / scale == approx(frobenius)
    roomy = tuple(d * k for d, k in zip(dilation, kernel.shape))
    actual = number(norms.rms_modulus(kernel, roomy, dilation)) / scale
    assert actual == approx(frobenius)


def counted_channels(inputs, groups=1):
    """The active channels (last), example by example and group by group."""
    found = []
    for example in np.asarray(inputs, np.float64):
        for part in np.split(example, groups, axis=-1):
            energy = np.square(part).reshape(-1, part.shape[-1]).sum(axis=0)
            whole = energy.sum()
            found.append(whole / energy.max() if whole else 1.0)
    return np.mean(found)


@pytest.mark.parametrize("shape", [(3, 6), (4, 5, 6), (2, 3, 4, 6)])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_active_channels(shape, groups):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=shape) * rng.exponential(size=shape[-1])
    inputs[0] = 0.0
    inputs = inputs.astype("float32")
    expected = counted_channels(inputs, groups)
    assert 1.0 <= expected <= 6 / groups
    actual = number(norms.active_channels(inputs, groups))
    assert actual == approx(expected)
    for axis in (1, 1 - len(shape)):
        moved = np.moveaxis(inputs, -1, 1)
        actual = number(norms.active_channels(moved, groups, axis))
        assert actual == approx(expected)


def test_active_channels_of_known_signals():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 4, 4, 5)).astype("float32")
    one = np.zeros_like(x)
    one[0, ..., 1] = x[0, ..., 1]
    one[1, ..., 4] = x[1, ..., 4]
    assert number(norms.active_channels(one)) == 1.0
    assert number(norms.active_channels(one * 0)) == 1.0
    assert number(norms.active_channels(np.ones_like(x))) == approx(5.0)
    both = np.concatenate([one, np.ones_like(x)])
    assert number(norms.active_channels(both)) == approx(3.0)
    expected = counted_channels(x)
    for factor in (1e-15, 1e15):
        scaled = (x * factor).astype("float32")
        assert number(norms.active_channels(scaled)) == approx(expected)
    # Their squares are beyond float16.
    low = ops.cast(x * 1000, "float16")
    actual = number(norms.active_channels(low))
    assert actual == approx(expected, rel=1e-3)


@pytest.mark.parametrize("bad", [np.nan, -np.inf, 1e30])
def test_active_channels_of_bad_signals_are_not_finite(bad):
    for place in [(0, 0, 0), (1, 2, 3)]:
        inputs = np.zeros((2, 3, 4), "float32")
        inputs[place] = bad
        assert not math.isfinite(number(norms.active_channels(inputs)))


# Singular values.


def reshapes(kernel):
    """Both matrices of BSN, entry by entry."""
    kernel = np.asarray(kernel, np.float64)
    size, (m, n) = kernel.shape[:-2], kernel.shape[-2:]
    fan_in = np.zeros((math.prod(size) * m, n))
    fan_out = np.zeros((math.prod(size) * n, m))
    for t, tap in enumerate(np.ndindex(*size)):
        for i, j in np.ndindex(m, n):
            fan_in[t * m + i, j] = kernel[(*tap, i, j)]
            fan_out[t * n + j, i] = kernel[(*tap, i, j)]
    return fan_in, fan_out


@property_test
@hypothesis.given(kernels(channels=9))
def test_spectral_norms_of_both_reshapes(kernel):
    # NumPy's SVD rescales neither: the reference runs on moderate numbers.
    scale = max(float(np.abs(kernel).max()), 1e-30)
    fan_in, fan_out = (
        np.linalg.norm(matrix, 2) for matrix in reshapes(kernel / scale)
    )
    actual = number(norms.spectral_norm(kernel))
    assert actual == approx(fan_in * scale)
    actual = number(norms.bidirectional_spectral_norm(kernel))
    assert actual == approx((fan_in + fan_out) / 2 * scale)


def test_the_second_reshape_is_not_the_transposed_first():
    kernel = np.zeros((3, 1, 1, 3), "float32")
    kernel[:, 0, 0, :] = np.eye(3)
    # The identity one way, a vector of three ones the other way.
    assert number(norms.spectral_norm(kernel)) == approx(1.0)
    both = number(norms.bidirectional_spectral_norm(kernel))
    assert both == approx((1 + math.sqrt(3)) / 2, rel=1e-6)
    for matrix, expected in zip(
        [norms.fan_in_matrix(kernel), norms.fan_out_matrix(kernel)],
        reshapes(kernel),
    ):
        np.testing.assert_array_equal(ops.convert_to_numpy(matrix)[0], expected)


def with_singular_values(values, rows, columns, seed=0):
    rng = np.random.default_rng(seed)
    left = np.linalg.qr(rng.normal(size=(rows, rows)))[0]
    right = np.linalg.qr(rng.normal(size=(columns, columns)))[0]
    values = np.asarray(values, float)
    n = len(values)
    return (left[:, :n] * values @ right[:n]).astype("float32")


@pytest.mark.parametrize(
    "values",
    [
        [1.0],  # rank one
        [1.0, 1.0],  # ties
        [1.0] * 12,
        [1.0, 1 - 1e-6],
        [1.0, 1 - 1e-5, 1 - 1e-5, 1 - 1e-5],
        [1.0, 1 - 1e-4] + [1 - 2e-4] * 8,
        [1.0, 1 - 1e-3] + [0.5] * 8,
        [1.0] + [1 - 5e-5 * k for k in range(1, 12)],
        [1.0] + [1e-5] * 6,
    ],
)
def test_spectral_norm_with_close_singular_values(values):
    for rows, columns in [(40, 12), (12, 40), (20, 20)]:
        matrix = with_singular_values(values, rows, columns)
        expected = np.linalg.norm(matrix.astype("float64"), 2)
        actual = number(norms.spectral_norm(matrix))
        assert actual == approx(expected)
        # Also of the swapped axes.
        actual = number(norms.bidirectional_spectral_norm(matrix))
        assert actual == approx(expected)


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (700, 300)])
def test_spectral_norm_of_wide_and_tall_matrices(shape):
    matrix = make_kernel(shape, "normal", 1.0, seed=6)
    expected = np.linalg.norm(matrix.astype("float64"), 2)
    actual = number(norms.spectral_norm(matrix))
    assert actual == approx(expected)


def test_spectral_norm_of_one_entry():
    for shape, entry in [((4, 6), (3, 0)), ((6, 4), (0, 3)), ((3, 3), (1, 2))]:
        matrix = np.zeros(shape, "float32")
        matrix[entry] = -2.5
        assert number(norms.spectral_norm(matrix)) == approx(2.5)


def test_top_right_vectors_are_those_of_the_svd():
    stack = np.stack(
        [
            with_singular_values([3.0, 1.0, 0.5], 7, 4, seed=1),
            1e-3 * with_singular_values([2.0, 1.9], 7, 4, seed=2),
            np.zeros((7, 4), "float32"),
        ]
    )
    for matrices in [stack, np.swapaxes(stack, 1, 2)]:
        u = ops.convert_to_numpy(norms.top_right_vectors(matrices))
        assert u.shape == matrices.shape[::2]
        np.testing.assert_allclose(np.linalg.norm(u, axis=1), 1.0, rtol=1e-5)
        for matrix, vector in zip(matrices[:2], u):
            top = np.linalg.svd(matrix.astype("float64"))[2][0]
            assert abs(top @ vector) == approx(1.0, abs=1e-5)
        top = number(norms.top_singular_value(matrices))
        assert top == approx(3.0)


# Power iteration.


@pytest.mark.parametrize("rows, columns", [(12, 5), (5, 12)])
def test_power_iteration_climbs_to_the_top_value(rows, columns):
    rng = np.random.default_rng(8)
    matrices = rng.normal(size=(3, rows, columns)).astype("float32")
    tops = np.linalg.norm(matrices.astype("float64"), 2, axis=(1, 2))
    u = rng.normal(size=(3, columns)).astype("float32")
    u /= np.linalg.norm(u, axis=1, keepdims=True)
    before = np.zeros(3)
    for _ in range(100):
        sigma, v, new_u = norms.power_iteration(matrices, u)
        sigma, v, new_u = map(ops.convert_to_numpy, (sigma, v, new_u))
        assert sigma.shape == (3,)
        assert (sigma <= tops * (1 + 1e-6)).all()
        assert (sigma >= before * (1 - 1e-6)).all()
        np.testing.assert_allclose(np.linalg.norm(v, axis=1), 1, rtol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(new_u, axis=1), 1, rtol=1e-5)
        estimate = np.einsum("br,brc,bc->b", v, matrices, new_u)
        np.testing.assert_allclose(sigma, estimate, rtol=1e-5)
        before, u = sigma, new_u
    np.testing.assert_allclose(sigma, tops, rtol=1e-5)


def test_one_power_iteration_is_algorithm_1():
    rng = np.random.default_rng(9)
    matrix = rng.normal(size=(4, 3))
    u = rng.normal(size=3)
    u /= np.linalg.norm(u)
    v = matrix @ u / np.linalg.norm(matrix @ u)
    new_u = matrix.T @ v / np.linalg.norm(matrix.T @ v)
    actual = norms.power_iteration(
        ops.cast(matrix[None], "float32"), ops.cast(u[None], "float32")
    )
    for x, expected in zip(actual, [v @ matrix @ new_u, v, new_u]):
        np.testing.assert_allclose(
            ops.convert_to_numpy(x)[0], expected, rtol=1e-5, atol=1e-6
        )


def test_power_iteration_keeps_u_where_the_product_vanishes():
    matrices = np.zeros((3, 4, 2), "float32")
    matrices[1, 0, 0] = 2.0
    matrices[2, 0, 0] = 2.0
    u = np.array([[0.6, 0.8], [0.6, 0.8], [0.0, 1.0]], "float32")
    sigma, v, new_u = norms.power_iteration(matrices, u)
    np.testing.assert_allclose(
        ops.convert_to_numpy(sigma), [0, 2, 0], rtol=1e-6
    )
    np.testing.assert_allclose(
        ops.convert_to_numpy(new_u), [[0.6, 0.8], [1, 0], [0, 1]], rtol=1e-6
    )
    np.testing.assert_array_equal(ops.convert_to_numpy(v)[[0, 2]], 0.0)


# The operator norm.


@st.composite
def convolutions(draw):
    rank = draw(st.sampled_from([1, 2, 3]))
    groups = draw(st.integers(1, 2))
    in_group, out_group = draw(st.integers(1, 2)), draw(st.integers(1, 2))
    size = [draw(st.integers(1, 4 if rank < 3 else 2)) for _ in range(rank)]
    strides = [draw(st.integers(1, 3 if rank < 3 else 2)) for _ in range(rank)]
    outputs = [
        draw(st.integers(1, {1: 5, 2: 3, 3: 2}[rank])) for _ in range(rank)
    ]
    settings = {
        "spatial_shape": tuple(s * n for s, n in zip(strides, outputs)),
        "strides": tuple(strides),
        "dilation_rate": tuple(draw(st.integers(1, 3)) for _ in range(rank)),
        "groups": groups,
    }
    kernel = make_kernel(
        (*size, in_group, out_group * groups),
        draw(st.sampled_from(KINDS)),
        draw(st.sampled_from(MAGNITUDES)),
        draw(st.integers(0, 10**6)),
    )
    return kernel, settings


@property_test
@hypothesis.given(convolutions())
def test_conv_spectral_norm_is_that_of_the_dense_matrix(convolution):
    kernel, settings = convolution
    scale = max(float(np.abs(kernel).max()), 1e-30)
    expected = np.linalg.norm(dense_operator(kernel / scale, **settings), 2)
    actual = number(norms.conv_spectral_norm(kernel, **settings)) / scale
    assert actual == approx(expected, **tolerance(kernel / scale))


def test_fourier_blocks_hold_all_singular_values():
    kernel = make_kernel((3, 2, 2, 3), "normal", 1.0, seed=1)
    blocks = ops.convert_to_numpy(
        norms.fourier_blocks(kernel, (4, 6), strides=(2, 1))
    )
    # Output frequencies (0, 1) x (0, 1, 2, 3), the last axis halved.
    assert blocks.shape == (8, 2 * 2 * 2, 2 * 3)
    found = np.linalg.svd(blocks, compute_uv=False)
    np.testing.assert_allclose(found[:, ::2], found[:, 1::2], rtol=1e-4)
    found = np.unique(np.round(found.ravel(), 3))
    matrix = dense_operator(kernel, (4, 6), (2, 1))
    values = np.linalg.svd(matrix, compute_uv=False)
    for value in values[values > 1e-3]:
        assert np.abs(found - value).min() < 2e-3
    for value in found[found > 1e-3]:
        assert np.abs(values - value).min() < 2e-3


def test_conv_spectral_norm_without_spatial_axes():
    kernel = make_kernel((4, 6), "normal", 1.0, seed=1)
    expected = np.linalg.norm(kernel.astype("float64"), 2)
    actual = number(norms.conv_spectral_norm(kernel, ()))
    assert actual == approx(expected)


def test_order_of_the_norms():
    # What bssn.md derives: Lemma 1 is below the operator norm, and that is
    # between Miyato's and 3 times Miyato's for 3x3 kernels.
    for seed in range(5):
        kernel = make_kernel((3, 3, 4, 5), "normal", 1.0, seed)
        san = number(norms.sparsity_aware_norm(kernel, (6, 6)))
        miyato = number(norms.spectral_norm(kernel))
        exact = number(norms.conv_spectral_norm(kernel, (6, 6)))
        assert san <= exact * (1 + 1e-5)
        assert miyato <= exact * (1 + 1e-5)
        assert exact <= 3 * miyato * (1 + 1e-5)


# NaN and infinity.


@pytest.mark.parametrize(
    "bad, shape",
    [
        (np.nan, (4, 3)),
        (np.inf, (3, 2, 3)),
        (np.nan, (3, 3, 2, 3)),
        (np.inf, (3, 3, 2, 3)),
        (-np.inf, (3, 3, 2, 3)),
    ],
)
def test_bad_numbers_are_never_hidden(bad, shape):
    image = (6,) * (len(shape) - 2)
    for entry in [0, -1]:
        kernel = make_kernel(shape, "normal", 1.0, seed=0)
        kernel.flat[entry] = bad
        assert math.isnan(number(norms.sparsity_aware_norm(kernel, image)))
        assert math.isnan(number(norms.sparsity_aware_norm(kernel)))
        assert math.isnan(number(norms.sparse_norm(kernel, 2, image)))
        assert math.isnan(number(norms.rms_modulus(kernel, image)))
        assert math.isnan(number(norms.spectral_norm(kernel)))
        assert math.isnan(number(norms.bidirectional_spectral_norm(kernel)))
        assert math.isnan(number(norms.conv_spectral_norm(kernel, image)))
        with chunk_of(8):
            assert math.isnan(number(norms.sparsity_aware_norm(kernel, image)))
            assert math.isnan(number(norms.sparse_norm(kernel, 2, image)))
            assert math.isnan(number(norms.conv_spectral_norm(kernel, image)))


@pytest.mark.parametrize("bad", [np.nan, -np.inf])
def test_bad_numbers_outside_of_the_subset_are_never_hidden(bad):
    kernel = make_kernel((3, 3, 4, 4), "normal", 1.0, seed=0)
    kernel[1, 1, 2, 2] = bad
    for seed in range(6):
        norm = norms.sparsity_aware_norm(kernel, (6, 6), ratio=0.25, seed=seed)
        assert math.isnan(number(norm))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_numbers_survive_power_iteration(bad):
    matrices = make_kernel((2, 4, 3), "normal", 1.0, seed=0)
    u = np.array([[1.0, 0.0, 0.0]] * 2, "float32")
    for entry in [(1, 0, 0), (1, 3, 2), (1, 1, 1)]:
        broken = matrices.copy()
        broken[entry] = bad
        sigma, _, _ = norms.power_iteration(broken, u)
        sigma = ops.convert_to_numpy(sigma)
        assert np.isfinite(sigma[0])
        assert np.isnan(sigma[1])


# Bad arguments.


@pytest.mark.parametrize("ratio", [0, 1.5, float("nan"), "a"])
def test_bad_ratio(ratio):
    kernel = np.ones((3, 3, 2, 2), "float32")
    for call in [
        lambda: norms.sparsity_aware_norm(kernel, (4, 4), ratio),
        lambda: norms.subset_gain(16, ratio),
        lambda: norms.sample_filters((3, 3, 2, 2), ratio),
    ]:
        with pytest.raises(ValueError) as error:
            call()
        assert f"Received: ratio={ratio!r}" in str(error.value)


@pytest.mark.parametrize(
    "call, quoted",
    [
        (lambda k: norms.sparsity_aware_norm(k, (4,)), "spatial_shape=(4,)"),
        (
            lambda k: norms.sparsity_aware_norm(k, (4, 0)),
            "spatial_shape=(4, 0)",
        ),
        (
            lambda k: norms.sparsity_aware_norm(k, (4, None)),
            "spatial_shape=(4, None)",
        ),
        (
            lambda k: norms.sparsity_aware_norm(k, (4, 4), dilation_rate=(2,)),
            "dilation_rate=(2,)",
        ),
        (lambda k: norms.sparse_norm(k, 2, (4,)), "spatial_shape=(4,)"),
        (
            lambda k: norms.sparse_norm(k, 2, (4, 4), dilation_rate=(2,)),
            "dilation_rate=(2,)",
        ),
        (lambda k: norms.sparse_norm(k, 0), "sparsity=0"),
        (lambda k: norms.sparse_norm(k, 2.0), "sparsity=2.0"),
        (lambda k: norms.rms_modulus(k, (4,)), "spatial_shape=(4,)"),
        (
            lambda k: norms.conv_spectral_norm(k, (4, 4), strides=(1, 2, 1)),
            "strides=(1, 2, 1)",
        ),
        (
            lambda k: norms.conv_spectral_norm(k, (4, 6), strides=(1, 4)),
            "spatial_shape=(4, 6), strides=(1, 4)",
        ),
        (
            lambda k: norms.fourier_blocks(k, (5, 6), strides=2),
            "spatial_shape=(5, 6), strides=(2, 2)",
        ),
        (
            lambda k: norms.conv_spectral_norm(k, (4,)),
            "spatial_shape=(4,)",
        ),
    ],
)
def test_bad_arguments_are_quoted(call, quoted):
    with pytest.raises(ValueError) as error:
        call(np.ones((3, 3, 2, 2), "float32"))
    assert f"Received: {quoted}" in str(error.value)


@pytest.mark.parametrize(
    "norm",
    [
        norms.sparsity_aware_norm,
        lambda kernel: norms.sparsity_aware_norm(kernel, ratio=0.5),
        lambda kernel: norms.sparse_norm(kernel, 2),
        norms.rms_modulus,
        norms.spectral_norm,
        norms.bidirectional_spectral_norm,
        lambda kernel: norms.conv_spectral_norm(kernel, ()),
    ],
)
def test_a_kernel_has_two_axes(norm):
    with pytest.raises(ValueError) as error:
        norm(np.ones(3, "float32"))
    assert "Received: kernel.shape=(3,)" in str(error.value)


# Compiled.


def compiled(function):
    if BACKEND == "tensorflow":
        import tensorflow as tf

        return tf.function(function, jit_compile=True)
    if BACKEND == "jax":
        import jax

        return jax.jit(function)
    return function


def test_compiled_norms_are_the_same_numbers():
    kernel = make_kernel((3, 3, 4, 6), "normal", 0.02, seed=0)
    matrix = with_singular_values([1.0, 1 - 1e-4, 0.3], 9, 5)
    u = np.array([[1.0, 0, 0, 0, 0]], "float32")
    # Of so many outputs that a coarse grid comes first.
    wide = make_kernel((2, 1, 5, 9), "normal", 1.0, seed=0)

    def everything(kernel, matrix, u):
        sigma, v, u = norms.power_iteration(matrix[None], u)
        return [
            norms.sparsity_aware_norm(kernel, (9, 8)),
            norms.sparsity_aware_norm(kernel),
            norms.sparse_norm(kernel, 2, (9, 8)),
            norms.sparse_norm(wide, 3, (11, 8)),
            norms.rms_modulus(kernel, (2, 2)),
            norms.active_channels(kernel),
            norms.spectral_norm(kernel),
            norms.spectral_norm(matrix),
            norms.bidirectional_spectral_norm(kernel),
            norms.conv_spectral_norm(kernel, (4, 6), 2, groups=2),
            sigma,
            v,
            u,
        ]

    # 100 elements a step: loops, and several batches of blocks.
    with chunk_of(100):
        function = compiled(everything)
        arguments = [ops.convert_to_tensor(x) for x in (kernel, matrix, u)]
        for actual, expected in zip(
            function(*arguments), everything(*arguments)
        ):
            np.testing.assert_allclose(
                ops.convert_to_numpy(actual),
                ops.convert_to_numpy(expected),
                rtol=1e-5,
                atol=1e-6,
            )
        expected = filter_gains(kernel, (9, 8)).max()
        assert number(function(*arguments)[0]) == approx(expected, rel=1e-5)
        # XLA may have another generator: the same seed, another subset.
        subset = compiled(
            lambda k: norms.sparsity_aware_norm(k, (9, 8), 0.3, seed=5)
        )
        found = number(subset(arguments[0]))
        assert np.abs(filter_gains(kernel, (9, 8)) / found - 1).min() < 1e-5


def test_compiled_norms_do_not_hide_bad_numbers():
    # XLA's maximum on CPU, as TensorFlow sets it up, drops a NaN.
    def everything(kernel):
        return [
            norms.sparsity_aware_norm(kernel, (9, 8)),
            norms.sparsity_aware_norm(kernel),
            norms.sparse_norm(kernel, 3, (9, 8)),
            norms.rms_modulus(kernel),
            norms.active_channels(kernel),
            norms.spectral_norm(kernel),
            norms.bidirectional_spectral_norm(kernel),
            norms.conv_spectral_norm(kernel, (4, 6), 2),
        ]

    function = compiled(everything)
    for bad, entry in itertools.product(
        [np.nan, np.inf], [(0, 0, 0, 0), (2, 0, 1, 5)]
    ):
        kernel = make_kernel((3, 3, 4, 6), "normal", 0.02, seed=0)
        kernel[entry] = bad
        values = function(ops.convert_to_tensor(kernel))
        assert np.isnan([number(value) for value in values]).all()


@pytest.mark.parametrize(
    "norm",
    [
        norms.sparsity_aware_norm,
        lambda kernel: norms.sparsity_aware_norm(kernel, (5, 5), 0.5, seed=1),
        lambda kernel: norms.sparse_norm(kernel, 2, (5, 5)),
        norms.spectral_norm,
        norms.bidirectional_spectral_norm,
        lambda kernel: norms.conv_spectral_norm(kernel, (4, 4), 2),
    ],
)
def test_variables_are_kernels_too(norm):
    kernel = make_kernel((3, 3, 2, 3), "normal", 0.02, seed=0)
    layer = keras.layers.Conv2D(3, 3)
    layer.build((None, 8, 8, 2))
    layer.kernel.assign(kernel)
    expected = number(norm(kernel))
    assert number(norm(ops.convert_to_tensor(kernel))) == approx(expected)
    assert number(norm(layer.kernel)) == approx(expected)
    assert number(norm(layer.kernel.value)) == approx(expected)


def test_low_precision_kernels_are_measured_in_float32():
    kernel = make_kernel((3, 3, 2, 3), "normal", 0.02, seed=0)
    for dtype in ["float16", "bfloat16"]:
        low = ops.cast(kernel, dtype)
        exact = ops.convert_to_numpy(ops.cast(low, "float32"))
        expected = filter_gains(exact, (8, 8)).max()
        actual = number(norms.sparsity_aware_norm(low, (8, 8)))
        assert actual == approx(expected)
        actual = number(norms.sparse_norm(low, 2, (8, 8)))
        assert actual == approx(sparse_gain(exact, 2, (8, 8)))
        expected = np.linalg.norm(reshapes(exact)[0], 2)
        assert number(norms.spectral_norm(low)) == approx(expected, rel=1e-5)
