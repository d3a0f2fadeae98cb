"""Tests of `tools/accelerator.py`, tiny and on the CPU."""

import csv
import os
import sys

import helpers
import keras
import numpy as np
import pytest

pytestmark = [
    helpers.ignore_torch_copies,
    pytest.mark.usefixtures("fresh_keras"),
    pytest.mark.skipif(
        helpers.BACKEND == "tensorflow",
        reason="it is for machines without TensorFlow; run on jax and torch",
    ),
]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Runs a part, and returns the rows of the tables that it leaves."""
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    monkeypatch.setattr(sys, "path", [root, *sys.path])
    from tools import accelerator

    def run(*arguments):
        quick = ["--device", "cpu", "--quick", "--output", str(tmp_path)]
        accelerator.main([*arguments, *quick])
        rows = []
        for path in tmp_path.glob("*.csv"):
            with open(path, newline="") as file:
                rows += csv.DictReader(file)
        return rows

    return run


def test_norms(run):
    rows = run("norms")
    errors = [abs(float(row["error"])) for row in rows if row["error"]]
    assert len(errors) > len(rows) / 2
    assert max(errors) < 1e-6


@pytest.mark.parametrize(
    ("network", "method"),
    [("CNN 32", "san, circular"), ("SPADE 256x512", "r1")],
)
def test_updates(run, network, method):
    # In bfloat16 PyTorch does not take all convolutions on CPUs.
    chosen = "--networks", network, "--methods", method, "--dtypes", "float32"
    (row,) = run("updates", *chosen)
    assert row["method"] == method
    assert float(row["ms"]) > 0.0


@pytest.mark.skipif(helpers.BACKEND != "jax", reason="it trains on JAX")
def test_train(run, tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3))
    np.savez(tmp_path / "images.npz", images=images.astype("uint8"))
    judge = keras.Sequential(
        [
            keras.Input((32, 32, 3)),
            keras.layers.Conv2D(2, 3, 8),
            keras.layers.GlobalAveragePooling2D(name="features"),
            keras.layers.Dense(3, name="logits"),
        ]
    )
    judge.save(tmp_path / "judge.keras")
    files = ["--data", str(tmp_path / "images.npz")]
    files += ["--judge", str(tmp_path / "judge.keras")]
    rows = run("train", *files, "--steps", "4", "--every", "2")
    assert [row["step"] for row in rows] == ["2", "4"]
    assert all(np.isfinite(float(row["fid"])) for row in rows)
