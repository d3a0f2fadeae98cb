"""Folders that runs leave, and the machines that they run on."""

import argparse
import contextlib
import json
import os

import keras

from keras_san import callbacks

# What may change when a run is resumed: how long and where it trains.
_FREE = (
    "resume",
    "epochs",
    "output",
    "data_dir",
    "download",
    "cache",
    "evaluate_every",
    "monitor",
    "strategy",
    "jit",
    "steps_per_execution",
)


def add_arguments(parser):
    """Adds the arguments that all experiments share."""
    add = parser.add_argument
    add("--name", help="of the run; default: dataset and normalizer")
    add("--output", default="runs", help="folder that holds all runs")
    add(
        "--resume",
        action="store_true",
        help="go on with a run that was interrupted, or, where no learning "
        "rate falls by the length of the training, train it for longer",
    )
    add("--seed", type=int, default=0)
    add(
        "--precision",
        default="float32",
        choices=["float32", "mixed_float16", "mixed_bfloat16"],
        help="dtype policy of both networks; norms stay float32",
    )
    add(
        "--jit",
        action="store_true",
        help="compile with XLA; default: what Keras finds best, which is to do "
        "so on JAX and on a single GPU",
    )
    add(
        "--steps-per-execution",
        type=int,
        default=1,
        help="steps from one return to Python to the next",
    )
    add(
        "--strategy",
        default="none",
        choices=["none", *_STRATEGIES],
        help="several devices: mirrored (one machine), multi_worker (as "
        "TF_CONFIG says) and tpu on TensorFlow, data_parallel on JAX. The "
        "batch is divided among them",
    )


class Help(argparse.HelpFormatter):
    """Shows each default that there is."""

    def _get_help_string(self, action):
        text = action.help or ""
        if action.default in (None, False, argparse.SUPPRESS):
            return text
        return f"{text} (default: %(default)s)"


def strategy_scope(name):
    """Sets up the devices; call it before anything else computes.

    Args:
        name: String, a value of `--strategy`.

    Returns:
        A context manager, in which to build and compile the model.

    Raises:
        ValueError: if the backend or the machine cannot do it.
    """
    if name == "none":
        return contextlib.nullcontext()
    backend, make = _STRATEGIES[name]
    if keras.config.backend() != backend:
        raise ValueError(
            f"This strategy runs on the backend {backend}: set the "
            f"environment variable KERAS_BACKEND={backend}. Received: "
            f"--strategy {name} on {keras.config.backend()}"
        )
    try:
        return make()
    except Exception as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            "The strategy cannot be set up on this machine. Received: "
            f"--strategy {name} ({type(error).__name__}: {reason})"
        ) from error


def _mirrored():
    import tensorflow as tf

    return tf.distribute.MirroredStrategy().scope()


def _multi_worker():
    import tensorflow as tf

    return tf.distribute.MultiWorkerMirroredStrategy().scope()


def _tpu():
    import tensorflow as tf

    # A TPU of this machine, unless the environment names another.
    name = os.environ.get("TPU_NAME", "local")
    resolver = tf.distribute.cluster_resolver.TPUClusterResolver(name)
    tf.config.experimental_connect_to_cluster(resolver)
    tf.tpu.experimental.initialize_tpu_system(resolver)
    return tf.distribute.TPUStrategy(resolver).scope()


def _data_parallel():
    distribution = keras.distribution.DataParallel()
    keras.distribution.set_distribution(distribution)
    return contextlib.nullcontext()


_STRATEGIES = {
    "mirrored": ("tensorflow", _mirrored),
    "multi_worker": ("tensorflow", _multi_worker),
    "tpu": ("tensorflow", _tpu),
    "data_parallel": ("jax", _data_parallel),
}


class Run:
    """The folder of one run.

    Args:
        args: A namespace of all settings, with those of `add_arguments`.

    Raises:
        ValueError: if there is such a folder already, or, with `--resume`,
            none of the same settings.
    """

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.folder = os.path.join(args.output, args.name)
        self.checkpoint = callbacks.Checkpoint(self.path("checkpoint"))
        if not args.resume:
            if os.path.exists(self.folder):
                raise ValueError(
                    f"The folder '{self.folder}' exists from another run, and "
                    "nothing in it will be overwritten. Pass --name with "
                    "another name, or --resume to go on with it. Received: "
                    f"--name {args.name}"
                )
            return
        path = self.path("settings.json")
        if not os.path.exists(path):
            raise ValueError(
                f"There is no run to resume: '{path}' does not exist. Leave "
                f"out --resume, or check --name. Received: --name {args.name}"
            )
        with open(path) as file:
            before = json.load(file)
        # Evaluation may pause or begin late, but must stay the same.
        for name in ("extractor", "samples", "tiles"):
            if getattr(args, name, None) is None:
                setattr(args, name, before.get(name))
            if before.get(name) is None:
                before[name] = getattr(args, name)
        now = self.settings()
        differing = {
            name: f"{before.get(name)} -> {now.get(name)}"
            for name in sorted({*before, *now})
            if before.get(name) != now.get(name)
        }
        if differing:
            free = (
                "" if "epochs" in now else " (and as many --epochs as you like)"
            )
            raise ValueError(
                "A run is resumed with the settings that it began with"
                f"{free}. Received: {differing}"
            )

    def path(self, *names):
        """The path of a file in the folder."""
        return os.path.join(self.folder, *names)

    def settings(self):
        """What must stay the same when the run is resumed."""
        free = set(_FREE)
        # A learning rate that falls to 0 at the end falls by their number.
        if getattr(self.args, "decay", "none") != "none":
            free.remove("epochs")
        return {k: v for k, v in vars(self.args).items() if k not in free}

    def begin(self):
        """Makes the folder. Call it once nothing can be wrong any more."""
        os.makedirs(self.folder, exist_ok=True)
        with open(self.path("settings.json.new"), "w") as file:
            json.dump(self.settings(), file, indent=1)
        os.replace(self.path("settings.json.new"), self.path("settings.json"))
