import os

import numpy as np
import pytest
from helpers import noise, save
from PIL import Image

from experiments import photographs
from keras_san.metrics.resizing import imresize

equal = np.testing.assert_array_equal


@pytest.fixture
def folder(tmp_path):
    """HR of sizes that 4 divides, or not, and LR of half of them."""
    save(tmp_path / "HR" / "a.png", noise(12, 16))
    save(tmp_path / "HR" / "sub" / "b.png", noise(8, 8, 1))
    save(tmp_path / "LR" / "a.bmp", noise(6, 8))
    save(tmp_path / "LR" / "sub" / "b.png", noise(4, 4))
    return tmp_path


def test_bundled():
    pairs = photographs.load()
    assert len(pairs) == 9 and {pair.scale for pair in pairs} == {4}
    for _, low, high in pairs:
        assert low.dtype == high.dtype == "uint8"
        assert high.shape == (4 * low.shape[0], 4 * low.shape[1], 3)
    (held_out,) = photographs.load(split="validation", scale=3)
    assert held_out.name == "chelsea" and held_out.large.shape == (300, 450, 3)
    assert held_out.name not in [pair.name for pair in pairs]


def test_large_ones_alone(tmp_path):
    high = save(tmp_path / "x" / "one.png", noise(14, 11))
    grey = save(tmp_path / "two.png", noise(9, 8, 1))
    two, one = photographs.load(tmp_path, scale=4)
    assert (two.name, one.name) == ("two", os.path.join("x", "one"))
    equal(one.large, high[:12, :8])
    equal(one.small, imresize(high[:12, :8], 0.25))
    equal(two.large, np.repeat(grey[:8], 3, axis=2))
    with pytest.raises(ValueError, match="12 x 12 pixels.*'one' with 11 x 14"):
        photographs.load(tmp_path / "x", scale=12)


def test_large_and_small_ones(folder):
    pairs = photographs.load(folder, scale=2)
    assert [pair.name for pair in pairs] == ["a", os.path.join("sub", "b")]
    equal(pairs[0].small, np.asarray(Image.open(folder / "LR" / "a.bmp")))
    again = photographs.load(
        folder / "HR", scale=2, small=folder / "LR", limit=1
    )
    assert len(again) == 1
    for a, b in zip(pairs[0], again[0]):
        equal(a, b)


def test_cache(folder):
    cache = str(folder / "cache")
    pairs = photographs.load(folder, scale=2)
    for _ in range(2):
        kept = photographs.load(folder, scale=2, cache=cache)
        for a, b in zip(pairs, kept):
            assert isinstance(b.small, np.memmap)
            equal(a.small, b.small)
            equal(a.large, b.large)
    assert len(os.listdir(cache)) == 4
    # Another file of that name is another photograph.
    new = save(folder / "HR" / "a.png", noise(12, 16))
    os.utime(folder / "HR" / "a.png", ns=(1, 1))
    equal(photographs.load(folder, scale=2, cache=cache)[0].large, new)


def test_tensorflow_datasets(tmp_path):
    tfds = pytest.importorskip("tensorflow_datasets")
    images = {"lr": noise(4, 6), "hr": noise(8, 12)}
    image = tfds.features.Image()
    tfds.dataset_builders.store_as_tfds_dataset(
        name="tiny",
        version="1.0.0",
        features=tfds.features.FeaturesDict(dict.fromkeys(images, image)),
        split_datasets={"train": [(0, images)]},
        data_dir=tmp_path,
    )
    cache = str(tmp_path / "cache")
    for kept in (None, cache, cache):
        (pair,) = photographs.load(
            "tiny", scale=2, data_dir=str(tmp_path), cache=kept
        )
        assert pair.name == "train_0000"
        equal(pair.small, images["lr"])
        equal(pair.large, images["hr"])


@pytest.mark.parametrize(
    ("path", "size", "scale", "message"),
    [
        ("HR/c.png", (8, 8), 2, "1 without.*'c'.*not in.*LR"),
        ("LR/c.png", (8, 8), 2, "1 without.*'c'.*not in.*HR"),
        ("LR/a.png", (6, 8), 2, "same name.*a.bmp.*a.png"),
        ("HR/a.png", (12, 16), 4, "'a' with 16 x 12 and 8 x 6"),
        ("HR/sub/b.png", (9, 8), 2, "b' with 8 x 9 and 4 x 4"),
        ("HR/a.png", None, 2, "cannot be read.*a.png"),
    ],
)
def test_bad_files(folder, path, size, scale, message):
    if size is None:
        (folder / path).write_bytes(b"nothing")
    else:
        save(folder / path, noise(*size))
    with pytest.raises(ValueError, match=message):
        photographs.load(folder, scale=scale)


def test_the_middle():
    high = np.arange(20 * 28).reshape(20, 28)
    pair = photographs.Pair("a", high[::2, ::2], high)
    _, low, middle = pair.middle(9)
    assert low.shape == (4, 4) and middle.shape == (8, 8)
    equal(middle[::2, ::2], low)
    equal(low, pair.small[3:7, 5:9])
    equal(pair.middle(100).large, high)


class TestCrops:
    def pairs(self):
        """Every pixel of a photograph tells its place, and of which one."""
        pairs = []
        for index, (height, width) in enumerate([(5, 7), (6, 4)]):
            y, x = np.indices((2 * height, 2 * width))
            high = np.stack([y, x, np.full_like(x, index)], 2).astype("uint8")
            pairs.append(photographs.Pair("ab"[index], high[::2, ::2], high))
        return pairs

    def test_places(self):
        small, large = photographs.Crops(self.pairs(), 3, 64)[0]
        assert small.shape == (64, 3, 3, 3) and small.dtype == "float32"
        assert large.shape == (64, 6, 6, 3) and large.dtype == "float32"
        small, large = (
            np.rint((x + 1) * 127.5).astype(int) for x in (small, large)
        )
        seen = set()
        for low, high in zip(small, large):
            mirrored = high[0, 0, 1] > high[0, 1, 1]
            if mirrored:
                low, high = low[:, ::-1], high[:, ::-1]
            y, x, index = high[0, 0]
            assert y % 2 == x % 2 == 0
            equal(high, self.pairs()[index].large[y : y + 6, x : x + 6])
            equal(high[::2, ::2], low)
            seen.add((index, y, x, bool(mirrored)))
        # Each of them may end at the last pixel.
        assert {(0, 4), (1, 6)} <= {(i, y) for i, y, *_ in seen}
        assert {(0, 8), (1, 2)} <= {(i, x) for i, _, x, _ in seen}
        assert {mirrored for *_, mirrored in seen} == {True, False}

    def test_of_a_number(self):
        crops, again, other = (
            photographs.Crops(self.pairs(), 3, 2, seed) for seed in (1, 1, 2)
        )
        equal(crops[5][1], again[5][1])
        assert np.any(crops[4][1] != crops[5][1])
        assert np.any(other[5][1] != crops[5][1])

    def test_too_small(self):
        with pytest.raises(ValueError, match="at least 5 x 5.*'b' with 4 x 6"):
            photographs.Crops(self.pairs(), 5, 2)
