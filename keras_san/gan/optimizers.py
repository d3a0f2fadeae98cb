"""The optimizers of a GAN, of which Keras expects one."""

import keras


class BothOptimizers(keras.optimizers.Optimizer):
    """The two optimizers of a GAN, as Keras' trainers and callbacks see one.

    Its learning rate and its iterations are the generator's. A step of
    training uses the two themselves, and both are saved by their own names.

    Args:
        generator: A built Keras optimizer.
        critic: The same.
    """

    def __init__(self, generator, critic):
        super().__init__(learning_rate=0.0, name="both_optimizers")
        self.optimizers = [generator, critic]
        self.built = True

    @property
    def variables(self):
        # JAX carries them from step to step.
        return [v for optimizer in self.optimizers for v in optimizer.variables]

    @property
    def iterations(self):
        return self.optimizers[0].iterations

    @property
    def learning_rate(self):
        return self.optimizers[0].learning_rate

    @learning_rate.setter
    def learning_rate(self, value):
        self.optimizers[0].learning_rate = value

    def finalize_variable_values(self, var_list):
        """Gives each network its average, where its optimizer keeps one."""
        for optimizer in self.optimizers:
            # Those of a `LossScaleOptimizer` belong to the one inside.
            inner = getattr(optimizer, "inner_optimizer", optimizer)
            inner.finalize_variable_values(inner._trainable_variables)

    def save_own_variables(self, store):
        pass

    def load_own_variables(self, store):
        pass


def make(identifier, network):
    """A built optimizer of a network's weights.

    Args:
        identifier: What `keras.optimizers.get` takes, or `None` for Adam with
            the settings of the SAN paper.
        network: A built `keras.Model`.

    Returns:
        A Keras optimizer, which scales the loss of a network in float16.
    """
    if identifier is None:
        identifier = keras.optimizers.Adam(2e-4, beta_1=0.5, beta_2=0.9)
    optimizer = keras.optimizers.get(identifier)
    scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
    if network.compute_dtype == "float16" and not scaled:
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
    # Now, because a file can only restore variables that exist.
    optimizer.build(network.trainable_variables)
    return optimizer
