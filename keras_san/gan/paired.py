"""The GAN that makes images from images, and knows what they should be."""

import keras
import numpy as np
from keras import ops

from keras_san.checks import check_positive
from keras_san.gan.backend import BackendGAN


@keras.saving.register_keras_serializable("keras_san")
class PairedGAN(BackendGAN):
    """A generator from images to images, which trains on pairs with `fit`.

    The generator minimizes `adversarial_weight` times the adversarial loss
    plus each of the content losses times its weight. The critic sees images
    without what they were made from, and, where it takes smaller images than
    the generator puts out, a window at a random place, the same in all images
    of an update. All else is as with `keras_san.GAN`: several devices, norms,
    and the backends.

    Args:
        generator: A built `keras.Model` from images to images, both
            `(batch, height, width, channels)`.
        critic: A built `keras.Model` from such images to one logit each.
        content_losses: List of objects as `keras_san.losses.PixelLoss()` and
            `keras_san.losses.PerceptualLoss()`: callables from targets and
            outputs to a scalar, with a `weight` and a `name`.
        adversarial_weight: Positive float.
        loss: What `keras_san.losses.get` takes.
        critic_steps: As of `keras_san.GAN`.
        penalty: As of `keras_san.GAN`.
        ema: As of `keras_san.GAN`.
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
        loss="hinge",
        critic_steps=1,
        penalty=None,
        ema=None,
        seed=None,
        **kwargs,
    ):
        check_positive("adversarial_weight", adversarial_weight)
        content_losses = list(content_losses)
        names = [content_loss.name for content_loss in content_losses]
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
            ema=ema,
            seed=seed,
            more_means=names,
            **kwargs,
        )
        _check_networks(generator, critic)
        self.content_losses = content_losses
        self.adversarial_weight = adversarial_weight

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

    def _unpack(self, data):
        inputs, targets, _ = keras.utils.unpack_x_y_sample_weight(data)
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
        window = self.critic.input_shape[1:3]
        if any(n < w for n, w in zip(targets.shape[1:3], window) if w):
            raise ValueError(
                f"The critic looks at windows of {window[0]} x {window[1]} "
                "pixels, and images must not be smaller. Received: targets "
                f"of shape {tuple(targets.shape)}"
            )
        return targets, inputs

    def _generator_inputs(self, batch_size, given):
        return given, given

    def _critic_logits(self, images, given):
        return ops.cast(self.critic(images, training=True), "float32")

    def _make_view(self):
        window = self.critic.input_shape[1:3]
        if None in window:
            return lambda images: images
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

    def _generator_losses(self, adversarial, fake, real):
        loss = self.adversarial_weight * adversarial
        values = []
        for content_loss in self.content_losses:
            values.append(content_loss(real, fake))
            loss += content_loss.weight * values[-1]
        return loss, [adversarial, *values]

    def generate(self, images, batch_size=16):
        """What the generator makes of images, the averaged one if there is one.

        Args:
            images: Array `(n, height, width, channels)` in [-1, 1].
            batch_size: Int, how many images are made at once.

        Returns:
            A NumPy array `(n, height, width, channels)`, with the height and
            width of what the generator puts out.
        """
        images = np.asarray(images, "float32")
        return self._generate(images.__getitem__, len(images), batch_size)

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {
            **super().get_config(),
            "content_losses": [serialize(x) for x in self.content_losses],
            "adversarial_weight": self.adversarial_weight,
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


def _check_networks(generator, critic):
    made, judged = generator.output_shape, critic.input_shape
    if len(made) != 4 or len(judged) != 4 or made[-1] != judged[-1]:
        raise ValueError(
            "The critic must take the images that the generator makes. "
            f"Received: a generator with output_shape={made}, a critic with "
            f"input_shape={judged}"
        )
