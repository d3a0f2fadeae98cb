import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import skimage
from helpers import RNG, noise, numbers, save
from PIL import Image

from experiments import label_maps, scenes


def fill(folder, count=3, high=5, size=(6, 8)):
    """Scenes "a", "b", ... of a folder, as their images and labels."""
    names = "abcdefghijklmnopqrstuvwxyz"[:count]
    return [
        (
            save(folder / "images" / f"{name}.bmp", noise(*size)),
            save(folder / "labels" / f"{name}.png", numbers(*size, high)),
        )
        for name in names
    ]


def same(a, b):
    for x, y in ((a.images, b.images), (a.labels, b.labels)):
        np.testing.assert_array_equal(x, y)
    np.testing.assert_array_equal(a.palette, b.palette)
    assert a.names == b.names and a.num_classes == b.num_classes
    return True


class TestScenes:
    def scenes(self, edges=None):
        return scenes.Scenes(
            "made",
            ["a", "b", "c"],
            noise(3 * 4, 5).reshape(3, 4, 5, 3),
            numbers(3 * 4, 5).reshape(3, 4, 5),
            edges,
            5,
            noise(1, 5)[0],
        )

    def test_maps(self):
        made = self.scenes()
        maps = made.maps()
        assert made.map_channels == 5 and maps.dtype == "uint8"
        assert maps.shape == (3, 4, 5, 5)
        assert np.all(maps.sum(-1) == 1)
        np.testing.assert_array_equal(maps.argmax(-1), made.labels)
        np.testing.assert_array_equal(made.maps(slice(1, 3)), maps[1:])
        np.testing.assert_array_equal(made.maps([2, 0]), maps[[2, 0]])

    def test_edges_are_the_last_channel(self):
        edges = numbers(3 * 4, 5, 2).reshape(3, 4, 5)
        made = self.scenes(edges)
        assert made.map_channels == 6
        np.testing.assert_array_equal(made.maps()[..., 5], edges)
        np.testing.assert_array_equal(
            made.maps(slice(2))[..., :5].argmax(-1), made.labels[:2]
        )
        np.testing.assert_array_equal(made[1:].edges, edges[1:])
        np.testing.assert_array_equal(made[1:].maps(), made.maps(slice(1, 3)))

    def test_all_classes(self):
        labels = np.arange(256, dtype="uint8").reshape(1, 16, 16)
        made = scenes.Scenes("", [""], None, labels, None, 256, None)
        np.testing.assert_array_equal(made.maps().argmax(-1), labels)

    def test_colours(self):
        made = self.scenes()
        colours = made.colours(slice(1, 2))
        assert colours.dtype == "uint8" and colours.shape == (1, 4, 5, 3)
        for y, x in np.ndindex(4, 5):
            np.testing.assert_array_equal(
                colours[0, y, x], made.palette[made.labels[1, y, x]]
            )

    def test_a_slice(self):
        made = self.scenes()
        part = made[1:]
        assert len(made) == 3 and len(part) == 2 and part.names == ["b", "c"]
        np.testing.assert_array_equal(part.images, made.images[1:])
        np.testing.assert_array_equal(part.labels, made.labels[1:])
        assert part.edges is None and part.num_classes == 5


class TestPhotographs:
    def test_default(self):
        train = scenes.load()
        held_out = scenes.load(split="validation")
        assert (len(train), len(held_out)) == (110, 15)
        for part in (train, held_out):
            assert part.name == "photographs" and part.edges is None
            assert part.images.dtype == part.labels.dtype == "uint8"
            assert part.images.shape == (len(part), 96, 96, 3)
            assert part.labels.shape == (len(part), 96, 96)
            assert part.num_classes == part.map_channels == 12
            assert part.palette.shape == (12, 3)
            assert len({*part.names}) == len(part)
            # Regions, not speckles.
            across = part.labels[..., 1:] != part.labels[..., :-1]
            assert 0.01 < across.mean() < 0.05
        np.testing.assert_array_equal(train.palette, held_out.palette)
        assert {*np.unique(train.labels)} == {*range(12)}
        # The first few are of several photographs.
        assert len({name.partition("_")[0] for name in train.names[:5]}) == 5

    def test_colours_are_like_the_photographs(self):
        loaded = scenes.load()
        for label in range(12):
            mean = loaded.images[loaded.labels == label].mean(axis=0)
            assert np.abs(mean - loaded.palette[label]).max() < 25
        errors = loaded.colours().astype(float) - loaded.images
        assert np.abs(errors).mean() < 25

    @pytest.mark.parametrize("size", [(16, 48)])
    def test_windows_of_the_splits_do_not_overlap(self, size):
        height, width = size
        seen = {}
        for split in ("train", "validation"):
            loaded = scenes.load(split=split, size=size)
            for name, image in zip(loaded.names, loaded.images):
                photograph, y, x = name.rsplit("_", 2)
                y, x = int(y), int(x)
                if photograph == "astronaut":
                    path = os.path.join(skimage.data_dir, "astronaut.png")
                    whole = Image.open(path).resize(
                        (3 * max(size),) * 2, Image.Resampling.BICUBIC
                    )
                    np.testing.assert_array_equal(
                        image,
                        np.asarray(whole)[y : y + height, x : x + width],
                    )
                pixels = seen.setdefault(
                    (photograph, split), np.zeros((200, 300), bool)
                )
                pixels[y : y + height, x : x + width] = True
        photographs = {photograph for photograph, _ in seen}
        assert len(photographs) == 5
        for photograph in photographs:
            train = seen[photograph, "train"]
            held_out = seen[photograph, "validation"]
            assert train.any() and held_out.any()
            assert not np.any(train & held_out)

    def test_classes_are_those_of_any_size(self):
        small = scenes.load(size=(16, 16), num_classes=4)
        large = scenes.load(size=(32, 32), num_classes=4)
        np.testing.assert_array_equal(small.palette, large.palette)
        assert small.num_classes == 4 and small.labels.max() == 3

    def test_many_classes(self):
        loaded = scenes.load(size=(8, 8), num_classes=256)
        assert loaded.palette.shape == (256, 3)
        assert loaded.map_channels == 256

    def test_the_same_each_time(self):
        assert same(scenes.load(size=(8, 8)), scenes.load(size=(8, 8)))

    def test_a_folder_of_that_name_changes_nothing(self, tmp_path, monkeypatch):
        (tmp_path / "photographs").mkdir()
        monkeypatch.chdir(tmp_path)
        assert len(scenes.load(size=(8, 8))) > 1


class TestFolder:
    def test_a_split(self, tmp_path):
        made = fill(tmp_path / "train", 2)
        fill(tmp_path / "val", 1)
        loaded = scenes.load(tmp_path, size=(6, 8))
        assert loaded.name == str(tmp_path) and loaded.names == ["a", "b"]
        for i, (image, labels) in enumerate(made):
            np.testing.assert_array_equal(loaded.images[i], image)
            np.testing.assert_array_equal(loaded.labels[i], labels)
        assert loaded.num_classes == max(x.max() for _, x in made) + 1 == 5
        assert loaded.edges is None

    @pytest.mark.parametrize("name", ["val", "validation"])
    def test_validation(self, name, tmp_path):
        fill(tmp_path / "train", 2)
        ((image, labels),) = fill(tmp_path / name, 1, high=2)
        loaded = scenes.load(tmp_path, "validation", (6, 8))
        np.testing.assert_array_equal(loaded.images[0], image)
        np.testing.assert_array_equal(loaded.labels[0], labels)
        assert loaded.num_classes == 2
        loaded = scenes.load(tmp_path, "validation", (6, 8), num_classes=7)
        assert loaded.num_classes == 7 and loaded.maps().shape[-1] == 7

    @pytest.mark.parametrize("count, held_out", [(2, 1), (19, 1), (20, 2)])
    def test_the_last_tenth(self, count, held_out, tmp_path):
        fill(tmp_path, count, size=(1, 1))
        train = scenes.load(tmp_path, size=(1, 1)).names
        validation = scenes.load(tmp_path, "validation", (1, 1)).names
        assert len(validation) == held_out
        assert train + validation == [*"abcdefghijklmnopqrst"[:count]]

    def test_sorted_by_name(self, tmp_path):
        # By their files "a-b.bmp" would come first.
        for name in ("a", "a-b", "c"):
            save(tmp_path / "images" / f"{name}.bmp", noise(2, 2))
            save(tmp_path / "labels" / f"{name}.png", numbers(2, 2))
        assert scenes.load(tmp_path).names == ["a", "a-b"]

    def test_sub_folders(self, tmp_path):
        save(tmp_path / "images" / "city" / "0.jpg", noise(4, 4))
        save(tmp_path / "labels" / "city" / "0.png", numbers(4, 4))
        fill(tmp_path, 1)
        assert scenes.load(tmp_path).names == ["a"]
        (name,) = scenes.load(tmp_path, "validation").names
        assert name == os.path.join("city", "0")

    def test_resizing(self, tmp_path):
        made = fill(tmp_path, 2, size=(35, 50))[0]
        loaded = scenes.load(tmp_path, size=(8, 12))
        image = Image.fromarray(made[0]).resize((12, 8), Image.BICUBIC)
        np.testing.assert_array_equal(loaded.images[0], image)
        for y, x in np.ndindex(8, 12):
            nearest = int((y + 0.5) * 35 / 8), int((x + 0.5) * 50 / 12)
            assert loaded.labels[0, y, x] == made[1][nearest]

    def test_resizing_makes_no_new_labels(self, tmp_path):
        for name in ("a", "b"):
            save(tmp_path / "images" / f"{name}.png", noise(30, 30))
            labels = numbers(30, 30, 2) * np.uint8(200)
            save(tmp_path / "labels" / f"{name}.png", labels)
        for size in ((7, 11), (45, 70)):
            loaded = scenes.load(tmp_path, size=size)
            assert {*np.unique(loaded.labels)} == {0, 200}
            assert loaded.num_classes == 201

    def test_the_largest_label_counts_before_resizing(self, tmp_path):
        fill(tmp_path, 2, size=(9, 9))
        labels = np.zeros((9, 9), "uint8")
        labels[0, 0] = 11
        save(tmp_path / "labels" / "a.png", labels)
        loaded = scenes.load(tmp_path, size=(1, 1))
        assert loaded.labels.max() == 0 and loaded.num_classes == 12
        with pytest.raises(ValueError, match="label 11 in .*a.png"):
            scenes.load(tmp_path, size=(1, 1), num_classes=11)

    @pytest.mark.parametrize("dtype", ["uint8", "uint16"])
    def test_instances(self, dtype, tmp_path):
        fill(tmp_path, 2, size=(12, 16))
        ids = RNG.integers(3, size=(2, 12, 16)).astype(dtype)
        if dtype == "uint16":  # What 8 bits would take for equal.
            ids *= 256
        for name, array in zip("ab", ids):
            save(tmp_path / "instances" / f"{name}.png", array)
        loaded = scenes.load(tmp_path, size=(12, 16))
        assert loaded.map_channels == loaded.num_classes + 1
        np.testing.assert_array_equal(
            loaded.edges, label_maps.instance_edges(ids[:1])
        )
        # Edges are one pixel wide at the size that is asked for.
        small = scenes.load(tmp_path, size=(6, 8))
        nearest = ids[:1, 1::2, 1::2]
        np.testing.assert_array_equal(
            small.edges, label_maps.instance_edges(nearest)
        )

    def test_grey_photographs(self, tmp_path):
        fill(tmp_path, 2)
        grey = save(tmp_path / "images" / "a.bmp", numbers(6, 8, 256))
        loaded = scenes.load(tmp_path, size=(6, 8))
        np.testing.assert_array_equal(loaded.images[0], np.dstack([grey] * 3))

    def test_palette(self, tmp_path):
        fill(tmp_path, 4)
        palette = [[9, 8, 7], [1, 2, 3], [255, 0, 4]]
        for name in "bc":
            save(tmp_path / "labels" / f"{name}.png", numbers(6, 8, 3), palette)
        loaded = scenes.load(tmp_path, size=(6, 8), num_classes=6)
        assert loaded.palette.tolist()[:3] == palette
        assert loaded.palette.shape == (6, 3)
        assert loaded.palette.dtype == "uint8"
        loaded = scenes.load(tmp_path, size=(6, 8), num_classes=5)
        assert loaded.palette.tolist()[:3] == palette

    def test_a_palette_of_more_than_the_classes(self, tmp_path):
        fill(tmp_path, 2)
        colours = noise(1, 9)[0]
        save(tmp_path / "labels" / "a.png", numbers(6, 8, 3), colours)
        loaded = scenes.load(tmp_path, num_classes=4)
        np.testing.assert_array_equal(loaded.palette, colours[:4])

    def test_default_palette(self, tmp_path):
        fill(tmp_path, 2)
        palette = scenes.load(tmp_path, num_classes=256).palette
        assert palette.shape == (256, 3) and palette.dtype == "uint8"
        assert len(np.unique(palette, axis=0)) == 256
        few = scenes.load(tmp_path, num_classes=20).palette
        np.testing.assert_array_equal(few, palette[:20])
        differences = np.abs(few[:, None].astype(int) - few).max(-1)
        assert differences[~np.eye(20, dtype=bool)].min() > 25

    def test_one_class(self, tmp_path):
        fill(tmp_path, 3, high=1)
        with pytest.raises(ValueError, match="two classes.*from 0 to 0"):
            scenes.load(tmp_path)

    def test_what_looks_like_void(self, tmp_path):
        """That one is class 255 must be said, as that it is none."""
        fill(tmp_path, 3)
        labels = numbers(6, 8)
        labels[0, :3] = 255
        save(tmp_path / "labels" / "a.png", labels)
        with pytest.raises(ValueError, match="--void 255.*from 0 to 255"):
            scenes.load(tmp_path)
        assert scenes.load(tmp_path, num_classes=256).num_classes == 256
        assert scenes.load(tmp_path, void=255).num_classes <= 6

    def test_palettes_that_differ(self, tmp_path):
        """As of files whose colours were counted one by one."""
        fill(tmp_path, 3)
        one = [[0, 0, 0], [255, 0, 0], [0, 255, 0]]
        other = [[0, 0, 0], [255, 0, 0], [9, 9, 9]]
        save(tmp_path / "labels" / "a.png", numbers(6, 8, 3), one)
        # Where the difference is not used there is none.
        save(tmp_path / "labels" / "b.png", numbers(6, 8, 2), other)
        assert scenes.load(tmp_path).num_classes == 3
        save(tmp_path / "labels" / "b.png", numbers(6, 8, 3), other)
        message = (
            r"number FOLDER.* 2 as \(0, 255, 0\) in 'a' and \(9, 9, 9\) in"
        )
        with pytest.raises(ValueError, match=message):
            scenes.load(tmp_path)

    def test_too_few_classes(self, tmp_path):
        fill(tmp_path, 2)
        with pytest.raises(ValueError, match="classes, 3.*label 4 in .*a.png"):
            scenes.load(tmp_path, num_classes=3)

    def test_sizes_that_differ(self, tmp_path):
        fill(tmp_path, 2)
        save(tmp_path / "instances" / "a.png", numbers(6, 7))
        save(tmp_path / "instances" / "b.png", numbers(6, 8))
        message = "images/a.bmp' with 8 x 6 pixels and '.*{}/a.png' with {}"
        with pytest.raises(ValueError, match=message.format("ces", "7 x 6")):
            scenes.load(tmp_path)
        save(tmp_path / "labels" / "a.png", numbers(5, 8))
        with pytest.raises(ValueError, match=message.format("els", "8 x 5")):
            scenes.load(tmp_path)

    def test_odd_names(self, tmp_path):
        fill(tmp_path, 3)
        os.remove(tmp_path / "labels" / "c.png")
        os.remove(tmp_path / "labels" / "b.png")
        with pytest.raises(ValueError, match="2 without.*'b'.*not in.*labels"):
            scenes.load(tmp_path)
        os.remove(tmp_path / "images" / "c.bmp")
        os.remove(tmp_path / "images" / "b.bmp")
        save(tmp_path / "labels" / "x.png", numbers(6, 8))
        with pytest.raises(ValueError, match="1 without.*'x'.*not in.*images"):
            scenes.load(tmp_path)
        os.remove(tmp_path / "labels" / "x.png")
        save(tmp_path / "instances" / "y.png", numbers(6, 8))
        with pytest.raises(ValueError, match="`instances`.* 2 without.*'a'"):
            scenes.load(tmp_path)

    def test_equal_names(self, tmp_path):
        fill(tmp_path, 2)
        save(tmp_path / "labels" / "a.bmp", numbers(6, 8))
        with pytest.raises(ValueError, match="same name.*a.bmp.*a.png"):
            scenes.load(tmp_path)

    def test_no_such_folders(self, tmp_path):
        message = "sub-folders `images` and `labels`.*split='{}' of '{}'"
        for split in ("train", "validation"):
            with pytest.raises(
                ValueError, match=message.format(split, tmp_path)
            ):
                scenes.load(tmp_path, split)
        fill(tmp_path / "train", 2)
        assert len(scenes.load(tmp_path)) == 2
        with pytest.raises(ValueError, match="split='validation'"):
            scenes.load(tmp_path, "validation")

    def test_one_scene(self, tmp_path):
        fill(tmp_path, 1)
        with pytest.raises(ValueError, match=f"at least two.*'{tmp_path}'"):
            scenes.load(tmp_path)

    def test_bad_files(self, tmp_path):
        fill(tmp_path, 2)
        (tmp_path / "labels" / "a.png").write_bytes(b"nothing")
        with pytest.raises(ValueError, match="cannot be read.*labels/a.png"):
            scenes.load(tmp_path)
        (tmp_path / "images" / "a.bmp").write_bytes(b"nothing")
        with pytest.raises(ValueError, match="cannot be read.*images/a.bmp"):
            scenes.load(tmp_path)

    def test_colours(self, tmp_path):
        fill(tmp_path, 2)
        save(tmp_path / "instances" / "a.png", noise(6, 8))
        save(tmp_path / "instances" / "b.png", noise(6, 8))
        with pytest.raises(ValueError, match="its instance.*instances/a.png"):
            scenes.load(tmp_path)
        save(tmp_path / "labels" / "a.png", noise(6, 8))
        with pytest.raises(ValueError, match="number of its class.*ls/a.png"):
            scenes.load(tmp_path)


class TestArguments:
    @pytest.mark.parametrize("num_classes", [1, 257])
    def test_num_classes(self, num_classes):
        message = f"2 to 256.*num_classes={num_classes}"
        with pytest.raises(ValueError, match=message):
            scenes.load(num_classes=num_classes)

    @pytest.mark.parametrize("size", [96, (96,), (0, 96), (8.0, 8)])
    def test_size(self, size):
        with pytest.raises(ValueError, match="`size` must be.*size=") as error:
            scenes.load(size=size)
        assert str(error.value).endswith(f"Received: size={size!r}")

    def test_split(self, tmp_path):
        for name in ("photographs", tmp_path):
            with pytest.raises(ValueError, match="'validation'.*split='test'"):
                scenes.load(name, split="test")

    def test_other_names(self):
        with pytest.raises(ValueError, match="no such dataset.*'nothing'"):
            scenes.load("nothing")


MADE = [(noise(6, 8), numbers(6, 8)[..., None]) for _ in range(3)]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A folder in which tensorflow-datasets has prepared datasets."""
    tfds = pytest.importorskip("tensorflow_datasets")
    data_dir = tmp_path_factory.mktemp("tfds")

    def image(*shape, dtype=np.uint8):
        return tfds.features.Image(
            shape=shape, dtype=dtype, encoding_format="png"
        )

    def store(name, splits, config=None, **features):
        tfds.dataset_builders.store_as_tfds_dataset(
            name=name,
            config=config,
            version="1.0.0",
            features=tfds.features.FeaturesDict(features),
            split_datasets={
                split: [
                    (i, dict(zip(features, arrays)))
                    for i, arrays in enumerate(examples)
                ]
                for split, examples in splits.items()
            },
            data_dir=data_dir,
            disable_shuffling=True,
        )

    splits = {"train": MADE[:2], "validation": MADE[2:]}
    sizes = {"image_left": (6, 8, 3), "segmentation_label": (6, 8, 1)}
    store("tiny", splits, **{key: image(*sizes[key]) for key in sizes})
    any_size = {
        "image_left": image(None, None, 3),
        "segmentation_label": image(None, None, 1),
    }
    store("odd", {"train": [(noise(6, 7), MADE[0][1])]}, **any_size)
    # Others that are no 8-bit images of colours, or of labels.
    store("bare", {"train": [MADE[0][:1]]}, image_left=image(6, 8, 3))
    any_size["segmentation_label"] = image(None, None, 3)
    store("coloured", {"train": [MADE[0][:1] * 2]}, **any_size)
    any_size["segmentation_label"] = image(6, 8, 1, dtype=np.uint16)
    deep = [(MADE[0][0], MADE[0][1].astype("uint16"))]
    store("deep", {"train": deep}, **any_size)
    # As tensorflow-datasets' own builder of that name describes it.
    labels = np.repeat(np.uint8([0, 7, 33, 40, 255, 26, 1, 2]), 2**18)
    store(
        "cityscapes",
        {
            "train": [
                (
                    "city_000000_000000",
                    np.full((1024, 2048, 3), 50, "uint8"),
                    labels.reshape(1024, 2048, 1),
                )
            ]
        },
        "semantic_segmentation",
        image_id=tfds.features.Text(),
        image_left=image(1024, 2048, 3),
        segmentation_label=image(1024, 2048, 1),
    )
    return str(data_dir)


class TestTensorflowDatasets:
    def test_splits(self, data_dir):
        for split, part in (("train", MADE[:2]), ("validation", MADE[2:])):
            loaded = scenes.load("tiny", split, (6, 8), None, data_dir)
            assert len(loaded) == len(part) and loaded.edges is None
            for i, (image, labels) in enumerate(part):
                np.testing.assert_array_equal(loaded.images[i], image)
                np.testing.assert_array_equal(loaded.labels[i], labels[..., 0])
            assert loaded.num_classes == 5
            assert loaded.names[0] == f"{split}_0000"

    def test_resizing(self, data_dir):
        loaded = scenes.load("tiny", "train", (3, 4), 9, data_dir)[:1]
        image = Image.fromarray(MADE[0][0]).resize((4, 3), Image.BICUBIC)
        np.testing.assert_array_equal(loaded.images, np.asarray(image)[None])
        np.testing.assert_array_equal(
            loaded.labels[0], MADE[0][1][1::2, 1::2, 0]
        )
        assert loaded.num_classes == 9

    def test_cityscapes(self, data_dir):
        loaded = scenes.load("cityscapes", size=(8, 16), data_dir=data_dir)
        assert loaded.labels[0, :, 3].tolist() == [0, 7, 33, 34, 34, 26, 1, 2]
        assert loaded.num_classes == loaded.map_channels == 35
        assert loaded.images.shape == (1, 8, 16, 3)
        assert loaded.images.min() == loaded.images.max() == 50

    def test_too_few_classes(self, data_dir):
        message = "the label 4 in \"scene . of 'train' of 'tiny'\""
        with pytest.raises(ValueError, match=message):
            scenes.load("tiny", num_classes=4, data_dir=data_dir)
        with pytest.raises(ValueError, match="classes, 34.* label 34 in"):
            scenes.load("cityscapes", num_classes=34, data_dir=data_dir)

    @pytest.mark.parametrize("name", ["bare", "coloured", "deep"])
    def test_other_features(self, name, data_dir):
        with pytest.raises(ValueError, match=f"`image_left`.*'{name}' with"):
            scenes.load(name, data_dir=data_dir)

    def test_sizes_that_differ(self, data_dir):
        message = "scene 0 of 'train' of 'odd' with 7 x 6 and 8 x 6 pixels"
        with pytest.raises(ValueError, match=message):
            scenes.load("odd", data_dir=data_dir)

    def test_split(self, data_dir):
        assert len(scenes.load("tiny", "train[1:]", data_dir=data_dir)) == 1
        message = r"\['train', 'validation'\].*split='test' of 'tiny'"
        with pytest.raises(ValueError, match=message):
            scenes.load("tiny", "test", data_dir=data_dir)

    def test_not_prepared(self, tmp_path):
        with pytest.raises(ValueError, match=f"--data-dir.*{tmp_path}"):
            scenes.load("cityscapes", data_dir=str(tmp_path))


class TestBatches:
    def scenes(self, count=5, edges=False):
        """The first pixel of a row tells which scene, the last one a side."""
        labels = np.zeros((count, 2, 4), "uint8")
        labels[:, :, 0] = np.arange(count)[:, None]
        labels[:, :, -1] = count
        images = np.repeat(labels[..., None], 3, -1)
        names = [str(i) for i in range(count)]
        return scenes.Scenes(
            "numbered",
            names,
            images,
            labels,
            (labels == count).astype("uint8") if edges else None,
            count + 1,
            np.zeros((count + 1, 3), "uint8"),
        )

    def drawn(self, batch, count=5):
        """Which scenes a batch has, and whether they are mirrored."""
        maps, images = batch
        labels = maps[..., : count + 1].argmax(-1)
        levels = np.rint((images + 1) * 127.5).astype("uint8")
        np.testing.assert_array_equal(labels, levels[..., 0])
        mirrored = labels[:, 0, 0] == count
        sides = np.where(mirrored, labels[:, 0, -1], labels[:, 0, 0])
        return [*zip(sides.tolist(), mirrored.tolist())]

    def test_what_they_hold(self):
        """Maps, their edges and images are mirrored together."""
        made = self.scenes(edges=True)
        before = made.images.copy(), made.labels.copy()
        batches = scenes.make_batches(made, 60)
        maps, images = batches[0]
        assert maps.dtype == "uint8" and maps.shape == (60, 2, 4, 7)
        assert images.dtype == "float32" and images.shape == (60, 2, 4, 3)
        np.testing.assert_array_equal(maps[..., 5], maps[..., 6])
        np.testing.assert_array_equal(maps[..., :6].sum(-1), 1)
        drawn = self.drawn((maps, images))
        assert {scene for scene, _ in drawn} == {*range(5)}
        assert 15 < sum(mirrored for _, mirrored in drawn) < 45
        # Nothing is changed in place.
        np.testing.assert_array_equal(made.images, before[0])
        np.testing.assert_array_equal(made.labels, before[1])
        assert scenes.make_batches(self.scenes(), 3)[0][0].shape[-1] == 6


def test_fit_takes_them(tmp_path):
    """In a process of its own, which has to end, too."""
    script = textwrap.dedent("""
        import keras, numpy
        from experiments import scenes

        batches = scenes.make_batches(scenes.load(size=(8, 8))[:7], 4)
        model = keras.Sequential(
            [keras.Input((8, 8, 12)), keras.layers.Conv2D(3, 1)]
        )
        model.compile("sgd", "mse")
        copy = keras.models.clone_model(model)
        copy.set_weights(model.get_weights())
        copy.compile("sgd", "mse")
        model.fit(batches.feed(14, 20), steps_per_epoch=2, epochs=10,
                  initial_epoch=7, verbose=0, shuffle=False)
        for number in range(14, 20):
            copy.train_on_batch(*batches[number])
        for x, y in zip(model.get_weights(), copy.get_weights()):
            numpy.testing.assert_allclose(x, y, atol=1e-6)
    """)

    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr[-2000:]
