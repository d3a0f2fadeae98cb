import dataclasses
import json
import os

import keras
import numpy as np
import pytest
from helpers import BACKEND, run_module
from PIL import Image

from experiments import batches, data, image_generation, training
from keras_san import callbacks, losses, normalizers, penalties, regularizers
from keras_san.augmentation import AdaptiveAugmentation

pytestmark = [
    pytest.mark.skipif(
        BACKEND != "tensorflow",
        reason="the experiment exports a SavedModel; run on tensorflow",
    ),
    pytest.mark.usefixtures("quick"),
]


def settings(output="", network="small", normalizer="san", **changes):
    """The settings of a training of three steps."""
    small = {"width": 0.03, "batch_size": 8, "steps_per_epoch": 3, "epochs": 1}
    return dataclasses.replace(
        image_generation.preset(network, normalizer),
        **{"output": str(output), **small, **changes},
    )


def run(output, **changes):
    return image_generation.run(settings(output, **changes))


def images(size=16, channels=1, labelled=True):
    rng = np.random.default_rng(0)
    return data.Images(
        "noise",
        rng.integers(256, size=(20, size, size, channels), dtype="uint8"),
        rng.integers(5, size=20, dtype="int32") if labelled else None,
        5 if labelled else None,
    )


def made(network="small", normalizer="san", size=16, **changes):
    args = settings("", network, normalizer, **changes)
    return image_generation.make_gan(args, images(size))


class TestNormalizers:
    """Every row of Table 1, and those of the second paper."""

    @pytest.mark.parametrize(
        ("name", "form", "expected"),
        [
            ("san", "project", normalizers.SparsityAware),
            ("sn", "project", normalizers.Spectral),
            ("ssn", "divide", normalizers.Spectral),
            ("bsn", "project", normalizers.BidirectionalSpectral),
            ("bssn", "divide", normalizers.BidirectionalSpectral),
            ("conv_sn", "project", normalizers.ConvSpectral),
        ],
    )
    def test_that_divide(self, name, form, expected):
        args = settings("", "small", name, scale=1.2, form=form)
        found = image_generation.critic_settings(args)["normalizer"]
        assert type(found) is expected
        assert (found.scale, found.form) == (1.2, form)
        assert args.loss == "hinge"

    def test_all_layers_are(self):
        gan = made(normalizer="sn", scale=1.2, padding="same")
        layers = [layer for layer in gan.critic.layers if layer.weights]
        assert len(layers) == 8
        for layer in layers:
            assert type(layer.normalizer) is normalizers.Spectral
            assert layer.normalizer.scale == 1.2
        assert layers[0].get_config()["padding"] == "same"

    @pytest.mark.parametrize(
        ("name", "loss"),
        [
            ("none", losses.Hinge),
            ("wgan_gp", losses.Wasserstein),
            ("clip", losses.NonSaturating),
            ("weight_norm", losses.NonSaturating),
            ("orthonormal", losses.NonSaturating),
        ],
    )
    def test_baselines(self, name, loss):
        gan = made(normalizer=name)
        kernels = [layer for layer in gan.critic.layers if layer.weights]
        assert len(kernels) == 8
        assert all(layer.normalizer is None for layer in kernels)
        penalized = name == "wgan_gp"
        kinds = [penalties.GradientPenalty] * penalized
        assert [type(x) for x in gan.penalties] == kinds
        assert gan.critic_steps == (5 if penalized else 1)
        assert type(gan.loss_function) is loss
        constraint = {
            "clip": regularizers.Clip,
            "weight_norm": regularizers.UnitFilters,
        }.get(name, type(None))
        assert isinstance(kernels[0].kernel.constraint, constraint)
        assert bool(gan.critic.losses) == (name == "orthonormal")

    def test_norms_of_activations(self):
        for name in ("batch_norm", "layer_norm"):
            layers = made(normalizer=name).critic.layers
            assert len([x for x in layers if "norm" in x.name]) == 7
        with pytest.raises(ValueError, match="CNN's critic.*resnet"):
            made("resnet", name, size=32)

    @pytest.mark.parametrize(
        ("name", "changes", "message"),
        [
            ("clip", {"scale": 2.0}, "'scale': 2.0.*clip"),
            ("ssn", {}, "pass --scale.*ssn"),
            ("bssn", {}, "pass --scale.*bssn"),
            ("sn", {"gain": 2.0}, "Only SAN.*2.0.*--normalizer sn"),
            ("no", {}, "orthonormal.*--normalizer no"),
        ],
    )
    def test_settings_that_would_do_nothing(self, name, changes, message):
        with pytest.raises(ValueError, match=message):
            made(normalizer=name, **changes)

    def test_initializer(self):
        deviations = [
            made(**changes).critic.layers[0].kernel.numpy().std()
            for changes in ({}, {"initializer": "9"})
        ]
        assert deviations[0] < 1.0 and 5.0 < deviations[1] < 15.0


class TestSettings:
    @pytest.mark.parametrize(
        ("network", "expected"),
        [
            ("cnn", (1.0, 64, 2e-4, (0.5, 0.9), 1e-7, 1, 0.0)),
            ("resnet", (1.0, 64, 2e-4, (0.5, 0.9), 1e-7, 1, 0.0)),
            ("biggan", (1.0, 50, 2e-4, (0.5, 0.999), 1e-8, 4, 0.9999)),
        ],
    )
    def test_presets(self, network, expected):
        args = image_generation.parse(["--network", network])
        found = (
            args.width,
            args.batch_size,
            args.learning_rate,
            args.betas,
            args.epsilon,
            args.critic_steps,
            args.ema,
        )
        assert found == expected and args.decay == 1.0
        assert args == image_generation.preset(network)

    def test_command_line(self):
        """A flag wins over the preset that another one asks for."""
        args = image_generation.parse(
            "--data a/cifar10/ --gain adaptive --ema 0.5 --betas 0 1 "
            "--normalizer wgan_gp --network cnn".split()
        )
        expected = dataclasses.replace(
            image_generation.preset("cnn", "wgan_gp"),
            **{"data": "a/cifar10/", "gain": "adaptive", "ema": 0.5},
            betas=(0.0, 1.0),
        )
        assert args == expected
        assert args.run_name == "cifar10-cnn-wgan_gp"
        assert image_generation.parse([]) == image_generation.SMALL
        assert image_generation.SMALL.run_name == "digits-san"

    def test_help_fits_a_screen(self, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "100")
        with pytest.raises(SystemExit):
            image_generation.parse(["--network", "cnn", "--help"])
        lines = capsys.readouterr().out.splitlines()
        assert len(lines) <= 55
        # The defaults are those of the preset.
        assert any("--epochs" in x and "625" in x for x in lines)

    def test_optimizers(self):
        gan = made(
            epsilon=1e-5,
            betas=(0.25, 0.5),
            learning_rate=0.1,
            critic_learning_rate=0.2,
            critic_steps=2,
            decay=0.0,
        )
        for adam, rate, updates in (
            (gan.generator_optimizer, 0.1, 3),
            (gan.critic_optimizer, 0.2, 6),
        ):
            assert (adam.epsilon, adam.beta_1, adam.beta_2) == (1e-5, 0.25, 0.5)
            for part in (0, 1 / 3, 1):
                adam.iterations.assign(round(part * updates))
                np.testing.assert_allclose(
                    float(adam.learning_rate), rate * (1 - part), atol=1e-7
                )
        assert gan._compile_arguments["jit_compile"] == "auto"
        with pytest.warns(UserWarning, match="`jit_compile` cannot also"):
            gan = made(jit=True)
        assert gan._compile_arguments["jit_compile"] is True

    def test_what_keeps_the_critic_in_check(self):
        gan = made(r1=0.5, r2=0.25, penalty_interval=4, augmentation="cutout")
        found = [(type(x), x.weight, x.interval) for x in gan.penalties]
        assert found == [(penalties.R1, 0.5, 4), (penalties.R2, 0.25, 4)]
        assert gan.augmentation.policy == ["cutout"]
        gan = made(augmentation="adaptive", loss="relativistic")
        assert type(gan.augmentation) is AdaptiveAugmentation
        assert type(gan.loss_function) is losses.Relativistic

    def test_last_block(self):
        few = made("resnet", size=48).critic.count_params()
        every = made("resnet", size=48, last_block=True).critic.count_params()
        assert every > 2 * few
        with pytest.raises(ValueError, match="--last-block with --network"):
            made(last_block=True)

    def test_r3gan(self):
        gan = made("r3gan", "none")
        assert [type(x) for x in gan.penalties] == [penalties.R1, penalties.R2]
        assert type(gan.loss_function) is losses.Relativistic
        assert gan.generate(1).shape == (1, 16, 16, 1)
        with pytest.raises(ValueError, match="--initializer 9 with --network"):
            made("r3gan", initializer="9")

    def test_conditional(self, tmp_path):
        gan = made("biggan")
        assert gan.num_classes == 5
        assert gan.generate(2, [0, 4]).shape == (2, 16, 16, 1)
        args = settings("", "biggan", batch_size=2)
        drawn = image_generation.make_batches(args, images())
        pixels, labels = drawn[0]
        assert pixels.shape == (8, 16, 16, 1) and labels.dtype == "int32"
        for image, label in zip(pixels, labels):
            found = np.abs(batches.to_float(images().images) - image)
            found = found.max(axis=(1, 2, 3)).argmin()
            assert images().labels[found] == label
        with pytest.raises(ValueError, match="no labels"):
            image_generation.make_batches(args, images(labelled=False))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"critic_steps": 0}, "`critic_steps` must be an int >= 1"),
            ({"batch_size": 0}, "`batch_size` must be an int >= 1"),
            ({"samples": 5}, "samples=5"),
            ({"evaluate_every": 4}, "--evaluate-every 4 with"),
            ({"steps_per_execution": 2}, "--steps-per-epoch 3 with"),
            ({"steps_per_epoch": 0}, "--steps-per-epoch 0 with"),
            ({"learning_rate": -1.0}, ">= 0. Received: --learning-rate -1"),
            ({"critic_learning_rate": np.inf}, "--critic-learning-rate inf"),
            ({"decay": 1.5}, "from 0 to 1. Received: --decay 1.5"),
            ({"halve_at": (0.5, 1.5)}, r"--halve-at.*\(0.5, 1.5\)"),
            ({"ema": 1.0}, "--ema 1.0"),
            ({"r1": -1.0}, "weight=-1.0"),
            ({"r1": 1.0, "penalty_interval": 0}, "interval=0"),
            ({"augmentation": "blur"}, "'cutout'.*Received: 'blur'"),
            ({"network": "vgg"}, "biggan.*--network vgg"),
            ({"size": 20}, "multiple of 8"),
            ({"batch_size": 4000}, "--batch-size 4000"),
            ({"train_images": 1797}, "--train-images 1797 of the 1797"),
            ({"data": "tests"}, "cannot be read as an image.*tests"),
            ({"strategy": "data_parallel"}, "variable KERAS_BACKEND=jax"),
            ({"strategy": "tpu"}, "cannot be set up on this machine.*tpu"),
            ({"strategy": "two"}, "multi_worker.*--strategy two"),
        ],
    )
    def test_bad_ones_leave_no_folder(self, tmp_path, changes, message):
        judge = judge_model(tmp_path / "judge.keras")
        good = settings(
            tmp_path / "runs", evaluate_every=3, extractor=str(judge)
        )
        with pytest.raises(ValueError, match=message):
            image_generation.run(dataclasses.replace(good, **changes))
        assert not (tmp_path / "runs").exists()

    def test_some_images_are_held_out(self, tmp_path):
        every = images()
        args = settings(tmp_path, train_images=12)
        learned, (held_out,) = image_generation.divide(args, every)
        parts = [batches.to_float(learned.images), held_out]
        assert [len(x) for x in parts] == [12, 8]
        found, all_of = np.concatenate(parts), batches.to_float(every.images)
        assert sorted(map(bytes, found)) == sorted(map(bytes, all_of))
        assert not np.array_equal(found, all_of)
        for image, label in zip(learned.images, learned.labels):
            (place,) = np.flatnonzero((every.images == image).all((1, 2, 3)))
            assert every.labels[place] == label
        run(tmp_path, train_images=1790, name="a")
        (row,) = callbacks.read_log(tmp_path / "a" / "log.csv")
        assert {"overfitting", "val_real_logit"} <= {*row}

    def test_oblong_images(self, tmp_path):
        for i in range(9):
            Image.new("L", (16, 24)).save(tmp_path / f"{i}.png")
        with pytest.raises(ValueError, match="images of 24x16"):
            run(tmp_path / "runs", data=str(tmp_path))


class TestDecay:
    @pytest.mark.parametrize(
        ("start", "halve_at", "expected"),
        [
            (0.5, (), {0: 0.2, 50: 0.2, 60: 0.16, 75: 0.1, 100: 0.0}),
            (0.0, (), {0: 0.2, 1: 0.198, 50: 0.1, 99: 0.002, 100: 0.0}),
            (0.9, (), {89: 0.2, 90: 0.2, 91: 0.18, 100: 0.0, 120: 0.0}),
            (1.0, (0.5, 0.75), {50: 0.2, 51: 0.1, 75: 0.1, 76: 0.05}),
            # Two of one step.
            (1.0, (0.5, 0.501), {50: 0.2, 51: 0.05}),
            (0.5, (0.5,), {50: 0.2, 75: 0.05}),
        ],
    )
    def test_values(self, start, halve_at, expected):
        decay = training.Decay(0.2, 100, start, halve_at)
        adam = keras.optimizers.Adam(decay)
        config = json.loads(
            json.dumps(keras.saving.serialize_keras_object(adam))
        )
        for optimizer in (adam, keras.saving.deserialize_keras_object(config)):
            for step, rate in expected.items():
                optimizer.iterations.assign(step)
                np.testing.assert_allclose(
                    float(optimizer.learning_rate), rate, atol=1e-7
                )


class TestEvaluation:
    def test_every(self, tmp_path):
        judge = judge_model(tmp_path / "judge.keras")
        measured = {"evaluate_every": 2, "samples": 40, "epochs": 2}
        args = settings(
            tmp_path, name="a", steps_per_epoch=1, extractor=str(judge)
        )
        with pytest.warns(UserWarning, match="covariance"):
            image_generation.run(dataclasses.replace(args, **measured))
        rows = callbacks.read_log(tmp_path / "a" / "log.csv")
        assert ["judge_fid" in row for row in rows] == [False, True]
        with open(tmp_path / "a" / "settings.json") as file:
            assert json.load(file)["extractor"] == "judge.keras"
        # Goes on without, but not with another one.
        args = dataclasses.replace(args, resume=True, epochs=3)
        resumed = image_generation.open_run(args)
        assert resumed.extractor is None
        resumed.begin()
        other = str(judge_model(tmp_path / "other.keras"))
        args = dataclasses.replace(args, **measured, extractor=other)
        with pytest.raises(ValueError, match="judge.keras -> other.keras"):
            image_generation.run(args)

    def test_finds_a_judge(self, tmp_path):
        args = settings(
            "", evaluate_every=3, data="x", data_dir=str(tmp_path / "tfds")
        )

        def find(**changes):
            return training.find_extractor(dataclasses.replace(args, **changes))

        with pytest.raises(ValueError, match="pass --extractor.*x_judge.keras"):
            find()
        with pytest.raises(ValueError, match="inception without --download"):
            find(extractor="inception")
        assert find(download=True) == "inception"
        (tmp_path / "tfds").mkdir()
        (tmp_path / "x_judge.keras").touch()
        assert os.path.samefile(find(), tmp_path / "x_judge.keras")
        assert find(evaluate_every=None) is None


def judge_model(path):
    keras.Sequential(
        [
            keras.Input(data.load().images.shape[1:]),
            keras.layers.AveragePooling2D(8),
            keras.layers.Flatten(),
            keras.layers.Dense(48, name="features"),
            keras.layers.Dense(10, name="logits"),
        ]
    ).save(path)
    return path


def test_a_prepared_dataset_in_low_precision(tmp_path):
    import tensorflow_datasets as tfds

    images = np.random.default_rng(0).integers(256, size=(20, 16, 16, 3))
    feature = tfds.features.Image(shape=(16, 16, 3), encoding_format="png")
    tfds.dataset_builders.store_as_tfds_dataset(
        name="tiny",
        version="1.0.0",
        features=tfds.features.FeaturesDict({"image": feature}),
        split_datasets={
            "train": [
                (i, {"image": x.astype("uint8")}) for i, x in enumerate(images)
            ]
        },
        data_dir=tmp_path,
        disable_shuffling=True,
    )
    gan = run(
        tmp_path / "runs",
        data="tiny",
        data_dir=str(tmp_path),
        critic_steps=2,
        precision="mixed_bfloat16",
        steps_per_execution=3,
    )
    assert gan.critic.layers[0].compute_dtype == "bfloat16"
    assert gan.critic.layers[0].normalizations[0].norm.dtype == "float32"
    assert gan.steps_per_execution == 3
    assert gan.generate(2).shape == (2, 16, 16, 3)
    assert int(gan.critic_optimizer.iterations.numpy()) == 6
    assert (tmp_path / "runs" / "tiny-san" / "samples.png").exists()


class Stop(BaseException):
    """As if the process had been killed: nobody catches it."""


class StoppingLog(callbacks.TrainingLog):
    def on_train_batch_end(self, batch, logs=None):
        # In the middle of the second epoch.
        if int(self.model.optimizer.iterations.numpy()) == 3:
            raise Stop


def test_a_run_and_its_resumption(tmp_path, monkeypatch):
    """It trains on for longer, and as if it had not been stopped."""
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for i, array in enumerate(images(channels=3).images):
        Image.fromarray(array).save(photographs / f"{i:02}.png")
    changes = {"data": str(photographs), "steps_per_epoch": 2}
    run(tmp_path, **changes, name="whole", epochs=2)

    changes["name"] = "a"
    with pytest.raises(ValueError, match="no run to resume.*--name a"):
        run(tmp_path, **changes, resume=True)
    run(tmp_path, **changes)
    finished = (tmp_path / "a" / "gan.keras").read_bytes()
    changes["resume"] = True
    with pytest.raises(ValueError, match="'normalizer': 'san -> sn'"):
        run(tmp_path, **changes, normalizer="sn")
    with monkeypatch.context() as patch:
        patch.setattr(callbacks, "TrainingLog", StoppingLog)
        with pytest.raises(Stop):
            run(tmp_path, **changes, epochs=2)
    assert (tmp_path / "a" / "gan.keras").read_bytes() == finished
    keras.utils.set_random_seed(7)
    run(tmp_path, **changes, epochs=2)

    whole, resumed = (
        callbacks.read_log(tmp_path / name / "log.csv")
        for name in ("whole", "a")
    )
    assert [row["epoch"] for row in resumed] == [1, 2]
    for expected, found in zip(whole, resumed):
        for name in expected.keys() - {"seconds"}:
            np.testing.assert_allclose(
                found[name], expected[name], rtol=1e-4, atol=1e-6
            )
    load = keras.saving.load_model
    made = [
        load(tmp_path / name / "gan.keras").generate(4, seed=0)
        for name in ("whole", "a")
    ]
    np.testing.assert_allclose(*made, rtol=1e-3, atol=1e-5)
    with open(tmp_path / "a" / "settings.json") as file:
        assert json.load(file)["normalizer"] == "san"
    # A damaged image leaves the checkpoint.
    path = photographs / "07.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="07.png"):
        run(tmp_path, **changes, epochs=3)
    assert os.listdir(tmp_path / "a" / "checkpoint") == ["epoch_2.keras"]


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="exists from another run.*mine"):
        run(tmp_path, name="mine")
    assert not list((tmp_path / "mine").iterdir())


@pytest.mark.parametrize("falling", [{"decay": 0.5}, {"halve_at": (0.5,)}])
def test_a_rate_that_falls_falls_once(tmp_path, falling):
    args = settings(tmp_path, **falling)
    image_generation.open_run(args).begin()
    args = dataclasses.replace(args, resume=True, epochs=2)
    with pytest.raises(ValueError, match="'epochs': '1 -> 2'"):
        image_generation.run(args)


def test_errors_on_the_command_line_are_one_line(tmp_path, monkeypatch):
    arguments = ["--data", tmp_path / "nowhere", "--output", tmp_path]
    error = run_module(monkeypatch, "experiments.image_generation", arguments)
    assert error.startswith("error: ") and "nowhere" in error
    assert "\n" not in error
