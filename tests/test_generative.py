import importlib
import sys
import types
import warnings

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from keras_san.metrics import (
    FrechetInceptionDistance,
    InceptionScore,
    KernelInceptionDistance,
)

RNG = np.random.default_rng(0)


def correlated(n, d, shift=0.0, seed=0):
    rng = np.random.default_rng(seed)
    mixing = np.random.default_rng(1).normal(size=(d, d)) / np.sqrt(d)
    return (rng.normal(size=(n, d)) @ mixing + shift).astype("float32")


def feed(metric, array, sizes=(7, 1, 50), **kwargs):
    """Updates a metric in batches of changing sizes."""
    start = 0
    while start < len(array):
        for size in sizes:
            if start < len(array):
                metric.update_state(array[start : start + size], **kwargs)
            start += size
    return metric


@pytest.fixture(scope="module")
def tfgan():
    """TF-GAN's own metrics, without its `__init__`, which does not import."""
    pytest.importorskip("tensorflow", reason="compared with TF-GAN")
    spec = importlib.util.find_spec("tensorflow_gan")
    root = spec.submodule_search_locations[0]
    names = ("tensorflow_gan", "tensorflow_gan.python")
    for name in names:
        package = types.ModuleType(name)
        package.__path__ = [
            root + name.removeprefix(names[0]).replace(".", "/")
        ]
        sys.modules[name] = package
    # With it Inception is loaded; its import needs what setuptools has lost.
    hub = "tensorflow_hub"
    before = sys.modules.get(hub)
    sys.modules[hub] = types.ModuleType(hub)
    # What they import warns of its own future.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = importlib.import_module(
            "tensorflow_gan.python.eval.classifier_metrics"
        )
    # Else `import tensorflow_gan` would find these empty packages.
    for name in [n for n in sys.modules if n.startswith(names[0])]:
        del sys.modules[name]
    del sys.modules[hub]
    if before is not None:
        sys.modules[hub] = before
    return module


class TestInceptionScore:
    def test_agrees_with_tfgan(self, tfgan):
        logits = 3.0 * RNG.normal(size=(400, 10)).astype("float32")
        result = feed(InceptionScore(splits=1), logits).result()
        expected = tfgan.classifier_score_from_logits(logits).numpy()
        assert expected > 2.0
        np.testing.assert_allclose(
            result["inception_score"], expected, rtol=1e-5
        )
        assert result["inception_score_std"] == 0.0
        assert (result["samples"], result["splits"]) == (400, 1)

    def test_splits(self):
        logits = 3.0 * RNG.normal(size=(23, 5))
        p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        scores = []
        for split in range(4):
            part = p[split::4]
            kl = part * np.log(part / part.mean(axis=0))
            scores.append(np.exp(kl.sum(axis=1).mean()))
        result = feed(InceptionScore(splits=4), logits).result()
        np.testing.assert_allclose(result["inception_score"], np.mean(scores))
        np.testing.assert_allclose(
            result["inception_score_std"], np.std(scores)
        )
        assert result["splits"] == 4

    def test_bounds(self):
        sure = np.eye(10)[np.arange(1000) // 10 % 10] * 2000.0
        score = feed(InceptionScore(), sure).result()["inception_score"]
        np.testing.assert_allclose(score, 10.0)
        same = np.tile(RNG.normal(size=(1, 10)), (50, 1))
        score = feed(InceptionScore(), same).result()["inception_score"]
        np.testing.assert_allclose(score, 1.0)

    def test_reset(self):
        metric = InceptionScore(splits=2)
        metric.update_state(RNG.normal(size=(9, 3)))
        metric.reset_state()
        logits = RNG.normal(size=(4, 5))
        metric.update_state(logits)
        fresh = InceptionScore(splits=2)
        fresh.update_state(logits)
        assert metric.result() == fresh.result()

    def test_too_few(self):
        metric = InceptionScore(splits=5)
        metric.update_state(np.zeros((4, 3)))
        with pytest.raises(ValueError, match="Received: 4 samples, splits=5"):
            metric.result()
        with pytest.raises(ValueError, match="splits=0"):
            InceptionScore(splits=0)


class TestFID:
    def test_agrees_with_tfgan(self, tfgan):
        real = correlated(700, 20, seed=2)
        generated = 1.3 * correlated(900, 20, 0.2, seed=3)
        metric = feed(FrechetInceptionDistance(), real, real=True)
        result = feed(metric, generated, sizes=(31,)).result()
        expected = tfgan.frechet_classifier_distance_from_activations(
            real, generated
        ).numpy()
        assert expected > 0.1
        np.testing.assert_allclose(result["fid"], expected, rtol=1e-4)
        assert result["real_samples"] == 700
        assert result["generated_samples"] == 900

    @settings(max_examples=20, deadline=None)
    @given(st.integers(2, 8), st.integers(0, 1000), st.floats(0.1, 1e3))
    def test_is_that_of_scipy(self, d, seed, offset):
        rng = np.random.default_rng(seed)
        real = rng.normal(size=(50, d)) @ rng.normal(size=(d, d)) + offset
        generated = rng.normal(size=(60, d)) @ rng.normal(size=(d, d)) + offset
        metric = feed(FrechetInceptionDistance(), real, real=True)
        result = feed(metric, generated, sizes=(1, 9)).result()
        c1, c2 = np.cov(real.T), np.cov(generated.T)
        difference = real.mean(axis=0) - generated.mean(axis=0)
        expected = difference @ difference + np.trace(
            c1 + c2 - 2.0 * scipy.linalg.sqrtm(c1 @ c2).real
        )
        np.testing.assert_allclose(
            result["fid"], expected, rtol=1e-5, atol=1e-8
        )

    def test_of_itself_is_zero(self):
        features = correlated(100, 10)
        metric = feed(FrechetInceptionDistance(), features, real=True)
        fid = feed(metric, features).result()["fid"]
        np.testing.assert_allclose(fid, 0.0, atol=1e-9)

    def test_too_few_samples_for_the_rank(self):
        metric = FrechetInceptionDistance()
        metric.update_state(correlated(30, 20), real=True)
        metric.update_state(correlated(20, 20))
        with pytest.warns(UserWarning, match="20 samples.*from 21 samples"):
            metric.result()
        metric.update_state(correlated(1, 20, seed=5))
        metric.result()  # 21 are enough.

    def test_reset(self):
        real, generated = correlated(30, 4), correlated(30, 4, 1.0, seed=4)
        metric = FrechetInceptionDistance()
        metric.update_state(real, real=True)
        metric.update_state(generated)
        before = metric.result()
        metric.reset_state(keep_real=True)
        metric.update_state(generated)
        assert metric.result() == before
        metric.reset_state()
        metric.update_state(generated)
        with pytest.raises(ValueError, match="0 real and 30 generated"):
            metric.result()

    def test_memory_is_bounded(self):
        metric = FrechetInceptionDistance()
        metric.update_state(np.zeros((1000, 3)))
        sizes = [np.size(v) for v in vars(metric._generated).values()]
        assert max(sizes) == 9


class TestKID:
    @pytest.mark.parametrize("count", [600, 500, 150])
    def test_agrees_with_tfgan(self, tfgan, count):
        import tensorflow as tf

        real = correlated(count, 20, seed=2)
        generated = 1.3 * correlated(count, 20, 0.2, seed=3)
        metric = KernelInceptionDistance(block_size=200)
        feed(metric, real, real=True)
        result = feed(metric, generated).result()
        mean, error = tfgan.kernel_classifier_distance_and_std_from_activations(
            *map(tf.constant, (real, generated)), max_block_size=200
        )
        np.testing.assert_allclose(result["kid"], mean.numpy(), rtol=1e-3)
        if count > 200:
            np.testing.assert_allclose(
                result["kid_standard_error"], error.numpy(), rtol=1e-3
            )
        assert result["blocks"] == -(-count // 200)
        assert np.isnan(result["kid_standard_error"]) == (count == 150)

    def test_is_unbiased(self):
        """The mean for samples from one distribution is zero."""
        metric = KernelInceptionDistance(block_size=20, max_samples=4000)
        feed(metric, correlated(4000, 5, seed=6), (500,), real=True)
        result = feed(metric, correlated(4000, 5, seed=7), (500,)).result()
        assert abs(result["kid"]) < 3.0 * result["kid_standard_error"]
        shifted = KernelInceptionDistance(block_size=20, max_samples=4000)
        feed(shifted, correlated(4000, 5, seed=6), (500,), real=True)
        feed(shifted, correlated(4000, 5, 0.5, seed=7), (500,))
        result = shifted.result()
        assert result["kid"] > 10.0 * result["kid_standard_error"]

    def test_uses_the_first_samples_only(self):
        real, generated = correlated(30, 4), correlated(30, 4, 1.0, seed=4)
        metric = KernelInceptionDistance(max_samples=20)
        feed(metric, real, real=True)
        feed(metric, generated)
        result = metric.result()
        assert result["real_samples"] == result["generated_samples"] == 20
        first = KernelInceptionDistance()
        first.update_state(real[:20], real=True)
        first.update_state(generated[:20])
        assert result["kid"] == first.result()["kid"]

    def test_reset(self):
        real, generated = correlated(30, 4), correlated(30, 4, 1.0, seed=4)
        metric = KernelInceptionDistance()
        metric.update_state(real, real=True)
        metric.update_state(generated)
        before = metric.result()["kid"]
        metric.reset_state(keep_real=True)
        metric.update_state(generated)
        assert metric.result()["kid"] == before
        metric.reset_state()
        with pytest.raises(ValueError, match="0 real and 0 generated"):
            metric.result()

    def test_bad_settings(self):
        with pytest.raises(ValueError, match="block_size=1"):
            KernelInceptionDistance(block_size=1)
        with pytest.raises(ValueError, match="max_samples=1.5"):
            KernelInceptionDistance(max_samples=1.5)


@pytest.mark.parametrize(
    "metric",
    [InceptionScore, FrechetInceptionDistance, KernelInceptionDistance],
)
class TestAll:
    def test_bad_samples(self, metric):
        with pytest.raises(ValueError, match="give an `extractor`.*3, 3"):
            metric().update_state(np.zeros((2, 3, 3, 1)))
        with pytest.raises(ValueError, match="2 such values of 6"):
            metric().update_state([[0.0, np.nan, 1.0], [0.0, 1.0, np.inf]])
        found = metric()
        found.update_state(np.zeros((5, 4)))
        with pytest.raises(ValueError, match="4 and 3 values"):
            found.update_state(np.zeros((5, 3)))

    def test_extractor(self, metric):
        images = RNG.uniform(-1, 1, (40, 2, 2, 1))

        def extractor(images):
            flat = images.reshape(len(images), -1)
            return flat[:, :3], flat * 5.0

        by_images, by_arrays = metric(extractor), metric()
        with_real = [{}] if metric is InceptionScore else [{"real": True}, {}]
        for kwargs in with_real:
            by_images.update_state(images, **kwargs)
            which = 1 if metric is InceptionScore else 0
            by_arrays.update_state(extractor(images)[which], **kwargs)
            images = images[::-1] ** 2
        np.testing.assert_equal(by_images.result(), by_arrays.result())
