import csv
import os
import shutil

import keras
import numpy as np
import pytest
from helpers import quickly, save
from PIL import Image

from experiments import comparing, photographs, super_resolution
from keras_san import losses, normalizers
from keras_san.metrics import image_quality

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

pytestmark = pytest.mark.usefixtures("quick")

SMALL = [
    *("--width", "0.06", "--blocks", "1", "--critic-width", "0.02"),
    *("--crop", "8", "--critic-resolution", "32", "--batch-size", "2"),
    *("--steps-per-epoch", "2", "--pretraining-epochs", "2"),
    *("--epochs", "2", "--held-out", "1"),
]


def command(name, *arguments):
    return super_resolution.main([name, *map(str, arguments)])


def train(output, folder, *arguments):
    """Two epochs before the critic, and two with it."""
    shared = ["--data", folder, *SMALL, "--output", output]
    assert command("train", *shared, *arguments) == 0


def read(table):
    with open(table) as file:
        return [*csv.DictReader(file)]


def weights(path):
    return keras.saving.load_model(path).get_weights()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six photographs, pieces of one of scikit-image's."""
    folder = tmp_path_factory.mktemp("photographs")
    (pair,) = photographs.load(split="validation", scale=2)
    for i in range(6):
        part = pair.large[20 * i : 20 * i + 150, 40 * i : 40 * i + 200 - i]
        save(folder / f"{i}.png", part)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, folder):
    output = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        quickly(patch)
        train(output, folder, "--name", "run")
    return output / "run"


def test_all_three_commands(tmp_path, run, folder, capsys):
    for name in ("comparison.png", "comparison_0001.png", "curves.png"):
        assert (run / name).exists() and (run / "pretraining" / name).exists()
    rows = read(run / "log.csv")
    assert len(rows) == 2
    for name in ("psnr", "ssim", "niqe", "pixel_loss", "norm/conv_1_1"):
        assert np.isfinite(float(rows[1][name])), name

    assert command("evaluate", "--data", folder, "--run", run) == 0
    printed = capsys.readouterr().out
    assert "6 photographs" in printed and "4 pixels" in printed
    for name in ("bicubic", "run/pretrained", "run/generator", "truth"):
        assert name in printed
    (table,) = run.glob("evaluation-*.csv")
    rows = read(table)
    assert len(rows) == 4 * 6
    pair = photographs.load(folder)[2]
    (made,) = comparing.bicubic([pair])
    expected = image_quality.psnr(pair.large, made, 4)
    assert rows[2]["method"] == "bicubic" and rows[2]["photograph"] == "2"
    np.testing.assert_allclose(float(rows[2]["psnr"]), expected, atol=1e-4)
    assert len([*run.glob("evaluation-*.png")]) == 2

    out = tmp_path / "out"
    how = ["--generator", run / "generator.keras", "--output", out]
    assert command("upscale", folder, *how, "--tile", "64") == 0
    assert len(os.listdir(out)) == 6
    with Image.open(out / "3.png") as image:
        assert image.size == (4 * 197, 4 * 150)
    (tmp_path / "broken.png").write_bytes(b"nothing")
    assert command("upscale", tmp_path / "broken.png", *how) == 1
    assert "1 left out:\n" in capsys.readouterr().out


class Stop(BaseException):
    """As if the process had been killed: nobody catches it."""


def test_a_resumed_run_is_as_if_it_had_not_stopped(
    tmp_path, run, folder, monkeypatch
):
    stopped, begun, stops = tmp_path / "run", [], ["pretraining 1", "run 1"]

    def begin(sheet, epoch, logs=None):
        begun.append(f"{os.path.basename(sheet.folder)} {epoch}")
        if begun[-1] in stops:
            stops.remove(begun[-1])
            raise Stop

    monkeypatch.setattr(comparing.ComparisonSheet, "on_epoch_begin", begin)
    arguments = [tmp_path, folder, "--name", "run"]
    for resume in ([], ["--resume"]):
        with pytest.raises(Stop):
            train(*arguments, *resume)
        assert (stopped / "pretrained.keras").exists() == bool(resume)
        assert not (stopped / "generator.keras").exists()
    train(*arguments, "--resume")
    assert begun[:3] == ["pretraining 0", "pretraining 1", "pretraining 1"]
    assert begun[3:] == ["run 0", "run 1", "run 1"]
    networks = [weights(x / "generator.keras") for x in (run, stopped)]
    for a, b in zip(*networks):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_from_a_pretrained_generator(tmp_path, run, folder):
    first = tmp_path / "pretrained.keras"
    shutil.copy(run / "pretrained.keras", first)
    second = tmp_path / "second"
    begun = [tmp_path, folder, "--pretrained", first]
    train(
        *(*begun, "--name", "second", "--normalizer", "none"),
        *("--ema", "0.5", "--learning-rate", "0"),
    )
    assert not (second / "pretraining").exists()
    paths = first, second / "pretrained.keras", second / "generator.keras"
    # At a rate of 0 the critic's training ends where it has begun.
    for a, b, c in zip(*map(weights, paths)):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(c, a, atol=1e-7)
    with pytest.raises(ValueError, match="another form.*--blocks"):
        train(*begun, "--name", "third", "--blocks", "2")
    assert not (tmp_path / "third").exists()


@pytest.mark.parametrize(
    ("preset", "pixel", "betas", "batch_size", "halved"),
    [
        ("paper", 0.01, None, 32, 0.125),
        ("authors", 1.0, (0.9, 0.99), 16, 0.3),
    ],
)
def test_presets(preset, pixel, betas, batch_size, halved):
    args = super_resolution.parse(["--preset", preset, "--epochs", "3"])
    assert args.epochs == 3 and args.run_name == "photographs-san"
    assert args.pixel_weight == pixel
    assert (args.adversarial_weight, args.perceptual_weight) == (0.1, 1.0)
    assert (args.generator_betas, args.betas) == (betas, (0.5, 0.9))
    assert (args.batch_size, args.halve_at[0]) == (batch_size, halved)
    assert args.batch_norm == (preset == "authors")
    assert args.crop * args.factor == 160 and args.critic_resolution == 128
    generator = super_resolution.make_generator(args)
    assert generator.count_params() == 1_521_667


def test_networks_and_losses(tmp_path):
    path = tmp_path / "model.keras"
    keras.Sequential(
        [keras.Input((8, 8, 3)), keras.layers.Conv2D(2, 3, name="a")]
    ).save(path)
    args = super_resolution.parse(
        [*SMALL, "--normalizer", "sn", "--generator-betas", "0.1", "0.2"]
        + ["--perceptual", path, "--perceptual-layer", "a"]
    )
    content_losses = super_resolution.make_content_losses(args)
    assert [(type(loss), loss.weight) for loss in content_losses] == [
        (losses.PixelLoss, 1.0),
        (losses.PerceptualLoss, 1.0),
    ]
    gan = super_resolution.make_gan(args, content_losses)
    found = gan.critic.get_layer("conv_1_1").normalizer
    assert isinstance(found, normalizers.Spectral)
    adams = gan.generator_optimizer, gan.critic_optimizer
    betas = [(adam.beta_1, adam.beta_2) for adam in adams]
    assert betas == [(0.1, 0.2), (0.5, 0.9)]
    args = super_resolution.parse(["--pixel-weight", "0"])
    assert super_resolution.make_content_losses(args) == []


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--crop", "4"], "--crop 8 or more.*--critic-resolution 32"),
        (["--crop", "100"], "'0' with 50 x 37"),
        (["--critic-resolution", "30"], "multiple of 32"),
        (["--factor", "1"], "factor=1"),
        (["--perceptual", "vgg19"], "--perceptual vgg19 without --download"),
        (["--pixel-order", "3"], "--pixel-order 3"),
        (["--preset", "best"], "authors.*--preset best"),
        (["--pretraining-epochs", "-1"], "pretraining_epochs=-1"),
        (["--held-out", "0"], "held_out=0"),
        (["--held-out", "6"], "6 in .*--held-out 6"),
        (["--pretrained", "missing.keras"], "no such file.*missing.keras"),
        (["--pretrained", "setup.cfg"], "no Keras model.*setup.cfg"),
        (["--niqe-model", "setup.cfg"], "NIQE model.*setup.cfg"),
        (["--strategy", "multi_worker"], "--strategy multi_worker"),
    ],
)
def test_bad_arguments(tmp_path, monkeypatch, folder, arguments, expected):
    monkeypatch.chdir(ROOT)
    with pytest.raises(ValueError, match=expected):
        train(tmp_path, folder, *arguments)
    assert os.listdir(tmp_path) == []


def test_what_is_trained_and_measured_on(folder):
    def loaded(*arguments):
        parts = super_resolution.load_pairs(super_resolution.parse(arguments))
        return [" ".join(pair.name for pair in part) for part in parts]

    assert loaded("--data", folder) == ["0 1", "2 3 4 5"]
    apart = loaded("--data", folder, "--held-out", "1")
    assert apart == ["0 1 2 3 4", "5"]
    both = loaded("--data", folder, "--validation", "photographs")
    assert both == ["0 1 2 3 4 5", "chelsea"]
    bundled, held_out = loaded()
    assert len(bundled.split()) == 9 and held_out == "chelsea"


def test_networks_to_evaluate(tmp_path, folder, monkeypatch):
    monkeypatch.chdir(tmp_path)
    keras.Sequential(
        [keras.Input((None, None, 3)), keras.layers.UpSampling2D(2)]
    ).save("double.keras")
    data, network = ["--data", folder], ["--generator", "double.keras"]
    for arguments, message in (
        (["--run", "none"], "no such file.*pretrained.keras"),
        (network, "enlarge by 4.*makes 16 x 16"),
        ([*network, "double.keras"], "measured once.*double.keras"),
        (
            [*network, "--factor", "2", "--border", "30"],
            "'0' by bicubic.*96x96",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            command("evaluate", *data, *arguments)
    assert os.listdir() == ["double.keras"]
    # Beside the network: they must not stand in the way of a run.
    assert command("evaluate", *data, *network, "--factor", "2") == 0
    assert len([*tmp_path.glob("evaluation-*.csv")]) == 1
    assert not (tmp_path / "runs").exists()
    # As short as tells them apart.
    names = super_resolution._short(["one/a/x.keras", "two/a/x.keras"])
    assert names == ["one/a/x", "two/a/x"]


def test_published_values_of_bicubic_interpolation():
    """Through the whole chain: PSNR and SSIM as the field reports them."""
    path = os.path.join(ROOT, "..", "shared", "data", "set5_x4")
    if not os.path.isdir(path):
        pytest.skip("needs Set5, which this repository does not hold")
    scores, _ = comparing.evaluate(photographs.load(path), {}, crop=4)
    psnr, ssim, _ = scores["bicubic"].mean(axis=0)
    assert abs(psnr - 28.42) < 0.01 and abs(ssim - 0.8104) < 0.0005


def test_the_sheet_shows_where_most_is_to_be_seen():
    truth = np.full((60, 80, 3), 100, "uint8")
    truth[30:50, 40:60] = np.indices((20, 20)).sum(axis=0)[..., None] % 2 * 255
    other = np.zeros_like(truth)
    sheet = comparing.sheet({"a": [other], "b": [truth]}, size=20)
    assert sheet.shape == (16 + 44 + 4, 2 * 44 + 4, 3)
    window = sheet[16:56, 48:88]
    np.testing.assert_array_equal(window[::2, ::2], truth[30:50, 40:60])
    assert np.all(sheet[16:56, 4:44] == 0)
