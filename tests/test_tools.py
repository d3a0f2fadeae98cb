import csv
import os
import subprocess
import sys

import keras
import pytest
from helpers import BACKEND

from tools import judge, table1

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

pytestmark = pytest.mark.skipif(
    BACKEND != "tensorflow",
    reason="the tools run the examples; run on tensorflow",
)


def test_judge(tmp_path):
    path = tmp_path / "judge.keras"
    arguments = ["--epochs", "2", "--width", "0.25", "--output", str(path)]
    assert judge.main(arguments) > 0.5
    model = keras.saving.load_model(path)
    assert model.get_layer("features").output.shape == (None, 32)
    assert model.get_layer("logits").output.shape == (None, 10)


def test_judge_needs_labels(tmp_path):
    from PIL import Image

    for i in range(3):
        Image.new("L", (8, 8)).save(tmp_path / f"{i}.png")
    with pytest.raises(ValueError, match="learns from labels"):
        judge.main(["--dataset", str(tmp_path)])


def test_table1_quick(tmp_path):
    command = [sys.executable, os.path.join("tools", "table1.py"), "--quick"]
    command += ["--output", str(tmp_path)]
    first = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert first.returncode == 0, first.stderr[-3000:]
    with open(tmp_path / "table1.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["normalizer"] for row in rows] == ["san", "sn"]
    for row in rows:
        assert row["state"] == "finished"
        assert row["extractor"] == "digits_judge.keras"
        assert (row["samples"], row["steps"]) == ("500", "50")
        # Nobody is to take it for the Inception network's.
        label, value = row["measured FID"].split()
        assert label == "judge" and float(value) > 0.0
        assert row["splits"] == "1" and float(row["hours"]) >= 0.0
        assert f"| {row['measured FID']} |" in first.stdout
    assert (tmp_path / "table1.png").stat().st_size > 1000
    # A second time there is nothing left to train.
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert again.returncode == 0 and "Epoch" not in again.stdout
    assert (tmp_path / "table1.md").read_text() in again.stdout
    # What was trained otherwise does not pass for it.
    other = subprocess.run(
        [*command, "--", "--width", "0.25"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert other.returncode == 1 and "'width': '0.125 -> 0.25'" in other.stdout
    assert "these runs failed" in other.stderr


def test_table1_matrix(tmp_path):
    arguments = ["--networks", "cnn", "resnet", "--output", str(tmp_path)]
    args, rest = table1.parse(
        [*arguments, "--seeds", "3", "4", "--", "--width", "0.5"]
    )
    runs = list(table1.matrix(args, rest))
    names = [run["name"] for run in runs]
    assert len(names) == len(set(names)) == 2 * (8 + 3)
    published = {run["name"]: run["published"] for run in runs}
    assert published["cifar10-cnn-sn-seed4"] == ("7.58 ± .12", "25.5")
    by_name = {run["name"]: run["settings"] for run in runs}
    wgan = by_name["cifar10-cnn-wgan_gp-seed3"]
    assert (wgan.critic_steps, wgan.learning_rate) == (5, 1e-4)
    assert wgan.loss == "wasserstein" and wgan.seed == 3
    assert wgan.evaluate_every == 5000 and wgan.width == 0.5
    clip = by_name["cifar10-cnn-clip-seed3"]
    assert clip.loss == "non_saturating"


def test_table1_of_another_dataset():
    arguments = ["--networks", "cnn", "biggan", "--", "--dataset", "stl10"]
    runs = list(table1.matrix(*table1.parse(arguments)))
    assert [run["row"] for run in runs] == [
        n for net, n in table1.PUBLISHED["stl10"] if net == "cnn"
    ]
    assert runs[-1]["published"] == ("9.18 ± .06", "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-- --network resnet", "passes on: --network"),
        ("-- --width 0.5 --seed=3", "passes on: --seed"),
        ("--quick --networks cnn", "--quick has its own"),
    ],
)
def test_table1_bad_arguments(arguments, message, capsys):
    with pytest.raises(SystemExit):
        table1.parse(arguments.split())
    assert message in capsys.readouterr().err


def test_table1_of_nothing(tmp_path):
    with pytest.raises(ValueError, match="published for these networks"):
        table1.main(["--networks", "small", "--output", str(tmp_path / "t")])
    assert not (tmp_path / "t").exists()


def test_table1_flags_of_a_row(tmp_path):
    args, rest = table1.parse(
        ["--networks", "cnn", "--output", str(tmp_path), "--normalizers"]
        + ["san,form=project", "bssn,scale=1.6", "--", "--width", "0.5"]
    )
    project, bssn = table1.matrix(args, rest)
    assert project["name"] == "cifar10-cnn-san-form=project-seed0"
    assert project["settings"].form == "project"
    assert project["settings"].width == 0.5
    assert bssn["settings"].scale == 1.6
    assert bssn["row"] == "bssn,scale=1.6"
