"""The class-conditional BigGAN of CIFAR-10, with SAN in its critic.

Reference:
    [Brock et al., 2019](https://arxiv.org/abs/1809.11096), as their PyTorch
    code trains it on CIFAR-10: no attention, no shared embedding, no
    hierarchical latents.
"""

import functools

import keras
from keras import layers

from keras_san import normalizers
from keras_san.layers import SANConv2D, SANDense, SANWrapper
from keras_san.networks.blocks import (
    batch_normalization,
    fresh,
    residual_features,
    residual_generator,
    scaled,
)


def generator(
    resolution=32, channels=3, latent_dim=128, num_classes=10, width=1.0
):
    """The generator from latent vectors and classes to images.

    Its convolutions and its dense layer are spectrally normalized.

    Args:
        resolution: Int, a multiple of 8: the height and width of the images.
        channels: Int, the channels of the images.
        latent_dim: Int.
        num_classes: Int.
        width: Positive float, a factor on the channels of all hidden layers.

    Returns:
        A functional `keras.Model` from a list of latent vectors
        `(batch, latent_dim)` and labels `(batch,)`, ints below `num_classes`,
        to `(batch, resolution, resolution, channels)` in [-1, 1].

    Raises:
        ValueError: if `resolution` is no multiple of 8.

    Reference:
        [Brock et al., 2019](https://arxiv.org/abs/1809.11096).
    """
    _check_resolution(resolution)

    def convolution(filters, kernel_size, **kwargs):
        return SANConv2D(
            filters,
            kernel_size,
            padding="same",
            normalizer="sn",
            kernel_initializer=_normal(),
            **kwargs,
        )

    latents = keras.Input((latent_dim,), name="latents")
    labels = keras.Input((), dtype="int32", name="labels")
    images = residual_generator(
        latents,
        resolution // 8,
        [scaled(256, width)] * 4,
        channels,
        functools.partial(
            SANDense, normalizer="sn", kernel_initializer=_normal()
        ),
        convolution,
        functools.partial(
            conditional_batch_normalization,
            labels=labels,
            num_classes=num_classes,
        ),
    )
    return keras.Model([latents, labels], images, name="generator")


def critic(
    resolution=32,
    channels=3,
    num_classes=10,
    width=1.0,
    normalizer="san",
    padding="circular",
    kernel_initializer=None,
    kernel_constraint=None,
    kernel_regularizer=None,
):
    """The critic from images and their classes to one logit each.

    The logit is a linear function of the features of an image, plus their
    product with a learned vector for the class.

    Args:
        resolution: Int, a multiple of 8: the height and width of the images.
        channels: Int, the channels of the images.
        num_classes: Int.
        width: Positive float, a factor on the channels of all hidden layers.
        normalizer: What `keras_san.normalizers.get` takes, for the
            convolutions. The dense layer and the vectors of the classes are
            spectrally normalized with the same form, interval and scale; with
            `None` nothing is normalized.
        padding: `"circular"`, under which the norm is exact, or `"same"`.
        kernel_initializer: What Keras initializers take, N(0, 0.02) by
            default.
        kernel_constraint: What Keras constraints take, for all kernels and
            the vectors of the classes.
        kernel_regularizer: What Keras regularizers take, for the same.

    Returns:
        A functional `keras.Model` from a list of images
        `(batch, resolution, resolution, channels)` and labels `(batch,)`,
        ints below `num_classes`, to `(batch, 1)`.

    Raises:
        ValueError: if `resolution` is no multiple of 8, or a setting is
            unknown.

    Reference:
        [Brock et al., 2019](https://arxiv.org/abs/1809.11096); [Kligvasser
        and Michaeli, 2021](https://arxiv.org/abs/2103.02458).
    """
    _check_resolution(resolution)

    def settings(weights="kernel"):
        return {
            f"{weights}_initializer": fresh(kernel_initializer or _normal()),
            f"{weights}_constraint": kernel_constraint,
            f"{weights}_regularizer": kernel_regularizer,
        }

    def convolution(filters, kernel_size, name):
        return SANConv2D(
            filters,
            kernel_size,
            padding=padding,
            normalizer=normalizer,
            name=name,
            **settings(),
        )

    images = keras.Input((resolution, resolution, channels), name="images")
    labels = keras.Input((), dtype="int32", name="labels")
    filters = scaled(256, width)
    blocks = [(filters, halve) for halve in (True, True, False, False)]
    features = residual_features(images, blocks, convolution)
    normalizer = last = normalizers.get(normalizer)
    if normalizer is not None:
        shared = ("scale", "update_interval", "form")
        last = normalizers.Spectral(
            **{name: getattr(normalizer, name) for name in shared}
        )
    dense = SANDense(1, normalizer=last, name="dense", **settings())
    embedding = SANWrapper(
        layers.Embedding(num_classes, filters, **settings("embeddings")),
        last,
        name="embedding",
    )
    projection = layers.Dot(axes=-1)([features, embedding(labels)])
    logits = layers.Add()([dense(features), projection])
    return keras.Model([images, labels], logits, name="critic")


def conditional_batch_normalization(x, name, labels, num_classes):
    """Batch normalization with a scale and a shift for each class.

    It is made of plain Keras layers, which `keras_san.strip` leaves alone.

    Args:
        x: Tensor `(batch, height, width, channels)`.
        name: String, with which the names of its layers begin.
        labels: Tensor `(batch,)`, ints below `num_classes`.
        num_classes: Int.

    Returns:
        Tensor of the shape of `x`.

    Reference:
        [Brock et al., 2019](https://arxiv.org/abs/1809.11096).
    """

    def embed(kind):
        embedding = layers.Embedding(
            num_classes,
            x.shape[-1],
            embeddings_initializer=_normal(),
            name=f"{name}_{kind}",
        )
        return layers.Reshape((1, 1, x.shape[-1]))(embedding(labels))

    normalized = batch_normalization(center=False, scale=False, name=name)(x)
    return normalized * (1.0 + embed("gain")) + embed("bias")


def _normal():
    return keras.initializers.RandomNormal(stddev=0.02)


def _check_resolution(resolution):
    if resolution < 8 or resolution % 8:
        raise ValueError(
            "BigGAN doubles its first maps three times: `resolution` must be "
            f"a multiple of 8. Received: resolution={resolution}"
        )
