"""Batches that depend on nothing but the data, the settings and a number."""

import keras
import numpy as np


class Numbered(keras.utils.PyDataset):
    """Batches that are counted through all epochs.

    A training that is resumed at an epoch gets the batches that it would have
    got. For that `fit` needs `callbacks=[batches.follow(), ...]`, which tells
    the epoch, and `shuffle=False`, or it shuffles an epoch's steps.

    Args:
        steps: Int, the batches of an epoch.
    """

    def __init__(self, steps):
        super().__init__()
        self.steps = steps
        self.epoch = 0

    def __len__(self):
        return self.steps

    def number(self, index):
        """The number of a batch, by its index in the epoch."""
        return self.epoch * self.steps + index

    def follow(self):
        """The callback by which the epoch of `fit` becomes that of the batches.

        Keras begins and ends epochs of a `PyDataset` more often than it
        trains, on each backend in another way.
        """

        def set_epoch(epoch, logs=None):
            self.epoch = epoch

        return keras.callbacks.LambdaCallback(on_epoch_begin=set_epoch)


class EveryOnce(Numbered):
    """Batches that take every example once in each pass through the data.

    A batch may begin in one pass and end in the next.

    Args:
        count: Int, how many examples there are.
        batch_size: Int, which may be larger than that.
        steps: Int, the batches of an epoch.
        seed: Int.
    """

    def __init__(self, count, batch_size, steps, seed=0):
        super().__init__(steps)
        self.count = count
        self.batch_size = batch_size
        self.seed = seed

    def drawn(self, index):
        """What is in a batch.

        Args:
            index: Int, its index in the epoch.

        Returns:
            Two arrays `(batch_size,)`: ints, which examples, and booleans,
            about half of them true: which of these to mirror.
        """
        start = self.number(index) * self.batch_size
        first, offset = divmod(start, self.count)
        last = (start + self.batch_size - 1) // self.count
        passes = [self._pass(number) for number in range(first, last + 1)]
        taken = slice(offset, offset + self.batch_size)
        return [np.concatenate(part)[taken] for part in zip(*passes)]

    def _pass(self, number):
        rng = np.random.default_rng((self.seed, number))
        return (
            rng.permutation(self.count),
            rng.integers(2, size=self.count) == 1,
        )


def mirror(images, mirrored):
    """Mirrors some images left to right, in place.

    Args:
        images: Array `(n, height, width, channels)`.
        mirrored: Boolean array `(n,)`.
    """
    images[mirrored] = images[mirrored, :, ::-1]
