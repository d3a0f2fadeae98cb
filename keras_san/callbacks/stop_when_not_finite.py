"""The callback that `fit` of a GAN adds, to stop once it diverges."""

import math

import keras
import numpy as np


class StopWhenNotFinite(keras.callbacks.Callback):
    """Stops a training at the end of an epoch if it has diverged.

    `fit` of a GAN adds it by itself, before all other callbacks: weights that
    have diverged must not replace a checkpoint.

    Raises:
        ValueError: if the loss or a weight is NaN or infinite.
    """

    def on_epoch_end(self, epoch, logs=None):
        loss = (logs or {}).get("loss", 0.0)
        names = [
            variable.path
            for variable in self.model.trainable_variables
            if not np.all(np.isfinite(variable.numpy()))
        ]
        if names or not math.isfinite(loss):
            raise ValueError(
                f"Training has diverged in epoch {epoch + 1}. Try a smaller "
                "learning rate, or go back to a checkpoint. Received: "
                f"loss={loss}, and NaN or infinity in the weights {names}"
            )
