"""Scenes, and the label maps that they are read from."""

import os

import numpy as np
import pytest
import skimage
from helpers import RNG, noise, numbers, save
from PIL import Image

from experiments import label_maps, scenes


def write(folder, files):
    """Files of a dict from paths: arrays as images, bytes, or `None`: none."""
    for name, content in files.items():
        path = folder / name
        if content is None:
            path.unlink()
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            array, *palette = (
                content if isinstance(content, tuple) else [content]
            )
            save(path, array, *palette)


def fill(folder, count=2, high=5, size=(6, 8)):
    """Scenes "a", "b", ... of a folder, as their images and labels."""
    lower = max(1, high - 1)
    made = [(noise(*size), numbers(*size, lower)) for _ in range(count)]
    for name, (image, labels) in zip("abcdefghijklmnopqrstuvwxyz", made):
        labels[0, 0] = high - 1  # The only pixel of that one.
        files = {f"images/{name}.bmp": image, f"labels/{name}.png": labels}
        write(folder, files)
    return made


def load(folder, *arguments, size=(6, 8), **kwargs):
    return scenes.load(str(folder), *arguments, size=size, **kwargs)


# One number a pixel.


LABELS = numbers(3, 4)
ALPHA = noise(3, 4, 1)


@pytest.mark.parametrize(
    ("name", "array", "palette"),
    [
        ("0.png", LABELS, None),
        ("0.png", LABELS, noise(1, 5)),
        ("0.png", LABELS > 2, None),
        ("0.png", LABELS * np.uint16(1000), None),
        ("0.tif", LABELS * np.uint16(1000), None),
        ("0.pgm", LABELS * np.uint16(1000), None),
        ("0.tif", LABELS.astype("int32") - 2, None),
        ("0.png", np.dstack([LABELS, ALPHA]), None),
        ("0.png", np.dstack([LABELS] * 3), None),
        ("0.png", np.dstack([LABELS] * 3 + [ALPHA]), None),
    ],
)
def test_numbers(name, array, palette, tmp_path):
    save(tmp_path / name, array, palette)
    found, found_palette = label_maps.read_numbers(tmp_path / name, "class")
    expected = array if array.ndim == 2 else array[..., 0]
    assert found.dtype == "int32"
    np.testing.assert_array_equal(found, expected)
    if palette is None:
        assert found_palette is None
    else:
        np.testing.assert_array_equal(found_palette[:5], palette[0])


def test_numbers_are_read_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # Turn by 90 degrees clockwise to see it upright.
    save(tmp_path / "0.png", LABELS, exif=exif)
    found, _ = label_maps.read_numbers(tmp_path / "0.png", "class")
    np.testing.assert_array_equal(found, np.rot90(LABELS, -1))


@pytest.mark.parametrize(
    ("name", "array", "kind", "message"),
    [
        ("0.png", np.uint8([[[2, 2, 3]]]), None, "colours.* number FOLDER"),
        ("0.png", np.uint8([[[3, 2, 2, 2]]]), None, "number of its class"),
        ("0.jpg", LABELS, None, "JPEG"),
        ("in_truth_a_jpeg.png", LABELS, "JPEG", "JPEG"),
        ("0.tif", np.float32([[0.0, 1.0]]), None, "fractions"),
    ],
)
def test_no_numbers(name, array, kind, message, tmp_path):
    path = tmp_path / name
    save(path, array, format=kind)
    with pytest.raises(ValueError, match=f"{message}.*Received: .*{path}"):
        label_maps.read_numbers(path, "class")


VOID = label_maps.VOID


@pytest.mark.parametrize(
    ("found", "num_classes", "void", "expected"),
    [
        ([0, 7, 255], None, None, [0, 7, 255]),
        ([0, 7], 8, None, [0, 7]),
        ([0, 7], 7, None, "classes, 7. .*--classes.*--void.* label 7 in 'a'"),
        ([0, 256], None, None, "classes, 256.* label 256 in"),
        ([-1, 2], None, None, "label -1 in"),
        # Pixels without a class; what stands for them may be no class.
        ([0, 9, 2], 3, 9, [0, VOID, 2]),
        ([9, 9], 3, 9, [VOID, VOID]),
        ([0, 255, 9], 256, 9, "label 255 in"),
    ],
)
def test_labels(found, num_classes, void, expected):
    arguments = np.array([found]), num_classes, void, "a"
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=expected):
            label_maps.check(*arguments)
    else:
        labels = label_maps.check(*arguments)
        assert labels.dtype == "uint8" and labels.tolist() == [expected]


def test_instance_edges():
    ids = RNG.integers(3, size=(2, 5, 7), dtype="uint8")
    edges = label_maps.instance_edges(ids)
    for n, y, x in np.ndindex(*ids.shape):
        around = [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
        assert edges[n, y, x] == any(
            ids[n, v, u] != ids[n, y, x]
            for v, u in around
            if 0 <= v < 5 and 0 <= u < 7
        )


class TestNumberColours:
    # As sorted tuples; by channels backwards they would be in another order.
    COLOURS = np.uint8([[0, 9, 200], [0, 10, 3], [7, 0, 0], [7, 7, 7]])

    def test_files(self, tmp_path):
        expected = {
            "a.png": numbers(4, 5, 3),
            "sub/b.png": numbers(3, 3, 2) + np.uint8(2),
            "c.png": np.uint8([[2, 1]]),
            "d.png": np.uint8([[3]]),
        }
        colours = self.COLOURS
        sources = {
            "a.png": colours[expected["a.png"]],
            "sub/b.tif": colours[expected["sub/b.png"]],
            "c.png": (np.uint8([[1, 0]]), colours[1:3]),
            "d.png": np.uint8([[7]]),
        }
        write(tmp_path / "in", sources)
        output = tmp_path / "new" / "out"
        found = label_maps.number_colours(tmp_path / "in", output)
        np.testing.assert_array_equal(found, colours)
        assert len([*output.rglob("*.*")]) == 4
        for name, labels in expected.items():
            read, palette = label_maps.read_numbers(output / name, "class")
            np.testing.assert_array_equal(read, labels)
            np.testing.assert_array_equal(palette[:4], colours)

    def test_256_colours(self, tmp_path):
        ramp = np.zeros((1, 257, 3), "uint8")
        ramp[0, :, 1] = np.minimum(np.arange(257), 255)
        ramp[0, 256, 0] = 1
        output = tmp_path / "out"
        # Neither file has too many, but both together have.
        files = {"in/a.png": ramp[:, :200], "in/b.png": ramp[:, 100:]}
        write(tmp_path, files)
        message = f"256 colours.*JPEG.*'{tmp_path}/in'.*b.png"
        with pytest.raises(ValueError, match=message):
            label_maps.number_colours(tmp_path / "in", output)
        assert not output.exists()
        write(tmp_path, {"in/b.png": ramp[:, 100:256]})
        assert len(label_maps.number_colours(tmp_path / "in", output)) == 256
        read, _ = label_maps.read_numbers(output / "b.png", "class")
        np.testing.assert_array_equal(read[0], np.arange(100, 256))

    @pytest.mark.parametrize(
        ("name", "array", "message"),
        [
            ("b.png", LABELS, "not written over.*out/b.png"),
            ("b.jpg", LABELS, "JPEG.*b.jpg"),
            ("b.tif", LABELS.astype("uint16"), "has numbers.*b.tif.* of mode"),
        ],
    )
    def test_errors(self, name, array, message, tmp_path):
        kept = tmp_path / "out" / "b.png"
        kept.parent.mkdir()
        if name == "b.png":
            kept.write_bytes(b"mine")
        write(tmp_path / "in", {"a.png": LABELS, name: array})
        before = [x.read_bytes() for x in kept.parent.iterdir()]
        with pytest.raises(ValueError, match=message):
            label_maps.number_colours(tmp_path / "in", kept.parent)
        assert [x.read_bytes() for x in kept.parent.iterdir()] == before


# Scenes.


class TestPhotographs:
    def test_default(self):
        train, held_out = scenes.load(), scenes.load(split="validation")
        assert (len(train), len(held_out)) == (110, 15)
        for part in (train, held_out):
            assert part.edges is None
            assert part.images.dtype == part.labels.dtype == "uint8"
            assert part.images.shape == (len(part), 96, 96, 3)
            assert part.labels.shape == (len(part), 96, 96)
            assert part.num_classes == part.map_channels == 12
            # Regions, not speckles, of colours like those of the photographs.
            across = part.labels[..., 1:] != part.labels[..., :-1]
            assert 0.01 < across.mean() < 0.05
            errors = part.palette[part.labels].astype(float) - part.images
            assert np.abs(errors).mean() < 25
        np.testing.assert_array_equal(train.palette, held_out.palette)
        assert {*np.unique(train.labels)} == {*range(12)}

    def test_splits_do_not_overlap(self):
        """The left and the right part of a photograph, cut into windows."""
        path = os.path.join(skimage.data_dir, "astronaut.png")
        whole = Image.open(path).resize((144, 144), Image.Resampling.BICUBIC)
        whole = np.asarray(whole)
        for split, rows, columns in (
            ("train", range(0, 129, 8), range(0, 49, 24)),
            ("validation", range(0, 129, 16), (96,)),
        ):
            windows = scenes.load(split=split, size=(16, 48)).images
            places = [(y, x) for y in rows for x in columns]
            expected = [whole[y : y + 16, x : x + 48] for y, x in places]
            found = {window.tobytes() for window in windows}
            assert {window.tobytes() for window in expected} <= found
            # In turns, one of each photograph.
            np.testing.assert_array_equal(windows[[0, 5]], expected[:2])

    @pytest.mark.parametrize("num_classes", [4, 256])
    def test_classes_are_those_of_any_size(self, num_classes):
        loaded = [
            scenes.load(size=(n, n), num_classes=num_classes)
            for n in (8, 16, 16)
        ]
        for part in loaded:
            assert part.map_channels == len(part.palette) == num_classes
            np.testing.assert_array_equal(part.palette, loaded[0].palette)
        # The same each time.
        np.testing.assert_array_equal(loaded[1].labels, loaded[2].labels)


IDS = dict.fromkeys(["a.png", "b.png", "c.png"], LABELS)
FULL = np.full((6, 8), 2, "uint8")
ONE, OTHER = ([[0, 0, 0], [255, 0, 0], x] for x in ([0, 255, 0], [9, 9, 9]))


class TestFolder:
    @pytest.mark.parametrize("name", ["val", "validation"])
    def test_splits(self, name, tmp_path):
        made = {
            "train": fill(tmp_path / "train", 2),
            "validation": fill(tmp_path / name, 1, high=2),
        }
        for split, num_classes in (("train", 5), ("validation", 2)):
            loaded = load(tmp_path, split)
            images, labels = zip(*made[split])
            np.testing.assert_array_equal(loaded.images, images)
            np.testing.assert_array_equal(loaded.labels, labels)
            assert loaded.num_classes == num_classes
            assert loaded.edges is None
        assert load(tmp_path, "validation", num_classes=7).map_channels == 7

    @pytest.mark.parametrize("count, held_out", [(2, 1), (19, 1), (20, 2)])
    def test_the_last_tenth(self, count, held_out, tmp_path):
        made = np.array([image for image, _ in fill(tmp_path, count)])
        train, validation = load(tmp_path), load(tmp_path, "validation")
        np.testing.assert_array_equal(train.images, made[:-held_out])
        np.testing.assert_array_equal(validation.images, made[-held_out:])

    def test_sub_folders_and_grey_photographs(self, tmp_path):
        ((image, _),) = fill(tmp_path, 1)
        grey = save(tmp_path / "images" / "city" / "0.png", numbers(6, 8, 256))
        save(tmp_path / "labels" / "city" / "0.png", numbers(6, 8))
        train, held_out = load(tmp_path), load(tmp_path, "validation")
        np.testing.assert_array_equal(train.images, [image])
        np.testing.assert_array_equal(held_out.images, [np.dstack([grey] * 3)])

    @pytest.mark.parametrize("size", [(8, 12), (45, 70)])
    def test_resizing(self, size, tmp_path):
        """Images are smooth, and labels the nearest, of all classes."""
        (image, labels), _ = fill(tmp_path, size=(35, 50), high=200)
        loaded = load(tmp_path, size=size)
        image = Image.fromarray(image).resize(size[::-1], Image.BICUBIC)
        np.testing.assert_array_equal(loaded.images[0], image)
        for y, x in np.ndindex(*size):
            nearest = (
                int((y + 0.5) * 35 / size[0]),
                int((x + 0.5) * 50 / size[1]),
            )
            assert loaded.labels[0, y, x] == labels[nearest]
        # The largest label is one that a smaller size does not show.
        assert loaded.num_classes == 200

    def test_void(self, tmp_path):
        """Pixels without a class get one of their own, the last one."""
        labels = [np.uint8([[0, 255], [1, 1]]), np.uint8([[2, 0], [0, 0]])]
        for i, array in enumerate([*labels, labels[0]]):
            files = {f"labels/{i}.png": array, f"images/{i}.png": noise(2, 2)}
            write(tmp_path, files)
        loaded = load(tmp_path, size=(2, 2), void=255)
        assert loaded.num_classes == 4
        np.testing.assert_array_equal(
            loaded.labels, [[[0, 3], [1, 1]], [[2, 0], [0, 0]]]
        )
        held_out = load(
            tmp_path, "validation", size=(2, 2), num_classes=3, void=255
        )
        np.testing.assert_array_equal(held_out.labels, loaded.labels[:1])
        # Where that is said, 255 is a class.
        loaded = load(tmp_path, size=(2, 2), num_classes=256)
        assert loaded.labels.max() == 255

    def test_instances(self, tmp_path):
        fill(tmp_path, size=(12, 16))
        # What 8 bits would take for equal.
        ids = RNG.integers(3, size=(2, 12, 16), dtype="uint16") * 256
        files = {f"instances/{x}.png": y for x, y in zip("ab", ids)}
        write(tmp_path, files)
        for step in (1, 2):
            # Edges are one pixel wide at the size that is asked for.
            loaded = load(tmp_path, size=(12 // step, 16 // step))
            seen = ids[:1, step - 1 :: step, step - 1 :: step]
            edges = label_maps.instance_edges(seen)
            np.testing.assert_array_equal(loaded.edges, edges)
            assert loaded.map_channels == loaded.num_classes + 1
            np.testing.assert_array_equal(loaded.maps()[..., -1], edges)

    def test_palette(self, tmp_path):
        fill(tmp_path, 4)
        made = load(tmp_path, num_classes=20).palette
        differences = np.abs(made[:, None].astype(int) - made).max(-1)
        assert differences[~np.eye(20, dtype=bool)].min() > 25
        every = load(tmp_path, num_classes=256).palette
        assert len({*map(tuple, every)}) == 256
        colours = [[9, 8, 7], [1, 2, 3], [255, 0, 4]]
        # Where a number is not used its colour may be another one.
        write(tmp_path, {"labels/b.png": (numbers(6, 8, 3), colours)})
        other = (numbers(6, 8, 2), [*colours[:2], [5, 5, 5]])
        write(tmp_path, {"labels/c.png": other})
        palette = load(tmp_path).palette
        assert palette.tolist() == [*colours, *made[3:5].tolist()]

    @pytest.mark.parametrize(
        ("kind", "changes", "message"),
        [
            ("labels", {"a.png": noise(6, 8)}, "its class.*labels/a.png"),
            ("labels", {"a.png": b"no"}, "cannot be read.*labels/a.png"),
            ("images", {"a.bmp": b"no"}, "cannot be read.*images/a.bmp"),
            ("labels", {"a.png": LABELS}, "a.png' with .* 8 x 6, labels 4 x 3"),
            ("instances", IDS, "same size.*labels 8 x 6, instances 4 x 3"),
            ("instances", IDS | {"a.png": noise(6, 8)}, "instance.*ces/a.png"),
            ("instances", {"a.png": LABELS}, "'b', which is not in .*instance"),
            ("labels", {"c.png": None}, "'c', which is not in .*labels"),
            ("images", {"c.bmp": None}, "'c', which is not in .*images"),
            ("labels", {"a.bmp": LABELS}, "same name.*a.bmp.*a.png"),
            (
                "labels",
                {"a.png": FULL + np.uint8(253)},
                "--void 255.* 0 to 255",
            ),
            (
                "labels",
                {"a.png": (FULL, ONE), "b.png": (FULL, OTHER)},
                r"number FOLDER.* 2 as \(0, 255, 0\) in '.*a.png' and "
                r"\(9, 9, 9\) in '.*b.png'",
            ),
        ],
    )
    def test_bad_files(self, kind, changes, message, tmp_path):
        fill(tmp_path, 3)
        write(tmp_path / kind, changes)
        with pytest.raises(ValueError, match=message):
            load(tmp_path)

    @pytest.mark.parametrize(
        ("num_classes", "message"),
        [
            (1, "from 2 to 256 .*--classes 1"),
            (257, "from 2 to 256 .*--classes 257"),
            (3, "classes, 3.*--void.*label 4 in .*a.png"),
        ],
    )
    def test_number_of_classes(self, num_classes, message, tmp_path):
        fill(tmp_path)
        with pytest.raises(ValueError, match=message):
            load(tmp_path, num_classes=num_classes)

    def test_too_little(self, tmp_path):
        message = "sub-folders `images` and `labels`.* no {} split in '.*{}'"
        message = message.format("validation", tmp_path.name)
        with pytest.raises(ValueError, match=message):
            load(tmp_path, "validation")
        fill(tmp_path / "train", 1)
        assert len(load(tmp_path)) == 1
        with pytest.raises(ValueError, match=message):
            load(tmp_path, "validation")
        with pytest.raises(ValueError, match="at least two.*with one"):
            load(tmp_path / "train")
        with pytest.raises(
            ValueError, match="--void 3 with --data photographs"
        ):
            scenes.load(void=3)


MADE = [(noise(6, 8), numbers(6, 8)[..., None]) for _ in range(3)]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A folder in which tensorflow-datasets has prepared datasets."""
    tfds = pytest.importorskip("tensorflow_datasets")
    data_dir = tmp_path_factory.mktemp("tfds")

    def store(name, config=None, channels=1, size=(None, None), **splits):
        image = tfds.features.Image
        features = {
            "image_left": image(shape=(*size, 3)),
            "segmentation_label": image(shape=(*size, channels)),
            "image_id": tfds.features.Text(),
        }
        tfds.dataset_builders.store_as_tfds_dataset(
            name=name,
            config=config,
            version="1.0.0",
            features=tfds.features.FeaturesDict(features),
            split_datasets={
                split: [(i, dict(zip(features, (*x, "")))) for i, x in made]
                for split, made in splits.items()
            },
            data_dir=data_dir,
            disable_shuffling=True,
        )

    first, second, third = enumerate(MADE)
    odd = 0, (noise(6, 7), MADE[0][1])
    store("tiny", train=[first, second], validation=[third], odd=[odd])
    store("coloured", channels=3, train=[(0, MADE[0][:1] * 2)])
    # As tensorflow-datasets' own builder of that name describes it.
    size = 1024, 2048
    labels = np.repeat(np.uint8([0, 7, 33, 40, 255, 26, 1, 2]), 2**18)
    city = np.zeros((*size, 3), "uint8"), labels.reshape(*size, 1)
    store("cityscapes", "semantic_segmentation", 1, size, train=[(0, city)])
    return str(data_dir)


class TestTensorflowDatasets:
    def test_splits(self, data_dir):
        for split, part in (
            ("train", MADE[:2]),
            ("validation", MADE[2:]),
        ):
            loaded = load("tiny", split, num_classes=9, data_dir=data_dir)
            images, labels = map(np.array, zip(*part))
            np.testing.assert_array_equal(loaded.images, images)
            np.testing.assert_array_equal(loaded.labels, labels[..., 0])
            assert loaded.num_classes == 9 and loaded.edges is None
        assert load("tiny", data_dir=data_dir).num_classes == 5

    def test_cityscapes(self, data_dir):
        loaded = load("cityscapes", size=(8, 1), data_dir=data_dir)
        expected = [0, 7, 33, 34, 34, 26, 1, 2]
        assert loaded.labels[0, :, 0].tolist() == expected
        assert loaded.num_classes == loaded.map_channels == 35

    @pytest.mark.parametrize(
        ("name", "arguments", "message"),
        [
            ("nothing", {}, '"photographs".*"cityscapes".*\'nothing\''),
            ("coloured", {}, "`image_left`.*'coloured' with"),
            ("tiny", {"void": 255}, "--void 255 with --data tiny"),
            ("tiny", {"num_classes": 4}, "label 4 in .* of 'train' of 'tiny'"),
            ("cityscapes", {"num_classes": 34}, "classes, 34.* label 34 in"),
            (
                "tiny",
                {"split": "odd"},
                "scene 0 of 'odd' of 'tiny'\" with image 7 x 6, labels 8 x 6",
            ),
        ],
    )
    def test_errors(self, name, arguments, message, data_dir):
        with pytest.raises(ValueError, match=message):
            load(name, data_dir=data_dir, **arguments)


def test_batches():
    """Maps, their edges and images are mirrored together."""
    labels = np.zeros((5, 2, 4), "uint8")
    # The first pixel of a row tells which scene, the last one a side.
    labels[:, :, 0] = np.arange(5)[:, None]
    labels[:, :, -1] = 5
    images = np.repeat(labels[..., None], 3, -1)
    edges = (labels == 5).astype("uint8")
    made = scenes.Scenes(images, labels, edges, 6, None)
    maps, drawn = scenes.make_batches(made, 60)[0]
    assert maps.dtype == "uint8" and maps.shape == (60, 2, 4, 7)
    assert drawn.dtype == "float32" and drawn.shape == (60, 2, 4, 3)
    np.testing.assert_array_equal(maps[..., :6].sum(-1), 1)
    np.testing.assert_array_equal(maps[..., 5], maps[..., 6])
    found = maps[..., :6].argmax(-1)
    np.testing.assert_array_equal(found, np.rint((drawn[..., 0] + 1) * 127.5))
    mirrored = found[:, 0, 0] == 5
    sides = np.where(mirrored, found[:, 0, -1], found[:, 0, 0])
    assert 15 < mirrored.sum() < 45 and {*sides} == {*range(5)}
