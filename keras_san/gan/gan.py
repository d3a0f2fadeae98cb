"""The GAN that makes images from random vectors."""

import keras
import numpy as np
from keras import ops

from keras_san.checks import check_count, require_range
from keras_san.critic_output import CriticOutput
from keras_san.gan.backend import BackendGAN
from keras_san.gan.networks import check_takes_images_of, with_shape


@keras.saving.register_keras_serializable("keras_san")
class GAN(BackendGAN):
    """A generator and a critic that train together with `fit`.

    One step updates the critic `critic_steps` times, each on its own part of
    the batch, then the generator once. Norms are measured once for each
    update of the critic.

    To train on several devices, build and compile it inside of the `scope()`
    of a `tf.distribute` strategy, mirrored or multi-worker, or on JAX after
    `keras.distribution.set_distribution(keras.distribution.DataParallel())`.
    Batches are those of all devices together, each of which gets a part (on
    TensorFlow the `critic_steps` then divide that part). All workers of a
    `MultiWorkerMirroredStrategy` call `fit` with the same dataset in the same
    order (seed what shuffles) and leave its auto-sharding on; callbacks write
    files where `is_chief`. Batch normalization keeps statistics of its own in
    each replica of TensorFlow unless it is made with `synchronized=True`.

    Args:
        generator: A built `keras.Model` from latent vectors
            `(batch, latent_dim)`, standard normal, to images
            `(batch, height, width, channels)`; with `num_classes`, from
            `[latents, labels]`, labels of shape `(batch,)`.
        critic: A built `keras.Model` from images to one logit each, or to one
            for each of its parts, `(batch, ..., 1)`; with `num_classes`, from
            `[images, labels]`.
        latent_dim: Int.
        loss: What `keras_san.losses.get` takes: `"hinge"`, `"wasserstein"`,
            `"non_saturating"`, `"relativistic"`, or an object.
        critic_steps: Int >= 1, updates of the critic for one of the
            generator. A batch of `fit` is divided among them.
        penalty: `None`, or what is added to the critic's loss, an object of
            `keras_san.penalties` or a list of them, as `[R1(0.1), R2(0.1)]`.
        augmentation: `None`, or how the critic is shown real and generated
            images, what `keras_san.augmentation.get` takes.
        joint: Boolean. Whether the critic gets real and generated images in
            one batch, not one after the other: fewer and larger operations.
            On CPUs that is no faster (1.03 and 1.06 times the time of an
            update, `results/benchmark.md`). A critic with batch normalization
            does not allow it.
        ema: `None`, or a float in (0, 1), as 0.999: the decay of an average of
            the generator's weights, from which `generate` then draws. The
            decay is at most `(1 + step) / (10 + step)`, so that the average
            forgets its untrained start.
        num_classes: `None`, or an int for a class-conditional GAN.
        seed: Int for the latents that training draws.
        **kwargs: As those of `keras.Model`.

    Raises:
        ValueError: if the networks do not fit together, or a setting is
            outside of what is listed above.

    Example:
    ```python
    gan = keras_san.GAN(generator, critic, latent_dim=128, ema=0.999)
    gan.compile()
    gan.fit(images, batch_size=64, epochs=100)
    samples = gan.generate(16)
    ```

    Reference:
        [Kligvasser and Michaeli, 2021](https://arxiv.org/abs/2103.02458).
    """

    def __init__(
        self,
        generator,
        critic,
        latent_dim,
        loss="hinge",
        critic_steps=1,
        penalty=None,
        augmentation=None,
        joint=False,
        ema=None,
        num_classes=None,
        seed=None,
        **kwargs,
    ):
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
            **kwargs,
        )
        _check_networks(generator, critic, latent_dim, num_classes)
        self.latent_dim = latent_dim
        self.num_classes = num_classes

    def _check_values(self, x, y):
        if self.num_classes is not None and y is not None:
            highest = self.num_classes - 1
            message = f"Labels must be ints from 0 to {highest}."
            return require_range(y, 0, highest, message)
        return None

    def _unpack(self, images, labels):
        images = with_shape("images", images, self.generator.output_shape)
        if self.num_classes is None:
            return images, None
        if labels is None:
            raise ValueError(
                "A class-conditional GAN trains on pairs (images, labels). "
                f"Received: no labels, with num_classes={self.num_classes}"
            )
        return images, with_shape("labels", labels, (None,))

    def _generator_inputs(self, real, condition):
        batch_size = ops.shape(real)[0]

        def draw_latents(n):
            return keras.random.normal(
                (n, self.latent_dim), seed=self.seed_generator
            )

        def draw_labels(n):
            return keras.random.randint(
                (n,), 0, self.num_classes, seed=self.seed_generator
            )

        latents = self.shard(draw_latents, batch_size)
        if self.num_classes is None:
            return latents, None
        labels = self.shard(draw_labels, batch_size)
        return [latents, labels], labels

    def _criticize(self, images, condition, training=True):
        inputs = images if self.num_classes is None else [images, condition]
        logits = self.critic(inputs, training=training)
        return CriticOutput([ops.cast(logits, "float32")])

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
        check_count("num_images", num_images, least=0)
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

        def make_inputs(part):
            if labels is None:
                return latents[part]
            return [latents[part], labels[part]]

        return self._generate(make_inputs, num_images, batch_size)

    def get_config(self):
        return {
            **super().get_config(),
            "latent_dim": self.latent_dim,
            "num_classes": self.num_classes,
        }


def _check_networks(generator, critic, latent_dim, num_classes):
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
    check_takes_images_of(generator, critic)
    shapes = [tuple(x.shape) for x in critic.outputs]
    if len(shapes) != 1 or len(shapes[0]) > 1 and shapes[0][-1] != 1:
        raise ValueError(
            "The critic must put out one logit for each image, `(batch, 1)`, "
            f"or for each part, `(batch, ..., 1)`. Received: {shapes}"
        )
