"""The base of all GANs: networks, optimizers, and the order of a step."""

import keras
import numpy as np
from keras import ops

from keras_san import losses
from keras_san.callbacks.stop_when_not_finite import StopWhenNotFinite
from keras_san.checks import check_count
from keras_san.differentiation import input_gradient, minimize
from keras_san.kernel_normalization import hold_norms


class BaseGAN(keras.Model):
    """Everything about a GAN but its data and its backend.

    A kind of GAN adds

    - `_unpack(data)`: the real images of a batch and their condition, which is
      `None` if there is none;
    - `_generator_inputs(real, condition)`: the inputs of the generator, and
      the condition of the images that it makes from them;
    - `_criticize(images, condition)`: the critic's output, a `CriticOutput`
      with float32 logits; and
    - if it likes, `_criticize_both`, `_make_view`, `_critic_loss` and
      `_generator_loss`.

    A backend adds `train_step`, which runs `self.step(data)`, and, where a
    step runs on several replicas, `shard`. One that trains in several
    processes also overrides `is_chief`. All have `_sample(inputs)`, which
    makes one batch of images in this process alone.

    Args:
        more_means: Strings, the names of further means to report.
    """

    def __init__(
        self,
        generator,
        critic,
        loss="hinge",
        critic_steps=1,
        penalty=None,
        ema=None,
        seed=None,
        more_means=(),
        **kwargs,
    ):
        super().__init__(**kwargs)
        for name, network in (("generator", generator), ("critic", critic)):
            if not isinstance(network, keras.Model) or not network.built:
                raise ValueError(
                    f"`{name}` must be a built `keras.Model`, as a functional "
                    "model is, or a Sequential one with a `keras.Input`. "
                    f"Received: {name}={network}"
                )
        check_count("critic_steps", critic_steps)
        if not (penalty is None or callable(penalty)):
            raise ValueError(
                "`penalty` must be None, or a callable such as "
                "keras_san.losses.GradientPenalty(). "
                f"Received: penalty={penalty!r}"
            )
        if ema is not None and not 0.0 < ema < 1.0:
            raise ValueError(
                "`ema` must be None or in (0, 1), as 0.999: the share of the "
                "average that a step keeps. "
                f"Received: ema={ema!r}"
            )
        self.generator = generator
        self.critic = critic
        self.loss_function = losses.get(loss)
        self.critic_steps = critic_steps
        self.penalty = penalty
        self.ema = ema
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.averaged_generator = None
        if ema is not None:
            self.averaged_generator = keras.models.clone_model(generator)
            self.averaged_generator.trainable = False
            self.averaged_generator.set_weights(generator.get_weights())
        self._means = [
            keras.metrics.Mean(name=name)
            for name in (
                "loss",
                "critic_loss",
                "generator_loss",
                "real_logit",
                "fake_logit",
                *more_means,
            )
        ]
        self.generator_optimizer = None
        self.critic_optimizer = None
        # There is nothing left to build, and callbacks insist on it.
        self.built = True

    def compile(
        self, generator_optimizer=None, critic_optimizer=None, **kwargs
    ):
        """Sets how both networks are trained.

        Args:
            generator_optimizer: A Keras optimizer or its name. By default
                Adam with the paper's settings: a learning rate of 2e-4,
                `beta_1=0.5`, `beta_2=0.9`. It is `self.optimizer`, too, and
                so what Keras' callbacks act on.
            critic_optimizer: The same for the critic.
            **kwargs: `run_eagerly`, `jit_compile` and `steps_per_execution`,
                as of `keras.Model.compile`.

        Raises:
            ValueError: if one optimizer object is given for both.
        """
        if generator_optimizer is not None and (
            generator_optimizer is critic_optimizer
        ):
            raise ValueError(
                "Generator and critic need an optimizer each: one cannot "
                "keep the moments of both. Received twice: "
                f"{generator_optimizer}"
            )
        self.generator_optimizer = self._optimizer(
            generator_optimizer, self.generator
        )
        self.critic_optimizer = self._optimizer(critic_optimizer, self.critic)
        # Without an optimizer Keras would make one up. Loss scaling is taken
        # care of above, for both.
        super().compile(
            optimizer=self.generator_optimizer, auto_scale_loss=False, **kwargs
        )
        self._compile_arguments = kwargs

    def _optimizer(self, identifier, network):
        if identifier is None:
            identifier = keras.optimizers.Adam(2e-4, beta_1=0.5, beta_2=0.9)
        optimizer = keras.optimizers.get(identifier)
        scaled = isinstance(optimizer, keras.optimizers.LossScaleOptimizer)
        if network.compute_dtype == "float16" and not scaled:
            optimizer = keras.optimizers.LossScaleOptimizer(optimizer)
        # Now, because a file can only restore variables that exist.
        optimizer.build(network.trainable_variables)
        return optimizer

    @property
    def metrics(self):
        return self._means

    @property
    def non_trainable_variables(self):
        # Keras' JAX trainer carries the state of one optimizer. The other
        # one travels with all that is not trained.
        if self.critic_optimizer is None:
            return super().non_trainable_variables
        return [
            *super().non_trainable_variables,
            *self.critic_optimizer.variables,
        ]

    def call(self, inputs, training=None):
        return self._sampler(inputs, training=training)

    @property
    def _sampler(self):
        return self.averaged_generator or self.generator

    @property
    def is_chief(self):
        """`True` in the one process that should write files."""
        return True

    def fit(self, *args, callbacks=None, **kwargs):
        """`keras.Model.fit`, which also stops once the training diverges.

        Args:
            *args: Arrays or a dataset of what the class trains on. A batch
                holds the images of `critic_steps` updates of the critic.
            callbacks: List of Keras callbacks.
            **kwargs: As those of `keras.Model.fit`.

        Returns:
            A Keras `History` of the means of each epoch: `critic_loss`,
            `generator_loss` (both adversarial), `loss` (what both
            networks minimize, in sum), `real_logit` and `fake_logit` (what
            the critic says of real and generated images). Those of the
            critic are of the last of its `critic_steps`.

        Raises:
            ValueError: if images do not fit the networks, or a norm is NaN
                or infinite (at the step where it happens, or, where a
                compiled step cannot raise, at the end of the epoch), or, at
                the end of an epoch, any weight or the loss.
            NotImplementedError: on PyTorch.
        """
        if keras.config.backend() == "torch":
            raise NotImplementedError(
                "A GAN trains on TensorFlow and JAX. For those of its layers "
                "that you train in a loop of your own see "
                "`keras_san.hold_norms`. Received: the Keras backend "
                f"{keras.config.backend()}"
            )
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            # First: what has diverged is not to replace a checkpoint.
            callbacks = [StopWhenNotFinite(), *(callbacks or [])]
        return super().fit(*args, callbacks=callbacks, **kwargs)

    def step(self, data):
        """One update of the generator, after those of the critic.

        Returns:
            A dict of scalars, the means since the epoch began.
        """
        # An uncompiled step gets arrays, which Keras does not mix with tensors.
        data = keras.tree.map_structure(
            lambda x: None if x is None else ops.convert_to_tensor(x), data
        )
        all_real, all_conditions = self._unpack(data)
        size = all_real.shape[0]
        if size is not None and size < self.critic_steps:
            raise ValueError(self.small_batch_message(f"a batch of {size}"))
        batch_size = ops.shape(all_real)[0] // self.critic_steps
        for i in range(self.critic_steps):
            part = slice(i * batch_size, (i + 1) * batch_size)
            real = all_real[part]
            condition = None
            if all_conditions is not None:
                condition = all_conditions[part]
            critic_means = self._critic_step(real, condition)
        generator_means = self._generator_step(real, condition)
        if self.ema is not None:
            self._average()
        values = {**generator_means, **critic_means}
        values["loss"] = critic_means["loss"] + generator_means["loss"]
        for mean in self._means:
            mean.update_state(values[mean.name])
        return {mean.name: mean.result() for mean in self._means}

    def _state_variables(self):
        """All variables of a step, in the groups that Keras has on JAX."""
        return (
            self.trainable_variables,
            self.non_trainable_variables,
            self.optimizer.variables,
            self.metrics_variables,
        )

    def _all_variables(self):
        return [v for group in self._state_variables() for v in group]

    def _critic_step(self, real, condition):
        inputs, fake_condition = self._generator_inputs(real, condition)
        view = self._make_view()
        real = view(real)
        fake = view(self.generator(inputs, training=True))

        def compute_loss():
            of_real, of_fake, layer_losses = self._criticize_both(
                real, condition, fake, fake_condition
            )
            adversarial = _mean(
                map(self.loss_function.critic, of_real.logits, of_fake.logits)
            )
            loss, means = self._critic_loss(adversarial, of_real, condition)
            means = {
                "loss": loss,
                "critic_loss": adversarial,
                "real_logit": _mean(map(ops.mean, of_real.logits)),
                "fake_logit": _mean(map(ops.mean, of_fake.logits)),
                **means,
            }
            loss += layer_losses
            if self.penalty is not None:
                # This pass sees the weights that the others have seen.
                with hold_norms():
                    loss += self._penalize(real, fake, condition)
            return loss, means

        return minimize(
            compute_loss,
            self.critic_optimizer,
            self.critic.trainable_variables,
            self._all_variables(),
        )

    def _criticize_both(self, real, condition, fake, fake_condition):
        """The critic's outputs for both, and the losses of its layers."""
        of_real = self._criticize(real, condition)
        layer_losses = sum(self.critic.losses)
        # The second pass sees the weights that the first has seen.
        with hold_norms():
            of_fake = self._criticize(fake, fake_condition)
        layer_losses = (layer_losses + sum(self.critic.losses)) / 2.0
        return of_real, of_fake, layer_losses

    def _penalize(self, real, fake, condition):
        def score(images):
            return sum(map(ops.sum, self._criticize(images, condition).logits))

        def gradient(images):
            return input_gradient(score, images, self._all_variables())

        def shares(n):
            return keras.random.uniform((n, 1, 1, 1), seed=self.seed_generator)

        share = self.shard(shares, ops.shape(real)[0])
        real, fake = (ops.cast(x, "float32") for x in (real, fake))
        return self.penalty(gradient, real, fake, share)

    def _generator_step(self, real, condition):
        inputs, fake_condition = self._generator_inputs(real, condition)
        view = self._make_view()

        def compute_loss():
            fake = self.generator(inputs, training=True)
            # The critic as it was trained, and one generator in all passes.
            with hold_norms():
                loss, means = self._generator_loss(
                    real, condition, fake, fake_condition, view
                )
            return loss + sum(self.generator.losses), {"loss": loss, **means}

        return minimize(
            compute_loss,
            self.generator_optimizer,
            self.generator.trainable_variables,
            self._all_variables(),
        )

    def shard(self, make, batch_size):
        """The part of this replica of `make(n)`, drawn for all replicas."""
        return make(batch_size)

    def _make_view(self):
        """A function from images to the part of them that the critic sees."""
        return lambda images: images

    def _critic_loss(self, adversarial, of_real, condition):
        """The loss of the critic, and further means to report, by name.

        Args:
            adversarial: Scalar.
            of_real: The `CriticOutput` of real images.
            condition: That of the real images.
        """
        return adversarial, {}

    def _generator_loss(self, real, condition, fake, fake_condition, view):
        """The loss of the generator, and the means to report, by name."""
        logits = self._criticize(view(fake), fake_condition).logits
        adversarial = self._adversarial_loss(logits)
        return adversarial, {"generator_loss": adversarial}

    def _adversarial_loss(self, logits):
        """The generator's, the mean over the critic's scales."""
        return _mean(map(self.loss_function.generator, logits))

    def _average(self):
        # At first the average follows fast: it forgets the untrained weights.
        step = ops.cast(self.generator_optimizer.iterations, "float32")
        decay = ops.minimum(self.ema, (1.0 + step) / (10.0 + step))
        for average, weight in zip(
            self.averaged_generator.weights, self.generator.weights
        ):
            if keras.backend.is_float_dtype(weight.dtype):
                average.assign(weight + decay * (average - weight))
            else:  # A counter, say, of a normalized layer.
                average.assign(weight)

    def small_batch_message(self, batch):
        return (
            "A batch holds the images of all updates of the critic, so none, "
            "not even the last, can be smaller than their number. Received: "
            f"{batch} with critic_steps={self.critic_steps}"
        )

    def _generate(self, make_inputs, count, batch_size):
        """Images in batches, `make_inputs(part)` the inputs of a slice."""
        return np.concatenate(
            [
                self._sample(make_inputs(slice(start, start + batch_size)))
                for start in range(0, count, batch_size)
            ]
        )

    def _sample(self, inputs):
        return self._sampler.predict_on_batch(inputs)

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "generator": serialize(self.generator),
            "critic": serialize(self.critic),
            "loss": serialize(self.loss_function),
            "critic_steps": self.critic_steps,
            "penalty": serialize(self.penalty),
            "ema": self.ema,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        for name in ("generator", "critic", "penalty"):
            config[name] = keras.saving.deserialize_keras_object(
                config[name], custom_objects=custom_objects
            )
        return cls(**config)

    def get_compile_config(self):
        if self.generator_optimizer is None:
            return None
        serialize = keras.saving.serialize_keras_object
        return {
            "generator_optimizer": serialize(self.generator_optimizer),
            "critic_optimizer": serialize(self.critic_optimizer),
            **self._compile_arguments,
        }

    def compile_from_config(self, config):
        self.compile(
            **{
                name: keras.saving.deserialize_keras_object(value)
                for name, value in config.items()
            }
        )

    # Keras saves the state of no seed generator, without which a resumed
    # training would draw other latents.

    def save_own_variables(self, store):
        super().save_own_variables(store)
        store["seed"] = self.seed_generator.state

    def load_own_variables(self, store):
        self.seed_generator.state.assign(store["seed"])


def check_takes_images_of(generator, critic):
    """Raises a `ValueError` unless a critic takes what a generator makes."""
    made, taken = generator.output_shape, tuple(critic.inputs[0].shape)
    if len(made) != len(taken) or any(
        a != b for a, b in zip(made[1:], taken[1:]) if None not in (a, b)
    ):
        raise ValueError(
            "The critic must take the images that the generator makes. "
            f"Received: a generator with output_shape={made}, a critic with "
            f"input_shape={critic.input_shape}"
        )


def check_fit(name, value, expected):
    """Raises a `ValueError` unless an input of a network takes an array.

    Args:
        name: String, what the array is.
        value: Array or tensor `(batch, ...)`.
        expected: That input, a `keras.KerasTensor`.
    """
    shape, expected = tuple(value.shape), tuple(expected.shape)
    if len(shape) != len(expected) or any(
        a != b for a, b in zip(shape[1:], expected[1:]) if None not in (a, b)
    ):
        raise ValueError(
            f"The {name} do not fit the network, which takes {expected}. "
            f"Received: {name} of shape {shape}"
        )


def _mean(values):
    values = list(values)
    return sum(values) / len(values)
