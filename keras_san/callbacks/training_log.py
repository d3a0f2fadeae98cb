"""Logs of a training as a table and as curves."""

import os
import time

import keras

from keras_san.callbacks.logs import (
    critic_norms,
    draw_curves,
    read_log,
    steps_taken,
    write_rows,
)
from keras_san.checks import check_package


class TrainingLog(keras.callbacks.Callback):
    """Writes logs and norms to `log.csv`, and plots them in `curves.png`.

    Besides the logs of its epoch, a row has `epoch` (from 1), `step` (the
    updates of the generator so far) and `seconds` (the time of all epochs so
    far, including other callbacks). A resumed training goes on counting;
    unlike with `keras.callbacks.CSVLogger`, the rows of epochs that it repeats
    are replaced.

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
