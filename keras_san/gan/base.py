"""What a GAN is, and what one training step of it does."""

import math

import keras
import numpy as np
from keras import ops

from keras_san import losses
from keras_san.checks import check_count
from keras_san.kernel_normalization import hold_norms


class BaseGAN(keras.Model):
    """Everything about a GAN but how a backend takes gradients.

    A backend adds `train_step`, which runs `self.step(data)`, and

    - `minimize(compute_loss, network, optimizer)`: updates the network by
      the gradient of the loss that `compute_loss()` returns first, and
      returns what it returns second;
    - `input_gradient(function, images)`: the gradient of a scalar function
      of images, through which gradients flow in turn; and
    - `shard(make, batch_size)`: where a step runs on several replicas, draws
      for all of them and returns the share of this one.

    One that trains in several processes also overrides `is_chief`, and
    `_sample(inputs)`, which makes one batch of images in this process alone.
    """

    def __init__(
        self,
        generator,
        critic,
        latent_dim,
        loss="hinge",
        critic_steps=1,
        penalty=None,
        ema=None,
        num_classes=None,
        seed=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        _check_networks(generator, critic, latent_dim, num_classes)
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
        self.latent_dim = latent_dim
        self.loss_function = losses.get(loss)
        self.critic_steps = critic_steps
        self.penalty = penalty
        self.ema = ema
        self.num_classes = num_classes
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
            *args: Images in the generator's range as arrays or a dataset;
                of a conditional GAN pairs of images and labels. A batch
                holds the images of `critic_steps` updates of the critic.
            callbacks: List of Keras callbacks.
            **kwargs: As those of `keras.Model.fit`.

        Returns:
            A Keras `History` of the means of each epoch: `critic_loss`,
            `generator_loss`, `loss` (their sum), `real_logit` and
            `fake_logit` (what the critic says of real and generated images).
            Those of the critic are of the last of its `critic_steps`.

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
            callbacks = [_StopWhenNotFinite(), *(callbacks or [])]
        return super().fit(*args, callbacks=callbacks, **kwargs)

    def step(self, data):
        """One update of the generator, after those of the critic.

        Returns:
            A dict of scalars, the means since the epoch began.
        """
        images, labels, _ = keras.utils.unpack_x_y_sample_weight(data)
        self._check_data(images, labels)
        batch_size = ops.shape(images)[0] // self.critic_steps
        for i in range(self.critic_steps):
            part = slice(i * batch_size, (i + 1) * batch_size)
            critic_means = self._critic_step(
                images[part], None if labels is None else labels[part]
            )
        generator_loss = self._generator_step(batch_size)
        if self.ema is not None:
            self._average()
        values = [
            critic_means[0] + generator_loss,
            critic_means[0],
            generator_loss,
            *critic_means[1:],
        ]
        for mean, value in zip(self._means, values):
            mean.update_state(value)
        return {mean.name: mean.result() for mean in self._means}

    def _critic_step(self, real, labels):
        inputs = self._generator_inputs(ops.shape(real)[0])
        fake = self.generator(inputs, training=True)

        def compute_loss():
            real_logits = self._critic_logits(real, labels)
            penalties = sum(self.critic.losses)
            # The second pass sees the weights that the first has seen.
            with hold_norms():
                fake_logits = self._critic_logits(fake, _labels(inputs))
                penalties = (penalties + sum(self.critic.losses)) / 2.0
                if self.penalty is not None:
                    penalties += self._penalize(real, fake, labels)
            loss = self.loss_function.critic(real_logits, fake_logits)
            means = [loss, ops.mean(real_logits), ops.mean(fake_logits)]
            return loss + penalties, means

        return self.minimize(compute_loss, self.critic, self.critic_optimizer)

    def _penalize(self, real, fake, labels):
        def gradient(images):
            return self.input_gradient(
                lambda x: ops.sum(self._critic_logits(x, labels)), images
            )

        def shares(n):
            return keras.random.uniform((n, 1, 1, 1), seed=self.seed_generator)

        share = self.shard(shares, ops.shape(real)[0])
        real, fake = (ops.cast(x, "float32") for x in (real, fake))
        return self.penalty(gradient, real, fake, share)

    def _generator_step(self, batch_size):
        inputs = self._generator_inputs(batch_size)

        def compute_loss():
            fake = self.generator(inputs, training=True)
            with hold_norms():
                logits = self._critic_logits(fake, _labels(inputs))
            loss = self.loss_function.generator(logits)
            return loss + sum(self.generator.losses), loss

        return self.minimize(
            compute_loss, self.generator, self.generator_optimizer
        )

    def _critic_logits(self, images, labels):
        inputs = images if self.num_classes is None else [images, labels]
        return ops.cast(self.critic(inputs, training=True), "float32")

    def _generator_inputs(self, batch_size):
        def latents(n):
            return keras.random.normal(
                (n, self.latent_dim), seed=self.seed_generator
            )

        def labels(n):
            return keras.random.randint(
                (n,), 0, self.num_classes, seed=self.seed_generator
            )

        if self.num_classes is None:
            return self.shard(latents, batch_size)
        return [self.shard(latents, batch_size), self.shard(labels, batch_size)]

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

    def _check_data(self, images, labels):
        expected = tuple(self.generator.output_shape[1:])
        if tuple(images.shape[1:]) != expected:
            raise ValueError(
                "The images do not have the size that the generator makes: "
                f"{expected}. Resize them, or build the networks for them. "
                f"Received: images of shape {tuple(images.shape)}"
            )
        if self.num_classes is not None and labels is None:
            raise ValueError(
                "A class-conditional GAN trains on pairs (images, labels). "
                f"Received: no labels, with num_classes={self.num_classes}"
            )
        size = images.shape[0]
        if size is not None and size < self.critic_steps:
            raise ValueError(self.small_batch_message(f"a batch of {size}"))

    def small_batch_message(self, batch):
        return (
            "A batch holds the images of all updates of the critic, so none, "
            "not even the last, can be smaller than their number. Received: "
            f"{batch} with critic_steps={self.critic_steps}"
        )

    def generate(self, num_images, labels=None, seed=None, batch_size=64):
        """New images, by the averaged generator if there is one.

        One device of this process makes them: of several workers a single
        one may call it, as a callback does on `is_chief`.

        Args:
            num_images: Int.
            labels: Of a conditional GAN `num_images` ints below
                `num_classes`; drawn by default.
            seed: Int, or tuple of ints, for the same images each time, or
                `None` for new ones.
                The random state of the training is not touched.
            batch_size: Int, how many images are made at once.

        Returns:
            A NumPy array `(num_images, height, width, channels)` in the
            generator's range, which is [-1, 1] if it ends in tanh.

        Raises:
            ValueError: if `labels` do not fit.
        """
        rng = np.random.default_rng(seed)
        size = (num_images, self.latent_dim)
        latents = rng.standard_normal(size, dtype="float32")
        if self.num_classes is None:
            if labels is not None:
                raise ValueError(
                    "This GAN is not conditional: it has no `num_classes`. "
                    f"Received: labels={labels}"
                )
        else:
            if labels is None:
                labels = rng.integers(self.num_classes, size=num_images)
            labels = np.asarray(labels, "int32")
            if labels.shape != (num_images,) or not (
                np.all((labels >= 0) & (labels < self.num_classes))
            ):
                raise ValueError(
                    f"`labels` must be {num_images} ints from 0 to "
                    f"{self.num_classes - 1}. Received: labels={labels}"
                )
        batches = []
        for start in range(0, num_images, batch_size):
            part = slice(start, start + batch_size)
            batches.append(
                self._sample(
                    latents[part]
                    if labels is None
                    else [latents[part], labels[part]]
                )
            )
        return np.concatenate(batches)

    def _sample(self, inputs):
        return self._sampler.predict_on_batch(inputs)

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "generator": serialize(self.generator),
            "critic": serialize(self.critic),
            "latent_dim": self.latent_dim,
            "loss": serialize(self.loss_function),
            "critic_steps": self.critic_steps,
            "penalty": serialize(self.penalty),
            "ema": self.ema,
            "num_classes": self.num_classes,
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


class _StopWhenNotFinite(keras.callbacks.Callback):
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


def _labels(inputs):
    return inputs[1] if isinstance(inputs, list) else None


def _check_networks(generator, critic, latent_dim, num_classes):
    for name, network in (("generator", generator), ("critic", critic)):
        if not isinstance(network, keras.Model) or not network.built:
            raise ValueError(
                f"`{name}` must be a built `keras.Model`, as a functional "
                "model is, or a Sequential one with a `keras.Input`. "
                f"Received: {name}={network}"
            )

    def first(shape):
        return shape[0] if isinstance(shape[0], (tuple, list)) else shape

    conditional = num_classes is not None
    for name, network in (("generator", generator), ("critic", critic)):
        if len(network.inputs) != 1 + conditional:
            raise ValueError(
                f"The {name} must have one input, or, with `num_classes`, "
                "labels as its second one. Received: "
                f"num_classes={num_classes}, a {name} with "
                f"{len(network.inputs)} inputs"
            )
    if first(generator.input_shape)[-1] != latent_dim:
        raise ValueError(
            "`latent_dim` must be the size of the generator's input. "
            f"Received: latent_dim={latent_dim}, a generator with "
            f"input_shape={generator.input_shape}"
        )
    made, judged = generator.output_shape, first(critic.input_shape)
    if len(made) != len(judged) or any(
        a != b for a, b in zip(made[1:], judged[1:]) if None not in (a, b)
    ):
        raise ValueError(
            "The critic must take the images that the generator makes. "
            f"Received: a generator with output_shape={made}, a critic with "
            f"input_shape={critic.input_shape}"
        )
