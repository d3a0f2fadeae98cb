"""PSNR, SSIM and NIQE while a generator trains."""

import keras
import numpy as np

from keras_san.checks import check_count
from keras_san.metrics import image_quality


class ImageQuality(keras.callbacks.Callback):
    """Measures PSNR, SSIM and NIQE of the images that a generator makes.

    It adds `psnr`, `ssim` and `niqe`, means over the images, to the logs of
    an epoch, where later callbacks, the history and the progress bar find
    them. The model is a `keras_san.PairedGAN` or its generator alone. `niqe`
    is NaN as long as an image has no structure at all.

    Args:
        inputs: List of uint8 arrays `(height, width, channels)`.
        targets: List of uint8 arrays, the images to make of the inputs.
        crop: Int, the pixels to leave out at each border.
        every: Int, epochs from one evaluation to the next. The last epoch
            is always evaluated.
        niqe_model: What `keras_san.metrics.image_quality.niqe` takes.

    Raises:
        ValueError: if there are no images, not as many inputs as targets,
            `every` is below 1, or a target cannot be measured, for example
            since it is too small.
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
        """Measures all metrics once.

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
    """Runs a model on one image.

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
