"""A progress bar of the whole training."""

import math
import sys

import keras

from keras_san.checks import check_package


class Progress(keras.callbacks.Callback):
    """Shows the progress of the whole training, and the time it will take.

    Keras' own bar begins anew with each epoch: pass `verbose=0` to `fit` with
    this one. Each epoch prints a line with its logs; in a terminal, another
    line below is kept up to date. Put callbacks that add to the logs before
    this one.

    Raises:
        ImportError: if tqdm is not installed.
    """

    def __init__(self):
        super().__init__()
        check_package("tqdm")
        self._bar = None

    def on_epoch_begin(self, epoch, logs=None):
        from tqdm import tqdm

        self._batch = -1
        if self._bar is None and getattr(self.model, "is_chief", True):
            self._first = epoch  # Not 0 where a training is resumed.
            steps = self.params["steps"]
            self._bar = tqdm(
                total=steps and steps * self.params["epochs"],
                initial=(steps or 0) * epoch,
                unit="step",
                file=sys.stdout,
                dynamic_ncols=True,
                # In a file it would be one long line.
                delay=0 if sys.stdout.isatty() else math.inf,
            )

    def on_train_batch_end(self, batch, logs=None):
        if self._bar is not None:
            # Where several steps are one execution, the numbers jump.
            self._bar.update(batch - self._batch)
            self._batch = batch

    def on_epoch_end(self, epoch, logs=None):
        if self._bar is not None:
            # Keras may not know them before the first epoch has ended.
            steps = self.params["steps"] or self._batch + 1
            self._bar.initial = steps * self._first
            self._bar.n = steps * (epoch + 1)
            self._bar.total = steps * self.params["epochs"]
            self._bar.set_postfix(logs or {}, refresh=False)
            state = {**self._bar.format_dict, "ncols": 0}
            write = self._bar.write if sys.stdout.isatty() else print
            write(self._bar.format_meter(**state), file=sys.stdout)

    def on_train_end(self, logs=None):
        if self._bar is not None:
            self._bar.close()
        self._bar = None
