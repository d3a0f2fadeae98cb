"""The end of a training that has diverged."""

import math

import keras
import numpy as np


class StopWhenNotFinite(keras.callbacks.Callback):
    """Raises at the end of an epoch with a loss or weight of NaN or infinity.

    `fit` of a GAN adds it by itself, in front of all other callbacks: weights
    that have diverged must not take the place of a checkpoint.

    Raises:
        ValueError: with the names of the weights.
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
                f"Training has diverged in epoch {epoch + 1}: the loss is "
                f"{loss}, and these weights hold NaN or infinity: {names}. "
                "Try a smaller learning rate, or go back to a checkpoint."
            )
