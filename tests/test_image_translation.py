"""The example that makes photographs of label maps, on folders of noise."""

import functools
import json
import os
import shutil

import keras
import numpy as np
import pytest
from helpers import (
    BACKEND,
    RNG,
    assert_exported,
    nearly,
    needs_training,
    noise,
    pixels,
    quickly,
    save,
    written,
)
from PIL import Image

from experiments import image_translation, runs, scenes, training
from keras_san import callbacks, normalizers
from keras_san.networks import spade

SIZE = (64, 96)
COLOURS = [[10, 200, 30], [90, 0, 250], [250, 240, 0], [120, 120, 120]]
SMALL = [
    *("--size", "64", "96", "--upsamplings", "5", "--width", "0.02"),
    *("--critic-width", "0.02", "--batch-size", "2", "--steps-per-epoch", "2"),
]


pytestmark = pytest.mark.usefixtures("quick")


def command(*arguments):
    return image_translation.main([str(argument) for argument in arguments])


def train(output, *arguments):
    return command("train", *SMALL, "--output", output, *arguments)


def parse(*arguments):
    return image_translation.parse(arguments)


def regions(classes=4, height=70, width=100):
    """Labels in squares, all classes among them."""
    small = RNG.permutation(np.arange(height * width // 100) % classes)
    small = small.reshape(height // 10, width // 10).astype("uint8")
    return small.repeat(10, axis=0).repeat(10, axis=1)


def fill(folder, count, palette=COLOURS):
    """Scenes "0", "1", ... in sub-folders images and labels."""
    for i in range(count):
        save(folder / "images" / f"{i}.png", noise(70, 100))
        save(folder / "labels" / f"{i}.png", regions(), palette)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scenes")
    fill(folder / "train", 4)
    fill(folder / "val", 10)
    return folder


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """A folder with ids of instances, and pixels of no class."""
    folder = fill(tmp_path_factory.mktemp("marked"), 3)
    for i in range(3):
        labels = regions()
        labels[:20, 30:50] = 255
        save(folder / "labels" / f"{i}.png", labels)
        ids = regions(9).astype("uint16") + 1000
        save(folder / "instances" / f"{i}.png", ids)
    return folder


def taken(size, small):
    """Of which pixels of one axis the resized ones are, the nearest."""
    return np.floor((np.arange(small) + 0.5) * size / small).astype(int)


def nearest(array):
    rows, columns = (taken(n, m) for n, m in zip(array.shape, SIZE))
    return array[rows][:, columns]


def edges_of(ids):
    edges = np.zeros(ids.shape)
    for y, x in np.ndindex(ids.shape):
        edges[y, x] = any(
            ids[v, u] != ids[y, x]
            for v, u in [(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)]
            if 0 <= v < ids.shape[0] and 0 <= u < ids.shape[1]
        )
    return edges


@functools.cache
def generator_of(run):
    return keras.saving.load_model(run / "generator.keras", compile=False)


def made_of(run, *maps):
    """What a run's generator makes of maps `(height, width, channels)`."""
    model = generator_of(run)
    made = [model.predict_on_batch(m[None].astype("float32"))[0] for m in maps]
    return [np.clip((m + 1.0) * 127.5, 0, 255) for m in made]


def one_hot(labels, classes=4):
    return np.eye(classes)[nearest(labels)]


# What a training writes, and goes on with.


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    """Features of tiles, and, of images of any size, a convolution."""
    keras.utils.set_random_seed(0)
    path = tmp_path_factory.mktemp("judge") / "judge.keras"
    keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            keras.layers.Conv2D(8, 5, 4, activation="relu", name="texture"),
            keras.layers.GlobalAveragePooling2D(),
            keras.layers.Dense(4, name="features"),
            keras.layers.Dense(3, name="logits"),
        ]
    ).save(path)
    return path


@pytest.fixture(scope="module")
def settings(folder, judge):
    return [
        *("--data", folder, "--name", "run", "--epochs", "2", "--show", "2"),
        *("--evaluate-every", "2", "--extractor", judge, "--tiles", "32"),
        *("--perceptual", judge, "--perceptual-layers", "texture"),
        # Else there would be nothing to see after four steps.
        *("--learning-rate", "0.05"),
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, settings):
    """A run, and `stopped`: what of it there was before its last epoch."""
    output = tmp_path_factory.mktemp("runs")

    class Copy(callbacks.SampleGrid):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                shutil.copytree(self.directory, output / "stopped")

    with pytest.MonkeyPatch.context() as patch:
        quickly(patch, export=BACKEND == "tensorflow")
        patch.setattr(callbacks, "SampleGrid", Copy)
        assert train(output, *settings) == 0
    return output / "run"


@needs_training
class TestTraining:
    def test_files(self, trained):
        assert {
            "classes.json",
            "curves.png",
            "generator.keras",
            "log.csv",
            "samples.png",
            "samples_0001.png",
            "samples_0002.png",
            "settings.json",
        } <= {*os.listdir(trained)}
        assert os.listdir(trained / "checkpoint") == ["epoch_2.keras"]
        assert len(os.listdir(trained / "tensorboard")) == 1
        with open(trained / "classes.json") as file:
            assert json.load(file) == CLASSES
        with open(trained / "settings.json") as file:
            written = json.load(file)
        assert written["size"] == [64, 96] and written["tiles"] == 32
        assert written["extractor"] == "judge.keras"
        assert written["epochs"] == 2

    def test_log(self, trained):
        rows = callbacks.read_log(trained / "log.csv")
        assert [row["step"] for row in rows] == [2, 4]
        for row in rows:
            assert np.all(np.isfinite([*row.values()]))
            assert {
                "feature_matching_loss",
                "perceptual_loss",
                "norm/scale_1_conv_1",
                "norm/scale_2_conv_5",
                "tiles32_judge_fid",
                "tiles32_judge_kid",
                "tiles32_judge_is",
            } <= {*row}
            assert row["tiles32_judge_samples"] == 10 * 6
            assert row["tiles32_judge_real_samples"] == 10 * 6

    def test_what_is_measured(self, trained, folder, judge):
        """All tiles of the validation split, by the last generator."""
        real, maps = [], []
        for i in range(10):
            real.append(photograph(folder, i))
            with Image.open(folder / "val" / "labels" / f"{i}.png") as image:
                maps.append(one_hot(np.asarray(image)))
        model = keras.saving.load_model(judge)
        model = keras.Model(model.inputs[0], model.get_layer("features").output)
        moments = []
        for images in (real, [np.rint(x) for x in made_of(trained, *maps)]):
            tiles = [
                image[y : y + 32, x : x + 32] / 127.5 - 1.0
                for image in images
                for y in (0, 32)
                for x in (0, 32, 64)
            ]
            features = model.predict_on_batch(np.array(tiles, "float32"))
            features = np.asarray(features, "float64")
            moments.append((features.mean(axis=0), np.cov(features.T)))
        (mean_1, cov_1), (mean_2, cov_2) = moments
        roots = np.sqrt(np.linalg.eigvals(cov_1 @ cov_2).real.clip(0)).sum()
        expected = np.sum((mean_1 - mean_2) ** 2)
        expected += np.trace(cov_1) + np.trace(cov_2) - 2 * roots
        row = callbacks.read_log(trained / "log.csv")[-1]
        np.testing.assert_allclose(
            row["tiles32_judge_fid"], expected, rtol=0.02
        )

    def test_what_is_shown(self, trained, folder):
        """The labels, what is made of them, and the photograph."""
        sheet = pixels(trained / "samples.png")
        height, width = SIZE
        assert sheet.shape == (2 * (height + 4) + 4, 3 * (width + 4) + 4, 3)
        # Two of the ten, from all over the split.
        for row, i in enumerate((0, 5)):
            y = 4 + row * (height + 4)
            shown = [
                sheet[y : y + height, x : x + width]
                for x in (4, 8 + width, 12 + 2 * width)
            ]
            with Image.open(folder / "val" / "labels" / f"{i}.png") as image:
                labels = np.asarray(image)
            colours = np.array(COLOURS)[nearest(labels)]
            np.testing.assert_array_equal(shown[0], colours)
            (made,) = made_of(trained, one_hot(labels))
            assert nearly(shown[1], made) and made.std() > 1.0
            np.testing.assert_array_equal(shown[2], photograph(folder, i))

    def test_translate(self, trained, folder, tmp_path, capsys):
        path = folder / "val" / "labels" / "3.png"
        arguments = ["--run", trained, "--output", tmp_path / "out"]
        assert command("translate", path, *arguments) == 0
        with Image.open(path) as image:
            (made,) = made_of(trained, one_hot(np.asarray(image)))
        assert nearly(pixels(tmp_path / "out" / "3.png"), made)
        assert "96 x 64" in capsys.readouterr().out

    def test_resuming(self, trained, settings, tmp_path):
        """As if it had not been stopped in its last epoch."""
        shutil.copytree(trained.parent / "stopped", tmp_path / "run")
        assert not (tmp_path / "run" / "generator.keras").exists()
        before = written(tmp_path)
        with pytest.raises(ValueError, match="'normalizer': 'san -> sn'"):
            train(tmp_path, *settings, "--resume", "--normalizer", "sn")
        # Rates fall by the length of the training.
        with pytest.raises(ValueError, match="'epochs': '2 -> 3'"):
            train(tmp_path, *settings, "--resume", "--epochs", "3")
        with pytest.raises(ValueError, match="'tiles': '32 -> 16'"):
            train(tmp_path, *settings, "--resume", "--tiles", "16")
        with pytest.raises(ValueError, match="exists from another run"):
            train(tmp_path, *settings)
        assert written(tmp_path) == before
        assert train(tmp_path, *settings, "--resume") == 0
        weights = [
            generator_of(run).get_weights()
            for run in (trained, tmp_path / "run")
        ]
        for a, b in zip(*weights):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        expected, found = (
            callbacks.read_log(run / "log.csv")
            for run in (trained, tmp_path / "run")
        )
        assert [row["epoch"] for row in found] == [1, 2]
        for a, b in zip(expected, found):
            for name in a.keys() - {"seconds"}:
                np.testing.assert_allclose(
                    a[name], b[name], rtol=1e-3, atol=1e-5
                )

    @pytest.mark.skipif(
        BACKEND != "tensorflow",
        reason="each backend exports in its own way; run on tensorflow",
    )
    def test_exported(self, trained):
        maps = one_hot(regions())
        (expected,) = made_of(trained, maps)
        assert_exported(trained / "generator", [maps], expected)


def photograph(folder, index):
    with Image.open(folder / "val" / "images" / f"{index}.png") as image:
        image = image.resize(SIZE[::-1], Image.Resampling.BICUBIC)
        return np.asarray(image).astype("float64")


@pytest.mark.skipif(
    BACKEND != "tensorflow",
    reason="about maps, not about what trains on them; run on tensorflow",
)
def test_instances_and_void(tmp_path, marked):
    """A class more for pixels without one, and a channel more for edges."""
    status = train(
        *(tmp_path, "--name", "run", "--data", marked, "--void", "255"),
        *("--epochs", "1", "--ema", "0.5", "--learning-rate", "0.05"),
        *("--steps-per-epoch", "1"),
    )
    assert status == 0
    run = tmp_path / "run"
    with open(run / "classes.json") as file:
        classes = json.load(file)
    assert classes == {"num_classes": 5, "void": 255, "edges": True}
    (row,) = callbacks.read_log(run / "log.csv")
    assert np.all(np.isfinite([*row.values()]))
    assert generator_of(run).input_shape == (None, *SIZE, 6)
    # One scene is held out, and shown by the averaged generator.
    made = made_of(run, marked_maps(marked, "2"))[0]
    sheet = pixels(run / "samples.png")
    assert sheet.shape[0] == SIZE[0] + 8
    assert nearly(sheet[4:-4, 8 + SIZE[1] : 8 + 2 * SIZE[1]], made)


def marked_maps(folder, name):
    """Four classes, what has none, and edges."""
    labels, ids = (
        np.asarray(Image.open(folder / kind / f"{name}.png"))
        for kind in ("labels", "instances")
    )
    labels = np.where(labels == 255, 4, labels)
    edges = edges_of(nearest(ids))
    return np.concatenate([one_hot(labels, 5), edges[..., None]], axis=-1)


def test_which_scenes(folder, marked, tmp_path):
    def loaded(path, *arguments):
        args = parse("--data", path, "--size", *SIZE, *arguments)
        return image_translation.load_scenes(args)

    training, validation = loaded(folder)
    assert (len(training), len(validation)) == (4, 10)
    assert training.images.shape[1:3] == training.labels.shape[1:] == SIZE
    assert training.map_channels == validation.map_channels == 4
    training, validation = loaded(folder, "--classes", "7")
    assert training.map_channels == validation.map_channels == 7
    for part in loaded(marked, "--void", "255"):
        assert part.map_channels == 6
        assert (part.labels == 4).any() and part.labels.max() == 4
    for part in loaded(marked, "--void", "255", "--classes", "9"):
        assert part.map_channels == 11 and part.labels.max() == 9
    # Ids for one split only.
    shutil.copytree(folder, tmp_path / "half")
    for i in range(4):
        save(tmp_path / "half" / "train" / "instances" / f"{i}.png", regions())
    with pytest.raises(ValueError, match="Instance ids.*or for neither.*half"):
        loaded(tmp_path / "half")


# What uses a network, on any backend.


CLASSES = {"num_classes": 4, "void": None, "edges": False}


def make_run(path, classes):
    """What a training leaves, of a network that is soon loaded."""
    channels = classes["num_classes"] + classes["edges"]
    keras.utils.set_random_seed(0)
    model = keras.Sequential(
        [
            keras.Input((*SIZE, channels)),
            keras.layers.Conv2D(3, 5, padding="same", activation="tanh"),
        ]
    )
    path.mkdir(parents=True)
    runs.save_network(model, path / "generator.keras")
    with open(path / "classes.json", "w") as file:
        json.dump(classes, file)
    return path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("plain") / "run", CLASSES)


@pytest.fixture(scope="module")
def run_with_edges(tmp_path_factory):
    classes = {"num_classes": 5, "void": 255, "edges": True}
    return make_run(tmp_path_factory.mktemp("edges") / "run", classes)


class TestTranslate:
    def translate(self, run, output, *arguments):
        return command(
            "translate", "--run", run, "--output", output, *arguments
        )

    def test_files_and_folders(self, run, tmp_path):
        maps = {
            "alone.png": regions(),
            "many/a.png": regions(height=90),
            "many/inner/b.png": regions(height=40, width=60),
        }
        for name, labels in maps.items():
            save(tmp_path / name, labels)
        out = tmp_path / "out"
        paths = [tmp_path / "alone.png", tmp_path / "many"]
        assert self.translate(run, out, *paths) == 0
        assert written(out) == ["a.png", "alone.png", "inner/b.png"]
        made = made_of(run, *(one_hot(labels) for labels in maps.values()))
        for name, expected in zip(maps, made):
            assert nearly(pixels(out / name.removeprefix("many/")), expected)
        # The maps can be told apart by what is made of them.
        assert np.abs(made[0] - made[1]).max() > 10.0

    def test_force(self, run, tmp_path):
        labels = save(tmp_path / "a.png", regions())
        before = save(tmp_path / "out" / "a.png", noise(70, 100))
        arguments = [run, tmp_path / "out", tmp_path / "a.png"]
        with pytest.raises(ValueError, match="with --force only.*a.png"):
            self.translate(*arguments)
        np.testing.assert_array_equal(
            pixels(tmp_path / "out" / "a.png"), before
        )
        assert self.translate(*arguments, "--force") == 0
        (expected,) = made_of(run, one_hot(labels))
        assert nearly(pixels(tmp_path / "out" / "a.png"), expected)

    def test_what_is_left_out(self, run, tmp_path, capsys):
        """All else is made all the same."""
        maps = tmp_path / "maps"
        save(maps / "a.png", regions(5))
        save(maps / "b.png", noise(70, 100))
        (maps / "c.png").write_bytes(b"nothing")
        save(maps / "d.png", regions())
        assert self.translate(run, tmp_path / "out", maps) == 1
        assert os.listdir(tmp_path / "out") == ["d.png"]
        printed = capsys.readouterr().out.splitlines()
        assert "3 left out:" in printed
        found = [x for x in printed if x.startswith(f"  {maps}")]
        (too_large, colours, broken) = found
        assert "the label 4 in" in too_large and "a.png" in too_large
        assert "number of classes, 4. The network was trained on" in too_large
        assert "experiments.image_translation number FOLDER" in colours
        assert "b.png" in colours
        assert "cannot be read" in broken and "c.png" in broken

    def test_colours_become_numbers(self, run, tmp_path, capsys):
        labels = {name: regions(3) for name in ("a", "inner/b")}
        # As they are sorted.
        colours = np.uint8([[0, 9, 255], [0, 10, 0], [200, 0, 0]])
        for name, numbers in labels.items():
            save(tmp_path / "maps" / f"{name}.png", colours[numbers])
        numbered, out = tmp_path / "numbered", tmp_path / "out"
        assert command("number", tmp_path / "maps", "--output", numbered) == 0
        printed = capsys.readouterr().out.splitlines()
        assert printed[:3] == ["  0  #0009ff", "  1  #000a00", "  2  #c80000"]
        assert "2 files" in printed[3]
        assert self.translate(run, out, numbered) == 0
        maps = [one_hot(numbers) for numbers in labels.values()]
        for name, expected in zip(labels, made_of(run, *maps)):
            assert nearly(pixels(out / f"{name}.png"), expected)
        with pytest.raises(ValueError, match="not written over.*numbered"):
            command("number", tmp_path / "maps", "--output", numbered)

    def test_instances_and_void(self, run_with_edges, tmp_path, capsys):
        labels = regions()
        labels[10:30, 5:50] = 255
        ids = regions(9).astype("uint16") * 1000
        save(tmp_path / "labels" / "city" / "a.png", labels)
        save(tmp_path / "labels" / "b.png", labels)
        save(tmp_path / "instances" / "city" / "a.png", ids)
        arguments = [run_with_edges, tmp_path / "out", tmp_path / "labels"]
        arguments += ["--instances", tmp_path / "instances"]
        status = self.translate(*arguments)
        assert status == 1
        assert written(tmp_path / "out") == ["city/a.png"]
        assert "ids of its instances" in capsys.readouterr().out
        maps = marked_maps(tmp_path, "city/a")
        without = maps * [1, 1, 1, 1, 1, 0]
        expected, other = made_of(run_with_edges, maps, without)
        found = pixels(tmp_path / "out" / "city" / "a.png")
        assert nearly(found, expected)
        assert np.abs(found - other).max() > 10.0

    def test_instances_for_whom_they_are(self, run, run_with_edges, tmp_path):
        save(tmp_path / "a.png", regions())
        arguments = [tmp_path / "out", tmp_path / "a.png"]
        with pytest.raises(ValueError, match="Pass --instances.*trained with "):
            self.translate(run_with_edges, *arguments)
        with pytest.raises(ValueError, match="for one trained without them"):
            self.translate(run, *arguments, "--instances", tmp_path)
        assert not (tmp_path / "out").exists()

    def test_no_network(self, run, tmp_path):
        save(tmp_path / "a.png", regions())
        arguments = [tmp_path / "out", tmp_path / "a.png"]
        with pytest.raises(ValueError, match="translation train.*generator"):
            self.translate(tmp_path / "nowhere", *arguments)
        shutil.copytree(run, tmp_path / "run")
        os.remove(tmp_path / "run" / "classes.json")
        with pytest.raises(ValueError, match="leaves a file.*classes.json"):
            self.translate(tmp_path / "run", *arguments)
        assert not (tmp_path / "out").exists()


# Settings, and what is wrong with them.


@pytest.fixture
def built_once(monkeypatch):
    """The generator of the settings here, of which nothing is trained."""
    monkeypatch.setattr(spade, "generator", GENERATOR)


GENERATOR = functools.cache(spade.generator)


@needs_training
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--size", "80", "96"], "multiples of 32.*: 64, 96.*--size 80 96"),
        (["--size", "32", "64"], "at least 64.*--size 32 64"),
        (["--size", "96", "96", "--upsamplings", "6"], "6.* of 64.*: 64, 128"),
        (["--classes", "3"], "classes, 3.*--classes.*label 3 in '.*.png'"),
        (["--tiles", "65"], "--tiles 65 with --size .64, 96."),
        (["--evaluate-every", "3"], "--evaluate-every 3 with --steps.* 2"),
        (["--extractor", "missing.keras"], "no such extractor.*missing.keras"),
        (["--extractor", "inception"], "inception without --download"),
        (["--perceptual", "vgg19"], "--perceptual vgg19 without --download"),
        (["--normalizer", "sn", "--ratio", "0.5"], "SAN.*0.5.*-normalizer sn"),
        (["--normalizer", "none", "--form", "divide"], "--normalizer none"),
        (["--perceptual-layers", "a", "b"], "--perceptual-layers a b without"),
        (["--strategy", "multi_worker"], "--strategy multi_worker"),
        (["--show", "0"], "show=0"),
        (["--critic", "other"], "--critic other"),
        (["--resume"], "no run to resume"),
    ],
)
def test_bad_arguments(
    tmp_path, folder, judge, built_once, arguments, expected
):
    good = ["--evaluate-every", "2", "--extractor", judge, "--data", folder]
    with pytest.raises(ValueError, match=expected):
        train(tmp_path, *good, *arguments)
    assert os.listdir(tmp_path) == []


@needs_training
class TestBadFolders:
    def refused(self, tmp_path, folder, *arguments):
        with pytest.raises(ValueError) as error:
            train(tmp_path / "runs", "--data", folder, *arguments)
        assert not (tmp_path / "runs").exists()
        return str(error.value)

    def test_sizes_differ(self, tmp_path):
        folder = fill(tmp_path / "made", 3)
        save(folder / "labels" / "1.png", regions(height=60))
        message = self.refused(tmp_path, folder)
        assert "same size" in message
        assert "images/1.png' with 100 x 70" in message
        assert "labels/1.png' with 100 x 60" in message

    def test_no_pairs(self, tmp_path):
        folder = fill(tmp_path / "made", 3)
        os.remove(folder / "labels" / "2.png")
        message = self.refused(tmp_path, folder)
        assert "same names" in message and "'2', which is not in" in message
        assert str(folder / "labels") in message

    def test_colours(self, tmp_path):
        folder = fill(tmp_path / "made", 3)
        save(folder / "labels" / "0.png", noise(70, 100))
        message = self.refused(tmp_path, folder)
        assert "image_translation number FOLDER" in message
        assert str(folder / "labels" / "0.png") in message

    def test_void(self, tmp_path, marked):
        message = self.refused(tmp_path, marked, "--classes", "4")
        assert "pass it by --void" in message and "the label 255" in message

    def test_no_scenes(self, tmp_path):
        message = self.refused(tmp_path, tmp_path)
        assert "sub-folders `images` and `labels`" in message


def test_how_often_to_evaluate(folder, judge):
    args = parse(
        *("--data", folder, "--size", *SIZE, "--steps-per-epoch", "2"),
        *("--evaluate-every", "6", "--tiles", "32"),
    )
    _, validation = image_translation.load_scenes(args)
    found = image_translation.make_evaluation(args, judge, validation)
    assert found.every == 3


def test_an_evaluation_may_pause(tmp_path):
    """What it looks at stays, and is what it goes on with."""

    def opened(*arguments):
        args = parse("--output", tmp_path, *arguments)
        return runs.Run(args, args.extractor)

    evaluated = ["--evaluate-every", "100", "--extractor", "a.keras"]
    opened(*evaluated, "--tiles", "32").begin()
    resumed = opened("--resume")
    assert resumed.record["tiles"] == 32
    resumed.begin()
    with pytest.raises(ValueError, match="'tiles': '32 -> 16'"):
        opened("--resume", *evaluated, "--tiles", "16")


def test_what_does_not_fit_is_known_before_data_are_read(tmp_path, monkeypatch):
    def load(*args, **kwargs):
        raise AssertionError

    monkeypatch.setattr(scenes, "load", load)
    for arguments in (
        ["--normalizer", "sn", "--gain", "2"],
        ["--size", "48", "64"],
        ["--evaluate-every", "2", "--extractor", "missing.keras"],
    ):
        with pytest.raises(ValueError, match="Received"):
            train(tmp_path, *arguments)


def test_one_scene_to_validate(folder, judge):
    args = parse("--data", folder, "--size", *SIZE, "--evaluate-every", "100")
    _, validation = image_translation.load_scenes(args)
    with pytest.raises(ValueError, match="two scenes.*--evaluate-every 100"):
        image_translation.make_evaluation(args, judge, validation[:1])


@pytest.mark.usefixtures("built_once")
class TestSettings:
    def test_small(self):
        args = parse()
        assert args.run_name == "photographs-spade-san"
        assert (args.size, args.upsamplings) == ((96, 96), 5)
        assert args.perceptual == "none" and args.ratio is None
        assert (args.learning_rate, args.ema) == (5e-4, 0.99)
        args = parse("--data", "a/b/", "--normalizer", "sn")
        assert args.run_name == "b-spade-sn"

    def test_paper(self):
        """SAN's section 4.2, and SPADE's appendix."""
        args = parse("--preset", "paper")
        assert (args.normalizer, args.ratio, args.gain) == ("san", 0.25, 1.3)
        assert (args.size, args.upsamplings) == ((256, 512), 6)
        assert (args.learning_rate, args.critic_learning_rate) == (1e-4, 4e-4)
        assert (args.betas, args.ema) == ((0.5, 0.9), 0.0)
        assert (args.width, args.critic_width) == (1.0, None)
        assert (args.batch_size, args.critic_steps) == (32, 1)
        assert (args.epochs, args.decay) == (200, 0.5)
        # An epoch is a pass over the 2,975 scenes of Cityscapes.
        assert round(args.steps_per_epoch * args.batch_size, -2) == 3000
        assert (args.perceptual, args.perceptual_weight) == ("vgg19", 10.0)
        assert args.feature_matching == 10.0
        # The first layer of each block, as SPADE's code weighs them.
        assert image_translation.perceptual_layers(args) == {
            "block1_conv1": 1 / 32,
            "block2_conv1": 1 / 16,
            "block3_conv1": 1 / 8,
            "block4_conv1": 1 / 4,
            "block5_conv1": 1.0,
        }
        args = parse("--preset", "paper", "--normalizer", "sn")
        assert args.ratio is args.gain is None
        args = parse("--preset", "paper", "--form", "project")
        assert args.ratio is args.gain is None
        args = parse("--preset", "paper", "--ratio", "0.5", "--size", 64, 128)
        assert (args.ratio, args.gain, args.size) == (0.5, 1.3, (64, 128))

    def make(self, *arguments):
        return image_translation.make_gan(parse(*arguments, *SMALL), 4, [])

    def test_networks(self):
        gan = self.make("--preset", "paper")
        convolutions = [x for x in gan.critic.layers if "_conv_" in x.name]
        assert len(convolutions) == 10
        for layer in convolutions:
            assert isinstance(layer.normalizer, normalizers.SparsityAware)
            assert layer.normalizer.ratio == 0.25
            assert layer.normalizer.gain == 1.3
            assert layer.get_config()["padding"] == "circular"
        assert not self.instance_norms(gan)
        assert (gan.joint, gan.feature_matching) == (True, 10.0)
        rates = {
            1e-4: gan.generator_optimizer,
            4e-4: gan.critic_optimizer,
        }
        for rate, adam in rates.items():
            np.testing.assert_allclose(float(adam.learning_rate), rate)
            assert (adam.beta_1, adam.beta_2) == (0.5, 0.9)

    def test_the_original_critic(self):
        settings = ["--padding", "same", "--ema", "0"]
        gan = self.make("--critic", "original", *settings)
        assert len(self.instance_norms(gan)) == 2 * 3
        layer = gan.critic.get_layer("scale_1_conv_2")
        assert layer.normalizer.ratio == 1.0
        assert layer.get_config()["padding"] == "same"
        assert gan.averaged_generator is None

    def instance_norms(self, gan):
        kind = keras.layers.GroupNormalization
        return [x for x in gan.critic.layers if isinstance(x, kind)]

    def test_perceptual_layers(self, judge):
        args = parse(
            *("--perceptual", judge, "--perceptual-layers", "texture"),
            *("--perceptual-weight", "3"),
        )
        assert image_translation.perceptual_layers(args) == {"texture": 1.0}
        (loss,) = training.make_perceptual_losses(
            args,
            layers=image_translation.perceptual_layers(args),
            activated=True,
        )
        assert loss.weight == 3.0
        assert training.make_perceptual_losses(parse()) == []
