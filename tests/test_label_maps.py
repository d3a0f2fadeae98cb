import numpy as np
import pytest
from helpers import RNG, noise, numbers, save
from PIL import Image

from experiments import label_maps, scenes


def read_labels(path, num_classes=None):
    return label_maps.read(path, num_classes)[0]


def refused(path):
    """The message for a label map."""
    with pytest.raises(ValueError) as error:
        read_labels(path)
    assert f"Received: {str(path)!r}" in str(error.value)
    return str(error.value)


class TestInstanceEdges:
    @pytest.mark.parametrize("dtype", ["uint8", "uint16", "int32"])
    def test_by_a_loop(self, dtype):
        ids = RNG.integers(3, size=(2, 5, 7)).astype(dtype)
        edges = label_maps.instance_edges(ids)
        assert edges.dtype == "uint8"
        for n, y, x in np.ndindex(*ids.shape):
            around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            expected = any(
                ids[n, v, u] != ids[n, y, x]
                for v, u in around
                if 0 <= v < 5 and 0 <= u < 7
            )
            assert edges[n, y, x] == expected

    def test_one_thing(self):
        assert not label_maps.instance_edges(np.full((1, 3), 7)).any()


class TestReadLabels:
    def test_greyscale(self, tmp_path):
        labels = save(tmp_path / "0.png", numbers(3, 4, 256))
        read = read_labels(tmp_path / "0.png")
        assert read.dtype == "uint8"
        np.testing.assert_array_equal(read, labels)

    def test_a_palette_is_not_looked_at(self, tmp_path):
        labels = numbers(3, 4, 3)
        for colours in ([[5, 6, 7]] * 3, [[2] * 3, [1] * 3, [0] * 3]):
            save(tmp_path / "0.png", labels, colours)
            read = read_labels(str(tmp_path / "0.png"), 3)
            np.testing.assert_array_equal(read, labels)

    def test_one_bit(self, tmp_path):
        save(tmp_path / "0.png", np.array([[True, False]]))
        read = read_labels(tmp_path / "0.png", 2)
        assert read.tolist() == [[1, 0]] and read.dtype == "uint8"

    @pytest.mark.parametrize("name", ["0.png", "0.tif", "0.pgm"])
    def test_sixteen_bits(self, name, tmp_path):
        save(tmp_path / name, np.uint16([[0, 3, 255]]))
        assert read_labels(tmp_path / name).tolist() == [[0, 3, 255]]
        save(tmp_path / name, np.uint16([[0, 256, 255]]))
        with pytest.raises(ValueError, match=f"256. Pass.* 256 in '.*{name}'"):
            read_labels(tmp_path / name)

    def test_negative(self, tmp_path):
        save(tmp_path / "0.tif", np.int32([[-1, 2]]))
        with pytest.raises(ValueError, match="the label -1 in '.*0.tif'"):
            read_labels(tmp_path / "0.tif")

    def test_num_classes(self, tmp_path):
        save(tmp_path / "0.png", np.uint8([[0, 7]]))
        assert read_labels(tmp_path / "0.png", 8).max() == 7
        with pytest.raises(ValueError, match="classes, 7.* 7 in '.*0.png'"):
            read_labels(tmp_path / "0.png", 7)

    @pytest.mark.parametrize("channels", [2, 3, 4])
    def test_equal_channels(self, channels, tmp_path):
        labels = numbers(3, 4)
        array = np.stack([labels] * channels, 2)
        if channels in (2, 4):
            array[..., -1] = numbers(3, 4, 256)
        save(tmp_path / "0.png", array)
        np.testing.assert_array_equal(read_labels(tmp_path / "0.png"), labels)

    @pytest.mark.parametrize(("channels", "channel"), [(3, 0), (3, 1), (4, 2)])
    def test_colours(self, channels, channel, tmp_path):
        array = np.full((3, 4, channels), 2, "uint8")
        array[1, 2, channel] += 1
        save(tmp_path / "0.png", array)
        message = refused(tmp_path / "0.png")
        assert "colours where each pixel should hold the number" in message
        assert (
            "python -m experiments.image_translation number FOLDER" in message
        )

    @pytest.mark.parametrize("name", ["0.jpg", "in_truth_a_jpeg.png"])
    def test_jpeg(self, name, tmp_path):
        save(tmp_path / name, numbers(8, 8), format="JPEG")
        assert "JPEG" in refused(tmp_path / name)

    def test_fractions(self, tmp_path):
        save(tmp_path / "0.tif", np.float32([[0.0, 1.0]]))
        assert "fractions" in refused(tmp_path / "0.tif")

    def test_upright(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6  # Turn by 90 degrees clockwise to see it upright.
        labels = save(tmp_path / "0.png", numbers(3, 4), exif=exif)
        np.testing.assert_array_equal(
            read_labels(tmp_path / "0.png"), np.rot90(labels, -1)
        )

    def test_no_image(self, tmp_path):
        (tmp_path / "0.png").write_bytes(b"nothing")
        with pytest.raises(ValueError, match="cannot be read.*0.png"):
            read_labels(tmp_path / "0.png")


class TestNumberColours:
    # As sorted tuples; by channels backwards they would be in another order.
    COLOURS = np.uint8([[0, 9, 200], [0, 10, 3], [7, 0, 0], [7, 0, 1]])

    def made(self, folder):
        """Label maps of colours, none of which has all of them."""
        labels = [numbers(4, 5, 3), numbers(3, 3, 2) + np.uint8(2)]
        for name, array in zip(("a.png", "sub/b.tif"), labels):
            save(folder / name, self.COLOURS[array])
        return labels

    def test_numbers(self, tmp_path):
        labels = self.made(tmp_path / "in")
        output = tmp_path / "new" / "out"
        colours = label_maps.number_colours(tmp_path / "in", output)
        assert colours.dtype == "uint8"
        np.testing.assert_array_equal(colours, self.COLOURS)
        for name, array in zip(("a.png", "sub/b.png"), labels):
            np.testing.assert_array_equal(read_labels(output / name), array)
            with Image.open(output / name) as image:
                assert image.mode == "P"
                np.testing.assert_array_equal(
                    image.convert("RGB"), self.COLOURS[array]
                )
        assert len([*output.rglob("*.*")]) == 2

    def test_load_takes_them(self, tmp_path):
        self.made(tmp_path / "in")
        label_maps.number_colours(tmp_path / "in", str(tmp_path / "labels"))
        save(tmp_path / "images" / "a.png", noise(4, 5))
        save(tmp_path / "images" / "sub" / "b.png", noise(3, 3))
        loaded = scenes.load(tmp_path, num_classes=4)
        np.testing.assert_array_equal(loaded.palette, self.COLOURS)

    def test_other_modes(self, tmp_path):
        save(tmp_path / "a.png", np.uint8([[1, 0]]), [[5] * 3, [9] * 3])
        save(tmp_path / "b.png", np.uint8([[7, 5]]))
        save(tmp_path / "c.png", np.uint8([[[8, 8, 8, 0]]]))
        colours = label_maps.number_colours(str(tmp_path), tmp_path / "out")
        assert colours.tolist() == [[5] * 3, [7] * 3, [8] * 3, [9] * 3]
        for name, expected in (("a", [[3, 0]]), ("b", [[1, 0]]), ("c", [[2]])):
            read = read_labels(tmp_path / "out" / f"{name}.png")
            assert read.tolist() == expected

    def test_256_colours(self, tmp_path):
        ramp = np.zeros((2, 128, 3), "uint8")
        ramp[..., 1] = np.arange(256).reshape(2, 128)
        save(tmp_path / "a.png", ramp[:1])
        save(tmp_path / "b.png", ramp[1:])
        assert len(label_maps.number_colours(tmp_path, tmp_path / "out")) == 256
        read = read_labels(tmp_path / "out" / "b.png")
        np.testing.assert_array_equal(read[0], np.arange(128, 256))

    def test_too_many_colours(self, tmp_path):
        ramp = np.zeros((1, 257, 3), "uint8")
        ramp[0, :, 0] = np.arange(257) // 2
        ramp[0, :, 2] = np.arange(257) % 2
        # Neither of them has too many.
        save(tmp_path / "a.png", ramp[:, :200])
        save(tmp_path / "b.png", ramp[:, 100:])
        message = f"256 colours.*blurred.*JPEG.*'{tmp_path}'.*b.png"
        with pytest.raises(ValueError, match=message):
            label_maps.number_colours(tmp_path, tmp_path / "out")
        save(tmp_path / "a.png", ramp)
        with pytest.raises(ValueError, match="256 colours.*a.png"):
            label_maps.number_colours(tmp_path, tmp_path / "out")
        assert not (tmp_path / "out").exists()

    def test_nothing_is_written_over(self, tmp_path):
        self.made(tmp_path / "in")
        kept = tmp_path / "out" / "sub" / "b.png"
        kept.parent.mkdir(parents=True)
        kept.write_bytes(b"mine")
        with pytest.raises(ValueError, match=f"not written over.*'{kept}'"):
            label_maps.number_colours(tmp_path / "in", tmp_path / "out")
        assert kept.read_bytes() == b"mine"
        assert not (tmp_path / "out" / "a.png").exists()

    def test_jpeg(self, tmp_path):
        save(tmp_path / "a.jpg", np.zeros((8, 8, 3), "uint8"))
        with pytest.raises(ValueError, match="JPEG.*a.jpg"):
            label_maps.number_colours(tmp_path, tmp_path / "out")

    @pytest.mark.parametrize("dtype", ["uint16", "float32"])
    def test_no_colours(self, dtype, tmp_path):
        save(tmp_path / "a.tif", np.zeros((4, 4), dtype))
        with pytest.raises(ValueError, match="has numbers.*a.tif.* of mode"):
            label_maps.number_colours(tmp_path, tmp_path / "out")

    def test_no_files(self, tmp_path):
        with pytest.raises(ValueError, match="no images"):
            label_maps.number_colours(tmp_path, tmp_path / "out")


class TestVoid:
    """Pixels without a class get one of their own, the last one."""

    def test_labels(self, tmp_path):
        path = tmp_path / "0.png"
        save(path, np.uint8([[0, 9, 2], [9, 1, 0]]))
        found, _ = label_maps.read(path, 3, void=9)
        void = label_maps.VOID
        np.testing.assert_array_equal(found, [[0, void, 2], [void, 1, 0]])
        with pytest.raises(ValueError, match="3. .*--void.*label 9 in .*0.png"):
            label_maps.read(path, 3)
        # Nor may what stands for them be a class.
        save(path, np.uint8([[0, 255, 9]]))
        with pytest.raises(ValueError, match="the label 255"):
            label_maps.read(path, 256, void=9)

    def test_nothing_else(self, tmp_path):
        save(tmp_path / "0.png", np.full((2, 2), 255, "uint8"))
        found, _ = label_maps.read(tmp_path / "0.png", 3, void=255)
        assert np.all(found == label_maps.VOID)

    def test_scenes(self, tmp_path):
        labels = [np.uint8([[0, 255], [1, 1]]), np.uint8([[2, 0], [0, 0]])]
        for split in ("train", "val"):
            for i, array in enumerate(labels):
                save(tmp_path / split / "labels" / f"{i}.png", array)
                save(tmp_path / split / "images" / f"{i}.png", noise(2, 2))
        loaded = scenes.load(tmp_path, size=(2, 2), void=255)
        assert loaded.num_classes == 4
        np.testing.assert_array_equal(
            loaded.labels, [[[0, 3], [1, 1]], [[2, 0], [0, 0]]]
        )
        again = scenes.load(
            tmp_path, "validation", (2, 2), num_classes=3, void=255
        )
        np.testing.assert_array_equal(again.labels, loaded.labels)
        assert again.num_classes == 4
        with pytest.raises(ValueError, match="void=3 with name='photographs'"):
            scenes.load(void=3)
        # Where that is said, 255 is a class.
        loaded = scenes.load(tmp_path, size=(2, 2), num_classes=256)
        assert loaded.labels.max() == 255


class TestReadMaps:
    LABELS = np.uint8([[0, 0, 1, 1], [0, 0, 1, 1], [2, 2, 9, 9], [2, 2, 9, 9]])

    def test_one_hot(self, tmp_path):
        path = str(tmp_path / "a.png")
        save(tmp_path / "a.png", self.LABELS)
        maps = label_maps.read_maps(path, (4, 8), 4, void=9)
        assert maps.shape == (4, 8, 4) and maps.dtype == "uint8"
        expected = np.where(self.LABELS == 9, 3, self.LABELS).repeat(2, axis=1)
        np.testing.assert_array_equal(maps.argmax(axis=-1), expected)
        np.testing.assert_array_equal(maps.sum(axis=-1), 1)
        maps = label_maps.read_maps(path, (2, 2), 10)
        np.testing.assert_array_equal(maps.argmax(axis=-1), [[0, 1], [2, 9]])

    def test_instances(self, tmp_path):
        path = str(tmp_path / "labels" / "a.png")
        save(tmp_path / "labels" / "a.png", np.minimum(self.LABELS, 3))
        ids = np.zeros((4, 4), "uint16")
        ids[:, 3] = 700
        save(tmp_path / "ids" / "a.png", ids)
        maps = label_maps.read_maps(
            path, (4, 4), 4, instances=str(tmp_path / "ids")
        )
        assert maps.shape == (4, 4, 5)
        np.testing.assert_array_equal(maps[..., 4], [[0, 0, 1, 1]] * 4)
        with pytest.raises(ValueError, match="a.png' with 4 x 4.* 4 x 3"):
            save(tmp_path / "ids" / "a.png", ids[:3])
            label_maps.read_maps(
                path, (4, 4), 4, instances=str(tmp_path / "ids")
            )
        save(tmp_path / "labels" / "b.png", self.LABELS)
        with pytest.raises(ValueError, match="b.png', without 'b' in .*ids'"):
            label_maps.read_maps(
                str(tmp_path / "labels" / "b.png"),
                (4, 4),
                10,
                instances=str(tmp_path / "ids"),
            )
