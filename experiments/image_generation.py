"""Trains a GAN on images, and leaves samples, curves and a generator.

Without arguments: handwritten digits, which need no network, for about a
minute on two CPU cores. See `python -m experiments.image_generation --help`.
"""

import argparse
import os
import sys

import keras
import numpy as np

import keras_san
from experiments import command_line, data, runs
from keras_san import callbacks, losses, normalizers, regularizers
from keras_san.checks import check_count
from keras_san.metrics import extractors
from keras_san.networks import biggan, sngan

LATENT_DIM = 128

# The generator and critic of each network, and the defaults of what trains
# it: those of the papers, but for "small", which is for trying things out.
# An epoch is no pass over the data but what lies between two reports.
_PAPER = {
    "width": 1.0,
    "loss": "hinge",
    "batch_size": 64,
    "learning_rate": 2e-4,
    "beta_1": 0.5,
    "beta_2": 0.9,
    "critic_steps": 1,
    "epsilon": 1e-7,
    "decay": "none",
    "ema": 0.0,
    "epochs": 625,
    "steps_per_epoch": 250,
}
_SMALL = {
    "width": 0.25,
    # Ten times that of the papers. At a quarter of it half of the digits are
    # missing after as many steps.
    "learning_rate": 2e-3,
    "ema": 0.995,
    "epochs": 10,
    "steps_per_epoch": 150,
}
_BIGGAN = {
    "batch_size": 50,
    "beta_2": 0.999,
    "epsilon": 1e-8,
    "critic_steps": 4,
    "ema": 0.9999,
    "epochs": 500,
}
NETWORKS = {
    "small": (sngan.generator, sngan.critic, {**_PAPER, **_SMALL}),
    "cnn": (sngan.generator, sngan.critic, _PAPER),
    "resnet": (sngan.resnet_generator, sngan.resnet_critic, _PAPER),
    "biggan": (biggan.generator, biggan.critic, {**_PAPER, **_BIGGAN}),
}

# What each --normalizer gives to the critic where it is none of
# `keras_san.normalizers.get`: the other rows of the paper's Table 1.
BASELINES = {
    "none": {},
    "wgan_gp": {},
    "clip": {"kernel_constraint": regularizers.Clip(0.01)},
    "weight_norm": {"kernel_constraint": regularizers.UnitFilters()},
    "batch_norm": {"activation_norm": "batch"},
    "layer_norm": {"activation_norm": "layer"},
    "orthonormal": {
        "kernel_initializer": "orthogonal",
        "kernel_regularizer": regularizers.Orthonormal(),
    },
}
NORMALIZERS = ["san", "sn", "ssn", "bsn", "bssn", "conv_sn", *BASELINES]

# Where a row of Table 1 was not trained as the network's other rows.
_CROSS_ENTROPY = {"loss": "non_saturating"}
SETTINGS = {
    "wgan_gp": {
        "loss": "wasserstein",
        "critic_steps": 5,
        "learning_rate": 1e-4,
    },
    "clip": _CROSS_ENTROPY,
    "weight_norm": _CROSS_ENTROPY,
    "batch_norm": _CROSS_ENTROPY,
    "layer_norm": _CROSS_ENTROPY,
    "orthonormal": _CROSS_ENTROPY,
}


def parse(argv=None):
    """Reads the command line into a namespace."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.image_generation",
        allow_abbrev=False,
        description=__doc__.splitlines()[0],
        epilog="Where no default is given, it is that of the network, or of "
        "the normalizer's row in Table 1.",
        formatter_class=runs.Help,
    )
    add = parser.add_argument
    add(
        "--dataset",
        default="digits",
        help="digits; a name in tensorflow-datasets, as cifar10 or stl10; or "
        "a folder of images",
    )
    add("--data-dir", help="where tensorflow-datasets keeps its data")
    add(
        "--download",
        action="store_true",
        help="let tensorflow-datasets download what is missing, and Keras the "
        "Inception network",
    )
    add("--resize", type=int, metavar="N", help="crop and scale to NxN")
    add(
        "--network",
        default="small",
        choices=NETWORKS,
        help="small: SN-GAN's CNN at a quarter of its width, cnn: that CNN, "
        "resnet: SN-GAN's ResNet, biggan: class-conditional BigGAN",
    )
    add("--width", type=float, help="factor on the channels")
    add(
        "--last-block",
        action="store_true",
        help="keep the block of the resnet's critic that the SAN paper drops "
        "at 48 pixels",
    )
    add(
        "--normalizer",
        default="san",
        choices=NORMALIZERS,
        help="what keeps the critic's kernels in check",
    )
    add(
        "--form",
        choices=["divide", "project"],
        help="divide kernels in the forward pass, or project them after each "
        "update (default: that of the normalizer)",
    )
    add(
        "--scale",
        type=float,
        help="factor on the kernels; ssn and bssn need it",
    )
    add(
        "--update-interval",
        type=int,
        help="steps from one measurement of the norms to the next (default: 1)",
    )
    add(
        "--gain",
        type=_gain,
        help="san: a number that norms are multiplied by, or adaptive, which "
        "measures how sparse signals are (default: 1)",
    )
    add(
        "--sparsity",
        type=int,
        metavar="K",
        help="san: divide by the norm for signals of K channels (default: 1)",
    )
    add(
        "--padding",
        default="circular",
        choices=["circular", "same"],
        help="of the critic's convolutions; same: zeros, as critics other "
        "than SAN's were published with",
    )
    add(
        "--initializer",
        help="of the critic's kernels: a name in Keras, or a number for the "
        "standard deviation of normal ones",
    )
    add(
        "--loss",
        choices=["hinge", "wasserstein", "non_saturating"],
        help="default: hinge; for rows of Table 1 what the papers took",
    )
    add("--epochs", type=int, help="how often to report and to save")
    add("--steps-per-epoch", type=int)
    add("--batch-size", type=int, help="images of one update")
    add("--learning-rate", type=command_line.learning_rate)
    add("--beta-1", type=float, help="of Adam")
    add("--beta-2", type=float, help="of Adam")
    add("--epsilon", type=float, help="of Adam")
    add(
        "--decay",
        choices=["none", "linear"],
        help="linear: the learning rate falls to 0 at the last epoch",
    )
    add("--critic-steps", type=int, help="for one of the generator")
    add("--ema", type=float, help="decay of the average generator, 0: none")
    command_line.add_evaluation(parser, "Inception score, FID and KID")
    add("--samples", type=int, default=10_000, help="images to measure with")
    add(
        "--monitor",
        type=int,
        metavar="STEPS",
        help="diagnose the critic every so many steps (callbacks.NormMonitor), "
        "into monitor.csv and monitor.png",
    )
    runs.add_arguments(parser)
    args = parser.parse_args(argv)
    defaults = {
        **NETWORKS[args.network][2],
        **SETTINGS.get(args.normalizer, {}),
    }
    command_line.fill(args, defaults)
    if args.name is None:
        dataset = os.path.basename(os.path.normpath(args.dataset))
        args.name = "-".join(
            [dataset]
            + [args.network] * (args.network != "small")
            + [args.normalizer]
        )
    return args


def _gain(text):
    return text if text in ("auto", "adaptive") else float(text)


def main(argv=None):
    """Trains as the command line says.

    Args:
        argv: List of strings, or `None` for the arguments of the process.

    Returns:
        The trained `keras_san.GAN`.

    Raises:
        ValueError: for settings or images that cannot be trained with, and
            for an output folder that exists from another run.
        OSError: if a checkpoint cannot be written.
        ImportError: if TensorBoard is not installed.
    """
    args = parse(argv)
    scope = runs.strategy_scope(args.strategy)
    run, extractor = open_run(args)
    if extractor is not None:
        extractor = extractors.get(extractor)
    images = data.load(
        args.dataset,
        data_dir=args.data_dir,
        download=args.download,
        resize=args.resize,
    )
    keras.utils.set_random_seed(args.seed)
    keras.config.set_dtype_policy(args.precision)
    finished = run.checkpoint.finished_epochs()
    if args.batch_size * args.critic_steps > len(images):
        raise ValueError(
            "A step takes --batch-size images for each of --critic-steps, and "
            f"{images.name!r} has {len(images)}. Received: --batch-size "
            f"{args.batch_size} --critic-steps {args.critic_steps}"
        )
    batches = data.batches(
        images,
        args.batch_size * args.critic_steps,
        seed=args.seed,
        start_step=finished * args.steps_per_epoch,
        with_labels=args.network == "biggan",
    )
    with scope:
        gan = make_gan(args, images)
        run.checkpoint.restore(gan)
    shown = [
        callbacks.Progress(),
        callbacks.TrainingLog(run.folder),
        # Digits of 16 pixels are hard to see in their own size.
        callbacks.SampleGrid(
            run.folder, scale=max(2, 64 // images.images.shape[1])
        ),
        callbacks.TensorBoard(run.path("tensorboard")),
        # Last: what it has saved, the others have seen.
        run.checkpoint,
    ]
    if extractor is not None and gan.is_chief:
        every = args.evaluate_every // args.steps_per_epoch
        shown.insert(
            0,
            callbacks.Evaluation(
                images.images, extractor, every, args.samples, args.seed
            ),
        )
    if args.monitor is not None:
        shown.append(make_monitor(args, run, images))
    if gan.is_chief:
        # Only now, that nothing about the arguments can be wrong any more.
        run.begin()
    gan.fit(
        batches,
        epochs=args.epochs,
        initial_epoch=finished,
        steps_per_epoch=args.steps_per_epoch,
        shuffle=False,
        verbose=0,
        callbacks=shown,
    )
    if gan.is_chief:
        sampler = gan.averaged_generator or gan.generator
        try:
            sampler.export(run.path("generator"), verbose=False)
            print(f"The generator is a SavedModel in {run.path('generator')}")
        except ImportError as error:  # On JAX without TensorFlow.
            print(f"There is no SavedModel of the generator: {error}")
        # Last, and at once: with it the run is finished.
        gan.save(run.path("new.keras"))
        os.replace(run.path("new.keras"), run.path("gan.keras"))
        print(f"Look at {run.path('samples.png')}")
        print(f"Curves: tensorboard --logdir {run.path('tensorboard')}")
    return gan


def make_monitor(args, run, images):
    """The callback that watches the critic, on images spread over all."""
    some = slice(None, None, max(1, len(images) // 16))
    watched = images.images[some] / np.float32(127.5) - np.float32(1.0)
    if args.network == "biggan":
        watched = [watched, images.labels[some]]
    return callbacks.NormMonitor(
        run.folder, watched, args.monitor, run.path("tensorboard")
    )


def make_gan(args, images):
    """The compiled GAN that the arguments describe, for these images."""
    _, height, width, channels = images.images.shape
    if height != width:
        raise ValueError(
            "The networks make square images. Pass --resize N. "
            f"Received: images of {height}x{width}"
        )
    make_generator, make_critic, _ = NETWORKS[args.network]
    shared = {"resolution": height, "channels": channels, "width": args.width}
    num_classes = None
    if args.network == "biggan":
        num_classes = shared["num_classes"] = images.num_classes
    settings = critic_settings(args)
    if args.last_block:
        if args.network != "resnet":
            raise ValueError(
                "Only the resnet has a last block to keep. "
                f"Received: --last-block with --network {args.network}"
            )
        settings["last_block"] = True
    gan = keras_san.GAN(
        make_generator(latent_dim=LATENT_DIM, **shared),
        make_critic(**shared, **settings),
        LATENT_DIM,
        loss=args.loss,
        critic_steps=args.critic_steps,
        penalty=(
            losses.GradientPenalty() if args.normalizer == "wgan_gp" else None
        ),
        ema=args.ema or None,
        num_classes=num_classes,
        seed=args.seed,
    )
    gan.compile(
        make_optimizer(args, updates_per_step=1),
        make_optimizer(args, updates_per_step=args.critic_steps),
        jit_compile=True if args.jit else "auto",
        steps_per_execution=args.steps_per_execution,
    )
    return gan


def critic_settings(args):
    """The critic's arguments that follow from `--normalizer`."""
    settings = {"normalizer": None, "padding": args.padding}
    settings.update(BASELINES.get(args.normalizer, {}))
    if args.initializer is not None:
        try:
            deviation = float(args.initializer)
            initializer = keras.initializers.RandomNormal(stddev=deviation)
        except ValueError:
            initializer = args.initializer
        settings["kernel_initializer"] = initializer
    if "activation_norm" in settings and args.network not in ("small", "cnn"):
        raise ValueError(
            "Batch and layer normalization are there for the CNN's critic "
            "only, as in the papers. Received: "
            f"--normalizer {args.normalizer} with --network {args.network}"
        )
    given = {
        "scale": args.scale,
        "update_interval": args.update_interval,
        "form": args.form,
        "gain": args.gain,
        "sparsity": args.sparsity,
    }
    given = {name: v for name, v in given.items() if v is not None}
    if args.normalizer in BASELINES:
        if given:
            raise ValueError(
                "Only normalizers that divide by a norm have these settings. "
                f"Received: {given} with --normalizer {args.normalizer}"
            )
        return settings
    if args.normalizer in ("ssn", "bssn") and args.scale is None:
        raise ValueError(
            "What makes it more than sn or bsn is its scale, and no best one "
            "was published (the authors try 0.7 to 4): pass --scale. Received: "
            f"--normalizer {args.normalizer} without --scale"
        )
    if args.normalizer != "san" and {"gain", "sparsity"} & {*given}:
        raise ValueError(
            "Only SAN has a gain, and signals of some channels. "
            f"Received: {given} with --normalizer {args.normalizer}"
        )
    name = "sn" if args.normalizer == "ssn" else args.normalizer
    settings["normalizer"] = type(normalizers.get(name))(**given)
    return settings


def make_optimizer(args, updates_per_step):
    """Adam; with `--decay linear` its rate falls to 0 at the last step."""
    rate = args.learning_rate
    if args.decay == "linear":
        rate = keras.optimizers.schedules.PolynomialDecay(
            rate,
            args.epochs * args.steps_per_epoch * updates_per_step,
            end_learning_rate=0.0,
        )
    return keras.optimizers.Adam(
        rate, beta_1=args.beta_1, beta_2=args.beta_2, epsilon=args.epsilon
    )


def open_run(args):
    """The run that the arguments describe, once they fit together.

    Args:
        args: The namespace of all settings. What is said of an evaluation is
            brought into the form in which the run keeps it.

    Returns:
        A `runs.Run`, and what `extractors.get` takes, or `None` without an
        evaluation.

    Raises:
        ValueError: if something does not fit.
    """
    check_count("batch_size", args.batch_size)
    check_count("critic_steps", args.critic_steps)
    command_line.check_multiple(args, "steps_per_epoch", "steps_per_execution")
    if args.evaluate_every is None:
        args.extractor = args.samples = None
        return runs.Run(args), None
    check_count("samples", args.samples, least=10)
    command_line.check_multiple(args, "evaluate_every", "steps_per_epoch")
    found = command_line.find_extractor(args, args.dataset)
    args.extractor = extractors.name_of(found)
    return runs.Run(args), found


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
