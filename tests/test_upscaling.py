import os

import keras
import numpy as np
import pytest
from helpers import ignore_torch_copies
from keras import layers
from PIL import Image

from experiments import upscaling
from keras_san.networks import srgan

RNG = np.random.default_rng(0)


def nearest(scale=2):
    """A network that only repeats pixels."""
    return keras.Sequential(
        [keras.Input((None, None, 3)), layers.UpSampling2D(scale)]
    )


def noise(*shape, dtype="uint8"):
    return RNG.integers(np.iinfo(dtype).max + 1, size=shape, dtype=dtype)


class TestTiles:
    @pytest.mark.parametrize("length", [1, 15, 16, 17, 28, 29, 100])
    def test_tiles_cover_everything_once(self, length):
        tiles = upscaling._tiles(length, 16, 3)
        kept = [i for _, part in tiles for i in range(length)[part]]
        assert kept == list(range(length))
        for seen, part in tiles:
            assert 0 <= seen.start and seen.stop <= length
            assert seen.stop - seen.start == min(16, length)
            # What is kept has been seen with all that is around it.
            assert part.start - seen.start >= 3 or seen.start == 0
            assert seen.stop - part.stop >= 3 or seen.stop == length

    @ignore_torch_copies
    @pytest.mark.parametrize("size", [(9, 40), (37, 33)])
    def test_no_seams(self, size):
        """All pixels are as if the whole image had been seen at once."""
        keras.utils.set_random_seed(0)
        model = srgan.generator(4, width=0.1, blocks=2)
        for weight in model.weights:
            weight.assign(RNG.normal(0.0, 0.2, weight.shape))
        image = RNG.uniform(-1, 1, (*size, 3)).astype("float32")
        # What each output sees: 2 pixels for the first convolution, 1 for
        # each of the next five, less than 2 for those of larger images.
        tiled = upscaling.enlarge(model, image, tile=24, overlap=9)
        whole = model.predict_on_batch(image[None])[0]
        expected = np.clip(np.rint((whole + 1) * 127.5), 0, 255)
        assert 0.1 < np.mean((expected > 0) & (expected < 255))
        assert np.abs(tiled.astype(int) - expected).max() <= 1

    def test_bad_tiles(self):
        image = np.zeros((5, 5, 3), "float32")
        with pytest.raises(ValueError, match="tile=8, overlap=4"):
            upscaling.enlarge(nearest(), image, tile=8, overlap=4)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_levels(dtype):
    """Through floats and back, no level changes."""
    levels = np.arange(np.iinfo(dtype).max + 1).astype(dtype)
    levels = levels.reshape(16, -1)
    photograph = upscaling.Photograph(levels, None, None)
    enlarged = upscaling.enlarge_photograph(nearest(), photograph)
    assert enlarged.levels.dtype == dtype
    np.testing.assert_array_equal(enlarged.levels[::2, 1::2], levels)


class TestFiles:
    def enlarge(self, tmp_path, image, name="x.png", **settings):
        image.save(tmp_path / name, **settings)
        failures = upscaling.enlarge_files(
            nearest(), [str(tmp_path / name)], str(tmp_path / "out")
        )
        assert failures == []
        (file,) = (tmp_path / "out").iterdir()
        with Image.open(file) as found:
            found.load()
        return file.name, found

    @pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA", "I;16"])
    def test_modes(self, tmp_path, mode):
        dtype = "uint16" if mode == "I;16" else "uint8"
        shape = (5, 7, len(Image.new(mode, (1, 1)).getbands()))
        array = noise(*shape, dtype=dtype).squeeze()
        name, image = self.enlarge(tmp_path, Image.fromarray(array))
        assert (name, image.mode, image.size) == ("x.png", mode, (14, 10))
        found = np.asarray(image)
        if mode in ("RGBA", "LA"):
            # Transparency is interpolated, colours are not.
            assert found[..., -1].std() > 10.0
            found, array = found[..., :-1], array[..., :-1]
        np.testing.assert_array_equal(found[::2, ::2], array)

    @pytest.mark.parametrize(
        ("mode", "expected"), [("P", "RGB"), ("1", "L"), ("CMYK", "RGB")]
    )
    def test_other_modes(self, tmp_path, mode, expected):
        image = Image.fromarray(noise(5, 7, 3)).convert(mode)
        _, found = self.enlarge(tmp_path, image, "x.tif")
        assert (found.mode, found.size) == (expected, (14, 10))
        np.testing.assert_array_equal(
            np.asarray(found)[::2, ::2], np.asarray(image.convert(expected))
        )

    def test_one_transparent_level(self, tmp_path):
        image = Image.fromarray(np.uint8([[7, 9], [9, 9]]))
        _, found = self.enlarge(tmp_path, image, transparency=7)
        assert found.mode == "LA"
        found = np.asarray(found)
        assert found[0, 0, 1] < 128 < found[-1, -1, 1]
        np.testing.assert_array_equal(found[::2, ::2, 0], image)

    def test_orientation(self, tmp_path):
        array = noise(4, 6, 3)
        exif = Image.Exif()
        exif[0x0112] = 6  # To be turned clockwise.
        name, found = self.enlarge(tmp_path, Image.fromarray(array), exif=exif)
        assert 0x0112 not in found.getexif()
        np.testing.assert_array_equal(
            np.asarray(found)[::2, ::2], np.rot90(array, -1)
        )

    @pytest.mark.parametrize(
        ("name", "expected"),
        [("x.jpg", "x.jpg"), ("x.WEBP", "x.WEBP"), ("x.gif", "x.png")],
    )
    def test_names(self, tmp_path, name, expected):
        image = Image.new("RGB", (6, 4), (200, 100, 50))
        found, enlarged = self.enlarge(tmp_path, image, name)
        assert (found, enlarged.size) == (expected, (12, 8))
        colour = np.asarray(enlarged.convert("RGB")).mean(axis=(0, 1))
        np.testing.assert_allclose(colour, (200, 100, 50), atol=4)

    def test_profile(self, tmp_path):
        image = Image.new("RGB", (6, 4))
        _, found = self.enlarge(tmp_path, image, icc_profile=b"colours")
        assert found.info["icc_profile"] == b"colours"

    def test_a_folder_with_a_broken_file(self, tmp_path, capsys):
        folder = tmp_path / "in"
        (folder / "sub").mkdir(parents=True)
        for name in ("a.png", "b.png", os.path.join("sub", "a.png")):
            Image.new("RGB", (4, 4)).save(folder / name)
        content = (folder / "b.png").read_bytes()
        (folder / "b.png").write_bytes(content[: len(content) // 2])
        output = tmp_path / "out"
        failures = upscaling.enlarge_files(
            nearest(), [str(folder)], str(output)
        )
        assert len(failures) == 1 and "b.png" in failures[0]
        names = sorted(p.relative_to(output) for p in output.rglob("*.png"))
        assert [str(n) for n in names] == [
            "a.png",
            os.path.join("sub", "a.png"),
        ]
        printed = capsys.readouterr().out
        assert "[1/3]" in printed and "[3/3]" in printed
        assert "4 x 4 -> 8 x 8" in printed and "left out" in printed

    def test_nothing_is_overwritten(self, tmp_path):
        Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
        arguments = nearest(), [str(tmp_path / "a.png")], str(tmp_path / "out")
        upscaling.enlarge_files(*arguments)
        with pytest.raises(ValueError, match="--force only.*a.png"):
            upscaling.enlarge_files(*arguments)
        assert upscaling.enlarge_files(*arguments, force=True) == []

    def test_no_photograph_replaces_itself(self, tmp_path):
        Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
        with pytest.raises(ValueError, match="another --output.*a.png"):
            upscaling.enlarge_files(
                nearest(), [str(tmp_path)], str(tmp_path), force=True
            )

    def test_a_transparent_level_of_many(self, tmp_path):
        array = noise(4, 4, dtype="uint16")
        Image.fromarray(array).save(tmp_path / "a.png", transparency=7)
        (failure,) = upscaling.enlarge_files(
            nearest(), [str(tmp_path / "a.png")], str(tmp_path / "out")
        )
        assert "16 bits have a transparent level" in failure

    def test_two_that_would_become_one(self, tmp_path):
        for name in ("a.png", "a.gif"):
            Image.new("RGB", (4, 4)).save(tmp_path / name)
        with pytest.raises(ValueError, match="same file.*a.gif.*a.png"):
            upscaling.enlarge_files(
                nearest(), [str(tmp_path)], str(tmp_path / "out")
            )
        assert not (tmp_path / "out").exists()

    def test_no_such_file(self, tmp_path):
        with pytest.raises(ValueError, match="no such file.*missing"):
            upscaling.enlarge_files(
                nearest(), [str(tmp_path / "missing")], str(tmp_path)
            )
