"""The base of all GANs: networks, optimizers, and the order of a step."""

import warnings

import keras
import numpy as np

from keras_san import augmentation as augmentations
from keras_san import losses, penalties
from keras_san.callbacks.overfitting import Overfitting
from keras_san.callbacks.stop_when_not_finite import StopWhenNotFinite
from keras_san.checks import check_count
from keras_san.gan import optimizers
from keras_san.gan.networks import check_network, copy_for_average
from keras_san.gan.step import Step


class BaseGAN(Step, keras.Model):
    """Everything about a GAN but its data and its backend.

    A kind of GAN adds

    - `_unpack(x, y)`: checks what `fit` is given, and returns the real images
      of a batch and their condition, which is `None` if there is none;
    - `_generator_inputs(real, condition)`: the inputs of the generator, and
      the condition of the images that it makes from them;
    - `_criticize(images, condition, training)`: the critic's output, a
      `CriticOutput` with float32 logits; and
    - if it likes, `_check_values`, `_make_window`, `_critic_loss` and
      `_generator_loss`.

    A backend adds `train_step` and `test_step`, which run `self.step(data)`
    and `self.measure(data)`, and, where a step runs on several replicas,
    `shard`. One that trains in several processes also overrides `is_chief`.
    All have `_sample(inputs)`, which makes one batch of images in this
    process alone.

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
        augmentation=None,
        joint=False,
        ema=None,
        seed=None,
        more_means=(),
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_network("generator", generator)
        check_network("critic", critic)
        check_count("critic_steps", critic_steps)
        if ema is not None and not (
            isinstance(ema, (float, np.floating)) and 0.0 < ema < 1.0
        ):
            raise ValueError(
                "`ema` must be None or in (0, 1), such as 0.999: the share of "
                "the average that a step keeps. "
                f"Received: ema={ema!r}"
            )
        self._sees_batch = any(
            isinstance(layer, keras.layers.BatchNormalization)
            for layer in critic._flatten_layers()
        )
        if joint and self._sees_batch:
            raise ValueError(
                "The statistics of batch normalization are to be those of "
                "real or of generated images, not of both: pass joint=False. "
                f"Received: joint={joint} with a critic that has such layers"
            )
        self.generator = generator
        self.critic = critic
        self.loss_function = losses.get(loss)
        self.critic_steps = critic_steps
        self.penalties = penalties.get(penalty)
        self.augmentation = augmentations.get(augmentation)
        self.joint = joint
        self.ema = ema
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.averaged_generator = None
        if ema is not None:
            self.averaged_generator = copy_for_average(generator)
        self._strength = []
        if self.augmentation is not None:
            self.augmentation.check(critic.inputs[0].shape)
            more_means = [*more_means, *self.augmentation.means]
            self._strength = self.augmentation.make_state(self.add_weight)
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
        self,
        generator_optimizer=None,
        critic_optimizer=None,
        run_eagerly=False,
        jit_compile="auto",
        steps_per_execution=1,
        **kwargs,
    ):
        """Sets how both networks are trained.

        Args:
            generator_optimizer: A Keras optimizer or its name. By default
                Adam with the paper's settings: a learning rate of 2e-4,
                `beta_1=0.5`, `beta_2=0.9`.
            critic_optimizer: The same for the critic. Keras' callbacks
                `LearningRateScheduler` and `SwapEMAWeights` act on both; on
                versions of Keras without `MultiOptimizer` the former acts on
                the generator's alone, and the latter cannot be used.
            run_eagerly: As in `keras.Model.compile`.
            jit_compile: As in `keras.Model.compile`.
            steps_per_execution: As in `keras.Model.compile`.
            **kwargs: Nothing else; a `loss`, say, is refused.

        Raises:
            ValueError: if one optimizer object is given for both, or
                something that a GAN has no use for.
        """
        if kwargs:
            raise ValueError(
                "A GAN is compiled with two optimizers. Its loss is an "
                "argument of its constructor, and its metrics are in the logs "
                "already, or come by callbacks.Evaluation. Received: "
                + ", ".join(f"{name}={x!r}" for name, x in kwargs.items())
            )
        if (
            isinstance(critic_optimizer, keras.optimizers.Optimizer)
            and critic_optimizer is generator_optimizer
        ):
            raise ValueError(
                "Generator and critic need an optimizer each: one cannot "
                "keep the moments of both. Received twice: "
                f"{critic_optimizer}"
            )
        self.generator_optimizer = optimizers.make(
            generator_optimizer, self.generator
        )
        self.critic_optimizer = optimizers.make(critic_optimizer, self.critic)
        self._compile_arguments = {
            "run_eagerly": run_eagerly,
            "jit_compile": jit_compile,
            "steps_per_execution": steps_per_execution,
        }
        # Loss scaling is taken care of by each of the two.
        super().compile(
            optimizer=optimizers.BothOptimizers(
                self.generator_optimizer, self.critic_optimizer
            ),
            auto_scale_loss=False,
            **self._compile_arguments,
        )

    @property
    def metrics(self):
        return self._means

    def call(self, inputs, training=None):
        return self._sampler(inputs, training=training)

    @property
    def _sampler(self):
        return self.averaged_generator or self.generator

    @property
    def is_chief(self):
        """`True` in the one process that should write files."""
        return True

    def fit(self, x=None, y=None, *args, callbacks=None, **kwargs):
        """`keras.Model.fit`, which also stops once the training diverges.

        Args:
            x: Arrays or a dataset of what the class trains on. A batch holds
                the images of `critic_steps` updates of the critic; one with
                fewer gives some of them to several updates.
            y: As in `keras.Model.fit`, the condition of the images.
            *args: As those of `keras.Model.fit`.
            callbacks: List of Keras callbacks.
            **kwargs: As those of `keras.Model.fit`.

        Returns:
            A Keras `History` of the means of each epoch: `critic_loss`,
            `generator_loss` (both adversarial), `loss` (those of both
            networks with their other parts, but for penalties and the losses
            of layers), `real_logit` and `fake_logit` (the critic's logits of
            real and generated images). Those of the critic are of the last
            of its `critic_steps`. With `validation_data` the same with
            `val_`, and `overfitting`: how far the logits of these images are
            from those of the training towards those of generated ones, from
            0 to 1 (r_v of [Karras et al.,
            2020](https://arxiv.org/abs/2006.06676), Eq. 1).

        Raises:
            ValueError: if images or conditions do not fit the networks, or a
                norm is NaN or infinite (at the step where it happens, or,
                where a compiled step cannot raise, at the end of the epoch),
                or, at the end of an epoch, any weight or the loss.
        """
        for name in ("generator", "critic"):
            if not getattr(self, name).trainable_variables:
                warnings.warn(
                    f"No weight of the {name} is trainable, so it stays what "
                    f"it is: set `gan.{name}.trainable = True` and compile "
                    "again to train it.",
                    stacklevel=2,
                )
        if isinstance(x, np.ndarray) and isinstance(y, np.ndarray):
            # Before a compiled step, which may not be able to raise.
            self._check_values(x, y)
        if not isinstance(callbacks, keras.callbacks.CallbackList):
            if callbacks is None:
                callbacks = []
            elif not isinstance(callbacks, (list, tuple)):
                callbacks = [callbacks]
            # First: what has diverged is not to replace a checkpoint.
            callbacks = [StopWhenNotFinite(), Overfitting(), *callbacks]
        return super().fit(x, y, *args, callbacks=callbacks, **kwargs)

    def evaluate(self, *args, **kwargs):
        """`keras.Model.evaluate`: the means of `fit`, without an update.

        Networks run as in inference, without penalty and augmentation, and
        the random state of the training is not touched.

        Args:
            *args: As those of `keras.Model.evaluate`.
            **kwargs: As those of `keras.Model.evaluate`.

        Returns:
            A list of means, or with `return_dict=True` a dict.
        """
        state = np.array(self.seed_generator.state.numpy())
        try:
            return super().evaluate(*args, **kwargs)
        finally:
            self.seed_generator.state.assign(state)

    def train_step(self, data):
        return self.step(data)

    def test_step(self, data):
        return self.measure(data)

    def _generate(self, make_inputs, count, batch_size):
        """Images in batches, `make_inputs(part)` the inputs of a slice."""
        check_count("batch_size", batch_size)
        if count == 0:
            shapes = keras.tree.map_structure(
                lambda x: x.shape, make_inputs(slice(0, 0))
            )
            return np.zeros(
                self._sampler.compute_output_shape(shapes), "float32"
            )
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
            "penalty": [serialize(penalty) for penalty in self.penalties],
            "augmentation": serialize(self.augmentation),
            "joint": self.joint,
            "ema": self.ema,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        def deserialize(x):
            return keras.saving.deserialize_keras_object(
                x, custom_objects=custom_objects
            )

        config = dict(config)
        for name in ("generator", "critic", "augmentation"):
            config[name] = deserialize(config[name])
        config["penalty"] = [deserialize(x) for x in config["penalty"]]
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

    def save(self, filepath, *args, **kwargs):
        # Before Keras empties a file that may be good.
        if str(filepath).endswith((".h5", ".hdf5")):
            raise ValueError(
                "Keras' old format cannot hold a GAN: save it as `.keras`. "
                f"Received: filepath={filepath!r}"
            )
        super().save(filepath, *args, **kwargs)

    # Keras saves the state of no seed generator, without which a resumed
    # training would draw other latents.

    def save_own_variables(self, store):
        for index, variable in enumerate(self._strength):
            store[f"augmentation_{index}"] = variable
        store["seed"] = self.seed_generator.state

    def load_own_variables(self, store):
        for index, variable in enumerate(self._strength):
            variable.assign(store[f"augmentation_{index}"])
        self.seed_generator.state.assign(store["seed"])
