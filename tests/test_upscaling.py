import os

import keras
import numpy as np
import pytest
from helpers import ignore_torch_copies, noise, save, written
from keras import layers
from PIL import Image

from experiments import upscaling
from keras_san.networks import srgan

RNG = np.random.default_rng(0)
# A network that only repeats pixels.
NEAREST = keras.Sequential(
    [keras.Input((None, None, 3)), layers.UpSampling2D(2)]
)


@ignore_torch_copies
@pytest.mark.parametrize("size", [(1, 25), (9, 40), (37, 33), (24, 30)])
def test_no_seams(size):
    """All pixels are as if the whole image had been seen at once."""
    keras.utils.set_random_seed(0)
    model = srgan.generator(4, width=0.1, blocks=2)
    for weight in model.weights:
        weight.assign(RNG.normal(0.0, 0.2, weight.shape))
    image = RNG.uniform(-1, 1, (*size, 3)).astype("float32")
    # What each output sees: 2 pixels for the first convolution, 1 for each of
    # the next five, less than 2 for those of larger images.
    tiled = upscaling.enlarge(model, image, tile=24, overlap=9)
    whole = model.predict_on_batch(image[None])[0]
    expected = np.clip(np.rint((whole + 1) * 127.5), 0, 255)
    assert 0.1 < np.mean((expected > 0) & (expected < 255))
    assert np.abs(tiled.astype(int) - expected).max() <= 1
    with pytest.raises(ValueError, match="tile=18, overlap=9"):
        upscaling.enlarge(model, image, tile=18, overlap=9)


@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_levels(dtype):
    """Through floats and back, no level changes."""
    levels = np.arange(np.iinfo(dtype).max + 1).astype(dtype).reshape(16, -1)
    enlarged = upscaling.enlarge_levels(NEAREST, levels)
    assert enlarged.dtype == dtype
    np.testing.assert_array_equal(enlarged[::2, 1::2], levels)


def enlarged(tmp_path, image, name="x.png", **settings):
    """The name and the image of the file that an image's becomes."""
    image.save(tmp_path / name, **settings)
    paths = [str(tmp_path / name)]
    output = tmp_path / "out"
    assert upscaling.enlarge_files(NEAREST, paths, str(output)) == []
    (file,) = output.iterdir()
    with Image.open(file) as found:
        found.load()
    return file.name, found


@pytest.mark.parametrize(
    ("mode", "expected", "bands"),
    [
        ("RGB", "RGB", 3),
        ("L", "L", 1),
        ("RGBA", "RGBA", 4),
        ("LA", "LA", 2),
        ("I;16", "I;16", 1),
        ("P", "RGB", 3),
        ("1", "L", 1),
        ("CMYK", "RGB", 3),
    ],
)
def test_modes(tmp_path, mode, expected, bands):
    array = noise(5, 7, bands).squeeze()
    if mode == "I;16":
        array = array.astype("uint16") * 257 + 3
    image = Image.fromarray(array).convert(mode)
    name = "x.tif" if mode == "CMYK" else "x.png"
    array = np.asarray(image.convert(expected))
    how = {"icc_profile": b"colours"}
    found_name, image = enlarged(tmp_path, image, name, **how)
    assert (found_name, image.mode, image.size) == (name, expected, (14, 10))
    # A profile is that of the colours it was made for.
    kept = mode in ("RGB", "L", "RGBA", "LA")
    assert image.info.get("icc_profile") == (b"colours" if kept else None)
    found = np.asarray(image)
    if mode in ("RGBA", "LA"):
        # Transparency is interpolated, colours are not.
        assert found[..., -1].std() > 10.0
        found, array = found[..., :-1], array[..., :-1]
    np.testing.assert_array_equal(found[::2, ::2], array)


def test_a_transparent_level_and_orientation(tmp_path):
    image = Image.fromarray(np.uint8([[7, 9], [9, 9]]))
    exif = Image.Exif()
    exif[0x0112] = 6  # To be turned clockwise.
    _, found = enlarged(tmp_path, image, exif=exif, transparency=7)
    assert found.mode == "LA" and 0x0112 not in found.getexif()
    levels, alpha = np.moveaxis(np.asarray(found), 2, 0)
    assert alpha[0, -1] < 128 < alpha[-1, 0]
    np.testing.assert_array_equal(levels[::2, ::2], [[9, 7], [9, 9]])


@pytest.mark.parametrize(
    ("name", "expected"),
    [("x.jpg", "x.jpg"), ("x.WEBP", "x.WEBP"), ("x.gif", "x.png")],
)
def test_names(tmp_path, name, expected):
    image = Image.new("RGB", (6, 4), (200, 100, 50))
    found, image = enlarged(tmp_path, image, name)
    assert (found, image.size) == (expected, (12, 8))
    colour = np.asarray(image.convert("RGB")).mean(axis=(0, 1))
    np.testing.assert_allclose(colour, (200, 100, 50), atol=4)


def test_a_folder_with_broken_files(tmp_path, capsys):
    folder, output = tmp_path / "in", tmp_path / "out"
    for name in ("a.png", "b.png", "sub/a.png"):
        save(folder / name, noise(4, 4))
    content = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(content[: len(content) // 2])
    levels = noise(4, 4, 1).astype("uint16")
    save(folder / "c.png", levels, transparency=7)
    failures = upscaling.enlarge_files(NEAREST, [str(folder)], str(output))
    broken, transparent = failures
    assert "b.png" in broken and "16 bits have a transparent" in transparent
    assert written(output) == ["a.png", os.path.join("sub", "a.png")]
    printed = capsys.readouterr().out
    assert "[1/4]" in printed and "[4/4]" in printed
    assert "4 x 4 -> 8 x 8" in printed and "2 left out:" in printed


@pytest.mark.parametrize(
    ("paths", "output", "force", "message"),
    [
        ([], "new", False, "Received: none"),
        (["missing"], "new", False, "no such file.*missing"),
        (["a.png"], "out", False, "--force only.*a.png"),
        (["a.png"], ".", True, "another --output.*a.png"),
        (["many"], "new", True, "same file.*a.gif.*a.png"),
    ],
)
def test_refusals(tmp_path, monkeypatch, paths, output, force, message):
    monkeypatch.chdir(tmp_path)
    names = ["a.png", "many/a.gif", "many/a.png", "out/a.png"]
    for name in names:
        save(tmp_path / name, noise(4, 4))
    before = (tmp_path / "out" / "a.png").read_bytes()
    with pytest.raises(ValueError, match=message):
        upscaling.enlarge_files(NEAREST, paths, output, force)
    assert written(tmp_path) == names
    assert (tmp_path / "out" / "a.png").read_bytes() == before
    assert upscaling.enlarge_files(NEAREST, ["a.png"], "out", force=True) == []
    assert (tmp_path / "out" / "a.png").read_bytes() != before
