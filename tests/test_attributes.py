import re

import numpy as np
import pytest
import tensorflow_datasets as tfds
from helpers import noise, save
from PIL import Image

from experiments import attributes


def write(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def middle(array, size):
    """The central square, resized, by PIL's other functions."""
    height, width = array.shape[:2]
    side = min(height, width)
    y, x = (height - side) / 2, (width - side) / 2
    image = Image.fromarray(array).resize(
        (size, size), Image.Resampling.BICUBIC, (x, y, x + side, y + side)
    )
    return np.asarray(image)


@pytest.fixture(scope="module")
def digits():
    """The first ones: a digit looks the same, however many are read."""
    return {
        "train": attributes.load(limit=300),
        "validation": attributes.load(split="validation", limit=120),
    }


class TestDigits:
    def test_splits(self, digits):
        for split, count in (("train", 1437), ("validation", 360)):
            assert attributes._digits(split)[1] == count
        for images in digits.values():
            assert images.name == "digits"
            assert images.images.dtype == "uint8"
            assert images.images.shape == (len(images), 32, 32, 3)
            assert images.attributes.dtype == "float32"
            assert images.attributes.shape == (len(images), 4)
            assert images.attribute_names == ["red", "green", "blue", "thick"]

    def test_attributes_are_about_even(self, digits):
        values = digits["train"].attributes
        assert set(np.unique(values)) == {0.0, 1.0}
        np.testing.assert_array_equal(values[:, :3].sum(axis=1), 1.0)
        means = values.mean(axis=0)
        np.testing.assert_allclose(means, [1 / 3] * 3 + [0.5], atol=0.05)
        # Independent of each other.
        for colour in range(3):
            thick = values[values[:, colour] == 1.0, 3]
            assert abs(thick.mean() - 0.5) < 0.08

    @pytest.mark.parametrize("split", ["train", "validation"])
    def test_attributes_can_be_seen(self, split, digits):
        images = digits[split]
        pixels = images.images.astype("float64")
        for colour in range(3):
            # The strokes', as what is far brighter than the background.
            strongest = pixels.max(axis=(1, 2)).argmax(axis=1) == colour
            np.testing.assert_array_equal(
                strongest, images.attributes[:, colour] == 1.0
            )
        brightest = pixels.max(axis=3)
        top = brightest.max(axis=(1, 2), keepdims=True)
        ink = (brightest > top / 2).mean(axis=(1, 2))
        thick = images.attributes[:, 3] == 1.0
        # Apart but for a few: a long thin line has as much as a thick 1.
        level = np.median(ink)
        assert np.mean((ink > level) == thick) > 0.95
        assert ink[thick].mean() > 1.8 * ink[~thick].mean()
        # On nearly black, in colours that vary.
        assert brightest[:, 0, 0].max() <= 30
        assert top.min() > 150
        assert len(np.unique(pixels.max(axis=(1, 2)), axis=0)) > 0.95 * len(top)

    def test_the_digits_are_those_of_scikit_learn(self, digits):
        """Bright where they are bright."""
        from sklearn.datasets import load_digits

        expected = load_digits().images
        made = digits["train"].images.max(axis=3) / 255.0
        made = made[:, 3:-3, 3:-3]  # The margin is a tenth.
        for index in range(0, 300, 12):
            x = Image.fromarray(expected[index].astype("float32"))
            x = np.asarray(x.resize((26, 26)))
            assert np.corrcoef(x.ravel(), made[index].ravel())[0, 1] > 0.4

    def test_it_is_the_same_each_time(self, digits):
        few = attributes.load(limit=30, attributes=["thick", "red"])
        assert len(few) == 30 and few.attribute_names == ["thick", "red"]
        np.testing.assert_array_equal(few.images, digits["train"].images[:30])
        np.testing.assert_array_equal(
            few.attributes, digits["train"].attributes[:30][:, [3, 0]]
        )
        large = attributes.load(limit=30, size=48, split="validation")
        assert large.images.shape == (30, 48, 48, 3)
        np.testing.assert_array_equal(
            large.attributes, digits["validation"].attributes[:30]
        )

    def test_errors(self):
        with pytest.raises(ValueError, match="'thick'.*Received: 'old' in.*"):
            attributes.load(attributes=["red", "old"])
        with pytest.raises(ValueError, match=re.escape("['red', 'red']")):
            attributes.load(attributes=["red", "red"])
        with pytest.raises(ValueError, match=r"at least one.*attributes=\[\]"):
            attributes.load(attributes=[])
        with pytest.raises(ValueError, match="Received: split='test'"):
            attributes.load(split="test")
        with pytest.raises(ValueError, match="int >= 4. Received: size=3"):
            attributes.load(size=3)
        with pytest.raises(ValueError, match="int >= 1. Received: limit=0"):
            attributes.load(limit=0)
        with pytest.raises(ValueError, match="two images.*Received: 1 .*limit"):
            attributes.load(limit=1)
        with pytest.raises(ValueError, match="csv='x.csv' with name='digits'"):
            attributes.load(csv="x.csv")


@pytest.fixture
def folder(tmp_path):
    """Twelve images in `images`, of which `table.csv` lists eleven."""
    path = tmp_path / "images"
    lines = ["file,Old,Smiling"]
    arrays = []
    for index in range(11):
        file = f"{'ab'[index % 2]}/{index}.png"
        # High, and wide, by an odd and by an even number.
        size = [(9, 6), (6, 8), (5, 5), (20, 31)][index % 4]
        arrays.append(save(path / file, noise(*size)))
        lines.append(f"{file},{index % 2},{int(index % 3 == 0)}")
    save(path / "other.png", noise(5, 5))
    (path / "notes.txt").write_text("no image")
    write(tmp_path / "table.csv", *lines)
    return tmp_path, arrays


def read(folder, table="table.csv", **kwargs):
    kwargs.setdefault("size", 4)
    return attributes.load(folder / "images", csv=folder / table, **kwargs)


class TestFolder:
    def test_both_splits(self, folder):
        folder, arrays = folder
        images = read(folder)
        assert images.name == str(folder / "images")
        assert images.attribute_names == ["Old", "Smiling"]
        assert images.images.shape == (10, 4, 4, 3)
        assert images.images.dtype == "uint8"
        assert images.attributes.dtype == "float32"
        np.testing.assert_array_equal(
            images.attributes,
            [[i % 2, float(i % 3 == 0)] for i in range(10)],
        )
        for image, array in zip(images.images, arrays):
            np.testing.assert_array_equal(image, middle(array, 4))
        held_out = read(folder, split="validation")
        assert len(held_out) == 1
        np.testing.assert_array_equal(held_out.images[0], middle(arrays[10], 4))
        np.testing.assert_array_equal(held_out.attributes, [[0.0, 0.0]])

    def test_default_size(self, folder):
        images = read(folder[0], size=None, limit=2)
        assert images.images.shape == (2, 128, 128, 3)

    def test_the_size_of_the_validation_split(self, folder, monkeypatch):
        folder, _ = folder
        lines = ["file,Old", *["a/0.png,0", "b/1.png,1"] * 20]
        write(folder / "forty.csv", *lines)
        assert len(read(folder, "forty.csv")) == 36
        assert len(read(folder, "forty.csv", split="validation")) == 4
        monkeypatch.setattr(attributes, "_MOST_HELD_OUT", 3)
        assert len(read(folder, "forty.csv")) == 37
        assert len(read(folder, "forty.csv", split="validation")) == 3

    def test_choice_and_limit(self, folder):
        images = read(folder[0], attributes=("Smiling",), limit=4)
        assert images.attribute_names == ["Smiling"]
        np.testing.assert_array_equal(images.attributes.T, [[1, 0, 0, 1]])

    def test_truth_values(self, folder):
        folder, _ = folder
        write(
            folder / "truths.csv",
            '\ufeff"file, or path", A, B,C,"D, or not"',
            "a/0.png,1, -1,TRUE,false",
            "",
            "b/1.png,0,1 ,False,True",
            '"a/2.png",1,-1,true,1',
            "b/3.png,1,1,true,1",
        )
        images = read(folder, "truths.csv")
        assert images.attribute_names == ["A", "B", "C", "D, or not"]
        np.testing.assert_array_equal(
            images.attributes, [[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 1]]
        )

    def test_the_form_of_celeba(self, folder):
        folder, arrays = folder
        write(
            folder / "list_attr_celeba.txt",
            "3",
            "Male Young ",
            "a/0.png  1 -1",
            "b/1.png -1  1",
            "a/2.png -1 -1",
        )
        images = read(folder, "list_attr_celeba.txt")
        assert images.attribute_names == ["Male", "Young"]
        np.testing.assert_array_equal(images.attributes, [[1, 0], [0, 1]])
        np.testing.assert_array_equal(images.images[1], middle(arrays[1], 4))
        held_out = read(folder, "list_attr_celeba.txt", split="validation")
        np.testing.assert_array_equal(held_out.attributes, [[0, 0]])

    def test_grey_and_transparent(self, folder):
        folder, _ = folder
        grey = save(folder / "images" / "grey.png", noise(4, 4, 1))
        clear = np.zeros((4, 4, 4), "uint8")
        save(folder / "images" / "clear.png", clear)
        write(folder / "two.csv", "file,A", "grey.png,0", "clear.png,1", "x,1")
        images = read(folder, "two.csv")
        np.testing.assert_array_equal(
            images.images[0], np.repeat(grey, 3, axis=2)
        )
        assert np.all(images.images[1] == 255)

    @pytest.mark.parametrize("mark", [";", "\t"])
    def test_cells_parted_otherwise(self, folder, tmp_path, mark):
        table = tmp_path / "table.csv"
        table.write_text(mark.join(["file", "Old"]) + f"\na.png{mark}1\n")
        with pytest.raises(ValueError, match="by commas.*table.csv.*Old"):
            attributes.load(folder[0] / "images", csv=table)

    def test_no_table(self, folder):
        folder, _ = folder
        with pytest.raises(ValueError, match="`csv`.*csv=None.*is a folder"):
            attributes.load(folder / "images")
        with pytest.raises(ValueError, match="t.csv' with .*is no folder"):
            attributes.load(folder / "nothing", csv="t.csv")
        # Neither a path of nothing nor an image is one.
        for path in ("t.csv", str(next((folder / "images").iterdir()))):
            with pytest.raises(ValueError, match=f"cannot be read.*{path}"):
                attributes.load(folder / "images", csv=path)

    @pytest.mark.parametrize(
        "lines", [[], ["file,Old"], ["3"], ["3", "Old"], ["", ""]]
    )
    def test_empty_tables(self, folder, lines):
        write(folder[0] / "empty.csv", *lines)
        with pytest.raises(ValueError, match="row for each.*empty.csv' with"):
            read(folder[0], "empty.csv")

    def test_rows_of_other_lengths(self, folder):
        write(folder[0] / "t.csv", "file,Old", "a/0.png,1", "b/1.png,1,0")
        with pytest.raises(ValueError, match="3 cells in line 3 of.*has 2"):
            read(folder[0], "t.csv")

    @pytest.mark.parametrize("value", ["yes", "2", ""])
    def test_other_values(self, folder, value):
        folder, _ = folder
        rows = [f"b/1.png,0,{value}", "a/0.png,1,1", "a/2.png,1,1"]
        write(folder / "t.csv", "file,Old,Age", *rows)
        with pytest.raises(
            ValueError, match=f"Received: '{value}' in column 'Age', line 2 of "
        ):
            read(folder, "t.csv")
        # What is not asked for may be anything.
        images = read(folder, "t.csv", attributes=["Old"])
        np.testing.assert_array_equal(images.attributes, [[0], [1]])

    def test_attributes_that_there_are_not(self, folder):
        with pytest.raises(
            ValueError, match=r"\['Old', 'Smiling'\]. .*'Bald' in.*table.csv"
        ):
            read(folder[0], attributes=["Old", "Bald"])
        write(folder[0] / "t.csv", "file,Old,Old", "a/0.png,1,0", "x,1,0")
        with pytest.raises(ValueError, match=r"twice.*\['Old', 'Old'\]"):
            read(folder[0], "t.csv")
        write(folder[0] / "t.csv", "file", "a/0.png", "b/1.png")
        with pytest.raises(ValueError, match="by commas.*t.csv"):
            read(folder[0], "t.csv")

    def test_images_that_there_are_not(self, folder):
        folder, _ = folder
        rows = ["a/0.png,1", "gone.png,0", "b/1.png,0"]
        write(folder / "t.csv", "file,Old", *rows)
        with pytest.raises(ValueError, match="gone.png', in line 3 of.*t.csv"):
            read(folder, "t.csv")
        # Of the other split.
        assert len(read(folder, "t.csv", split="validation")) == 1

    def test_broken_images(self, folder):
        rows = ["notes.txt,1", "a/0.png,0", "b/1.png,0"]
        write(folder[0] / "t.csv", "file,Old", *rows)
        with pytest.raises(ValueError, match="cannot be read.*notes.txt"):
            read(folder[0], "t.csv")

    @pytest.mark.parametrize(
        ("value", "having"), [(1, "all of 2"), (0, "none of 2")]
    )
    def test_what_cannot_be_learned(self, folder, value, having):
        folder, _ = folder
        write(
            folder / "t.csv",
            "file,Old,Bald",
            f"a/0.png,0,{value}",
            f"b/1.png,1,{value}",
            f"a/2.png,1,{1 - value}",
        )
        with pytest.raises(ValueError, match=f"'Bald' of.*which {having}"):
            read(folder, "t.csv")
        held_out = read(folder, "t.csv", split="validation")
        np.testing.assert_array_equal(held_out.attributes, [[1, 1 - value]])

    def test_one_image(self, folder):
        write(folder[0] / "t.csv", "file,Old", "a/0.png,0", "b/1.png,1")
        with pytest.raises(ValueError, match="two images.*Received: 1 with"):
            read(folder[0], "t.csv")
        assert len(read(folder[0], "t.csv", split="validation")) == 1


FACES = [noise(218, 178) for _ in range(4)]
NAMES = "Bald Young Male Brown_Hair Blond_Hair Black_Hair".split()
VALUES = np.array(
    [
        [1, 1, 0, 1, 0, 1],
        [0, 0, 1, 0, 1, 0],
        [1, 0, 0, 0, 1, 0],
        [0, 1, 1, 0, 0, 1],
    ]
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Prepared datasets of tensorflow-datasets."""
    data_dir = tmp_path_factory.mktemp("tfds")
    # tensorflow-datasets' own description has more, which nobody reads here.
    flags = {name: np.bool_ for name in NAMES}

    def store(name, splits, image=None, version="1.0.0", **features):
        image = image or tfds.features.Image(encoding_format="png")
        tfds.dataset_builders.store_as_tfds_dataset(
            name=name,
            version=version,
            features=tfds.features.FeaturesDict({"image": image, **features}),
            split_datasets={
                split: list(enumerate(examples))
                for split, examples in splits.items()
            },
            data_dir=data_dir,
            disable_shuffling=True,
        )

    faces = [
        {"image": image, "attributes": dict(zip(NAMES, map(bool, row)))}
        for image, row in zip(FACES, VALUES)
    ]
    png = tfds.features.Image(shape=(218, 178, 3), encoding_format="png")
    store(
        "celeb_a",
        {"train": faces[:3], "validation": faces[3:]},
        png,
        "2.1.0",
        attributes=flags,
    )
    grey = tfds.features.Image(shape=(None, None, 1), encoding_format="png")
    dots = [
        {"image": noise(6 + 2 * i, 6, 1), "attributes": {"dotted": i == 1}}
        for i in range(3)
    ]
    store("dots", {"train": dots}, grey, attributes={"dotted": np.bool_})
    store(
        "ages",
        {"train": [{"image": noise(4, 4), "attributes": {"age": 3}}]},
        attributes={"age": np.int64},
    )
    store("bare", {"train": [{"image": noise(4, 4)}]})
    return data_dir, [dot["image"] for dot in dots]


class TestTensorFlowDatasets:
    def test_celeb_a(self, data_dir):
        images = attributes.load("celeb_a", data_dir=data_dir[0])
        assert images.attribute_names == [
            "Black_Hair",
            "Blond_Hair",
            "Brown_Hair",
            "Male",
            "Young",
        ]
        np.testing.assert_array_equal(
            images.attributes, VALUES[:3, [5, 4, 3, 2, 1]]
        )
        assert images.attributes.dtype == "float32"
        assert images.images.shape == (3, 128, 128, 3)
        for made, face in zip(images.images, FACES):
            face = Image.fromarray(face).resize(
                (128, 128), Image.Resampling.BICUBIC, (0, 20, 178, 198)
            )
            np.testing.assert_array_equal(made, face)

    def test_choice(self, data_dir):
        images = attributes.load(
            "celeb_a:2.1.0",
            "validation",
            ["Bald", "Male"],
            8,
            data_dir=data_dir[0],
        )
        np.testing.assert_array_equal(images.attributes, VALUES[3:, [0, 2]])
        np.testing.assert_array_equal(images.images[0], middle(FACES[3], 8))
        few = attributes.load("celeb_a", data_dir=data_dir[0], limit=2)
        assert len(few) == 2

    def test_other_datasets(self, data_dir):
        data_dir, dots = data_dir
        images = attributes.load("dots", size=6, data_dir=data_dir)
        assert images.attribute_names == ["dotted"]
        np.testing.assert_array_equal(images.attributes, [[0], [1], [0]])
        for index, dot in enumerate(dots):
            np.testing.assert_array_equal(
                images.images[index],
                np.repeat(dot[index : index + 6], 3, axis=2),
            )

    def test_downloads_only_on_demand(self, data_dir, monkeypatch):
        calls = []
        monkeypatch.setattr(
            tfds.core.DatasetBuilder,
            "download_and_prepare",
            lambda self: calls.append(self.name),
        )
        settings = {"size": 4, "data_dir": data_dir[0]}
        attributes.load("dots", **settings)
        assert calls == []
        attributes.load("dots", download=True, **settings)
        assert calls == ["dots"]

    def test_errors(self, data_dir):
        data_dir, _ = data_dir
        with pytest.raises(ValueError, match="no such dataset.*'nothing'"):
            attributes.load("nothing", data_dir=data_dir)
        for name in ("ages", "bare"):
            with pytest.raises(ValueError, match=f"booleans.*'{name}' with"):
                attributes.load(name, data_dir=data_dir)
        with pytest.raises(
            ValueError, match=r"splits \['train'\].*split='validation'"
        ):
            attributes.load("dots", "validation", data_dir=data_dir)
        with pytest.raises(ValueError, match="'dotted'.*Received: 'Male' in"):
            attributes.load("dots", attributes=["Male"], data_dir=data_dir)
        with pytest.raises(ValueError, match="Received: 1 with name='dots'"):
            attributes.load("dots", limit=1, data_dir=data_dir)


@pytest.mark.parametrize("mirror", [False, True])
def test_batches(mirror):
    """Images with their attributes, about half of them mirrored."""
    pixels = np.arange(240, dtype="uint8").reshape(5, 4, 4, 3)
    values = np.eye(5, dtype="float32")
    images = attributes.AttributedImages("x", pixels, values, list("abcde"))
    made, told = attributes.make_batches(images, 60, mirror=mirror)[0]
    assert made.dtype == told.dtype == "float32" and told.shape == (60, 5)
    levels = np.rint((made + 1) * 127.5).astype("uint8")
    whole = pixels[told.argmax(axis=1)]
    turned = np.array([np.any(x != y) for x, y in zip(levels, whole)])
    np.testing.assert_array_equal(levels[~turned], whole[~turned])
    np.testing.assert_array_equal(levels[turned], whole[turned][:, :, ::-1])
    assert 15 < turned.sum() < 45 if mirror else not turned.any()
