"""Steps of a GAN on JAX."""

import functools

import jax
import numpy as np

from keras_san.differentiation import as_pure_function
from keras_san.gan.base import BaseGAN


class JAXGAN(BaseGAN):
    """A GAN whose step is a pure function of all variables."""

    def train_step(self, state, data):
        groups = self._state_variables()
        return as_pure_function(self.step, groups)(state, data)

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
