import os

import numpy as np
import pytest
from helpers import noise, save
from PIL import Image

from experiments import photographs
from keras_san.metrics.resizing import imresize


@pytest.fixture
def folder(tmp_path):
    """HR of sizes that 4 divides, or not, and LR of half of them."""
    save(tmp_path / "HR" / "a.png", noise(12, 16))
    save(tmp_path / "HR" / "sub" / "b.png", noise(8, 8, 1))
    save(tmp_path / "LR" / "a.bmp", noise(6, 8))
    save(tmp_path / "LR" / "sub" / "b.png", noise(4, 4))
    return tmp_path


class TestLoad:
    def test_bundled(self):
        pairs = photographs.load()
        assert len(pairs) == 9 and pairs.scale == 4
        for low, high in zip(pairs.small, pairs.large):
            assert low.dtype == high.dtype == "uint8"
            assert high.shape == (4 * low.shape[0], 4 * low.shape[1], 3)
        held_out = photographs.load(split="validation", scale=3)
        assert held_out.names == ["chelsea"]
        assert not {*held_out.names} & {*pairs.names}
        assert held_out.large[0].shape == (300, 450, 3)

    def test_a_folder(self, tmp_path):
        high = save(tmp_path / "x" / "one.png", noise(14, 11))
        grey = save(tmp_path / "two.png", noise(9, 8, 1))
        pairs = photographs.load(tmp_path, scale=4)
        assert pairs.names == ["two", os.path.join("x", "one")]
        np.testing.assert_array_equal(pairs.large[1], high[:12, :8])
        np.testing.assert_array_equal(
            pairs.small[1], imresize(high[:12, :8], 0.25)
        )
        np.testing.assert_array_equal(
            pairs.large[0], np.repeat(grey[:8], 3, axis=2)
        )

    def test_pairs(self, folder):
        pairs = photographs.load(folder, scale=2)
        assert pairs.names == ["a", os.path.join("sub", "b")]
        np.testing.assert_array_equal(
            pairs.small[0], np.asarray(Image.open(folder / "LR" / "a.bmp"))
        )
        again = photographs.load(folder / "HR", scale=2, small=folder / "LR")
        for a, b in zip(pairs.small + pairs.large, again.small + again.large):
            np.testing.assert_array_equal(a, b)

    def test_cache(self, folder):
        cache = str(folder / "cache")
        pairs = photographs.load(folder, scale=2)
        for _ in range(2):
            kept = photographs.load(folder, scale=2, cache=cache)
            for a, b in zip(pairs.small + pairs.large, kept.small + kept.large):
                assert isinstance(b, np.memmap)
                np.testing.assert_array_equal(a, b)
        assert len(os.listdir(cache)) == 4
        # Another file of that name is another photograph.
        new = save(folder / "HR" / "a.png", noise(12, 16))
        os.utime(folder / "HR" / "a.png", ns=(1, 1))
        kept = photographs.load(folder, scale=2, cache=cache)
        np.testing.assert_array_equal(kept.large[0], new)

    def test_tensorflow_datasets(self, tmp_path):
        tfds = pytest.importorskip("tensorflow_datasets")
        high, low = noise(8, 12), noise(4, 6)
        image = tfds.features.Image()
        tfds.dataset_builders.store_as_tfds_dataset(
            name="tiny",
            version="1.0.0",
            features=tfds.features.FeaturesDict({"lr": image, "hr": image}),
            split_datasets={"train": [(0, {"lr": low, "hr": high})]},
            data_dir=tmp_path,
        )
        cache = str(tmp_path / "cache")
        for kept in (None, cache, cache):
            pairs = photographs.load(
                "tiny", scale=2, data_dir=str(tmp_path), cache=kept
            )
            np.testing.assert_array_equal(pairs.small[0], low)
            np.testing.assert_array_equal(pairs.large[0], high)
        with pytest.raises(ValueError, match="no images `lr` and `hr`"):
            tfds.dataset_builders.store_as_tfds_dataset(
                name="other",
                version="1.0.0",
                features=tfds.features.FeaturesDict({"image": image}),
                split_datasets={"train": [(0, {"image": low})]},
                data_dir=tmp_path,
            )
            photographs.load("other", data_dir=str(tmp_path))

    def test_limit(self, folder):
        assert photographs.load(folder, scale=2, limit=1).names == ["a"]

    def test_odd_names(self, folder):
        save(folder / "HR" / "c.png", noise(8, 8))
        with pytest.raises(ValueError, match="1 without.*'c'.*not in.*LR"):
            photographs.load(folder, scale=2)
        os.remove(folder / "HR" / "c.png")
        os.remove(folder / "HR" / "a.png")
        with pytest.raises(ValueError, match="1 without.*'a'.*not in.*HR"):
            photographs.load(folder, scale=2)

    def test_sizes_that_do_not_fit(self, folder):
        with pytest.raises(ValueError, match="'a' with 16 x 12 and 8 x 6"):
            photographs.load(folder, scale=4)
        save(folder / "HR" / "sub" / "b.png", noise(9, 8))
        with pytest.raises(ValueError, match="b' with 8 x 9 and 4 x 4"):
            photographs.load(folder, scale=2)

    def test_bad_files(self, tmp_path):
        with pytest.raises(ValueError, match="no images"):
            photographs.load(tmp_path)
        save(tmp_path / "small.png", noise(3, 9))
        with pytest.raises(ValueError, match="'small' with 9 x 3"):
            photographs.load(tmp_path)
        save(tmp_path / "small.jpg", noise(3, 9))
        with pytest.raises(ValueError, match="same name.*small.*small"):
            photographs.load(tmp_path)
        (tmp_path / "small.jpg").unlink()
        (tmp_path / "broken.png").write_bytes(b"nothing")
        with pytest.raises(ValueError, match="cannot be read.*broken.png"):
            photographs.load(tmp_path)

    def test_other_names(self):
        with pytest.raises(ValueError, match="no such dataset.*'nothing'"):
            photographs.load("nothing")


def test_the_middle():
    high = np.arange(20 * 28).reshape(20, 28)
    low = high[::2, ::2]
    pairs = photographs.Pairs(["a"], [low], [high], 2).middle(9)
    assert pairs.small[0].shape == (4, 4) and pairs.large[0].shape == (8, 8)
    np.testing.assert_array_equal(pairs.large[0][::2, ::2], pairs.small[0])
    np.testing.assert_array_equal(pairs.small[0], low[3:7, 5:9])
    same = photographs.Pairs(["a"], [low], [high], 2).middle(100)
    np.testing.assert_array_equal(same.large[0], high)


class TestCrops:
    def pairs(self):
        """Every pixel of a photograph tells its place, and of which one."""
        small, large = [], []
        for index, (height, width) in enumerate([(5, 7), (6, 4)]):
            y, x = np.indices((2 * height, 2 * width))
            high = np.stack([y, x, np.full_like(x, index)], 2).astype("uint8")
            large.append(high)
            small.append(high[::2, ::2])
        return photographs.Pairs(["a", "b"], small, large, 2)

    def test_places(self):
        crops = photographs.Crops(self.pairs(), 3, 64)
        small, large = crops[0]
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
            np.testing.assert_array_equal(
                high, self.pairs().large[index][y : y + 6, x : x + 6]
            )
            np.testing.assert_array_equal(high[::2, ::2], low)
            seen.add((index, y, x, bool(mirrored)))
        # Each of them may end at the last pixel.
        assert {(0, 4), (1, 6)} <= {(i, y) for i, y, *_ in seen}
        assert {(0, 8), (1, 2)} <= {(i, x) for i, _, x, _ in seen}
        assert {mirrored for *_, mirrored in seen} == {True, False}

    def test_of_a_number(self):
        crops = photographs.Crops(self.pairs(), 3, 2, seed=1)
        again = photographs.Crops(self.pairs(), 3, 2, seed=1)[5]
        np.testing.assert_array_equal(crops[5][1], again[1])
        assert np.any(crops[4][1] != again[1])
        other = photographs.Crops(self.pairs(), 3, 2, seed=2)
        assert np.any(other[5][1] != again[1])

    def test_too_small(self):
        with pytest.raises(ValueError, match="at least 5 x 5.*'b' with 4 x 6"):
            photographs.Crops(self.pairs(), 5, 2)
