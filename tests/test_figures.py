"""The figures of both papers, in a smaller form."""

import csv
import os

import keras
import numpy as np
import pytest
from helpers import BACKEND, quickly, run_children_here
from PIL import Image

from experiments import image_generation
from keras_san import norms
from tools import figures

pytestmark = pytest.mark.skipif(
    BACKEND != "tensorflow",
    reason="the tools run the experiments; run on tensorflow",
)


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """The figures that need few runs, each of a step."""
    folder = tmp_path_factory.mktemp("figures")
    names = ["singular_values", "channel_sparsity", "subset_gain"]
    arguments = ["--quick", "--output", str(folder), "--figures"]
    short = "--epochs 1 --steps-per-epoch 1 --evaluate-every 1"
    short += " --samples 80 --batch-size 8"
    with pytest.MonkeyPatch.context() as patch:
        quickly(patch)
        trainings = run_children_here(patch)
        # Nor is a diagnosis looked at.
        patch.setattr(
            image_generation,
            "make_monitor",
            lambda *_: keras.callbacks.Callback(),
        )
        pictures = figures.main([*arguments, *names, "--", *short.split()])
    # Its steps are so many that graphs are worth it.
    pictures += figures.main([*arguments, "lipschitz_fit"])
    names.append("lipschitz_fit")
    assert len(trainings) == 1 + 3  # The first one is of the judge.
    assert pictures == [str(folder / f"{name}.png") for name in names]
    for picture in pictures:
        with Image.open(picture) as image:
            assert min(image.size) > 400
    return folder


def test_lipschitz_fit(drawn):
    """The target's slope is 1 or -1; SN's is too flat, and fits badly."""
    rows = rows_of(drawn / "lipschitz_fit.csv")
    x, target, none, sn, san = (
        np.array([float(row[name]) for row in rows])
        for name in ("x", "target", "none", "sn", "san")
    )
    slopes = np.abs(np.diff(target) / np.diff(x))
    np.testing.assert_allclose(slopes, 1.0, atol=1e-3)
    assert np.abs(np.diff(sn) / np.diff(x)).max() < 1.01
    errors = [np.abs(fit - target).mean() for fit in (none, san, sn)]
    assert errors[0] < 0.5 * errors[1] < 0.5 * errors[2]


def test_singular_values(drawn):
    rows = rows_of(drawn / "singular_values.csv")
    assert {row["critic"] for row in rows} == {"none", "sn"}
    assert len(rows) == 2 * 11
    for row in rows:
        ratio, limit = float(row["ratio"]), float(row["limit"])
        assert 0.999 < ratio < 1.001 * limit
        assert ratio == pytest.approx(float(row["operator"]) / float(row["sn"]))
        assert limit == (3.0 if "conv" in row["layer"] else 1.0)


def test_channel_sparsity(drawn):
    rows = rows_of(drawn / "channel_sparsity.csv")
    assert {row["critic"] for row in rows} == {"cnn", "resnet"}
    for row in rows:
        shares = [float(v) for k, v in row.items() if k.startswith("share_")]
        assert sum(shares) == pytest.approx(1.0)
        assert float(row["zero"]) <= float(row["nearly_zero"]) <= 1.0


def test_subset_gain(drawn):
    rows = rows_of(drawn / "subset_gain.csv")
    assert {row["kernel"] for row in rows} == {"Gaussian", "trained"}
    for row in rows:
        expected = norms.subset_gain(32 * 64, float(row["ratio"]))
        assert float(row["eq9"]) == pytest.approx(expected)
        assert 0.999 < float(row["measured"]) < expected + 0.1


@pytest.fixture
def settings(tmp_path):
    return figures.Settings(output=str(tmp_path), quick=True, seeds=(0, 1))


@pytest.fixture
def trained(tmp_path):
    """Logs as from runs, with numbers that tell whose they are."""
    found = {}
    names = {row for make in figures.RUNS.values() for _, row in make(True)}
    for place, name in enumerate(sorted(names)):
        for seed in (0, 1):
            folder = tmp_path / f"{place}-{seed}"
            os.makedirs(folder)
            with open(folder / "log.csv", "w") as file:
                file.write("epoch,step,critic_loss,judge_fid\n")
                for epoch in (1, 2):
                    fid = "" if epoch == 1 else 10 * place + seed
                    file.write(f"{epoch},{50 * epoch},{place},{fid}\n")
            with open(folder / "monitor.csv", "w") as file:
                file.write(
                    "step,verdict,gradient_norm/a,gradient_norm/b,"
                    "variance_lecun/a,variance_lecun/b\n"
                )
                file.write(f"0,healthy,1,{4 + place},2,{8 + seed}\n")
                file.write("50,vanishing,2,2,3,3\n")
            for network in ("cnn", "resnet"):
                found[network, name, seed] = {"folder": str(folder)}
    return found, sorted(names)


def test_curves(settings, trained):
    runs, names = trained
    for name in ("exact_normalization", "update_interval", "residual"):
        rows, draw = figures.FIGURES[name](settings, runs)
        drawn = [row for _, row in figures.RUNS[name](True)]
        assert len(rows) == len(drawn) * 2 * 2
        for row in rows:
            assert row["run"] in drawn
            place = names.index(row["run"])
            assert row["critic_loss"] == place
            if row["step"] == 100:
                assert row["judge_fid"] == 10 * place + row["seed"]
            else:
                assert "judge_fid" not in row
        figures.save(draw, settings.path("a.png"))


def test_monitored(settings, trained):
    runs, names = trained
    rows, draw = figures.gradient_norms(settings, runs)
    assert len(rows) == 5 * 2 * 2
    for row in rows:
        expected = (
            (1, 4 + names.index(row["run"])) if row["step"] == 0 else (2, 2)
        )
        assert (row["a"], row["b"]) == expected
        assert row["mean"] == pytest.approx(np.sqrt(np.prod(expected)))
    figures.save(draw, settings.path("a.png"))
    rows, draw = figures.weight_variance(settings, runs)
    assert [(r["a"], r["b"]) for r in rows[:3]] == [(2, 8), (3, 3), (2, 9)]
    figures.save(draw, settings.path("b.png"))


def test_scale(settings, trained):
    runs, names = trained
    rows, draw = figures.scale(settings, runs)
    assert len(rows) == 2 * 2 * 2
    for row in rows:
        place = names.index(f"{row['run']},scale={row['scale']}")
        assert row["judge_fid"] == 10 * place + row["seed"]
    figures.save(draw, settings.path("a.png"))


def test_a_run_that_fails(tmp_path, children_here):
    arguments = ["--figures", "subset_gain", "--output", str(tmp_path), "--"]
    with pytest.raises(ValueError, match="failed.*cnn-none-seed0"):
        figures.main([*arguments, "--data", str(tmp_path / "nowhere")])
