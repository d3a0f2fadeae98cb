"""The GAN that makes images from images, with targets for them."""

import keras
import numpy as np
from keras import ops

from keras_san import losses
from keras_san.checks import check_positive, require_range
from keras_san.critic_output import CriticOutput, of_scales
from keras_san.gan.backend import BackendGAN
from keras_san.gan.networks import check_fit, is_float

_FEATURE_MATCHING = "feature_matching_loss"


@keras.saving.register_keras_serializable("keras_san")
class PairedGAN(BackendGAN):
    """A GAN from images to images, which trains on pairs with `fit`.

    The generator minimizes `adversarial_weight` times the adversarial loss
    plus each of the content losses times its weight. All else is as with
    `keras_san.GAN`: several devices, norms, and the backends.

    A critic with one input sees images without what they were made from, and,
    where it takes smaller images than the generator puts out, a window at a
    random place, the same in all images of an update. One with two inputs
    sees whole images, and what they were made from.

    A critic may look at images on several scales, and show its features: it
    puts out logits, one tensor `(batch, ...)`, or a list with
    an entry a scale, each of them logits or a list of features that ends in
    logits. Adversarial losses are means over all logits of a scale, and over
    the scales.

    Args:
        generator: A built `keras.Model` from images to images, both
            `(batch, height, width, channels)`.
        critic: A built `keras.Model` from such images, or from pairs `[images,
            inputs of the generator]`, to logits as above.
        content_losses: List of objects as `keras_san.losses.PixelLoss()` and
            `keras_san.losses.PerceptualLoss()`: callables from targets and
            outputs to a scalar, with a `weight` and a `name`.
        adversarial_weight: Positive float.
        feature_matching: Float >= 0, the weight of
            `keras_san.losses.feature_matching`, which compares what the critic
            tells of targets and outputs, `feature_matching_loss` in logs.
        joint: As in `keras_san.GAN`.
        loss: What `keras_san.losses.get` takes.
        critic_steps: As in `keras_san.GAN`.
        penalty: As in `keras_san.GAN`.
        augmentation: As in `keras_san.GAN`. A critic with two inputs can be
            shown other colours only.
        ema: As in `keras_san.GAN`.
        seed: Int for the windows.
        **kwargs: As those of `keras.Model`.

    Raises:
        ValueError: if the networks do not fit together, or a setting is
            outside of what is listed above.

    Example:
    ```python
    gan = keras_san.PairedGAN(
        srgan.generator(4),
        srgan.critic(128),
        content_losses=[keras_san.losses.PixelLoss(0.01)],
        adversarial_weight=0.1,
    )
    gan.compile()
    gan.fit(small, large, batch_size=16, epochs=100)
    enlarged = gan.generate(small)
    ```

    Reference:
        [Kligvasser and Michaeli, 2021](https://arxiv.org/abs/2103.02458),
        section 4.3.
    """

    def __init__(
        self,
        generator,
        critic,
        content_losses=(),
        adversarial_weight=1.0,
        feature_matching=0.0,
        joint=False,
        loss="hinge",
        critic_steps=1,
        penalty=None,
        augmentation=None,
        ema=None,
        seed=None,
        **kwargs,
    ):
        check_positive("adversarial_weight", adversarial_weight)
        content_losses = list(content_losses)
        names = [content_loss.name for content_loss in content_losses]
        if feature_matching:
            check_positive("feature_matching", feature_matching)
            names.append(_FEATURE_MATCHING)
        if len({*names}) < len(names):
            raise ValueError(
                "Content losses must have different names, by which they are "
                f"logged. Received: {names}"
            )
        super().__init__(
            generator,
            critic,
            loss=loss,
            critic_steps=critic_steps,
            penalty=penalty,
            augmentation=augmentation,
            joint=joint,
            ema=ema,
            seed=seed,
            more_means=names,
            **kwargs,
        )
        _check_networks(generator, critic)
        if feature_matching and not _has_features(critic):
            raise ValueError(
                "To match features the critic must put them out: on each "
                "scale a list of features that ends in logits. Received: "
                f"feature_matching={feature_matching} with a critic that puts "
                f"out {critic.output_shape}"
            )
        if (
            self.augmentation is not None
            and len(critic.inputs) == 2
            and self.augmentation.policy != ["color"]
        ):
            raise ValueError(
                "A critic that also sees the inputs of the generator would be "
                "shown images that no longer fit them: augment by 'color' "
                f"only. Received: augmentation={self.augmentation.policy}"
            )
        self.content_losses = content_losses
        self.adversarial_weight = adversarial_weight
        self.feature_matching = feature_matching

    @property
    def non_trainable_variables(self):
        # What feature networks hold is state of the step for JAX; in a file
        # of the GAN it has no place.
        networks = [
            content_loss.network
            for content_loss in self.content_losses
            if hasattr(content_loss, "network")
        ]
        return [
            *super().non_trainable_variables,
            *(v for network in networks for v in network.variables),
        ]

    def _check_values(self, x, y):
        check_fit("inputs", x, self.generator.inputs[0])
        if not is_float(x):
            return require_range(
                *(x, 0, 1),
                "Inputs that are no floats must be one-hot maps, of 0 and 1.",
            )
        return None

    def _unpack(self, inputs, targets):
        if targets is None:
            raise ValueError(
                "A paired GAN trains on pairs (inputs, targets) of images. "
                "Received: no targets"
            )
        if None in inputs.shape[1:] or None in targets.shape[1:]:
            raise ValueError(
                "A batch must have images of one known size: crop them, and "
                "say so by `ensure_shape` if the dataset does not know. "
                f"Received: inputs of shape {tuple(inputs.shape)}, targets of "
                f"shape {tuple(targets.shape)}"
            )
        made = self.generator.compute_output_shape(inputs.shape)
        if tuple(made[1:]) != tuple(targets.shape[1:]):
            raise ValueError(
                "The targets do not have the size of what the generator makes "
                f"of the inputs: {tuple(made[1:])}. Received: inputs of shape "
                f"{tuple(inputs.shape)}, targets of shape "
                f"{tuple(targets.shape)}"
            )
        window = _first(self.critic.input_shape)[1:3]
        if any(n < w for n, w in zip(targets.shape[1:3], window) if w):
            raise ValueError(
                f"The critic looks at windows of {window[0]} x {window[1]} "
                "pixels, and images must not be smaller. Received: targets "
                f"of shape {tuple(targets.shape)}"
            )
        if self._critic_sees_inputs:
            check_fit("targets", targets, self.critic.inputs[0])
        if not is_float(inputs):
            # One-hot maps, which take a quarter of the memory as bytes.
            inputs = ops.cast(inputs, "float32")
        return targets, inputs

    def _generator_inputs(self, real, condition):
        return condition, condition

    @property
    def _critic_sees_inputs(self):
        return len(self.critic.inputs) == 2

    def _criticize(self, images, condition, training=True):
        inputs = [images, condition] if self._critic_sees_inputs else images
        outputs = self.critic(inputs, training=training)
        if len(self.critic.outputs) > 1:
            # Keras takes the list of a single scale for the outputs.
            outputs = keras.tree.pack_sequence_as(
                self.critic.output, keras.tree.flatten(outputs)
            )
        logits, features, _ = of_scales(outputs)
        return CriticOutput([ops.cast(x, "float32") for x in logits], features)

    def _make_window(self):
        window = _first(self.critic.input_shape)[1:3]
        if None in window or self._critic_sees_inputs:
            return super()._make_window()
        place = keras.random.uniform((2,), seed=self.seed_generator)

        def view(images):
            batch_size, *size, channels = ops.shape(images)
            spare = [n - w for n, w in zip(size, window)]
            if spare == [0, 0]:
                return images
            start = ops.cast(
                place * ops.cast(ops.convert_to_tensor(spare) + 1, "float32"),
                "int32",
            )
            start = ops.minimum(start, ops.convert_to_tensor(spare, "int32"))
            return ops.slice(
                images,
                [0, start[0], start[1], 0],
                [batch_size, *window, channels],
            )

        return view

    @property
    def _generator_needs_real(self):
        return super()._generator_needs_real or self.feature_matching > 0

    def _generator_loss(
        self, adversarial, of_real, of_fake, real, fake, training
    ):
        means = {}
        loss = self.adversarial_weight * adversarial
        if self.feature_matching:
            matching = losses.feature_matching(
                of_real.features, of_fake.features
            )
            means[_FEATURE_MATCHING] = matching
            loss = loss + self.feature_matching * matching
        for content_loss in self.content_losses:
            value = content_loss(real.images, fake.images)
            means[content_loss.name] = value
            loss = loss + content_loss.weight * value
        return loss, means

    def generate(self, images, batch_size=16):
        """Images made from images, by the averaged generator if there is one.

        Args:
            images: Array `(n, height, width, channels)` in [-1, 1].
            batch_size: Int, how many images are made at once.

        Returns:
            A NumPy array `(n, height, width, channels)`, with the height and
            width of what the generator puts out.

        Raises:
            ValueError: if the images do not fit the generator.
        """
        images = np.asarray(images, "float32")
        check_fit("images", images, self.generator.inputs[0])
        return self._generate(images.__getitem__, len(images), batch_size)

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "content_losses": [serialize(x) for x in self.content_losses],
            "adversarial_weight": self.adversarial_weight,
            "feature_matching": self.feature_matching,
        }

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        config["content_losses"] = [
            keras.saving.deserialize_keras_object(
                x, custom_objects=custom_objects
            )
            for x in config["content_losses"]
        ]
        return super().from_config(config, custom_objects)


def _first(shapes):
    """The shape of a model's first input."""
    return shapes[0] if isinstance(shapes[0], (tuple, list)) else shapes


def _has_features(critic):
    # A Sequential model does not know its `output`.
    return len(critic.outputs) > 1 and all(of_scales(critic.output).features)


def _check_networks(generator, critic):
    made, taken = generator.output_shape, _first(critic.input_shape)
    if len(made) != 4 or len(taken) != 4 or made[-1] != taken[-1]:
        raise ValueError(
            "The critic must take the images that the generator makes. "
            f"Received: a generator with output_shape={made}, a critic with "
            f"input_shape={critic.input_shape}"
        )
    if len(critic.inputs) == 1:
        return
    expected = [made, tuple(generator.inputs[0].shape)]
    if len(critic.inputs) != 2 or any(
        len(a) != len(b)
        or any(m != n for m, n in zip(a[1:], b[1:]) if None not in (m, n))
        for a, b in zip(critic.input_shape, expected)
    ):
        raise ValueError(
            "A critic with several inputs must take images as the generator "
            "makes them, and what the generator makes them from: "
            f"{expected}. Received: input_shape={critic.input_shape}"
        )
