"""Trains a network that changes attributes of images, and uses it.

Without arguments, `train` takes scikit-learn's handwritten digits in three
colours, thick and thin, which need no network, for a few minutes on two CPU
cores. See `python -m experiments.attribute_transfer train --help`.
"""

import dataclasses
import os

import numpy as np
import tyro
from PIL import Image

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
from keras_san import callbacks, penalties
from keras_san.checks import check_count
from keras_san.networks import stargan

# Of these attributes an image has one at most.
_EXCLUSIVE = {
    "digits": ("red", "green", "blue"),
    "celeb_a": ("Black_Hair", "Blond_Hair", "Brown_Hair"),
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
        """Groups of exclusive attributes, or the one known of the dataset."""
        if self.exclusive:
            return [[*group] for group in self.exclusive]
        known = _EXCLUSIVE.get(self.data.partition(":")[0], ())
        asked = known if self.attributes is None else self.attributes
        group = [x for x in known if x in asked]
        return [group] if len(group) > 1 else []


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
    """Trains a generator and a critic on images and their attributes."""
    run = runs.Run(args)
    check_count("show", args.show)
    factor = max(4, 2**args.halvings)
    if args.size < factor or args.size % factor:
        raise ValueError(
            f"With --halvings {args.halvings} images must have a size that is "
            f"a multiple of {factor}. Received: --size {args.size}"
        )
    names, train, (shown, having) = attributes.load(args)
    exclusive = attributes.places(args.groups, names)
    gan = run.build(lambda: make_gan(args, len(names)))
    drawn = batches.Batches(
        train,
        args.batch_size * args.critic_steps,
        args.seed,
        mirror=args.data != "digits",  # A mirrored 3 is none.
        prepare=lambda pixels, values: (batches.to_float(pixels), values),
    )

    def picture(gan):
        images = batches.to_float(shown)
        rows = changed_rows(gan.generate, images, having, exclusive)
        return callbacks.image_grid(np.concatenate(rows), 1 + len(names))

    grid = callbacks.SampleGrid(run.folder, scale=2, picture=picture)
    run.begin(attributes={"names": names, "exclusive": args.groups})
    run.fit(gan, drawn, grid)
    # It tells which attributes an image has before any is changed.
    runs.save_network(keras_san.strip(gan.critic), run.path("critic.keras"))
    run.export(run.save(gan))
    print(f"The columns of samples.png: {', '.join(['as is', *names])}")


def make_gan(args, num_attributes):
    """The compiled GAN that settings describe."""
    generator = stargan.generator(
        num_attributes,
        width=args.width,
        blocks=args.blocks,
        resolution=args.size,
    )
    critic = stargan.critic(
        *(args.size, num_attributes),
        width=args.critic_width or args.width,
        halvings=args.halvings,
        normalizer=training.make_normalizer(args),
        padding=args.padding,
    )
    gan = keras_san.AttributeGAN(
        *(generator, critic),
        *(args.class_weight, args.cycle_weight, args.identity_weight),
        loss=args.loss,
        critic_steps=args.critic_steps,
        penalty=(
            penalties.GradientPenalty()
            if args.normalizer == "wgan_gp"
            else None
        ),
        ema=args.ema or None,
        seed=args.seed,
    )
    return training.compile(gan, args)


def changed(values, place, exclusive):
    """Attributes `(n, number)` with that one turned into its opposite.

    One of an exclusive group, a list of places, takes the place of the others.
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

    They and what `generate` makes of them and of attributes are floats in
    [-1, 1], and returned as an array `(n, 1 + number, size, size, 3)`.
    """
    columns = [
        generate(images, changed(values, place, exclusive))
        for place in range(values.shape[1])
    ]
    return np.stack([images, *columns], axis=1)


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
    names, groups = known["names"], known["exclusive"]
    exclusive = attributes.places(groups, names)
    attributes.check("--set", args.set, names)
    attributes.check("--clear", args.clear, names)
    wrong = {*args.set} & {*args.clear}
    for asked in ({*args.set} & {*group} for group in groups):
        wrong |= asked if len(asked) > 1 else set()
    if wrong:
        raise ValueError(
            "An image cannot have these and not have them, or have several of "
            f"an exclusive group. Received: {sorted(wrong)} in --set "
            f"{[*args.set]} --clear {[*args.clear]}"
        )

    def generate(*inputs):
        return generator.predict_on_batch([*inputs])

    def work(source, target):
        size = generator.input_shape[0][1]
        image = attributes.square(data.decode(source), size)
        images = batches.to_float(np.asarray(image)[None])
        values = np.float32(critic.predict_on_batch(images)[1] > 0.0)
        having = [n for n, value in zip(names, values[0]) if value]
        if args.set or args.clear:
            for place in map(names.index, args.set):
                values[0, place] = 0.0
                values = changed(values, place, exclusive)
            values[0, [*map(names.index, args.clear)]] = 0.0
            picture = callbacks.image_grid(generate(images, values), 1, 0)
        else:
            (row,) = changed_rows(generate, images, values, exclusive)
            picture = callbacks.image_grid(row, len(row))
        files.save(Image.fromarray(picture), target)
        return f"{', '.join(having) or 'no attribute'}; {target}"

    return int(bool(files.convert(work, args.paths, args.output, args.force)))


if __name__ == "__main__":
    settings.start(main)
