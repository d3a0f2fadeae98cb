"""Logs of a training, and how they are written, read and plotted."""

import csv
import os

import keras

from keras_san import norms
from keras_san.kernels import find_kernels


def steps_taken(model):
    """The number of updates of a model, or of a GAN's generator, so far."""
    return int(keras.ops.convert_to_numpy(model.optimizer.iterations))


def critic_norms(model):
    """The `kernel_norms` of a GAN's critic, and none of any other model."""
    return kernel_norms(model.critic) if hasattr(model, "critic") else {}


def kernel_norms(model):
    """Measures the norms of all kernels of a model.

    Args:
        model: A Keras model.

    Returns:
        A dict of floats, in the order of the layers. The keys are
        `norm/<layer>` (`norm/<layer>/<kernel>` where a layer has several).
        The values are the norms, times the gain, of the raw kernels: the
        divisor in the divided form, the `scale` in the projected form, and
        the top singular value of the `(fan_in, outputs)` matrix for a kernel
        that is not normalized, or has trained lengths.
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
    """Reads a `log.csv` file.

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
    """Writes a table as CSV, and replaces the old file in one step.

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
    """Reads a table that `write_rows` wrote.

    Args:
        path: String or path; the file need not exist.

    Returns:
        A list of dicts of strings.
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
    """Plots losses, logits, metrics and norms over the steps, as PNG.

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
