"""Logs, norms and samples in TensorBoard."""

import io
import os
import time

import keras

from keras_san.callbacks.logs import critic_norms, steps_taken
from keras_san.callbacks.samples import check_draws, sample_grid
from keras_san.checks import check_package


class TensorBoard(keras.callbacks.Callback):
    """Shows logs, norms and sample grids in TensorBoard, after each epoch.

    Look at them with `tensorboard --logdir DIRECTORY`. Needs the package
    `tensorboard`, but not TensorFlow.

    Args:
        directory: String or path, created if missing.
        rows: Int, as in `SampleGrid`.
        columns: Int, as in `SampleGrid`.
        seed: Int for the latent vectors.
        picture: `None` for a sample grid, or a callable from the model to
            the picture to show instead, a uint8 array
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
    """Writes numbers and images to a folder, for TensorBoard to show.

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
