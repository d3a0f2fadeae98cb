"""Verdicts on broken critics, reports of them, and the command line."""

import csv
import math

import helpers
import keras
import numpy as np
import pytest
from helpers import images_of
from keras import layers, ops

import keras_san
from keras_san import SANConv2D, SANDense, normalizers
from keras_san.callbacks.logs import kernel_norms
from keras_san.diagnostics import (
    diagnose,
    inert_normalizations,
    report,
)
from keras_san.diagnostics.__main__ import load_images, main
from keras_san.kernels import find_kernels
from keras_san.networks import sngan

pytestmark = helpers.ignore_torch_copies


IMAGES = images_of(2, 32, 32, 3)


# Verdicts.

NORMALIZERS = {
    "san": "san",
    "sn": "sn",
    "bssn": normalizers.BidirectionalSpectral(scale=1.4),
    "none": None,
}
NETWORKS = {"cnn": sngan.critic, "resnet": sngan.resnet_critic}

# By critic: which kernels become too large, and which too small. Of those
# without a normalizer more than one, as a single layer of Xavier's start times
# three may be one of Kaiming's times 1.6. And He's start of a first layer,
# times 0.3, is one by Xavier's rule.
CRITICS = {
    "cnn_san": ([], []),
    "cnn_sn": ([], []),
    "cnn_bssn": ([], []),
    "cnn_none": (range(8), [3]),
    "resnet_san": ([2], [9]),
    "resnet_none": ([], []),
    "small_sn": ([0], []),
    "small_bssn": ([], [2]),
    "keras": ([1], [2]),
}


def critic_of(name):
    keras.utils.set_random_seed(3)
    network, _, normalizer = name.partition("_")
    if network == "keras":
        return keras_critic()
    normalizer = NORMALIZERS[normalizer]
    if network == "small":
        return small_critic(normalizer, size=32)
    return NETWORKS[network](32, width=1 / 16, normalizer=normalizer)


def keras_critic():
    spectral = layers.SpectralNormalization
    critic = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            spectral(layers.Conv2D(4, 3, padding="same"), name="first"),
            layers.LeakyReLU(0.1),
            spectral(layers.Conv2D(8, 4, 2, padding="same"), name="second"),
            layers.LeakyReLU(0.1),
            layers.Flatten(),
            spectral(layers.Dense(1), name="third"),
        ]
    )
    # Each call is one power iteration, from a random start.
    for _ in range(8):
        critic(IMAGES, training=True)
    return critic


@pytest.mark.parametrize("name", CRITICS)
def test_verdicts(name):
    critic = critic_of(name)
    found = diagnose(critic, IMAGES)
    assert found.verdict == "healthy", found.reason
    assert found.layer is None
    assert found.inert == []
    assert found.warnings == []

    kernels = find_kernels(critic)
    values = [ops.copy(kernel.variable.value) for kernel in kernels]
    for factor, verdict, broken in zip(
        (3.0, 0.3), ("exploding", "vanishing"), CRITICS[name]
    ):
        if not broken:
            continue
        for index, (kernel, value) in enumerate(zip(kernels, values)):
            kernel.variable.assign(value * factor if index in broken else value)
        found = diagnose(critic, IMAGES)
        assert found.verdict == verdict, found.reason
        assert found.layer in {kernels[i].name for i in broken}
        assert found.layer in found.reason
        if not name.endswith("none"):
            assert [found.layer in text for text in found.warnings] == [True]


@pytest.mark.parametrize(
    "inert, normalizer, between, normalization",
    [
        ("first", "san", [], layers.BatchNormalization()),
        (
            "second",
            normalizers.SparsityAware(form="project"),
            [layers.Dropout(0.5)],
            layers.GroupNormalization(-1),
        ),
        ("third", "bsn", [layers.Identity()], layers.LayerNormalization()),
    ],
)
def test_normalizations_that_do_nothing(
    inert, normalizer, between, normalization
):
    parts = [keras.Input((8, 8, 3))]
    for name in ("first", "second", "third"):
        parts.append(SANConv2D(4, 3, normalizer=normalizer, name=name))
        if name == inert:
            parts += [*between, normalization]
        parts.append(layers.LeakyReLU(0.1))
    parts += [layers.Flatten(), SANDense(1, name="dense")]
    keras.utils.set_random_seed(0)
    critic = keras.Sequential(parts)
    images = images_of(3, 8, 8, 3)
    assert inert_normalizations(critic, images) == [inert]
    if between:
        # What a diagnosis makes of it does not depend on what stands between.
        return
    found = diagnose(critic, images)
    assert found.inert == [inert]
    assert [inert in text for text in found.warnings] == [True]
    assert found.verdict == "healthy", found.reason


def test_norms_that_do_something():
    critic = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            SANConv2D(4, 3),
            layers.LeakyReLU(0.1),
            layers.BatchNormalization(),
            SANConv2D(4, 3, activation="relu"),
            layers.GroupNormalization(-1),
            SANConv2D(4, 3, normalizer=None),
            layers.LayerNormalization(),
            layers.Flatten(),
            SANDense(1),
        ]
    )
    assert inert_normalizations(critic, images_of(2, 8, 8, 3)) == []


def test_trained_lengths_are_judged_as_plain_kernels():
    plain, critic = map(small_critic, (None, "weight"))
    images = images_of(8, 8, 8, 3)
    expected, found = (diagnose(model, images) for model in (plain, critic))
    assert (found.verdict, found.warnings) == ("healthy", [])
    for field in ("san", "sn", "variance_kaiming"):
        np.testing.assert_allclose(found.norms[field], expected.norms[field])
    np.testing.assert_allclose(found.slope, expected.slope, rtol=1e-5)
    assert set(found.norms["normalizer"]) == {"WeightNormalization"}
    np.testing.assert_array_equal(found.norms["norm_over_intended"], math.nan)
    # Sizes of raw kernels mean nothing, lengths do.
    for layer in (critic.layers[0], critic.layers[2]):
        (normalization,) = layer.normalizations
        layer.kernel.assign(layer.kernel * 100.0)
        normalization.lengths.assign(normalization.lengths * 5.0)
    found = diagnose(critic, images)
    assert found.verdict == "exploding"
    assert found.layer in ("first", "second")
    expected.norms["sn"][:2] *= 5.0
    np.testing.assert_allclose(
        list(kernel_norms(critic).values()), expected.norms["sn"], rtol=1e-5
    )


def test_trained_lengths_are_not_cancelled():
    """Layer normalization keeps the differences between channels."""
    critic = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            SANConv2D(4, 3, normalizer="weight"),
            layers.LayerNormalization(),
        ]
    )
    assert inert_normalizations(critic, images_of(2, 8, 8, 3)) == []


def small_critic(normalizer="san", size=8, **kwargs):
    keras.utils.set_random_seed(0)
    return keras.Sequential(
        [
            keras.Input((size, size, 3)),
            SANConv2D(4, 3, normalizer=normalizer, name="first", **kwargs),
            layers.LeakyReLU(0.1),
            SANConv2D(4, 3, normalizer=normalizer, name="second"),
            layers.LeakyReLU(0.1),
            layers.Flatten(),
            SANDense(1, normalizer=normalizer, name="dense"),
        ]
    )


@pytest.mark.parametrize(
    "normalizer, weight, value",
    [("san", "kernel", math.nan), (None, "bias", math.inf)],
)
def test_numbers_that_are_not_finite(normalizer, weight, value):
    critic = small_critic(normalizer)
    variable = getattr(critic.get_layer("second"), weight)
    values = helpers.to_numpy(variable).astype("float32")
    values.flat[0] = value
    variable.assign(values)
    found = diagnose(critic, images_of(2, 8, 8, 3))
    assert found.verdict == "exploding"
    assert found.layer == "second"
    assert "not finite" in found.reason


def test_a_norm_that_is_measured_anew():
    critic = small_critic()
    images = images_of(2, 8, 8, 3)
    for layer in (critic.layers[0], critic.layers[2]):
        layer.kernel.assign(layer.kernel * 5.0)
    assert diagnose(critic, images).verdict == "exploding"
    critic(images, training=True)
    found = diagnose(critic, images)
    assert (found.verdict, found.warnings) == ("healthy", [])


def test_a_diagnosis_changes_nothing():
    critic = small_critic("sn")
    critic(images_of(1, 8, 8, 3), training=True)
    before = [helpers.to_numpy(w) for w in critic.weights]
    found = diagnose(critic, images_of(3, 8, 8, 3), operator=True)
    for weight, value in zip(critic.weights, before):
        np.testing.assert_array_equal(helpers.to_numpy(weight), value)
    assert len(found.bounds) == 3
    assert (found.gradients["norm"] <= found.bounds["bound"]).all()


def test_the_slope_of_the_score():
    # D(x) = w.x, and images at known distances.
    critic = keras.Sequential(
        [keras.Input((4, 4, 1)), layers.Flatten(), layers.Dense(1)]
    )
    weights = images_of(16, 1, seed=2)
    images = images_of(5, 4, 4, 1)
    distance = np.mean(
        [np.linalg.norm(a - b) for a, b in zip(images[1:], images)]
    )
    slope = np.linalg.norm(weights) * distance
    for scale, verdict in (
        (1.0, "healthy"),
        (0.04 / slope, "vanishing"),
        (2e5 / slope, "exploding"),
    ):
        critic.layers[1].kernel.assign(weights * np.float32(scale))
        found = diagnose(critic, images)
        assert found.slope == pytest.approx(slope * scale, rel=1e-4)
        assert found.verdict == verdict


@pytest.mark.parametrize(
    "aligned, factor, verdict",
    [
        (True, 1.0, "healthy"),
        (True, 3.0, "exploding"),
        (True, 0.3, "healthy"),
        (False, 1.0, "healthy"),
        (False, 3.0, "healthy"),
        (False, 0.3, "vanishing"),
    ],
)
def test_signals_and_weights_have_to_agree(aligned, factor, verdict):
    # Of He's size, along what the layer gets or across: signals then are 4
    # times what they would be of random weights, or next to nothing.
    critic = keras.Sequential(
        [keras.Input((4, 4, 1)), layers.Flatten(), layers.Dense(1, name="d")]
    )
    signs = np.ones((16, 1)) if aligned else (-1.0) ** np.arange(16)[:, None]
    critic.layers[1].kernel.assign(signs * factor * math.sqrt(2.0 / 16.0))
    found = diagnose(critic, 1.0 + 0.1 * images_of(4, 4, 4, 1))
    (growth,) = found.gains["growth"]
    assert growth > 3.5 * factor if aligned else growth < 0.2 * factor
    assert found.verdict == verdict
    assert found.layer == (None if verdict == "healthy" else "d")


def test_the_operator_norm_makes_the_cnn_vanish():
    # Layer by layer all is well, and yet little is left of the gradient:
    # Figure 4 of Lin, Sekar and Fanti.
    keras.utils.set_random_seed(0)
    critic = sngan.critic(32, width=1 / 8, normalizer="conv_sn")
    found = diagnose(critic, load_images(None, (32, 32, 3), 3))
    assert found.verdict == "vanishing"
    assert "the score changes" in found.reason
    assert found.layer in found.reason
    assert found.warnings == []


def test_subclassed_critics_of_several_inputs_and_scales():
    class Critic(keras.Model):
        def __init__(self):
            super().__init__()
            self.first = SANConv2D(4, 3, name="first")
            self.logits = [
                SANConv2D(1, 1, name="large"),
                SANConv2D(1, 4, 2, name="small"),
            ]

        def call(self, inputs):
            images, masks = inputs
            x = self.first(ops.concatenate([images, masks], axis=-1))
            x = ops.leaky_relu(x, 0.1)
            return [[x, logits(x)] for logits in self.logits]

    keras.utils.set_random_seed(0)
    critic = Critic()
    data = [images_of(3, 8, 8, 3), images_of(3, 8, 8, 1, seed=1)]
    critic(data)
    found = diagnose(critic, data, operator=True)
    assert found.verdict == "healthy", found.reason
    assert (found.gradients["norm"] <= found.bounds["bound"]).sum() == 2
    critic.first.kernel.assign(critic.first.kernel * 3.0)
    assert diagnose(critic, data).layer == "first"


def test_too_few_images_or_bad_ones():
    critic = small_critic()
    for count in (0, 1):
        with pytest.raises(ValueError, match=f"Received: {count}$"):
            diagnose(critic, images_of(count, 8, 8, 3))
    images = images_of(2, 8, 8, 3)
    images[1, 0, 0, 0] = math.nan
    with pytest.raises(ValueError, match="Received: images with NaN"):
        diagnose(critic, images)
    images[:] = images[0]
    with pytest.raises(ValueError, match="Received: 2 images, all the same"):
        diagnose(critic, images)


# Reports.


@pytest.fixture(scope="module")
def small_diagnosis():
    images = images_of(3, 8, 8, 3)
    critic = small_critic()
    critic.layers[2].kernel.assign(critic.layers[2].kernel * 3.0)
    return diagnose(critic, images, operator=True)


def test_rows(small_diagnosis):
    found = small_diagnosis
    rows = report.rows_of(found)
    assert [row["layer"] for row in rows] == ["first", "second", "dense"]
    for index, row in enumerate(rows):
        for record, prefix in (
            (found.norms[index], ""),
            (found.gains[index], ""),
            (found.gradients[index], "gradient_"),
            (found.bounds[index], "gradient_"),
        ):
            for name in record.dtype.names:
                if name != "layer":
                    assert row[prefix + name] == record[name]
        assert row["gradient_over_bound"] == (
            found.gradients[index]["norm"] / found.bounds[index]["bound"]
        )


def test_text(small_diagnosis):
    found = small_diagnosis
    header, *lines = report.text_of(found).split("\n")
    assert header.split()[:3] == ["layer", "by", "SAN"]
    assert [line.split()[0] for line in lines[:3]] == [
        "first",
        "second",
        "dense",
    ]
    assert "SparsityAware" in lines[1] and "3.000" in lines[1].split()
    blank = [index for index, line in enumerate(lines) if not line]
    assert blank[0] == 3 and len(blank) == 2
    # A legend of all columns.
    legend = [line.split()[0] for line in lines[4 : blank[1]]]
    assert legend == header.split()[1:]
    last = lines[blank[1] + 1 :]
    assert last[0] == f"{found.verdict}: {found.reason}"
    assert last[1:] == [f"warning: {text}" for text in found.warnings]
    assert len(last) == 2


def test_csv(small_diagnosis, tmp_path):
    found = small_diagnosis
    report.write_csv(found, tmp_path / "layers.csv")
    with open(tmp_path / "layers.csv", newline="") as file:
        read = list(csv.DictReader(file))
    for row, expected in zip(read, report.rows_of(found), strict=True):
        assert set(row) == set(expected)
        for name, value in expected.items():
            if isinstance(value, str):
                assert row[name] == value
            else:
                np.testing.assert_equal(float(row[name]), value)


def open_picture(path):
    image = pytest.importorskip("PIL.Image")
    with image.open(path) as picture:
        assert picture.format == "PNG"
        # Not blank.
        assert len(picture.convert("L").getcolors()) > 20
        return picture.size


def test_reports_of_dead_and_broken_critics(tmp_path):
    pytest.importorskip("matplotlib")
    images = images_of(2, 8, 8, 3)
    dead = small_critic(None, kernel_initializer="zeros")
    broken = small_critic(None)
    broken.layers[2].kernel.assign(np.full((3, 3, 4, 4), math.nan))
    for critic, operator, *expected in (
        (dead, True, "vanishing", "first"),
        (broken, False, "exploding", "second"),
    ):
        found = diagnose(critic, images, operator=operator)
        assert [found.verdict, found.layer] == expected
        report.draw(found, tmp_path / "layers.png")
        width, height = open_picture(tmp_path / "layers.png")
        assert width > 300 and height > 800
        assert found.verdict in report.text_of(found)
        report.write_csv(found, tmp_path / "layers.csv")


# The command line.


@pytest.fixture(scope="module")
def critic_path(tmp_path_factory):
    path = tmp_path_factory.mktemp("critic") / "critic.keras"
    small_critic().save(path)
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    image = pytest.importorskip("PIL.Image")
    top = tmp_path_factory.mktemp("images")
    (top / "more").mkdir()
    for index in range(5):
        shade = np.full((9, 11, 3), 40 * index, "uint8")
        shade[:, :5] //= 2
        place = top / "more" if index % 2 else top
        image.fromarray(shade).save(place / f"{index}.png")
    (top / "notes.txt").write_text("no image")
    return str(top)


def test_command_with_noise(critic_path, tmp_path, capsys, monkeypatch):
    drawn = []
    monkeypatch.setattr(report, "draw", lambda *args: drawn.append(args))
    monkeypatch.setattr(report, "draw_sparsity", lambda *_: None)
    found = main([critic_path, "--images", "3", "--output", str(tmp_path)])
    assert found.verdict == "healthy"
    assert len(found.bounds) == 3
    assert report.text_of(found) in capsys.readouterr().out
    assert drawn == [(found, str(tmp_path / "layers.png"))]


def test_command_on_a_gan(folder, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    generator = keras.Sequential(
        [
            keras.Input((4,)),
            layers.Dense(8 * 8 * 3),
            layers.Reshape((8, 8, 3)),
        ]
    )
    critic = small_critic()
    critic.layers[2].kernel.assign(critic.layers[2].kernel * 3.0)
    gan = keras_san.GAN(generator, critic, latent_dim=4)
    gan.compile()
    gan.save(tmp_path / "gan.keras")
    output = tmp_path / "deep" / "folder"
    found = main(
        [
            str(tmp_path / "gan.keras"),
            *("--data", folder),
            *("--output", str(output)),
        ]
    )
    assert (found.verdict, found.layer) == ("exploding", "second")
    printed = capsys.readouterr().out
    assert "exploding" in printed
    assert str(output / "layers.png") in printed
    assert sorted(p.name for p in output.iterdir()) == [
        "layers.csv",
        "layers.png",
        "sparsity.png",
    ]
    width, height = open_picture(output / "layers.png")
    assert width > 300 and height > 800
    open_picture(output / "sparsity.png")


def test_images_of_a_folder(folder):
    images = load_images(folder, (8, 6, 3), 100)
    assert images.shape == (5, 8, 6, 3) and images.dtype == np.float32
    assert -1.0 <= images.min() and images.max() <= 1.0
    # 0, 40, ..., 160, in [-1, 1]; even ones come first.
    np.testing.assert_allclose(
        images[:, 0, -1, 0],
        np.array([0, 80, 160, 40, 120]) / 127.5 - 1.0,
        atol=0.02,
    )
    assert load_images(folder, (8, 6, 1), 100).shape == (5, 8, 6, 1)
    some = load_images(folder, (None, None, 3), 2)
    assert some.shape == (2, 64, 64, 3)
    # Spread over all, not the first ones.
    levels = (some[:, 0, -1, 0] + 1.0) * 127.5
    np.testing.assert_allclose(levels, [0, 160], atol=3)


def test_noise():
    images = load_images(None, (16, None, 3), 4)
    assert images.shape == (4, 16, 64, 3) and images.dtype == np.float32
    assert np.abs(images).max() <= 1.0
    spectrum = np.abs(np.fft.fft2(images, axes=(1, 2))) ** 2
    assert spectrum[:, 0, 1:3].mean() > 20 * spectrum[:, 8, 28:36].mean()


def test_command_with_bad_inputs(critic_path, tmp_path):
    text = tmp_path / "text.keras"
    text.write_text("no model")
    images = keras.Input((8, 8, 3))
    labels = keras.Input((3,))
    x = layers.Concatenate()([layers.Flatten()(images), labels])
    keras.Model([images, labels], layers.Dense(1)(x)).save(
        tmp_path / "two.keras"
    )
    empty = tmp_path / "empty"
    empty.mkdir()
    for arguments, message in (
        (["missing.keras"], "no such file.*Received: 'missing.keras'"),
        ([str(text)], "no Keras model.* Received: '.*text.keras'"),
        ([str(tmp_path / "two.keras")], "images only.*Received: .*two.keras"),
        (
            [critic_path, "--data", str(empty)],
            "at least two images. Received: '.*empty' with 0",
        ),
        ([critic_path, "--images", "1"], "Received: images=1"),
    ):
        with pytest.raises(ValueError, match=message):
            main([*arguments, "--output", str(tmp_path / "out")])
    with pytest.raises(SystemExit):
        main([critic_path, "--images", "many"])
