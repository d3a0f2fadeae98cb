"""Metrics, measured while a network trains."""

import math

import keras
import numpy as np

from keras_san import metrics
from keras_san.callbacks.samples import check_draws
from keras_san.checks import check_count
from keras_san.metrics import extractors, image_quality


class Evaluation(keras.callbacks.Callback):
    """Measures Inception score, FID and KID while a GAN trains, and at its end.

    It adds `is`, `is_std` (over `splits` parts of the samples), `fid`, `kid`,
    `samples` and `real_samples` (the numbers of generated and real images;
    KID uses the first 10,000 of each) and `splits` to the logs of an epoch,
    where callbacks behind it, the history and the progress bar find them.
    Under any other extractor than the Inception network the names
    begin with its label, as in `judge_fid`, or with `custom_` if it has none:
    such values do not compare with published ones.

    Args:
        images: Real images, uint8, or floats in [-1, 1]. Of these
            `num_images` are drawn at random and looked at, now, or all if
            there are fewer.
        extractor: What `keras_san.metrics.extractors.get` takes.
        every: Int, epochs from one evaluation to the next. The last epoch
            is evaluated, too.
        num_images: Int >= 10, or with `draw` >= 2, how many images are
            generated each time.
        seed: Int for the choice of real images and for the latent vectors,
            which are the same each time.
        draw: `None` for a `keras_san.GAN`, or a callable from the model to an
            iterable of arrays of generated images, `num_images` in all.

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
        """Measures once.

        Args:
            gan: A `keras_san.GAN`, or whatever `draw` takes.

        Returns:
            A dict of floats, named as in the logs.
        """
        self._score.reset_state()
        self._fid.reset_state(keep_real=True)
        self._kid.reset_state(keep_real=True)
        for images in self.draw(gan):
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


class ImageQuality(keras.callbacks.Callback):
    """Measures PSNR, SSIM and NIQE of what a generator makes of images.

    It adds `psnr`, `ssim` and `niqe`, means over the images, to the logs of
    an epoch, where callbacks behind it, the history and the progress bar find
    them. The model is a `keras_san.PairedGAN` or its generator alone. While
    it puts out an image without any structure, `niqe` is NaN.

    Args:
        inputs: List of uint8 arrays `(height, width, channels)`.
        targets: List of uint8 arrays, what should be made of the inputs.
        crop: Int, the pixels at each border that are not looked at.
        every: Int, epochs from one evaluation to the next. The last epoch
            is evaluated, too.
        niqe_model: What `keras_san.metrics.image_quality.niqe` takes.

    Raises:
        ValueError: if there are no images, or not as many of both, or `every`
            is below 1, or a target cannot be measured, as it is too small.
    """

    def __init__(self, inputs, targets, crop=0, every=1, niqe_model=None):
        super().__init__()
        check_count("every", every)
        if not 0 < len(inputs) == len(targets):
            raise ValueError(
                "Give as many inputs as targets, and at least one. Received: "
                f"{len(inputs)} inputs and {len(targets)} targets"
            )
        for index, target in enumerate(targets):
            # Now: at the end of an epoch it would cost that epoch.
            try:
                image_quality.ssim(target, target, crop)
                image_quality.niqe(target, niqe_model, crop)
            except ValueError as error:
                raise ValueError(
                    f"Target {index} cannot be measured: {error}"
                ) from error
        self.inputs = inputs
        self.targets = targets
        self.crop = crop
        self.every = every
        self.niqe_model = niqe_model

    def on_epoch_end(self, epoch, logs=None):
        due = (epoch + 1) % self.every == 0
        last = epoch + 1 == (self.params or {}).get("epochs")
        if getattr(self.model, "is_chief", True) and (due or last):
            (logs if logs is not None else {}).update(self.evaluate(self.model))

    def evaluate(self, model):
        """Measures once.

        Args:
            model: A `keras_san.PairedGAN`, or a model from images to images.

        Returns:
            A dict of floats, named as in the logs.
        """
        values = []
        for image, target in zip(self.inputs, self.targets):
            made = enlarge(model, image)
            psnr = image_quality.psnr(target, made, self.crop)
            ssim = image_quality.ssim(target, made, self.crop)
            try:
                niqe = image_quality.niqe(made, self.niqe_model, self.crop)
            except ValueError:  # It is flat: all else has been checked.
                niqe = np.nan
            values.append([psnr, ssim, niqe])
        means = np.mean(values, axis=0)
        return dict(zip(("psnr", "ssim", "niqe"), map(float, means)))


def enlarge(model, image):
    """What a model makes of one image.

    Args:
        model: A `keras_san.PairedGAN`, or a model from images to images.
        image: uint8 array `(height, width, channels)`.

    Returns:
        A uint8 array.
    """
    make = getattr(model, "generate", model.predict_on_batch)
    # The first: under a strategy Keras makes one on each replica.
    made = make(image[None].astype("float32") / 127.5 - 1.0)[0]
    return np.clip(np.rint((made + 1.0) * 127.5), 0, 255).astype("uint8")


def _chunks(count, size=1000):
    """Slices that cover `range(count)`, so that memory stays bounded."""
    return [slice(i, min(i + size, count)) for i in range(0, count, size)]
