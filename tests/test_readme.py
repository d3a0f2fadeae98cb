"""Every command and snippet of the README runs."""

import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys

import keras
import pytest
from helpers import BACKEND, quickly
from PIL import Image

from experiments import image_generation

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


def test_snippets(fresh_keras, tmp_path, monkeypatch):
    """In the order of the page: each may use what came before."""
    monkeypatch.chdir(tmp_path)
    quickly(monkeypatch, export=True)
    assert len(PYTHON) == 10
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


# The tests below run all commands of these, and no line is left.
MODULES = {
    "experiments.image_generation": 8,
    "keras_san.diagnostics": 2,
    "experiments.super_resolution": 3,
    "experiments.image_translation": 3,
    "experiments.attribute_transfer": 2,
}


def arguments_of(module):
    """The arguments of each command of a module, as lists."""
    return [
        shlex.split(line.partition(f"-m {module}")[2])
        for line in SHELL
        if f".venv/bin/python -m {module}" in line
        and not line.startswith("KERAS_BACKEND=jax")
    ]


def test_there_is_nothing_else():
    """`.ci/run` runs the test command; the experiments are run below."""
    install, test, *others, jax = SHELL
    for command in (install, test):
        assert command.startswith(
            "python3 -m venv .venv && .venv/bin/pip install -e "
        )
    assert install.endswith("-m experiments.image_generation")
    assert test.endswith("-m pytest")
    assert {line.split()[0] for line in others} == {".venv/bin/python"}
    assert len(others) == sum(MODULES.values()) - 1
    for module, count in MODULES.items():
        assert len(arguments_of(module)) == count
    # tests/test_distribution.py trains so; here JAX may be missing.
    line = "KERAS_BACKEND=jax .venv/bin/python -m experiments.image_generation"
    assert jax.startswith(line)
    image_generation.parse(shlex.split(jax.removeprefix(line)))


def run_commands(module, short=()):
    """Runs each as it stands, but for `short` arguments of the training."""
    name = f"{module}.__main__" if "diagnostics" in module else module
    main = importlib.import_module(name).main
    for arguments in arguments_of(module):
        if "train" in arguments:
            arguments += [*short, "--steps-per-epoch", "1", "--epochs", "1"]
        keras.utils.clear_session(free_memory=False)
        status = main(arguments)
        assert "diagnostics" in module or status == 0


def test_image_generation_commands(tmp_path, quick, monkeypatch):
    """Each as it stands, but short, and on data that is at hand."""
    monkeypatch.chdir(tmp_path)
    first, *others = arguments_of("experiments.image_generation")
    assert first == []
    # In a process of its own, as a reader starts it.
    run = subprocess.run(
        [sys.executable, "-m", "experiments.image_generation"]
        + ["--steps-per-epoch", "1", "--epochs", "1"],
        env={**os.environ, "PYTHONPATH": ROOT},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]
    runs = tmp_path / "runs"
    files = {*os.listdir(runs / "digits-san")}
    assert {"samples.png", "curves.png", "log.csv", "gan.keras"} <= files
    assert (runs / "digits-san" / "generator" / "saved_model.pb").exists()

    photographs = tmp_path / "path" / "to" / "photographs"
    photographs.mkdir(parents=True)
    for i in range(70):
        Image.new("RGB", (70, 80), (3 * i, 50, 100)).save(
            photographs / f"{i}.jpg"
        )
    for arguments in others:
        if "--download" in arguments:
            # tests/test_experiments.py trains, with a dataset made for it.
            image_generation.parse(arguments)
            continue
        arguments += ["--steps-per-epoch", "1"]
        if "--epochs" in arguments:
            arguments[arguments.index("--epochs") + 1] = "2"
        else:
            arguments += ["--epochs", "1"]
        if "mirrored" in arguments:
            arguments += ["--name", "mirrored"]
        keras.utils.clear_session(free_memory=False)
        image_generation.main(arguments)
    assert sorted(os.listdir(runs)) == [
        "digits-san",
        "mirrored",
        "monitored",
        "photographs-san",
    ]
    assert "monitor.png" in os.listdir(runs / "monitored")
    assert "samples_0002.png" in os.listdir(runs / "digits-san")

    shutil.copy(
        runs / "photographs-san" / "gan.keras",
        tmp_path / "path" / "to" / "critic.keras",
    )
    run_commands("keras_san.diagnostics")
    assert (tmp_path / "diagnosis" / "layers.png").exists()


def test_super_resolution_commands(tmp_path, quick, monkeypatch):
    monkeypatch.chdir(tmp_path)
    photograph = tmp_path / "path" / "to" / "photograph.jpg"
    photograph.parent.mkdir(parents=True)
    Image.new("RGB", (30, 20), (200, 100, 50)).save(photograph)
    short = ["--pretraining-epochs", "1"]
    run_commands("experiments.super_resolution", short)
    run = tmp_path / "runs" / "photographs-san"
    assert (run / "comparison.png").exists()
    assert (run / "evaluation-photographs.csv").exists()
    with Image.open(tmp_path / "upscaled" / "photograph.jpg") as image:
        assert image.size == (120, 80)


def test_image_translation_commands(tmp_path, quick, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "path" / "to"
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (path / "scenes" / split / kind).mkdir(parents=True)
            for i in range(2):
                size = (128, 96)
                image = Image.new("L" if kind == "labels" else "RGB", size, i)
                image.save(path / "scenes" / split / kind / f"{i}.png")
    Image.new("L", (50, 40), 11).save(path / "labels.png")
    short = ["--width", "0.02", "--critic-width", "0.02"]
    run_commands("experiments.image_translation", short)
    assert (tmp_path / "runs" / "scenes" / "samples.png").exists()
    with Image.open(tmp_path / "translated" / "labels.png") as image:
        assert image.size == (96, 96)


def test_attribute_transfer_commands(tmp_path, quick, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "path" / "to"
    path.mkdir(parents=True)
    Image.new("RGB", (20, 20)).save(path / "digit.png")
    run_commands("experiments.attribute_transfer")
    run = tmp_path / "runs" / "digits-stargan-san"
    assert (run / "samples.png").exists()
    with Image.open(tmp_path / "edited" / "digit.png") as image:
        assert image.size == (5 * 33 + 1, 34)
