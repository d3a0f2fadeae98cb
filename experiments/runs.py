"""Folders that runs leave, and the machines that they run on."""

import contextlib
import dataclasses
import functools
import json
import os

import keras

from experiments import training
from keras_san import callbacks
from keras_san.metrics import extractors

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

# What an evaluation looks at: it may pause or begin late, but stays the same.
_EVALUATION = ("extractor", "samples", "tiles")


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
    if name not in _STRATEGIES:
        raise ValueError(
            f"The strategies are {['none', *_STRATEGIES]}. Received: "
            f"--strategy {name}"
        )
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
    """One training: its folder, and how it goes on.

    Set up before anything else computes, as it sets up the devices.

    Args:
        settings: Those of a training.
        processes: Boolean, whether it may run in several processes.

    Raises:
        ValueError: if settings do not fit together, if there is such a folder
            already, or, to resume, none of the same settings.
    """

    def __init__(self, settings, processes=False):
        training.check(settings, processes)
        self.settings = settings
        self.scope = strategy_scope(settings.strategy)
        self._found = training.find_extractor(settings)
        self.folder = os.path.join(settings.output, settings.run_name)
        self.checkpoint = callbacks.Checkpoint(self.path("checkpoint"))
        self.finished = self.checkpoint.finished_epochs()
        self.record = _record(settings, self._found)
        if settings.resume:
            self._compare()
        elif os.path.exists(self.folder):
            raise ValueError(
                f"The folder '{self.folder}' exists from another run, and "
                "nothing in it will be overwritten. Pass --name with "
                "another name, or --resume to go on with it. Received: "
                f"--name {settings.run_name}"
            )

    @functools.cached_property
    def extractor(self):
        """A feature extractor to evaluate with, or `None`."""
        return None if self._found is None else extractors.get(self._found)

    def _compare(self):
        """Raises a `ValueError` unless the run began as it is to go on."""
        path, now = self.path("settings.json"), self.record
        if not os.path.exists(path):
            raise ValueError(
                f"There is no run to resume: '{path}' does not exist. Leave "
                "out --resume, or check --name. Received: --name "
                f"{self.settings.run_name}"
            )
        with open(path) as file:
            before = json.load(file)
        for name in {*_EVALUATION} & {*now}:
            if now[name] is None:
                now[name] = before.get(name)
            if before.get(name) is None:
                before[name] = now[name]
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

    def build(self, make):
        """Builds a GAN, in the state of the checkpoint if there is one.

        Args:
            make: Callable that returns a compiled GAN.
        """
        keras.utils.set_random_seed(self.settings.seed)
        keras.config.set_dtype_policy(self.settings.precision)
        with self.scope:
            gan = make()
            self.checkpoint.restore(gan)
        return gan

    def begin(self, **files):
        """Makes the folder, once nothing can be wrong any more.

        Args:
            **files: What to write as JSON, by the names of the files.
        """
        os.makedirs(self.folder, exist_ok=True)
        for name, values in {"settings": self.record, **files}.items():
            path = self.path(f"{name}.json")
            with open(f"{path}.new", "w") as file:
                json.dump(values, file, indent=1)
            os.replace(f"{path}.new", path)

    def fit(
        self,
        gan,
        batches,
        picture,
        first=(),
        last=(),
        before=0,
        held_out=None,
    ):
        """Trains to the end, from where the run was left.

        Args:
            gan: What `build` returned.
            batches: A `batches.Batches`.
            picture: The callback that draws, and has the picture as `latest`.
            first: Callbacks whose logs the others are to see.
            last: Callbacks that come after the checkpoint.
            before: Int, the epochs of another training that took batches.
            held_out: Arrays to evaluate the GAN with in each epoch.
        """
        board = callbacks.TensorBoard(
            self.path("tensorboard"), picture=lambda model: picture.latest
        )
        log = callbacks.TrainingLog(self.folder)
        # The checkpoint last: what it has saved, the others have seen.
        shown = [
            *(*first, callbacks.Progress(), picture, log, board),
            *(self.checkpoint, *last),
        ]
        epochs = self.settings.epochs, self.settings.steps_per_epoch
        fit(gan, batches, shown, self.finished, *epochs, before, held_out)

    def save(self, gan, picture="samples.png"):
        """Leaves the generator of a run as a file, and says where."""
        network = gan.averaged_generator or gan.generator
        save_network(network, self.path("generator.keras"))
        print(f"Look at {self.path(picture)}")
        print(f"The generator is {self.path('generator.keras')}")
        return network

    def export(self, network):
        """Writes a SavedModel, where TensorFlow is installed."""
        path = self.path("generator")
        if keras.config.backend() == "torch":
            print("There is no SavedModel of the generator from PyTorch")
            return
        try:
            network.export(path, verbose=False)
            print(f"The generator is a SavedModel in {path}")
        except ImportError as error:  # On JAX without TensorFlow.
            print(f"There is no SavedModel of the generator: {error}")


def fit(
    model, batches, shown, finished, epochs, steps, before=0, held_out=None
):
    """Trains a model from epoch `finished` to `epochs`, see `Run.fit`."""
    model.fit(
        batches.feed((before + finished) * steps, (before + epochs) * steps),
        epochs=epochs,
        initial_epoch=finished,
        steps_per_epoch=steps,
        shuffle=False,
        validation_data=held_out,
        validation_batch_size=batches.batch_size,
        verbose=0,
        callbacks=shown,
    )


def _record(settings, extractor):
    """The settings that a resumed run must share, as JSON has them."""
    record = dataclasses.asdict(settings)
    record["name"] = settings.run_name
    if "extractor" in record:
        if extractor is None:
            record.update(dict.fromkeys({*_EVALUATION} & {*record}))
        else:
            record["extractor"] = extractors.name_of(extractor)
    free = {*_FREE}
    if training.falls(settings):
        # A learning rate that falls to 0 at the end falls by their number.
        free.remove("epochs")
    record = {k: v for k, v in record.items() if k not in free}
    return json.loads(json.dumps(record))


def read_json(folder, name):
    """Reads what a training has written beside its network."""
    path = os.path.join(folder, name)
    try:
        with open(path) as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise ValueError(
            "A training leaves a file beside its network that tells what that "
            f"was trained on. Received: {path!r} ({error})"
        ) from error


def load_network(path, experiment):
    """A generator from a file that an experiment left, or a `ValueError`."""
    if not os.path.isfile(path):
        raise ValueError(
            "There is no such file. Train a network first, by `python -m "
            f"experiments.{experiment} train`, or say where one is. "
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
