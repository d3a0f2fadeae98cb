"""Callbacks that show how a GAN is doing."""

import csv
import math
import os

import keras
import numpy as np

from keras_san.layers import KernelNormalization, flatten_layers


class SampleGrid(keras.callbacks.Callback):
    """Saves a grid of generated images after each epoch, as PNG.

    The latent vectors stay the same, so that one sees the images improve.
    In a class-conditional GAN each column has a class.

    Args:
        directory: String or path, where `samples.png` (the latest) and
            `samples_0001.png`, ... are written. It is created if missing.
        rows: Int.
        columns: Int.
        scale: Int, the size of an image's pixel in the file.
        seed: Int for the latent vectors.
    """

    def __init__(self, directory, rows=8, columns=8, scale=2, seed=0):
        super().__init__()
        self.directory = directory
        self.rows = rows
        self.columns = columns
        self.scale = scale
        self.seed = seed

    def on_epoch_end(self, epoch, logs=None):
        gan = self.model
        count = self.rows * self.columns
        labels = None
        if gan.num_classes is not None:
            labels = np.arange(count) % self.columns % gan.num_classes
        images = image_grid(
            gan.generate(count, labels, seed=self.seed), self.columns
        )
        images = images.repeat(self.scale, axis=0).repeat(self.scale, axis=1)
        os.makedirs(self.directory, exist_ok=True)
        for name in (f"samples_{epoch + 1:04d}.png", "samples.png"):
            keras.utils.save_img(
                os.path.join(self.directory, name), images, scale=False
            )


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


class TrainingLog(keras.callbacks.Callback):
    """Keeps logs and norms in `log.csv`, and draws them into `curves.png`.

    Unlike with `keras.callbacks.CSVLogger`, a training that was resumed some
    epochs back replaces the rows of the epochs that it repeats.

    Args:
        directory: String or path, created if missing. Both files in it are
            rewritten after each epoch; epochs count from 1.
    """

    def __init__(self, directory):
        super().__init__()
        self.directory = directory

    def on_epoch_end(self, epoch, logs=None):
        os.makedirs(self.directory, exist_ok=True)
        path = os.path.join(self.directory, "log.csv")
        rows = [r for r in read_log(path) if r["epoch"] <= epoch]
        norms = kernel_norms(self.model)
        rows.append({"epoch": epoch + 1, **(logs or {}), **norms})
        names = list(dict.fromkeys(name for row in rows for name in row))
        # A whole file at any time: written apart, then renamed.
        with open(f"{path}.new", "w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(rows)
        os.replace(f"{path}.new", path)
        draw_curves(rows, os.path.join(self.directory, "curves.png"))


def kernel_norms(model):
    """The norms of all normalized kernels of a model.

    Args:
        model: A Keras model.

    Returns:
        A dict of floats, in the order of the layers. The keys are
        `norm/<layer>` (`norm/<layer>/<kernel>` where a layer has several),
        the values the norms, times the gain, of the kernels as they are
        trained: in the divided form what a kernel is divided by, in the
        projected form the `scale`.
    """
    found = [
        layer
        for layer in flatten_layers(model)
        if isinstance(layer, KernelNormalization)
    ]
    place = {id(weight): i for i, weight in enumerate(model.weights)}
    found.sort(key=lambda norm: place[id(norm.get_kernel())])
    owners = [norm.owner for norm in found]
    result = {}
    for norm in found:
        key = f"norm/{norm.owner}"
        if owners.count(norm.owner) > 1:
            key = f"{key}/{norm.name}"
        result[key] = float(keras.ops.convert_to_numpy(norm.current()))
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
    """Draws logs over the epochs: losses, logits and norms, as PNG.

    Args:
        rows: List of dicts, as from `read_log`.
        path: String or path of the file to write.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for row in rows for name in row))
    panels = [
        ("loss", [n for n in names if n.endswith("loss")]),
        ("mean logit of the critic", [n for n in names if n.endswith("logit")]),
        ("norm of the kernel", [n for n in names if n.startswith("norm/")]),
    ]
    panels = [(title, keys) for title, keys in panels if keys]
    # Not pyplot: that would keep every figure, and ask for a screen.
    figure = Figure(figsize=(8, 3 * len(panels)), layout="constrained")
    FigureCanvasAgg(figure)
    for index, (title, keys) in enumerate(panels, start=1):
        axes = figure.add_subplot(len(panels), 1, index, ylabel=title)
        for key in keys:
            points = [(r["epoch"], r[key]) for r in rows if key in r]
            label = key.removeprefix("norm/")
            axes.plot(*zip(*points), marker=".", label=label)
        axes.grid(alpha=0.3)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.legend(
            fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5)
        )
    axes.set_xlabel("epoch")
    figure.savefig(path, dpi=100)
