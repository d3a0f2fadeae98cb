"""Metrics of a set of generated images: Inception score, FID and KID.

The metrics compare the logits or the features that a classifier computes from
images. With an `extractor` they take images; without one they take the logits
or features themselves. They are NumPy in float64 on every backend.
"""

import warnings

import numpy as np

from keras_san.checks import check_count


class InceptionScore:
    """The Inception score, for classes that are clear and varied.

    `exp(mean KL(p(y|x) || mean p(y|x)))`, between 1 and the number of
    classes, higher is better: the classifier has to be sure of each image,
    and its classes have to vary. Samples are dealt to the splits in turn, and
    only sums are kept.

    Args:
        extractor: `None`, or a callable as `keras_san.metrics.extractors`
            has them, from images to `(features, logits)`.
        splits: Int >= 1. The score is the mean over that many parts of the
            samples.

    Raises:
        ValueError: for any other `splits`.

    Reference:
        [Salimans et al., 2016](https://arxiv.org/abs/1606.03498), section 4.
    """

    def __init__(self, extractor=None, splits=10):
        check_count("splits", splits)
        self.extractor = extractor
        self.splits = splits
        self.reset_state()

    def update_state(self, samples):
        """Adds samples.

        Args:
            samples: Images `(n, height, width, channels)` as the extractor
                takes them; without one, logits `(n, classes)`.

        Raises:
            ValueError: for anything else, and for NaN or infinity.
        """
        logits = _extract(self.extractor, samples, 1)
        log_p = logits - logits.max(axis=1, keepdims=True)
        log_p -= np.log(np.exp(log_p).sum(axis=1, keepdims=True))
        p = np.exp(log_p)
        if self._p is None:
            self._p = np.zeros((self.splits, p.shape[1]))
        _check_width(self._p, p)
        split = (self.samples + np.arange(len(p))) % self.splits
        np.add.at(self._p, split, p)
        np.add.at(self._p_log_p, split, (p * log_p).sum(axis=1))
        self.samples += len(p)

    def result(self):
        """The score of all samples since the last reset.

        Returns:
            A dict of `inception_score` (the mean over the splits),
            `inception_score_std` (their standard deviation), `samples` and
            `splits`.

        Raises:
            ValueError: if there are fewer samples than splits.
        """
        if self.samples < self.splits:
            raise ValueError(
                "Each split needs a sample. Call `update_state` with more of "
                f"them, or choose fewer splits. Received: {self.samples} "
                f"samples, splits={self.splits}"
            )
        counts = self.samples // self.splits + (
            np.arange(self.splits) < self.samples % self.splits
        )
        mean = self._p / counts[:, None]
        log_mean = np.log(np.where(mean > 0.0, mean, 1.0))
        entropy = -(mean * log_mean).sum(axis=1)
        scores = np.exp(self._p_log_p / counts + entropy)
        return {
            "inception_score": float(scores.mean()),
            "inception_score_std": float(scores.std()),
            "samples": self.samples,
            "splits": self.splits,
        }

    def reset_state(self):
        """Forgets all samples."""
        self.samples = 0
        self._p = None
        self._p_log_p = np.zeros(self.splits)


class FrechetInceptionDistance:
    """The Frechet Inception distance of generated from real images.

    `|m1 - m2|^2 + trace(C1 + C2 - 2 (C1 C2)^(1/2))`, the distance of Gaussians
    fitted to the features of both; at least 0, lower is better. It is biased:
    compare values only at equal numbers of samples. Mean and covariance are
    kept, not the samples.

    Args:
        extractor: `None`, or a callable as `keras_san.metrics.extractors`
            has them, from images to `(features, logits)`.

    Reference:
        [Heusel et al., 2017](https://arxiv.org/abs/1706.08500), Eq. 6.
    """

    def __init__(self, extractor=None):
        self.extractor = extractor
        self.reset_state()

    def update_state(self, samples, real=False):
        """Adds samples.

        Args:
            samples: Images `(n, height, width, channels)` as the extractor
                takes them; without one, features `(n, d)`.
            real: Boolean, whether they are real rather than generated.

        Raises:
            ValueError: for anything else, and for NaN or infinity.
        """
        features = _extract(self.extractor, samples, 0)
        (self._real if real else self._generated).add(features)

    def result(self):
        """The distance of all samples since the last reset.

        Returns:
            A dict of `fid`, `real_samples` and `generated_samples`.

        Raises:
            ValueError: if there are fewer than two samples of a kind, or
                their features differ in number.
        """
        real, generated = self._real, self._generated
        _check_both("FID", real.count, generated.count)
        _check_width(real.scatter, generated.scatter)
        features = len(real.mean)
        least = min(real.count, generated.count)
        if least <= features:
            warnings.warn(
                f"FID of {least} samples: the covariance of {features} "
                f"features has full rank only from {features + 1} samples "
                "on. The value is far too high, and means little.",
                stacklevel=2,
            )
        # The eigenvalues of C1 C2 are those of C1^(1/2) C2 C1^(1/2), which is
        # symmetric. Rounding makes some that are zero negative.
        first, second = real.covariance(), generated.covariance()
        values, vectors = np.linalg.eigh(first)
        root = (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T
        product = np.linalg.eigvalsh(root @ second @ root)
        trace = np.trace(first) + np.trace(second)
        trace -= 2.0 * np.sqrt(np.maximum(product, 0.0)).sum()
        distance = np.square(real.mean - generated.mean).sum() + trace
        return {
            "fid": max(0.0, float(distance)),
            "real_samples": real.count,
            "generated_samples": generated.count,
        }

    def reset_state(self, keep_real=False):
        """Forgets all samples; with `keep_real` the generated ones only."""
        if not keep_real:
            self._real = _Gaussian()
        self._generated = _Gaussian()


class KernelInceptionDistance:
    """The kernel Inception distance of generated from real images.

    The squared maximum mean discrepancy of features under the kernel
    `(xy / d + 1)^3`. It is unbiased, and so may be negative; lower is better.
    Samples are cut into blocks of equal size in the order in which they come,
    which should be random. The first `max_samples` of real and of generated
    images are kept and used.

    Args:
        extractor: `None`, or a callable as `keras_san.metrics.extractors`
            has them, from images to `(features, logits)`.
        block_size: Int >= 2, the largest number of real, and of generated,
            samples in a block.
        max_samples: Int >= 2, the largest number of each that is used.

    Raises:
        ValueError: for any other settings.

    Reference:
        [Binkowski et al., 2018](https://arxiv.org/abs/1801.01401), section 4;
        in blocks: [Zaremba et al., 2013](https://arxiv.org/abs/1307.1954).
    """

    def __init__(self, extractor=None, block_size=1000, max_samples=10_000):
        check_count("block_size", block_size, least=2)
        check_count("max_samples", max_samples, least=2)
        self.extractor = extractor
        self.block_size = block_size
        self.max_samples = max_samples
        self.reset_state()

    def update_state(self, samples, real=False):
        """Adds samples.

        Args:
            samples: Images `(n, height, width, channels)` as the extractor
                takes them; without one, features `(n, d)`.
            real: Boolean, whether they are real rather than generated.

        Raises:
            ValueError: for anything else, and for NaN or infinity.
        """
        kept = self._real if real else self._generated
        room = self.max_samples - sum(len(features) for features in kept)
        if room > 0:
            features = _extract(self.extractor, samples[:room], 0)
            _check_width((kept or [features])[0], features)
            kept.append(features.astype("float32"))

    def result(self):
        """The distance of the samples since the last reset.

        Returns:
            A dict of `kid` (the mean over the blocks), `kid_standard_error`
            (NaN for a single block), `blocks`, `real_samples` and
            `generated_samples`, the numbers of those that were used.

        Raises:
            ValueError: if there are fewer than two samples of a kind in a
                block, or their features differ in number.
        """
        real, generated = (
            np.concatenate(kept) if kept else np.zeros((0, 0))
            for kept in (self._real, self._generated)
        )
        counts = len(real), len(generated)
        blocks = -(-max(counts) // self.block_size)
        _check_both("KID", *counts, least=2 * max(1, blocks))
        _check_width(real, generated)
        values = np.array(
            [
                _squared_discrepancy(x, y)
                for x, y in zip(_split(real, blocks), _split(generated, blocks))
            ]
        )
        error = np.nan
        if blocks > 1:
            error = values.std(ddof=1) / np.sqrt(blocks)
        return {
            "kid": float(values.mean()),
            "kid_standard_error": float(error),
            "blocks": blocks,
            "real_samples": counts[0],
            "generated_samples": counts[1],
        }

    def reset_state(self, keep_real=False):
        """Forgets all samples; with `keep_real` the generated ones only."""
        if not keep_real:
            self._real = []
        self._generated = []


class _Gaussian:
    """Mean and scatter matrix of samples that come in batches."""

    def __init__(self):
        self.count = 0
        self.mean = np.zeros(0)
        self.scatter = np.zeros((0, 0))

    def add(self, features):
        if self.count == 0:
            self.mean = np.zeros(features.shape[1])
            self.scatter = np.zeros((features.shape[1],) * 2)
        _check_width(self.scatter, features)
        # Around the mean of the batch, then moved: differences of large sums
        # would cancel.
        mean = features.mean(axis=0)
        centred = features - mean
        total = self.count + len(features)
        step = mean - self.mean
        share = self.count * len(features) / total
        self.scatter += centred.T @ centred + share * np.outer(step, step)
        self.mean += step * len(features) / total
        self.count = total

    def covariance(self):
        return self.scatter / (self.count - 1)


def _split(samples, blocks):
    """Blocks that differ by one sample at most, the smaller ones first."""
    size, rest = divmod(len(samples), blocks)
    sizes = np.full(blocks, size)
    sizes[blocks - rest :] += 1
    return np.split(samples, np.cumsum(sizes)[:-1])


def _squared_discrepancy(x, y):
    x, y = x.astype("float64"), y.astype("float64")

    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1.0) ** 3

    def mean_of_pairs(a):
        n, values = len(a), kernel(a, a)
        return (values.sum() - np.trace(values)) / (n * (n - 1))

    return mean_of_pairs(x) + mean_of_pairs(y) - 2.0 * kernel(x, y).mean()


def _extract(extractor, samples, which):
    """Features (`which` 0) or logits (1) of samples, as a float64 matrix."""
    if extractor is not None:
        samples = extractor(samples)[which]
    array = np.asarray(samples, "float64")
    kind = ("features", "logits")[which]
    if array.ndim != 2 or 0 in array.shape:
        advice = "" if extractor else " To pass images, give an `extractor`."
        raise ValueError(
            f"The samples must be {kind} of shape (n, number of them)."
            f"{advice} Received: shape {array.shape}"
        )
    if not np.all(np.isfinite(array)):
        raise ValueError(
            f"The {kind} hold NaN or infinity: the images or the extractor "
            f"are broken. Received: {np.sum(~np.isfinite(array))} such "
            f"values of {array.size}"
        )
    return array


def _check_width(before, now):
    if before.shape[1] != now.shape[1]:
        raise ValueError(
            "All samples must come from one extractor. Received: "
            f"{before.shape[1]} and {now.shape[1]} values a sample"
        )


def _check_both(name, real, generated, least=2):
    if min(real, generated) < least:
        raise ValueError(
            f"{name} needs at least {least} real and {least} generated "
            "samples: call `update_state` with both, the first with "
            f"`real=True`. Received: {real} real and {generated} generated"
        )
