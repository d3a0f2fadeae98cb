"""Inception score, FID and KID while a GAN trains."""

import math

import keras
import numpy as np

from keras_san import metrics
from keras_san.callbacks.samples import check_draws
from keras_san.checks import check_count
from keras_san.metrics import extractors


class Evaluation(keras.callbacks.Callback):
    """Measures Inception score, FID and KID while a GAN trains, and at its end.

    It adds `is`, `is_std` (over `splits` parts of the samples), `fid`, `kid`,
    `samples` and `real_samples` (the numbers of generated and real images;
    KID uses the first 10,000 of each) and `splits` to the logs of an epoch,
    where later callbacks, the history and the progress bar find them. With
    any extractor other than the Inception network the names begin with its
    label, as in `judge_fid`, or with `custom_` if it has none: such values
    cannot be compared with published ones.

    Args:
        images: Real images, uint8, or floats in [-1, 1]. The constructor
            draws `num_images` of them at random, or takes all if there are
            fewer, and extracts their features.
        extractor: What `keras_san.metrics.extractors.get` takes.
        every: Int, epochs from one evaluation to the next. The last epoch
            is always evaluated.
        num_images: Int >= 10, or >= 2 with `draw`, how many images are
            generated each time.
        seed: Int for the choice of real images and for the latent vectors,
            which are the same each time.
        draw: `None` for a `keras_san.GAN`, or a callable from the model to an
            iterable of arrays of generated images, `num_images` in all.
            Floats beyond [-1, 1] are clipped, as in a picture: not every
            generator ends in tanh.

    Raises:
        ValueError: for an unknown extractor, a count below those above, or
            too few real images.
    """

    def __init__(
        self,
        images,
        extractor,
        every=1,
        num_images=10_000,
        seed=0,
        draw=None,
    ):
        super().__init__()
        check_count("every", every)
        check_count("num_images", num_images, least=2 if draw else 10)
        self.extractor = extractors.get(extractor)
        self.every = every
        self.num_images = num_images
        self.seed = seed
        self.draw = draw or self._draw
        self._label = getattr(self.extractor, "label", "custom_")
        # Of 5,000 samples each or a few more, as in the papers.
        self._score = metrics.InceptionScore(splits=max(1, num_images // 5000))
        self._fid = metrics.FrechetInceptionDistance()
        self._kid = metrics.KernelInceptionDistance()
        # Two in each block of KID.
        used = min(num_images, self._kid.max_samples)
        least = 2 * math.ceil(used / self._kid.block_size)
        if len(images) < least:
            raise ValueError(
                f"To evaluate with {num_images} generated images, at least "
                f"{least} real ones are needed. Received: {len(images)} images"
            )
        order = np.random.default_rng(seed).permutation(len(images))
        chosen = order[:num_images]
        for part in _chunks(len(chosen)):
            features, _ = self.extractor(images[chosen[part]])
            self._fid.update_state(features, real=True)
            self._kid.update_state(features, real=True)

    def on_train_begin(self, logs=None):
        if self.draw == self._draw:
            check_draws(self.model)

    def _draw(self, gan):
        for index, part in enumerate(_chunks(self.num_images)):
            yield gan.generate(
                part.stop - part.start, seed=(self.seed, index), batch_size=250
            )

    def on_epoch_end(self, epoch, logs=None):
        due = (epoch + 1) % self.every == 0
        last = epoch + 1 == (self.params or {}).get("epochs")
        if getattr(self.model, "is_chief", True) and (due or last):
            (logs if logs is not None else {}).update(self.evaluate(self.model))

    def evaluate(self, gan):
        """Measures all scores once.

        Args:
            gan: A `keras_san.GAN`, or whatever `draw` takes.

        Returns:
            A dict of floats, named as in the logs.
        """
        self._score.reset_state()
        self._fid.reset_state(keep_real=True)
        self._kid.reset_state(keep_real=True)
        for images in self.draw(gan):
            if images.dtype != "uint8":
                images = np.clip(images, -1.0, 1.0)
            features, logits = self.extractor(images)
            self._score.update_state(logits)
            self._fid.update_state(features)
            self._kid.update_state(features)
        score, fid = self._score.result(), self._fid.result()
        values = {
            "is": score["inception_score"],
            "is_std": score["inception_score_std"],
            "fid": fid["fid"],
            "kid": self._kid.result()["kid"],
            "samples": fid["generated_samples"],
            "real_samples": fid["real_samples"],
            "splits": score["splits"],
        }
        return {f"{self._label}{name}": v for name, v in values.items()}


def _chunks(count, size=1000):
    """Slices of bounded size that cover `range(count)`."""
    return [slice(i, min(i + size, count)) for i in range(0, count, size)]
