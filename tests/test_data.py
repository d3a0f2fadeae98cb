import itertools
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from helpers import noise, save
from PIL import Image

from experiments import data
from experiments.batches import Batches, to_float

COLOURS = [noise(4, 6) for _ in range(6)]
STL10 = [noise(96, 96) for _ in range(3)]


def store(folder, name, splits, num_shards=1, **features):
    """Prepares a dataset of images and labels of tensorflow-datasets."""
    *_, key = features
    tfds.dataset_builders.store_as_tfds_dataset(
        name=name,
        version="1.0.0",
        features=tfds.features.FeaturesDict(features),
        split_datasets={
            split: [
                (i, {key: image, "label": label})
                for i, (image, label) in enumerate(zip(*examples))
            ]
            for split, examples in splits.items()
        },
        data_dir=folder,
        disable_shuffling=True,
        download_config=tfds.download.DownloadConfig(num_shards=num_shards),
    )


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tfds")
    label = tfds.features.ClassLabel(names=["cat", "dog", "owl"])

    def prepare(name, images, labels, num_shards=1, **features):
        splits = {"train": (images, labels)}
        store(folder, name, splits, num_shards, label=label, **features)

    image = tfds.features.Image(shape=(4, 6, 3), encoding_format="png")
    prepare("colours", COLOURS[:3], [2, 0, 1], image=image)
    prepare("sharded", COLOURS, [0] * 6, 2, image=image)
    image = tfds.features.Image(shape=(None, None, 1), encoding_format="png")
    prepare("mixed", [noise(4, 4, 1), noise(4, 5, 1)], [1, 1], image=image)
    scalar = tfds.features.Scalar(np.float32)
    prepare("numbers", [1.0, 2.0], [1, 1], number=scalar)
    # As tensorflow-datasets' own builder of that name describes it.
    store(
        folder,
        "stl10",
        {
            "train": (STL10, [7, 0, 9]),
            "test": (STL10[::-1], [9, 0, 7]),
            "unlabelled": (STL10[1:], [-1, -1]),
        },
        label=tfds.features.ClassLabel(num_classes=10),
        image=tfds.features.Image(shape=(96, 96, 3)),
    )
    return folder


class TestDigits:
    def test_default(self):
        digits = data.load()
        assert (digits.name, digits.num_classes) == ("digits", 10)
        assert digits.images.shape == (1797, 16, 16, 1)
        assert (digits.images.dtype, digits.labels.dtype) == ("uint8", "int32")
        np.testing.assert_array_equal(digits.labels[:10], range(10))
        # White strokes on a black margin.
        assert digits.images.max() == 255 and digits.images[:, 0].max() == 0

    def test_an_enlarged_digit_is_smooth(self):
        image = data.load(size=32).images[0, :, :, 0].astype(int)
        assert image.shape == (32, 32)
        # Copying pixels would leave steps of up to 255.
        for axis in (0, 1):
            assert np.abs(np.diff(image, axis=axis)).max() < 128


class TestTensorflowDatasets:
    def test_images_and_labels(self, data_dir):
        loaded = data.load("colours", data_dir=data_dir)
        np.testing.assert_array_equal(loaded.images, COLOURS[:3])
        np.testing.assert_array_equal(loaded.labels, [2, 0, 1])
        assert loaded.labels.dtype == "int32" and loaded.num_classes == 3
        loaded = data.load("colours", "train[1:]", data_dir=data_dir)
        np.testing.assert_array_equal(loaded.images, COLOURS[1:3])

    def test_mixed_sizes(self, data_dir):
        message = "--size N.*image 0 has 4 x 4 .*image 1 has 5 x 4"
        with pytest.raises(ValueError, match=message):
            data.load("mixed", data_dir=data_dir)
        loaded = data.load("mixed", size=3, data_dir=data_dir)
        assert loaded.images.shape == (2, 3, 3, 1)

    @pytest.mark.parametrize(
        ("name", "split", "message"),
        [
            ("no_such", None, '"digits".*folder.*"cifar10".*: \'no_such\''),
            ("no/such/path", None, "\"digits\".*Received: 'no/such/path'"),
            ("", None, "\"digits\".*Received: ''"),
            ("cifar10", None, "--data-dir.*--download.*'cifar10'.*{}"),
            ("colours", "test", r"splits \['train'\].*'test' of 'colours'"),
            ("colours", "train[:0]", r"splits.*'train\[:0\]' of 'colours'"),
            ("colours", "train[:1]", "two images.*colours.* is 1"),
            ("numbers", None, "8-bit images `image`.*\"cifar10\".*'numbers'"),
        ],
    )
    def test_errors(self, data_dir, name, split, message):
        with pytest.raises(ValueError, match=message.format(data_dir)):
            data.load(name, split, data_dir=data_dir)
        assert not (data_dir / "cifar10").exists()

    def test_downloads_only_when_asked(self, data_dir, monkeypatch):
        calls = []
        monkeypatch.setattr(
            tfds.core.DatasetBuilder,
            "download_and_prepare",
            lambda self: calls.append(self.name),
        )
        for download in (False, True):
            data.load("colours", data_dir=data_dir, download=download)
        assert calls == ["colours"]

    @pytest.mark.parametrize("name", ["stl10", "stl10:1.0.0"])
    def test_stl10_is_mimicrys(self, name, data_dir):
        loaded = data.load(name, data_dir=data_dir)
        assert loaded.images.shape == (2, 48, 48, 3)
        # A label of -1 is none.
        assert loaded.labels is None and loaded.num_classes is None
        for image, large in zip(loaded.images, STL10[1:]):
            small = Image.fromarray(large).resize((48, 48), Image.BILINEAR)
            np.testing.assert_array_equal(image, small)

    @pytest.mark.parametrize(
        ("split", "labels"), [("test", [9, 0, 7]), ("train+unlabelled", None)]
    )
    def test_labels_of_stl10(self, split, labels, data_dir):
        loaded = data.load("stl10", split, data_dir=data_dir)
        assert (loaded.labels is None) == (labels is None)
        if labels:
            np.testing.assert_array_equal(loaded.labels, labels)

    @pytest.mark.parametrize("name", ["colours", "stl10", "digits"])
    def test_a_folder_goes_before_all_but_digits(
        self, name, data_dir, tmp_path, monkeypatch
    ):
        for i in range(2):
            save(tmp_path / name / f"{i}.png", noise(5, 5))
        monkeypatch.chdir(tmp_path)
        loaded = data.load(name, data_dir=data_dir)
        assert len(loaded) == (1797 if name == "digits" else 2)


def cut(path):
    path.write_bytes(path.read_bytes()[:-10])


def empty(path):
    path.write_bytes(b"")


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove(path):
    path.unlink()


def change_records(path, change):
    records = tf.data.TFRecordDataset(str(path)).as_numpy_iterator()
    records = change(list(records))
    with tf.io.TFRecordWriter(str(path)) as file:
        for record in records:
            file.write(record)


def drop_a_record(path):
    change_records(path, lambda records: records[1:])


def add_a_record(path):
    change_records(path, lambda records: records + records[:1])


def cut_an_image(path):
    def cut_the_second(records):
        example = tf.train.Example.FromString(records[1])
        values = example.features.feature["image"].bytes_list.value
        values[0] = values[0][:-30]
        return [records[0], example.SerializeToString(), records[2]]

    change_records(path, cut_the_second)


class TestDamagedRecords:
    @pytest.fixture
    def files(self, data_dir, tmp_path):
        """The two files, of three images each, of a copy of "sharded"."""
        shutil.copytree(data_dir / "sharded", tmp_path / "sharded")
        assert len(data.load("sharded", data_dir=tmp_path)) == 6
        return sorted(tmp_path.glob("sharded/1.0.0/*tfrecord*"))

    @pytest.mark.parametrize(
        "damage, message",
        [
            (cut, "image 2 of {} cannot be read (DataLossError)"),
            (flip_a_bit, "image 1 of {} cannot be read (DataLossError)"),
            (cut_an_image, "image 1 of {} cannot be read (InvalidArgument"),
            (remove, "image 0 of {} cannot be read (NotFoundError)"),
            (empty, "{} has 0 images and should have 3"),
            (drop_a_record, "{} has 2 images and should have 3"),
            (add_a_record, "{} has 4 images and should have 3"),
        ],
    )
    def test_error(self, damage, message, files, tmp_path):
        damage(files[1])
        with pytest.raises(ValueError) as error:
            data.load("sharded", data_dir=tmp_path)
        assert "missing or damaged. Copy them anew" in str(error.value)
        assert "Received: 'sharded', where " in str(error.value)
        assert message.format(repr(str(files[1]))) in str(error.value)
        assert str(files[0]) not in str(error.value)

    def test_files_that_are_needed(self, files, tmp_path):
        cut(files[1])
        assert len(data.load("sharded", "train[:5]", data_dir=tmp_path)) == 5
        with pytest.raises(ValueError, match=f"image 2 of '{files[1]}'"):
            data.load("sharded", "train[2:]", data_dir=tmp_path)
        empty(files[0])
        with pytest.raises(ValueError, match=f"{files[0]}.* and .*{files[1]}"):
            data.load("sharded", data_dir=tmp_path)

    def test_other_errors_pass(self, files, tmp_path, monkeypatch):
        def no_memory(dataset):
            raise tf.errors.ResourceExhaustedError(None, None, "no memory")

        monkeypatch.setattr(tfds, "as_numpy", no_memory)
        with pytest.raises(tf.errors.ResourceExhaustedError):
            data.load("sharded", data_dir=tmp_path)


class TestFolder:
    def test_sorted_without_hidden_files(self, tmp_path):
        images = [
            save(tmp_path / name, noise(4, 6))
            for name in ("a.bmp", "b.png", "c/d/e.png")
        ]
        (tmp_path / ".DS_Store").write_bytes(b"not an image")
        (tmp_path / ".cache").mkdir()
        (tmp_path / ".cache" / "x.txt").write_bytes(b"not an image")
        loaded = data.load(tmp_path)
        np.testing.assert_array_equal(loaded.images, images)
        assert loaded.name == str(tmp_path)
        # Two of the images lie outside of sub-folders.
        assert loaded.labels is None and loaded.num_classes is None

    def test_sub_folders_are_classes(self, tmp_path):
        images = [
            save(tmp_path / name, noise(4, 4))
            for name in ("cat/1.png", "cat/deep/0.png", "owl/0.png")
        ]
        loaded = data.load(str(tmp_path))
        np.testing.assert_array_equal(loaded.images, images)
        np.testing.assert_array_equal(loaded.labels, [0, 0, 1])
        assert loaded.num_classes == 2

    def test_greyscale(self, tmp_path):
        grey = save(tmp_path / "0.png", noise(4, 4, 1))
        save(tmp_path / "1.png", grey > 127)
        loaded = data.load(tmp_path)
        np.testing.assert_array_equal(loaded.images, [grey, 255 * (grey > 127)])
        # Among colours all images have three channels.
        colour = save(tmp_path / "2.png", noise(4, 4))
        loaded = data.load(tmp_path)
        np.testing.assert_array_equal(loaded.images[0], grey.repeat(3, 2))
        np.testing.assert_array_equal(loaded.images[2], colour)

    def test_resizes_the_central_square(self, tmp_path):
        wide = np.zeros((8, 24), "uint8")
        wide[:, 8:16] = 200
        checkers = 255 * (np.indices((64, 64)).sum(axis=0) % 2)
        for i, array in enumerate((wide, wide.T, checkers.astype("uint8"))):
            save(tmp_path / f"{i}.png", array)
        loaded = data.load(tmp_path, size=4).images.astype(int)
        assert loaded.shape == (3, 4, 4, 1)
        # Bicubic weights let a little of what is beside it in.
        assert np.abs(loaded[:2] - 200).max() < 20
        # An average, not some of the pixels.
        assert np.abs(loaded[2] - 128).max() < 20

    @pytest.mark.parametrize(
        ("sizes", "settings", "message"),
        [
            ([(4, 4)] * 2, {"size": 0}, "size=0"),
            ([(4, 4)] * 2, {"split": "test"}, "split='test'.*{}"),
            ([], {}, "no images.*{}"),
            ([(4, 4)], {}, "two images.*{}.* is 1"),
            ([(4, 6), (6, 4)], {}, "--size N.*0.png has 6 x 4 .*1.png has 4 x"),
        ],
    )
    def test_errors(self, tmp_path, sizes, settings, message):
        (tmp_path / "empty").mkdir()
        for i, size in enumerate(sizes):
            save(tmp_path / f"{i}.png", noise(*size))
        with pytest.raises(ValueError, match=message.format(tmp_path)):
            data.load(tmp_path, **settings)


class TestDecode:
    def decode(self, path, array, **kwargs):
        save(path, array, **kwargs)
        return np.asarray(data.decode(str(path)))

    def test_transparent_pixels_are_white(self, tmp_path):
        for channels in (2, 4):
            array = noise(4, 4, channels)
            array[..., -1] = 255
            array[0, :, -1] = 0
            found = self.decode(tmp_path / "0.png", array)
            found = np.atleast_3d(found)
            assert np.all(found[0] == 255)
            np.testing.assert_array_equal(found[1:], array[1:, :, :-1])
        half = self.decode(tmp_path / "0.png", np.uint8([[[0, 0, 0, 51]]]))
        assert half.tolist() == [[[204] * 3]]

    def test_palette(self, tmp_path):
        palette = [[10, 20, 30], [40, 50, 60]]
        array = np.uint8([[0, 1]])
        found = self.decode(tmp_path / "0.png", array, palette=palette)
        assert found.tolist() == [palette]
        found = self.decode(
            tmp_path / "0.png", array, palette=palette, transparency=1
        )
        assert found.tolist() == [[palette[0], [255] * 3]]

    @pytest.mark.parametrize("name", ["0.png", "0.tif", "0.pgm"])
    def test_sixteen_bits(self, name, tmp_path):
        levels = np.uint16([[0, 157, 128 * 257, 65535]])
        found = self.decode(tmp_path / name, levels)
        assert found.tolist() == [[0, 1, 128, 255]]

    def test_exif_rotation(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6  # Turn by 90 degrees clockwise to see it upright.
        array = noise(4, 6)
        found = self.decode(tmp_path / "0.png", array, exif=exif)
        np.testing.assert_array_equal(found, np.rot90(array, -1))

    @pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "gif"])
    def test_truncated(self, suffix, tmp_path):
        whole = tmp_path / f"1.{suffix}"
        assert self.decode(whole, noise(32, 32)).shape == (32, 32, 3)
        whole.write_bytes(whole.read_bytes()[:-300])
        with pytest.raises(ValueError, match=f"move it out.*{whole}"):
            data.decode(str(whole))

    @pytest.mark.parametrize("content", [b"", b"hello"])
    def test_not_an_image(self, content, tmp_path):
        (tmp_path / "bad.png").write_bytes(content)
        with pytest.raises(ValueError, match=f"move it out.*{tmp_path}/bad"):
            data.load(tmp_path)

    @pytest.mark.parametrize("value", [0.5, -1, 65536])
    def test_unknown_range(self, value, tmp_path):
        dtype = "float32" if isinstance(value, float) else "int32"
        with pytest.raises(ValueError, match="0.tif.*range"):
            self.decode(tmp_path / "0.tif", np.full((4, 4), value, dtype))


def test_matching_files(tmp_path):
    for name in ("a/x.png", "a/s/y.jpg", "b/s/y.png"):
        save(tmp_path / name, noise(4, 4))
    folders = {kind: str(tmp_path / kind) for kind in "ab"}
    with pytest.raises(ValueError, match="1 without.*'x'.*not in '.*/b'"):
        data.matching(folders)
    save(tmp_path / "b" / "x.bmp", noise(4, 4))
    (first, files), (second, _) = data.matching(folders)
    assert (first, second) == ("s/y", "x")
    assert files["a"].endswith("a/s/y.jpg")
    save(tmp_path / "b" / "x.png", noise(4, 4))
    with pytest.raises(ValueError, match="but for the ending.*x.bmp.*x.png"):
        data.matching(folders)


class TestBatches:
    @pytest.fixture(params=["tensorflow", "jax"])
    def backend(self, request, monkeypatch):
        """The backend that `feed` is told; it computes nothing with one."""
        monkeypatch.setattr(keras.config, "backend", lambda: request.param)
        return request.param

    def test_shape_and_range(self, backend):
        images = np.arange(256, dtype="uint8").reshape(4, 8, 8, 1)
        made = Batches([images], 4, prepare=lambda x: (to_float(x),))
        dataset = made.feed(0, 1)
        if backend == "tensorflow":  # They have to be static on a TPU.
            spec = tf.TensorSpec((4, 8, 8, 1), "float32")
            assert dataset.element_spec == (spec,)
        (batch,) = next(iter(dataset))
        np.testing.assert_allclose(
            np.sort(np.ravel(batch)), np.linspace(-1, 1, 256), atol=1e-6
        )

    @pytest.mark.parametrize("batch_size", [1, 7, 10, 13])
    def test_feed(self, backend, batch_size):
        """From any number on, the batches of these numbers."""
        made = Batches([np.arange(10), -np.arange(10)], batch_size)
        for start in (0, 1, 24, 10**12):  # Counting so far would take hours.
            drawn = itertools.islice(made.feed(start, start + 3), 3)
            for number, batch in enumerate(drawn, start):
                for x, y in zip(batch, made[number]):
                    np.testing.assert_array_equal(x, y)
                np.testing.assert_array_equal(batch[1], -np.array(batch[0]))

    def test_each_example_once_in_each_pass(self):
        # Ten batches of seven make seven passes of ten.
        made = Batches([np.arange(10)], 7)
        passes = np.reshape([made[number][0] for number in range(10)], (7, 10))
        np.testing.assert_array_equal(np.sort(passes), [range(10)] * 7)
        assert len({tuple(each) for each in passes}) == 7

    def test_the_seed_decides_on_the_order(self):
        made = [Batches([np.arange(50)], 8, seed=s)[5][0] for s in (1, 1, 2)]
        np.testing.assert_array_equal(*made[:2])
        assert np.any(made[0] != made[2])

    def test_mirrored(self):
        """About half of the examples, and whatever of them has a width."""
        images, maps = noise(60, 2, 9).reshape(60, 2, 3, 3), noise(60, 2, 3)
        labels, mirrored = np.arange(60), 0
        made = Batches([images, maps, labels], 60, mirror=True)
        for image, label_map, label in zip(*made[0]):
            turned = np.any(image != images[label])
            mirrored += turned
            step = -1 if turned else 1
            np.testing.assert_array_equal(image, images[label][:, ::step])
            np.testing.assert_array_equal(label_map, maps[label][:, ::step])
        assert 15 < mirrored < 45
