"""Trains a GAN on images, and leaves samples, curves and a generator.

Without arguments: handwritten digits, which need no network, for a few
minutes on two CPU cores. See `python -m examples.image_generation --help`.
"""

import argparse
import json
import os
import sys

# Before TensorFlow is imported: its greetings would bury the progress bar.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import keras  # noqa: E402

import keras_san  # noqa: E402
from examples import data  # noqa: E402
from keras_san import callbacks  # noqa: E402
from keras_san.networks import sngan  # noqa: E402


def parse(argv=None):
    """Reads the command line into a namespace."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.image_generation",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--dataset",
        default="digits",
        help="digits; a name in tensorflow-datasets, as cifar10; or a folder "
        "of images",
    )
    add("--data-dir", help="where tensorflow-datasets keeps its data")
    add(
        "--download",
        action="store_true",
        help="let tensorflow-datasets download what is missing",
    )
    add("--resize", type=int, metavar="N", help="crop and scale to NxN")
    add(
        "--normalizer",
        default="san",
        choices=["san", "sn", "bsn", "bssn", "conv_sn", "none"],
        help="what keeps the critic's kernels in check",
    )
    add(
        "--form",
        default="divide",
        choices=["divide", "project"],
        help="divide kernels in the forward pass, or project them after "
        "each update",
    )
    add("--scale", type=float, default=1.0, help="factor on the kernels")
    add(
        "--update-interval",
        type=int,
        default=1,
        help="steps from one measurement of the norms to the next",
    )
    add("--width", type=float, default=0.25, help="factor on the channels")
    add("--epochs", type=int, default=25)
    add("--steps-per-epoch", type=int, default=100)
    add("--batch-size", type=int, default=64)
    add("--learning-rate", type=float, default=5e-4)
    add("--critic-steps", type=int, default=1, help="for one of the generator")
    add("--loss", default="hinge")
    add("--ema", type=float, default=0.995, help="decay of the average")
    add("--seed", type=int, default=0)
    add("--name", help="of the run; default: DATASET-NORMALIZER")
    add("--output", default="runs", help="folder that holds all runs")
    add(
        "--resume",
        action="store_true",
        help="go on with a run that was interrupted, or train it for longer",
    )
    args = parser.parse_args(argv)
    if args.name is None:
        dataset = os.path.basename(os.path.normpath(args.dataset))
        args.name = f"{dataset}-{args.normalizer}"
    return args


def main(argv=None):
    """Trains as the command line says.

    Args:
        argv: List of strings, or `None` for the arguments of the process.

    Returns:
        The trained `keras_san.GAN`.

    Raises:
        ValueError: for settings or images that cannot be trained with, and
            for an output folder that exists from another run.
    """
    args = parse(argv)
    normalizer = make_normalizer(args)
    run = os.path.join(args.output, args.name)
    check_run(run, args)
    images = data.load(
        args.dataset,
        data_dir=args.data_dir,
        download=args.download,
        resize=args.resize,
    )
    keras.utils.set_random_seed(args.seed)
    _, height, width, channels = images.images.shape
    if height != width:
        raise ValueError(
            "The networks make square images. Pass --resize N. "
            f"Received: images of {height}x{width}"
        )
    latent_dim = 128
    gan = keras_san.GAN(
        sngan.generator(height, channels, latent_dim, args.width),
        sngan.critic(height, channels, args.width, normalizer),
        latent_dim,
        loss=args.loss,
        critic_steps=args.critic_steps,
        ema=args.ema,
        seed=args.seed,
    )

    def adam():
        return keras.optimizers.Adam(args.learning_rate, beta_1=0.5, beta_2=0.9)

    gan.compile(adam(), adam())
    batches = data.batches(
        images,
        args.batch_size * args.critic_steps,
        seed=args.seed,
        start_step=finished_epochs(run) * args.steps_per_epoch,
    )
    # Only now, that nothing about the arguments can be wrong any more.
    os.makedirs(run, exist_ok=True)
    with open(os.path.join(run, "settings.json"), "w") as file:
        json.dump(settings(args), file, indent=1)
    gan.fit(
        batches,
        epochs=args.epochs,
        steps_per_epoch=args.steps_per_epoch,
        shuffle=False,
        callbacks=[
            callbacks.TrainingLog(run),
            callbacks.SampleGrid(run),
            # Last: what it has saved, the others have seen.
            keras.callbacks.BackupAndRestore(
                backup_folder(run), delete_checkpoint=False
            ),
        ],
    )
    gan.save(os.path.join(run, "gan.keras"))
    sampler = gan.averaged_generator or gan.generator
    sampler.export(os.path.join(run, "generator"), verbose=False)
    print(f"Look at {os.path.join(run, 'samples.png')}")
    print(f"The generator is a SavedModel in {os.path.join(run, 'generator')}")
    return gan


def make_normalizer(args):
    """The normalizer that the arguments describe, or `None`."""
    normalizer = keras_san.normalizers.get(
        None if args.normalizer == "none" else args.normalizer
    )
    if normalizer is None:
        return None
    settings = {
        "form": args.form,
        "scale": args.scale,
        "update_interval": args.update_interval,
    }
    return type(normalizer)(**settings)


def backup_folder(run):
    """Where a run keeps the checkpoint of its last epoch."""
    return os.path.join(run, "backup")


def check_run(run, args):
    """Raises a `ValueError` unless the run can begin, or go on."""
    path = os.path.join(run, "settings.json")
    if not args.resume:
        if os.path.exists(run):
            raise ValueError(
                f"The folder '{run}' exists from another run, and nothing in "
                "it will be overwritten. Pass --name with another name, or "
                f"--resume to go on with it. Received: --name {args.name}"
            )
        return
    if not os.path.exists(path):
        raise ValueError(
            f"There is no run to resume: '{path}' does not exist. Leave out "
            f"--resume, or check --name. Received: --name {args.name}"
        )
    with open(path) as file:
        before = json.load(file)
    now = settings(args)
    differing = {
        name: f"{before.get(name)} -> {now[name]}"
        for name in now
        if before.get(name) != now[name]
    }
    if differing:
        raise ValueError(
            "A run is resumed with the settings that it began with (and as "
            f"many --epochs as you like). Received: {differing}"
        )


def finished_epochs(run):
    """How many epochs the backup of a run has behind it."""
    path = os.path.join(backup_folder(run), "training_metadata.json")
    if not os.path.exists(path):
        return 0
    with open(path) as file:
        return json.load(file)["epoch"]


def settings(args):
    """What must stay the same when a run is resumed."""
    free = ("resume", "epochs", "output", "data_dir", "download")
    return {k: v for k, v in vars(args).items() if k not in free}


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
