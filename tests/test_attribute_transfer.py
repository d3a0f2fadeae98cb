"""The experiment that changes attributes of images, on few digits and noise."""

import functools
import json
import os
import shutil

import keras
import numpy as np
import pytest
from helpers import (
    BACKEND,
    assert_exported,
    nearly,
    noise,
    pixels,
    quickly,
    save,
    written,
)
from PIL import Image

from experiments import attribute_transfer, attributes, batches, runs
from keras_san import callbacks, losses, normalizers, penalties

pytestmark = pytest.mark.usefixtures("quick")

NAMES = ["red", "green", "blue", "thick"]
KNOWN = {"names": NAMES, "exclusive": [NAMES[:3]]}
SMALL = [
    *("--size", "16", "--width", "0.05", "--blocks", "1", "--halvings", "2"),
    *("--critic-width", "0.05", "--batch-size", "4", "--show", "3"),
    *("--steps-per-epoch", "2", "--epochs", "2", "--images", "30"),
]


def train(output, *arguments):
    arguments = [*SMALL, "--output", output, "--name", "run", *arguments]
    return attribute_transfer.main(["train", *arguments])


def edit(run, output, *arguments):
    arguments = ["--run", run, "--output", output, *arguments]
    return attribute_transfer.main(["edit", *arguments])


def parse(*arguments):
    return attribute_transfer.parse(arguments)


@functools.cache
def network(path):
    return keras.saving.load_model(path, compile=False)


def to_float(image):
    return batches.to_float(np.asarray(image)[None])


def made_of(run, image, values):
    """What a run's generator makes of one image, in [0, 255]."""
    inputs = [to_float(image), np.float32([values])]
    (made,) = network(run / "generator.keras").predict_on_batch(inputs)
    return np.clip((made + 1.0) * 127.5, 0, 255)


def told_of(run, image):
    told = network(run / "critic.keras").predict_on_batch(to_float(image))[1]
    return [float(x > 0) for x in told[0]]


def assert_row(row, run, image, values):
    """An image, and it with each of a digit's attributes changed."""
    assert row.shape == (16 + 2, 5 * 17 + 1, 3)
    shown = [row[1:17, x : x + 16] for x in range(1, 86, 17)]
    np.testing.assert_array_equal(shown[0], image)
    for place, found in enumerate(shown[1:]):
        changed = [*values[:3], 1.0 - values[3]]
        if place < 3:  # Of three colours it has one.
            changed = [*np.eye(3)[place], values[3]]
        assert nearly(found, made_of(run, image, changed))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run, and `stopped`: what of it there was before its last epoch."""
    output = tmp_path_factory.mktemp("runs")

    class Batches(batches.Batches):
        def _pass(self, number, count):
            assert not self.mirror  # A mirrored 3 is none.
            return super()._pass(number, count)

    class Copy(callbacks.SampleGrid):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                shutil.copytree(self.directory, output / "stopped")

    with pytest.MonkeyPatch.context() as patch:
        quickly(patch, export=BACKEND == "tensorflow")
        patch.setattr(callbacks, "SampleGrid", Copy)
        patch.setattr(batches, "Batches", Batches)
        assert train(output) == 0
    return output / "run"


class TestTraining:
    def test_files(self, trained):
        assert {
            *("attributes.json", "critic.keras", "curves.png"),
            *("generator.keras", "log.csv", "samples.png"),
            *("samples_0001.png", "samples_0002.png", "settings.json"),
        } <= {*os.listdir(trained)}
        with open(trained / "attributes.json") as file:
            assert json.load(file) == KNOWN
        rows = callbacks.read_log(trained / "log.csv")
        assert [row["step"] for row in rows] == [2, 4]
        assert {"cycle_loss", "norm/conv_1", "norm/logits"} <= {*rows[0]}
        assert np.all(np.isfinite([[*row.values()] for row in rows]))
        # It needs no package but Keras.
        for layer in network(trained / "critic.keras")._flatten_layers():
            assert type(layer).__module__.split(".")[0] == "keras"

    def test_samples(self, trained):
        """Digits of the validation split, enlarged, with a row for each."""
        _, _, shown = attributes.load(parse(*SMALL))
        sheet = pixels(trained / "samples.png")
        assert sheet.shape == (2 * (3 * 17 + 1), 2 * (5 * 17 + 1), 3)
        np.testing.assert_array_equal(sheet[::2, ::2], sheet[1::2, 1::2])
        for i, (image, values) in enumerate(zip(*shown)):
            row = sheet[::2, ::2][17 * i : 17 * i + 18]
            assert_row(row, trained, image, values)

    def test_resuming(self, trained, tmp_path):
        """As if it had not been stopped in its last epoch."""
        shutil.copytree(trained.parent / "stopped", tmp_path / "run")
        assert not (tmp_path / "run" / "generator.keras").exists()
        assert train(tmp_path, "--resume") == 0
        for name in ("generator.keras", "critic.keras"):
            for a, b in zip(
                network(trained / name).get_weights(),
                network(tmp_path / "run" / name).get_weights(),
            ):
                np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
        expected, found = (
            callbacks.read_log(run / "log.csv")
            for run in (trained, tmp_path / "run")
        )
        assert [row["epoch"] for row in found] == [1, 2]
        for a, b in zip(expected, found):
            del a["seconds"], b["seconds"]
            np.testing.assert_allclose(
                [*a.values()], [*b.values()], rtol=1e-3, atol=1e-5
            )

    @pytest.mark.skipif(
        BACKEND != "tensorflow",
        reason="each backend exports in its own way; run on tensorflow",
    )
    def test_exported(self, trained):
        image, values = noise(16, 16), [0.0, 1.0, 0.0, 1.0]
        inputs = [to_float(image)[0], values]
        expected = made_of(trained, image, values)
        assert_exported(trained / "generator", inputs, expected)

    def test_a_folder_and_the_original_critic(self, tmp_path, monkeypatch):
        """Trained as StarGAN was, for a step."""
        lines = ["file,cold,warm,old"]
        for i in range(20):
            save(tmp_path / "in" / f"{i}.png", noise(20, 24))
            lines.append(f"{i}.png,{i % 3 == 0},{i % 3 == 1},{i % 2}")
        (tmp_path / "table.csv").write_text("\n".join(lines))
        fitted = []
        fit = runs.Run.fit

        def keep(run, *arguments):
            fitted[:] = arguments
            fit(run, *arguments)

        monkeypatch.setattr(runs.Run, "fit", keep)
        status = train(
            *(tmp_path, "--data", tmp_path / "in"),
            *("--csv", tmp_path / "table.csv", "--normalizer", "wgan_gp"),
            *("--attributes", "old", "warm", "cold", "--exclusive", "cold"),
            *("warm", "--epochs", "1", "--steps-per-epoch", "1"),
            *("--batch-size", "2", "--ema", "0.5"),
        )
        assert status == 0
        gan, drawn, _ = fitted
        assert isinstance(gan.loss_function, losses.Wasserstein)
        assert isinstance(gan.penalties[0], penalties.GradientPenalty)
        for name in ("conv_1", "conv_2", "logits"):
            layer = gan.critic.get_layer(name)
            assert layer.normalizer is None
            assert layer.get_config()["padding"] == "same"
        for adam, updates in (
            (gan.generator_optimizer, 1),
            (gan.critic_optimizer, 5),
        ):
            assert int(keras.ops.convert_to_numpy(adam.iterations)) == updates
            assert (adam.beta_1, adam.beta_2) == (0.5, 0.999)
            # It has fallen to its end.
            assert float(adam.learning_rate) == 0.0
        assert drawn[0][0].shape == (10, 16, 16, 3) and drawn.mirror
        with open(tmp_path / "run" / "attributes.json") as file:
            assert json.load(file) == {
                "names": ["old", "warm", "cold"],
                "exclusive": [["cold", "warm"]],
            }
        # What is saved is the averaged generator.
        for a, b in zip(
            gan.averaged_generator.get_weights(),
            network(tmp_path / "run" / "generator.keras").get_weights(),
        ):
            np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Files as a training leaves them, for any backend."""
    run = tmp_path_factory.mktemp("run")
    keras.utils.set_random_seed(0)
    layers = keras.layers
    images, given = keras.Input((16, 16, 3)), keras.Input((4,))
    x = layers.Dense(3 * 16 * 16, kernel_initializer="he_normal")(given)
    x = layers.Concatenate()([images, layers.Reshape((16, 16, 3))(x)])
    made = layers.Conv2D(3, 5, padding="same", activation="tanh")(x)
    runs.save_network(
        keras.Model([images, given], made), run / "generator.keras"
    )
    # As the digits are coloured; thick, where there is much of it.
    x, told = layers.GlobalAveragePooling2D()(images), layers.Dense(4)
    critic = keras.Model(images, [layers.Dense(1)(x), told(x)])
    kernel = np.concatenate([np.eye(3) - 1 / 3, np.ones((3, 1))], axis=1)
    told.set_weights([kernel, np.array([-0.05, -0.05, -0.05, 2.1])])
    runs.save_network(critic, run / "critic.keras")
    (run / "attributes.json").write_text(json.dumps(KNOWN))
    return run


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Files of digits as the networks see them."""
    folder = tmp_path_factory.mktemp("digits")
    _, _, (images, _) = attributes.load(parse(*SMALL, "--show", "6"))
    for i, image in enumerate(images):
        save(folder / f"{i}.png", image)
    return folder


class TestEdit:
    def test_rows(self, run, digits, tmp_path, capsys):
        """Of a folder; each with what the critic sees in it."""
        assert edit(run, tmp_path, digits) == 0
        assert written(tmp_path) == [f"{i}.png" for i in range(6)]
        printed = capsys.readouterr().out.splitlines()
        told = []
        for i, line in enumerate(printed):
            image = pixels(digits / f"{i}.png")
            told.append(told_of(run, image))
            having = [name for name, x in zip(NAMES, told[-1]) if x]
            assert f": {', '.join(having) or 'no attribute'}; " in line
            assert_row(pixels(tmp_path / f"{i}.png"), run, image, told[-1])
        # Else this would have tested little.
        assert all(0 < sum(column) < 6 for column in zip(*told))

    @pytest.mark.parametrize(
        ("flags", "expected"),
        [
            (["--set", "red", "--clear", "thick"], [1.0, 0.0, 0.0, 0.0]),
            (["--set", "thick"], [None, None, None, 1.0]),
            (["--clear", "blue"], [None, None, 0.0, None]),
        ],
    )
    def test_chosen_attributes(self, run, digits, tmp_path, flags, expected):
        """Other attributes stay, but for other colours."""
        assert edit(run, tmp_path, digits, *flags) == 0
        for i in range(6):
            image = pixels(digits / f"{i}.png")
            told = told_of(run, image)
            values = [t if e is None else e for t, e in zip(told, expected)]
            found = pixels(tmp_path / f"{i}.png")
            assert nearly(found, made_of(run, image, values))

    @pytest.mark.parametrize(
        ("flags", "expected"),
        [
            (["--set", "red", "purple"], "'thick'.*Received: --set purple"),
            (["--clear", "red", "purple"], "Received: --clear purple"),
            (["--set", "red", "thick", "blue"], r"\['blue', 'red'\] in --set"),
            (["--set", "red", "thick", "--clear", "thick"], r"\['thick'\] in"),
        ],
    )
    def test_bad_arguments(self, run, digits, tmp_path, flags, expected):
        """Unknown ones, two of a group, one that is to go and to come."""
        with pytest.raises(ValueError, match=expected):
            edit(run, tmp_path, digits, *flags)
        assert written(tmp_path / "out") == []

    def test_other_files(self, run, tmp_path, capsys):
        """The central square; nothing overwritten; broken ones left out."""
        wide, grey = noise(32, 60), noise(16, 16, 1)
        save(tmp_path / "in" / "wide.bmp", wide)
        save(tmp_path / "in" / "a" / "grey.png", grey)
        (tmp_path / "in" / "b.png").write_bytes(b"nothing")
        before = save(tmp_path / "out" / "wide.png", noise(20, 24))
        with pytest.raises(ValueError, match="with --force only.*wide.png"):
            edit(run, tmp_path / "out", tmp_path / "in")
        found = pixels(tmp_path / "out" / "wide.png")
        np.testing.assert_array_equal(found, before)
        assert edit(run, tmp_path / "out", tmp_path / "in", "--force") == 1
        assert written(tmp_path / "out") == ["a/grey.png", "wide.png"]
        central = Image.fromarray(wide).resize(
            (16, 16), Image.Resampling.BICUBIC, (14, 0, 46, 32)
        )
        for name, expected in (("a/grey", grey), ("wide", np.array(central))):
            shown = pixels(tmp_path / "out" / f"{name}.png")[1:17, 1:17]
            np.testing.assert_array_equal(shown, expected + np.zeros(3))
        *_, title, left_out = capsys.readouterr().out.splitlines()
        assert title == "1 left out:" and "b.png: The file cannot" in left_out

    @pytest.mark.parametrize(
        "name", ["generator.keras", "critic.keras", "attributes.json"]
    )
    def test_a_missing_file(self, run, digits, tmp_path, name):
        shutil.copytree(run, tmp_path / "run")
        os.remove(tmp_path / "run" / name)
        with pytest.raises(ValueError, match=name):
            edit(tmp_path / "run", tmp_path / "out", digits)
        assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--size", "18", "--halvings", "1"], "gs 1 .*multiple of 4.*size 18"),
        (["--halvings", "0"], "halvings=0"),
        (["--show", "0"], "show=0"),
        (["--images", "1"], "at least two images.*Received: 1 of 'digits'"),
        (["--cycle-weight", "0"], "cycle_weight=0"),
        (["--attributes", "red", "tall"], "'green', 'blue', 'thick'.* tall"),
        (["--attributes", "red", "red"], r"none of them twice.*\['red', 'red'"),
        (["--exclusive", "red", "tall"], "'thick'.*--exclusive tall"),
        (["--exclusive", "red"], r"least two.*--exclusive \[\['red'\]\]"),
        (["--exclusive", "red", "red"], "none that another one has"),
        (
            [*("--exclusive", "red", "blue"), *("--exclusive", "thick", "red")],
            "none that another one has.*'blue'.*'thick', 'red'",
        ),
        (["--data", "tests"], "needs a table.*--csv None.*tests.* a folder"),
        (["--csv", "table.csv"], "nothing else has one.*table.csv.*digits"),
        (["--normalizer", "wgan_gp", "--ratio", "0.5"], "--normalizer wgan_gp"),
        (["--preset", "large"], "--preset large"),
    ],
)
def test_bad_arguments(tmp_path, monkeypatch, arguments, expected):
    monkeypatch.chdir(os.path.dirname(os.path.dirname(__file__)))
    with pytest.raises(ValueError, match=expected):
        train(tmp_path, *arguments)
    assert os.listdir(tmp_path) == []


class TestSettings:
    def test_small(self):
        args = parse()
        assert (args.size, args.halvings, args.identity_weight) == (32, 3, 10.0)
        assert args.run_name == "digits-stargan-san"
        args = parse("--data", "a/b/", "--normalizer", "sn")
        assert args.run_name == "b-stargan-sn"

    def test_paper(self):
        """StarGAN's sizes; SAN's loss, and one update of each network."""
        args = parse("--preset", "paper")
        assert (args.size, args.blocks, args.halvings) == (128, 6, 6)
        assert (args.width, args.critic_width) == (1.0, None)
        assert (args.cycle_weight, args.identity_weight) == (10.0, 0.0)
        assert (args.loss, args.critic_steps) == ("hinge", 1)
        assert (args.betas, args.decay) == ((0.5, 0.9), 0.5)
        assert (args.learning_rate, args.batch_size) == (1e-4, 16)

    def test_wgan_gp(self):
        args = parse("--normalizer", "wgan_gp", "--preset", "paper")
        # Of the critic, as StarGAN's authors count.
        assert args.epochs * args.steps_per_epoch * args.critic_steps == 200_000
        args = parse("--normalizer", "wgan_gp", "--critic-steps", "2")
        assert (args.critic_steps, args.size, args.epochs) == (2, 32, 10)

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            ([], [NAMES[:3]]),
            (["--attributes", "thick"], []),
            (["--attributes", "thick", "blue", "red"], [["red", "blue"]]),
            (
                ["--data", "celeb_a:2.1.0"],
                [["Black_Hair", "Blond_Hair", "Brown_Hair"]],
            ),
            (["--data", "elsewhere"], []),
            (
                ["--exclusive", "a", "b", "--exclusive", "c", "d"],
                [["a", "b"], ["c", "d"]],
            ),
        ],
    )
    def test_exclusive(self, arguments, expected):
        assert parse(*arguments).groups == expected

    def test_networks(self):
        flags = "--ratio 0.5 --class-weight 3 --identity-weight 5".split()
        gan = attribute_transfer.make_gan(parse(*SMALL, *flags), 2)
        weights = gan.class_weight, gan.cycle_weight, gan.identity_weight
        assert weights == (3.0, 10.0, 5.0)
        assert isinstance(gan.loss_function, losses.Hinge)
        assert gan.penalties == [] and gan.averaged_generator is None
        for name in ("conv_1", "conv_2", "logits"):
            layer = gan.critic.get_layer(name)
            assert isinstance(layer.normalizer, normalizers.SparsityAware)
            assert layer.normalizer.ratio == 0.5
            assert layer.get_config()["padding"] == "circular"
