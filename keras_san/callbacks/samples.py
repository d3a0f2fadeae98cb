"""Grids of generated images."""

import math
import os

import keras
import numpy as np

from keras_san.checks import check_package


class SampleGrid(keras.callbacks.Callback):
    """Saves a grid of generated images after each epoch, as PNG.

    The latent vectors stay the same, so that one sees the images improve.
    For a class-conditional GAN each column shows one class.

    Args:
        directory: String or path, where `samples.png` (the latest) and
            `samples_0001.png`, ... are written. It is created if missing.
        rows: Int.
        columns: Int, or `None` for one per class, or 8 without classes.
        scale: Int, the size of an image's pixel in the file.
        seed: Int for the latent vectors.
        picture: `None` for a sample grid, or a callable from the model to
            the picture to save instead, a uint8 array
            `(height, width, channels)`.

    Attributes:
        latest: The picture that was saved last, or `None`.

    Raises:
        ImportError: if Pillow is not installed.
    """

    def __init__(
        self,
        directory,
        rows=8,
        columns=None,
        scale=2,
        seed=0,
        picture=None,
    ):
        super().__init__()
        check_package("PIL", "pillow")
        self.directory = directory
        self.rows = rows
        self.columns = columns
        self.scale = scale
        self.seed = seed
        self.picture = picture
        self.latest = None

    def on_train_begin(self, logs=None):
        if self.picture is None:
            check_draws(self.model)

    def on_epoch_end(self, epoch, logs=None):
        if not getattr(self.model, "is_chief", True):
            return
        if self.picture is None:
            images = sample_grid(self.model, self.rows, self.columns, self.seed)
        else:
            images = self.picture(self.model)
        self.latest = images
        images = images.repeat(self.scale, axis=0).repeat(self.scale, axis=1)
        os.makedirs(self.directory, exist_ok=True)
        for name in (f"samples_{epoch + 1:04d}.png", "samples.png"):
            keras.utils.save_img(
                os.path.join(self.directory, name), images, scale=False
            )


def check_draws(model):
    """Raises a `ValueError` unless a model generates from random vectors."""
    if not hasattr(model, "latent_dim"):
        raise ValueError(
            "The callback needs a `keras_san.GAN`, which makes images from "
            "random vectors. For models from images to images see "
            "`callbacks.ImageQuality`, `draw` of `callbacks.Evaluation`, and "
            "`picture` of `callbacks.SampleGrid` and `callbacks.TensorBoard`. "
            f"Received: model={model}"
        )


def sample_grid(gan, rows=8, columns=None, seed=0):
    """A grid of generated images, the same for the same seed.

    Args:
        gan: A `keras_san.GAN`. If it is conditional, each column has a class.
        rows: Int.
        columns: Int, or `None` for one per class, or 8 without classes.
        seed: Int for the latent vectors.

    Returns:
        A uint8 array, see `image_grid`.
    """
    columns = columns or gan.num_classes or 8
    labels = None
    if gan.num_classes is not None:
        labels = np.arange(rows * columns) % columns % gan.num_classes
    return image_grid(gan.generate(rows * columns, labels, seed=seed), columns)


def image_grid(images, columns, gap=1):
    """A grid of images, as one image.

    Args:
        images: Array `(n, height, width, channels)` in [-1, 1].
        columns: Int. The last row is filled up with grey.
        gap: Int, the pixels of grey around each image.

    Returns:
        A uint8 array `(rows * (height + gap) + gap,
        columns * (width + gap) + gap, channels)`.
    """
    n, height, width, channels = images.shape
    rows = math.ceil(n / columns)
    height, width = height + gap, width + gap
    grid = np.full((rows * columns, height, width, channels), 64, "uint8")
    grid[:n, gap:, gap:] = np.clip(np.round((images + 1.0) * 127.5), 0, 255)
    grid = grid.reshape(rows, columns, height, width, channels)
    grid = grid.transpose(0, 2, 1, 3, 4)
    grid = grid.reshape(rows * height, columns * width, channels)
    return np.pad(grid, ((0, gap), (0, gap), (0, 0)), constant_values=64)
