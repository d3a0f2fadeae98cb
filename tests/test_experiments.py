import json
import os

import keras
import numpy as np
import pytest
from helpers import BACKEND, images_of, run_module
from PIL import Image

from experiments import command_line, data, image_generation
from keras_san import callbacks, losses, normalizers

pytestmark = [
    pytest.mark.skipif(
        BACKEND != "tensorflow",
        reason="the example exports a SavedModel; run on tensorflow",
    ),
    pytest.mark.usefixtures("quick"),
]

SMALL = ["--width", "0.03", "--batch-size", "8", "--steps-per-epoch", "3"]


def run(tmp_path, *arguments, epochs=1):
    return image_generation.main(
        [*SMALL, "--output", str(tmp_path), "--epochs", str(epochs), *arguments]
    )


def images(size=16, channels=1, labelled=True):
    rng = np.random.default_rng(0)
    return data.Images(
        "noise",
        rng.integers(256, size=(20, size, size, channels), dtype="uint8"),
        rng.integers(5, size=20, dtype="int32") if labelled else None,
        5 if labelled else None,
    )


def made(*arguments, **kwargs):
    args = image_generation.parse([*SMALL, *arguments])
    return image_generation.make_gan(args, images(**kwargs))


class TestNormalizers:
    """Every row of Table 1, and those of the second paper."""

    @pytest.mark.parametrize(
        ("name", "form", "expected"),
        [
            ("san", "divide", normalizers.SparsityAware),
            ("san", "project", normalizers.SparsityAware),
            ("sn", "project", normalizers.Spectral),
            ("ssn", "divide", normalizers.Spectral),
            ("bsn", "project", normalizers.BidirectionalSpectral),
            ("bssn", "divide", normalizers.BidirectionalSpectral),
            ("conv_sn", "project", normalizers.ConvSpectral),
        ],
    )
    def test_normalized(self, name, form, expected):
        args = ["--normalizer", name, "--scale", "1.2", "--form", form]
        args = image_generation.parse(args)
        found = image_generation.critic_settings(args)["normalizer"]
        assert type(found) is expected
        assert (found.scale, found.form) == (1.2, form)
        assert args.loss == "hinge"

    def test_all_layers_are(self):
        gan = made("--normalizer", "sn", "--scale", "1.2", "--padding", "same")
        layers = [layer for layer in gan.critic.layers if layer.weights]
        assert len(layers) == 8
        for layer in layers:
            assert type(layer.normalizer) is normalizers.Spectral
            assert layer.normalizer.scale == 1.2
        assert isinstance(gan.loss_function, losses.Hinge)
        assert layers[0].get_config()["padding"] == "same"
        layer = made().critic.layers[0]
        assert layer.get_config()["padding"] == "circular"

    def test_all_are_tested(self):
        tested = ["san", "sn", "ssn", "bsn", "bssn", "conv_sn"]
        tested += ["none", "wgan_gp", "clip", "weight_norm", "batch_norm"]
        tested += ["layer_norm", "orthonormal"]
        assert image_generation.NORMALIZERS == tested

    @pytest.mark.parametrize(
        "name", ["none", "wgan_gp", "clip", "weight_norm", "orthonormal"]
    )
    def test_baselines(self, name):
        gan = made("--normalizer", name)
        kernels = [layer for layer in gan.critic.layers if layer.weights]
        assert len(kernels) == 8
        assert all(layer.normalizer is None for layer in kernels)
        penalized = name == "wgan_gp"
        assert isinstance(gan.penalty, losses.GradientPenalty) == penalized
        assert gan.critic_steps == (5 if penalized else 1)
        loss = {"none": losses.Hinge, "wgan_gp": losses.Wasserstein}
        assert type(gan.loss_function) is loss.get(name, losses.NonSaturating)
        if name in ("clip", "weight_norm"):
            gan.fit(images_of(8, 16, 16, 1), batch_size=8, verbose=0)
        if name == "clip":
            for layer in kernels:
                assert np.abs(layer.kernel.numpy()).max() <= 0.01 * 1.0001
        elif name == "weight_norm":
            for layer in kernels:
                kernel = layer.kernel.numpy()
                kernel = kernel.reshape(-1, kernel.shape[-1])
                norms = np.linalg.norm(kernel, axis=0)
                np.testing.assert_allclose(norms, 1.0, rtol=1e-4)
        elif name == "orthonormal":
            assert len(gan.critic.losses) == 8
            assert float(sum(gan.critic.losses)) < 0.01  # It starts there.

    def test_norms_of_activations(self):
        for name in ("batch_norm", "layer_norm"):
            layers = made("--normalizer", name).critic.layers
            assert len([x for x in layers if "norm" in x.name]) == 7
        with pytest.raises(ValueError, match="CNN's critic.*resnet"):
            made("--normalizer", name, "--network", "resnet", size=32)

    def test_settings_that_would_do_nothing(self):
        with pytest.raises(ValueError, match="'scale': 2.0.*clip"):
            made("--normalizer", "clip", "--scale", "2")
        for name in ("ssn", "bssn"):
            with pytest.raises(ValueError, match=f"pass --scale.*{name}"):
                made("--normalizer", name)

    def test_initializer(self):
        kernels = [
            made(*arguments).critic.layers[0].kernel.numpy()
            for arguments in ([], ["--initializer", "9"])
        ]
        assert kernels[0].std() < 1.0 and 5.0 < kernels[1].std() < 15.0


class TestNetworks:
    @pytest.mark.parametrize(
        ("network", "expected"),
        [
            ("cnn", (1.0, 64, 2e-4, 0.5, 0.9, 1e-7, 1, 0.0, "none")),
            ("resnet", (1.0, 64, 2e-4, 0.5, 0.9, 1e-7, 1, 0.0, "none")),
            ("biggan", (1.0, 50, 2e-4, 0.5, 0.999, 1e-8, 4, 0.9999, "none")),
        ],
    )
    def test_defaults(self, network, expected):
        args = image_generation.parse(["--network", network])
        found = (
            args.width,
            args.batch_size,
            args.learning_rate,
            args.beta_1,
            args.beta_2,
            args.epsilon,
            args.critic_steps,
            args.ema,
            args.decay,
        )
        assert found == expected

    def test_defaults_without_arguments(self):
        found = vars(image_generation.parse([]))
        expected = image_generation.NETWORKS["small"][2]
        assert expected.items() <= found.items()

    def test_settings(self):
        gan = made("--epsilon", "1e-5", "--beta-1", "0.25")
        for adam in (gan.generator_optimizer, gan.critic_optimizer):
            assert (adam.epsilon, adam.beta_1) == (1e-5, 0.25)
        assert gan._compile_arguments["jit_compile"] == "auto"
        with pytest.warns(UserWarning, match="`jit_compile` cannot also"):
            gan = made("--jit")
        assert gan._compile_arguments["jit_compile"] is True

    @pytest.mark.parametrize(
        ("argument", "message"),
        [
            ("--critic-steps", "`critic_steps` must be an int >= 1"),
            ("--batch-size", "`batch_size` must be an int >= 1"),
            ("--samples", "`samples` must be an int >= 10"),
        ],
    )
    def test_counts(self, argument, message):
        with pytest.raises(ValueError, match=message):
            image_generation.main(["--evaluate-every", "100", argument, "0"])

    def test_last_block(self):
        few = made("--network", "resnet", size=48).critic.count_params()
        all_ = made(
            "--network", "resnet", "--last-block", size=48
        ).critic.count_params()
        assert all_ > 2 * few
        with pytest.raises(ValueError, match="--last-block with --network"):
            made("--last-block")

    def test_conditional(self, tmp_path):
        gan = made("--network", "biggan", size=16)
        assert gan.num_classes == 5
        assert gan.generate(2, [0, 4]).shape == (2, 16, 16, 1)
        for i in range(9):
            Image.new("L", (16, 16)).save(tmp_path / f"{i}.png")
        arguments = ["--network", "biggan", "--critic-steps", "1"]
        with pytest.raises(ValueError, match="no labels"):
            run(tmp_path / "runs", "--dataset", str(tmp_path), *arguments)

    def test_decay(self):
        args = image_generation.parse(
            ["--decay", "linear", "--epochs", "4", "--steps-per-epoch", "5"]
        )
        optimizer = image_generation.make_optimizer(args, updates_per_step=2)
        rates = []
        for step in (0, 20, 40):
            optimizer.iterations.assign(step)
            rates.append(float(optimizer.learning_rate))
        expected = args.learning_rate * np.array([1.0, 0.5, 0.0])
        np.testing.assert_allclose(rates, expected, atol=1e-9)


class TestEvaluation:
    def test_every(self, tmp_path):
        judge = judge_model(tmp_path / "judge.keras")
        arguments = ["--evaluate-every", "2", "--samples", "40"]
        arguments += ["--steps-per-epoch", "1", "--extractor", str(judge)]
        with pytest.warns(UserWarning, match="covariance"):
            run(tmp_path, "--name", "a", *arguments, epochs=2)
        rows = callbacks.read_log(tmp_path / "a" / "log.csv")
        assert ["judge_fid" in row for row in rows] == [False, True]
        with open(tmp_path / "a" / "settings.json") as file:
            assert json.load(file)["extractor"] == "judge.keras"
        # Goes on without, but not with another one.
        common = ["--name", "a", "--resume", "--output", str(tmp_path), *SMALL]
        common += ["--steps-per-epoch", "1", "--epochs", "3"]
        resumed, found = image_generation.open_run(
            image_generation.parse(common)
        )
        assert found is None
        resumed.begin()
        arguments[-1] = str(judge_model(tmp_path / "other.keras"))
        with pytest.raises(ValueError, match="judge.keras -> other.keras"):
            image_generation.main([*common, *arguments])

    def test_finds_a_judge(self, tmp_path):
        args = ["--dataset", "x", "--data-dir", str(tmp_path / "tfds")]
        args = image_generation.parse([*args, "--evaluate-every", "100"])
        with pytest.raises(ValueError, match="pass --extractor.*x_judge.keras"):
            command_line.find_extractor(args, args.dataset)
        args.extractor = "inception"
        with pytest.raises(ValueError, match="inception without --download"):
            command_line.find_extractor(args, args.dataset)
        args.extractor, args.download = None, True
        assert command_line.find_extractor(args, args.dataset) == "inception"
        (tmp_path / "tfds").mkdir()
        (tmp_path / "x_judge.keras").touch()
        found = command_line.find_extractor(args, args.dataset)
        assert os.path.samefile(found, tmp_path / "x_judge.keras")

    def test_bad_settings_leave_no_folder(self, tmp_path):
        judge = judge_model(tmp_path / "judge.keras")
        arguments = ["--evaluate-every", "3", "--extractor", str(judge)]
        for bad, message in (
            (["--samples", "5"], "samples=5"),
            (["--evaluate-every", "4"], "--evaluate-every 4 with"),
            (["--steps-per-execution", "2"], "--steps-per-epoch 3 with"),
            (["--steps-per-epoch", "0"], "--steps-per-epoch 0 with"),
        ):
            with pytest.raises(ValueError, match=message):
                run(tmp_path / "runs", *arguments, *bad)
        assert not (tmp_path / "runs").exists()


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


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ("data_parallel", "environment variable KERAS_BACKEND=jax"),
        ("tpu", "cannot be set up on this machine.*strategy tpu"),
    ],
)
def test_devices_that_are_not_there(tmp_path, strategy, message):
    with pytest.raises(ValueError, match=message):
        run(tmp_path, "--strategy", strategy)
    assert not list(tmp_path.iterdir())


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
        *(tmp_path / "runs", "--dataset", "tiny", "--data-dir", str(tmp_path)),
        *("--critic-steps", "2", "--precision", "mixed_bfloat16"),
        *("--steps-per-execution", "3"),
    )
    assert gan.critic.layers[0].compute_dtype == "bfloat16"
    assert gan.critic.layers[0].normalizations[0].norm.dtype == "float32"
    assert gan.steps_per_execution == 3
    assert gan.generate(2).shape == (2, 16, 16, 3)
    assert int(gan.critic_optimizer.iterations.numpy()) == 6
    assert (tmp_path / "runs" / "tiny-san" / "samples.png").exists()


def test_bad_data_leaves_no_folder(tmp_path):
    (tmp_path / "empty").mkdir()
    for i in range(9):
        path = tmp_path / "oblong" / f"{i}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("L", (16, 24)).save(path)
    out = tmp_path / "runs"
    for bad, message in (
        (["--dataset", str(tmp_path / "empty")], "holds no images"),
        (["--dataset", str(tmp_path / "oblong")], "images of 24x16"),
        (["--resize", "20"], "multiple of 8"),
        (["--batch-size", "4000"], "--batch-size 4000"),
    ):
        with pytest.raises(ValueError, match=message):
            run(out, *bad)
        assert not out.exists()


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
    arguments = ["--dataset", str(photographs), "--steps-per-epoch", "2"]
    run(tmp_path, *arguments, "--name", "whole", epochs=2)

    arguments += ["--name", "a"]
    with pytest.raises(ValueError, match="no run to resume.*--name a"):
        run(tmp_path, *arguments, "--resume")
    run(tmp_path, *arguments)
    finished = (tmp_path / "a" / "gan.keras").read_bytes()
    arguments.append("--resume")
    with pytest.raises(ValueError, match="'normalizer': 'san -> sn'"):
        run(tmp_path, *arguments, "--normalizer", "sn")
    with monkeypatch.context() as patch:
        patch.setattr(callbacks, "TrainingLog", StoppingLog)
        with pytest.raises(Stop):
            run(tmp_path, *arguments, epochs=2)
    assert (tmp_path / "a" / "gan.keras").read_bytes() == finished
    keras.utils.set_random_seed(7)
    run(tmp_path, *arguments, epochs=2)

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
        run(tmp_path, *arguments, epochs=3)
    assert os.listdir(tmp_path / "a" / "checkpoint") == ["epoch_2.keras"]


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="exists from another run.*mine"):
        run(tmp_path, "--name", "mine")
    assert not list((tmp_path / "mine").iterdir())


def test_a_rate_that_falls_to_zero_falls_once(tmp_path):
    arguments = ["--decay", "linear", "--output", str(tmp_path), *SMALL]
    args = image_generation.parse([*arguments, "--epochs", "1"])
    image_generation.open_run(args)[0].begin()
    with pytest.raises(ValueError, match="'epochs': '1 -> 2'"):
        image_generation.main([*arguments, "--resume", "--epochs", "2"])


def test_errors_on_the_command_line_are_one_line(tmp_path, monkeypatch):
    arguments = ["--dataset", tmp_path / "nowhere", "--output", tmp_path]
    error = run_module(monkeypatch, "experiments.image_generation", arguments)
    assert error.startswith("error: ") and "nowhere" in error
    assert "\n" not in error
