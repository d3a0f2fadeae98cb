import csv
import dataclasses
import os
import runpy
import sys

import keras
import numpy as np
import pytest
from helpers import BACKEND, sparsity_aware
from PIL import Image

from keras_san.networks import sngan
from tools import backends, benchmark, judge, table1

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

pytestmark = [
    pytest.mark.skipif(
        BACKEND != "tensorflow",
        reason="the tools run the experiments; run on tensorflow",
    ),
    pytest.mark.usefixtures("fresh_keras"),
]


def test_judge(tmp_path):
    path = tmp_path / "judge.keras"
    args = judge.Settings(epochs=2, width=0.25, output=str(path))
    assert judge.run(args) > 0.5  # Of 180, where a tenth is chance.
    model = keras.saving.load_model(path)
    assert model.get_layer("features").output.shape == (None, 32)
    assert model.get_layer("logits").output.shape == (None, 10)


def test_judge_needs_labels(tmp_path):
    for i in range(3):
        Image.new("L", (8, 8)).save(tmp_path / f"{i}.png")
    with pytest.raises(ValueError, match="learns from labels"):
        judge.main(["--data", str(tmp_path)])


def run_tool(monkeypatch, tool, *arguments):
    """Runs `python tools/...` in this process, and returns its exit status."""
    path = os.path.join(ROOT, "tools", f"{tool}.py")
    monkeypatch.setattr(sys, "argv", [path, *map(str, arguments)])
    try:
        runpy.run_path(path, run_name="__main__")
    except SystemExit as error:
        return error.code or 0
    return 0


def rows_of(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_table1_quick(tmp_path, monkeypatch, capfd, children_here):
    arguments = ["--quick", "--output", tmp_path, "--"]
    # But fewer, of fewer images.
    arguments += "--steps-per-epoch 1 --evaluate-every 1 --samples 80".split()
    assert run_tool(monkeypatch, "table1", *arguments) == 0
    printed = capfd.readouterr().out
    rows = rows_of(tmp_path / "table1.csv")
    assert [row["normalizer"] for row in rows] == ["san", "sn"]
    for row in rows:
        assert row["state"] == "finished"
        assert row["extractor"] == "digits_judge.keras"
        assert (row["samples"], row["steps"]) == ("80", "2")
        # Nobody is to take it for the Inception network's.
        label, value = row["measured FID"].split()
        assert label == "judge" and float(value) > 0.0
        assert row["splits"] == "1" and float(row["hours"]) >= 0.0
        assert f"| {row['measured FID']} |" in printed
    assert (tmp_path / "table1.png").stat().st_size > 1000
    assert len(children_here) == 3  # With that of the judge.
    # A second time there is nothing left to train.
    assert run_tool(monkeypatch, "table1", *arguments) == 0
    assert (tmp_path / "table1.md").read_text() in capfd.readouterr().out
    assert len(children_here) == 3
    # What was trained otherwise does not pass for it.
    error = run_tool(monkeypatch, "table1", *arguments, "--width", "0.25")
    assert error.startswith("error: these runs failed")
    assert "'width': '0.125 -> 0.25'" in capfd.readouterr().out
    assert len(children_here) == 3


def matrix(*arguments):
    args, rest = table1.parse(table1.Settings, "", arguments)
    args = dataclasses.replace(args, output="runs")
    return {run["name"]: run for run in table1.matrix(args, rest)}


def test_table1_matrix():
    runs = matrix(
        *("--networks", "cnn", "resnet", "--seeds", "3", "4"),
        *("--", "--width", "0.5"),
    )
    assert len(runs) == 2 * (8 + 3)
    assert runs["cifar10-cnn-sn-seed4"]["published"] == ("7.58 ± .12", "25.5")
    wgan = runs["cifar10-cnn-wgan_gp-seed3"]["settings"]
    assert (wgan.critic_steps, wgan.learning_rate) == (5, 1e-4)
    assert wgan.loss == "wasserstein" and wgan.seed == 3
    assert wgan.evaluate_every == 5000 and wgan.width == 0.5
    clip = runs["cifar10-cnn-clip-seed3"]["settings"]
    assert clip.loss == "non_saturating"


def test_table1_of_another_dataset():
    arguments = ["--networks", "cnn", "biggan", "--", "--data", "stl10"]
    runs = [*matrix(*arguments).values()]
    assert [run["row"] for run in runs] == [
        n for net, n in table1.PUBLISHED["stl10"] if net == "cnn"
    ]
    assert runs[-1]["published"] == ("9.18 ± .06", "")


def test_table1_flags_of_a_row():
    project, bssn = matrix(
        *("--networks", "cnn", "--normalizers", "san,form=project"),
        *("bssn,scale=1.6", "--", "--width", "0.5"),
    ).values()
    assert project["name"] == "cifar10-cnn-san-form=project-seed0"
    assert project["settings"].form == "project"
    assert project["settings"].width == 0.5
    assert bssn["settings"].scale == 1.6
    assert bssn["row"] == "bssn,scale=1.6"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("-- --network resnet", "passes on.*Received: --network"),
        ("-- --width 0.5 --seed=3", "passes on.*Received: --seed"),
        ("--quick --networks cnn", "--quick has its own"),
        ("--networks small", "published for these networks"),
    ],
)
def test_table1_bad_arguments(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        table1.main(arguments.split())
    assert not list(tmp_path.iterdir())


@pytest.fixture
def own_environment(monkeypatch):
    """Restores the variables that set the benchmark's backend and devices."""
    for name in ("KERAS_BACKEND", "CUDA_VISIBLE_DEVICES", "JAX_PLATFORMS"):
        monkeypatch.setenv(name, os.environ.get(name, BACKEND))


def test_benchmark_quick(tmp_path, own_environment, monkeypatch):
    arguments = ["--quick", "--output", tmp_path]
    assert run_tool(monkeypatch, "benchmark", *arguments) == 0
    rows = rows_of(tmp_path / "benchmark.csv")
    assert {row["section"] for row in rows} == set(benchmark.SECTIONS)
    assert all(float(row["milliseconds"]) > 0.0 for row in rows)
    # The first method of a case is what the others relate to.
    first = {}
    for row in rows:
        case = row["section"], row["case"], row["kernel"], row["image"]
        start = first.setdefault(case, float(row["milliseconds"]))
        ratio = float(row["milliseconds"]) / start
        assert float(row["ratio"]) == pytest.approx(ratio)
    # What is timed is the same number, whatever the way to it.
    norms = [row for row in rows if row["section"] == "norm"]
    values = {(row["case"], row["method"]): row["value"] for row in norms}
    assert {method for _, method in values} >= {"power iteration", "rfft2"}
    for case in {case for case, _ in values}:
        exact, *others = (
            float(values[case, method]) for method in ("fft2", "rfft2", "ours")
        )
        assert others == pytest.approx([exact, exact], rel=1e-5)
    updates = [row["method"] for row in rows if row["section"] == "update"]
    assert "Keras' SpectralNormalization" in updates
    assert "WGAN-GP, zero padding" in updates
    assert (tmp_path / "benchmark.png").stat().st_size > 1000
    for row in rows:
        assert f"| {row['method']} |" in (tmp_path / "benchmark.md").read_text()


def test_benchmark_of_a_trained_critic(tmp_path, own_environment):
    critic = sngan.critic(8, width=0.125)
    critic.save(tmp_path / "critic.keras")
    arguments = ["--sections", "norm", "--quick", "--output", str(tmp_path)]
    arguments += ["--critic", str(tmp_path / "critic.keras")]
    rows = benchmark.main(arguments)
    found = {
        row["case"]: row["value"] for row in rows if row["method"] == "ours"
    }
    assert len(found) == 7
    kernel = np.array(critic.get_layer("conv_1").kernel)
    expected = sparsity_aware(kernel, (8, 8), (1, 1))
    assert found["trained, conv_1"] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--device", "gpu"], "finds no GPU"),
        (["--backend", "jax"], "already runs on tensorflow"),
        (["--rounds", "0"], "rounds=0"),
        (["--sections", "norm", "--match", "conv_9"], "match='conv_9'"),
    ],
)
def test_benchmark_where_it_cannot_run(arguments, message, own_environment):
    with pytest.raises(ValueError, match=message):
        benchmark.main([*arguments, "--quick"])


def test_memory_that_is_not_counted(monkeypatch):
    """CPUs on which TensorFlow does without oneDNN's allocator."""
    import tensorflow as tf

    def refuse(device):
        raise ValueError(f"Cannot reset memory stats for device {device!r}")

    monkeypatch.setattr(tf.config.experimental, "reset_memory_stats", refuse)
    calls = []
    found = backends.tensorflow_memory(lambda: calls.append(1), "CPU:0")
    assert found == (None, None) and calls == [1]
    backend = backends.Backend("tensorflow", "cpu")
    assert backend.extra_memory(lambda: None, ()) is None
