"""The experiment that makes photographs of label maps, on folders of noise."""

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
    noise,
    pixels,
    quickly,
    save,
    written,
)
from PIL import Image

from experiments import image_translation, label_maps, runs, scenes
from keras_san import callbacks, normalizers
from keras_san.metrics import extractors, generative

SIZE = (64, 96)
COLOURS = noise(1, 256)[0]
SMALL = [
    *("--size", "64", "96", "--upsamplings", "5", "--width", "0.02"),
    *("--critic-width", "0.02", "--batch-size", "2", "--steps-per-epoch", "2"),
]
PLAIN = {"num_classes": 4, "void": None, "edges": False}
MARKED = {"num_classes": 5, "void": 255, "edges": True}


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


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Scenes with ids of instances, and pixels of no class."""
    folder = tmp_path_factory.mktemp("scenes")
    for split, count in (("train", 4), ("val", 10)):
        for i in range(count):
            labels = regions()
            labels[:20, 30:50] = 255
            ids = regions(9).astype("uint16") + 1000
            for kind, *content in (
                ("images", noise(70, 100)),
                ("labels", labels, COLOURS),
                ("instances", ids),
            ):
                save(folder / split / kind / "city" / f"{i}.png", *content)
    return folder


def one_hot(labels, classes=4):
    """Labels resized by the nearest pixel."""
    rows, columns = (
        np.floor((np.arange(n) + 0.5) * m / n).astype(int)
        for n, m in zip(SIZE, labels.shape)
    )
    return np.eye(classes)[labels[rows][:, columns]]


def marked_maps(folder, name):
    """Four classes, what has none, and edges."""
    labels, ids = (
        np.asarray(Image.open(folder / kind / "city" / f"{name}.png"))
        for kind in ("labels", "instances")
    )
    maps = one_hot(np.where(labels == 255, 4, labels), 5)
    edges = label_maps.instance_edges(label_maps.nearest(ids, SIZE))
    return np.concatenate([maps, edges[..., None]], axis=-1)


def photograph(folder, name):
    with Image.open(folder / "images" / "city" / f"{name}.png") as image:
        image = image.resize(SIZE[::-1], Image.Resampling.BICUBIC)
        return np.asarray(image).astype("float64")


@functools.cache
def generator_of(run):
    return keras.saving.load_model(run / "generator.keras", compile=False)


def made_of(run, *maps):
    """What a run's generator makes of maps `(height, width, channels)`."""
    model = generator_of(run)
    made = [model.predict_on_batch(m[None].astype("float32"))[0] for m in maps]
    return [np.clip((m + 1.0) * 127.5, 0, 255) for m in made]


# A training, and what it goes on with.


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
        *("--data", folder, "--void", "255", "--name", "run"),
        *("--epochs", "2", "--show", "2", "--ema", "0.5"),
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


class TestTraining:
    def test_files(self, trained):
        assert {"curves.png", "samples_0001.png"} <= {*os.listdir(trained)}
        assert os.listdir(trained / "checkpoint") == ["epoch_2.keras"]
        assert len(os.listdir(trained / "tensorboard")) == 1
        # A class more for pixels without one, and a channel more for edges.
        assert runs.read_json(trained, "classes.json") == MARKED
        assert generator_of(trained).input_shape == (None, *SIZE, 6)
        assert runs.read_json(trained, "settings.json")["size"] == [64, 96]
        rows = callbacks.read_log(trained / "log.csv")
        assert [row["step"] for row in rows] == [2, 4]
        for row in rows:
            assert np.all(np.isfinite([*row.values()]))
            assert row["feature_matching_loss"] and row["perceptual_loss"]
            assert row["norm/scale_1_conv_1"] and row["norm/scale_2_conv_5"]

    def test_what_is_measured(self, trained, folder, judge):
        """All tiles of the validation split, by the last generator."""
        val = folder / "val"
        fid = generative.FrechetInceptionDistance(
            extractors.Tiles(str(judge), 32)
        )
        made = made_of(trained, *(marked_maps(val, i) for i in range(10)))
        fid.update_state(np.uint8(np.rint(made)))
        real = [photograph(val, i) for i in range(10)]
        fid.update_state(np.uint8(real), real=True)
        row = callbacks.read_log(trained / "log.csv")[-1]
        found, expected = row["tiles32_judge_fid"], fid.result()["fid"]
        np.testing.assert_allclose(found, expected, rtol=0.02)
        assert row["tiles32_judge_samples"] == 10 * 6
        assert row["tiles32_judge_real_samples"] == 10 * 6

    def test_what_is_shown(self, trained, folder):
        """The labels, what is made of them, and the photograph."""
        sheet = pixels(trained / "samples.png")
        height, width = SIZE
        assert sheet.shape == (2 * (height + 4) + 4, 3 * (width + 4) + 4, 3)
        # Two of the ten, from all over the split.
        for y, name in ((4, "0"), (8 + height, "5")):
            labels, image, truth = (
                sheet[y : y + height, x : x + width]
                for x in (4, 8 + width, 12 + 2 * width)
            )
            maps = marked_maps(folder / "val", name)
            colours = COLOURS[maps[..., :5].argmax(-1)]
            np.testing.assert_array_equal(labels, colours)
            (made,) = made_of(trained, maps)
            assert nearly(image, made) and made.std() > 1.0
            np.testing.assert_array_equal(
                truth, photograph(folder / "val", name)
            )

    def test_resuming(self, trained, settings, tmp_path):
        """As if it had not been stopped in its last epoch."""
        shutil.copytree(trained.parent / "stopped", tmp_path / "run")
        assert not (tmp_path / "run" / "generator.keras").exists()
        before = written(tmp_path)
        with pytest.raises(ValueError, match="'tiles': '32 -> 16'"):
            train(tmp_path, *settings, "--resume", "--tiles", "16")
        with pytest.raises(ValueError, match="exists from another run"):
            train(tmp_path, *settings)
        assert written(tmp_path) == before
        assert train(tmp_path, *settings, "--resume") == 0
        both = trained, tmp_path / "run"
        for a, b in zip(*(generator_of(run).get_weights() for run in both)):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        logs = [callbacks.read_log(run / "log.csv") for run in both]
        for a, b in zip(*logs, strict=True):
            values = [
                [x[name] for name in a.keys() - {"seconds"}] for x in (a, b)
            ]
            np.testing.assert_allclose(*values, rtol=1e-3, atol=1e-5)

    def test_exported(self, trained, folder):
        maps = marked_maps(folder / "val", 0)
        (expected,) = made_of(trained, maps)
        assert_exported(trained / "generator", [maps], expected)


def test_which_scenes(folder, judge, tmp_path):
    def loaded(path, *arguments):
        args = parse("--data", str(path), "--size", *SIZE, *arguments)
        return image_translation.load_scenes(args)

    # Void is a class more, and edges are a channel.
    for arguments, channels in (([], 6), (["--classes", "9"], 11)):
        train, validation = loaded(folder, "--void", "255", *arguments)
        assert (len(train), len(validation)) == (4, 10)
        for part in (train, validation):
            assert part.images.shape[1:3] == part.labels.shape[1:] == SIZE
            assert part.map_channels == channels
            assert part.labels.max() == channels - 2

    args = parse("--evaluate-every", "300", "--tiles", "32")
    evaluation = image_translation.make_evaluation(args, judge, validation)
    assert evaluation.every == 3
    with pytest.raises(ValueError, match="two scenes.*--evaluate-every 300"):
        image_translation.make_evaluation(args, judge, validation[:1])

    shutil.copytree(folder, tmp_path / "half")
    shutil.rmtree(tmp_path / "half" / "val" / "instances")
    with pytest.raises(ValueError, match="Instance ids.*or for neither.*half"):
        loaded(tmp_path / "half", "--void", "255")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--size", "80", "96"], "multiples of 32.*: 64, 96.*--size 80 96"),
        (["--size", "32", "64"], "at least 64.*--size 32 64"),
        (["--size", "96", "96", "--upsamplings", "6"], "6.* of 64.*: 64, 128"),
        (["--tiles", "65"], "at most 64.*--tiles 65 .* --size .64, 96."),
        (["--tiles", "9"], "pass --evaluate-every.*--tiles 9 with .* None"),
        (["--extractor", "missing.keras"], "no such extractor.*missing.keras"),
        (["--perceptual", "vgg19"], "--perceptual vgg19 without --download"),
        (["--perceptual-layers", "a", "b"], "--perceptual-layers a b without"),
        (["--show", "0"], "show=0"),
        (["--gain", "2", "--normalizer", "sn"], "Only SAN.*2.0"),
        (["--strategy", "multi_worker"], "--strategy multi_worker"),
        (["--classes", "3"], "classes, 3.*--classes.*label 255 in '.*.png'"),
    ],
)
def test_bad_arguments(
    tmp_path, folder, judge, arguments, expected, monkeypatch
):
    """They leave no folder, and all but labels are known before reading."""
    if "--classes" not in arguments:
        monkeypatch.setattr(scenes, "load", None)
    good = ["--data", folder, "--extractor", judge]
    if "9" not in arguments:
        good += ["--evaluate-every", "2"]
    with pytest.raises(ValueError, match=expected):
        train(tmp_path, *good, *arguments)
    assert os.listdir(tmp_path) == []


class TestSettings:
    def test_presets(self):
        """SAN's section 4.2, and SPADE's appendix."""
        args = parse()
        assert (args.size, args.learning_rate) == ((96, 96), 5e-4)
        assert args.perceptual == "none" and args.ratio is args.gain is None
        assert args.run_name == "photographs-spade-san"
        args = parse("--preset", "paper", "--data", "a/b/")
        assert args.run_name == "b-spade-san"
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
        for changes in (["--normalizer", "sn"], ["--form", "project"]):
            args = parse("--preset", "paper", *changes)
            assert args.ratio is args.gain is None
        args = parse("--preset", "paper", "--ratio", "0.5", "--size", 64, 128)
        assert (args.ratio, args.gain, args.size) == (0.5, 1.3, (64, 128))

    def test_networks(self):
        args = parse("--preset", "paper", *SMALL)
        gan = image_translation.make_gan(args, 4, [])
        convolutions = [x for x in gan.critic.layers if "_conv_" in x.name]
        assert len(convolutions) == 10
        for layer in convolutions:
            assert isinstance(layer.normalizer, normalizers.SparsityAware)
            found = layer.normalizer.ratio, layer.normalizer.gain
            assert found == (0.25, 1.3)
            assert layer.get_config()["padding"] == "circular"
        assert not self.instance_norms(gan)
        assert (gan.joint, gan.feature_matching) == (True, 10.0)

    def test_the_original_critic(self):
        args = parse("--critic", "original", "--padding", "same", *SMALL)
        gan = image_translation.make_gan(args, 4, [])
        assert len(self.instance_norms(gan)) == 2 * 3
        layer = gan.critic.get_layer("scale_1_conv_2")
        assert layer.get_config()["padding"] == "same"

    def instance_norms(self, gan):
        kind = keras.layers.GroupNormalization
        return [x for x in gan.critic.layers if isinstance(x, kind)]

    def test_content_losses(self, judge):
        arguments = "--perceptual-layers", "texture", "--perceptual-weight", "3"
        args = parse("--perceptual", str(judge), *arguments)
        (loss,) = image_translation.make_content_losses(args)
        assert (loss.weight, loss.layers) == (3.0, {"texture": 1.0})
        assert image_translation.make_content_losses(parse()) == []
        # The first layer of each block, as SPADE's code weighs them.
        factors = {1: 1 / 32, 2: 1 / 16, 3: 1 / 8, 4: 1 / 4, 5: 1.0}
        assert image_translation.PERCEPTUAL_LAYERS == {
            f"block{i}_conv1": factor for i, factor in factors.items()
        }


# What uses a network, on any backend.


def make_run(path, classes):
    """Files as a training leaves them, of a network soon loaded."""
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
    return make_run(tmp_path_factory.mktemp("plain") / "run", PLAIN)


@pytest.fixture(scope="module")
def marked_run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("marked") / "run", MARKED)


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
        arguments = tmp_path / "out", tmp_path / "alone.png", tmp_path / "many"
        assert self.translate(run, *arguments) == 0
        assert written(tmp_path / "out") == [
            "a.png",
            "alone.png",
            "inner/b.png",
        ]
        made = made_of(run, *(one_hot(labels) for labels in maps.values()))
        for name, expected in zip(maps, made):
            path = tmp_path / "out" / name.removeprefix("many/")
            assert nearly(pixels(path), expected)
        # The maps can be told apart by what is made of them.
        assert np.abs(made[0] - made[1]).max() > 10.0
        # Nothing is overwritten, unless that is asked for.
        before = save(tmp_path / "out" / "alone.png", noise(70, 100))
        with pytest.raises(ValueError, match="with --force only.*alone.png"):
            self.translate(run, *arguments)
        found = pixels(tmp_path / "out" / "alone.png")
        np.testing.assert_array_equal(found, before)
        assert self.translate(run, *arguments, "--force") == 0
        assert nearly(pixels(tmp_path / "out" / "alone.png"), made[0])

    def test_what_is_left_out(self, run, tmp_path, capsys):
        """All else is made all the same."""
        maps = tmp_path / "maps"
        save(maps / "a.png", regions(5))
        save(maps / "b.png", noise(70, 100))
        save(maps / "d.png", regions())
        assert self.translate(run, tmp_path / "out", maps) == 1
        assert os.listdir(tmp_path / "out") == ["d.png"]
        printed = capsys.readouterr().out.splitlines()
        too_large, colours = [x for x in printed if x.startswith(f"  {maps}")]
        assert "label 4 in" in too_large and "a.png" in too_large
        assert "classes, 4. The network was trained on 4 classes." in too_large
        assert "image_translation number FOLDER" in colours
        assert "b.png" in colours

    def test_colours_become_numbers(self, run, tmp_path, capsys):
        labels = regions(3)
        # As they are sorted.
        colours = np.uint8([[0, 9, 255], [0, 10, 0], [200, 0, 0]])
        save(tmp_path / "maps" / "inner" / "a.png", colours[labels])
        numbered = tmp_path / "numbered"
        assert command("number", tmp_path / "maps", "--output", numbered) == 0
        printed = capsys.readouterr().out.splitlines()
        assert printed[:3] == ["  0  #0009ff", "  1  #000a00", "  2  #c80000"]
        assert "1 files" in printed[3]
        assert self.translate(run, tmp_path / "out", numbered) == 0
        (expected,) = made_of(run, one_hot(labels))
        assert nearly(pixels(tmp_path / "out" / "inner" / "a.png"), expected)

    def test_instances_and_void(self, marked_run, folder, tmp_path, capsys):
        ids = tmp_path / "ids"
        shutil.copytree(folder / "val" / "instances", ids)
        (ids / "city" / "3.png").unlink()
        save(ids / "city" / "4.png", regions(height=60))
        arguments = folder / "val" / "labels", "--instances", ids
        assert self.translate(marked_run, tmp_path / "out", *arguments) == 1
        made = [f"city/{i}.png" for i in (0, 1, 2, 5, 6, 7, 8, 9)]
        assert written(tmp_path / "out") == made
        printed = capsys.readouterr().out
        assert "ids of its instances" in printed and "'city/3'" in printed
        assert "4.png' with labels 100 x 70, instances 100 x 60" in printed
        maps = marked_maps(folder / "val", 9)
        without = maps * [1, 1, 1, 1, 1, 0]
        expected, other = made_of(marked_run, maps, without)
        found = pixels(tmp_path / "out" / "city" / "9.png")
        assert nearly(found, expected)
        assert np.abs(found - other).max() > 10.0

    def test_errors(self, run, marked_run, tmp_path):
        save(tmp_path / "a.png", regions())
        shutil.copytree(run, tmp_path / "run")
        os.remove(tmp_path / "run" / "classes.json")
        for path, arguments, message in (
            (marked_run, [], "Pass --instances.*trained with "),
            (run, ["--instances", tmp_path], "for one trained without them"),
            (tmp_path / "no", [], "translation train.*no/generator.keras"),
            (tmp_path / "run", [], "leaves a file.*classes.json"),
        ):
            arguments = tmp_path / "out", tmp_path / "a.png", *arguments
            with pytest.raises(ValueError, match=message):
                self.translate(path, *arguments)
        assert not (tmp_path / "out").exists()
