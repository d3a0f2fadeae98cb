"""Every command and snippet of the README and of the guides runs."""

import ast
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import keras
import pytest
from helpers import BACKEND, quickly
from PIL import Image

from experiments import image_generation

ROOT = Path(__file__).resolve().parent.parent
PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))]
}


def blocks(language, page):
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.M | re.S)


SHELL = [
    line
    for page in PAGES
    for text in blocks("bash", page)
    for line in text.splitlines()
]

pytestmark = pytest.mark.skipif(
    BACKEND != "tensorflow",
    reason="the guides export SavedModels; run on tensorflow",
)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks("python", p)])
def test_snippets(page, fresh_keras, tmp_path, monkeypatch):
    """Snippets run in the order of the page, and use those before."""
    monkeypatch.chdir(tmp_path)
    quickly(monkeypatch, export=True)
    namespace = {}
    for text in blocks("python", page):
        exec(compile(text, page, "exec"), namespace)
        # What a comment says of a shape holds.
        for name, shape in re.findall(r"^(\w+) = .*# (\(.*?\))", text, re.M):
            assert namespace[name].shape == ast.literal_eval(shape)
        for path in re.findall(r"\.(?:export|save)\(\"(.+?)\"", text):
            assert (tmp_path / path).exists()


def test_links():
    """Links outside of the site; `mkdocs build --strict` checks the others."""
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        links = re.findall(r"\]\((?!http)([^)#]+)", (ROOT / name).read_text())
        for link in links:
            assert (ROOT / link).exists(), (name, link)


# The tests below run all commands of these, and no line is left.
MODULES = (
    "examples.image_generation",
    "experiments.image_generation",
    "keras_san.diagnostics",
    "experiments.super_resolution",
    "experiments.image_translation",
    "experiments.attribute_transfer",
)


def arguments_of(module):
    """The arguments of each command of a module, as lists."""
    return [
        shlex.split(line.partition(f"-m {module}")[2])
        for line in SHELL
        if f".venv/bin/python -m {module}" in line
        and not line.startswith("KERAS_BACKEND=jax")
    ]


def test_there_is_nothing_else():
    """All commands but that of the tests, which `.ci/run` runs, run below."""
    python = ".venv/bin/python -m "
    jax = f"KERAS_BACKEND=jax {python}experiments.image_generation"
    install = "python3 -m venv .venv && .venv/bin/pip install -e "
    main = f'{install}".[examples]" && {python}examples.image_generation'
    test = f'{install}".[test]" && .venv/bin/ruff check . && {python}pytest'
    assert blocks("bash", "README.md") == [f"{main}\n", f"{test}\n"]
    for line in {*SHELL} - {main, test}:
        if line.startswith(jax):
            # tests/test_distribution.py trains so; here JAX may be missing.
            image_generation.parse(shlex.split(line.removeprefix(jax)))
        else:
            assert line.removeprefix(python).split()[0] in MODULES, line
    assert all(arguments_of(module) for module in MODULES)


# What a reader starts, but for one step.
SHORT = """
import runpy
import keras
fit = keras.Model.fit
keras.Model.fit = lambda *args, **kwargs: fit(
    *args, **{**kwargs, "epochs": 1, "steps_per_epoch": 1}
)
runpy.run_module("examples.image_generation", run_name="__main__")
"""


@pytest.mark.skipif(
    not (ROOT / "examples" / "image_generation.py").exists(),
    reason="examples/image_generation.py is missing",
)
def test_the_main_command(tmp_path):
    assert not any(arguments_of("examples.image_generation"))
    run_in_a_process(tmp_path, "-c", SHORT)
    assert list(tmp_path.rglob("*.png"))


def run_in_a_process(folder, *arguments):
    run = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-4000:]


def run_commands(module, short=()):
    """Runs each command as it stands, but with `short` arguments."""
    name = f"{module}.__main__" if "diagnostics" in module else module
    main = importlib.import_module(name).main
    for arguments in arguments_of(module):
        if "train" in arguments:
            arguments += [*short, "--steps-per-epoch", "1", "--epochs", "1"]
        keras.utils.clear_session(free_memory=False)
        status = main(arguments)
        assert "diagnostics" in module or status == 0


def test_image_generation_commands(tmp_path, quick, monkeypatch):
    """Each command as it stands, but short, and on data at hand."""
    monkeypatch.chdir(tmp_path)
    others = arguments_of("experiments.image_generation")
    others.remove([])  # The first, whatever page the others are on.
    run_in_a_process(
        tmp_path,
        *("-m", "experiments.image_generation"),
        *("--steps-per-epoch", "1", "--epochs", "1"),
    )
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
