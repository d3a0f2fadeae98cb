import keras
import numpy as np
import pytest
from helpers import BACKEND, sparsity_aware, to_numpy
from PIL import Image
from test_gan import fit, make_gan

from keras_san import SANWrapper, callbacks, normalizers

needs_gan = pytest.mark.skipif(
    BACKEND == "torch", reason="GAN trains on tensorflow and jax; run there"
)


def test_image_grid():
    images = np.linspace(-1, 1, 5)[:, None, None, None] * np.ones((5, 2, 3, 1))
    grid = callbacks.image_grid(images, columns=2, gap=1)
    assert grid.shape == (3 * 3 + 1, 2 * 4 + 1, 1) and grid.dtype == "uint8"
    for i, value in enumerate([0, 64, 128, 191, 255]):
        row, column = divmod(i, 2)
        place = grid[1 + 3 * row : 3 + 3 * row, 1 + 4 * column : 4 + 4 * column]
        assert np.all(place == value)
    assert np.all(grid[0] == 64) and np.all(grid[-1] == 64)
    assert np.all(callbacks.image_grid(images * 3, 2)[1, 1] == 0)  # Clipped.


@needs_gan
def test_sample_grid(tmp_path):
    gan = make_gan()
    grid = callbacks.SampleGrid(tmp_path / "run", rows=2, columns=3, scale=2)
    fit(gan, epochs=2, callbacks=[grid])
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names == ["samples.png", "samples_0001.png", "samples_0002.png"]
    last = np.asarray(Image.open(tmp_path / "run" / "samples.png"))
    expected = callbacks.image_grid(gan.generate(6, seed=0), 3)
    expected = expected.repeat(2, 0).repeat(2, 1)[..., 0]
    assert np.abs(last.astype(int) - expected).max() <= 1
    first = np.asarray(Image.open(tmp_path / "run" / "samples_0001.png"))
    assert np.any(first != last)


@needs_gan
def test_sample_grid_shows_a_class_a_column(tmp_path):
    gan = make_gan(num_classes=3)
    seen = []
    gan.generate = lambda n, labels, seed: (
        seen.append(labels) or np.zeros((n, 8, 8, 1))
    )
    grid = callbacks.SampleGrid(tmp_path, rows=2, columns=4)
    grid.set_model(gan)
    grid.on_epoch_end(0)
    np.testing.assert_array_equal(seen[0], [0, 1, 2, 0] * 2)


@needs_gan
def test_training_log(tmp_path):
    gan = make_gan()
    log = callbacks.TrainingLog(tmp_path)
    history = fit(gan, epochs=3, callbacks=[log])
    rows = callbacks.read_log(tmp_path / "log.csv")
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    for name, values in history.items():
        np.testing.assert_allclose([row[name] for row in rows], values)
    first = gan.critic.get_layer("first")
    np.testing.assert_allclose(
        rows[-1]["norm/first"], to_numpy(first.kernel_norms[0].norm)
    )
    with Image.open(tmp_path / "curves.png") as image:
        assert image.size[0] >= 600
    # Two epochs are repeated, as after a restart from a backup.
    fit(gan, epochs=3, initial_epoch=1, callbacks=[log])
    again = callbacks.read_log(tmp_path / "log.csv")
    assert [row["epoch"] for row in again] == [1, 2, 3]
    assert again[0] == rows[0] and again[2] != rows[2]


def test_kernel_norms():
    project = normalizers.SparsityAware(form="project", scale=0.7)
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            SANWrapper(
                keras.layers.Conv2D(3, 3, name="one"),
                normalizers.SparsityAware(gain=1.3),
            ),
            SANWrapper(keras.layers.SeparableConv2D(3, 3, name="two")),
            SANWrapper(keras.layers.Conv2D(3, 2, name="three"), project),
        ]
    )
    norms = callbacks.kernel_norms(model)
    assert list(norms) == [
        "norm/one_san",
        "norm/two_san/depthwise_kernel",
        "norm/two_san/pointwise_kernel",
        "norm/three_san",
    ]
    kernel = to_numpy(model.layers[0].layer.kernel)
    expected = 1.3 * sparsity_aware(kernel, (6, 6), (1, 1))
    np.testing.assert_allclose(norms["norm/one_san"], expected, rtol=1e-5)
    np.testing.assert_allclose(norms["norm/three_san"], 0.7, rtol=1e-5)
