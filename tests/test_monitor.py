"""The callback that diagnoses a critic while it trains."""

import warnings

import keras
import numpy as np
import pytest
from helpers import BACKEND
from PIL import Image
from test_gan import fit, make_gan, make_networks, some_images

import keras_san
from keras_san import callbacks
from keras_san.callbacks.logs import read_rows
from keras_san.callbacks.monitor import draw_monitor
from keras_san.diagnostics import diagnose

IMAGES = some_images(4)


@pytest.fixture(autouse=True)
def drawings(monkeypatch):
    """The rows to draw at each diagnosis, since drawing takes longer."""
    found = []
    monkeypatch.setattr(
        "keras_san.callbacks.monitor.draw_monitor",
        lambda *arguments: found.append(arguments),
    )
    return found


def steps(folder):
    return [int(row["step"]) for row in read_rows(folder / "monitor.csv")]


def test_rows(tmp_path, drawings):
    """Rows before the first and at every third step, of the critic then."""
    gan = make_gan()
    monitor = callbacks.NormMonitor(tmp_path, IMAGES, every=3)
    fit(gan, epochs=2, callbacks=[monitor])
    assert steps(tmp_path) == [0, 3]
    # Four steps in all: what comes next sees what the last one has left.
    before = diagnose(gan.critic, IMAGES)
    fit(gan, epochs=1, callbacks=[monitor])
    assert steps(tmp_path) == [0, 3, 4, 6]
    row = read_rows(tmp_path / "monitor.csv")[2]
    assert row["verdict"] == before.verdict
    np.testing.assert_allclose(float(row["slope"]), before.slope, rtol=1e-4)
    for name, found in (
        ("san", before.norms["san"]),
        ("variance_lecun", before.norms["variance_lecun"]),
        ("growth", before.gains["growth"]),
        ("gradient_norm", before.gradients["norm"]),
        ("gradient_raw_norm", before.gradients["raw_norm"]),
    ):
        for layer, value in zip(before.norms["layer"], found):
            np.testing.assert_allclose(
                float(row[f"{name}/{layer}"]), value, rtol=1e-4
            )
    assert len(drawings) == 4
    draw_monitor(*drawings[-1])
    with Image.open(tmp_path / "monitor.png") as image:
        assert image.size[1] > image.size[0] > 300


def test_it_changes_nothing(tmp_path):
    """Training goes on as if nobody had looked."""
    weights = []
    for watched in (False, True):
        gan = make_gan()
        shown = [callbacks.NormMonitor(tmp_path, IMAGES, 1)] * watched
        fit(gan, epochs=1, callbacks=shown)
        weights.append(gan.get_weights())
    for a, b in zip(*weights):
        np.testing.assert_array_equal(a, b)


def test_resumed_rows_are_replaced(tmp_path):
    fit(make_gan(None), epochs=2, callbacks=[monitor := _monitor(tmp_path)])
    assert steps(tmp_path) == [0, 2, 4]
    fit(make_gan(None), epochs=1, callbacks=[monitor])
    assert steps(tmp_path) == [0, 2]


def _monitor(path, **kwargs):
    return callbacks.NormMonitor(path, IMAGES, every=2, **kwargs)


def test_tensorboard(tmp_path):
    monitor = _monitor(tmp_path, tensorboard=tmp_path / "events")
    fit(make_gan(None), epochs=1, callbacks=[monitor])
    from tensorboard.backend.event_processing import event_accumulator

    events = event_accumulator.EventAccumulator(str(tmp_path / "events"))
    events.Reload()
    slopes = events.Scalars("monitor/slope")
    assert [event.step for event in slopes] == [0, 2]
    rows = read_rows(tmp_path / "monitor.csv")
    for event, row in zip(slopes, rows):
        np.testing.assert_allclose(event.value, float(row["slope"]), rtol=1e-5)


def test_warnings(tmp_path, drawings):
    """One warning when a critic begins to fail, with layer and figure."""
    gan = make_gan(normalizer=None)
    monitor = _monitor(tmp_path)
    # Here a warning would be an error.
    fit(gan, epochs=1, callbacks=[monitor])
    kernel = gan.critic.get_layer("first").kernel
    kernel.assign(kernel * 30.0)
    message = "At step 2 the critic is exploding: first amplifies signals"
    with pytest.warns(UserWarning, match=message) as caught:
        fit(gan, epochs=1, callbacks=[monitor])
    told = [w for w in caught if w.category is UserWarning]
    assert len(told) == 1
    # Steps at which it fails are marked.
    draw_monitor(*drawings[-1])
    rows = read_rows(tmp_path / "monitor.csv")
    verdicts = [(r["verdict"], r.get("layer")) for r in rows]
    assert verdicts == [("healthy", None)] + [("exploding", "first")] * 2


def test_inert_normalizations_are_told_at_the_start(tmp_path):
    critic = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            keras_san.SANConv2D(4, 3),
            keras.layers.LayerNormalization(),
            keras.layers.Flatten(),
            keras.layers.Dense(1),
        ]
    )
    generator, _ = make_networks()
    gan = keras_san.GAN(generator, critic, latent_dim=5)
    gan.compile(run_eagerly=BACKEND == "tensorflow")
    with pytest.warns(UserWarning, match="does nothing: the one that follows"):
        fit(gan, epochs=1, callbacks=[_monitor(tmp_path)])


def test_a_model_without_a_critic(tmp_path):
    """Any model from images is one."""
    model = keras.Sequential(
        [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(1)]
    )
    model.compile("sgd", "mse")
    with warnings.catch_warnings():
        # Of one layer, its verdict is of no interest here.
        warnings.simplefilter("ignore")
        model.fit(
            IMAGES, np.zeros(4), 2, 2, verbose=0, callbacks=[_monitor(tmp_path)]
        )
    assert steps(tmp_path) == [0, 2, 4]


def test_only_the_chief_looks(tmp_path, monkeypatch):
    gan = make_gan(None)
    monkeypatch.setattr(type(gan), "is_chief", False)
    fit(gan, epochs=1, callbacks=[_monitor(tmp_path / "a")])
    assert not (tmp_path / "a").exists()


def test_bad_settings(tmp_path):
    with pytest.raises(ValueError, match="every=0"):
        callbacks.NormMonitor(tmp_path, IMAGES, every=0)
    with pytest.raises(ValueError, match="at least two.*1 images"):
        callbacks.NormMonitor(tmp_path, IMAGES[:1])
