import math
import pathlib

import numpy as np
import pytest
from helpers import property_test
from hypothesis import given
from hypothesis import strategies as st

from keras_san.metrics.resizing import imresize

RNG = np.random.default_rng(0)
DATA = pathlib.Path(__file__).parents[2] / "shared" / "data"


def cubic(x):
    """Keys' kernel with a = -0.5."""
    x = abs(x)
    if x < 1.0:
        return 1.5 * x**3 - 2.5 * x**2 + 1.0
    if x < 2.0:
        return -0.5 * x**3 + 2.5 * x**2 - 4.0 * x + 2.0
    return 0.0


def resize_line(line, length, scale):
    """Resizes a line by definition, pixel by pixel, with pixel i at i + 0.5."""
    n = len(line)
    shrinks = min(scale, 1.0)
    reach = math.ceil(2.0 / shrinks) + 1
    output = []
    for i in range(length):
        at = (i + 0.5) / scale
        total = weights = 0.0
        for j in range(math.floor(at) - reach, math.floor(at) + reach + 1):
            weight = cubic(shrinks * (j + 0.5 - at))
            mirrored = j
            while not 0 <= mirrored < n:
                mirrored = (
                    -1 - mirrored if mirrored < 0 else 2 * n - 1 - mirrored
                )
            total += weight * line[mirrored]
            weights += weight
        output.append(total / weights)
    return np.array(output)


def resize(image, size, scales):
    """The naive way for floats, where the order of the axes is the same."""
    rows = np.array([resize_line(c, size[0], scales[0]) for c in image.T]).T
    return np.array([resize_line(r, size[1], scales[1]) for r in rows])


SIDES = st.integers(1, 12)
SCALES = st.floats(0.05, 4.0) | st.sampled_from([0.25, 0.5, 1.0, 2.0, 1 / 3])
THOROUGH = property_test(tensorflow=40, jax=40, torch=40)


@THOROUGH
@given(SIDES, SIDES, SCALES)
def test_scale(height, width, scale):
    image = RNG.normal(size=(height, width))
    size = math.ceil(scale * height), math.ceil(scale * width)
    found = imresize(image, scale)
    assert found.shape == size
    expected = resize(image, size, (scale, scale))
    np.testing.assert_allclose(found, expected, atol=1e-10)


@THOROUGH
@given(SIDES, SIDES, st.integers(1, 20), st.integers(1, 20))
def test_size(height, width, new_height, new_width):
    size = new_height, new_width
    image = RNG.normal(size=(height, width))
    found = imresize(image, size=size)
    expected = resize(image, size, (size[0] / height, size[1] / width))
    np.testing.assert_allclose(found, expected, atol=1e-10)


@THOROUGH
@given(SIDES, st.integers(1, 20), st.integers(0, 99))
def test_uint8_of_one_axis(n, length, seed):
    # Few and extreme values, so that some are clipped and some are halves.
    image = np.random.default_rng(seed).choice([0, 1, 2, 254, 255], (n, 3))
    found = imresize(image.astype("uint8"), size=(length, 3))
    assert found.dtype == np.uint8 and found.shape == (length, 3)
    exact = resize(image.astype(float), (length, 3), (length / n, 1.0))
    assert np.abs(np.clip(exact, 0, 255) - found).max() <= 0.5 + 1e-9


def test_halves_are_rounded_up():
    # Shrunk to one, two pixels give their mean.
    image = np.array([[0, 2, 4, 254], [1, 3, 5, 255]], "uint8")
    np.testing.assert_array_equal(
        imresize(image, size=(1, 4)), [[1, 3, 5, 255]]
    )


@pytest.mark.parametrize(
    "size, first", [((5, 9), 0), ((9, 5), 1), ((8, 8), 0), ((40, 30), 1)]
)
def test_uint8_is_rounded_after_each_axis(size, first):
    image = RNG.integers(0, 256, (16, 16), "uint8")
    found = imresize(image, size=size)
    step = [16, 16]
    step[first] = size[first]
    expected = imresize(imresize(image, size=step), size=size)
    np.testing.assert_array_equal(found, expected)
    # The other order differs, or nothing would be tested.
    step = [size[0], size[1]]
    step[first] = 16
    other = imresize(imresize(image, size=step), size=size)
    assert np.any(found != other)


@pytest.mark.parametrize("dtype", ["uint8", "float16", "float32", "float64"])
def test_dtype_and_channels(dtype):
    image = RNG.integers(0, 256, (9, 7, 3)).astype(dtype)
    before = image.copy()
    found = imresize(image, 0.6)
    assert found.dtype == dtype and found.shape == (6, 5, 3)
    np.testing.assert_array_equal(image, before)
    for channel in range(3):
        np.testing.assert_array_equal(
            found[..., channel], imresize(image[..., channel], 0.6)
        )


@pytest.mark.parametrize("scale", [0.07, 0.25, 0.9, 1.0, 1.7, 4])
@pytest.mark.parametrize("dtype", ["uint8", "float64"])
def test_constants(scale, dtype):
    found = imresize(np.full((13, 8), 200, dtype), scale)
    np.testing.assert_allclose(found, 200, rtol=1e-13)


def test_identity():
    image = RNG.normal(size=(6, 5, 2))
    np.testing.assert_array_equal(imresize(image, 1), image)
    np.testing.assert_array_equal(imresize(image, size=(6, 5)), image)


@pytest.mark.parametrize("scale", [2, 3.5, 4])
def test_ramp(scale):
    ramp = np.arange(20.0)[:, None] * 3.0 + np.zeros((1, 4))
    found = imresize(ramp, scale)
    where = (np.arange(math.ceil(20 * scale)) + 0.5) / scale - 0.5
    inside = (where >= 2) & (where <= 17)
    np.testing.assert_allclose(
        found[inside, 5], 3.0 * where[inside], atol=1e-12
    )


def test_no_aliasing():
    # The finest pattern turns grey, and does not come back coarser.
    image = np.tile([0.0, 1.0], (32, 16))
    np.testing.assert_allclose(imresize(image, 0.25)[:, 1:-1], 0.5, atol=0.01)


@pytest.mark.parametrize(
    "arguments, match",
    [
        ((np.zeros(3), 0.5), r"height, width.*Received: shape \(3,\)"),
        ((np.zeros((0, 2)), 0.5), r"not be empty.*shape \(0, 2\)"),
        ((np.zeros((2, 2), int), 0.5), "uint8 or of floats.*dtype int64"),
        ((np.zeros((2, 2)),), "either.*scale=None, size=None"),
        ((np.zeros((2, 2)), 0.5, (1, 1)), r"scale=0.5, size=\(1, 1\)"),
        ((np.zeros((2, 2)), 0), "`scale` must be a positive.*scale=0"),
        ((np.zeros((2, 2)), math.nan), "scale=nan"),
        ((np.zeros((2, 2)), math.inf), "scale=inf"),
        ((np.zeros((2, 2)), (0.5, 0.5)), r"scale=\(0.5, 0.5\)"),
        ((np.zeros((2, 2)), None, (0, 2)), "`size` must be an int >= 1.*=0"),
        ((np.zeros((2, 2)), None, (2, 1.5)), "size=1.5"),
        ((np.zeros((2, 2)), None, 4), r"\(height, width\).*size=4"),
        ((np.zeros((2, 2)), None, (2, 2, 3)), r"size=\(2, 2, 3\)"),
    ],
)
def test_bad_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        imresize(*arguments)


@pytest.mark.parametrize("name, images", [("set5_x4", 5), ("bsd100_x4", 20)])
def test_matlab(name, images):
    if not (DATA / name).is_dir():
        pytest.skip(f"needs images that MATLAB resized, in {DATA / name}")
    from PIL import Image

    paths = sorted((DATA / name / "HR").iterdir())[:images]
    assert len(paths) == images
    for path in paths:
        large = np.asarray(Image.open(path))
        small = np.asarray(Image.open(DATA / name / "LR" / path.name))
        inner = (slice(2, -2),) * 2
        np.testing.assert_array_equal(
            imresize(large, 0.25)[inner], small[inner]
        )
        # These were made by a MATLAB of old, which repeated the border pixel
        # rather than to mirror the image. Repeated here, all are equal.
        padded = np.pad(large, ((16, 16), (16, 16), (0, 0)), "edge")
        np.testing.assert_array_equal(imresize(padded, 0.25)[4:-4, 4:-4], small)
