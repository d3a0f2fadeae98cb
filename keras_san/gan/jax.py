"""Steps of a GAN on JAX."""

import functools

import jax
import keras
import numpy as np

from keras_san.differentiation import as_pure_function
from keras_san.gan.base import BaseGAN


class JAXGAN(BaseGAN):
    """A GAN whose step is a pure function of all variables."""

    def train_step(self, state, data):
        groups = self._state_variables()
        return as_pure_function(self.step, groups)(state, data)

    def test_step(self, state, data):
        trained, others, _, means = self._state_variables()
        groups = trained, others, means
        return as_pure_function(self.measure, groups)(state, data)

    # A compiled step cannot raise, so values are checked before.

    def make_train_function(self, force=False):
        if self.train_function is None or force:
            super().make_train_function(force)
            self.train_function = self._checking(self.train_function)

    def make_test_function(self, force=False):
        if self.test_function is None or force:
            super().make_test_function(force)
            self.test_function = self._checking(self.test_function)

    def _checking(self, function):
        def batches(iterator):
            for data in iterator:
                x, y, _ = keras.utils.unpack_x_y_sample_weight(data)
                self._check_values(x, y)
                yield data

        return lambda state, iterator: function(state, batches(iterator))

    @property
    def is_chief(self):
        return jax.process_index() == 0

    # Not `predict`: it distributes its data as `fit` does, so that each batch
    # has to be a multiple of the devices, and all processes have to take part.
    def _sample(self, inputs):
        groups = (
            self._sampler.trainable_variables,
            self._sampler.non_trainable_variables,
        )
        values = [[v.value for v in variables] for variables in groups]
        if all(v.is_fully_replicated for group in values for v in group):
            values = [
                [v.addressable_data(0) for v in group] for group in values
            ]
        return np.asarray(self._compiled_sampler(*values, inputs))

    @functools.cached_property
    def _compiled_sampler(self):
        sampler = self._sampler

        def run(trainable, others, inputs):
            return sampler.stateless_call(
                trainable, others, inputs, training=False
            )[0]

        return jax.jit(run)
