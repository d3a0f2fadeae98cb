"""Logs, norms and curves."""

import csv
import io
import os
import time

import keras

from keras_san import norms
from keras_san.callbacks.samples import check_draws, sample_grid
from keras_san.checks import check_package
from keras_san.kernels import find_kernels


class TensorBoard(keras.callbacks.Callback):
    """Shows logs, norms and sample grids in TensorBoard, after each epoch.

    Look at them by `tensorboard --logdir DIRECTORY`. Needs the package
    `tensorboard` on any backend, and no TensorFlow.

    Args:
        directory: String or path, created if missing.
        rows: Int, as of `SampleGrid`.
        columns: Int, as of `SampleGrid`.
        seed: Int for the latent vectors.
        picture: `None` for a sample grid, or a callable from the model to
            what is shown in its place, a uint8 array
            `(height, width, channels)`.

    Raises:
        ImportError: if TensorBoard is not installed.
    """

    def __init__(self, directory, rows=8, columns=None, seed=0, picture=None):
        super().__init__()
        check_package("tensorboard")
        self.rows = rows
        self.columns = columns
        self.seed = seed
        self.picture = picture
        self._events = Events(directory)

    def on_train_begin(self, logs=None):
        if self.picture is None:
            check_draws(self.model)

    def on_epoch_end(self, epoch, logs=None):
        if not getattr(self.model, "is_chief", True):
            return
        if self.picture is None:
            grid = sample_grid(self.model, self.rows, self.columns, self.seed)
        else:
            grid = self.picture(self.model)
        values = {**(logs or {}), **critic_norms(self.model)}
        self._events.write(steps_taken(self.model), values, {"samples": grid})

    def on_train_end(self, logs=None):
        self._events.close()


class Events:
    """What TensorBoard shows, written to a folder.

    Args:
        directory: String or path, created with the first event.
    """

    def __init__(self, directory):
        self.directory = directory
        self._writer = None

    def write(self, step, values, images=None):
        """Adds numbers and images, by name.

        Args:
            step: Int.
            values: Dict of floats.
            images: Dict of uint8 arrays `(height, width, channels)`.
        """
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        summary = Summary()
        for name, array in (images or {}).items():
            png = io.BytesIO()
            keras.utils.save_img(png, array, file_format="png", scale=False)
            image = Summary.Image(encoded_image_string=png.getvalue())
            image.height, image.width, image.colorspace = array.shape
            summary.value.add(tag=name, image=image)
        for name, value in values.items():
            summary.value.add(tag=name, simple_value=value)
        if self._writer is None:
            self._writer = EventFileWriter(os.fspath(self.directory))
        self._writer.add_event(
            Event(step=step, wall_time=time.time(), summary=summary)
        )
        self._writer.flush()

    def close(self):
        """Closes the file; the next event begins another one."""
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
        check_package("matplotlib")
        self.directory = directory
        self._since = None

    def on_train_begin(self, logs=None):
        self._since = time.monotonic()

    def on_epoch_end(self, epoch, logs=None):
        if not getattr(self.model, "is_chief", True):
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
                **critic_norms(self.model),
            }
        )
        write_rows(rows, path)
        draw_curves(rows, os.path.join(self.directory, "curves.png"))


def steps_taken(model):
    """How many updates a model has behind it, a GAN's generator, as an int."""
    return int(keras.ops.convert_to_numpy(model.optimizer.iterations))


def critic_norms(model):
    """`kernel_norms` of a GAN's critic; of another model none."""
    return kernel_norms(model.critic) if hasattr(model, "critic") else {}


def kernel_norms(model):
    """Measures the norms of all kernels of a model.

    Args:
        model: A Keras model.

    Returns:
        A dict of floats, in the order of the layers. The keys are
        `norm/<layer>` (`norm/<layer>/<kernel>` where a layer has several).
        The values are the norms, times the gain, of the kernels as they are
        trained: in the divided form what a kernel is divided by, in the
        projected form the `scale`. Where nothing normalizes a kernel, it is
        the top singular value of its `(fan_in, outputs)` matrix.
    """
    found = {}
    for kernel in find_kernels(model):
        if kernel.normalization is None:
            norm = norms.spectral_norm(kernel.variable)
        else:
            norm = kernel.normalization.current()
        found[f"norm/{kernel.name}"] = float(keras.ops.convert_to_numpy(norm))
    return found


def read_log(path):
    """Reads a `log.csv` back.

    Args:
        path: String or path; the file need not exist.

    Returns:
        A list of dicts of floats, one for each epoch, `"epoch"` an int.
    """
    rows = [
        {name: float(value) for name, value in row.items()}
        for row in read_rows(path)
    ]
    return [{**row, "epoch": int(row["epoch"])} for row in rows]


def write_rows(rows, path):
    """Writes a table as CSV: a whole file at any time.

    Args:
        rows: List of dicts, which need not have the same keys.
        path: String.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    with open(f"{path}.new", "w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)
    os.replace(f"{path}.new", path)


def read_rows(path):
    """Reads what `write_rows` wrote, as a list of dicts of strings.

    Args:
        path: String or path; the file need not exist.
    """
    if not os.path.exists(path):
        return []
    with open(path, newline="") as file:
        return [
            {name: value for name, value in row.items() if value}
            for row in csv.DictReader(file)
        ]


_METRICS = ("is", "fid", "kid", "psnr", "ssim", "niqe")


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
        *((n, [n]) for end in _METRICS for n in ending(end)),
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
