"""Trains a network that changes attributes of images, and uses it.

Without arguments, `train` takes scikit-learn's handwritten digits in three
colours, thick and thin, which need no network, for a few minutes on two CPU
cores. See `python -m experiments.attribute_transfer train --help`.
"""

import json
import os
import sys

import keras
import numpy as np
from PIL import Image, ImageOps

import keras_san
from experiments import attributes, command_line, data, files, runs
from keras_san import callbacks, losses
from keras_san.checks import check_count
from keras_san.networks import stargan

# What trains the networks: a small one for trying things out, and StarGAN's
# sizes with SAN's hinge loss and single update of the critic. An epoch is no
# pass over the data but what lies between two reports.
_PAPER = {
    "size": 128,
    "width": 1.0,
    "critic_width": 1.0,
    "blocks": 6,
    "halvings": 6,
    "identity_weight": 0.0,
    "padding": "circular",
    "loss": "hinge",
    "critic_steps": 1,
    "beta_2": 0.9,
    "learning_rate": 1e-4,
    "batch_size": 16,
    "epochs": 200,
    "steps_per_epoch": 1000,
}
_SMALL = {
    "size": 32,
    "width": 0.25,
    "critic_width": 0.5,
    "blocks": 2,
    "halvings": 3,
    "identity_weight": 10.0,
    "learning_rate": 5e-4,
    "epochs": 10,
    "steps_per_epoch": 100,
}
PRESETS = {"small": {**_PAPER, **_SMALL}, "paper": _PAPER}

# What the original differs in.
_WGAN_GP = {
    "padding": "same",
    "loss": "wasserstein",
    "critic_steps": 5,
    "beta_2": 0.999,
}

# Of these attributes an image has one at most.
_EXCLUSIVE = {
    "digits": [["red", "green", "blue"]],
    "celeb_a": [["Black_Hair", "Blond_Hair", "Brown_Hair"]],
}


def parse(argv=None):
    """Reads the command line into a namespace."""
    parser, command = command_line.commands("attribute_transfer", __doc__)
    _add_training(command("train", "Trains a network."))
    _add_editing(command("edit", "Changes attributes of your own images."))
    args = parser.parse_args(argv)
    if args.command == "train":
        preset = dict(PRESETS[args.preset])
        if args.normalizer == "wgan_gp":
            preset.update(_WGAN_GP)
            if args.preset == "paper":
                # It counts the updates of the critic.
                preset["epochs"] //= preset["critic_steps"]
        command_line.fill(args, preset)
        dataset = os.path.basename(os.path.normpath(args.data))
        if args.name is None:
            args.name = f"{dataset}-stargan-{args.normalizer}"
        if args.exclusive is None:
            args.exclusive = _exclusive(args)
        command_line.name_decay(args)
    return args


def _exclusive(args):
    """The groups that are known of a dataset, of the chosen attributes."""
    groups = _EXCLUSIVE.get(args.data.partition(":")[0], [])
    if args.attributes is not None:
        groups = [[x for x in g if x in args.attributes] for g in groups]
    return [group for group in groups if len(group) > 1]


def _add_training(parser):
    add = parser.add_argument
    add(
        "--data",
        default="digits",
        help="digits: scikit-learn's in colour; a folder of images (see "
        "--csv); or a name in tensorflow-datasets, as celeb_a",
    )
    add(
        "--csv",
        metavar="FILE",
        help="of the folder --data: a header, and a row for each image, its "
        "path in the folder and its attributes, as 1 and 0, or 1 and -1",
    )
    add("--data-dir", help="where tensorflow-datasets keeps its data")
    add(
        "--download",
        action="store_true",
        help="let tensorflow-datasets download what is missing",
    )
    add(
        "--attributes",
        nargs="+",
        metavar="NAME",
        help="which to change (default: of celeb_a three colours of hair, "
        "Male and Young, else all)",
    )
    add(
        "--exclusive",
        nargs="+",
        action="append",
        metavar="NAME",
        help="attributes of which an image has one at most; may be repeated "
        "(default: colours of digits, and of hair in celeb_a)",
    )
    add(
        "--images",
        type=int,
        metavar="N",
        help="how many to train on at most (default: all; those of celeb_a "
        "take 8 GB of memory at 128 pixels)",
    )
    add(
        "--preset",
        default="small",
        choices=PRESETS,
        help="small: for trying things out; paper: StarGAN's sizes. What "
        "follows changes a single setting",
    )
    add("--size", type=int, metavar="N", help="images get N x N pixels")
    add("--width", type=float, help="factor on the generator's channels")
    add("--blocks", type=int, help="residual blocks of the generator")
    add("--critic-width", type=float, help="factor on the critic's channels")
    add("--halvings", type=int, help="strided convolutions of the critic")
    add(
        "--padding",
        choices=["circular", "same"],
        help="of the critic's convolutions; same: zeros",
    )
    command_line.add_normalizer(parser, ["wgan_gp"])
    add("--loss", choices=["hinge", "wasserstein", "non_saturating"])
    add("--class-weight", type=float, default=1.0, help="in both losses")
    add("--cycle-weight", type=float, default=10.0, help="in the generator's")
    add(
        "--identity-weight",
        type=float,
        help="in the generator's, 0 in the original: without it the drawn "
        "digits turn into what is around them, and back",
    )
    add("--batch-size", type=int, help="images of one update")
    add("--epochs", type=int, help="how often to report and to save")
    add("--steps-per-epoch", type=int)
    add("--learning-rate", type=command_line.learning_rate)
    add("--beta-1", type=float, default=0.5, help="of Adam")
    add("--beta-2", type=float, help="of Adam")
    command_line.add_decay(parser)
    add("--critic-steps", type=int, help="for one of the generator")
    add("--ema", type=float, default=0.0, help="decay of the average generator")
    add(
        "--show",
        type=int,
        default=8,
        metavar="N",
        help="images of the validation split to change after each epoch",
    )
    runs.add_arguments(parser)


def _add_editing(parser):
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATH", help="images and folders")
    add("--run", default="runs/digits-stargan-san", help="folder of a training")
    add(
        "--set",
        nargs="+",
        default=[],
        metavar="NAME",
        help="attributes that images shall have (default, without --clear, "
        "too: a row of them all, one changed in each)",
    )
    add(
        "--clear",
        nargs="+",
        default=[],
        metavar="NAME",
        help="attributes that images shall not have",
    )
    add("--output", default="edited", help="folder")
    add("--force", action="store_true", help="overwrite files")


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
    return {"train": train, "edit": edit}[args.command](args)


def train(args):
    """Trains a generator and a critic on images and their attributes."""
    command_line.check_trains(args)
    scope = runs.strategy_scope(args.strategy)
    check_count("show", args.show)
    check_size(args)
    if args.attributes is not None:
        groups_of(args.exclusive, args.attributes)
    run = runs.Run(args)
    training, validation = load_images(args)
    names = training.attribute_names
    exclusive = groups_of(args.exclusive, names)
    keras.utils.set_random_seed(args.seed)
    keras.config.set_dtype_policy(args.precision)
    with scope:
        gan = make_gan(args, len(names))
    batches = attributes.Batches(
        training,
        args.batch_size * args.critic_steps,
        args.steps_per_epoch,
        args.seed,
        mirror=args.data != "digits",
    )

    def picture(gan):
        rows = changed_rows(
            gan.generate, validation.images, validation.attributes, exclusive
        )
        return callbacks.image_grid(np.concatenate(rows), 1 + len(names))

    shown = [
        batches.follow(),
        callbacks.Progress(),
        *command_line.pictured(run, picture, scale=2),
    ]
    finished = run.checkpoint.restore(gan)
    # Only now, that nothing about the arguments can be wrong any more.
    run.begin()
    with open(run.path("attributes.json"), "w") as file:
        json.dump({"names": names, "exclusive": args.exclusive}, file)
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
    # It tells which attributes an image has before any is changed.
    command_line.save_network(
        keras_san.strip(gan.critic), run.path("critic.keras")
    )
    command_line.export_network(network, run.path("generator"))
    print(f"Look at {run.path('samples.png')}: {', '.join(['as is', *names])}")
    print(f"The generator is {run.path('generator.keras')}")
    return 0


def check_size(args):
    """Raises a `ValueError` unless both networks take images of that size."""
    check_count("halvings", args.halvings)
    factor = max(4, 2**args.halvings)
    if args.size < factor or args.size % factor:
        raise ValueError(
            f"With --halvings {args.halvings} images must have a size that is "
            f"a multiple of {factor}. Received: --size {args.size}"
        )


def load_images(args):
    """What to train on, and what to show changes of."""
    shared = {
        "resize": args.size,
        "csv": args.csv,
        "data_dir": args.data_dir,
        "download": args.download,
    }
    training = attributes.load(
        args.data, attributes=args.attributes, limit=args.images, **shared
    )
    validation = attributes.load(
        args.data,
        "validation",
        attributes=training.attribute_names,
        limit=args.show,
        **shared,
    )
    return training, validation


def groups_of(exclusive, names):
    """Lists of places among the names, for lists of names.

    Raises:
        ValueError: if one of them is none of the names, or there twice, or
            alone in its group.
    """
    all_names = sum(exclusive, [])
    for name in all_names:
        check_attribute("--exclusive", name, names)
    if len({*all_names}) < len(all_names) or any(len(x) < 2 for x in exclusive):
        raise ValueError(
            "An exclusive group has at least two attributes, and none that "
            f"another one has. Received: --exclusive {exclusive}"
        )
    return [[names.index(name) for name in group] for group in exclusive]


def check_attribute(flag, name, names):
    """Raises a `ValueError` unless a network knows the attribute."""
    if name not in names:
        raise ValueError(f"The attributes are {names}. Received: {flag} {name}")


def make_gan(args, num_attributes):
    """The compiled GAN that the arguments describe."""
    penalty = None
    if args.normalizer == "wgan_gp":
        penalty = losses.GradientPenalty()
    gan = keras_san.AttributeGAN(
        stargan.generator(
            num_attributes,
            width=args.width,
            blocks=args.blocks,
            resolution=args.size,
        ),
        stargan.critic(
            args.size,
            num_attributes,
            width=args.critic_width,
            halvings=args.halvings,
            normalizer=command_line.make_normalizer(args),
            padding=args.padding,
        ),
        args.class_weight,
        args.cycle_weight,
        args.identity_weight,
        loss=args.loss,
        critic_steps=args.critic_steps,
        penalty=penalty,
        ema=args.ema or None,
        seed=args.seed,
    )
    gan.compile(
        *(
            command_line.make_adam(args, args.learning_rate, updates)
            for updates in (1, args.critic_steps)
        ),
        jit_compile=True if args.jit else "auto",
        steps_per_execution=args.steps_per_execution,
    )
    return gan


def changed(values, place, exclusive):
    """Attributes with one of them changed.

    Args:
        values: Array `(n, number)` of 0 and 1.
        place: Int, which one. Where it is one of an exclusive group, it takes
            the place of the others, else it turns into its opposite.
        exclusive: List of lists of ints.

    Returns:
        An array of that shape.
    """
    values = np.array(values, "float32")
    group = next((group for group in exclusive if place in group), None)
    if group is None:
        values[:, place] = 1.0 - values[:, place]
    else:
        values[:, group] = 0.0
        values[:, place] = 1.0
    return values


def changed_rows(generate, images, values, exclusive):
    """Images, and what they become, one attribute changed at a time.

    Args:
        generate: Callable from float images in [-1, 1] and attributes to
            images.
        images: uint8 array `(n, size, size, 3)`.
        values: Array `(n, number)` of 0 and 1, which attributes they have.
        exclusive: List of lists of ints.

    Returns:
        A list of float arrays `(1 + number, size, size, 3)`, one an image:
        the image, then a change of each attribute.
    """
    images = images.astype("float32") / np.float32(127.5) - np.float32(1.0)
    columns = [images] + [
        generate(images, changed(values, place, exclusive))
        for place in range(values.shape[1])
    ]
    return list(np.stack(columns, axis=1))


def edit(args):
    """Changes attributes of images, and tells which could not be read."""
    generator, critic = (
        command_line.load_network(
            os.path.join(args.run, f"{name}.keras"), "attribute_transfer"
        )
        for name in ("generator", "critic")
    )
    known = command_line.read_json(args.run, "attributes.json")
    names = known["names"]
    exclusive = groups_of(known["exclusive"], names)
    for flag, chosen in (("--set", args.set), ("--clear", args.clear)):
        for name in chosen:
            check_attribute(flag, name, names)
    both = {*args.set} & {*args.clear}
    for group in exclusive:
        asked = {names[place] for place in group} & {*args.set}
        both |= asked if len(asked) > 1 else set()
    if both:
        raise ValueError(
            "An image cannot have these and not have them, or have several of "
            f"an exclusive group. Received: {sorted(both)} in --set "
            f"{args.set} --clear {args.clear}"
        )
    size = generator.input_shape[0][1:3]

    def generate(images, values):
        return generator.predict_on_batch([images, values])

    def work(source, target):
        image = ImageOps.fit(
            data.decode(source).convert("RGB"),
            size[::-1],
            Image.Resampling.BICUBIC,
        )
        images = np.asarray(image)[None]
        floats = images.astype("float32") / np.float32(127.5) - np.float32(1.0)
        told = critic.predict_on_batch(floats)[1][:1]
        values = (told > 0.0).astype("float32")
        having = [n for n, value in zip(names, values[0]) if value]
        if args.set or args.clear:
            for name in args.set:
                place = names.index(name)
                values[0, place] = 0.0
                values = changed(values, place, exclusive)
            values[0, [names.index(name) for name in args.clear]] = 0.0
            made = generate(floats, values)
            columns, gap = 1, 0
        else:
            (made,) = changed_rows(generate, images, values, exclusive)
            columns, gap = len(made), 1
        picture = callbacks.image_grid(made, columns, gap)
        files.save(Image.fromarray(picture), target)
        return f"{', '.join(having) or 'no attribute'}; {target}"

    return int(bool(files.convert(work, args.paths, args.output, args.force)))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
