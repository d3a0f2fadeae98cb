"""How a GAN trains on JAX."""

import functools

import jax
import keras
import numpy as np

from keras_san.gan.base import BaseGAN


class JAXGAN(BaseGAN):
    """Keras' state is lifted out of the step; inside, code may assign."""

    def train_step(self, state, data):
        groups = self._state_variables()
        mapping = [
            pair
            for variables, values in zip(groups, state)
            for pair in zip(variables, values)
        ]
        with keras.StatelessScope(state_mapping=mapping) as scope:
            logs = self.step(data)
        return logs, tuple(
            [scope.get_current_value(v) for v in variables]
            for variables in groups
        )

    def _state_variables(self):
        return (
            self.trainable_variables,
            self.non_trainable_variables,
            self.optimizer.variables,
            self.metrics_variables,
        )

    def minimize(self, compute_loss, network, optimizer):
        variables = network.trainable_variables
        ids = {id(variable) for variable in variables}
        others = [
            v
            for group in self._state_variables()
            for v in group
            if id(v) not in ids
        ]

        def stateless_loss(values):
            mapping = [(v, v.value) for v in others]
            mapping += zip(variables, values)
            with keras.StatelessScope(mapping, collect_losses=True) as scope:
                loss, extra = compute_loss()
                loss = optimizer.scale_loss(loss)
            return loss, (extra, [scope.get_current_value(v) for v in others])

        values = [v.value for v in variables]
        gradients, (extra, updated) = jax.grad(stateless_loss, has_aux=True)(
            values
        )
        for variable, value in zip(others, updated):
            variable.assign(value)
        slots = optimizer.variables
        values, new_slots = optimizer.stateless_apply(
            [v.value for v in slots], gradients, values
        )
        for variable, value in zip([*variables, *slots], [*values, *new_slots]):
            variable.assign(value)
        return extra

    def input_gradient(self, function, images):
        mapping = [
            (v, v.value) for group in self._state_variables() for v in group
        ]

        # What the pass assigns stays inside of the gradient.
        def stateless(images):
            with keras.StatelessScope(mapping):
                return function(images)

        return jax.grad(stateless)(images)

    def shard(self, make, batch_size):
        return make(batch_size)

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
