"""Every command and snippet of the README runs."""

import os
import re
import shlex
import shutil
import subprocess
import sys

import keras
import pytest
from helpers import BACKEND
from PIL import Image

from examples import image_generation

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

with open(os.path.join(ROOT, "README.md")) as file:
    BLOCKS = re.findall(r"```(\w+)\n(.*?)```", file.read(), re.DOTALL)

PYTHON = [text for language, text in BLOCKS if language == "python"]
SHELL = [
    line
    for language, text in BLOCKS
    if language == "bash"
    for line in text.splitlines()
]

pytestmark = pytest.mark.skipif(
    BACKEND != "tensorflow",
    reason="the README exports SavedModels; run on tensorflow",
)


def test_snippets(tmp_path, monkeypatch):
    """In the order of the page: each may use what came before."""
    monkeypatch.chdir(tmp_path)
    assert len(PYTHON) == 10
    keras.utils.clear_session()  # As in the fresh process of a reader.
    namespace = {}
    for text in PYTHON:
        exec(compile(text, "README.md", "exec"), namespace)
    assert namespace["critic"].output_shape == (None, 1)
    assert namespace["samples"].shape == (16, 32, 32, 3)
    assert namespace["enlarged"].shape == (8, 64, 64, 3)
    assert namespace["made"].shape == (8, 64, 64, 3)
    assert namespace["changed"].shape == (8, 32, 32, 3)
    assert os.path.exists(tmp_path / "gan.keras")
    assert os.path.exists(tmp_path / "generator" / "saved_model.pb")


def test_there_is_nothing_else():
    """`.ci/run` runs the test command; the examples are run below."""
    assert [line.split()[0] for line in SHELL] == (
        ["python3"] * 2 + [".venv/bin/python"] * 17 + ["KERAS_BACKEND=jax"]
    )
    for command in SHELL[:2]:
        assert command.startswith(
            "python3 -m venv .venv && .venv/bin/pip install -e "
        )
    assert SHELL[1].endswith("-m pytest")


def arguments():
    """The arguments of each run of the example that the README shows."""
    for line in SHELL:
        _, found, rest = line.partition("-m examples.image_generation")
        if found and not line.startswith("KERAS_BACKEND=jax"):
            yield shlex.split(rest)


def test_example_commands(tmp_path):
    """Each as it stands, but short, and on data that is at hand."""
    photographs = tmp_path / "photographs"
    photographs.mkdir()
    for i in range(70):
        Image.new("RGB", (70, 80), (3 * i, 50, 100)).save(
            photographs / f"{i}.jpg"
        )
    commands = list(arguments())
    assert len(commands) == 8
    runs = str(tmp_path / "runs")
    for command in commands:
        if "--download" in command:
            # tests/test_examples.py trains, with a dataset made for it.
            image_generation.parse(command)
            continue
        if "path/to/photographs" in command:
            command[command.index("path/to/photographs")] = str(photographs)
        short = ["--steps-per-epoch", "2", "--output", runs]
        if "--epochs" not in command:
            short += ["--epochs", "1"]
        else:
            command[command.index("--epochs") + 1] = "2"
        if "mirrored" in command:
            short += ["--name", "mirrored"]
        run = subprocess.run(
            [sys.executable, "-m", "examples.image_generation"]
            + command
            + short,
            cwd=ROOT,
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    assert sorted(os.listdir(runs)) == [
        "digits-san",
        "mirrored",
        "monitored",
        "photographs-san",
    ]
    assert "monitor.png" in os.listdir(os.path.join(runs, "monitored"))
    files = os.listdir(os.path.join(runs, "digits-san"))
    assert {
        "samples.png",
        "samples_0002.png",
        "curves.png",
        "log.csv",
        "generator",
        "gan.keras",
    } <= set(files)

    (tmp_path / "path" / "to").mkdir(parents=True)
    shutil.copy(
        os.path.join(runs, "photographs-san", "gan.keras"),
        tmp_path / "path" / "to" / "critic.keras",
    )
    photographs.rename(tmp_path / "path" / "to" / "photographs")
    assert run_commands("keras_san.diagnostics", tmp_path, []) == 2
    assert (tmp_path / "diagnosis" / "layers.png").exists()


def run_commands(module, folder, short):
    """Each as it stands, but for `short` arguments of the training."""
    commands = [c for c in SHELL if f"-m {module}" in c]
    for command in commands:
        arguments = shlex.split(command)[1:]
        if "train" in arguments:
            arguments += [*short, "--steps-per-epoch", "2", "--epochs", "1"]
        run = subprocess.run(
            [sys.executable, *arguments],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": ROOT},
            capture_output=True,
            text=True,
        )
        assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    return len(commands)


def test_super_resolution_commands(tmp_path):
    """Each as it stands, but short, and on a photograph that is at hand."""
    runs = tmp_path / "runs" / "photographs-san"
    (tmp_path / "path" / "to").mkdir(parents=True)
    photograph = tmp_path / "path" / "to" / "photograph.jpg"
    Image.new("RGB", (30, 20), (200, 100, 50)).save(photograph)
    short = ["--pretraining-epochs", "1"]
    assert run_commands("examples.super_resolution", tmp_path, short) == 3
    assert (runs / "comparison.png").exists()
    assert (runs / "evaluation-photographs.csv").exists()
    with Image.open(tmp_path / "upscaled" / "photograph.jpg") as image:
        assert image.size == (120, 80)


def test_image_translation_commands(tmp_path):
    folder = tmp_path / "path" / "to"
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / "scenes" / split / kind).mkdir(parents=True)
            for i in range(2):
                size = (128, 96)
                image = Image.new("L" if kind == "labels" else "RGB", size, i)
                image.save(folder / "scenes" / split / kind / f"{i}.png")
    Image.new("L", (50, 40), 11).save(folder / "labels.png")
    short = ["--width", "0.02", "--critic-width", "0.02"]
    assert run_commands("examples.image_translation", tmp_path, short) == 3
    assert (tmp_path / "runs" / "scenes" / "samples.png").exists()
    with Image.open(tmp_path / "translated" / "labels.png") as image:
        assert image.size == (96, 96)


def test_attribute_transfer_commands(tmp_path):
    (tmp_path / "path" / "to").mkdir(parents=True)
    Image.new("RGB", (20, 20)).save(tmp_path / "path" / "to" / "digit.png")
    assert run_commands("examples.attribute_transfer", tmp_path, []) == 2
    run = tmp_path / "runs" / "digits-stargan-san"
    assert (run / "samples.png").exists()
    with Image.open(tmp_path / "edited" / "digit.png") as image:
        assert image.size == (5 * 33 + 1, 34)
