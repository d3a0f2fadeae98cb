import json
import os
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers import BACKEND

from examples import image_generation
from keras_san import callbacks

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


@pytest.mark.parametrize("normalizer", ["bssn", "conv_sn", "none"])
def test_normalizers(tmp_path, normalizer):
    gan = run(tmp_path, "--normalizer", normalizer, "--scale", "1.2")
    found = gan.critic.layers[0].normalizer
    assert (found is None) == (normalizer == "none")
    if found is not None:
        assert found.scale == 1.2
    assert (tmp_path / f"digits-{normalizer}" / "samples.png").exists()


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
    with pytest.raises(ValueError, match="batch_size=4000"):
        run(out, "--batch-size", "4000")
    assert not out.exists()


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
        for name in expected:
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
