"""Callbacks that show how a GAN is doing."""

import contextlib
import csv
import glob
import importlib
import io
import math
import os
import re
import time
import warnings

import keras
import numpy as np

from keras_san import metrics, norms
from keras_san.checks import check_count
from keras_san.kernel_normalization import KernelNormalization
from keras_san.layers import flatten_layers
from keras_san.metrics import extractors


class SampleGrid(keras.callbacks.Callback):
    """Saves a grid of generated images after each epoch, as PNG.

    The latent vectors stay the same, so that one sees the images improve.
    In a class-conditional GAN each column has a class.

    Args:
        directory: String or path, where `samples.png` (the latest) and
            `samples_0001.png`, ... are written. It is created if missing.
        rows: Int.
        columns: Int, or `None` for one a class, or 8.
        scale: Int, the size of an image's pixel in the file.
        seed: Int for the latent vectors.

    Raises:
        ImportError: if Pillow is not installed.
    """

    def __init__(self, directory, rows=8, columns=None, scale=2, seed=0):
        super().__init__()
        _require("PIL", "pillow")
        self.directory = directory
        self.rows = rows
        self.columns = columns
        self.scale = scale
        self.seed = seed

    def on_epoch_end(self, epoch, logs=None):
        if not self.model.is_chief:
            return
        images = sample_grid(self.model, self.rows, self.columns, self.seed)
        images = images.repeat(self.scale, axis=0).repeat(self.scale, axis=1)
        os.makedirs(self.directory, exist_ok=True)
        for name in (f"samples_{epoch + 1:04d}.png", "samples.png"):
            keras.utils.save_img(
                os.path.join(self.directory, name), images, scale=False
            )


def sample_grid(gan, rows=8, columns=None, seed=0):
    """Generated images as one, the same latent vectors for the same seed.

    Args:
        gan: A `keras_san.GAN`. If it is conditional, each column has a class.
        rows: Int.
        columns: Int, or `None` for one a class, or 8.
        seed: Int for the latent vectors.

    Returns:
        A uint8 array, see `image_grid`.
    """
    columns = columns or gan.num_classes or 8
    labels = None
    if gan.num_classes is not None:
        labels = np.arange(rows * columns) % columns % gan.num_classes
    return image_grid(gan.generate(rows * columns, labels, seed=seed), columns)


def image_grid(images, columns, gap=1):
    """One image of many.

    Args:
        images: Array `(n, height, width, channels)` in [-1, 1].
        columns: Int. The last row is filled up with grey.
        gap: Int, the pixels of grey around each image.

    Returns:
        A uint8 array `(rows * (height + gap) + gap,
        columns * (width + gap) + gap, channels)`.
    """
    n, height, width, channels = images.shape
    rows = math.ceil(n / columns)
    height, width = height + gap, width + gap
    grid = np.full((rows * columns, height, width, channels), 64, "uint8")
    grid[:n, gap:, gap:] = np.clip(np.round((images + 1.0) * 127.5), 0, 255)
    grid = grid.reshape(rows, columns, height, width, channels)
    grid = grid.transpose(0, 2, 1, 3, 4)
    grid = grid.reshape(rows * height, columns * width, channels)
    return np.pad(grid, ((0, gap), (0, gap), (0, 0)), constant_values=64)


class Evaluation(keras.callbacks.Callback):
    """Measures Inception score, FID and KID while a GAN trains, and at its end.

    It adds `is`, `is_std` (over `splits` parts of the samples), `fid`, `kid`,
    `samples` and `real_samples` (the numbers of generated and real images;
    KID uses the first 10,000 of each) and `splits` to the logs of an epoch,
    where callbacks behind it, the history and the progress bar find them.
    Under any other extractor than the Inception network the names
    begin with its label, as in `judge_fid`, or with `custom_` if it has none:
    such values do not compare with published ones.

    Args:
        images: Real images, uint8, or floats in [-1, 1]. Of these
            `num_images` are drawn at random and looked at, now, or all if
            there are fewer.
        extractor: What `keras_san.metrics.extractors.get` takes.
        every: Int, epochs from one evaluation to the next. The last epoch
            is evaluated, too.
        num_images: Int >= 10, how many images are generated each time.
        seed: Int for the choice of real images and for the latent vectors,
            which are the same each time.

    Raises:
        ValueError: for an unknown extractor, a count below those above, or
            too few real images.
    """

    def __init__(self, images, extractor, every=1, num_images=10_000, seed=0):
        super().__init__()
        check_count("every", every)
        check_count("num_images", num_images, least=10)
        self.extractor = extractors.get(extractor)
        self.every = every
        self.num_images = num_images
        self.seed = seed
        self._label = getattr(self.extractor, "label", "custom_")
        # Of 5,000 samples each or a few more, as in the papers.
        self._score = metrics.InceptionScore(splits=max(1, num_images // 5000))
        self._fid = metrics.FrechetInceptionDistance()
        self._kid = metrics.KernelInceptionDistance()
        # Two in each block of KID.
        used = min(num_images, self._kid.max_samples)
        least = 2 * math.ceil(used / self._kid.block_size)
        if len(images) < least:
            raise ValueError(
                f"To evaluate with {num_images} generated images, at least "
                f"{least} real ones are needed. Received: {len(images)} images"
            )
        order = np.random.default_rng(seed).permutation(len(images))
        chosen = order[:num_images]
        for part in _chunks(len(chosen)):
            features, _ = self.extractor(images[chosen[part]])
            self._fid.update_state(features, real=True)
            self._kid.update_state(features, real=True)

    def on_epoch_end(self, epoch, logs=None):
        due = (epoch + 1) % self.every == 0
        last = epoch + 1 == (self.params or {}).get("epochs")
        if self.model.is_chief and (due or last):
            (logs if logs is not None else {}).update(self.evaluate(self.model))

    def evaluate(self, gan):
        """Measures once.

        Args:
            gan: A `keras_san.GAN`.

        Returns:
            A dict of floats, named as in the logs.
        """
        self._score.reset_state()
        self._fid.reset_state(keep_real=True)
        self._kid.reset_state(keep_real=True)
        for index, part in enumerate(_chunks(self.num_images)):
            images = gan.generate(
                part.stop - part.start, seed=(self.seed, index), batch_size=250
            )
            features, logits = self.extractor(images)
            self._score.update_state(logits)
            self._fid.update_state(features)
            self._kid.update_state(features)
        score, fid = self._score.result(), self._fid.result()
        values = {
            "is": score["inception_score"],
            "is_std": score["inception_score_std"],
            "fid": fid["fid"],
            "kid": self._kid.result()["kid"],
            "samples": fid["generated_samples"],
            "real_samples": fid["real_samples"],
            "splits": score["splits"],
        }
        return {f"{self._label}{name}": v for name, v in values.items()}


def _chunks(count, size=1000):
    """Slices that cover `range(count)`, so that memory stays bounded."""
    return [slice(i, min(i + size, count)) for i in range(0, count, size)]


class Checkpoint(keras.callbacks.Callback):
    """Keeps what it takes to go on with a training, after each epoch.

    One file holds both networks, both optimizers, norms and the random
    states of the GAN and its norms (but of no other layer, such as Dropout:
    Keras saves none). It is written whole before it takes the place of the
    last one: whatever happens meanwhile, one whole checkpoint remains.

    Args:
        directory: String or path, created if missing.

    Example:
    ```python
    checkpoint = keras_san.callbacks.Checkpoint("checkpoints")
    gan.fit(
        data,
        epochs=100,
        initial_epoch=checkpoint.restore(gan),
        callbacks=[checkpoint],
    )
    ```
    """

    def __init__(self, directory):
        super().__init__()
        self.directory = directory

    def finished_epochs(self):
        """The number of epochs that the checkpoint has behind it, or 0."""
        return max(self._epochs(), default=0)

    def restore(self, gan):
        """Puts a GAN into the state of the checkpoint, if there is one.

        Args:
            gan: A compiled `keras_san.GAN`, built as the saved one was.

        Returns:
            An int, the epochs that the checkpoint has behind it, or 0.

        Raises:
            ValueError: if the checkpoint is of another GAN, or damaged.
        """
        epochs = self.finished_epochs()
        if epochs:
            path = self._path(epochs)
            try:
                with warnings.catch_warnings():
                    # Else it would go on with an optimizer's fresh state.
                    warnings.filterwarnings(
                        "error", message="Skipping variable loading"
                    )
                    gan.load_weights(path)
            except Exception as error:
                raise ValueError(
                    "The checkpoint does not fit this GAN, or is damaged. "
                    "Build the networks and optimizers as they were, or "
                    f"begin anew in another folder. Received: '{path}' "
                    f"({str(error)[:300]})"
                ) from error
        return epochs

    def on_epoch_end(self, epoch, logs=None):
        if not self.model.is_chief:
            return
        os.makedirs(self.directory, exist_ok=True)
        before = self._epochs()
        new = os.path.join(self.directory, "new.keras")
        try:
            self.model.save(new)
            with open(new, "rb") as file:
                os.fsync(file.fileno())
            os.replace(new, self._path(epoch + 1))
        except Exception as error:
            with contextlib.suppress(OSError):
                os.remove(new)
            raise OSError(
                "The checkpoint cannot be written; is the disk full? The one "
                "before it is untouched, and the training can be resumed "
                f"from it. Received: '{new}' ({error})"
            ) from error
        for epochs in before:
            if epochs != epoch + 1:
                os.remove(self._path(epochs))

    def _path(self, epochs):
        return os.path.join(self.directory, f"epoch_{epochs}.keras")

    def _epochs(self):
        names = "\n".join(glob.glob("*", root_dir=self.directory))
        found = re.findall(r"^epoch_(\d+)\.keras$", names, re.MULTILINE)
        return [int(epochs) for epochs in found]


class TensorBoard(keras.callbacks.Callback):
    """Shows logs, norms and sample grids in TensorBoard, after each epoch.

    Look at them by `tensorboard --logdir DIRECTORY`. Needs the package
    `tensorboard` on any backend, and no TensorFlow.

    Args:
        directory: String or path, created if missing.
        rows: Int, as of `SampleGrid`.
        columns: Int, as of `SampleGrid`.
        seed: Int for the latent vectors.

    Raises:
        ImportError: if TensorBoard is not installed.
    """

    def __init__(self, directory, rows=8, columns=None, seed=0):
        super().__init__()
        _require("tensorboard")
        self.directory = directory
        self.rows = rows
        self.columns = columns
        self.seed = seed
        self._writer = None

    def on_epoch_end(self, epoch, logs=None):
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        if not self.model.is_chief:
            return
        grid = sample_grid(self.model, self.rows, self.columns, self.seed)
        png = io.BytesIO()
        keras.utils.save_img(png, grid, file_format="png", scale=False)
        image = Summary.Image(encoded_image_string=png.getvalue())
        image.height, image.width, image.colorspace = grid.shape
        summary = Summary()
        summary.value.add(tag="samples", image=image)
        values = {**(logs or {}), **kernel_norms(self.model.critic)}
        for name, value in values.items():
            summary.value.add(tag=name, simple_value=value)
        if self._writer is None:
            self._writer = EventFileWriter(os.fspath(self.directory))
        step = steps_taken(self.model)
        self._writer.add_event(
            Event(step=step, wall_time=time.time(), summary=summary)
        )
        self._writer.flush()

    def on_train_end(self, logs=None):
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class TrainingLog(keras.callbacks.Callback):
    """Keeps logs and norms in `log.csv`, and draws them into `curves.png`.

    Beside what it finds in the logs, a row has `epoch` (from 1), `step` (the
    updates of the generator so far) and `seconds` (the time of all epochs so
    far, what other callbacks took included). A training that was resumed
    goes on counting; unlike with `keras.callbacks.CSVLogger`, the rows of
    epochs that it repeats are replaced.

    Args:
        directory: String or path, created if missing. Both files in it are
            rewritten after each epoch.

    Raises:
        ImportError: if Matplotlib is not installed.
    """

    def __init__(self, directory):
        super().__init__()
        _require("matplotlib")
        self.directory = directory
        self._since = None

    def on_train_begin(self, logs=None):
        self._since = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        if not self.model.is_chief:
            return
        now = time.monotonic()
        seconds, self._since = now - self._since, now
        os.makedirs(self.directory, exist_ok=True)
        path = os.path.join(self.directory, "log.csv")
        rows = [r for r in read_log(path) if r["epoch"] <= epoch]
        if rows:
            seconds += rows[-1].get("seconds", 0.0)
        rows.append(
            {
                "epoch": epoch + 1,
                "step": steps_taken(self.model),
                "seconds": round(seconds, 3),
                **(logs or {}),
                **kernel_norms(self.model.critic),
            }
        )
        names = list(dict.fromkeys(name for row in rows for name in row))
        # A whole file at any time: written apart, then renamed.
        with open(f"{path}.new", "w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(f"{path}.new", path)
        draw_curves(rows, os.path.join(self.directory, "curves.png"))


def _require(module, package=None):
    """Raises now what would else end the first epoch, before it is saved."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"The callback needs a package: pip install {package or module}"
        ) from error


def steps_taken(gan):
    """How many updates of the generator a GAN has behind it, as an int."""
    return int(keras.ops.convert_to_numpy(gan.generator_optimizer.iterations))


def kernel_norms(model):
    """The norms of all kernels of a model.

    Args:
        model: A Keras model.

    Returns:
        A dict of floats, in the order of the layers. The keys are
        `norm/<layer>` (`norm/<layer>/<kernel>` where a layer has several).
        The values are the norms, times the gain, of the kernels as they are
        trained: in the divided form what a kernel is divided by, in the
        projected form the `scale`. Where nothing normalizes a layer's
        `kernel`, it is the top singular value of its `(fan_in, outputs)`
        matrix.
    """
    found, owners = [], []
    for layer in flatten_layers(model):
        if isinstance(layer, KernelNormalization):
            kernel = layer.get_kernel()
            found.append((kernel, layer.owner, layer.name, layer.current))
            owners.append(layer.owner)
    normalized = {id(kernel) for kernel, *_ in found}
    for layer in flatten_layers(model):
        kernel = getattr(layer, "kernel", None)
        if isinstance(kernel, keras.Variable) and id(kernel) not in normalized:

            def norm(kernel=kernel):
                return norms.spectral_norm(kernel)

            found.append((kernel, layer.name, "kernel", norm))
            owners.append(layer.name)
    place = {id(weight): i for i, weight in enumerate(model.weights)}
    found.sort(key=lambda item: place[id(item[0])])
    result = {}
    for _, owner, name, norm in found:
        key = f"norm/{owner}"
        if owners.count(owner) > 1:
            key = f"{key}/{name}"
        result[key] = float(keras.ops.convert_to_numpy(norm()))
    return result


def read_log(path):
    """Reads a `log.csv` back.

    Args:
        path: String or path; the file need not exist.

    Returns:
        A list of dicts of floats, one for each epoch, `"epoch"` an int.
    """
    if not os.path.exists(path):
        return []
    with open(path, newline="") as file:
        rows = [
            {name: float(value) for name, value in row.items() if value}
            for row in csv.DictReader(file)
        ]
    return [{**row, "epoch": int(row["epoch"])} for row in rows]


def draw_curves(rows, path):
    """Draws logs over the steps: losses, logits, metrics and norms, as PNG.

    Args:
        rows: List of dicts, as from `read_log`.
        path: String or path of the file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for row in rows for name in row))

    def ending(end):
        return [n for n in names if n.split("_")[-1] == end]

    panels = [
        ("loss", ending("loss")),
        ("mean logit of the critic", ending("logit")),
        # One each, and named in full: a judge's FID is not Inception's.
        *((n, [n]) for end in ("is", "fid", "kid") for n in ending(end)),
        ("norm of the kernel", [n for n in names if n.startswith("norm/")]),
    ]
    panels = [(title, keys) for title, keys in panels if keys]
    x = "step" if "step" in names else "epoch"
    # Not pyplot: that would keep every figure, and ask for a screen.
    figure = Figure(figsize=(8, 3 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    columns = figure.subplots(len(panels), sharex=True, squeeze=False)
    for (axes,), (title, keys) in zip(columns, panels):
        axes.set_ylabel(title)
        for key in keys:
            points = [(r[x], r[key]) for r in rows if key in r and x in r]
            label = key.removeprefix("norm/")
            axes.plot(*zip(*points), marker=".", label=label)
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(
            fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5)
        )
    axes.set_xlabel(x)
    figure.savefig(path, dpi=100)
