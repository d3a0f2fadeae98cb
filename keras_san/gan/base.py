"""What all GANs share: networks, optimizers, and the order of a step."""

import math

import keras
import numpy as np
from keras import ops

from keras_san import losses
from keras_san.checks import check_count
from keras_san.kernel_normalization import hold_norms


class BaseGAN(keras.Model):
    """Everything about a GAN but its data, and how a backend takes gradients.

    A kind of GAN adds

    - `_unpack(data)`: the real images of a batch, and what else is given with
      them, or `None`;
    - `_generator_inputs(real, given)`: what the generator makes images from,
      and what is given with these;
    - `_judge(images, given)`: what the critic says of images, a list of
      float32 logits, one tensor a scale, and whatever else it puts out; and
    - if it likes, others of the methods that begin so, which say themselves
      what they are for.

    A backend adds `train_step`, which runs `self.step(data)`, and

    - `minimize(compute_loss, network, optimizer)`: updates the network by
      the gradient of the loss that `compute_loss()` returns first, and
      returns what it returns second;
    - `input_gradient(function, images)`: the gradient of a scalar function
      of images, through which gradients flow in turn; and
    - `shard(make, batch_size)`: where a step runs on several replicas, draws
      for all of them and returns the share of this one.

    One that trains in several processes also overrides `is_chief`. All have
    `_sample(inputs)`, which makes one batch of images in this process alone.

    Args:
        more_means: Strings, the names of what is reported beside losses and
            logits.
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
        # one travels with the rest of what is not trained.
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
        """Whether this process should write files: all but one should not."""
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
            `generator_loss` (by what the critic says), `loss` (what both
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
        if not hasattr(self, "minimize"):
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
        all_real, all_given = self._unpack(data)
        size = all_real.shape[0]
        if size is not None and size < self.critic_steps:
            raise ValueError(self.small_batch_message(f"a batch of {size}"))
        batch_size = ops.shape(all_real)[0] // self.critic_steps
        for i in range(self.critic_steps):
            part = slice(i * batch_size, (i + 1) * batch_size)
            real = all_real[part]
            given = None if all_given is None else all_given[part]
            critic_means = self._critic_step(real, given)
        generator_means = self._generator_step(real, given)
        if self.ema is not None:
            self._average()
        values = {**generator_means, **critic_means}
        values["loss"] = critic_means["loss"] + generator_means["loss"]
        for mean in self._means:
            mean.update_state(values[mean.name])
        return {mean.name: mean.result() for mean in self._means}

    def _critic_step(self, real, given):
        inputs, given_of_fake = self._generator_inputs(real, given)
        view = self._make_view()
        real = view(real)
        fake = view(self.generator(inputs, training=True))

        def compute_loss():
            (real_logits, rest), (fake_logits, _), penalties = self._judge_both(
                real, given, fake, given_of_fake
            )
            if self.penalty is not None:
                # This pass sees the weights that the others have seen.
                with hold_norms():
                    penalties += self._penalize(real, fake, given)
            adversarial = _mean(
                map(self.loss_function.critic, real_logits, fake_logits)
            )
            loss, means = self._critic_losses(adversarial, rest, given)
            means = {
                "loss": loss,
                "critic_loss": adversarial,
                "real_logit": _mean(map(ops.mean, real_logits)),
                "fake_logit": _mean(map(ops.mean, fake_logits)),
                **means,
            }
            return loss + penalties, means

        return self.minimize(compute_loss, self.critic, self.critic_optimizer)

    def _judge_both(self, real, given, fake, given_of_fake):
        """What the critic says of either, and what its layers have lost."""
        real_verdict = self._judge(real, given)
        penalties = sum(self.critic.losses)
        # The second pass sees the weights that the first has seen.
        with hold_norms():
            fake_verdict = self._judge(fake, given_of_fake)
        penalties = (penalties + sum(self.critic.losses)) / 2.0
        return real_verdict, fake_verdict, penalties

    def _penalize(self, real, fake, given):
        def score(images):
            return sum(map(ops.sum, self._judge(images, given)[0]))

        def gradient(images):
            return self.input_gradient(score, images)

        def shares(n):
            return keras.random.uniform((n, 1, 1, 1), seed=self.seed_generator)

        share = self.shard(shares, ops.shape(real)[0])
        real, fake = (ops.cast(x, "float32") for x in (real, fake))
        return self.penalty(gradient, real, fake, share)

    def _generator_step(self, real, given):
        inputs, given_of_fake = self._generator_inputs(real, given)
        view = self._make_view()

        def compute_loss():
            fake = self.generator(inputs, training=True)
            # The critic as it was trained, and one generator in all passes.
            with hold_norms():
                loss, means = self._generator_losses(
                    real, given, fake, given_of_fake, view
                )
            return loss + sum(self.generator.losses), {"loss": loss, **means}

        return self.minimize(
            compute_loss, self.generator, self.generator_optimizer
        )

    def _make_view(self):
        """What the critic of one step looks at images through."""
        return lambda images: images

    def _critic_losses(self, adversarial, rest, given):
        """What the critic minimizes, and more of it to report, by name.

        Args:
            adversarial: Scalar.
            rest: What `_judge` returned for real images beside the logits.
            given: What is given with them.
        """
        return adversarial, {}

    def _generator_losses(self, real, given, fake, given_of_fake, view):
        """What the generator minimizes, and what is reported, by name."""
        logits, _ = self._judge(view(fake), given_of_fake)
        adversarial = self._adversarial_loss(logits)
        return adversarial, {"generator_loss": adversarial}

    def _adversarial_loss(self, logits):
        """That of the generator, the mean over the critic's scales."""
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
    made, judged = generator.output_shape, tuple(critic.inputs[0].shape)
    if len(made) != len(judged) or any(
        a != b for a, b in zip(made[1:], judged[1:]) if None not in (a, b)
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


class StopWhenNotFinite(keras.callbacks.Callback):
    """Where a compiled step could not raise, the end of the epoch does."""

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
