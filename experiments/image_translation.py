"""Trains a network that makes photographs of label maps, and uses it.

Without arguments, `train` takes windows of scikit-image's bundled photographs
and their main colours as labels, which need no network, for a few minutes on
two CPU cores. See `python -m experiments.image_translation train --help`.
"""

import dataclasses
import functools
import os
from typing import Literal

import numpy as np
from PIL import Image

import keras_san
from experiments import (
    batches,
    data,
    files,
    label_maps,
    runs,
    scenes,
    settings,
    training,
)
from keras_san import callbacks
from keras_san.checks import check_count
from keras_san.metrics import extractors
from keras_san.networks import spade


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scenes(settings.Data):
    """The scenes, and their classes."""

    data: settings.Name = "photographs"
    """photographs (scikit-image's); a folder with images, labels (and \
instances), or with train and val; or cityscapes"""
    classes: settings.SomeCount = None
    """labels are below that; by default those that are found"""
    void: settings.SomeCount = None
    """label of pixels without a class, often 255"""
    size: settings.shown(tuple[int, int], "H W")
    """height and width of all that is seen"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(
    settings.Run,
    settings.Evaluation,
    settings.Training,
    settings.Critic,
    Scenes,
):
    """Trains a network that makes photographs of label maps."""

    preset: settings.Name = "small"
    """small or paper; sets all else"""
    upsamplings: settings.Count
    """of the generator: 5, 6 or 7"""
    critic: settings.shown(Literal["default", "original"], "NAME") = "default"
    """or original: SPADE's, which cancels what kernels are divided by"""
    perceptual: settings.Name
    """none, vgg19, its weights (.h5), or a Keras model"""
    perceptual_layers: settings.shown(tuple[str, ...] | None, "L...") = None
    """whose activations are compared; by default SPADE's"""
    perceptual_weight: settings.Number = 10.0
    """in the generator's loss"""
    feature_matching: settings.Number = 10.0
    """its weight in the generator's loss"""
    show: settings.Count = 4
    """scenes to draw after each epoch"""
    tiles: settings.SomeCount = None
    """measure on tiles of N x N pixels"""

    @property
    def default_name(self):
        """The dataset, the generator, and the normalizer."""
        return f"{self.dataset}-spade-{self.normalizer}"


# Settings of the SAN paper and of SPADE's, and of a small network for trying
# things out. An epoch is what lies between two reports, in the paper a pass.
PAPER = Settings(
    preset="paper",
    size=(256, 512),
    upsamplings=6,
    ratio=0.25,
    gain=1.3,
    perceptual="vgg19",
    learning_rate=1e-4,
    critic_learning_rate=4e-4,
    decay=0.5,
    batch_size=32,
    epochs=200,
    steps_per_epoch=93,
)
PRESETS = {
    "small": dataclasses.replace(
        PAPER,
        preset="small",
        size=(96, 96),
        width=0.25,
        upsamplings=5,
        ratio=None,
        gain=None,
        perceptual="none",
        learning_rate=5e-4,
        ema=0.99,
        batch_size=4,
        epochs=5,
        steps_per_epoch=100,
    ),
    "paper": PAPER,
}

# What SPADE's authors compare of VGG19: the first activation of each block.
PERCEPTUAL_LAYERS = {
    f"block{i + 1}_conv1": 1.0 / divisor
    for i, divisor in enumerate((32, 16, 8, 4, 1))
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Translation(settings.Conversion):
    """Makes photographs of label maps of your own."""

    output: settings.Path = "translated"
    """folder to write to, under the same names"""
    run: settings.Path = "runs/photographs-spade-san"
    """folder of a training"""
    instances: settings.SomePath = None
    """folder of instance ids, for networks trained with them"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Numbering:
    """Makes label maps of numbers from ones of colours."""

    folder: settings.Positional
    """with label maps of colours"""
    output: settings.Path = "numbered"
    """folder to write to"""


def parse(argv=None):
    """Reads `Settings` from the command line."""

    def choose(asked):
        found = settings.preset(PRESETS, asked)
        if asked.normalizer != "san" or asked.form == "project":
            # Only SAN measures a share of the filters, and only to divide.
            found = dataclasses.replace(found, ratio=None, gain=None)
        return found

    prog = "-m experiments.image_translation train"
    return settings.parse(Settings, prog, argv, PRESETS["small"], choose)


def main(argv=None):
    """Does what the command line says, and returns the exit status."""
    commands = {
        "train": (Settings, lambda argv: run(parse(argv))),
        "translate": (Translation, translate),
        "number": (Numbering, number),
    }
    return settings.command("image_translation", commands, argv)


def run(args):
    """Trains a generator and a critic as `Settings` say."""
    run = runs.Run(args)
    check(args)
    content_losses = make_content_losses(args)
    extractor = run.extractor
    train, validation = load_scenes(args)
    print(
        f"{len(train)} scenes to train on, {len(validation)} to validate, "
        f"{train.num_classes} classes"
    )
    gan = run.build(lambda: make_gan(args, train.map_channels, content_losses))
    drawn = scenes.make_batches(
        train, args.batch_size * args.critic_steps, args.seed
    )
    grid = callbacks.SampleGrid(
        run.folder, scale=1, picture=triptychs(validation, args.show)
    )
    first = []
    if extractor is not None:
        first.append(make_evaluation(args, extractor, validation))
    run.begin(
        classes={
            "num_classes": train.num_classes,
            "void": args.void,
            "edges": train.edges is not None,
        }
    )
    run.fit(gan, drawn, grid, first)
    run.export(run.save(gan))


def check(args):
    """Raises a `ValueError` if settings do not fit together."""
    check_count("show", args.show)
    factor = 2**args.upsamplings
    if any(n < 64 or n % factor for n in args.size):
        raise ValueError(
            f"With --upsamplings {args.upsamplings} height and width must be "
            f"multiples of {factor}, and the second scale of the critic wants "
            f"at least 64 of each: {max(64, factor)}, "
            f"{max(64, factor) + factor}, ... "
            f"Received: --size {args.size[0]} {args.size[1]}"
        )
    every, largest = args.evaluate_every, min(args.size)
    if args.tiles is not None and (not every or not 1 <= args.tiles <= largest):
        raise ValueError(
            "Tiles are what an evaluation looks at: pass --evaluate-every, "
            f"too, and tiles of at most {largest} pixels. Received: --tiles "
            f"{args.tiles} with --evaluate-every {every} and --size {args.size}"
        )
    if args.perceptual_layers is not None and args.perceptual == "none":
        raise ValueError(
            "Layers are those of the network of a perceptual loss: pass "
            "--perceptual, too. Received: --perceptual-layers "
            f"{' '.join(args.perceptual_layers)} without it"
        )


def make_content_losses(args):
    """The perceptual loss, or none, in a list."""
    layers = PERCEPTUAL_LAYERS
    if args.perceptual_layers is not None:
        layers = dict.fromkeys(args.perceptual_layers, 1.0)
    return training.make_perceptual_losses(args, layers=layers, activated=True)


def load_scenes(args):
    """The scenes to train on, and those to draw and to measure."""
    load = functools.partial(
        *(scenes.load, args.data),
        size=args.size,
        void=args.void,
        data_dir=args.data_dir,
        download=args.download,
    )
    train = load("train", num_classes=args.classes)
    num_classes = train.num_classes - (args.void is not None)
    validation = load("validation", num_classes=num_classes)
    if train.map_channels != validation.map_channels:
        raise ValueError(
            "Instance ids must be there for training and validation, or for "
            f"neither. Received: {args.data!r}, which has them for one"
        )
    return train, validation


def make_gan(args, map_channels, content_losses):
    """The compiled GAN that settings describe."""
    shared = {"resolution": args.size, "map_channels": map_channels}
    gan = keras_san.PairedGAN(
        spade.generator(
            width=args.width,
            upsamplings=args.upsamplings,
            synchronized=args.strategy in ("mirrored", "tpu"),
            **shared,
        ),
        spade.critic(
            width=args.critic_width or args.width,
            normalizer=training.make_normalizer(args),
            padding=args.padding,
            original=args.critic == "original",
            **shared,
        ),
        content_losses,
        feature_matching=args.feature_matching,
        joint=True,
        critic_steps=args.critic_steps,
        ema=args.ema or None,
        seed=args.seed,
    )
    return training.compile(gan, args)


def make_evaluation(args, extractor, validation):
    """The callback that measures all that is made of the validation split."""
    if len(validation) < 2:
        raise ValueError(
            "To measure, there must be two scenes to validate at least. "
            f"Received: --evaluate-every {args.evaluate_every} with "
            f"{len(validation)} in {args.data!r}"
        )
    if args.tiles is not None:
        extractor = extractors.Tiles(extractor, args.tiles)

    def draw(gan):
        for start in range(0, len(validation), 16):
            yield gan.generate(validation[start : start + 16].maps())

    return callbacks.Evaluation(
        validation.images,
        extractor,
        args.evaluate_every // args.steps_per_epoch,
        num_images=len(validation),
        draw=draw,
    )


def triptychs(validation, count):
    """A callable from the GAN to labels, what it makes of them, and truth."""
    # Not the first ones: of a film these are nearly the same.
    shown = validation[:: max(1, len(validation) // count)][:count]
    maps, colours = shown.maps(), shown.palette[shown.labels]

    def draw(gan):
        labels, images = map(batches.to_float, (colours, shown.images))
        rows = np.stack([labels, gan.generate(maps), images], axis=1)
        return callbacks.image_grid(rows.reshape(-1, *rows.shape[2:]), 3, 4)

    return draw


def translate(argv=None):
    """Makes photographs of label maps, and tells which could not be read."""
    prog = "-m experiments.image_translation translate"
    args = settings.parse(Translation, prog, argv)
    model = runs.load_network(
        os.path.join(args.run, "generator.keras"), "image_translation"
    )
    classes = runs.read_json(args.run, "classes.json")
    if classes["edges"] != (args.instances is not None):
        raise ValueError(
            "Pass --instances for a network that was trained with them, and "
            f"for no other. Received: --instances {args.instances}, for one "
            f"trained {'with' if classes['edges'] else 'without'} them"
        )
    ids = data.by_name(args.instances) if classes["edges"] else {}

    def work(source, target):
        # Below a folder with its sub-folders.
        name = os.path.splitext(os.path.relpath(target, args.output))[0]
        if classes["edges"] and name not in ids:
            raise ValueError(
                "Each label map needs ids of its instances. Received: "
                f"{source!r}, without {name!r} in {args.instances!r}"
            )
        maps = label_maps.read_maps(
            *(source, ids.get(name), model.input_shape[1:3]),
            *(classes["num_classes"], classes["void"]),
        )
        # The first: under a strategy Keras makes one on each replica.
        made = model.predict_on_batch(maps[None].astype("float32"))[0]
        made = np.clip(np.rint((made + 1.0) * 127.5), 0, 255).astype("uint8")
        files.save(Image.fromarray(made), target)
        return f"{made.shape[1]} x {made.shape[0]}, {target}"

    return int(bool(files.convert(work, args.paths, args.output, args.force)))


def number(argv=None):
    """Makes label maps of numbers from ones of colours."""
    prog = "-m experiments.image_translation number"
    args = settings.parse(Numbering, prog, argv)
    colours = label_maps.number_colours(args.folder, args.output)
    for index, (red, green, blue) in enumerate(colours):
        print(f"{index:3d}  #{red:02x}{green:02x}{blue:02x}")
    print(f"{len(data.files_below(args.output))} files: {args.output}")


if __name__ == "__main__":
    settings.start(main)
