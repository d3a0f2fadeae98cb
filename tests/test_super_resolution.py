import csv
import json
import os
import shutil

import keras
import numpy as np
import pytest
from helpers import BACKEND, needs_training, quickly
from PIL import Image

from experiments import comparing, photographs, super_resolution
from keras_san import losses, normalizers
from keras_san.metrics import image_quality
from keras_san.metrics.resizing import imresize

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SHARED = os.path.join(ROOT, "..", "shared", "data")

pytestmark = pytest.mark.usefixtures("quick")

SMALL = [
    *("--width", "0.06", "--blocks", "1", "--critic-width", "0.02"),
    *("--crop", "8", "--critic-resolution", "32", "--batch-size", "2"),
    *("--steps-per-epoch", "2", "--pretraining-epochs", "2"),
]


def train(tmp_path, *arguments, epochs=1):
    return super_resolution.main(
        ["train", *SMALL, "--output", str(tmp_path), "--epochs", str(epochs)]
        + [str(a) for a in arguments]
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six photographs, pieces of one of scikit-image's."""
    folder = tmp_path_factory.mktemp("photographs")
    image = photographs.load(split="validation", scale=2).large[0]
    for i in range(6):
        part = image[20 * i : 20 * i + 150, 40 * i : 40 * i + 200 - i]
        Image.fromarray(part).save(folder / f"{i}.png")
    return folder


@pytest.fixture(scope="module")
def settings(folder):
    return ["--data", folder, "--held-out", "1"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, settings):
    """A run of two epochs before the critic, and two with it."""
    output = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        quickly(patch)
        assert train(output, *settings, "--name", "run", epochs=2) == 0
    return output / "run"


@needs_training
def test_all_three_commands(tmp_path, trained, folder, capsys):
    run = trained
    assert {
        "comparison.png",
        "comparison_0001.png",
        "curves.png",
        "generator.keras",
        "log.csv",
        "pretrained.keras",
        "settings.json",
    } <= {*os.listdir(run)}
    assert len(os.listdir(run / "pretraining" / "checkpoint")) == 1
    with open(run / "log.csv") as file:
        rows = [*csv.DictReader(file)]
    assert len(rows) == 2
    for name in ("psnr", "ssim", "niqe", "pixel_loss", "norm/conv_1_1"):
        assert np.isfinite(float(rows[1][name])), name
    with open(run / "settings.json") as file:
        assert json.load(file)["normalizer"] == "san"

    capsys.readouterr()
    arguments = ["--data", str(folder), "--run", str(run), "--factor", "4"]
    assert super_resolution.main(["evaluate", *arguments]) == 0
    printed = capsys.readouterr().out
    assert "6 photographs" in printed and "4 pixels" in printed
    for name in ("bicubic", "run/pretrained", "run/generator", "truth"):
        assert name in printed
    (table,) = run.glob("evaluation-*.csv")
    with open(table) as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4 * 6
    pairs = photographs.load(folder)
    expected = image_quality.psnr(
        pairs.large[2], imresize(pairs.small[2], 4), 4
    )
    assert rows[2]["method"] == "bicubic" and rows[2]["photograph"] == "2"
    np.testing.assert_allclose(float(rows[2]["psnr"]), expected, atol=1e-4)
    assert len([*run.glob("evaluation-*.png")]) == 2

    arguments = [
        *("--generator", str(run / "generator.keras")),
        *("--output", str(tmp_path / "out"), "--tile", "64"),
    ]
    status = super_resolution.main(["upscale", str(folder), *arguments])
    assert status == 0 and len(os.listdir(tmp_path / "out")) == 6
    with Image.open(tmp_path / "out" / "3.png") as image:
        assert image.size == (4 * 197, 4 * 150)
    with pytest.raises(ValueError, match="Received: none"):
        super_resolution.main(["upscale", *arguments])
    (tmp_path / "broken.png").write_bytes(b"nothing")
    status = super_resolution.main(
        ["upscale", str(tmp_path / "broken.png"), *arguments]
    )
    assert status == 1
    assert "1 left out:\n" in capsys.readouterr().out


class Stop(BaseException):
    """As if the process had been killed: nobody catches it."""


def stop(epoch, logs=None):
    if epoch == 1:
        raise Stop


@needs_training
def test_a_resumed_run_is_as_if_it_had_not_stopped(tmp_path, trained, settings):
    settings = [*settings, "--name", "run"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            comparing.ComparisonSheet,
            "on_epoch_begin",
            lambda self, epoch, logs=None: stop(epoch),
        )
        with pytest.raises(Stop):  # In the second epoch of the pretraining.
            train(tmp_path, *settings, epochs=2)
        assert not (tmp_path / "run" / "pretrained.keras").exists()
    with pytest.MonkeyPatch.context() as patch:
        fit = super_resolution.keras_san.PairedGAN.fit

        def stop_later(self, *args, callbacks, **kwargs):
            callbacks.append(keras.callbacks.LambdaCallback(stop))
            return fit(self, *args, callbacks=callbacks, **kwargs)

        patch.setattr(super_resolution.keras_san.PairedGAN, "fit", stop_later)
        with pytest.raises(Stop):
            train(tmp_path, *settings, "--resume", epochs=2)
        assert not (tmp_path / "run" / "generator.keras").exists()
    train(tmp_path, *settings, "--resume", epochs=2)
    whole, stopped = (
        keras.saving.load_model(run / "generator.keras").get_weights()
        for run in (trained, tmp_path / "run")
    )
    for a, b in zip(whole, stopped):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


@needs_training
def test_from_a_pretrained_generator(tmp_path, trained, settings):
    shutil.copy(trained / "pretrained.keras", tmp_path)
    pretrained = ["--pretrained", tmp_path / "pretrained.keras", *settings]
    train(
        *(tmp_path, "--name", "second", *pretrained),
        *("--normalizer", "none", "--ema", "0.5", "--learning-rate", "0"),
    )
    assert not (tmp_path / "second" / "pretraining").exists()
    first, second, third = (
        keras.saving.load_model(tmp_path / path).get_weights()
        for path in (
            "pretrained.keras",
            "second/pretrained.keras",
            "second/generator.keras",
        )
    )
    # At a rate of 0 the critic's training ends where it has begun.
    for a, b, c in zip(first, second, third):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(c, a, atol=1e-7)
    with pytest.raises(ValueError, match="another form.*--blocks"):
        train(tmp_path, "--name", "third", *pretrained, "--blocks", "2")
    assert not (tmp_path / "third").exists()


class TestSettings:
    def parse(self, *arguments):
        return super_resolution.parse(arguments)

    @pytest.mark.parametrize(
        ("preset", "pixel", "betas", "batch_size"),
        [("paper", 0.01, None, 32), ("authors", 1.0, (0.9, 0.99), 16)],
    )
    def test_presets(self, preset, pixel, betas, batch_size):
        args = self.parse("--preset", preset)
        assert args.pixel_weight == pixel
        assert (args.adversarial_weight, args.perceptual_weight) == (0.1, 1.0)
        assert args.generator_betas == betas
        assert args.betas == (0.5, 0.9)
        assert args.batch_size == batch_size
        assert args.batch_norm == (preset == "authors")
        assert args.halve_at[0] == {"paper": 0.125, "authors": 0.3}[preset]
        assert args.crop * args.factor == 160 and args.critic_resolution == 128
        generator = super_resolution.make_generator(args)
        assert generator.count_params() == 1_521_667

    def test_a_single_setting(self):
        args = self.parse("--preset", "paper", "--batch-size", "3")
        assert (args.batch_size, args.crop) == (3, 40)
        assert self.parse().run_name == "photographs-san"

    def test_content_losses(self, tmp_path):
        assert [
            type(x) for x in super_resolution.make_content_losses(self.parse())
        ] == [losses.PixelLoss]
        model = keras.Sequential(
            [keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3, name="a")]
        )
        model.save(tmp_path / "model.keras")
        args = self.parse(
            *("--perceptual", str(tmp_path / "model.keras")),
            *("--perceptual-layer", "a", "--pixel-weight", "0"),
        )
        (loss,) = super_resolution.make_content_losses(args)
        assert isinstance(loss, losses.PerceptualLoss) and loss.weight == 1.0

    def test_networks(self):
        args = self.parse(
            *("--normalizer", "sn", "--scale", "1.5", "--critic-width"),
            *("0.02", "--critic-resolution", "32", "--width", "0.06"),
            *("--generator-betas", "0.1", "0.2", "--blocks", "1"),
        )
        gan = super_resolution.make_gan(args, [])
        found = gan.critic.get_layer("conv_1_1").normalizer
        assert isinstance(found, normalizers.Spectral) and found.scale == 1.5
        betas = [
            (adam.beta_1, adam.beta_2)
            for adam in (gan.generator_optimizer, gan.critic_optimizer)
        ]
        assert betas == [(0.1, 0.2), (0.5, 0.9)]


@needs_training
@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--crop", "4"], "--crop 8 or more.*--critic-resolution 32"),
        (
            ["--crop", "100", "--critic-resolution", "64"],
            "'0' with 50 x 37",
        ),
        (["--critic-resolution", "30"], "multiple of 32"),
        (["--perceptual", "vgg19"], "--perceptual vgg19 without --download"),
        (["--perceptual", "setup.cfg"], "neither.*setup.cfg"),
        (["--perceptual", "missing.h5"], "no such file.*missing.h5"),
        (["--normalizer", "none", "--form", "divide"], "--normalizer none"),
        (["--pixel-order", "3"], "--pixel-order 3"),
        (["--preset", "best"], "authors.*--preset best"),
        (["--pretraining-epochs", "-1"], "pretraining_epochs=-1"),
        (["--held-out", "0"], "held_out=0"),
        (["--pretrained", "missing.keras"], "no such file.*missing.keras"),
        (["--pretrained", "setup.cfg"], "no Keras model.*setup.cfg"),
        (["--niqe-model", "setup.cfg"], "NIQE model.*setup.cfg"),
        (["--strategy", "multi_worker"], "--strategy multi_worker"),
        (["--resume"], "no run to resume"),
    ],
)
def test_bad_arguments(tmp_path, monkeypatch, folder, arguments, expected):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match=expected):
        train(tmp_path, "--data", folder, *arguments)
    assert os.listdir(tmp_path) == []


def test_what_is_trained_and_measured_on(folder):
    def loaded(*arguments):
        args = super_resolution.parse(arguments)
        pairs, validation = super_resolution.load_pairs(args)
        return pairs.names, validation.names

    assert loaded("--data", folder) == (["0", "1"], ["2", "3", "4", "5"])
    apart = ["--data", folder, "--held-out", "1"]
    assert loaded(*apart) == (["0", "1", "2", "3", "4"], ["5"])
    both = ["--data", folder, "--validation", "photographs"]
    assert loaded(*both) == (list("012345"), ["chelsea"])
    bundled, held_out = loaded()
    assert len(bundled) == 9 and held_out == ["chelsea"]


@needs_training
def test_a_folder_of_too_few(tmp_path, folder):
    with pytest.raises(ValueError, match="6 in .*--held-out 6"):
        train(tmp_path, "--data", folder, "--held-out", "6")


def test_networks_to_evaluate(tmp_path, folder):
    model = keras.Sequential(
        [keras.Input((None, None, 3)), keras.layers.UpSampling2D(2)]
    )
    model.save(tmp_path / "double.keras")
    arguments = ["evaluate", "--data", str(folder), "--output", str(tmp_path)]
    network = ["--generator", str(tmp_path / "double.keras")]
    with pytest.raises(ValueError, match="enlarge by 4.*makes 16 x 16"):
        super_resolution.main([*arguments, *network])
    with pytest.raises(ValueError, match="no such file.*pretrained.keras"):
        super_resolution.main([*arguments, "--run", str(tmp_path)])
    assert super_resolution.main([*arguments, *network, "--factor", "2"]) == 0
    network += ["--factor", "2", "--border", "30"]
    with pytest.raises(ValueError, match="'0' by bicubic.*96x96"):
        super_resolution.main([*arguments, *network])


def test_names_of_networks():
    short = super_resolution._short
    assert short(["runs/a/x.keras"]) == ["a/x"]
    names = short(["one/a/x.keras", "two/a/x.keras"])
    assert names == ["one/a/x", "two/a/x"]
    with pytest.raises(ValueError, match="measured once.*x.keras"):
        short(["a/x.keras", "a/x.keras"])


def test_tables_do_not_stand_in_the_way_of_a_run(tmp_path, folder, monkeypatch):
    """Beside the network, where no output is given."""
    model = keras.Sequential(
        [keras.Input((None, None, 3)), keras.layers.UpSampling2D(2)]
    )
    model.save(tmp_path / "double.keras")
    monkeypatch.chdir(tmp_path)
    status = super_resolution.main(
        ["evaluate", "--data", str(folder), "--factor", "2"]
        + ["--generator", "double.keras"]
    )
    assert status == 0 and not (tmp_path / "runs").exists()
    assert len([*tmp_path.glob("evaluation-*.csv")]) == 1


@pytest.mark.skipif(BACKEND != "torch", reason="it is about torch; run there")
def test_training_says_where_it_works(tmp_path):
    with pytest.raises(ValueError, match="TensorFlow and JAX.*torch"):
        train(tmp_path)


def test_published_values_of_bicubic_interpolation():
    """Through the whole chain: PSNR and SSIM as the field reports them."""
    path = os.path.join(SHARED, "set5_x4")
    if not os.path.isdir(path):
        pytest.skip("needs Set5, which this repository does not hold")
    scores, _ = comparing.evaluate(photographs.load(path), {}, crop=4)
    psnr, ssim, _ = scores["bicubic"].mean(axis=0)
    assert abs(psnr - 28.42) < 0.01 and abs(ssim - 0.8104) < 0.0005


def test_the_sheet_shows_where_most_is_to_be_seen():
    truth = np.full((60, 80, 3), 100, "uint8")
    truth[30:50, 40:60] = np.indices((20, 20)).sum(axis=0)[..., None] % 2 * 255
    other = np.zeros_like(truth)
    sheet = comparing.sheet(
        {"a": [other], "b": [truth]}, size=20, enlarge=2, rows=4
    )
    assert sheet.shape == (16 + 44 + 4, 2 * 44 + 4, 3)
    window = sheet[16:56, 48:88]
    np.testing.assert_array_equal(window[::2, ::2], truth[30:50, 40:60])
    assert np.all(sheet[16:56, 4:44] == 0)
