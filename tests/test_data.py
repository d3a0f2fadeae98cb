import itertools
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
from PIL import Image

from experiments import data
from experiments.batches import Batches, to_float

RNG = np.random.default_rng(0)


def noise(*shape):
    return RNG.integers(0, 256, shape, "uint8")


def save(path, array, **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **kwargs)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """A folder in which tensorflow-datasets has prepared small datasets."""
    data_dir = tmp_path_factory.mktemp("tfds")
    classes = tfds.features.ClassLabel(names=["cat", "dog", "owl"])

    def prepare(name, images, labels, **features):
        store(name, {"train": (images, labels)}, label=classes, **features)

    def store(name, splits, num_shards=1, **features):
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
            data_dir=data_dir,
            disable_shuffling=True,
            download_config=tfds.download.DownloadConfig(num_shards=num_shards),
        )

    image = tfds.features.Image(shape=(4, 6, 3), encoding_format="png")
    prepare("colours", COLOURS, [2, 0, 1], image=image)
    prepare("unlabelled", COLOURS, [-1, -1, -1], image=image)
    image = tfds.features.Image(shape=(None, None, 1), encoding_format="png")
    prepare("mixed", [noise(4, 4, 1), noise(4, 5, 1)], [1, 1], image=image)
    scalar = tfds.features.Scalar(np.float32)
    prepare("numbers", [1.0, 2.0], [1, 1], number=scalar)
    # As tensorflow-datasets' own builder of that name describes it.
    store(
        "stl10",
        {
            "train": (STL10, [7, 0, 9]),
            "test": (STL10[::-1], [9, 0, 7]),
            "unlabelled": (STL10[1:], [-1, -1]),
        },
        label=tfds.features.ClassLabel(num_classes=10),
        image=tfds.features.Image(shape=(96, 96, 3)),
    )
    image = tfds.features.Image(shape=(4, 6, 3), encoding_format="png")
    examples = (noise(6, 4, 6, 3), [0] * 6)
    store("sharded", {"train": examples}, 2, label=classes, image=image)
    return data_dir


COLOURS = noise(3, 4, 6, 3)
STL10 = noise(3, 96, 96, 3)


class TestDigits:
    def test_default(self):
        digits = data.load()
        assert digits.name == "digits"
        size = data._DEFAULTS["digits"][1]
        assert digits.images.shape == (1797, size, size, 1)
        assert digits.images.dtype == "uint8"
        assert digits.labels.dtype == "int32"
        assert digits.num_classes == 10
        assert len(digits) == len(digits.labels) == 1797
        np.testing.assert_array_equal(digits.labels[:10], range(10))
        # White strokes on a black margin.
        assert digits.images.max() == 255
        assert digits.images[:, 0].max() == 0

    def test_an_enlarged_digit_is_smooth(self):
        image = data.load(size=32).images[0, :, :, 0].astype(int)
        # Copying pixels would leave steps of up to 255.
        assert np.abs(np.diff(image, axis=0)).max() < 128
        assert np.abs(np.diff(image, axis=1)).max() < 128

    def test_size(self):
        assert data.load(size=24).images.shape == (1797, 24, 24, 1)

    def test_a_folder_of_that_name_changes_nothing(self, tmp_path, monkeypatch):
        (tmp_path / "digits").mkdir()
        monkeypatch.chdir(tmp_path)
        assert len(data.load()) == 1797

    def test_split(self):
        with pytest.raises(ValueError, match="split='test' .*'digits'"):
            data.load(split="test")


class TestTensorflowDatasets:
    def test_images_and_labels(self, data_dir):
        loaded = data.load("colours", data_dir=data_dir)
        np.testing.assert_array_equal(loaded.images, COLOURS)
        np.testing.assert_array_equal(loaded.labels, [2, 0, 1])
        assert loaded.labels.dtype == "int32"
        assert loaded.num_classes == 3
        assert loaded.name == "colours"

    def test_split(self, data_dir):
        loaded = data.load("colours", "train[1:]", data_dir=data_dir)
        np.testing.assert_array_equal(loaded.images, COLOURS[1:])

    def test_missing_labels(self, data_dir):
        loaded = data.load("unlabelled", data_dir=data_dir)
        assert loaded.labels is None
        assert loaded.num_classes is None

    def test_mixed_sizes(self, data_dir):
        message = "--size N.*image 0 has 4 x 4 .*image 1 has 5 x 4"
        with pytest.raises(ValueError, match=message):
            data.load("mixed", data_dir=data_dir)
        loaded = data.load("mixed", size=3, data_dir=data_dir)
        assert loaded.images.shape == (2, 3, 3, 1)

    def test_a_folder_goes_first(self, data_dir, tmp_path, monkeypatch):
        for i in range(2):
            save(tmp_path / "colours" / f"{i}.png", noise(5, 5))
        monkeypatch.chdir(tmp_path)
        loaded = data.load("colours", data_dir=data_dir)
        assert loaded.images.shape == (2, 5, 5, 1)

    @pytest.mark.parametrize("name", ["no_such", "no/such/path", ""])
    def test_unknown(self, name, data_dir):
        message = f'"digits".*folder.*"cifar10".*Received: {name!r}'
        with pytest.raises(ValueError, match=message):
            data.load(name, data_dir=data_dir)

    def test_not_prepared(self, data_dir):
        message = f"--data-dir.*--download.*'cifar10'.*{data_dir}"
        with pytest.raises(ValueError, match=message):
            data.load("cifar10", data_dir=data_dir)
        assert not (data_dir / "cifar10").exists()

    def test_download(self, data_dir, monkeypatch):
        calls = []
        monkeypatch.setattr(
            tfds.core.DatasetBuilder,
            "download_and_prepare",
            lambda self: calls.append(self.name),
        )
        data.load("colours", data_dir=data_dir)
        assert calls == []
        data.load("colours", data_dir=data_dir, download=True)
        assert calls == ["colours"]

    @pytest.mark.parametrize("split", ["test", "train[:0]"])
    def test_unknown_or_empty_split(self, split, data_dir):
        with pytest.raises(ValueError) as error:
            data.load("colours", split, data_dir=data_dir)
        assert "splits ['train']" in str(error.value)
        assert f"split={split!r} of 'colours'" in str(error.value)

    def test_one_image(self, data_dir):
        with pytest.raises(ValueError, match="two images.*colours.* is 1"):
            data.load("colours", "train[:1]", data_dir=data_dir)

    def test_no_images(self, data_dir):
        with pytest.raises(ValueError, match="no 8-bit images.*'numbers'"):
            data.load("numbers", data_dir=data_dir)


class TestSTL10:
    def test_default(self, data_dir):
        loaded = data.load("stl10", data_dir=data_dir)
        assert loaded.images.dtype == "uint8"
        assert loaded.images.shape == (2, 48, 48, 3)
        assert loaded.labels is None
        assert loaded.num_classes is None
        for image, large in zip(loaded.images, STL10[1:]):
            small = Image.fromarray(large).resize((48, 48), Image.BILINEAR)
            np.testing.assert_array_equal(image, small)

    def test_version(self, data_dir):
        loaded = data.load("stl10:1.0.0", data_dir=data_dir)
        assert loaded.images.shape == (2, 48, 48, 3)

    def test_split(self, data_dir):
        loaded = data.load("stl10", "test", data_dir=data_dir)
        assert loaded.images.shape == (3, 48, 48, 3)
        np.testing.assert_array_equal(loaded.labels, [9, 0, 7])
        assert loaded.num_classes == 10

    def test_size(self, data_dir):
        loaded = data.load("stl10", size=96, data_dir=data_dir)
        np.testing.assert_array_equal(loaded.images, STL10[1:])
        loaded = data.load("stl10", "train", size=24, data_dir=data_dir)
        assert loaded.images.shape == (3, 24, 24, 3)

    def test_labelled_and_unlabelled(self, data_dir):
        loaded = data.load("stl10", "train+unlabelled", data_dir=data_dir)
        assert loaded.images.shape == (5, 48, 48, 3)
        assert loaded.labels is None

    def test_a_folder_of_that_name_is_a_folder(self, tmp_path, monkeypatch):
        for i in range(2):
            save(tmp_path / "stl10" / f"{i}.png", noise(5, 5))
        monkeypatch.chdir(tmp_path)
        assert data.load("stl10").images.shape == (2, 5, 5, 1)


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
        assert str(error.value).count(str(files[1])) == 1
        assert str(files[0]) not in str(error.value)

    def test_several_files(self, files, tmp_path):
        cut(files[0])
        empty(files[1])
        with pytest.raises(ValueError, match=f"{files[0]}.* and .*{files[1]}"):
            data.load("sharded", data_dir=tmp_path)

    def test_a_part_that_is_whole(self, files, tmp_path):
        cut(files[1])
        assert len(data.load("sharded", "train[:5]", data_dir=tmp_path)) == 5
        with pytest.raises(ValueError, match=f"image 2 of '{files[1]}'"):
            data.load("sharded", "train[2:]", data_dir=tmp_path)

    def test_another_split(self, data_dir, tmp_path):
        shutil.copytree(data_dir / "stl10", tmp_path / "stl10")
        (file,) = tmp_path.glob("stl10/1.0.0/*unlabelled*")
        cut(file)
        with pytest.raises(ValueError, match=f"image 1 of '{file}'"):
            data.load("stl10", data_dir=tmp_path)
        assert len(data.load("stl10", "train", data_dir=tmp_path)) == 3

    def test_other_errors_pass(self, files, tmp_path, monkeypatch):
        def no_memory(dataset):
            raise tf.errors.ResourceExhaustedError(None, None, "no memory")

        monkeypatch.setattr(tfds, "as_numpy", no_memory)
        with pytest.raises(tf.errors.ResourceExhaustedError):
            data.load("sharded", data_dir=tmp_path)


class TestFolder:
    def test_sorted_without_hidden_files(self, tmp_path):
        images = noise(3, 4, 6, 3)
        save(tmp_path / "b.png", images[1])
        save(tmp_path / "a.bmp", images[0])
        save(tmp_path / "c" / "d" / "e.png", images[2])
        (tmp_path / ".DS_Store").write_bytes(b"not an image")
        (tmp_path / ".cache").mkdir()
        (tmp_path / ".cache" / "x.txt").write_bytes(b"not an image")
        loaded = data.load(tmp_path)
        np.testing.assert_array_equal(loaded.images, images)
        assert loaded.name == str(tmp_path)
        # Two of the images lie outside of sub-folders.
        assert loaded.labels is None
        assert loaded.num_classes is None

    def test_sub_folders_are_classes(self, tmp_path):
        images = noise(3, 4, 4, 3)
        save(tmp_path / "owl" / "0.png", images[2])
        save(tmp_path / "cat" / "1.png", images[0])
        save(tmp_path / "cat" / "deep" / "0.png", images[1])
        loaded = data.load(str(tmp_path))
        np.testing.assert_array_equal(loaded.images, images)
        np.testing.assert_array_equal(loaded.labels, [0, 0, 1])
        assert loaded.num_classes == 2

    def test_jpeg(self, tmp_path):
        for i in range(2):
            save(tmp_path / f"{i}.jpg", np.full((8, 8, 3), 90, "uint8"))
        assert np.abs(data.load(tmp_path).images.astype(int) - 90).max() <= 2

    def test_greyscale(self, tmp_path):
        grey, colour = noise(4, 4), noise(4, 4, 3)
        save(tmp_path / "0.png", grey)
        save(tmp_path / "1.png", grey > 127)
        loaded = data.load(tmp_path)
        np.testing.assert_array_equal(loaded.images[0, :, :, 0], grey)
        np.testing.assert_array_equal(
            loaded.images[1, :, :, 0], 255 * (grey > 127)
        )
        assert loaded.images.shape == (2, 4, 4, 1)
        # Among colours all images have three channels.
        save(tmp_path / "2.png", colour)
        loaded = data.load(tmp_path)
        np.testing.assert_array_equal(loaded.images[0], np.dstack([grey] * 3))
        np.testing.assert_array_equal(loaded.images[2], colour)

    def test_transparent_pixels_are_white(self, tmp_path):
        rgba, grey_alpha = noise(4, 4, 4), noise(4, 4, 2)
        rgba[..., 3] = grey_alpha[..., 1] = 255
        rgba[0, :, 3] = grey_alpha[0, :, 1] = 0
        save(tmp_path / "0.png", rgba)
        save(tmp_path / "1.png", grey_alpha)
        loaded = data.load(tmp_path).images
        assert np.all(loaded[:, 0] == 255)
        np.testing.assert_array_equal(loaded[0, 1:], rgba[1:, :, :3])
        np.testing.assert_array_equal(
            loaded[1, 1:, :, :1], grey_alpha[1:, :, :1]
        )

    def test_half_transparent(self, tmp_path):
        for i in range(2):
            save(tmp_path / f"{i}.png", np.uint8([[[0, 0, 0, 51]]]))
        assert np.all(data.load(tmp_path).images == 204)

    def test_palette(self, tmp_path):
        palette = Image.new("P", (2, 1))
        palette.putpalette([10, 20, 30, 40, 50, 60])
        palette.putpixel((1, 0), 1)
        palette.save(tmp_path / "0.png")
        palette.save(tmp_path / "1.png", transparency=1)
        loaded = data.load(tmp_path).images
        assert loaded[0].tolist() == [[[10, 20, 30], [40, 50, 60]]]
        assert loaded[1].tolist() == [[[10, 20, 30], [255, 255, 255]]]

    @pytest.mark.parametrize("name", ["0.png", "0.tif", "0.pgm"])
    def test_sixteen_bits(self, name, tmp_path):
        save(tmp_path / name, np.uint16([[0, 157, 128 * 257, 65535]]))
        save(tmp_path / "1.png", np.uint8([[0, 1, 128, 255]]))
        loaded = data.load(tmp_path).images
        np.testing.assert_array_equal(loaded[0], loaded[1])

    def test_exif_rotation(self, tmp_path):
        exif = Image.Exif()
        exif[0x0112] = 6  # Turn by 90 degrees clockwise to see it upright.
        array = noise(4, 6, 3)
        save(tmp_path / "0.png", array, exif=exif)
        save(tmp_path / "1.png", np.rot90(array, -1))
        loaded = data.load(tmp_path).images
        assert loaded.shape == (2, 6, 4, 3)
        np.testing.assert_array_equal(loaded[0], loaded[1])

    def test_resize_takes_the_central_square(self, tmp_path):
        wide = np.zeros((8, 24), "uint8")
        wide[:, 8:16] = 200
        save(tmp_path / "0.png", wide)
        save(tmp_path / "1.png", wide.T)
        loaded = data.load(tmp_path, size=4).images
        assert loaded.shape == (2, 4, 4, 1)
        # Bicubic weights let a little of what is beside it in.
        assert np.abs(loaded.astype(int) - 200).max() < 20

    def test_resize_averages(self, tmp_path):
        checkers = 255 * (np.indices((64, 64)).sum(axis=0) % 2)
        for i in range(2):
            save(tmp_path / f"{i}.png", checkers.astype("uint8"))
        inner = data.load(tmp_path, size=8).images[:, 2:-2, 2:-2]
        assert np.abs(inner.astype(int) - 128).max() <= 2

    def test_bad_size(self):
        with pytest.raises(ValueError, match="size=0"):
            data.load(size=0)

    def test_no_images(self, tmp_path):
        (tmp_path / "empty").mkdir()
        (tmp_path / ".hidden.png").write_bytes(b"")
        with pytest.raises(ValueError, match=f"no images.*{tmp_path}"):
            data.load(tmp_path)

    def test_one_image(self, tmp_path):
        save(tmp_path / "0.png", noise(4, 4))
        with pytest.raises(ValueError, match=f"two images.*{tmp_path}.* is 1"):
            data.load(tmp_path)

    def test_mixed_sizes(self, tmp_path):
        save(tmp_path / "0.png", noise(4, 6))
        save(tmp_path / "1.png", noise(4, 6))
        save(tmp_path / "a" / "2.png", noise(6, 4))
        message = "--size N.*0.png has 6 x 4 .*a/2.png has 4 x 6"
        with pytest.raises(ValueError, match=message):
            data.load(tmp_path)
        assert data.load(tmp_path, size=4).images.shape == (3, 4, 4, 1)

    @pytest.mark.parametrize(
        ("name", "content"),
        [("bad.png", b""), ("bad.txt", b"hello"), ("a/bad", b"hello")],
    )
    def test_not_an_image(self, name, content, tmp_path):
        for i in range(2):
            save(tmp_path / "a" / f"{i}.png", noise(4, 4))
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"move it out.*{tmp_path}/{name}"):
            data.load(tmp_path)

    @pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "tif", "gif"])
    def test_truncated(self, suffix, tmp_path):
        save(tmp_path / "0.png", noise(32, 32))
        whole = tmp_path / f"1.{suffix}"
        save(whole, noise(32, 32))
        assert len(data.load(tmp_path)) == 2
        whole.write_bytes(whole.read_bytes()[:-300])
        with pytest.raises(ValueError, match=f"move it out.*{whole}"):
            data.load(tmp_path)

    @pytest.mark.parametrize("value", [0.5, -1, 65536])
    def test_unknown_range(self, value, tmp_path):
        dtype = "float32" if isinstance(value, float) else "int32"
        save(tmp_path / "0.tif", np.full((4, 4), value, dtype))
        with pytest.raises(ValueError, match="0.tif.*range"):
            data.load(tmp_path)

    def test_split(self, tmp_path):
        with pytest.raises(ValueError, match=f"split='test'.*{tmp_path}"):
            data.load(tmp_path, split="test")


class TestBatches:
    @pytest.fixture(params=["tensorflow", "jax"], autouse=True)
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
        values = np.sort(np.ravel(batch))
        assert values[0] == -1 and values[-1] == 1
        np.testing.assert_allclose(values, np.linspace(-1, 1, 256), atol=1e-6)

    @pytest.mark.parametrize("batch_size", [1, 7, 10, 13])
    def test_feed(self, batch_size):
        """From any number on, the batches of these numbers."""
        made = Batches([np.arange(10), -np.arange(10)], batch_size)
        for start in (0, 1, 24, 10**12):  # Counting so far would take hours.
            drawn = itertools.islice(made.feed(start, start + 3), 3)
            for number, batch in enumerate(drawn, start):
                for x, y in zip(batch, made[number]):
                    np.testing.assert_array_equal(x, y)
                np.testing.assert_array_equal(batch[1], -np.array(batch[0]))


def test_each_example_once_in_each_pass():
    # Ten batches of seven make seven passes of ten.
    made = Batches([np.arange(10)], 7)
    passes = np.reshape([made[number][0] for number in range(10)], (7, 10))
    np.testing.assert_array_equal(np.sort(passes), [range(10)] * 7)
    assert len({tuple(each) for each in passes}) == 7


def test_the_seed_decides_on_the_order():
    first = Batches([np.arange(50)], 8, seed=1)
    np.random.default_rng(0).random()
    np.testing.assert_array_equal(
        first[5], Batches([np.arange(50)], 8, seed=1)[5]
    )
    assert np.any(first[5][0] != Batches([np.arange(50)], 8, seed=2)[5][0])


def test_mirrored():
    """About half of the examples, and whatever of them has a width."""
    images, maps, labels = noise(60, 2, 3, 3), noise(60, 2, 3), np.arange(60)
    mirrored = 0
    made = Batches([images, maps, labels], 60, mirror=True)
    for image, label_map, label in zip(*made[0]):
        turned = np.any(image != images[label])
        mirrored += turned
        step = -1 if turned else 1
        np.testing.assert_array_equal(image, images[label][:, ::step])
        np.testing.assert_array_equal(label_map, maps[label][:, ::step])
    assert 15 < mirrored < 45
