"""The examples, each from a copy in an empty folder, tiny but complete."""

import os
import runpy

import pytest
from helpers import BACKEND

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
FOLDER = os.path.join(ROOT, "examples")
NAMES = sorted(n[:-3] for n in os.listdir(FOLDER) if n.endswith(".py"))

# What is changed in each, once.
TINY = {
    "attribute_transfer": {
        "load_digits().images": "load_digits().images[:24]",
        "EPOCHS = 10": "EPOCHS = 1",
    },
    "image_generation": {
        "2e-3, 10)": "2e-3, 1)",
        "STEPS_PER_EPOCH = 150": "STEPS_PER_EPOCH = 1",
        "BATCH_SIZE = 64": "BATCH_SIZE = 4",
    },
    "image_translation": {
        '"astronaut.png", "coffee.png", "rocket.jpg", ': "",
        "SIZE = 96": "SIZE = 64",
        "BATCH_SIZE = 4": "BATCH_SIZE = 20",
        "EPOCHS = 15": "EPOCHS = 1",
    },
    "super_resolution": {
        "SQUARES = 1600": "SQUARES = 8",
        "PIXEL_EPOCHS, EPOCHS = 3, 2": "PIXEL_EPOCHS, EPOCHS = 1, 1",
    },
}


def source(name):
    with open(os.path.join(FOLDER, f"{name}.py")) as file:
        return file.read()


@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_page(name):
    text = source(name)
    assert len(text.splitlines()) <= 150
    assert "argparse" not in text and "examples" not in text


@pytest.mark.parametrize("name", NAMES)
def test_the_notebook_is_in_step(name):
    """Else run `jupytext --to ipynb examples/*.py`."""
    jupytext = pytest.importorskip("jupytext", reason="see setup.cfg, test")
    page, notebook = (
        jupytext.read(os.path.join(FOLDER, f"{name}.{ending}"))
        for ending in ("py", "ipynb")
    )
    cells = [
        [(cell.cell_type, cell.source) for cell in book.cells]
        for book in (page, notebook)
    ]
    assert cells[0] == cells[1]
    assert len(cells[0]) > 5


@pytest.mark.skipif(
    BACKEND != "tensorflow",
    reason="the main job's data are TensorFlow's; run there",
)
@pytest.mark.parametrize("name", NAMES)
def test_it_runs_from_a_copy(name, tmp_path, quick, monkeypatch):
    text = source(name)
    for old, new in TINY[name].items():
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    (tmp_path / "copy.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    runpy.run_path("copy.py")
    (folder,) = (tmp_path / "runs").iterdir()
    files = {path.name for path in folder.iterdir()}
    assert {"curves.png", "log.csv"} < files
    assert {"samples.png", "pictures.png"} & files
    assert {"gan.keras", "generator.keras"} & files
