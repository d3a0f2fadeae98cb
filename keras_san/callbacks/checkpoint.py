"""Checkpoints to resume a training from."""

import contextlib
import glob
import os
import re
import warnings

import keras


class Checkpoint(keras.callbacks.Callback):
    """Saves all that is needed to resume a training, after each epoch.

    One file holds both networks, both optimizers, the norms, and the random
    states of the GAN and of its normalizations (but of no other layer, such as
    Dropout: Keras saves none). It is written completely before it replaces the
    last one, so that whatever happens one complete checkpoint remains.

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
        """The number of epochs before the checkpoint, or 0 without one."""
        return max(self._epochs(), default=0)

    def restore(self, gan):
        """Restores a GAN from the checkpoint, if there is one.

        Args:
            gan: A compiled `keras_san.GAN`, built as the saved one was.

        Returns:
            An int, as `finished_epochs`.

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
                    "Build networks and optimizers as they were, or start "
                    f"again in another folder. Received: '{path}' "
                    f"({str(error)[:300]})"
                ) from error
        return epochs

    def on_epoch_end(self, epoch, logs=None):
        if not getattr(self.model, "is_chief", True):
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
                "The checkpoint cannot be written: is the disk full? The last "
                "one is untouched, and the training can be resumed from it. "
                f"Received: '{new}' ({error})"
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
