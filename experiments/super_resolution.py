"""Trains a network that enlarges photographs, measures it, and uses it.

Without arguments, `train` takes scikit-image's bundled photographs, which
need no network, for a few minutes on two CPU cores. See
`python -m experiments.super_resolution train --help`.
"""

import argparse
import os
import sys

import keras
from PIL import Image

import keras_san
from experiments import (
    command_line,
    comparing,
    photographs,
    runs,
    upscaling,
)
from keras_san import callbacks, losses
from keras_san.checks import check_count
from keras_san.networks import srgan

# What trains the networks: a small one for trying things out, the settings of
# the paper, and those of its authors' code. An epoch is no pass over the data
# but what lies between two reports.
_PAPER = {
    "width": 1.0,
    "critic_width": 1.0,
    "blocks": 16,
    "perceptual": "vgg19",
    "perceptual_weight": 1.0,
    "pixel_weight": 0.01,
    "adversarial_weight": 0.1,
    "pixel_order": 2,
    "batch_norm": False,
    "learning_rate": 2e-4,
    "pretraining_rate": 2e-4,
    "generator_betas": [0.5, 0.9],
    "critic_betas": [0.5, 0.9],
    "halve_at": [0.125, 0.25, 0.5, 0.75],
    "batch_size": 32,
    "crop": 40,
    "critic_resolution": 128,
    "pretraining_epochs": 200,
    "epochs": 800,
    "steps_per_epoch": 500,
}
_AUTHORS = {
    "pixel_weight": 1.0,
    "pixel_order": 1,
    "batch_norm": True,
    "generator_betas": [0.9, 0.99],
    "halve_at": [0.3, 0.6, 0.9],
    "batch_size": 16,
    "pretraining_epochs": 800,
}
_SMALL = {
    "width": 0.5,
    "critic_width": 0.25,
    "blocks": 4,
    "perceptual": "none",
    "pixel_order": 1,
    "pixel_weight": 1.0,
    "adversarial_weight": 0.01,
    "pretraining_rate": 1e-3,
    "halve_at": [0.5, 0.75],
    "batch_size": 8,
    "crop": 24,
    "critic_resolution": 64,
    "pretraining_epochs": 6,
    "epochs": 4,
    "steps_per_epoch": 100,
}
PRESETS = {
    "small": {**_PAPER, **_SMALL},
    "paper": _PAPER,
    "authors": {**_PAPER, **_AUTHORS},
}


def parse(argv=None):
    """Reads the command line into a namespace."""
    parser, command = command_line.commands("super_resolution", __doc__)
    _add_training(command("train", "Trains a network."))
    _add_evaluation(
        command("evaluate", "Measures networks on pairs of photographs.")
    )
    _add_upscaling(command("upscale", "Enlarges photographs of your own."))
    args = parser.parse_args(argv)
    if args.command == "train":
        command_line.fill(args, PRESETS[args.preset])
        if args.name is None:
            dataset = os.path.basename(os.path.normpath(args.data))
            args.name = f"{dataset}-{args.normalizer}"
    return args


def _add_data(add):
    add(
        "--data",
        default="photographs",
        help="photographs: those that come with scikit-image; a folder of "
        "photographs, or one with sub-folders HR and LR of equal names; or a "
        "name in tensorflow-datasets, as div2k/bicubic_x4",
    )
    add(
        "--small",
        metavar="FOLDER",
        help="the small photographs of the folder --data (default: made by "
        "antialiased bicubic downscaling, as MATLAB's)",
    )
    add("--data-dir", help="where tensorflow-datasets keeps its data")
    add(
        "--download",
        action="store_true",
        help="let tensorflow-datasets download what is missing, and Keras the "
        "weights of VGG19",
    )
    add(
        "--cache",
        metavar="FOLDER",
        help="keep decoded photographs there, in place of in memory",
    )
    add(
        "--niqe-model",
        metavar="NPZ",
        help="the natural photographs that NIQE compares with, as in "
        "niqe_pris_params.npz (default: fitted to those of BSDS500)",
    )


def _add_training(parser):
    add = parser.add_argument
    _add_data(add)
    add(
        "--validation",
        metavar="DATA",
        help="what to measure on while it trains, as --data (default: of "
        "photographs a cat; of tensorflow-datasets the validation split; of a "
        "folder its last photographs, which are then not trained on)",
    )
    add(
        "--validation-photographs",
        type=int,
        default=4,
        metavar="N",
        help="how many to measure on, the middle 480 x 480 pixels of each",
    )
    add(
        "--preset",
        default="small",
        choices=PRESETS,
        help="small: for trying things out; paper: the settings of the SAN "
        "paper; authors: those of its authors' code, but for the noise on "
        "images, and for the gain and the interval of SAN, which their batch "
        "normalization cancels. What follows changes a single one",
    )
    add("--scale", type=int, default=4, choices=[2, 3, 4, 8])
    add("--width", type=float, help="factor on the generator's channels")
    add("--blocks", type=int, help="residual blocks of the generator")
    add("--critic-width", type=float, help="factor on the critic's channels")
    command_line.add_normalizer(parser)
    add(
        "--batch-norm",
        action=argparse.BooleanOptionalAction,
        help="the authors' critic, in which it makes no difference by what "
        "convolutions are divided",
    )
    command_line.add_perceptual(parser)
    add(
        "--perceptual-layer",
        default="block5_conv4",
        help="whose features, before the activation, are compared",
    )
    for name in ("pixel", "perceptual", "adversarial"):
        add(f"--{name}-weight", type=float, help="in the generator's loss")
    add(
        "--pixel-order",
        type=int,
        choices=[1, 2],
        help="of the pretraining's loss: absolute or squared differences",
    )
    add("--crop", type=int, help="height and width of the small crops")
    add(
        "--critic-resolution",
        type=int,
        metavar="N",
        help="the critic sees N x N pixels, a multiple of 32",
    )
    add("--batch-size", type=int)
    add("--pretraining-epochs", type=int, help="by the pixel loss alone")
    add("--epochs", type=int, help="with the critic")
    add("--steps-per-epoch", type=int)
    add("--learning-rate", type=command_line.learning_rate)
    add("--pretraining-rate", type=command_line.learning_rate)
    add("--generator-betas", type=float, nargs=2, help="of Adam")
    add("--critic-betas", type=float, nargs=2, help="of Adam")
    add(
        "--halve-at",
        type=float,
        nargs="*",
        metavar="PART",
        help="parts of either training after which its learning rate halves",
    )
    add("--critic-steps", type=int, default=1, help="for one of the generator")
    add("--ema", type=float, default=0.0, help="decay of the average generator")
    add(
        "--pretrained",
        metavar="FILE",
        help="begin with this generator in place of a pretraining",
    )
    runs.add_arguments(parser)
    # What its name says of image generation's runs holds here, too: a rate
    # that falls by parts of a training falls by its length.
    parser.set_defaults(decay="halve")


def _add_evaluation(parser):
    add = parser.add_argument
    _add_data(add)
    add(
        "--generator",
        nargs="+",
        metavar="FILE",
        help="networks to measure (default: those of --run)",
    )
    add("--run", default="runs/photographs-san", help="folder of a training")
    add("--scale", type=int, default=4)
    add(
        "--crop",
        type=int,
        help="pixels at each border that do not count (default: the scale)",
    )
    add(
        "--output",
        help="folder of table and figures (default: that of the network)",
    )


def _add_upscaling(parser):
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATH", help="photographs and folders")
    add(
        "--generator",
        default="runs/photographs-san/generator.keras",
        metavar="FILE",
    )
    add("--output", default="upscaled", help="folder")
    add("--force", action="store_true", help="overwrite files")
    add(
        "--tile",
        type=int,
        default=128,
        help="height and width of what is enlarged at once",
    )


def main(argv=None):
    """Does what the command line says.

    Args:
        argv: List of strings, or `None` for the arguments of the process.

    Returns:
        An int, the exit status.

    Raises:
        ValueError: for settings or photographs that nothing can be done with,
            and for an output folder that exists from another run.
        OSError: if a file cannot be written.
        ImportError: if a package is not installed.
    """
    args = parse(argv)
    commands = {"train": train, "evaluate": evaluate, "upscale": upscale}
    return commands[args.command](args)


def train(args):
    """Pretrains a generator by the pixel loss, then trains it with a critic."""
    command_line.check_trains(args)
    scope = runs.strategy_scope(args.strategy)
    check_count("crop", args.crop)
    check_count("pretraining_epochs", args.pretraining_epochs, least=0)
    run = runs.Run(args)
    content_losses = make_content_losses(args)
    pairs, validation = load_pairs(args)
    keras.utils.set_random_seed(args.seed)
    keras.config.set_dtype_policy(args.precision)
    if args.critic_resolution > args.crop * args.scale:
        raise ValueError(
            "The critic cannot see more than a crop has: pass --crop "
            f"{-(-args.critic_resolution // args.scale)} or more, or a "
            "smaller --critic-resolution. Received: --critic-resolution "
            f"{args.critic_resolution} with --crop {args.crop}, which is "
            f"{args.crop * args.scale} x {args.crop * args.scale} large"
        )
    with scope:
        generator = make_generator(args)
        gan = keras_san.PairedGAN(
            make_generator(args),
            make_critic(args),
            content_losses,
            args.adversarial_weight,
            critic_steps=args.critic_steps,
            ema=args.ema or None,
            seed=args.seed,
        )
        gan.compile(
            make_optimizer(args, args.generator_betas, 1),
            make_optimizer(args, args.critic_betas, args.critic_steps),
            jit_compile=True if args.jit else "auto",
            steps_per_execution=args.steps_per_execution,
        )
        if args.pretrained is None:
            # Like the GAN's: a file can only restore variables that exist.
            generator.compile(
                make_pretraining_optimizer(args),
                loss=f"mean_{_ORDERS[args.pixel_order]}_error",
                jit_compile=True if args.jit else "auto",
                steps_per_execution=args.steps_per_execution,
            )
            generator.optimizer.build(generator.trainable_variables)
        else:
            load_weights_of(generator, args.pretrained)
    crops = make_crops(args, pairs, before=args.pretraining_epochs)
    quality = callbacks.ImageQuality(
        validation.small,
        validation.large,
        crop=args.scale,
        niqe_model=args.niqe_model,
    )
    # Only now, that nothing about the arguments can be wrong any more.
    run.begin()
    pretrained = run.path("pretrained.keras")
    if args.pretrained is None and not os.path.exists(pretrained):
        pretrain(args, run, generator, pairs, validation, quality)
    if os.path.exists(pretrained):
        load_weights_of(generator, pretrained)
    else:
        command_line.save_network(generator, pretrained)
    gan.generator.set_weights(generator.get_weights())
    if gan.averaged_generator is not None:
        gan.averaged_generator.set_weights(generator.get_weights())
    run.checkpoint.restore(gan)
    finished = run.checkpoint.finished_epochs()
    sheet = comparing.ComparisonSheet(run.folder, validation, generator)
    gan.fit(
        crops,
        epochs=args.epochs,
        initial_epoch=finished,
        shuffle=False,
        verbose=0,
        callbacks=[
            crops.follow(),
            quality,
            callbacks.Progress(),
            sheet,
            callbacks.TrainingLog(run.folder),
            callbacks.TensorBoard(
                # Which the sheet has just drawn.
                run.path("tensorboard"),
                picture=lambda model: sheet.latest,
            ),
            # Last: what it has saved, the others have seen.
            run.checkpoint,
        ],
    )
    network = gan.averaged_generator or gan.generator
    command_line.save_network(network, run.path("generator.keras"))
    print(f"Look at {run.path('comparison.png')}")
    print(f"The generator is {run.path('generator.keras')}")
    return 0


def pretrain(args, run, generator, pairs, validation, quality):
    """Trains the generator by the pixel loss alone, in a folder of its own."""
    folder = run.path("pretraining")
    checkpoint = callbacks.Checkpoint(os.path.join(folder, "checkpoint"))
    finished = checkpoint.restore(generator)
    if finished < args.pretraining_epochs:
        crops = make_crops(args, pairs)
        generator.fit(
            crops,
            epochs=args.pretraining_epochs,
            initial_epoch=finished,
            shuffle=False,
            verbose=0,
            callbacks=[
                crops.follow(),
                callbacks.StopWhenNotFinite(),
                quality,
                callbacks.Progress(),
                comparing.ComparisonSheet(folder, validation),
                callbacks.TrainingLog(folder),
                checkpoint,
            ],
        )


def load_pairs(args):
    """What to train on, and what to measure on while it trains."""
    shared = {
        "scale": args.scale,
        "data_dir": args.data_dir,
        "download": args.download,
        "cache": args.cache,
    }
    pairs = photographs.load(args.data, small=args.small, **shared)
    count = args.validation_photographs
    check_count("validation_photographs", count)
    if args.validation is None and os.path.isdir(args.data):
        if len(pairs) <= count:
            raise ValueError(
                "Of a folder --validation-photographs are set apart, and "
                "something must be left: pass --validation, or add "
                f"photographs. Received: {len(pairs)} in {args.data!r}, with "
                f"--validation-photographs {count}"
            )
        pairs, validation = pairs[:-count], pairs[-count:]
    else:
        name = args.validation or args.data
        validation = photographs.load(
            name, split="validation", limit=count, **shared
        )
    return pairs, validation.middle(480)


def make_crops(args, pairs, before=0):
    """The batches of a training, those of which follow others' epochs."""
    return photographs.Crops(
        pairs,
        args.crop,
        args.batch_size * args.critic_steps,
        args.steps_per_epoch,
        args.seed,
        before,
    )


def make_generator(args):
    """The generator that the arguments describe."""
    return srgan.generator(args.scale, width=args.width, blocks=args.blocks)


def make_critic(args):
    """The critic that the arguments describe."""
    return srgan.critic(
        args.critic_resolution,
        width=args.critic_width,
        normalizer=command_line.make_normalizer(args),
        batch_norm=args.batch_norm,
    )


def make_content_losses(args):
    """The losses beside the adversarial one that the arguments describe."""
    content_losses = []
    if args.pixel_weight:
        content_losses.append(losses.PixelLoss(args.pixel_weight))
    content_losses += command_line.make_perceptual_losses(
        args, layers=args.perceptual_layer
    )
    return content_losses


_ORDERS = {1: "absolute", 2: "squared"}


def make_optimizer(args, betas, updates_per_step):
    """Adam of the adversarial training."""
    steps = args.epochs * args.steps_per_epoch * updates_per_step
    rate = _halved(args.learning_rate, steps, args.halve_at)
    return keras.optimizers.Adam(rate, beta_1=betas[0], beta_2=betas[1])


def make_pretraining_optimizer(args):
    """Adam of the pretraining, with Keras' own betas."""
    steps = args.pretraining_epochs * args.steps_per_epoch
    return keras.optimizers.Adam(
        _halved(args.pretraining_rate, steps, args.halve_at)
    )


def _halved(rate, steps, parts):
    """A learning rate that halves after each part of the steps."""
    if not all(0.0 < part < 1.0 for part in parts):
        raise ValueError(
            "--halve-at takes parts of a training, from 0 to 1, both "
            f"exclusive. Received: {parts}"
        )
    # In a short training several may fall on one step.
    ends = sorted(max(1, round(part * steps)) for part in parts)
    boundaries = sorted({*ends})
    if not boundaries:
        return rate
    rates = [rate / 2 ** sum(e <= b for e in ends) for b in boundaries]
    return keras.optimizers.schedules.PiecewiseConstantDecay(
        boundaries, [rate, *rates]
    )


def load_network(path):
    """A generator from a file of this example, or a `ValueError`."""
    return command_line.load_network(path, "super_resolution")


def load_weights_of(generator, path):
    """Takes over the weights of a generator of the same form."""
    weights = load_network(path).get_weights()
    shapes = [weight.shape for weight in weights]
    if shapes != [tuple(weight.shape) for weight in generator.weights]:
        raise ValueError(
            "The pretrained generator has another form: pass the --scale, "
            "--width and --blocks that it was trained with. "
            f"Received: {path!r}"
        )
    generator.set_weights(weights)


def evaluate(args):
    """Measures networks on pairs of photographs: a table and two figures."""
    paths = args.generator or [
        os.path.join(args.run, name)
        for name in ("pretrained.keras", "generator.keras")
    ]
    models = dict(zip(_short(paths), map(load_network, paths)))
    pairs = photographs.load(
        args.data,
        split="validation",
        scale=args.scale,
        small=args.small,
        data_dir=args.data_dir,
        download=args.download,
        cache=args.cache,
    )
    for name, model in models.items():
        made = model.compute_output_shape((1, 8, 8, 3))
        if made != (1, 8 * args.scale, 8 * args.scale, 3):
            raise ValueError(
                f"The network does not enlarge by {args.scale}: pass its "
                f"--scale. Received: {name!r}, which makes {made[1]} x "
                f"{made[2]} of 8 x 8 pixels"
            )
    crop = args.scale if args.crop is None else args.crop
    scores, made = comparing.evaluate(pairs, models, crop, args.niqe_model)
    dataset = os.path.basename(os.path.normpath(args.data))
    output = args.output or os.path.dirname(paths[0]) or "."
    os.makedirs(output, exist_ok=True)
    path = os.path.join(output, f"evaluation-{dataset}")
    print(
        f"{len(pairs)} photographs; PSNR and SSIM of the luma, {crop} pixels "
        "at each border left out"
    )
    comparing.print_table(scores)
    comparing.write_table(f"{path}.csv", pairs.names, scores)
    comparing.draw_perception_distortion(
        scores,
        f"{path}-perception-distortion.png",
        published=args.niqe_model is not None and args.scale == 4,
    )
    Image.fromarray(comparing.sheet(made)).save(f"{path}-crops.png")
    print(f"Rows and figures: {path}*")
    return 0


def _short(paths):
    """Names as short as tells networks of several runs apart."""
    parts = [
        os.path.splitext(os.path.abspath(p))[0].split(os.sep) for p in paths
    ]
    for length in range(2, 2 + max(map(len, parts))):
        names = ["/".join(part[-length:]) for part in parts]
        if len({*names}) == len(names):
            return names
    raise ValueError(
        f"Each network is measured once. Received: --generator {paths}"
    )


def upscale(args):
    """Enlarges photographs, and tells which could not be read."""
    model = load_network(args.generator)
    failures = upscaling.enlarge_files(
        model, args.paths, args.output, args.force, args.tile
    )
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
