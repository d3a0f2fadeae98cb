"""Arguments that several experiments share, and what they stand for."""

import argparse
import json
import math
import os

import keras

from experiments import runs
from keras_san import callbacks, losses, normalizers
from keras_san.checks import check_count


def commands(name, description):
    """A parser for an example with several commands.

    Args:
        name: String, the module.
        description: String, its docstring.

    Returns:
        The parser, and a callable that adds the command of a name and a
        description, and returns its parser.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{name}",
        allow_abbrev=False,
        description=description.splitlines()[0],
    )
    added = parser.add_subparsers(dest="command", required=True)

    def command(name, description):
        return added.add_parser(
            name,
            allow_abbrev=False,
            help=description,
            description=description,
            formatter_class=runs.Help,
        )

    return parser, command


def learning_rate(text):
    """The `type` of an argument that is a learning rate."""
    rate = float(text)
    if not 0.0 <= rate < math.inf:
        raise argparse.ArgumentTypeError(
            f"a learning rate is a number >= 0. Received: {text}"
        )
    return rate


def fill(args, defaults):
    """Gives arguments that were not given the values of a dict."""
    for name, value in defaults.items():
        if getattr(args, name) is None:
            setattr(args, name, value)


def add_normalizer(parser, others=()):
    """Adds what is said of the critic's normalizer.

    Args:
        parser: An `argparse` parser.
        others: Strings, what else may be in its place.
    """
    add = parser.add_argument
    add(
        "--normalizer",
        default="san",
        choices=["san", "sn", "bsn", "conv_sn", "none", *others],
        help="what keeps the critic's kernels in check",
    )
    add(
        "--form",
        choices=["divide", "project"],
        help="divide kernels in the forward pass, or project them after each "
        "update (default: that of the normalizer)",
    )
    add("--normalizer-scale", type=float, help="factor on the kernels")
    add(
        "--ratio",
        type=float,
        help="san: share of the filters that are measured, at random "
        "(default: all, exactly)",
    )
    add(
        "--gain",
        type=float,
        help="san: by how much the norm of a share is taken to be too small "
        "(default: Eq. 9 of the paper)",
    )


def make_normalizer(args):
    """The normalizer that the arguments describe, or `None`.

    Args:
        args: A namespace with the arguments of `add_normalizer`.

    Returns:
        What `normalizer` of a network takes.

    Raises:
        ValueError: if a setting is not one of the normalizer's.
    """
    given = {
        "scale": args.normalizer_scale,
        "form": args.form,
        "ratio": args.ratio,
        "gain": args.gain,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if args.normalizer in ("none", "wgan_gp"):
        if given:
            raise ValueError(
                "Only normalizers that divide by a norm have these settings. "
                f"Received: {given} with --normalizer {args.normalizer}"
            )
        return None
    if args.normalizer != "san" and {"ratio", "gain"} & {*given}:
        raise ValueError(
            "Only SAN measures a share of the filters. "
            f"Received: {given} with --normalizer {args.normalizer}"
        )
    return type(normalizers.get(args.normalizer))(**given)


def add_perceptual(parser):
    """Adds the network whose features a perceptual loss compares."""
    parser.add_argument(
        "--perceptual",
        metavar="NETWORK",
        help="none; vgg19 (see --download); a file of its weights (.h5); or "
        "any Keras model (.keras)",
    )


def make_perceptual_losses(args, **settings):
    """A list of the perceptual loss, or an empty one.

    Args:
        args: A namespace with `perceptual`, `perceptual_weight` and
            `download`.
        **settings: As those of `losses.PerceptualLoss`.

    Raises:
        ValueError: if the network may not be downloaded, or is none.
    """
    if args.perceptual == "none" or not args.perceptual_weight:
        return []
    if args.perceptual == "vgg19" and not args.download:
        raise ValueError(
            "Nothing is downloaded unless you say so: pass --download, or "
            "--perceptual with a file of VGG19's weights, or with none. "
            "Received: --perceptual vgg19 without --download"
        )
    return [
        losses.PerceptualLoss(
            args.perceptual_weight, args.perceptual, **settings
        )
    ]


def part(text):
    """The `type` of an argument that is a part of something."""
    value = float(text)
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(
            f"a part is a number from 0 to 1. Received: {text}"
        )
    return value


def add_decay(parser):
    """Adds from when on learning rates fall."""
    parser.add_argument(
        "--decay-from",
        type=part,
        default=0.5,
        metavar="PART",
        help="part of the training after which learning rates fall linearly, "
        "to 0 at its end; 1: they do not",
    )


def name_decay(args):
    """Tells `runs.Run` whether rates fall by the length of the training."""
    args.decay = "linear" if args.decay_from < 1.0 else "none"


def make_adam(args, rate, updates_per_step):
    """Adam, whose rate is constant, and then falls linearly to 0.

    Args:
        args: A namespace with `epochs`, `steps_per_epoch`, `decay_from`,
            `beta_1` and `beta_2`.
        rate: Float.
        updates_per_step: Int.

    Returns:
        A Keras optimizer.
    """
    if args.decay_from < 1.0:
        steps = args.epochs * args.steps_per_epoch * updates_per_step
        rate = LinearDecay(rate, steps, args.decay_from)
    return keras.optimizers.Adam(rate, beta_1=args.beta_1, beta_2=args.beta_2)


def check_trains(args):
    """What can be known to be wrong with a training before data are read.

    Args:
        args: A namespace with the arguments that trainings share.

    Raises:
        ValueError: if something is.
    """
    if keras.config.backend() == "torch":
        raise ValueError(
            "Networks are trained on TensorFlow and JAX, and used on PyTorch, "
            "too. Received: the Keras backend torch"
        )
    if args.strategy == "multi_worker":
        raise ValueError(
            "This example trains in one process. Received: --strategy "
            "multi_worker"
        )
    check_multiple(args, "steps_per_epoch", "steps_per_execution")
    for name in ("epochs", "batch_size", "critic_steps"):
        check_count(name, getattr(args, name))
    if not 0.0 <= args.ema < 1.0:
        raise ValueError(
            "--ema takes what a step keeps of the average, below 1, or 0 for "
            f"no average. Received: --ema {args.ema}"
        )
    make_normalizer(args)


def pictured(run, picture, scale=1):
    """The callbacks of a run that ends each epoch with a picture.

    Args:
        run: A `runs.Run`.
        picture: Callable from the GAN to a uint8 array.
        scale: As of `callbacks.SampleGrid`.

    Returns:
        A list of callbacks, the last of which saves the checkpoint.
    """
    grid = callbacks.SampleGrid(run.folder, scale=scale, picture=picture)
    return [
        callbacks.TrainingLog(run.folder),
        grid,
        # The picture that has just been drawn.
        callbacks.TensorBoard(
            run.path("tensorboard"), picture=lambda model: grid.latest
        ),
        # Last: what it has saved, the others have seen.
        run.checkpoint,
    ]


def read_json(folder, name):
    """What a training has written beside its network, or a `ValueError`."""
    path = os.path.join(folder, name)
    try:
        with open(path) as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise ValueError(
            "A training leaves a file beside its network that tells what that "
            f"was trained on. Received: {path!r} ({error})"
        ) from error


def add_evaluation(parser, what):
    """Adds when and with what to evaluate.

    Args:
        parser: An `argparse` parser.
        what: String, what is measured.
    """
    add = parser.add_argument
    add(
        "--evaluate-every",
        type=int,
        metavar="STEPS",
        help=f"measure {what} every so many steps",
    )
    add(
        "--extractor",
        help="what to measure with: inception (see --download), the folder of "
        "a copy of TF-GAN's Inception module, or a Keras classifier (.keras, "
        "with layers features and logits). Default: DATASET_judge.keras in "
        "--data-dir, beside it, or here, if there is one",
    )


def find_extractor(args, dataset):
    """What to evaluate with.

    Args:
        args: The namespace of all settings.
        dataset: String, the name of the dataset or its folder.

    Returns:
        What `keras_san.metrics.extractors.get` takes.

    Raises:
        ValueError: if nothing was passed, found, or may be downloaded.
    """
    if args.extractor == "inception" and not args.download:
        raise ValueError(
            "Nothing is downloaded unless you say so: pass --download, too, or "
            "the folder of a copy of the module. Received: --extractor "
            "inception without --download"
        )
    if args.extractor:
        return args.extractor
    name = f"{os.path.basename(os.path.normpath(dataset))}_judge.keras"
    folder = args.data_dir or "."
    places = [
        os.path.join(folder, name),
        os.path.join(folder, "..", name),
        name,
    ]
    for path in places:
        if os.path.exists(path):
            print(f"Evaluating with {path}: judge scores, not Inception's.")
            return path
    if args.download:
        return "inception"
    raise ValueError(
        "To evaluate, pass --extractor with a Keras classifier or the folder "
        "of a copy of TF-GAN's Inception module, or --download to get that "
        "module. Received: --evaluate-every "
        f"{args.evaluate_every} without --extractor, and none of {places}"
    )


def check_multiple(args: argparse.Namespace, name, unit):
    """Raises a `ValueError` unless one argument is a multiple of another."""
    steps, steps_of_unit = getattr(args, name), getattr(args, unit)
    if min(steps, steps_of_unit) < 1 or steps % steps_of_unit:
        flag, flag_of_unit = (f"--{n.replace('_', '-')}" for n in (name, unit))
        raise ValueError(
            f"{flag} must be a positive multiple of {flag_of_unit}. Received: "
            f"{flag} {steps} with {flag_of_unit} {steps_of_unit}"
        )


def load_network(path, example):
    """A generator from a file.

    Args:
        path: String.
        example: String, the name of the example that trains such.

    Returns:
        A `keras.Model`.

    Raises:
        ValueError: if there is none in the file.
    """
    if not os.path.isfile(path):
        raise ValueError(
            "There is no such file. Train a network first, by `python -m "
            f"experiments.{example} train`, or say where one is. "
            f"Received: {path!r}"
        )
    try:
        return keras.saving.load_model(path, compile=False)
    except Exception as error:
        reason = str(error).partition("\n")[0][:200]
        raise ValueError(
            "The file holds no Keras model. Pass the generator.keras of a "
            f"run. Received: {path!r} ({reason})"
        ) from error


def save_network(network, path):
    """Saves a network without what trained it, whole or not at all."""
    alone = keras.models.clone_model(network)
    alone.set_weights(network.get_weights())
    stem, ending = os.path.splitext(path)
    alone.save(f"{stem}.new{ending}")
    os.replace(f"{stem}.new{ending}", path)


def export_network(network, path):
    """Writes a network as a SavedModel, where TensorFlow is installed."""
    try:
        network.export(path, verbose=False)
        print(f"The generator is a SavedModel in {path}")
    except ImportError as error:  # On JAX without TensorFlow.
        print(f"There is no SavedModel of the generator: {error}")


@keras.saving.register_keras_serializable("experiments")
class LinearDecay(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that is constant first, and then falls linearly to 0.

    Args:
        rate: Positive float.
        steps: Int, the steps of the whole training.
        start: Float in [0, 1), the part of the steps after which it falls.
    """

    def __init__(self, rate, steps, start):
        self.rate = rate
        self.steps = steps
        self.start = start

    def __call__(self, step):
        left = 1.0 - keras.ops.cast(step, "float32") / self.steps
        return self.rate * keras.ops.clip(left / (1.0 - self.start), 0.0, 1.0)

    def get_config(self):
        return {"rate": self.rate, "steps": self.steps, "start": self.start}
