import dataclasses
import math
import os
import pathlib

import keras
import numpy as np
import pytest
import scipy.ndimage
from helpers import BACKEND, ignore_torch_copies
from keras import ops
from scipy.special import gamma
from skimage import data as photographs
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from keras_san.metrics import NIQE, PSNR, SSIM, image_quality
from keras_san.metrics.image_quality import (
    NIQEModel,
    fit_niqe,
    niqe,
    niqe_features,
    psnr,
    ssim,
)
from keras_san.metrics.resizing import imresize

RNG = np.random.default_rng(0)
DATA = pathlib.Path(__file__).parents[2] / "shared" / "data"


def noise(*shape):
    return RNG.integers(0, 256, shape, "uint8")


def distorted(image, deviation, seed=0):
    rng = np.random.default_rng(seed)
    image = image + deviation * rng.normal(size=image.shape)
    return np.clip(np.rint(image), 0, 255).astype("uint8")


def luma(image):
    """The luma of BT.601, pixel by pixel, halves rounded up."""
    pixels = [
        math.floor((65481 * r + 128553 * g + 24966 * b) / 255_000 + 16.5)
        for r, g, b in image.reshape(-1, 3).tolist()
    ]
    return np.array(pixels, "uint8").reshape(image.shape[:2])


@pytest.fixture(scope="module")
def chelsea():
    return photographs.chelsea()[:192, :288]


@pytest.fixture(scope="module")
def model():
    """A model of noise, which differs from the default in everything."""
    window = np.random.default_rng(1).random((7, 7))
    fitted = fit_niqe([noise(96, 480)], sharpness=0.0)
    return dataclasses.replace(fitted, window=window / window.sum())


class TestPSNR:
    def test_rgb(self):
        a, b = noise(9, 8, 3), noise(9, 8, 3)
        errors = (a.astype(int) - b) ** 2
        expected = 10 * np.log10(255**2 / errors.mean())
        np.testing.assert_allclose(psnr(a, b, y=False), expected)
        np.testing.assert_allclose(
            psnr(a, b, y=False), peak_signal_noise_ratio(a, b)
        )
        expected = 10 * np.log10(255**2 / errors[2:-2, 2:-2].mean())
        np.testing.assert_allclose(psnr(a, b, 2, y=False), expected)

    def test_luma(self):
        a, b = noise(9, 8, 3), noise(9, 8, 3)
        for crop, inner in ((0, slice(None)), (3, slice(3, -3))):
            expected = peak_signal_noise_ratio(
                luma(a)[inner, inner], luma(b)[inner, inner]
            )
            np.testing.assert_allclose(psnr(a, b, crop), expected)

    def test_luma_is_rounded(self):
        for image in noise(200, 1, 1, 3):
            grey = luma(image)
            # 10^(-dB / 20) is the difference to black, whose luma is 16.
            found = 255 * 10 ** (-psnr(image, 0 * image) / 20)
            np.testing.assert_allclose(found, grey[0, 0] - 16.0, atol=1e-9)

    @pytest.mark.parametrize("shape", [(5, 6), (5, 6, 1)])
    @pytest.mark.parametrize("y", [True, False])
    def test_grey(self, shape, y):
        a, b = noise(*shape), noise(*shape)
        np.testing.assert_allclose(
            psnr(a, b, y=y), peak_signal_noise_ratio(a, b)
        )

    def test_equal_images(self):
        a = noise(5, 5, 3)
        assert psnr(a, a) == math.inf
        b = a.copy()
        b[0] = 255 - b[0]
        assert psnr(a, b) < 30.0 and psnr(a, b, crop=1) == math.inf


class TestSSIM:
    def expected(self, a, b):
        _, full = structural_similarity(
            a,
            b,
            gaussian_weights=True,
            sigma=1.5,
            use_sample_covariance=False,
            data_range=255,
            full=True,
        )
        return full[5:-5, 5:-5].mean()

    @pytest.mark.parametrize("deviation", [5, 80])
    def test_agrees_with_skimage(self, chelsea, deviation):
        a = chelsea[40:80, 50:101]
        b = distorted(a, deviation)
        np.testing.assert_allclose(
            ssim(a, b), self.expected(luma(a), luma(b)), rtol=1e-9
        )
        channels = [self.expected(a[..., i], b[..., i]) for i in range(3)]
        np.testing.assert_allclose(
            ssim(a, b, y=False), np.mean(channels), rtol=1e-9
        )
        inner = slice(7, -7)
        np.testing.assert_allclose(
            ssim(a, b, 7),
            self.expected(luma(a)[inner, inner], luma(b)[inner, inner]),
            rtol=1e-9,
        )

    def test_one_window(self):
        a, b = noise(11, 11), noise(11, 11, 1)
        x = np.arange(11) - 5
        weights = np.exp(-(x[:, None] ** 2 + x**2) / (2 * 1.5**2))
        weights /= weights.sum()
        p, q = a.astype(float), b[..., 0].astype(float)
        mean_p, mean_q = (weights * p).sum(), (weights * q).sum()
        both = (weights * (p - mean_p) * (q - mean_q)).sum()
        var_p = (weights * (p - mean_p) ** 2).sum()
        var_q = (weights * (q - mean_q) ** 2).sum()
        expected = (2 * mean_p * mean_q + 2.55**2) * (2 * both + 7.65**2)
        expected /= mean_p**2 + mean_q**2 + 2.55**2
        expected /= var_p + var_q + 7.65**2
        np.testing.assert_allclose(ssim(a, b[..., 0]), expected)
        np.testing.assert_allclose(ssim(a[..., None], b), expected)

    def test_equal_images(self):
        a = noise(20, 15, 3)
        np.testing.assert_allclose(ssim(a, a), 1.0)


@pytest.mark.parametrize(
    "name, db, share",
    [("set5_x4", 28.42, 0.8104), ("bsd100_x4", 25.96, 0.6675)],
)
def test_published_bicubic(name, db, share):
    if not (DATA / name).is_dir():
        pytest.skip(f"needs the images of papers, in {DATA / name}")
    from PIL import Image

    found = []
    for path in (DATA / name / "HR").iterdir():
        large = np.asarray(Image.open(path))
        small = np.asarray(Image.open(DATA / name / "LR" / path.name))
        upscaled = imresize(small, 4)
        found.append([f(large, upscaled, 4) for f in (psnr, ssim)])
    # Published ones come of enlarging luma that was not rounded.
    found = np.mean(found, axis=0)
    np.testing.assert_allclose(found[0], db, atol=5e-3)
    np.testing.assert_allclose(found[1], share, atol=5e-4)


def aggd_samples(alpha, left, right, n, seed=0):
    rng = np.random.default_rng(seed)
    sizes = rng.gamma(1 / alpha, size=n) ** (1 / alpha)
    is_left = rng.random(n) < left / (left + right)
    return np.where(is_left, -left * sizes, right * sizes)


def naive_aggd(samples):
    alphas = np.arange(0.2, 10.0005, 0.001)
    moments = gamma(2 / alphas) ** 2 / (gamma(1 / alphas) * gamma(3 / alphas))
    left = np.sqrt(np.mean(samples[samples < 0] ** 2))
    right = np.sqrt(np.mean(samples[samples > 0] ** 2))
    r = left / right
    moment = np.mean(np.abs(samples)) ** 2 / np.mean(samples**2)
    moment *= (r**3 + 1) * (r + 1) / (r**2 + 1) ** 2
    alpha = alphas[np.argmin((moments - moment) ** 2)]
    factor = np.sqrt(gamma(1 / alpha) / gamma(3 / alpha))
    return alpha, left * factor, right * factor


def naive_features(image, window):
    """The features of a grey float image, block by block."""
    rows, columns = image.shape[0] // 96, image.shape[1] // 96
    image = image[: rows * 96, : columns * 96]
    output, deviations = [[] for _ in range(rows * columns)], []
    for size in (96, 48):
        mean = scipy.ndimage.correlate(image, window, mode="nearest")
        square = scipy.ndimage.correlate(image**2, window, mode="nearest")
        deviation = np.sqrt(np.abs(square - mean**2))
        difference = image - mean
        difference[np.abs(difference) < 1e-9] = 0.0  # Equal but for rounding.
        normalized = difference / (deviation + 1)
        for i in range(rows * columns):
            top, left = i // columns * size, i % columns * size
            where = slice(top, top + size), slice(left, left + size)
            block = normalized[where]
            if size == 96:
                deviations.append(deviation[where].mean())
            alpha, low, high = naive_aggd(block)
            output[i] += [alpha, (low + high) / 2]
            for shift in ((0, 1), (1, 0), (1, 1), (1, -1)):
                rolled = np.roll(block, shift, axis=(0, 1))
                alpha, low, high = naive_aggd(block * rolled)
                mean_of_pairs = (high - low) * gamma(2 / alpha)
                mean_of_pairs /= gamma(1 / alpha)
                output[i] += [alpha, mean_of_pairs, low, high]
        image = imresize(image, 0.5)
    return np.array(output), np.array(deviations)


class TestNIQE:
    def test_aggd(self):
        parameters = np.array(
            [[0.5, 1.0, 1.0], [0.8, 2.0, 0.5], [2.0, 0.3, 0.4], [4.0, 5.0, 9.0]]
        )
        samples = [aggd_samples(*p, 200_000) for p in parameters]
        found = np.stack(image_quality._fit_aggd(np.array(samples)), axis=1)
        np.testing.assert_allclose(found[:, :3], parameters, rtol=0.03)
        for p, line in zip(samples, found):
            # It is what makes the mean of the fit that of the samples.
            mean = (line[2] - line[1]) * line[3]
            np.testing.assert_allclose(mean, p.mean(), atol=0.02 * p.std())

    def test_aggd_at_the_ends_of_the_table(self):
        samples = np.zeros((2, 10_000))
        samples[0, :2] = -1.0, 1.0
        samples[1] = np.tile([-1.0, 1.0], 5000)
        alpha = image_quality._fit_aggd(samples)[0]
        np.testing.assert_array_equal(alpha, [0.2, 10.0])

    def test_features(self, chelsea, model):
        grey = luma(chelsea)
        expected, _ = naive_features(grey.astype(float), model.window)
        found = niqe_features(chelsea, window=model.window)
        assert found.shape == (6, 36)
        np.testing.assert_allclose(found, expected, rtol=1e-8)
        np.testing.assert_array_equal(
            niqe_features(grey, window=model.window), found
        )

    def test_default_window(self, chelsea):
        x = np.arange(7) - 3
        window = np.exp(-(x[:, None] ** 2 + x**2) / (2 * (7 / 6) ** 2))
        window /= window.sum()
        np.testing.assert_allclose(
            niqe_features(chelsea), niqe_features(chelsea, window=window)
        )
        shipped = image_quality._default_model()
        np.testing.assert_allclose(shipped.window, window)

    def test_cut_and_crop(self, chelsea):
        inner = chelsea[7:-7, 7:-7]
        np.testing.assert_array_equal(
            niqe_features(chelsea, crop=7), niqe_features(inner)
        )
        assert niqe(chelsea, crop=7) == niqe(inner) != niqe(chelsea)
        cut = chelsea[:-1, :-1]
        np.testing.assert_array_equal(
            niqe_features(cut), niqe_features(cut[:96, :192])
        )

    def test_distance(self, chelsea, model):
        features = niqe_features(chelsea, window=model.window)
        covariance = (model.covariance + np.cov(features, rowvar=False)) / 2
        gap = features.mean(axis=0) - model.mean
        expected = np.sqrt(gap @ np.linalg.pinv(covariance) @ gap)
        np.testing.assert_allclose(niqe(chelsea, model), expected)

    def test_one_block(self, chelsea):
        shipped = image_quality._default_model()
        gap = niqe_features(chelsea[:96, :96])[0] - shipped.mean
        expected = np.sqrt(gap @ np.linalg.inv(shipped.covariance / 2) @ gap)
        np.testing.assert_allclose(niqe(chelsea[:96, :96]), expected, rtol=1e-6)

    def test_flat_parts(self, chelsea):
        image = chelsea.copy()
        # As far as windows of the blocks in the middle reach.
        image[:, 80:208] = 200
        features = niqe_features(image)
        flat = np.isnan(features).any(axis=1)
        np.testing.assert_array_equal(flat, [0, 1, 0, 0, 1, 0])
        np.testing.assert_array_equal(features[1, ::18], [0.2, 0.2])
        whole = features[~flat]
        shipped = image_quality._default_model()
        covariance = (shipped.covariance + np.cov(whole, rowvar=False)) / 2
        gap = np.nanmean(features, axis=0) - shipped.mean
        expected = np.sqrt(gap @ np.linalg.pinv(covariance) @ gap)
        np.testing.assert_allclose(niqe(image), expected)

    @pytest.mark.parametrize("slope", [0, 1])
    def test_flat_and_regular_images(self, slope):
        ramp = slope * np.arange(100)[:, None, None]
        image = np.broadcast_to(77 + ramp, (100, 200, 3)).astype("uint8")
        assert np.isnan(niqe_features(image)).any(axis=1).all()
        with pytest.raises(ValueError, match="Flat parts, ramps.*100, 200, 3"):
            niqe(image)

    @pytest.mark.parametrize(
        "name", ["astronaut", "camera", "chelsea", "coffee", "rocket"]
    )
    def test_distortions_raise_it(self, name):
        image = getattr(photographs, name)()[:288, :384]
        clean = niqe(image)
        assert 1.0 < clean < 9.0
        sigma = (1.5, 1.5) + (0,) * (image.ndim - 2)
        blurred = scipy.ndimage.gaussian_filter(image, sigma)
        assert niqe(blurred) > clean + 1.0
        assert niqe(distorted(image, 25)) > clean + 1.0

    def test_shipped_model(self):
        shipped = image_quality._default_model()
        np.testing.assert_array_equal(shipped.covariance, shipped.covariance.T)
        assert np.linalg.eigvalsh(shipped.covariance).min() > 0.0
        # Else values that people have noted would no longer compare.
        np.testing.assert_allclose(
            niqe(photographs.coffee()), 5.03066, rtol=1e-4
        )

    def test_blocks_of_fit(self, chelsea):
        images = [chelsea, photographs.coffee()[:200]]
        pairs = [
            naive_features(luma(x).astype(float), image_quality._niqe_window())
            for x in images
        ]
        for sharpness in (0.0, 0.75):
            kept = [f[d > sharpness * d.max()] for f, d in pairs]
            assert [len(f) for f in kept] == [
                len(niqe_features(x, sharpness=sharpness)) for x in images
            ]
            kept = np.concatenate(kept)
            fitted = fit_niqe(iter(images), sharpness)
            np.testing.assert_allclose(fitted.mean, kept.mean(axis=0))
            np.testing.assert_allclose(
                fitted.covariance, np.cov(kept, rowvar=False), atol=1e-9
            )
        assert len(kept) < 18

    def test_default_sharpness(self):
        contrasts = np.repeat([50.0, 36.5, 50.0, 38.5], 96)
        image = distorted(np.full((96, 4 * 96), 128), contrasts)
        counts = [
            len(niqe_features(image, sharpness=s)) for s in (0.71, 0.75, 0.79)
        ]
        assert counts == [4, 3, 2]
        np.testing.assert_array_equal(
            fit_niqe([image]).mean, fit_niqe([image], 0.75).mean
        )

    def test_files(self, chelsea, model, tmp_path):
        path = tmp_path / "model.npz"
        model.save(path)
        first = path.read_bytes()
        with np.load(path) as file:
            shapes = {name: file[name].shape for name in file}
        assert shapes == {
            "mu_pris_param": (1, 36),
            "cov_pris_param": (36, 36),
            "gaussian_window": (7, 7),
        }
        loaded = NIQEModel.load(str(path))
        for field in dataclasses.fields(model):
            np.testing.assert_array_equal(
                getattr(loaded, field.name), getattr(model, field.name)
            )
        assert niqe(chelsea, path) == niqe(chelsea, model) != niqe(chelsea)
        loaded.save(path)
        assert path.read_bytes() == first

    def test_broken_files(self, model, tmp_path):
        path = tmp_path / "model.npz"
        match = "must be an .npz file.*mu_pris_param.*Received: .*model.npz"
        model.save(path)
        whole = path.read_bytes()
        contents = [b"", b"text", whole[:-99], whole[:500] + whole[600:]]
        for content in contents:
            path.write_bytes(content)
            with pytest.raises(ValueError, match=match):
                NIQEModel.load(path)
        with open(path, "wb") as file:
            np.save(file, np.zeros(3))
        with pytest.raises(ValueError, match=match):
            niqe(noise(96, 96), path)
        arrays = {
            "mu_pris_param": np.zeros(36),
            "cov_pris_param": np.eye(36),
            "gaussian_window": np.full((7, 7), 1 / 49),
        }
        for name in arrays:
            np.savez(path, **{k: v for k, v in arrays.items() if k != name})
            with pytest.raises(ValueError, match=f"{match}.*{name}"):
                NIQEModel.load(path)
            broken = {**arrays, name: arrays[name][1:]}
            np.savez(path, **broken)
            with pytest.raises(ValueError, match="NIQE model.*shape .*shape"):
                NIQEModel.load(path)
            broken[name] = arrays[name].copy()
            broken[name].flat[5] = np.nan
            np.savez(path, **broken)
            with pytest.raises(ValueError, match="must be finite"):
                NIQEModel.load(path)
            broken[name] = arrays[name].astype("U3")
            np.savez(path, **broken)
            with pytest.raises(ValueError, match="numbers of shape"):
                NIQEModel.load(path)
        with pytest.raises(FileNotFoundError):
            NIQEModel.load(tmp_path / "none.npz")

    @pytest.mark.parametrize(
        "call, match",
        [
            (lambda: niqe(noise(96, 96), 3), "`model` must be.*model=3"),
            (lambda: niqe_features(noise(96, 96), sharpness=1.0), "sharpness="),
            (lambda: fit_niqe([noise(96, 192)], -0.1), "sharpness=-0.1"),
            (lambda: fit_niqe([noise(96, 96)]), "two sharp.*Received: 1"),
            (lambda: fit_niqe([]), "Received: 0"),
            (lambda: niqe(noise(95, 200)), "96x96 pixels must remain.*95x200"),
            (lambda: niqe(noise(200, 100, 3), crop=3), "crop=3.*200x100"),
        ],
    )
    def test_bad_arguments(self, call, match):
        with pytest.raises(ValueError, match=match):
            call()


GOOD = np.zeros((100, 120, 3), "uint8")


@pytest.mark.parametrize(
    "image, crop, match",
    [
        (GOOD / 255.0, 0, "must be a uint8 image.*Received: float64"),
        (GOOD[0, 0], 0, r"shape \(3,\)"),
        (GOOD[None], 0, r"shape \(1, 100, 120, 3\)"),
        (GOOD[..., :2], 0, r"shape \(100, 120, 2\)"),
        (GOOD[:0], 0, r"shape \(0, 120, 3\)"),
        (GOOD, -1, "`crop` must be an int >= 0. Received: crop=-1"),
        (GOOD, 1.5, "crop=1.5"),
        (GOOD, 50, "must remain.*Received: crop=50, an image of 100x120"),
        (GOOD, 10**6, "crop=1000000"),
    ],
)
def test_bad_images(image, crop, match):
    for arguments in (
        (psnr, image, image),
        (ssim, image, image),
        (niqe, image),
    ):
        function, *images = arguments
        with pytest.raises(ValueError, match=match):
            function(*images, crop=crop)


def test_what_must_remain():
    a, b = noise(13, 20), noise(13, 20)
    assert math.isfinite(psnr(a, b, 6)) and math.isfinite(ssim(a, b, 1))
    with pytest.raises(ValueError, match="11x11 pixels must remain.*crop=2"):
        ssim(a, b, 2)
    with pytest.raises(ValueError, match="1x1 pixels must remain.*crop=7"):
        psnr(a, b, 7)
    for function in (psnr, ssim):
        with pytest.raises(ValueError, match=r"one shape.*\(13, 20\).*19\)"):
            function(a, b[:, 1:])
        with pytest.raises(ValueError, match="one shape"):
            function(a, b[..., None])


METRICS = {
    "psnr": (PSNR(crop=2), lambda a, b: psnr(a, b, 2)),
    "psnr_rgb": (PSNR(y=False), lambda a, b: psnr(a, b, y=False)),
    "ssim": (SSIM(crop=3), lambda a, b: ssim(a, b, 3)),
    "ssim_rgb": (SSIM(y=False), lambda a, b: ssim(a, b, y=False)),
    "niqe": (NIQE(crop=1), lambda a, b: niqe(b, crop=1)),
}
each_metric = pytest.mark.parametrize("name", METRICS)
BATCHES = noise(3, 100, 98, 3), noise(3, 100, 98, 3)


def clone(metric):
    config = keras.saving.serialize_keras_object(metric)
    return keras.saving.deserialize_keras_object(config)


@ignore_torch_copies
class TestMetrics:
    @each_metric
    def test_mean(self, name):
        metric, function = METRICS[name]
        metric = clone(metric)
        values = [function(a, b) for a, b in zip(*BATCHES)]
        metric.update_state(*(x[:2] for x in BATCHES))
        metric.update_state(*(ops.convert_to_tensor(x[2:]) for x in BATCHES))
        np.testing.assert_allclose(
            float(metric.result()), np.mean(values), rtol=1e-5
        )
        weights = np.array([1.0, 0.0, 2.5])
        metric.reset_state()
        metric.update_state(*BATCHES, sample_weight=weights)
        np.testing.assert_allclose(
            float(metric.result()),
            np.average(values, weights=weights),
            rtol=1e-5,
        )

    @pytest.mark.parametrize(
        "name, dtype",
        [
            *((name, "float32") for name in METRICS),
            ("psnr", "float16"),
            ("psnr", "bfloat16"),
        ],
    )
    def test_floats(self, name, dtype):
        metric = clone(METRICS[name][0])
        metric.update_state(*BATCHES)
        expected = float(metric.result())
        metric.reset_state()
        # A fine grid, so that bfloat16 is exact but for its own rounding.
        floats = [x / 127.5 - 1.0 for x in BATCHES]
        tensors = [ops.cast(x, dtype) for x in floats]
        metric.update_state(*tensors)
        tolerance = 1e-2 if dtype == "bfloat16" else 1e-5
        np.testing.assert_allclose(
            float(metric.result()), expected, rtol=tolerance
        )

    def test_floats_are_rounded_and_clipped(self):
        floats = np.array([-1.3, -1.0, -0.9963, -0.9958, 0.0, 1.0, 7.0])
        levels = np.array([0, 0, 0, 1, 128, 255, 255], "uint8")
        metric = PSNR()
        shape = 1, 7, 1, 1
        metric.update_state(levels.reshape(shape), floats.reshape(shape))
        assert float(metric.result()) == math.inf

    def test_niqe_needs_no_truth(self, model):
        for images in (None, BATCHES[0][:, :5]):
            metric = NIQE(model)
            metric.update_state(images, BATCHES[1])
            values = [niqe(image, model) for image in BATCHES[1]]
            np.testing.assert_allclose(
                float(metric.result()), np.mean(values), rtol=1e-5
            )

    @each_metric
    def test_config(self, name):
        metric = METRICS[name][0]
        config = clone(metric).get_config()
        assert config == metric.get_config()
        other = type(metric)(crop=9, name="other", dtype="float16")
        assert clone(other).get_config() == other.get_config() != config

    def test_models_in_config(self, chelsea, model, tmp_path):
        path = tmp_path / "model.npz"
        model.save(path)
        for given_model in (model, path, str(path)):
            metric = clone(NIQE(given_model))
            metric.update_state(None, chelsea[None])
            np.testing.assert_allclose(
                float(metric.result()), niqe(chelsea, model), rtol=1e-5
            )

    def test_in_evaluate(self):
        identity = keras.Sequential(
            [keras.Input((100, 98, 3)), keras.layers.Identity()]
        )
        identity.compile(
            loss="mse", metrics=[PSNR(), SSIM(), NIQE()], run_eagerly=True
        )
        a, b = (np.float32(x / 127.5 - 1.0) for x in BATCHES)
        found = identity.evaluate(
            a, b, batch_size=2, verbose=0, return_dict=True
        )
        pairs = list(zip(*BATCHES))
        for name, values in {
            "psnr": [psnr(*pair) for pair in pairs],
            "ssim": [ssim(*pair) for pair in pairs],
            "niqe": [niqe(x) for x in BATCHES[0]],
        }.items():
            np.testing.assert_allclose(found[name], np.mean(values), rtol=1e-4)

    @pytest.mark.skipif(BACKEND == "torch", reason="torch has no graphs")
    @pytest.mark.parametrize("name", ["psnr", "ssim", "niqe"])
    def test_graphs(self, name):
        identity = keras.Sequential(
            [keras.Input((100, 98, 3)), keras.layers.Identity()]
        )
        metric = clone(METRICS[name][0])
        identity.compile(loss="mse", metrics=[metric])
        x = np.zeros((1, 100, 98, 3), "float32")
        with pytest.raises(ValueError, match="run_eagerly=True"):
            identity.evaluate(x, x, verbose=0)

    def test_keras_tensors(self):
        x = keras.KerasTensor((1, 100, 98, 3))
        for metric in (PSNR(), NIQE()):
            with pytest.raises(ValueError, match="run_eagerly=True.*KerasT"):
                metric.update_state(x, x)

    @pytest.mark.parametrize(
        "images, match",
        [
            (GOOD, r"\(n, height, width, channels\).*shape \(100, 120, 3\)"),
            (GOOD[None].astype(int), "floats in.*dtype int"),
            (np.full((1, 100, 99, 3), np.nan), "must be finite"),
            (np.full((1, 100, 99, 3), np.inf), "must be finite"),
            (np.full((1, 100, 99, 2), 0, "uint8"), "must be a uint8 image"),
        ],
    )
    def test_bad_images(self, images, match):
        for metric in (PSNR(), SSIM(), NIQE()):
            with pytest.raises(ValueError, match=match):
                metric.update_state(images, images)

    def test_bad_arguments(self):
        with pytest.raises(ValueError, match="one shape"):
            PSNR().update_state(GOOD[None], GOOD[None, 1:])
        with pytest.raises(ValueError, match="one shape"):
            SSIM().update_state(np.stack([GOOD] * 2), GOOD[None])
        for metric in (PSNR, SSIM, NIQE):
            with pytest.raises(ValueError, match="crop=-1"):
                metric(crop=-1)
        with pytest.raises(ValueError, match="`model` must be.*model=7"):
            NIQE(7)


def test_tool(tmp_path, capsys):
    from PIL import Image

    from tools import fit_niqe as tool

    folder, output = tmp_path / "images", tmp_path / "model.npz"
    os.mkdir(folder)
    arguments = [str(folder), "--output", str(output)]
    (folder / "notes.txt").write_text("no image")
    with pytest.raises(ValueError, match=r"\.jpg.*Received: .*images"):
        tool.main(arguments)
    images = [photographs.chelsea(), photographs.camera()[:200]]
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i}.png")
    blocks = [
        len(niqe_features(x, sharpness=0.5))
        for x in (images[0], np.stack([images[1]] * 3, axis=-1))
    ]
    assert tool.main([*arguments, "--sharpness", "0.5"]) == (2, sum(blocks))
    assert f"2 images, {sum(blocks)} blocks" in capsys.readouterr().out
    first = output.read_bytes()
    tool.main([*arguments, "--sharpness", "0.5"])
    assert output.read_bytes() == first
    assert math.isfinite(niqe(images[0], output))
