import json
import os
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers import BACKEND

from examples import command_line, data, image_generation
from keras_san import callbacks, losses, normalizers

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

pytestmark = pytest.mark.skipif(
    BACKEND != "tensorflow",
    reason="the example exports a SavedModel; run on tensorflow",
)

SMALL = ["--width", "0.03", "--batch-size", "8", "--steps-per-epoch", "3"]


def run(tmp_path, *arguments, epochs=1):
    return image_generation.main(
        [*SMALL, "--output", str(tmp_path), "--epochs", str(epochs), *arguments]
    )


def in_a_process(tmp_path, *arguments, epochs=1):
    return subprocess.run(
        [sys.executable, "-m", "examples.image_generation", *SMALL]
        + ["--output", str(tmp_path), "--epochs", str(epochs), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
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
        ("name", "expected"),
        [
            ("san", normalizers.SparsityAware),
            ("sn", normalizers.Spectral),
            ("ssn", normalizers.Spectral),
            ("bsn", normalizers.BidirectionalSpectral),
            ("bssn", normalizers.BidirectionalSpectral),
            ("conv_sn", normalizers.ConvSpectral),
        ],
    )
    @pytest.mark.parametrize("form", ["divide", "project"])
    def test_normalized(self, name, expected, form):
        gan = made("--normalizer", name, "--scale", "1.2", "--form", form)
        for layer in gan.critic.layers:
            if layer.weights:
                assert type(layer.normalizer) is expected
                assert layer.normalizer.scale == 1.2
                assert layer.normalizer.form == form
        assert isinstance(gan.loss_function, losses.Hinge)

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
        images = np.random.default_rng(0).uniform(-1, 1, (8, 16, 16, 1))
        gan.fit(images.astype("float32"), batch_size=8, verbose=0)
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

    @pytest.mark.parametrize("name", ["batch_norm", "layer_norm"])
    def test_norms_of_activations(self, name):
        gan = made("--normalizer", name)
        found = [layer for layer in gan.critic.layers if "norm" in layer.name]
        assert len(found) == 7
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
            ("small", (0.25, 64, 5e-4, 0.5, 0.9, 1e-7, 1, 0.995, "none")),
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

    def test_adam(self):
        gan = made("--epsilon", "1e-5", "--beta-1", "0.25")
        for adam in (gan.generator_optimizer, gan.critic_optimizer):
            assert (adam.epsilon, adam.beta_1) == (1e-5, 0.25)

    def test_padding(self):
        first = [
            made("--normalizer", "sn", *arguments).critic.layers[0]
            for arguments in ([], ["--padding", "same"])
        ]
        found = [layer.get_config()["padding"] for layer in first]
        assert found == ["circular", "same"]

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

    def test_conditional(self):
        gan = made("--network", "biggan", size=16)
        assert gan.num_classes == 5
        assert gan.generate(2, [0, 4]).shape == (2, 16, 16, 1)

    def test_conditional_needs_labels(self, tmp_path):
        from PIL import Image

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
        np.testing.assert_allclose(rates, [5e-4, 2.5e-4, 0.0], atol=1e-9)


class TestEvaluation:
    def test_every(self, tmp_path):
        judge = judge_model(tmp_path / "judge.keras")
        arguments = ["--evaluate-every", "6", "--samples", "40"]
        arguments += ["--extractor", str(judge)]
        with pytest.warns(UserWarning, match="covariance"):
            run(tmp_path, "--name", "a", *arguments, epochs=2)
        rows = callbacks.read_log(tmp_path / "a" / "log.csv")
        assert ["judge_fid" in row for row in rows] == [False, True]
        with open(tmp_path / "a" / "settings.json") as file:
            assert json.load(file)["extractor"] == "judge.keras"
        # Goes on without, but not with another one.
        run(tmp_path, "--name", "a", "--resume", epochs=3)
        other = judge_model(tmp_path / "other.keras")
        arguments[-1] = str(other)
        with pytest.raises(ValueError, match="judge.keras -> other.keras"):
            run(tmp_path, "--name", "a", "--resume", *arguments, epochs=4)

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

    def test_not_a_multiple(self, tmp_path):
        with pytest.raises(ValueError, match="--evaluate-every 4 with"):
            run(tmp_path, "--evaluate-every", "4")
        with pytest.raises(ValueError, match="--steps-per-epoch 3 with"):
            run(tmp_path, "--steps-per-execution", "2")
        with pytest.raises(ValueError, match="--steps-per-epoch 0 with"):
            run(tmp_path, "--steps-per-epoch", "0")
        assert not list(tmp_path.iterdir())

    def test_bad_settings_leave_no_folder(self, tmp_path):
        judge = judge_model(tmp_path / "judge.keras")
        arguments = ["--evaluate-every", "3", "--extractor", str(judge)]
        with pytest.raises(ValueError, match="samples=5"):
            run(tmp_path / "runs", *arguments, "--samples", "5")
        assert not (tmp_path / "runs").exists()


def judge_model(path):
    keras.Sequential(
        [
            keras.Input((32, 32, 1)),
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


def test_precision_and_execution(tmp_path):
    policy = keras.config.dtype_policy()
    try:
        arguments = ["--precision", "mixed_bfloat16"]
        gan = run(tmp_path, *arguments, "--steps-per-execution", "3")
    finally:
        keras.config.set_dtype_policy(policy)
    assert gan.critic.layers[0].compute_dtype == "bfloat16"
    assert gan.critic.layers[0].kernel_norms[0].norm.dtype == "float32"
    assert gan.steps_per_execution == 3
    assert made("--jit").jit_compile is True


def test_tensorflow_datasets(tmp_path):
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
    arguments = ["--dataset", "tiny", "--data-dir", str(tmp_path)]
    gan = run(tmp_path / "runs", *arguments, "--critic-steps", "2")
    assert gan.generate(2).shape == (2, 16, 16, 3)
    assert int(gan.critic_optimizer.iterations.numpy()) == 6
    assert (tmp_path / "runs" / "tiny-san" / "samples.png").exists()


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(ValueError, match="exists from another run.*mine"):
        run(tmp_path, "--name", "mine")
    assert not list((tmp_path / "mine").iterdir())


def test_resume_needs_a_run_with_the_same_settings(tmp_path):
    with pytest.raises(ValueError, match="no run to resume.*--name new"):
        run(tmp_path, "--name", "new", "--resume")
    run(tmp_path, "--name", "new")
    with pytest.raises(ValueError, match="'normalizer': 'san -> sn'"):
        run(tmp_path, "--name", "new", "--resume", "--normalizer", "sn")


def test_a_rate_that_falls_to_zero_falls_once(tmp_path):
    run(tmp_path, "--decay", "linear", epochs=1)
    with pytest.raises(ValueError, match="'epochs': '1 -> 2'"):
        run(tmp_path, "--decay", "linear", "--resume", epochs=2)


def test_bad_data_leaves_no_folder(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    out = tmp_path / "runs"
    with pytest.raises(ValueError, match="holds no images"):
        run(out, "--dataset", str(empty))
    assert not out.exists()
    with pytest.raises(ValueError, match="multiple of 8"):
        run(out, "--resize", "20")
    assert not out.exists()
    with pytest.raises(ValueError, match="--batch-size 4000"):
        run(out, "--batch-size", "4000")
    assert not out.exists()


def test_a_damaged_image_leaves_the_checkpoint(tmp_path):
    from PIL import Image

    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for i, array in enumerate(images(channels=3).images):
        Image.fromarray(array).save(photographs / f"{i:02}.png")
    arguments = ["--dataset", str(photographs), "--name", "a"]
    run(tmp_path, *arguments)
    path = photographs / "07.png"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(ValueError, match="07.png"):
        run(tmp_path, *arguments, "--resume", epochs=2)
    kept = list((tmp_path / "a" / "checkpoint").iterdir())
    assert [path.name for path in kept] == ["epoch_1.keras"]


def test_not_square(tmp_path):
    from PIL import Image

    for i in range(9):
        Image.new("L", (16, 24)).save(tmp_path / f"{i}.png")
    with pytest.raises(ValueError, match="images of 24x16"):
        run(tmp_path / "runs", "--dataset", str(tmp_path))


def test_errors_on_the_command_line_are_one_line(tmp_path):
    result = in_a_process(tmp_path, "--dataset", str(tmp_path / "nowhere"))
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "error: " in result.stderr and "nowhere" in result.stderr


def test_a_killed_run_resumes_as_if_it_had_not_been(tmp_path):
    arguments = ["--normalizer", "sn", "--epochs", "3"]
    run(tmp_path, "--name", "whole", *arguments)
    # Killed in the middle of the third epoch.
    script = f"""
import os, signal, keras
from examples import image_generation

class Kill(keras.callbacks.Callback):
    def on_train_batch_end(self, batch, logs=None):
        if int(self.model.optimizer.iterations.numpy()) == 8:
            os.kill(os.getpid(), signal.SIGKILL)

log = image_generation.callbacks.TrainingLog
class Log(log, Kill):
    pass

image_generation.callbacks.TrainingLog = Log
image_generation.main({[*SMALL, "--output", str(tmp_path), "--name", "killed"]}
    + {arguments})
"""
    killed = subprocess.run([sys.executable, "-c", script], cwd=ROOT)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "gan.keras").exists()
    run(tmp_path, "--name", "killed", "--resume", *arguments)

    whole = callbacks.read_log(tmp_path / "whole" / "log.csv")
    resumed = callbacks.read_log(tmp_path / "killed" / "log.csv")
    assert [row["epoch"] for row in resumed] == [1, 2, 3]
    for expected, found in zip(whole, resumed):
        for name in expected.keys() - {"seconds"}:
            np.testing.assert_allclose(
                found[name], expected[name], rtol=1e-4, atol=1e-6
            )
    load = keras.saving.load_model
    images = [
        load(tmp_path / name / "gan.keras").generate(4, seed=0)
        for name in ("whole", "killed")
    ]
    np.testing.assert_allclose(*images, rtol=1e-3, atol=1e-5)


def test_a_run_trains_on_for_longer(tmp_path):
    run(tmp_path, "--name", "a", epochs=1)
    run(tmp_path, "--name", "a", "--resume", epochs=2)
    rows = callbacks.read_log(tmp_path / "a" / "log.csv")
    assert [row["epoch"] for row in rows] == [1, 2]
    with open(tmp_path / "a" / "settings.json") as file:
        assert json.load(file)["normalizer"] == "san"
