"""Batches that depend on nothing but the data, the settings and a number."""

import itertools

import keras
import numpy as np


class Batches:
    """Batches that take every example once in each pass through the data.

    They are numbered through all epochs, so that a training that is resumed
    gets those that it would have got. A batch may begin in one pass and end
    in the next.

    Args:
        arrays: Arrays `(count, ...)` that belong together.
        batch_size: Int, which may be larger than `count`.
        seed: Int.
        mirror: Boolean, whether to mirror about half of what has a width.
        prepare: Callable from what is drawn of the arrays to the batch.

    Returns:
        As item `k`, by a number that counts through all epochs, the tuple of
        arrays of that batch.
    """

    def __init__(self, arrays, batch_size, seed=0, mirror=False, prepare=None):
        self.arrays = tuple(arrays)
        self.batch_size = batch_size
        self.seed = seed
        self.mirror = mirror
        self.prepare = prepare

    def __getitem__(self, number):
        count = len(self.arrays[0])
        start = number * self.batch_size
        first, offset = divmod(start, count)
        last = (start + self.batch_size - 1) // count
        passes = [self._pass(k, count) for k in range(first, last + 1)]
        taken = slice(offset, offset + self.batch_size)
        chosen, mirrored = (np.concatenate(x)[taken] for x in zip(*passes))
        batch = [array[chosen] for array in self.arrays]
        if self.mirror:
            for x in batch:
                if x.ndim > 2:
                    x[mirrored] = x[mirrored, :, ::-1]
        return tuple(self.prepare(*batch) if self.prepare else batch)

    def _pass(self, number, count):
        rng = np.random.default_rng((self.seed, number))
        return rng.permutation(count), rng.integers(2, size=count) == 1

    def feed(self, start, stop):
        """The batches from one number to another, as `fit` takes them.

        Args:
            start: Int. To leave batches out costs no time.
            stop: Int, the number of the first batch that is not needed.

        Returns:
            A `tf.data.Dataset` of static shapes on TensorFlow, else a
            generator.
        """
        if keras.config.backend() != "tensorflow":
            # One more than is needed costs nothing, and `fit` may look ahead.
            return (self[number] for number in itertools.count(start))
        import tensorflow as tf

        first = self[start]
        dtypes = [x.dtype for x in first]

        def draw(number):
            batch = tf.numpy_function(
                lambda k: self[int(k)], [number], dtypes, stateful=False
            )
            for x, y in zip(batch, first):
                x.set_shape(y.shape)
            return tuple(batch)

        # No more than is trained on: threads that are still in Python when
        # the process ends may hang it.
        dataset = tf.data.Dataset.range(start, stop)
        return dataset.map(draw).prefetch(tf.data.AUTOTUNE)


def to_float(images):
    """uint8 to float32 in [-1, 1]."""
    return images.astype("float32") / np.float32(127.5) - np.float32(1.0)
