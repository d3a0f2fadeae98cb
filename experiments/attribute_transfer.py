"""Trains a network that changes attributes of images, and uses it.

Without arguments, `train` takes scikit-learn's handwritten digits in three
colours, thick and thin, which need no network, for a few minutes on two CPU
cores. See `python -m experiments.attribute_transfer train --help`.
"""

import dataclasses
import os

import numpy as np
import tyro
from PIL import Image, ImageOps

import keras_san
from experiments import (
    attributes,
    batches,
    data,
    files,
    runs,
    settings,
    training,
)
from keras_san import callbacks, losses
from keras_san.checks import check_count
from keras_san.networks import stargan

# Of these attributes an image has one at most.
_EXCLUSIVE = {
    "digits": (("red", "green", "blue"),),
    "celeb_a": (("Black_Hair", "Blond_Hair", "Brown_Hair"),),
}

_Groups = tyro.conf.UseAppendAction[
    settings.shown(tuple[tuple[str, ...], ...], "NAME...")
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images(settings.Data):
    """The images, and the attributes to change."""

    data: settings.Name = "digits"
    """digits (in colour); a folder, see --csv; or as celeb_a"""
    csv: settings.SomePath = None
    """of a folder: a header, then path and attributes of each image"""
    attributes: settings.shown(tuple[str, ...] | None, "NAME...") = None
    """which to change; by default all, of celeb_a five"""
    exclusive: _Groups = ()
    """those of which an image has one; may be repeated"""
    images: settings.SomeCount = None
    """how many to train on at most"""
    size: settings.Count
    """images get N x N pixels"""

    @property
    def groups(self):
        """Groups of exclusive attributes, or those known of the dataset."""
        if self.exclusive:
            return [list(group) for group in self.exclusive]
        groups = _EXCLUSIVE.get(self.data.partition(":")[0], ())
        if self.attributes is not None:
            groups = [[x for x in g if x in self.attributes] for g in groups]
        return [list(group) for group in groups if len(group) > 1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(settings.Run, settings.Training, settings.Critic, Images):
    """Trains a network that changes attributes of images."""

    preset: settings.Name = "small"
    """small or paper (StarGAN's sizes); sets all else"""
    normalizer: settings.Name = "san"
    """san, sn, ssn, bsn, bssn, conv_sn, none, or wgan_gp"""
    blocks: settings.Count
    """residual blocks of the generator"""
    halvings: settings.Count
    """strided convolutions of the critic"""
    loss: settings.Name = "hinge"
    """or wasserstein, non_saturating"""
    class_weight: settings.Number = 1.0
    """in both losses"""
    cycle_weight: settings.Number = 10.0
    """in the generator's loss"""
    identity_weight: settings.Number = 0.0
    """in it, too; at 0 digits turn into what is around them"""
    show: settings.Count = 8
    """images to change after each epoch"""

    @property
    def default_name(self):
        """The dataset, the generator, and the normalizer."""
        return f"{self.dataset}-stargan-{self.normalizer}"


# A small network for trying things out, and StarGAN's sizes with SAN's hinge
# loss and single update of the critic. An epoch is no pass over the data but
# what lies between two reports.
PAPER = Settings(
    preset="paper",
    size=128,
    blocks=6,
    halvings=6,
    learning_rate=1e-4,
    decay=0.5,
    batch_size=16,
    epochs=200,
    steps_per_epoch=1000,
)
PRESETS = {
    "small": dataclasses.replace(
        PAPER,
        preset="small",
        size=32,
        width=0.25,
        critic_width=0.5,
        blocks=2,
        halvings=3,
        identity_weight=10.0,
        learning_rate=5e-4,
        epochs=10,
        steps_per_epoch=100,
    ),
    "paper": PAPER,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Edit(settings.Conversion):
    """Changes attributes of your own images."""

    output: settings.Path = "edited"
    """folder to write to, under the same names"""
    run: settings.Path = "runs/digits-stargan-san"
    """folder of a training"""
    set: settings.shown(tuple[str, ...], "NAME...") = ()
    """attributes to have; by default, without --clear, a row of changes"""
    clear: settings.shown(tuple[str, ...], "NAME...") = ()
    """attributes not to have"""


def preset(asked):
    """The settings of a preset, as the original's penalty changes them."""
    found = settings.preset(PRESETS, asked)
    if asked.normalizer != "wgan_gp":
        return found
    return dataclasses.replace(
        found,
        normalizer="wgan_gp",
        padding="same",
        loss="wasserstein",
        critic_steps=5,
        betas=(0.5, 0.999),
        # The original counts the updates of the critic.
        epochs=found.epochs // (5 if found.preset == "paper" else 1),
    )


def parse(argv=None):
    """Reads `Settings` from the command line."""
    prog = "-m experiments.attribute_transfer train"
    return settings.parse(Settings, prog, argv, PRESETS["small"], preset)


def main(argv=None):
    """Does what the command line says, and returns the exit status."""
    commands = {
        "train": (Settings, lambda argv: run(parse(argv))),
        "edit": (Edit, edit),
    }
    return settings.command("attribute_transfer", commands, argv)


def run(args):
    """Trains a generator and a critic on images and their attributes.

    Args:
        args: `Settings`.

    Raises:
        ValueError: for settings or files that nothing can be done with, and
            for an output folder that exists from another run.
        OSError: if a file cannot be written.
        ImportError: if a package is not installed.
    """
    training.check(args)
    scope = runs.strategy_scope(args.strategy)
    check_count("show", args.show)
    check_size(args)
    if args.attributes is not None:
        groups_of(args.groups, args.attributes)
    run = runs.Run(args)
    train, validation = load_images(args)
    names = train.attribute_names
    exclusive = groups_of(args.groups, names)
    gan = run.build(scope, lambda: make_gan(args, len(names)))
    drawn = attributes.make_batches(
        train,
        args.batch_size * args.critic_steps,
        args.seed,
        # A mirrored 3 is none.
        mirror=args.data != "digits",
    )

    def picture(gan):
        rows = changed_rows(
            gan.generate, validation.images, validation.attributes, exclusive
        )
        return callbacks.image_grid(np.concatenate(rows), 1 + len(names))

    grid = callbacks.SampleGrid(run.folder, scale=2, picture=picture)
    # Only now, that nothing about the settings can be wrong any more.
    run.begin()
    run.write("attributes.json", {"names": names, "exclusive": args.groups})
    run.fit(gan, drawn, run.callbacks(grid))
    network = gan.averaged_generator or gan.generator
    runs.save_network(network, run.path("generator.keras"))
    # It tells which attributes an image has before any is changed.
    runs.save_network(keras_san.strip(gan.critic), run.path("critic.keras"))
    run.export(network)
    print(f"Look at {run.path('samples.png')}: {', '.join(['as is', *names])}")
    print(f"The generator is {run.path('generator.keras')}")


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
    """The images to train on, and those to show changes of."""
    shared = {
        "size": args.size,
        "csv": args.csv,
        "data_dir": args.data_dir,
        "download": args.download,
    }
    train = attributes.load(
        args.data, attributes=args.attributes, limit=args.images, **shared
    )
    validation = attributes.load(
        args.data,
        "validation",
        attributes=train.attribute_names,
        limit=args.show,
        **shared,
    )
    return train, validation


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
    """The compiled GAN that settings describe."""
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
            width=args.critic_width or args.width,
            halvings=args.halvings,
            normalizer=training.make_normalizer(args),
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
    return training.compile(gan, args)


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
    images = batches.to_float(images)
    columns = [images] + [
        generate(images, changed(values, place, exclusive))
        for place in range(values.shape[1])
    ]
    return list(np.stack(columns, axis=1))


def edit(argv=None):
    """Changes attributes of images, and tells which could not be read."""
    prog = "-m experiments.attribute_transfer edit"
    args = settings.parse(Edit, prog, argv)
    generator, critic = (
        runs.load_network(
            os.path.join(args.run, f"{name}.keras"), "attribute_transfer"
        )
        for name in ("generator", "critic")
    )
    known = runs.read_json(args.run, "attributes.json")
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
            f"{[*args.set]} --clear {[*args.clear]}"
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
        floats = batches.to_float(images)
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
    settings.start(main)
