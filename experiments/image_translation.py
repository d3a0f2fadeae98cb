"""Trains a network that makes photographs of label maps, and uses it.

Without arguments, `train` takes windows of scikit-image's bundled photographs
and their main colours as labels, which need no network, for a few minutes on
two CPU cores. See `python -m experiments.image_translation train --help`.
"""

import json
import os
import sys

import keras
import numpy as np
from PIL import Image

import keras_san
from experiments import (
    command_line,
    data,
    files,
    label_maps,
    runs,
    scenes,
)
from keras_san import callbacks
from keras_san.checks import check_count
from keras_san.metrics import extractors
from keras_san.networks import spade

# What trains the networks: a small one for trying things out, and the settings
# of the paper. An epoch is no pass over the data but what lies between two
# reports; of the paper it is both.
_PAPER = {
    "size": [256, 512],
    "width": 1.0,
    "critic_width": 1.0,
    "upsamplings": 6,
    "ratio": 0.25,
    "gain": 1.3,
    "perceptual": "vgg19",
    "generator_rate": 1e-4,
    "critic_rate": 4e-4,
    "ema": 0.0,
    "batch_size": 32,
    "epochs": 200,
    "steps_per_epoch": 93,
}
_SMALL = {
    "size": [96, 96],
    "width": 0.25,
    "critic_width": 0.25,
    "upsamplings": 5,
    "ratio": None,
    "gain": None,
    "perceptual": "none",
    "generator_rate": 5e-4,
    "ema": 0.99,
    "batch_size": 4,
    "epochs": 5,
    "steps_per_epoch": 100,
}
PRESETS = {"small": {**_PAPER, **_SMALL}, "paper": _PAPER}

# What SPADE's authors compare of VGG19: the first activation of each block.
_PERCEPTUAL_LAYERS = {
    f"block{i + 1}_conv1": 1.0 / divisor
    for i, divisor in enumerate((32, 16, 8, 4, 1))
}


def parse(argv=None):
    """Reads the command line into a namespace."""
    parser, command = command_line.commands("image_translation", __doc__)
    _add_training(command("train", "Trains a network."))
    _add_translation(
        command("translate", "Makes photographs of label maps of your own.")
    )
    _add_numbering(
        command("number", "Makes label maps of numbers from ones of colours.")
    )
    args = parser.parse_args(argv)
    if args.command == "train":
        preset = dict(PRESETS[args.preset])
        if args.normalizer != "san" or args.form == "project":
            # Only SAN measures a share of the filters, and only to divide.
            preset.update(ratio=None, gain=None)
        command_line.fill(args, preset)
        if args.name is None:
            dataset = os.path.basename(os.path.normpath(args.data))
            args.name = f"{dataset}-spade-{args.normalizer}"
        command_line.name_decay(args)
    return args


def _add_training(parser):
    add = parser.add_argument
    add(
        "--data",
        default="photographs",
        help="photographs: windows of those that come with scikit-image; a "
        "folder with sub-folders images and labels (and instances, if there "
        "are), or with sub-folders train and val which have these; or a name "
        "in tensorflow-datasets, as cityscapes",
    )
    add("--data-dir", help="where tensorflow-datasets keeps its data")
    add(
        "--download",
        action="store_true",
        help="let tensorflow-datasets prepare what is missing (cityscapes "
        "wants its archives in the folder that its documentation names), "
        "Keras get the weights of VGG19, and TensorFlow Hub Inception",
    )
    add(
        "--classes",
        type=int,
        metavar="N",
        help="labels are below that (default: 12 main colours of photographs, "
        "35 of cityscapes, else those that are found)",
    )
    add(
        "--void",
        type=int,
        metavar="LABEL",
        help="of pixels without a class, often 255: they get one of their own",
    )
    add(
        "--size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="all is resized to that, multiples of 32 with 5 upsamplings, of "
        "64 with 6, and of 128 with 7",
    )
    add(
        "--preset",
        default="small",
        choices=PRESETS,
        help="small: for trying things out; paper: the settings of the SAN "
        "paper and of SPADE's. What follows changes a single one",
    )
    add("--width", type=float, help="factor on the generator's channels")
    add("--upsamplings", type=int, choices=[5, 6, 7], help="of the generator")
    add("--critic-width", type=float, help="factor on the critic's channels")
    add(
        "--critic",
        default="default",
        choices=["default", "original"],
        help="original: SPADE's own, whose instance normalization cancels "
        "whatever kernels are divided by",
    )
    add(
        "--padding",
        default="circular",
        choices=["circular", "same"],
        help="of the critic's convolutions; same: zeros",
    )
    command_line.add_normalizer(parser)
    command_line.add_perceptual(parser)
    add("--perceptual-weight", type=float, default=10.0)
    add(
        "--perceptual-layers",
        nargs="+",
        metavar="LAYER",
        help="whose activations are compared, of equal weight (default: of "
        "VGG19 the first of each block, weighted as SPADE's authors do)",
    )
    add("--feature-matching", type=float, default=10.0, help="its weight")
    add("--batch-size", type=int)
    add("--epochs", type=int, help="how often to report and to save")
    add("--steps-per-epoch", type=int)
    add(
        "--generator-rate",
        type=command_line.learning_rate,
        help="learning rate",
    )
    add("--critic-rate", type=command_line.learning_rate, help="learning rate")
    add("--beta-1", type=float, default=0.5, help="of Adam")
    add("--beta-2", type=float, default=0.9, help="of Adam")
    command_line.add_decay(parser)
    add("--critic-steps", type=int, default=1, help="for one of the generator")
    add("--ema", type=float, help="decay of the average generator, 0: none")
    add(
        "--show",
        type=int,
        default=4,
        metavar="N",
        help="scenes of the validation split to draw after each epoch",
    )
    command_line.add_evaluation(parser, "FID and KID on the validation split")
    add(
        "--tiles",
        type=int,
        metavar="N",
        help="measure on tiles of N x N pixels, which makes enough samples of "
        "few scenes (default: on whole scenes)",
    )
    runs.add_arguments(parser)


def _add_translation(parser):
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATH", help="label maps and folders")
    add(
        "--run",
        default="runs/photographs-spade-san",
        help="folder of a training",
    )
    add(
        "--instances",
        metavar="FOLDER",
        help="instance ids under the same names, for networks that were "
        "trained with them",
    )
    add("--output", default="translated", help="folder")
    add("--force", action="store_true", help="overwrite files")


def _add_numbering(parser):
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="with label maps of colours")
    add("--output", default="numbered", help="folder")


def main(argv=None):
    """Does what the command line says.

    Args:
        argv: List of strings, or `None` for the arguments of the process.

    Returns:
        An int, the exit status.

    Raises:
        ValueError: for settings or files that nothing can be done with, and
            for an output folder that exists from another run.
        OSError: if a file cannot be written.
        ImportError: if a package is not installed.
    """
    args = parse(argv)
    commands = {"train": train, "translate": translate, "number": number}
    return commands[args.command](args)


def train(args):
    """Trains a generator and a critic on label maps and photographs."""
    command_line.check_trains(args)
    scope = runs.strategy_scope(args.strategy)
    check_count("show", args.show)
    check_size(args)
    extractor = find_extractor(args)
    run = runs.Run(args)
    content_losses = command_line.make_perceptual_losses(
        args, layers=perceptual_layers(args), activated=True
    )
    training, validation = load_scenes(args)
    print(
        f"{len(training)} scenes to train on, {len(validation)} to validate, "
        f"{training.num_classes} classes"
    )
    keras.utils.set_random_seed(args.seed)
    keras.config.set_dtype_policy(args.precision)
    with scope:
        gan = make_gan(args, training.map_channels, content_losses)
    batches = scenes.Batches(
        training,
        args.batch_size * args.critic_steps,
        args.steps_per_epoch,
        args.seed,
    )
    shown = [
        batches.follow(),
        callbacks.Progress(),
        *command_line.pictured(run, triptychs(validation, args.show)),
    ]
    if extractor is not None:
        shown.insert(1, make_evaluation(args, extractor, validation))
    finished = run.checkpoint.restore(gan)
    # Only now, that nothing about the arguments can be wrong any more.
    run.begin()
    with open(run.path("classes.json"), "w") as file:
        classes = {
            "num_classes": training.num_classes,
            "void": args.void,
            "edges": training.edges is not None,
        }
        json.dump(classes, file)
    gan.fit(
        batches,
        epochs=args.epochs,
        initial_epoch=finished,
        shuffle=False,
        verbose=0,
        callbacks=shown,
    )
    network = gan.averaged_generator or gan.generator
    command_line.save_network(network, run.path("generator.keras"))
    command_line.export_network(network, run.path("generator"))
    print(f"Look at {run.path('samples.png')}")
    print(f"The generator is {run.path('generator.keras')}")
    return 0


def check_size(args):
    """Raises a `ValueError` unless both networks take scenes of that size."""
    factor = 2**args.upsamplings
    if any(n < 64 or n % factor for n in args.size):
        raise ValueError(
            f"With --upsamplings {args.upsamplings} height and width must be "
            f"multiples of {factor}, and the second scale of the critic wants "
            f"at least 64 of each: {max(64, factor)}, "
            f"{max(64, factor) + factor}, ... "
            f"Received: --size {args.size[0]} {args.size[1]}"
        )


def load_scenes(args):
    """What to train on, and what to draw and to measure on."""
    settings = {
        "size": tuple(args.size),
        "void": args.void,
        "data_dir": args.data_dir,
        "download": args.download,
    }
    training = scenes.load(args.data, num_classes=args.classes, **settings)
    num_classes = training.num_classes - (args.void is not None)
    validation = scenes.load(
        args.data, "validation", num_classes=num_classes, **settings
    )
    if training.map_channels != validation.map_channels:
        raise ValueError(
            "Instance ids must be there for training and validation, or for "
            f"neither. Received: {args.data!r}, which has them for one"
        )
    return training, validation


def make_gan(args, map_channels, content_losses):
    """The compiled GAN that the arguments describe."""
    shared = {"resolution": tuple(args.size), "map_channels": map_channels}
    gan = keras_san.PairedGAN(
        spade.generator(
            width=args.width,
            upsamplings=args.upsamplings,
            synchronized=args.strategy in ("mirrored", "tpu"),
            **shared,
        ),
        spade.critic(
            width=args.critic_width,
            normalizer=command_line.make_normalizer(args),
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
    gan.compile(
        command_line.make_adam(args, args.generator_rate, 1),
        command_line.make_adam(args, args.critic_rate, args.critic_steps),
        jit_compile=True if args.jit else "auto",
        steps_per_execution=args.steps_per_execution,
    )
    return gan


def perceptual_layers(args):
    """Layers and the factors on what is found there, as a dict."""
    if args.perceptual_layers is not None and args.perceptual == "none":
        raise ValueError(
            "Layers are those of the network of a perceptual loss: pass "
            "--perceptual, too. Received: --perceptual-layers "
            f"{' '.join(args.perceptual_layers)} without it"
        )
    if args.perceptual_layers is None:
        return _PERCEPTUAL_LAYERS
    return dict.fromkeys(args.perceptual_layers, 1.0)


def find_extractor(args):
    """What to evaluate with, or `None`, once the arguments fit together."""
    if args.evaluate_every is None:
        if args.tiles is not None:
            raise ValueError(
                "Tiles are what an evaluation looks at: pass --evaluate-every, "
                f"too. Received: --tiles {args.tiles} without it"
            )
        args.extractor = None
        return None
    command_line.check_multiple(args, "evaluate_every", "steps_per_epoch")
    if args.tiles is not None and not 1 <= args.tiles <= min(args.size):
        raise ValueError(
            "Tiles cannot be larger than scenes, which are resized to --size. "
            f"Received: --tiles {args.tiles} with --size {args.size}"
        )
    found = command_line.find_extractor(args, args.data)
    args.extractor = extractors.name_of(found)
    return extractors.get(found)


def make_evaluation(args, extractor, validation):
    """FID and KID of all that is made of the validation split."""
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
            part = slice(start, start + 16)
            yield gan.generate(validation.maps(part))

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
    maps, columns = shown.maps(), [shown.colours(), shown.images]

    def draw(gan):
        labels, images = (c / np.float32(127.5) - 1.0 for c in columns)
        made = gan.generate(maps)
        rows = np.stack([labels, made, images], axis=1)
        return callbacks.image_grid(rows.reshape(-1, *rows.shape[2:]), 3, 4)

    return draw


def translate(args):
    """Makes photographs of label maps, and tells which could not be read."""
    model = command_line.load_network(
        os.path.join(args.run, "generator.keras"), "image_translation"
    )
    classes = command_line.read_json(args.run, "classes.json")
    if classes["edges"] != (args.instances is not None):
        raise ValueError(
            "Pass --instances for a network that was trained with them, and "
            f"for no other. Received: --instances {args.instances}, for one "
            f"trained {'with' if classes['edges'] else 'without'} them"
        )

    def work(source, target):
        maps = label_maps.read_maps(
            source,
            model.input_shape[1:3],
            classes["num_classes"],
            classes["void"],
            args.instances,
            # Below a folder with its sub-folders.
            os.path.splitext(os.path.relpath(target, args.output))[0],
        )
        # The first: under a strategy Keras makes one on each replica.
        made = model.predict_on_batch(maps[None].astype("float32"))[0]
        made = np.clip(np.rint((made + 1.0) * 127.5), 0, 255).astype("uint8")
        files.save(Image.fromarray(made), target)
        return f"{made.shape[1]} x {made.shape[0]}, {target}"

    return int(bool(files.convert(work, args.paths, args.output, args.force)))


def number(args):
    """Makes label maps of numbers from ones of colours."""
    colours = label_maps.number_colours(args.folder, args.output)
    for index, (red, green, blue) in enumerate(colours):
        print(f"{index:3d}  #{red:02x}{green:02x}{blue:02x}")
    print(f"{len(data.files_below(args.output))} files: {args.output}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
