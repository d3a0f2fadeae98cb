"""GANs that train with `fit`."""

import keras

if keras.config.backend() == "jax":
    from keras_san.gan.jax import JAXGAN as _BackendGAN
elif keras.config.backend() == "tensorflow":
    from keras_san.gan.tensorflow import TensorFlowGAN as _BackendGAN
else:
    from keras_san.gan.base import BaseGAN as _BackendGAN


@keras.saving.register_keras_serializable("keras_san")
class GAN(_BackendGAN):
    """A generator and a critic that train together with `fit`.

    One step updates the critic `critic_steps` times, each on its own part of
    the batch, then the generator once. Norms are measured once for each
    update of the critic. The backends TensorFlow and JAX train; on PyTorch
    the layers work, and `fit` raises.

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
        critic: A built `keras.Model` from images to one logit each; with
            `num_classes`, from `[images, labels]`.
        latent_dim: Int.
        loss: What `keras_san.losses.get` takes: `"hinge"`, `"wasserstein"`,
            `"non_saturating"`, or an object.
        critic_steps: Int >= 1, updates of the critic for one of the
            generator. A batch of `fit` is divided among them.
        penalty: `None`, or what is added to the critic's loss, as
            `keras_san.losses.GradientPenalty()`.
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
