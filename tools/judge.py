"""Trains a classifier to judge generated images with.

Where the Inception network is out of reach, or has never seen such images,
Inception score, FID and KID can be taken under a classifier of the very
dataset. Such values compare with each other, not with published ones.
See `python tools/judge.py --help`.
"""

import dataclasses
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import keras  # noqa: E402
import numpy as np  # noqa: E402
from keras import layers  # noqa: E402

from experiments import batches, data, settings  # noqa: E402


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(settings.Data):
    """Trains a classifier to judge generated images with."""

    data: settings.Name = "digits"
    """digits; a name in tensorflow-datasets; a folder"""
    size: settings.SomeCount = None
    """crop and scale to N x N"""
    epochs: settings.Count = 10
    """passes over the images"""
    width: settings.Number = 1.0
    """factor on the channels"""
    seed: settings.Count = 0
    """of all that is random"""
    output: settings.SomePath = None
    """file to write; by default DATA_judge.keras"""


def main(argv=None):
    """Trains as the command line says."""
    run(settings.parse(Settings, "tools/judge.py", argv))


def run(args):
    """Trains a judge.

    Args:
        args: `Settings`.

    Returns:
        A float, the share of held-out images that it classifies right.

    Raises:
        ValueError: for images without labels.
    """
    output = args.output or f"{args.dataset}_judge.keras"
    images = data.load(
        args.data,
        size=args.size,
        data_dir=args.data_dir,
        download=args.download,
    )
    if images.labels is None:
        raise ValueError(
            "A judge learns from labels. Choose a dataset that has some, or a "
            f"folder with a sub-folder a class. Received: {args.data!r}"
        )
    keras.utils.set_random_seed(args.seed)
    order = np.random.default_rng(args.seed).permutation(len(images))
    x = batches.to_float(images.images[order])
    y = images.labels[order]
    model = classifier(x.shape[1:], images.num_classes, args.width)
    held_out = max(1, len(x) // 10)
    model.compile(
        keras.optimizers.AdamW(
            keras.optimizers.schedules.CosineDecay(
                2e-3, args.epochs * -(-(len(x) - held_out) // 64)
            )
        ),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    model.fit(
        x[held_out:], y[held_out:], batch_size=64, epochs=args.epochs, verbose=2
    )
    _, accuracy = model.evaluate(x[:held_out], y[:held_out], verbose=0)
    model.save(output)
    print(f"{output}: {accuracy:.1%} of {held_out} held-out images right")
    return accuracy


def classifier(shape, num_classes, width=1.0):
    """Images in [-1, 1] to logits, with layers `features` and `logits`."""
    model = keras.Sequential(name="judge")
    model.add(keras.Input(shape))
    for filters in (32, 64, 128):
        for strides in (1, 2):
            model.add(
                layers.Conv2D(
                    max(1, round(filters * width)),
                    3,
                    strides,
                    padding="same",
                    use_bias=False,
                )
            )
            model.add(layers.BatchNormalization(momentum=0.9))
            model.add(layers.ReLU())
    model.add(layers.GlobalAveragePooling2D(name="features"))
    model.add(layers.Dropout(0.2))
    model.add(layers.Dense(num_classes, name="logits"))
    return model


if __name__ == "__main__":
    settings.start(main)
