"""Trains a network that enlarges photographs, measures it, and uses it.

Without arguments, `train` takes scikit-image's bundled photographs, which
need no network, for a few minutes on two CPU cores. See
`python -m experiments.super_resolution train --help`.
"""

import dataclasses
import os

from PIL import Image

import keras_san
from experiments import (
    comparing,
    photographs,
    runs,
    settings,
    training,
    upscaling,
)
from keras_san import callbacks, losses
from keras_san.checks import check_count
from keras_san.networks import srgan

NAME = "super_resolution"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Photographs(settings.Data):
    """The photographs, and the factor to enlarge them by."""

    data: settings.Name = "photographs"
    """photographs (scikit-image's); a folder, or one with HR and LR; \
or a name in tensorflow-datasets, as div2k/bicubic_x4"""
    small: settings.SomePath = None
    """folder of small photographs; by default made by bicubic downscaling"""
    factor: settings.Count = 4
    """by how much to enlarge: 2, 3, 4 or 8"""
    cache: settings.SomePath = None
    """folder for decoded photographs, in place of memory"""
    niqe_model: settings.SomePath = None
    """as niqe_pris_params.npz; by default a fit to BSDS500"""

    def load(self, name, split="train", **kwargs):
        """Photographs of these settings, see `photographs.load`."""
        check_count("factor", self.factor, least=2)
        return photographs.load(
            *(name, split, self.factor),
            data_dir=self.data_dir,
            download=self.download,
            cache=self.cache,
            **kwargs,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(settings.Run, settings.Training, settings.Critic, Photographs):
    """Trains a network that enlarges photographs."""

    preset: settings.Name = "small"
    """small, paper or authors (its code); sets all else"""
    validation: settings.SomeName = None
    """what to measure on, as --data; by default a part of that"""
    held_out: settings.Count = 4
    """the middle 480 x 480 pixels of so many"""
    blocks: settings.Count
    """residual blocks of the generator"""
    batch_norm: settings.Flag = False
    """the authors' critic, which cancels what kernels are divided by"""
    perceptual: settings.Name
    """none, vgg19, its weights (.h5), or a Keras model"""
    perceptual_layer: settings.Name = "block5_conv4"
    """whose features are compared, before the activation"""
    perceptual_weight: settings.Number = 1.0
    """in the generator's loss"""
    pixel_weight: settings.Number
    """in the generator's loss"""
    adversarial_weight: settings.Number
    """in the generator's loss"""
    pixel_order: settings.Count
    """of the pretraining's loss: 1, absolute, or 2, squared"""
    crop: settings.Count
    """height and width of the small crops"""
    critic_resolution: settings.Count
    """the critic sees N x N pixels, a multiple of 32"""
    pretraining_epochs: settings.Count
    """by the pixel loss alone"""
    pretraining_rate: settings.Number
    """learning rate of these"""
    generator_betas: settings.shown(tuple[float, float] | None, "B1 B2") = None
    """those of the generator, if they are others"""
    pretrained: settings.SomePath = None
    """begin with this generator in place of a pretraining"""

    @property
    def default_name(self):
        """The dataset and the normalizer."""
        return f"{self.dataset}-{self.normalizer}"


# The settings of the SAN paper, those of its authors' code (but for the noise
# on images, and for the gain and the interval of SAN, which their batch
# normalization cancels), and small ones for trying things out. An epoch is no
# pass over the data but what lies between two reports.
PAPER = Settings(
    preset="paper",
    blocks=16,
    perceptual="vgg19",
    pixel_weight=0.01,
    adversarial_weight=0.1,
    pixel_order=2,
    learning_rate=2e-4,
    pretraining_rate=2e-4,
    halve_at=(0.125, 0.25, 0.5, 0.75),
    batch_size=32,
    crop=40,
    critic_resolution=128,
    pretraining_epochs=200,
    epochs=800,
    steps_per_epoch=500,
)
PRESETS = {
    "small": dataclasses.replace(
        PAPER,
        preset="small",
        width=0.5,
        critic_width=0.25,
        blocks=4,
        perceptual="none",
        pixel_order=1,
        pixel_weight=1.0,
        adversarial_weight=0.01,
        pretraining_rate=1e-3,
        halve_at=(0.5, 0.75),
        batch_size=8,
        crop=24,
        critic_resolution=64,
        pretraining_epochs=6,
        epochs=4,
        steps_per_epoch=100,
    ),
    "paper": PAPER,
    "authors": dataclasses.replace(
        PAPER,
        preset="authors",
        pixel_weight=1.0,
        pixel_order=1,
        batch_norm=True,
        generator_betas=(0.9, 0.99),
        halve_at=(0.3, 0.6, 0.9),
        batch_size=16,
        pretraining_epochs=800,
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measurement(Photographs):
    """Measures networks on pairs of photographs."""

    generator: settings.shown(tuple[str, ...], "FILE...") = ()
    """networks to measure; by default those of --run"""
    run: settings.Path = "runs/photographs-san"
    """folder of a training"""
    border: settings.SomeCount = None
    """pixels at each border that do not count; by default the factor"""
    output: settings.SomePath = None
    """folder of table and figures; by default that of the network"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Upscaling(settings.Conversion):
    """Enlarges photographs of your own."""

    output: settings.Path = "upscaled"
    """folder to write to, under the same names"""
    generator: settings.Path = "runs/photographs-san/generator.keras"
    """the network"""
    tile: settings.Count = 128
    """height and width of what is enlarged at once"""


def parse(argv=None):
    """Reads `Settings` from the command line."""
    return settings.parse(
        *(Settings, f"-m experiments.{NAME} train", argv, PRESETS["small"]),
        choose=lambda asked: settings.preset(PRESETS, asked),
    )


def main(argv=None):
    """Does what the command line says, and returns the exit status."""
    commands = {
        "train": (Settings, lambda argv: run(parse(argv))),
        "evaluate": (Measurement, evaluate),
        "upscale": (Upscaling, upscale),
    }
    return settings.command(NAME, commands, argv)


def run(args):
    """Pretrains a generator by the pixel loss, then trains it with a critic."""
    run = runs.Run(args)
    check_count("crop", args.crop)
    check_count("held_out", args.held_out)
    check_count("pretraining_epochs", args.pretraining_epochs, least=0)
    content_losses = make_content_losses(args)
    pairs, validation = load_pairs(args)
    needed = -(-args.critic_resolution // args.factor)
    if args.crop < needed:
        raise ValueError(
            f"The critic cannot see more than a crop has: pass --crop {needed} "
            "or more, or a smaller --critic-resolution. Received: --crop "
            f"{args.crop} --factor {args.factor} --critic-resolution "
            f"{args.critic_resolution}"
        )
    generators = []

    def make():
        generators.append(make_pretrained(args))
        return make_gan(args, content_losses)

    gan = run.build(make)
    (generator,) = generators
    size = args.batch_size * args.critic_steps
    crops = photographs.Crops(pairs, args.crop, size, args.seed)
    _, small, large = zip(*validation)
    quality = callbacks.ImageQuality(
        small, large, crop=args.factor, niqe_model=args.niqe_model
    )
    run.begin()
    pretrained = run.path("pretrained.keras")
    if os.path.exists(pretrained):
        load_weights_of(generator, pretrained)
    else:
        if args.pretrained is None:
            pretrain(args, run, generator, crops, validation, quality)
        runs.save_network(generator, pretrained)
    if not run.finished:
        for network in (gan.generator, gan.averaged_generator):
            if network is not None:
                network.set_weights(generator.get_weights())
    sheet = comparing.ComparisonSheet(run.folder, validation, generator)
    run.fit(gan, crops, sheet, [quality], before=args.pretraining_epochs)
    run.save(gan, "comparison.png")


def pretrain(args, run, generator, crops, validation, quality):
    """Trains the generator by the pixel loss alone, in a folder of its own."""
    folder = run.path("pretraining")
    checkpoint = callbacks.Checkpoint(os.path.join(folder, "checkpoint"))
    shown = [
        *(callbacks.StopWhenNotFinite(), quality, callbacks.Progress()),
        comparing.ComparisonSheet(folder, validation),
        *(callbacks.TrainingLog(folder), checkpoint),
    ]
    finished, epochs = checkpoint.restore(generator), args.pretraining_epochs
    if finished < epochs:
        steps = args.steps_per_epoch
        runs.fit(generator, crops, shown, finished, epochs, steps)


def load_pairs(args):
    """The photographs to train on, and those to measure meanwhile."""
    pairs = args.load(args.data, small=args.small)
    count = args.held_out
    if args.validation is not None or not os.path.isdir(args.data):
        name = args.validation or args.data
        validation = args.load(name, "validation", limit=count)
    elif len(pairs) <= count:
        raise ValueError(
            "Of a folder --held-out are set apart, and something must be "
            "left: pass --validation, or add photographs. Received: "
            f"{len(pairs)} in {args.data!r}, with --held-out {count}"
        )
    else:
        pairs, validation = pairs[:-count], pairs[-count:]
    return pairs, [pair.middle(480) for pair in validation]


def make_generator(args):
    """The generator that settings describe."""
    return srgan.generator(args.factor, width=args.width, blocks=args.blocks)


def make_pretrained(args):
    """The generator that is pretrained, or was."""
    generator = make_generator(args)
    if args.pretrained is not None:
        load_weights_of(generator, args.pretrained)
        return generator
    order = {1: "absolute", 2: "squared"}.get(args.pixel_order)
    if order is None:
        raise ValueError(
            "The order of the pixel loss is 1 or 2. Received: --pixel-order "
            f"{args.pixel_order}"
        )
    adam = training.make_adam(
        args, args.pretraining_rate, epochs=args.pretraining_epochs
    )
    loss = f"mean_{order}_error"
    generator.compile(adam, loss=loss, **training.execution(args))
    # Like the GAN's: a file can only restore variables that exist.
    generator.optimizer.build(generator.trainable_variables)
    return generator


def make_gan(args, content_losses):
    """The compiled GAN that settings describe."""
    gan = keras_san.PairedGAN(
        make_generator(args),
        srgan.critic(
            args.critic_resolution,
            width=args.critic_width or args.width,
            normalizer=training.make_normalizer(args),
            padding=args.padding,
            batch_norm=args.batch_norm,
        ),
        content_losses,
        args.adversarial_weight,
        critic_steps=args.critic_steps,
        ema=args.ema or None,
        seed=args.seed,
    )
    return training.compile(gan, args, args.generator_betas)


def make_content_losses(args):
    """The losses beside the adversarial one that settings describe."""
    pixel = [losses.PixelLoss(args.pixel_weight)] if args.pixel_weight else []
    return pixel + training.make_perceptual_losses(
        args, layers=args.perceptual_layer
    )


def load_weights_of(generator, path):
    """Takes over the weights of a generator of the same form."""
    weights = runs.load_network(path, NAME).get_weights()
    shapes = [weight.shape for weight in weights]
    if shapes != [tuple(weight.shape) for weight in generator.weights]:
        raise ValueError(
            "The pretrained generator has another form: pass the --factor, "
            f"--width and --blocks of its training. Received: {path!r}"
        )
    generator.set_weights(weights)


def evaluate(argv=None):
    """Measures networks on pairs of photographs: a table and two figures."""
    args = settings.parse(Measurement, f"-m experiments.{NAME} evaluate", argv)
    paths = args.generator or [
        os.path.join(args.run, name)
        for name in ("pretrained.keras", "generator.keras")
    ]
    models = {}
    for name, path in zip(_short(paths), paths):
        models[name] = runs.load_network(path, NAME)
        made = models[name].compute_output_shape((1, 8, 8, 3))
        if made != (1, 8 * args.factor, 8 * args.factor, 3):
            raise ValueError(
                f"The network does not enlarge by {args.factor}: pass its "
                f"--factor. Received: {name!r}, which makes {made[1]} x "
                f"{made[2]} of 8 x 8 pixels"
            )
    pairs = args.load(args.data, "validation", small=args.small)
    border = args.factor if args.border is None else args.border
    scores, made = comparing.evaluate(pairs, models, border, args.niqe_model)
    output = args.output or os.path.dirname(paths[0]) or "."
    os.makedirs(output, exist_ok=True)
    path = os.path.join(output, f"evaluation-{args.dataset}")
    print(
        f"{len(pairs)} photographs; PSNR and SSIM of the luma, {border} pixels "
        "at each border left out"
    )
    comparing.print_table(scores)
    comparing.write_table(f"{path}.csv", pairs, scores)
    comparing.draw_perception_distortion(
        scores,
        f"{path}-perception-distortion.png",
        published=args.niqe_model is not None and args.factor == 4,
    )
    Image.fromarray(comparing.sheet(made)).save(f"{path}-crops.png")
    print(f"Rows and figures: {path}*")
    return 0


def _short(paths):
    """Names as short as tells networks of several runs apart."""
    stems = [os.path.splitext(os.path.abspath(path))[0] for path in paths]
    parts = [stem.split(os.sep) for stem in stems]
    for length in range(2, 2 + max(map(len, parts))):
        names = ["/".join(part[-length:]) for part in parts]
        if len({*names}) == len(names):
            return names
    raise ValueError(
        f"Each network is measured once. Received: --generator {paths}"
    )


def upscale(argv=None):
    """Enlarges photographs, and tells which could not be read."""
    args = settings.parse(Upscaling, f"-m experiments.{NAME} upscale", argv)
    model = runs.load_network(args.generator, NAME)
    failures = upscaling.enlarge_files(
        model, args.paths, args.output, args.force, args.tile
    )
    return 1 if failures else 0


if __name__ == "__main__":
    settings.start(main)
