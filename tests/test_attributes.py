"""Images with attributes: digits, tables of a folder, prepared datasets."""

import numpy as np
import pytest
import tensorflow_datasets as tfds
from helpers import noise, save
from PIL import Image

from experiments import attribute_transfer, attributes


def load(*flags):
    return attributes.load(attribute_transfer.parse(map(str, flags)))


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
    """The first ones of both splits."""
    return load("--images", 300, "--show", 120)


class TestDigits:
    def test_splits(self, digits):
        names, *splits = digits
        _, counts, _ = attributes._digits(None)
        assert counts == {"train": 1437, "validation": 360}
        assert names == ["red", "green", "blue", "thick"]
        for (images, values), count in zip(splits, (300, 120)):
            assert images.shape == (count, 32, 32, 3)
            assert values.shape == (count, 4)
            assert (images.dtype, values.dtype) == ("uint8", "float32")

    def test_attributes_are_about_even_and_independent(self, digits):
        _, (_, values), _ = digits
        assert set(np.unique(values)) == {0.0, 1.0}
        np.testing.assert_array_equal(values[:, :3].sum(axis=1), 1.0)
        means = values.mean(axis=0)
        np.testing.assert_allclose(means, [1 / 3] * 3 + [0.5], atol=0.05)
        for colour in range(3):
            thick = values[values[:, colour] == 1.0, 3]
            assert abs(thick.mean() - 0.5) < 0.08

    @pytest.mark.parametrize("split", [1, 2])
    def test_attributes_can_be_seen(self, digits, split):
        images, values = digits[split]
        strongest = images.max(axis=(1, 2))
        np.testing.assert_array_equal(
            np.eye(3)[strongest.argmax(axis=1)], values[:, :3]
        )
        brightest = images.max(axis=3)
        top = brightest.max(axis=(1, 2), keepdims=True)
        ink = (brightest > top / 2).mean(axis=(1, 2))
        thick = values[:, 3] == 1.0
        # Apart but for a few: a long thin line has as much as a thick 1.
        assert np.mean((ink > np.median(ink)) == thick) > 0.95
        assert ink[thick].mean() > 1.8 * ink[~thick].mean()
        # On nearly black, in colours that vary.
        assert brightest[:, 0, 0].max() <= 30 and top.min() > 150
        assert len(np.unique(strongest, axis=0)) > 0.95 * len(images)

    def test_the_digits_are_those_of_scikit_learn(self, digits):
        """Bright where they are bright."""
        from sklearn.datasets import load_digits

        expected = load_digits().images
        made = digits[1][0].max(axis=3) / 255.0
        made = made[:, 3:-3, 3:-3]  # The margin is a tenth.
        for index in range(0, 300, 12):
            x = Image.fromarray(expected[index].astype("float32"))
            x = np.asarray(x.resize((26, 26)))
            assert np.corrcoef(x.ravel(), made[index].ravel())[0, 1] > 0.4

    def test_a_digit_is_the_same_however_many_are_read(self, digits):
        names, (images, values), shown = load(
            *("--images", 30, "--show", 9, "--attributes", "thick", "red")
        )
        assert names == ["thick", "red"]
        np.testing.assert_array_equal(images, digits[1][0][:30])
        np.testing.assert_array_equal(values, digits[1][1][:30, [3, 0]])
        np.testing.assert_array_equal(shown[0], digits[2][0][:9])


@pytest.fixture
def folder(tmp_path):
    """Eleven images of several sizes, and what is no image."""
    arrays = []
    for index in range(11):
        # High, and wide, by an odd and by an even number.
        size = [(9, 6), (6, 8), (5, 5), (20, 31)][index % 4]
        path = tmp_path / "images" / "ab"[index % 2] / f"{index}.png"
        arrays.append(save(path, noise(*size)))
    (tmp_path / "images" / "notes.txt").write_text("no image")
    return tmp_path / "images", arrays


def load_table(folder, lines, *flags):
    table = folder.parent / "table.csv"
    table.write_text("\n".join([*lines, ""]), encoding="utf-8")
    return load("--data", folder, "--csv", table, "--size", 4, *flags)


class TestFolder:
    def test_both_splits(self, folder):
        folder, arrays = folder
        lines = [
            f"{'ab'[i % 2]}/{i}.png,{i % 2},{int(i % 3 == 0)}"
            for i in range(11)
        ]
        lines = ["file,Old,Smiling", *lines]
        names, (images, values), (shown, held_out) = load_table(folder, lines)
        assert names == ["Old", "Smiling"]
        assert len(images) == 10
        for image, array in zip([*images, *shown], arrays):
            np.testing.assert_array_equal(image, middle(array, 4))
        np.testing.assert_array_equal(
            values, [[i % 2, float(i % 3 == 0)] for i in range(10)]
        )
        np.testing.assert_array_equal(held_out, [[0.0, 0.0]])
        flags = ["--attributes", "Smiling", "--images", 4]
        names, (_, values), _ = load_table(folder, lines, *flags)
        assert names == ["Smiling"]
        np.testing.assert_array_equal(values.T, [[1, 0, 0, 1]])

    def test_the_size_of_the_validation_split(self, folder, monkeypatch):
        lines = ["file,Old", *["a/0.png,0", "b/1.png,1"] * 20]
        for most, expected in ((2000, [36, 4]), (3, [37, 3])):
            monkeypatch.setattr(attributes, "_MOST_HELD_OUT", most)
            _, *splits = load_table(folder[0], lines)
            assert [len(images) for images, _ in splits] == expected

    @pytest.mark.parametrize(
        ("lines", "names", "expected"),
        [
            (
                [
                    '\ufeff"file, or path", A, B,C,"D, or not"',
                    "a/0.png,1, -1,TRUE,false",
                    "",
                    "b/1.png,0,1 ,False,True",
                    '"a/2.png",1,-1,true,1',
                    "b/3.png,1,1,true,1",
                ],
                ["A", "B", "C", "D, or not"],
                [[1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 1]],
            ),
            (  # The form of CelebA.
                [
                    *("3", "Male Young "),
                    *("a/0.png  1 -1", "b/1.png -1  1", "a/2.png -1 -1"),
                ],
                ["Male", "Young"],
                [[1, 0], [0, 1]],
            ),
        ],
    )
    def test_forms_of_tables(self, folder, lines, names, expected):
        folder, arrays = folder
        found, (images, values), _ = load_table(folder, lines)
        assert found == names
        np.testing.assert_array_equal(values, expected)
        np.testing.assert_array_equal(images[1], middle(arrays[1], 4))

    def test_other_columns_may_hold_anything(self, folder):
        lines = ["file,Old,Age", "a/0.png,1,9", "b/1.png,0,", "a/2.png,1,x"]
        _, (_, values), _ = load_table(folder[0], lines, "--attributes", "Old")
        np.testing.assert_array_equal(values, [[1], [0]])

    @pytest.mark.parametrize(
        ("table", "expected"),
        [
            ("", "row for each image.*table.csv' with 0 rows"),
            ("3", "row for each image.*table.csv"),
            ("file,Old", "row for each image.*with 1 rows"),
            ("file a/0.png b/1.png", "by commas.*table.csv"),
            ("file;Old a/0.png;1", "by commas.*table.csv.*file;Old"),
            ("file,Old x,1 x,1,0", "3 cells in line 3 of.*has 2"),
            ("file,Old,Old x,1,0", r"none of them twice.*\['Old', 'Old'"),
            ("file,Old,Age x,1,yes x,0,1 x,0,1", "not there.*x', in line 2 of"),
            (
                "file,Old,Age a/0.png,1,0 b/1.png,0,yes x,0,1",
                "'yes' in column 'Age', line 3 of.*table.csv",
            ),
            ("file,Old notes.txt,1 a/0.png,0 x,0", "be read.*notes.txt"),
            (
                "file,Old,Bald a/0.png,0,1 b/1.png,1,1 a/2.png,1,0",
                "'Bald' of.*which all of 2",
            ),
            (
                "file,Old,Bald a/0.png,0,0 b/1.png,1,0 a/2.png,1,1",
                "'Bald' of.*which none of 2",
            ),
            ("file,Old a/0.png,0 b/1.png,1", "two images.*Received: 1"),
        ],
    )
    def test_bad_tables(self, folder, table, expected):
        with pytest.raises(ValueError, match=expected):
            load_table(folder[0], table.split())

    def test_no_table(self, folder):
        folder, _ = folder
        for table in ("t.csv", folder / "a" / "0.png"):
            with pytest.raises(ValueError, match=f"cannot be read.*{table}"):
                load("--data", folder, "--csv", table)


FACES = [noise(218, 178) for _ in range(4)]
NAMES = "Bald Young Male Brown_Hair Blond_Hair Black_Hair".split()
VALUES = np.array(
    [[*map(int, x)] for x in "110101 001010 100010 011001".split()]
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Prepared datasets of tensorflow-datasets."""
    data_dir = tmp_path_factory.mktemp("tfds")
    image = tfds.features.Image(encoding_format="png")

    def store(name, rows, kind):
        examples = [
            (i, {"image": FACES[i], "attributes": dict(zip(NAMES, row))})
            for i, row in enumerate(rows)
        ]
        flags = dict.fromkeys(NAMES, kind)
        tfds.dataset_builders.store_as_tfds_dataset(
            name=name,
            version="2.1.0",
            features=tfds.features.FeaturesDict(
                {"image": image, "attributes": flags}
            ),
            split_datasets={"train": examples[:3], "validation": examples[3:]},
            data_dir=data_dir,
            disable_shuffling=True,
        )

    store("celeb_a", VALUES.astype(bool), np.bool_)
    store("ages", VALUES, np.int64)
    return data_dir


def test_celeb_a(data_dir):
    flags = ["--data", "celeb_a:2.1.0", "--data-dir", data_dir]
    names, (images, values), _ = load(*flags, "--size", 128)
    assert names == NAMES[:1:-1] + NAMES[1:2]
    np.testing.assert_array_equal(values, VALUES[:3, [5, 4, 3, 2, 1]])
    for image, face in zip(images, FACES):
        np.testing.assert_array_equal(image, middle(face, 128))
    flags += ["--size", 8, "--attributes", "Bald", "Male", "--images", 2]
    _, (images, values), (shown, held_out) = load(*flags)
    assert len(images) == 2
    np.testing.assert_array_equal(values, VALUES[:2, [0, 2]])
    np.testing.assert_array_equal(held_out, VALUES[3:, [0, 2]])
    np.testing.assert_array_equal(shown[0], middle(FACES[3], 8))


def test_a_dataset_of_another_kind(data_dir):
    with pytest.raises(ValueError, match="booleans.*'ages' with"):
        load("--data", "ages", "--data-dir", data_dir)
