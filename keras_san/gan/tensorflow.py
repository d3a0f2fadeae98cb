"""Steps of a GAN on TensorFlow."""

import contextlib
import functools
import re

import tensorflow as tf

from keras_san.gan.base import BaseGAN


class TensorFlowGAN(BaseGAN):
    """A GAN whose replicas are those of `tf.distribute`."""

    def fit(self, x=None, y=None, *args, **kwargs):
        self._forget_other_sizes(x, y, kwargs.get("validation_data"))
        with _plain_errors():
            return super().fit(x, y, *args, **kwargs)

    def evaluate(self, x=None, y=None, *args, **kwargs):
        if "_use_cached_eval_dataset" not in kwargs:  # Not in `fit`.
            self._forget_other_sizes(x, y)
        with _plain_errors():
            return super().evaluate(x, y, *args, **kwargs)

    def _forget_other_sizes(self, *data):
        """Has steps traced anew for images of another size.

        TensorFlow would take both sizes for one that is not known.
        """
        sizes = [_sizes(x) for x in data]
        if sizes != self._sizes:
            self._sizes = sizes
            self.train_function = self.test_function = None

    _sizes = None

    def train_step(self, data):
        return self._as_keras_wants(self.step(data))

    def test_step(self, data):
        return self._as_keras_wants(self.measure(data))

    def _as_keras_wants(self, logs):
        if self._has_other_workers:
            # Keras then takes the mean of what a step returns over its first
            # axis, too, and fails where there is none.
            logs = {name: value[None] for name, value in logs.items()}
        return logs

    def _maybe_symbolic_build(self, *args, **kwargs):
        # A GAN is built by its constructor. Keras would draw a batch to build
        # it for, and average the batch over the replicas, which fails where
        # several workers have pairs of images and labels.
        pass

    @property
    def _has_other_workers(self):
        strategy = self.distribute_strategy
        if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            return False
        here = len(strategy.extended.worker_devices)
        return here < strategy.num_replicas_in_sync

    @property
    def is_chief(self):
        resolver = self.distribute_strategy.cluster_resolver
        if resolver is None or resolver.task_type != "worker":
            return True
        # Without a job of that name the first worker is the chief.
        has_chief = "chief" in resolver.cluster_spec().jobs
        return not has_chief and not resolver.task_id

    def shard(self, make, batch_size):
        replica = tf.distribute.get_replica_context()
        count = replica.num_replicas_in_sync
        if count == 1:
            return make(batch_size)
        # Replicas share their random state, and so would draw the same. This
        # way they also draw what one device would for the whole batch.
        start = replica.replica_id_in_sync_group * batch_size
        return make(batch_size * count)[start : start + batch_size]

    def _size_of_all(self, images):
        count = self.distribute_strategy.num_replicas_in_sync
        return count * super()._size_of_all(images)

    # Not `predict`: its data are divided among all workers, which wait for
    # each other.
    def _sample(self, inputs):
        return self._compiled_sampler(inputs).numpy()

    @functools.cached_property
    def _compiled_sampler(self):
        sampler = self._sampler
        signature = [tf.TensorSpec(x.shape, x.dtype) for x in sampler.inputs]
        if len(signature) == 1:
            (signature,) = signature

        @tf.function(input_signature=[signature])
        def run(inputs):
            return sampler(inputs, training=False)

        # An attribute that is a `tf.function` would end up in SavedModels.
        return lambda inputs: run(inputs)


@contextlib.contextmanager
def _plain_errors():
    """Raises a `ValueError` of `checks.require` without pages of a graph."""
    try:
        yield
    except tf.errors.InvalidArgumentError as error:
        found = re.search(r"assertion failed: \[(.*)\]", str(error))
        if found is None:
            raise
        raise ValueError(found[1].replace("] [", " ")) from error


def _sizes(data):
    """The shapes of data without those of batches, as far as known."""
    spec = getattr(data, "element_spec", data)
    return [
        tuple(x.shape)[1:] if getattr(x, "shape", None) else type(x)
        for x in tf.nest.flatten(spec)
    ]
