"""The GAN that changes attributes of images, and nothing else."""

import keras
import numpy as np
from keras import ops

from keras_san.checks import check_positive, require_range
from keras_san.critic_output import CriticOutput
from keras_san.gan.backend import BackendGAN
from keras_san.gan.networks import check_fit, check_takes_images_of

_RANGE_MESSAGE = (
    "Attributes must be 1 where an image has them, and 0 where not (some "
    "datasets have -1 there)."
)


@keras.saving.register_keras_serializable("keras_san")
class AttributeGAN(BackendGAN):
    """A GAN that gives images other attributes, and trains with `fit`.

    A batch is pairs of images and their attributes, each 0 or 1. Each image
    gets the attributes of one of its batch, drawn at random (on several
    devices of TensorFlow: of its device's part). The critic tells real
    images from changed ones, and which attributes an image has; the generator
    is to satisfy both, and to bring a changed image back. All else is as with
    `keras_san.GAN`: several devices, norms, and the backends.

    Logs have `class_loss` (cross entropy of the critic on real images),
    `fake_class_loss` (the same of the attributes that changed images should
    have), `cycle_loss` and, where it has a weight, `identity_loss`, all
    without their weights.

    Args:
        generator: A built `keras.Model` from `[images, attributes]`,
            `(batch, height, width, channels)` in [-1, 1] and
            `(batch, number of attributes)`, to images of the same shape.
        critic: A built `keras.Model` from images to `[logits, attributes]`,
            logits of any shape `(batch, ...)`, each of a part of the image,
            and a logit for each attribute.
        class_weight: Positive float, the factor on the cross entropies.
        cycle_weight: Positive float, the factor on the mean absolute
            difference between images and those that are changed back.
        identity_weight: Float >= 0, the factor on the same difference between
            images and those that the generator makes with their own
            attributes. The original has none. If images have two sides that
            can change places, such as a figure and its ground, it keeps the
            generator from learning to exchange them and back.
        loss: What `keras_san.losses.get` takes.
        critic_steps: As in `keras_san.GAN`.
        penalty: As in `keras_san.GAN`.
        augmentation: As in `keras_san.GAN`.
        joint: As in `keras_san.GAN`.
        ema: As in `keras_san.GAN`.
        seed: Int, for which image gets whose attributes.
        **kwargs: As those of `keras.Model`.

    Raises:
        ValueError: if the networks do not fit together, or a setting is
            outside of what is listed above.

    Example:
    ```python
    gan = keras_san.AttributeGAN(stargan.generator(5), stargan.critic(128, 5))
    gan.compile()
    gan.fit(images, attributes, batch_size=16, epochs=100)
    changed = gan.generate(images, 1.0 - attributes)
    ```

    Reference:
        [Choi et al., 2018](https://arxiv.org/abs/1711.09020), section 3.1;
        identity: [Zhu et al., 2017](https://arxiv.org/abs/1703.10593),
        section 5.2.
    """

    def __init__(
        self,
        generator,
        critic,
        class_weight=1.0,
        cycle_weight=10.0,
        identity_weight=0.0,
        loss="hinge",
        critic_steps=1,
        penalty=None,
        augmentation=None,
        joint=False,
        ema=None,
        seed=None,
        **kwargs,
    ):
        check_positive("class_weight", class_weight)
        check_positive("cycle_weight", cycle_weight)
        names = ["class_loss", "fake_class_loss", "cycle_loss"]
        if identity_weight:
            check_positive("identity_weight", identity_weight)
            names.append("identity_loss")
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
        self.class_weight = class_weight
        self.cycle_weight = cycle_weight
        self.identity_weight = identity_weight

    def _check_values(self, x, y):
        # Of others the cross entropy has no lower bound.
        if y is not None:
            return require_range(y, 0, 1, _RANGE_MESSAGE)
        return None

    def _unpack(self, images, attributes):
        if attributes is None:
            raise ValueError(
                "This GAN trains on pairs (images, attributes). "
                "Received: no attributes"
            )
        self._check_fit(images, attributes)
        return images, ops.cast(attributes, "float32")

    def _check_fit(self, images, attributes):
        check_fit("images", images, self.generator.inputs[0])
        check_fit("attributes", attributes, self.generator.inputs[1])

    def _generator_inputs(self, real, condition):
        # Places, not rows: JAX shuffles each column of a matrix on its own.
        places = ops.arange(ops.shape(condition)[0])
        places = keras.random.shuffle(places, seed=self.seed_generator)
        targets = ops.take(condition, places, axis=0)
        return [real, targets], targets

    def _criticize(self, images, condition, training=True):
        logits, class_logits = self.critic(images, training=training)
        return CriticOutput(
            [ops.cast(logits, "float32")],
            class_logits=ops.cast(class_logits, "float32"),
        )

    def _critic_loss(self, adversarial, of_real, condition):
        class_loss = _cross_entropy(condition, of_real.class_logits)
        loss = adversarial + self.class_weight * class_loss
        return loss, {"class_loss": class_loss}

    def _generator_loss(
        self, adversarial, of_real, of_fake, real, fake, training
    ):
        back = self.generator([fake.images, real.condition], training=training)
        means = {
            "fake_class_loss": _cross_entropy(
                fake.condition, of_fake.class_logits
            ),
            "cycle_loss": _difference(real.images, back),
        }
        loss = (
            adversarial
            + self.class_weight * means["fake_class_loss"]
            + self.cycle_weight * means["cycle_loss"]
        )
        if self.identity_weight:
            same = self.generator(
                [real.images, real.condition], training=training
            )
            means["identity_loss"] = _difference(real.images, same)
            loss = loss + self.identity_weight * means["identity_loss"]
        return loss, means

    def generate(self, images, attributes, batch_size=16):
        """Images with other attributes, by the averaged generator if any.

        Args:
            images: Array `(n, height, width, channels)` in [-1, 1].
            attributes: Array `(n, number of attributes)` of 0 and 1, those
                that the images shall have.
            batch_size: Int, how many images are made at once.

        Returns:
            A NumPy array of the shape of `images`.

        Raises:
            ValueError: if they do not fit the generator, there are not as
                many of both, or attributes are outside of [0, 1].
        """
        images = np.asarray(images, "float32")
        attributes = np.asarray(attributes, "float32")
        self._check_fit(images, attributes)
        if len(images) != len(attributes):
            raise ValueError(
                "Each image must have its attributes. Received: "
                f"{len(images)} images and {len(attributes)} rows of attributes"
            )
        require_range(attributes, 0, 1, _RANGE_MESSAGE)

        def make_inputs(part):
            return [images[part], attributes[part]]

        return self._generate(make_inputs, len(images), batch_size)

    def get_config(self):
        return {
            **super().get_config(),
            "class_weight": self.class_weight,
            "cycle_weight": self.cycle_weight,
            "identity_weight": self.identity_weight,
        }


def _difference(a, b):
    return ops.mean(ops.abs(ops.cast(a, "float32") - ops.cast(b, "float32")))


def _cross_entropy(attributes, logits):
    """The sum over the attributes, and the mean over the images."""
    # Of logits x: softplus(x) - x where there is the attribute, softplus(x)
    # where not.
    return ops.mean(ops.sum(ops.softplus(logits) - attributes * logits, axis=1))


def _check_networks(generator, critic):
    outputs = critic.outputs
    if len(generator.inputs) != 2 or len(outputs) != 2:
        raise ValueError(
            "The generator must take images and attributes, and the critic "
            "put out logits and attributes. Received: a generator with "
            f"{len(generator.inputs)} inputs, a critic with {len(outputs)} "
            "outputs"
        )
    check_takes_images_of(generator, critic)
    taken, told = (tuple(x.shape) for x in (generator.inputs[1], outputs[1]))
    if len(taken) != 2 or taken[1:] != told[1:]:
        raise ValueError(
            "The generator must take as many attributes as the critic tells. "
            f"Received: {taken} and {told}"
        )
