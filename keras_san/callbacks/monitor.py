"""Diagnoses of a critic while it trains."""

import os
import warnings

import keras
import numpy as np

from keras_san.callbacks.logs import read_rows, steps_taken, write_rows
from keras_san.callbacks.tensorboard import Events
from keras_san.checks import check_count, check_package
from keras_san.diagnostics import diagnose, mean_score
from keras_san.diagnostics.report import figure_of, rows_of

# The fields of a row for each layer, by the names in `rows_of`.
_FIELDS = {
    "san": "SAN's norm",
    "sn": "SN's norm",
    "norm_over_intended": "norm over its target",
    "growth": "growth of signals",
    "effective": "channels of signals",
    "variance_lecun": "variance over LeCun's",
    "gradient_norm": "gradient of the kernel",
    "gradient_raw_norm": "gradient of the raw kernel",
}


class NormMonitor(keras.callbacks.Callback):
    """Diagnoses a critic at regular steps, and warns when it fails.

    Each diagnosis is a row of `monitor.csv`, with `step` (the updates of the
    generator), `verdict`, `layer`, `slope` and, as `<field>/<layer>`, the
    measurements of `keras_san.diagnostics` for each layer. `monitor.png` is a
    plot of them over the steps. A Python warning tells when the critic begins
    to explode or vanish, or when another layer is to blame. A resumed training
    continues the table.

    Args:
        directory: String or path, created if missing.
        images: Array `(n, height, width, channels)` of images as the critic
            is trained on, 16 or a few more (or a list of arrays if the critic
            has several inputs).
        every: Int, the steps from one diagnosis to the next. The first comes
            before the first step.
        tensorboard: `None`, or a folder to write the numbers to, for
            TensorBoard to show.
        score: As in `keras_san.diagnostics.weight_gradients`.

    Raises:
        ValueError: if `every` is less than 1, or there are fewer than two
            images.
        ImportError: if Matplotlib, or for `tensorboard` TensorBoard, is not
            installed.
    """

    def __init__(
        self, directory, images, every=1000, tensorboard=None, score=mean_score
    ):
        super().__init__()
        check_package("matplotlib")
        if tensorboard is not None:
            check_package("tensorboard")
        check_count("every", every)
        count = len(keras.tree.flatten(images)[0])
        if count < 2:
            raise ValueError(
                "`images` must be at least two, preferably sixteen. "
                f"Received: {count} images"
            )
        self.directory = directory
        self.images = images
        self.every = every
        self.score = score
        self._events = None if tensorboard is None else Events(tensorboard)
        self._said = "healthy", None

    def on_train_begin(self, logs=None):
        self._steps = self._epoch_began = steps_taken(self.model)
        self._observe()

    def on_epoch_begin(self, epoch, logs=None):
        self._epoch_began = self._steps

    def on_train_batch_end(self, batch, logs=None):
        before, self._steps = self._steps, self._epoch_began + batch + 1
        # Not at each batch: on JAX asking for the model copies its state.
        if before // self.every < self._steps // self.every:
            self._observe()

    def on_train_end(self, logs=None):
        if self._events is not None:
            self._events.close()

    def _observe(self):
        model = self.model
        if not getattr(model, "is_chief", True):
            return
        found = diagnose(
            getattr(model, "critic", model), self.images, self.score
        )
        row = {
            "step": self._steps,
            "verdict": found.verdict,
            "layer": found.layer or "",
            "slope": found.slope,
        }
        for of_layer in rows_of(found):
            for field in _FIELDS:
                if np.isfinite(of_layer.get(field, np.nan)):
                    row[f"{field}/{of_layer['layer']}"] = of_layer[field]
        self._warn(found)
        os.makedirs(self.directory, exist_ok=True)
        path = os.path.join(self.directory, "monitor.csv")
        rows = [r for r in read_rows(path) if int(r["step"]) < self._steps]
        rows.append(row)
        write_rows(rows, path)
        draw_monitor(rows, os.path.join(self.directory, "monitor.png"))
        if self._events is not None:
            numbers = {
                f"monitor/{name}": value
                for name, value in row.items()
                if isinstance(value, float)
            }
            self._events.write(self._steps, numbers)

    def _warn(self, found):
        now = found.verdict, found.layer
        if now != self._said and found.verdict != "healthy":
            warnings.warn(
                f"At step {self._steps} the critic is {found.verdict}: "
                f"{found.reason}.",
                stacklevel=2,
            )
        if self._said == ("healthy", None) and self._steps == 0:
            for warning in found.warnings:
                warnings.warn(warning, stacklevel=2)
        self._said = now


def draw_monitor(rows, path):
    """Plots the rows of a `NormMonitor` over the steps, as PNG.

    Args:
        rows: List of dicts, as in `monitor.csv`.
        path: String or path of the file to write.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    panels = {"slope": ["slope"]}
    for field in _FIELDS:
        panels[field] = [n for n in names if n.startswith(f"{field}/")]
    panels = {field: keys for field, keys in panels.items() if keys}
    figure, axes = figure_of(len(panels), (8, 2.6))
    for ax, (field, keys) in zip(axes, panels.items()):
        for key in keys:
            points = [
                (int(r["step"]), float(r[key])) for r in rows if r.get(key)
            ]
            if points:
                ax.plot(
                    *zip(*points),
                    marker=".",
                    label=key.partition("/")[2] or key,
                )
        ax.set_yscale("log")
        ax.set_ylabel(_FIELDS.get(field, "change of the score\nby an image"))
        ax.grid(alpha=0.3)
    # The layers have the same colours in all.
    handles, labels = axes[-1].get_legend_handles_labels()
    figure.legend(handles, labels, fontsize="small", loc="outside right upper")
    failed = [r for r in rows if r["verdict"] != "healthy"]
    for ax in axes:
        for row in failed:
            ax.axvline(int(row["step"]), color="crimson", alpha=0.2)
    axes[-1].set_xlabel("step (red: exploding or vanishing)")
    figure.savefig(path, dpi=80)
