"""The example that changes attributes of images, on few digits and noise."""

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
    needs_training,
    noise,
    pixels,
    quickly,
    save,
    written,
)
from PIL import Image

import keras_san
from experiments import attribute_transfer, attributes, batches, runs
from keras_san import callbacks, losses, normalizers

NAMES = ["red", "green", "blue", "thick"]
SMALL = [
    *("--size", "16", "--width", "0.05", "--blocks", "1", "--halvings", "2"),
    *("--critic-width", "0.05", "--batch-size", "4", "--show", "3"),
    *("--steps-per-epoch", "2"),
]


pytestmark = pytest.mark.usefixtures("quick")


def command(*arguments):
    return attribute_transfer.main([str(argument) for argument in arguments])


def train(output, *arguments):
    return command("train", *SMALL, "--output", output, *arguments)


def parse(*arguments):
    return attribute_transfer.parse(arguments)


@functools.cache
def network(path):
    return keras.saving.load_model(path, compile=False)


def made_of(run, image, values):
    """What a run's generator makes of one image, in [0, 255]."""
    images = np.float32([image]) / 127.5 - 1.0
    inputs = [images, np.float32([values])]
    (made,) = network(run / "generator.keras").predict_on_batch(inputs)
    return np.clip((made + 1.0) * 127.5, 0, 255)


def with_one_changed(values, place):
    """Attributes of a digit: of three colours it has one."""
    values = [float(value) for value in values]
    if place == 3:
        return [*values[:3], 1.0 - values[3]]
    return [1.0 if i == place else 0.0 for i in range(3)] + values[3:]


def row_of(run, image, values):
    """An image, and what becomes of it, by one attribute after the other."""
    made = [
        made_of(run, image, with_one_changed(values, place))
        for place in range(4)
    ]
    return [image, *made]


# What a training writes, and goes on with.


@pytest.fixture(scope="module")
def settings():
    return ["--name", "run", "--epochs", "2", "--images", "30"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, settings):
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
        assert train(output, *settings) == 0
    return output / "run"


@needs_training
class TestTraining:
    def test_files(self, trained):
        assert {
            "attributes.json",
            "critic.keras",
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
        with open(trained / "attributes.json") as file:
            assert json.load(file) == KNOWN
        with open(trained / "settings.json") as file:
            settings = json.load(file)
        assert (settings["data"], settings["epochs"]) == ("digits", 2)

    def test_log(self, trained):
        rows = callbacks.read_log(trained / "log.csv")
        assert [row["step"] for row in rows] == [2, 4]
        for row in rows:
            assert np.all(np.isfinite([*row.values()]))
            assert {
                "class_loss",
                "fake_class_loss",
                "cycle_loss",
                "identity_loss",
                "norm/conv_1",
                "norm/logits",
            } <= {*row}

    def test_the_critic_needs_no_package_but_keras(self, trained):
        critic = network(trained / "critic.keras")
        assert critic.input_shape == (None, 16, 16, 3)
        assert critic.outputs[1].shape == (None, 4)
        for layer in critic._flatten_layers():
            assert type(layer).__module__.split(".")[0] == "keras"

    def test_what_is_shown(self, trained):
        """Digits of the validation split, enlarged, with a row for each."""
        digits = attributes.load(split="validation", size=16, limit=3)
        sheet = pixels(trained / "samples.png")
        assert sheet.shape == (2 * (3 * 17 + 1), 2 * (5 * 17 + 1), 3)
        np.testing.assert_array_equal(sheet[::2, ::2], sheet[1::2, 1::2])
        sheet = sheet[::2, ::2]
        for i in range(3):
            y = 1 + 17 * i
            shown = [sheet[y : y + 16, x : x + 16] for x in range(1, 86, 17)]
            expected = row_of(trained, digits.images[i], digits.attributes[i])
            np.testing.assert_array_equal(shown[0], expected[0])
            for a, b in zip(shown[1:], expected[1:]):
                assert nearly(a, b)

    def test_edit(self, trained, tmp_path, capsys):
        digit = attributes.load(split="validation", size=16, limit=1)
        save(tmp_path / "digit.png", digit.images[0])
        status = command(
            *("edit", tmp_path / "digit.png", "--run", trained),
            *("--output", tmp_path / "out"),
        )
        assert status == 0
        assert pixels(tmp_path / "out" / "digit.png").shape == (18, 86, 3)

    def test_resuming(self, trained, settings, tmp_path):
        """As if it had not been stopped in its last epoch."""
        shutil.copytree(trained.parent / "stopped", tmp_path / "run")
        assert not (tmp_path / "run" / "generator.keras").exists()
        before = written(tmp_path)
        with pytest.raises(ValueError, match="'normalizer': 'san -> sn'"):
            train(tmp_path, *settings, "--resume", "--normalizer", "sn")
        with pytest.raises(ValueError, match="'images': '30 -> None'"):
            train(tmp_path, *settings[:-2], "--resume")
        # Rates fall by the length of the training.
        with pytest.raises(ValueError, match="'epochs': '2 -> 3'"):
            train(tmp_path, *settings, "--resume", "--epochs", "3")
        with pytest.raises(ValueError, match="exists from another run"):
            train(tmp_path, *settings)
        assert written(tmp_path) == before
        assert train(tmp_path, *settings, "--resume") == 0
        for name in ("generator.keras", "critic.keras"):
            weights = [
                network(run / name).get_weights()
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
        image, values = noise(16, 16), [0.0, 1.0, 0.0, 1.0]
        expected = made_of(trained, image, values)
        inputs = [image / 127.5 - 1.0, values]
        assert_exported(trained / "generator", inputs, expected)


# Images of a folder.


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Twenty images, and a table of their three attributes."""
    folder = tmp_path_factory.mktemp("images")
    lines = ["file,cold,warm,old"]
    for i in range(20):
        save(folder / f"{i}.png", noise(20, 24))
        lines.append(f"{i}.png,{int(i % 3 == 0)},{int(i % 3 == 1)},{i % 2}")
    (folder / "table.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="module")
def table(folder):
    return ["--data", folder, "--csv", folder / "table.csv"]


@needs_training
def test_a_folder_and_the_original_critic(tmp_path, table, monkeypatch):
    """Trained as StarGAN was, for a step."""
    made = []
    make_gan = attribute_transfer.make_gan
    make_batches = attributes.make_batches

    def keep(make):
        def kept(*args, **kwargs):
            made.append(make(*args, **kwargs))
            return made[-1]

        return kept

    monkeypatch.setattr(attribute_transfer, "make_gan", keep(make_gan))
    monkeypatch.setattr(attributes, "make_batches", keep(make_batches))
    status = train(
        *(tmp_path, *table, "--name", "run", "--normalizer", "wgan_gp"),
        *("--attributes", "old", "warm", "cold", "--exclusive", "cold"),
        *("warm", "--epochs", "1", "--steps-per-epoch", "1"),
        *("--batch-size", "2", "--ema", "0.5"),
    )
    assert status == 0
    gan, drawn = made
    assert isinstance(gan.loss_function, losses.Wasserstein)
    assert isinstance(gan.penalty, losses.GradientPenalty)
    assert gan.critic_steps == 5
    convolutions = [x for x in gan.critic.layers if "conv" in x.name]
    assert len(convolutions) == 2
    for layer in [*convolutions, gan.critic.get_layer("logits")]:
        assert layer.normalizer is None
        assert layer.get_config()["padding"] == "same"
    # One of the generator.
    for adam, updates in (
        (gan.generator_optimizer, 1),
        (gan.critic_optimizer, 5),
    ):
        assert int(keras.ops.convert_to_numpy(adam.iterations)) == updates
        assert (adam.beta_1, adam.beta_2) == (0.5, 0.999)
        # It has fallen to its end.
        assert float(adam.learning_rate) == 0.0
    assert drawn[0][0].shape == (10, 16, 16, 3) and drawn.mirror
    (row,) = callbacks.read_log(tmp_path / "run" / "log.csv")
    assert np.all(np.isfinite([*row.values()]))
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


def test_what_is_trained_and_shown(table):
    def loaded(*arguments):
        args = parse("--size", "16", "--show", "2", *arguments)
        return attribute_transfer.load_images(args)

    training, validation = loaded(*table)
    assert (len(training), len(validation)) == (18, 2)
    assert training.images.shape == (18, 16, 16, 3)
    assert training.attribute_names == ["cold", "warm", "old"]
    training, validation = loaded(*table, "--attributes", "old", "cold")
    assert training.attribute_names == ["old", "cold"]
    assert validation.attribute_names == ["old", "cold"]
    np.testing.assert_array_equal(validation.attributes, [[0, 1], [1, 0]])
    training, validation = loaded("--images", "12", "--attributes", "thick")
    assert (len(training), len(validation)) == (12, 2)
    assert training.attribute_names == ["thick"]


# What uses networks, on any backend.

KNOWN = {"names": NAMES, "exclusive": [["red", "green", "blue"]]}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """What a training leaves, of networks that are soon loaded."""
    run = tmp_path_factory.mktemp("run")
    keras.utils.set_random_seed(0)
    layers = keras.layers
    images, given = keras.Input((16, 16, 3)), keras.Input((4,))
    x = layers.Dense(3 * 16 * 16, kernel_initializer="he_normal")(given)
    x = layers.Concatenate()([images, layers.Reshape((16, 16, 3))(x)])
    made = layers.Conv2D(3, 5, padding="same", activation="tanh")(x)
    generator = keras.Model([images, given], made)
    x = layers.GlobalAveragePooling2D()(images)
    # As the digits are coloured; thick, where there is much of it.
    told = layers.Dense(4, name="attributes")
    critic = keras.Model(images, [layers.Dense(1)(x), told(x)])
    colours = np.eye(3) - 1 / 3
    told.set_weights(
        [
            np.float32(np.concatenate([colours, np.ones((3, 1))], axis=1)),
            np.float32([-0.05, -0.05, -0.05, 2.1]),
        ]
    )
    runs.save_network(generator, run / "generator.keras")
    runs.save_network(critic, run / "critic.keras")
    with open(run / "attributes.json", "w") as file:
        json.dump(KNOWN, file)
    return run


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Files of digits as the networks see them."""
    folder = tmp_path_factory.mktemp("digits")
    images = attributes.load(split="validation", size=16, limit=6).images
    for i, image in enumerate(images):
        save(folder / f"{i}.png", image)
    return folder


def told_of(run, image):
    images = np.float32([image]) / 127.5 - 1.0
    _, told = network(run / "critic.keras").predict_on_batch(images)
    return [float(x > 0) for x in np.asarray(told)[0]]


class TestEdit:
    def edit(self, run, output, *arguments):
        return command("edit", "--run", run, "--output", output, *arguments)

    def test_rows(self, run, digits, tmp_path, capsys):
        """Of a folder; each with what the critic sees in it."""
        assert self.edit(run, tmp_path, digits) == 0
        assert sorted(os.listdir(tmp_path)) == [f"{i}.png" for i in range(6)]
        printed = capsys.readouterr().out.splitlines()
        told = []
        for i, line in enumerate(printed):
            image = pixels(digits / f"{i}.png")
            told.append(told_of(run, image))
            having = [name for name, x in zip(NAMES, told[-1]) if x]
            assert f": {', '.join(having) or 'no attribute'}; " in line
            row = pixels(tmp_path / f"{i}.png")
            assert row.shape == (16 + 2, 5 * 17 + 1, 3)
            shown = [row[1:17, x : x + 16] for x in range(1, 86, 17)]
            expected = row_of(run, image, told[-1])
            np.testing.assert_array_equal(shown[0], image)
            for a, b in zip(shown[1:], expected[1:]):
                assert nearly(a, b)
        # Else this would have tested little.
        assert all(0 < sum(column) < 6 for column in zip(*told))

    def test_chosen_attributes(self, run, digits, tmp_path):
        """An image of the network's size, with a colour, and thin."""
        arguments = ["--set", "red", "--clear", "thick"]
        assert self.edit(run, tmp_path, digits, *arguments) == 0
        for i in range(6):
            found = pixels(tmp_path / f"{i}.png")
            assert found.shape == (16, 16, 3)
            image = pixels(digits / f"{i}.png")
            assert nearly(found, made_of(run, image, [1.0, 0.0, 0.0, 0.0]))

    def test_what_is_not_chosen_stays(self, run, digits, tmp_path):
        assert self.edit(run, tmp_path / "a", digits, "--set", "thick") == 0
        assert self.edit(run, tmp_path / "b", digits, "--clear", "blue") == 0
        for i in range(6):
            image = pixels(digits / f"{i}.png")
            told = told_of(run, image)
            expected = made_of(run, image, [*told[:3], 1.0])
            assert nearly(pixels(tmp_path / "a" / f"{i}.png"), expected)
            expected = made_of(run, image, [*told[:2], 0.0, told[3]])
            assert nearly(pixels(tmp_path / "b" / f"{i}.png"), expected)

    def test_other_images(self, run, tmp_path):
        """The central square of any size; grey ones, too."""
        wide, grey = noise(32, 60), noise(16, 16)[..., 0]
        save(tmp_path / "in" / "wide.bmp", wide)
        save(tmp_path / "in" / "grey.png", grey)
        assert self.edit(run, tmp_path / "out", tmp_path / "in") == 0
        assert written(tmp_path / "out") == ["grey.png", "wide.png"]
        shown = pixels(tmp_path / "out" / "grey.png")[1:17, 1:17]
        np.testing.assert_array_equal(shown, np.stack([grey] * 3, axis=-1))
        shown = pixels(tmp_path / "out" / "wide.png")[1:17, 1:17]
        central = Image.fromarray(wide).resize(
            (16, 16), Image.Resampling.BICUBIC, (14, 0, 46, 32)
        )
        np.testing.assert_array_equal(shown, np.asarray(central))

    @pytest.mark.parametrize("flag", ["--set", "--clear"])
    def test_an_unknown_attribute(self, run, digits, tmp_path, flag):
        message = f"'red', 'green', 'blue', 'thick'.*Received: {flag} purple"
        with pytest.raises(ValueError, match=message):
            self.edit(run, tmp_path, digits, flag, "red", "purple")
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize(
        ("arguments", "both"),
        [
            (["--set", "red", "thick", "blue"], "'blue', 'red'"),
            (["--set", "red", "thick", "--clear", "thick"], "'thick'"),
        ],
    )
    def test_contradictions(self, run, digits, tmp_path, arguments, both):
        """Two of an exclusive group, or one that is to go and to come."""
        with pytest.raises(ValueError, match=rf"Received: \[{both}\] in --set"):
            self.edit(run, tmp_path, digits, *arguments)
        assert os.listdir(tmp_path) == []

    def test_a_broken_file(self, run, tmp_path, capsys):
        """It is left out, and all else made."""
        save(tmp_path / "in" / "a.png", noise(20, 24))
        (tmp_path / "in" / "b.png").write_bytes(b"nothing")
        save(tmp_path / "in" / "c.png", noise(20, 24))
        assert self.edit(run, tmp_path / "out", tmp_path / "in") == 1
        assert written(tmp_path / "out") == ["a.png", "c.png"]
        printed = capsys.readouterr().out.splitlines()
        assert printed[-2] == "1 left out:"
        assert "cannot be read" in printed[-1] and "b.png" in printed[-1]

    def test_force(self, run, tmp_path):
        save(tmp_path / "a.png", noise(20, 24))
        before = save(tmp_path / "out" / "a.png", noise(20, 24))
        arguments = [run, tmp_path / "out", tmp_path / "a.png"]
        with pytest.raises(ValueError, match="with --force only.*a.png"):
            self.edit(*arguments)
        found = pixels(tmp_path / "out" / "a.png")
        np.testing.assert_array_equal(found, before)
        assert self.edit(*arguments, "--force") == 0
        assert pixels(tmp_path / "out" / "a.png").shape == (18, 86, 3)

    @pytest.mark.parametrize("name", ["generator.keras", "critic.keras"])
    def test_no_network(self, run, digits, tmp_path, name):
        shutil.copytree(run, tmp_path / "run")
        os.remove(tmp_path / "run" / name)
        with pytest.raises(ValueError, match=f"attribute_transfer.*{name}"):
            self.edit(tmp_path / "run", tmp_path / "out", digits)
        assert not (tmp_path / "out").exists()

    def test_no_names(self, run, digits, tmp_path):
        shutil.copytree(run, tmp_path / "run")
        os.remove(tmp_path / "run" / "attributes.json")
        with pytest.raises(ValueError, match="leaves a file.*attributes.json"):
            self.edit(tmp_path / "run", tmp_path / "out", digits)
        assert not (tmp_path / "out").exists()


class TestChanged:
    VALUES = np.float32([[0, 1, 0, 1, 0], [1, 0, 0, 0, 1], [0, 0, 0, 1, 1]])

    @pytest.mark.parametrize(
        "groups", [[], [[0, 2]], [[0, 1, 2]], [[4, 1], [0, 3]]]
    )
    def test_by_a_loop(self, groups):
        for place in range(5):
            values = self.VALUES.copy()
            found = attribute_transfer.changed(values, place, groups)
            assert found.shape == (3, 5) and found.dtype == "float32"
            np.testing.assert_array_equal(values, self.VALUES)
            for row, before in zip(found, self.VALUES):
                expected = [*before]
                among = [group for group in groups if place in group]
                if among:
                    for other in among[0]:
                        expected[other] = 0.0
                    expected[place] = 1.0
                else:
                    expected[place] = 1.0 - before[place]
                assert [*row] == expected

    def test_groups(self):
        names = [["c", "a"], ["b", "d"]]
        groups = attribute_transfer.groups_of(names, list("abcd"))
        assert groups == [[2, 0], [1, 3]]
        assert attribute_transfer.groups_of([], list("abc")) == []


# Settings, and what is wrong with them.


@needs_training
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--size", "18", "--halvings", "1"], "gs 1 .*multiple of 4.*size 18"),
        (["--halvings", "0"], "halvings=0"),
        (["--attributes", "red", "tall"], "'green', 'blue', 'thick'.*'tall'"),
        (["--attributes", "red", "red"], "none of them twice"),
        (["--exclusive", "red", "tall"], "'thick'.*--exclusive tall"),
        (["--exclusive", "red"], r"least two.*--exclusive \[\['red'\]\]"),
        (["--exclusive", "red", "red"], "none that another one has"),
        (
            [*("--exclusive", "red", "blue"), *("--exclusive", "thick", "red")],
            "none that another one has.*'blue'.*'thick', 'red'",
        ),
        (["--images", "1"], "at least two images.*limit=1"),
        (["--data", "tests"], "needs a table.*csv=None.*'tests'"),
        (["--csv", "table.csv"], "nothing else has one.*'table.csv'.*'digits'"),
        (["--normalizer", "sn", "--gain", "1.3"], "SAN.*1.3.*-normalizer sn"),
        (["--normalizer", "none", "--form", "divide"], "--normalizer none"),
        (["--normalizer", "wgan_gp", "--ratio", "0.5"], "--normalizer wgan_gp"),
        (["--strategy", "multi_worker"], "--strategy multi_worker"),
        (["--show", "0"], "show=0"),
        (["--cycle-weight", "0"], "cycle_weight=0"),
        (["--resume"], "no run to resume"),
    ],
)
def test_bad_arguments(tmp_path, monkeypatch, arguments, expected):
    monkeypatch.chdir(os.path.dirname(os.path.dirname(__file__)))
    with pytest.raises(ValueError, match=expected):
        train(tmp_path, "--images", "30", *arguments)
    assert os.listdir(tmp_path) == []


@needs_training
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--attributes", "old", "tall"], "'cold', 'warm', 'old'.*'tall'"),
        (["--exclusive", "cold", "tall"], "'cold', 'warm', 'old'.* tall"),
        # That of the digits is for digits only.
        (["--exclusive", "red"], "'old'.*--exclusive red"),
        (["--csv", "missing.csv"], "the path of a text file.*missing.csv"),
    ],
)
def test_bad_arguments_for_a_folder(tmp_path, table, arguments, expected):
    with pytest.raises(ValueError, match=expected):
        train(tmp_path, *table, *arguments)
    assert os.listdir(tmp_path) == []


class TestSettings:
    def test_small(self):
        args = parse()
        assert args.run_name == "digits-stargan-san"
        assert (args.size, args.halvings, args.identity_weight) == (32, 3, 10.0)
        args = parse("--data", "a/b/", "--normalizer", "sn")
        assert args.run_name == "b-stargan-sn"

    def test_paper(self):
        """StarGAN's sizes; SAN's loss, and one update of each network."""
        args = parse("--preset", "paper")
        assert (args.size, args.blocks, args.halvings) == (128, 6, 6)
        assert (args.width, args.critic_width) == (1.0, None)
        assert (args.class_weight, args.cycle_weight) == (1.0, 10.0)
        assert args.identity_weight == 0.0
        assert (args.normalizer, args.padding) == ("san", "circular")
        assert (args.loss, args.critic_steps) == ("hinge", 1)
        assert (args.betas, args.decay) == ((0.5, 0.9), 0.5)
        assert (args.learning_rate, args.batch_size) == (1e-4, 16)

    def test_wgan_gp(self):
        args = parse("--normalizer", "wgan_gp", "--preset", "paper")
        assert (args.loss, args.critic_steps) == ("wasserstein", 5)
        assert (args.padding, args.betas) == ("same", (0.5, 0.999))
        # Of the critic, as StarGAN's authors count.
        assert args.epochs * args.steps_per_epoch * args.critic_steps == 200_000
        args = parse("--normalizer", "wgan_gp", "--critic-steps", "2")
        assert (args.critic_steps, args.size, args.epochs) == (2, 32, 10)

    @pytest.mark.parametrize(
        ("arguments", "expected"),
        [
            ([], [["red", "green", "blue"]]),
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
        args = parse(
            *SMALL,
            *("--ratio", "0.5", "--gain", "2", "--class-weight", "3"),
            *("--cycle-weight", "4", "--identity-weight", "5"),
        )
        gan = attribute_transfer.make_gan(args, 2)
        assert isinstance(gan, keras_san.AttributeGAN)
        assert gan.generator.inputs[1].shape == (None, 2)
        weights = gan.class_weight, gan.cycle_weight, gan.identity_weight
        assert weights == (3.0, 4.0, 5.0)
        assert isinstance(gan.loss_function, losses.Hinge)
        assert gan.penalty is None and gan.averaged_generator is None
        for name in ("conv_1", "conv_2", "logits"):
            layer = gan.critic.get_layer(name)
            assert isinstance(layer.normalizer, normalizers.SparsityAware)
            assert (layer.normalizer.ratio, layer.normalizer.gain) == (0.5, 2.0)
            assert layer.get_config()["padding"] == "circular"
