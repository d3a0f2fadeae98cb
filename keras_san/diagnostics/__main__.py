"""Diagnoses a saved critic.

    python -m keras_san.diagnostics MODEL.keras --data FOLDER

prints a table of its layers and the verdict, and writes tables and pictures.
"""

import argparse
import os
import sys

# Before TensorFlow is imported: its greetings would bury the table.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras  # noqa: E402
import numpy as np  # noqa: E402

# Its classes, so that Keras finds them in files.
import keras_san  # noqa: E402, F401
from keras_san.checks import check_count  # noqa: E402
from keras_san.diagnostics import (  # noqa: E402
    channel_sparsity,
    diagnose,
    report,
)

_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".gif", ".tif", ".tiff")


def main(argv=None):
    """Runs the command line.

    Args:
        argv: List of strings, or `None` for the arguments of the process.

    Returns:
        A `Diagnosis`.

    Raises:
        ValueError: if the file holds no critic of images, or the folder no
            images.
        ImportError: if Matplotlib, or for images Pillow, is not installed.
    """
    parser = argparse.ArgumentParser(
        prog="python -m keras_san.diagnostics",
        description="Tells how a saved critic is doing, layer by layer.",
    )
    add = parser.add_argument
    add("model", metavar="MODEL.keras", help="a critic, or a GAN with one")
    add(
        "--data",
        metavar="FOLDER",
        help="of images as the critic is trained on, resized to its size "
        "(default: noise with the spectrum of photographs, which tells less)",
    )
    add("--images", type=int, default=128, metavar="N", help="how many at most")
    add("--output", default="diagnosis", metavar="FOLDER", help="to write to")
    args = parser.parse_args(argv)
    check_count("images", args.images, least=2)
    critic = load_critic(args.model)
    images = load_images(args.data, critic.input_shape[1:], args.images)
    found = diagnose(critic, images, operator=True)
    print(report.text_of(found))
    os.makedirs(args.output, exist_ok=True)
    report.write_csv(found, os.path.join(args.output, "layers.csv"))
    report.draw(found, os.path.join(args.output, "layers.png"))
    sparsity = channel_sparsity(critic, images)
    if len(sparsity):
        path = os.path.join(args.output, "sparsity.png")
        report.draw_sparsity(sparsity, path)
    print(f"Look at {os.path.join(args.output, 'layers.png')}")
    return found


def load_critic(path):
    """Loads the critic from a file.

    Args:
        path: String, the file of a critic, or of a GAN.

    Returns:
        A `keras.Model` from images.

    Raises:
        ValueError: if there is none in the file.
    """
    if not os.path.isfile(path):
        raise ValueError(
            "There is no such file. Pass that of a saved critic or GAN. "
            f"Received: {path!r}"
        )
    try:
        model = keras.saving.load_model(path, compile=False)
    except Exception as error:
        reason = str(error).partition("\n")[0][:200]
        raise ValueError(
            "The file holds no Keras model that can be loaded here. "
            f"Received: {path!r} ({reason})"
        ) from error
    model = getattr(model, "critic", model)
    shape = model.input_shape
    if isinstance(shape, list) or len(shape) != 4 or shape[-1] not in (1, 3):
        raise ValueError(
            "On the command line a critic must take images only, grey or in "
            "colour. For any other call `keras_san.diagnostics.diagnose` from "
            f"Python. Received: {path!r} with inputs {shape}"
        )
    return model


def load_images(folder, shape, count):
    """Loads images to diagnose with.

    Args:
        folder: String, or `None` for noise.
        shape: `(height, width, channels)`. The first two may be `None`, which
            stands for 64.
        count: Int, how many at most.

    Returns:
        A float32 array `(n, height, width, channels)` in [-1, 1].

    Raises:
        ValueError: if the folder has fewer than two images.
    """
    height, width, channels = (64 if n is None else n for n in shape)
    if folder is None:
        return _noise(count, height, width, channels)
    from PIL import Image, ImageOps

    paths = sorted(
        os.path.join(top, name)
        for top, _, names in os.walk(folder)
        for name in names
        if name.lower().endswith(_ENDINGS)
    )
    if len(paths) < 2:
        raise ValueError(
            "The folder must have at least two images. "
            f"Received: {folder!r} with {len(paths)}"
        )
    # Not the first ones: neighbours are often alike.
    paths = paths[:: max(1, len(paths) // count)][:count]
    images = []
    for path in paths:
        with Image.open(path) as image:
            image = image.convert("L" if channels == 1 else "RGB")
        image = ImageOps.fit(image, (width, height), Image.Resampling.BICUBIC)
        images.append(np.asarray(image).reshape(height, width, channels))
    return np.stack(images).astype("float32") / np.float32(127.5) - 1.0


def _noise(count, height, width, channels):
    """Noise whose amplitudes fall with the frequency, as in photographs."""
    rng = np.random.default_rng(0)
    white = rng.normal(size=(count, height, width, channels))
    frequency = np.hypot(
        np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None]
    )
    frequency = np.maximum(frequency, 1.0 / max(height, width))
    spectrum = np.fft.fft2(white, axes=(1, 2)) / frequency[..., None]
    images = np.fft.ifft2(spectrum, axes=(1, 2)).real
    images /= 2.0 * images.std(axis=(1, 2, 3), keepdims=True)
    return np.clip(images, -1.0, 1.0).astype("float32")


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
