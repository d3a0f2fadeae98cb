import contextlib
import io
import resource
import signal
import sys

import keras
import numpy as np
import pytest
from helpers import (
    matrix_norm,
    sparsity_aware,
    to_numpy,
)
from PIL import Image
from test_gan import fit, make_gan, some_images

import keras_san
from keras_san import SANWrapper, callbacks, metrics, normalizers
from keras_san.networks import biggan


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


def test_sample_grid(tmp_path):
    gan = make_gan(None)
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


def a_picture():
    picture = np.full((3, 5, 3), 7, "uint8")
    picture[1] = 200
    return picture


def test_sample_grid_shows_another_picture(tmp_path):
    grid = callbacks.SampleGrid(
        tmp_path, scale=2, picture=lambda model: a_picture()
    )
    fit_a_plain_model(1, grid)
    found = np.asarray(Image.open(tmp_path / "samples_0001.png"))
    np.testing.assert_array_equal(
        found, a_picture().repeat(2, axis=0).repeat(2, axis=1)
    )
    np.testing.assert_array_equal(grid.latest, a_picture())


def test_sample_grid_shows_a_class_a_column(tmp_path):
    gan = make_gan(None, num_classes=3)
    seen = []
    gan.generate = lambda n, labels, seed, **kwargs: (
        seen.append(labels) or np.zeros((n, 8, 8, 1))
    )
    grid = callbacks.SampleGrid(tmp_path, rows=2, columns=4)
    grid.set_model(gan)
    grid.on_epoch_end(0)
    np.testing.assert_array_equal(seen[0], [0, 1, 2, 0] * 2)


def test_training_log(tmp_path):
    gan = make_gan()
    log = callbacks.TrainingLog(tmp_path)
    history = fit(gan, epochs=2, callbacks=[log])
    rows = callbacks.read_log(tmp_path / "log.csv")
    assert [row["epoch"] for row in rows] == [1, 2]
    for name, values in history.items():
        np.testing.assert_allclose([row[name] for row in rows], values)
    assert [row["step"] for row in rows] == [2, 4]
    seconds = [row["seconds"] for row in rows]
    assert 0.0 < seconds[0] < seconds[1]
    first = gan.critic.get_layer("first")
    np.testing.assert_allclose(
        rows[-1]["norm/first"], to_numpy(first.normalizations[0].norm)
    )
    with Image.open(tmp_path / "curves.png") as image:
        assert image.size[0] >= 600
    # The second epoch is repeated, as after a restart from a backup.
    fit(gan, epochs=2, initial_epoch=1, callbacks=[log])
    again = callbacks.read_log(tmp_path / "log.csv")
    assert [row["epoch"] for row in again] == [1, 2]
    assert again[0] == rows[0] and again[1] != rows[1]
    assert again[1]["seconds"] > rows[0]["seconds"]  # It goes on counting.


def fit_a_plain_model(epochs, *found):
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    return model.fit(
        np.ones((4, 2)),
        np.ones((4, 1)),
        batch_size=2,
        epochs=epochs,
        verbose=0,
        callbacks=list(found),
    )


def extract(images):
    """Features and logits of a fixed random projection."""
    flat = np.reshape(images, (len(images), -1)) / 127.5
    mixing = np.random.default_rng(0).normal(size=(flat.shape[1], 4))
    return flat @ mixing, flat @ mixing


class TestEvaluation:
    def test_values(self):
        gan = make_gan(None)
        images = np.random.default_rng(0).integers(
            256, size=(50, 8, 8, 1), dtype="uint8"
        )
        evaluation = callbacks.Evaluation(images, extract, 2, 40, seed=3)
        history = fit(gan, some_images(8), epochs=4, callbacks=[evaluation])
        assert len(history["custom_fid"]) == 2

        chosen = np.random.default_rng(3).permutation(50)[:40]  # Some of all.
        generated, _ = extract(gan.generate(40, seed=(3, 0)))
        fid = metrics.FrechetInceptionDistance()
        fid.update_state(extract(images[chosen])[0], real=True)
        fid.update_state(generated)
        kid = metrics.KernelInceptionDistance(extract)
        kid.update_state(images[chosen], real=True)
        kid.update_state(gan.generate(40, seed=(3, 0)))
        score = metrics.InceptionScore(splits=1)
        score.update_state(generated)
        found = {name: values[-1] for name, values in history.items()}
        np.testing.assert_allclose(
            [
                found["custom_fid"],
                found["custom_kid"],
                found["custom_is"],
                found["custom_is_std"],
            ],
            [
                fid.result()["fid"],
                kid.result()["kid"],
                score.result()["inception_score"],
                score.result()["inception_score_std"],
            ],
            rtol=1e-5,
        )
        assert found["custom_samples"] == found["custom_real_samples"] == 40

    def test_of_images_that_are_drawn_in_another_way(self):
        images = np.random.default_rng(0).integers(
            256, size=(30, 8, 8, 1), dtype="uint8"
        )
        drawn = images[::-1] // 2
        evaluation = callbacks.Evaluation(
            images,
            extract,
            num_images=30,
            draw=lambda model: (drawn[:20], drawn[20:]),
        )
        fid = metrics.FrechetInceptionDistance(extract)
        fid.update_state(images, real=True)
        fid.update_state(drawn)
        # Of any model, one that makes nothing of random vectors, too.
        found = fit_a_plain_model(1, evaluation).history
        assert found["custom_samples"] == [30]
        np.testing.assert_allclose(
            found["custom_fid"], [fid.result()["fid"]], rtol=1e-5
        )

    def test_what_is_drawn_beyond_the_range_is_clipped(self):
        """As that of generators without tanh, R3GAN's for one."""
        images = np.random.default_rng(0).normal(size=(30, 8, 8, 1))
        found = [
            callbacks.Evaluation(
                np.clip(images, -1.0, 1.0),
                extract,
                num_images=30,
                draw=lambda model, drawn=drawn: [drawn],
            ).evaluate(None)
            for drawn in (images, np.clip(images, -1.0, 1.0))
        ]
        assert found[0] == found[1]

    def test_the_last_epoch_is_evaluated(self):
        images = np.zeros((20, 8, 8, 1), "uint8")
        evaluation = callbacks.Evaluation(images, extract, 5, 30)
        history = fit(
            make_gan(None), some_images(8), epochs=3, callbacks=[evaluation]
        )
        assert history["custom_samples"] == [30]
        assert history["custom_real_samples"] == [20]

    def test_many_images_are_different_ones(self):
        gan = make_gan(None)
        seen = []

        def generate(n, seed, **kwargs):
            seen.append((n, np.random.default_rng(seed).normal()))
            return np.zeros((n, 8, 8, 1))

        gan.generate = generate
        images = np.zeros((30, 8, 8, 1), "uint8")
        callbacks.Evaluation(images, extract, 1, 2500).evaluate(gan)
        counts, draws = zip(*seen)
        assert counts == (1000, 1000, 500) and len(set(draws)) == 3

    def test_label_and_again_the_same(self):
        gan = make_gan(None)

        class Judge:
            label = ""

            def __call__(self, images):
                return extract(images)

        images = np.zeros((30, 8, 8, 1), "uint8")
        evaluation = callbacks.Evaluation(images, Judge(), num_images=30)
        names = {"is", "is_std", "fid", "kid", "samples", "splits"}
        values = evaluation.evaluate(gan)
        assert set(values) == names | {"real_samples"}
        assert evaluation.evaluate(gan) == values

    @pytest.mark.parametrize(
        "settings", [{"every": 0}, {"num_images": 9}, {"num_images": 20.0}]
    )
    def test_bad_settings(self, settings):
        (name,) = settings
        with pytest.raises(ValueError, match=f"Received: {name}="):
            callbacks.Evaluation(np.zeros((9, 8, 8, 1)), extract, **settings)

    def test_too_few_images(self):
        with pytest.raises(ValueError, match="at least 6 real.*5 images"):
            callbacks.Evaluation(np.zeros((5, 8, 8, 1)), extract, 1, 3000)

    def test_the_order_of_the_images_does_not_matter(self):
        """Blocks of KID are as random as the choice of images."""
        images = np.arange(2500)[:, None, None, None] % 256
        images = np.sort(images, axis=0) * np.ones((1, 8, 8, 1))
        seen = []

        def spy(images):
            seen.append(images[:, 0, 0, 0])
            return extract(images)

        callbacks.Evaluation(images.astype("uint8"), spy, num_images=2500)
        means = [part.mean() for part in seen]
        assert len(means) == 3 and np.ptp(means) < 20.0
        first = seen[0].astype(int)
        assert np.abs(np.corrcoef(first[1:], first[:-1])[0, 1]) < 0.2


class TestCheckpoint:
    @pytest.mark.parametrize(
        "settings",
        [
            {},
            {
                "normalizer": "sn",
                "ema": 0.9,
                "critic_steps": 2,
                "num_classes": 3,
            },
        ],
    )
    def test_goes_on_as_if_nothing_had_been(self, tmp_path, settings):
        images = [some_images()]
        if "num_classes" in settings:
            images.append(np.arange(len(images[0]), dtype="int32") % 3)
        data = {"x": images[0], "y": images[1] if images[1:] else None}

        def train(gan, **kwargs):
            gan.fit(**data, batch_size=8, verbose=0, shuffle=False, **kwargs)

        whole = make_gan(**settings)
        train(whole, epochs=2)
        train(
            make_gan(**settings),
            epochs=1,
            callbacks=[callbacks.Checkpoint(tmp_path)],
        )
        checkpoint = callbacks.Checkpoint(tmp_path)
        assert checkpoint.finished_epochs() == 1
        gan = make_gan(**settings)
        train(gan, epochs=2, initial_epoch=checkpoint.restore(gan))
        for expected, found in zip(whole.weights, gan.weights):
            np.testing.assert_allclose(
                to_numpy(found),
                to_numpy(expected),
                rtol=1e-4,
                atol=1e-6,
                err_msg=found.path,
            )

    def test_one_file_remains(self, tmp_path):
        checkpoint = callbacks.Checkpoint(tmp_path / "new" / "folder")
        assert checkpoint.finished_epochs() == 0
        gan = make_gan(None)
        assert checkpoint.restore(gan) == 0
        fit(gan, some_images(8), epochs=3, callbacks=[checkpoint])
        names = [path.name for path in (tmp_path / "new/folder").iterdir()]
        assert names == ["epoch_3.keras"]

    def test_the_disk_is_full(self, tmp_path):
        gan = make_gan(None)
        checkpoint = callbacks.Checkpoint(tmp_path)
        fit(gan, some_images(8), callbacks=[checkpoint])
        before = (tmp_path / "epoch_1.keras").read_bytes()
        # A limit on the size of files is met as the end of a disk is.
        with limited_files(len(before) // 2):
            with pytest.raises(OSError, match="is the disk full.*new.keras"):
                checkpoint.on_epoch_end(1)
        assert [path.name for path in tmp_path.iterdir()] == ["epoch_1.keras"]
        assert (tmp_path / "epoch_1.keras").read_bytes() == before
        assert checkpoint.restore(make_gan(None)) == 1

    def test_files_that_do_not_fit(self, tmp_path):
        checkpoint = callbacks.Checkpoint(tmp_path)
        gan = make_gan(None)
        fit(gan, some_images(8), callbacks=[checkpoint])
        # That of another network, of another optimizer, and a damaged one.
        with pytest.raises(ValueError, match="does not fit.*epoch_1.keras"):
            checkpoint.restore(make_gan(None, num_classes=3))
        gan.compile(keras.optimizers.SGD(), keras.optimizers.SGD())
        with pytest.raises(ValueError, match="does not fit.*optimizer"):
            checkpoint.restore(gan)
        path = tmp_path / "epoch_1.keras"
        path.write_bytes(path.read_bytes()[:1000])
        with pytest.raises(ValueError, match="damaged.*epoch_1.keras"):
            checkpoint.restore(make_gan(None))

    def test_what_has_diverged_is_not_kept(self, tmp_path):
        gan = make_gan(None)
        checkpoint = callbacks.Checkpoint(tmp_path)
        fit(gan, some_images(8), callbacks=[checkpoint])
        before = (tmp_path / "epoch_1.keras").read_bytes()
        weight = gan.critic.trainable_weights[0]
        weight.assign(np.full(weight.shape, np.nan))
        with pytest.raises(ValueError, match="has diverged in epoch 2"):
            fit(
                gan,
                some_images(8),
                epochs=2,
                initial_epoch=1,
                callbacks=[checkpoint],
            )
        assert (tmp_path / "epoch_1.keras").read_bytes() == before


@contextlib.contextmanager
def limited_files(size):
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_tensorboard(tmp_path):
    gan = make_gan()
    board = callbacks.TensorBoard(tmp_path, rows=2, columns=3)
    history = fit(gan, epochs=2, callbacks=[board])

    from tensorboard.backend.event_processing import event_accumulator

    events = event_accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert {"critic_loss", "norm/first"} <= set(events.Tags()["scalars"])
    for name in history:
        found = events.Scalars(name)
        assert [event.step for event in found] == [2, 4]
        np.testing.assert_allclose(
            [event.value for event in found], history[name], rtol=1e-6
        )
    png = events.Images("samples")[-1]
    assert png.step == 4
    with Image.open(io.BytesIO(png.encoded_image_string)) as image:
        grid = callbacks.sample_grid(gan, 2, 3)
        np.testing.assert_array_equal(np.asarray(image), grid[..., 0])
        assert (png.width, png.height) == image.size


def test_a_missing_package_is_told_at_once(tmp_path, monkeypatch):
    for made, module, package in [
        (callbacks.TensorBoard, "tensorboard", "tensorboard"),
        (callbacks.TrainingLog, "matplotlib", "matplotlib"),
        (callbacks.SampleGrid, "PIL", "pillow"),
    ]:
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(ImportError, match=f"pip install {package}"):
            made(tmp_path)


def test_only_the_chief_writes(tmp_path, monkeypatch):
    gan = make_gan(None)
    monkeypatch.setattr(type(gan), "is_chief", False)
    found = [
        callbacks.TrainingLog(tmp_path / "a"),
        callbacks.SampleGrid(tmp_path / "b"),
        callbacks.TensorBoard(tmp_path / "c"),
        callbacks.Checkpoint(tmp_path / "d"),
        callbacks.Evaluation(np.zeros((9, 8, 8, 1)), extract, 1, 40),
    ]
    history = fit(gan, some_images(8), callbacks=found)
    assert not list(tmp_path.iterdir())
    assert "custom_fid" not in history


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
            keras.layers.Conv2D(5, 1, name="plain"),
        ]
    )
    norms = callbacks.kernel_norms(model)
    assert list(norms) == [
        "norm/one_san",
        "norm/two_san/depthwise_kernel",
        "norm/two_san/pointwise_kernel",
        "norm/three_san",
        "norm/plain",
    ]
    kernel = to_numpy(model.layers[0].layer.kernel)
    expected = 1.3 * sparsity_aware(kernel, (6, 6), (1, 1))
    np.testing.assert_allclose(norms["norm/one_san"], expected, rtol=1e-5)
    np.testing.assert_allclose(norms["norm/three_san"], 0.7, rtol=1e-5)
    plain = matrix_norm(to_numpy(model.layers[3].kernel))
    np.testing.assert_allclose(norms["norm/plain"], plain, rtol=1e-4)


def test_logged_norms_are_the_critics(tmp_path):
    """Layers of both networks may have the same names."""
    gan = keras_san.GAN(
        biggan.generator(8, latent_dim=4, width=0.02),
        biggan.critic(8, width=0.02),
        latent_dim=4,
        num_classes=10,
    )
    gan.compile()
    log = callbacks.TrainingLog(tmp_path)
    log.set_model(gan)
    log.on_train_begin()
    log.on_epoch_end(0)
    (row,) = callbacks.read_log(tmp_path / "log.csv")
    layer = gan.critic.get_layer("block_1_conv_1")
    np.testing.assert_allclose(
        row["norm/block_1_conv_1"],
        to_numpy(layer.normalizations[0].norm),
    )


class TestImageQuality:
    def images(self):
        rng = np.random.default_rng(0)
        inputs = rng.integers(256, size=(2, 60, 50, 3), dtype="uint8")
        targets = inputs.repeat(2, axis=1).repeat(2, axis=2)
        noise = rng.integers(-9, 10, targets.shape)
        targets = np.clip(targets + noise, 0, 255).astype("uint8")
        # Of different sizes, as photographs are.
        return list(inputs[:1]) + [inputs[1, :55]], list(targets[:1]) + [
            targets[1, :110]
        ]

    def model(self):
        return keras.Sequential(
            [keras.Input((None, None, 3)), keras.layers.UpSampling2D(2)]
        )

    def test_values(self):
        inputs, targets = self.images()
        callback = callbacks.ImageQuality(inputs, targets, crop=2)
        values = callback.evaluate(self.model())
        made = [x.repeat(2, axis=0).repeat(2, axis=1) for x in inputs]
        quality = metrics.image_quality
        expected = {
            "psnr": [quality.psnr(a, b, 2) for a, b in zip(targets, made)],
            "ssim": [quality.ssim(a, b, 2) for a, b in zip(targets, made)],
            "niqe": [quality.niqe(b, crop=2) for b in made],
        }
        assert values.keys() == expected.keys()
        for name, one_each in expected.items():
            assert one_each[0] != one_each[1]
            np.testing.assert_allclose(values[name], np.mean(one_each))

    def test_logs(self):
        inputs, targets = self.images()
        callback = callbacks.ImageQuality(inputs, targets, every=2)
        callback.set_model(self.model())
        callback.set_params({"epochs": 3})
        found = []
        for epoch in range(3):
            logs = {}
            callback.on_epoch_end(epoch, logs)
            found.append(set(logs))
        assert found == [set(), {"psnr", "ssim", "niqe"}] + found[1:2]

    def test_bad_arguments(self):
        inputs, targets = self.images()
        for arguments in ((inputs, targets[:1]), ([], [])):
            with pytest.raises(ValueError, match="as many inputs as targets"):
                callbacks.ImageQuality(*arguments)
        with pytest.raises(ValueError, match="every=0"):
            callbacks.ImageQuality(inputs, targets, every=0)
        with pytest.raises(ValueError, match="Target 0 cannot.*96x96 pixels"):
            callbacks.ImageQuality(inputs, targets, crop=10)

    def test_what_has_no_structure_has_no_niqe(self):
        inputs, targets = self.images()
        model = keras.Sequential(
            [
                keras.Input((None, None, 3)),
                keras.layers.UpSampling2D(2),
                keras.layers.Rescaling(0.0),
            ]
        )
        values = callbacks.ImageQuality(inputs, targets).evaluate(model)
        assert np.isnan(values["niqe"]) and np.isfinite(values["psnr"])


def test_enlarge_cuts_off():
    model = keras.Sequential(
        [keras.Input((None, None, 3)), keras.layers.Rescaling(2.0)]
    )
    levels = np.arange(256, dtype="uint8").reshape(16, 16, 1).repeat(3, axis=2)
    made = callbacks.enlarge(model, levels)
    assert made.dtype == "uint8"
    expected = np.clip(2.0 * levels - 127.5, 0, 255)
    assert np.abs(made - expected).max() <= 0.5


def test_training_log_of_a_plain_model(tmp_path):
    log = callbacks.TrainingLog(tmp_path)
    checkpoint = callbacks.Checkpoint(tmp_path)
    fit_a_plain_model(2, log, checkpoint)
    rows = callbacks.read_log(tmp_path / "log.csv")
    assert [row["step"] for row in rows] == [2, 4]
    assert set(rows[0]) == {"epoch", "step", "seconds", "loss"}
    assert checkpoint.finished_epochs() == 2


def test_tensorboard_shows_another_picture(tmp_path):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator"
    )
    board = callbacks.TensorBoard(tmp_path, picture=lambda model: a_picture())
    fit_a_plain_model(1, board)
    events = accumulator.EventAccumulator(str(tmp_path)).Reload()
    (image,) = events.Images("samples")
    assert (image.height, image.width) == (3, 5)


class TestProgress:
    def train(self, capsys, **kwargs):
        gan = make_gan(None)
        progress = callbacks.Progress()
        images = some_images(32)
        fit(gan, images, batch_size=8, callbacks=[progress], **kwargs)
        return capsys.readouterr().out

    def test_a_line_an_epoch(self, capsys):
        """A file gets one line per epoch, which nothing overwrites."""
        first, second = self.train(capsys, epochs=2).splitlines()
        assert first.startswith(" 50% 4/8 [0") and "step" in first
        assert second.startswith("100% 8/8 [") and "critic_loss=" in second

    def test_of_a_resumed_training(self, capsys):
        (line,) = self.train(capsys, epochs=4, initial_epoch=3).splitlines()
        assert line.startswith("100% 16/16 [")

    def test_several_steps_an_execution(self, capsys):
        gan = make_gan(None)
        gan.compile(steps_per_execution=3)
        fit(
            gan,
            some_images(40),
            epochs=1,
            steps_per_epoch=5,
            callbacks=[callbacks.Progress()],
        )
        assert capsys.readouterr().out.startswith("100% 5/5 [")

    def test_in_a_terminal(self, capsys, monkeypatch):
        """The line below is rewritten; those of epochs stay."""
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        shown = self.train(capsys, epochs=2)
        assert "\r 12%|" in shown and "| 1/8 [" in shown
        assert shown.count("critic_loss=") >= 2
