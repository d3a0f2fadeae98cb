"""The networks of SN-GAN, which the SAN paper trains, too.

`generator` and `critic` are the standard CNN, `resnet_generator` and
`resnet_critic` the ResNets.

Reference:
    [Miyato et al., 2018](https://arxiv.org/abs/1802.05957), Tables 3 to 5.
"""

import keras
from keras import layers

from keras_san.layers import SANConv2D, SANDense
from keras_san.networks.blocks import (
    batch_normalization,
    fresh,
    residual_features,
    residual_generator,
    scaled,
)


def generator(resolution=32, channels=3, latent_dim=128, width=1.0):
    """The standard CNN from latent vectors to images.

    Args:
        resolution: Int, a multiple of 8: the height and width of the images.
        channels: Int, the channels of the images.
        latent_dim: Int.
        width: Positive float, a factor on the channels of all hidden layers.

    Returns:
        A `keras.Sequential` from `(batch, latent_dim)` to
        `(batch, resolution, resolution, channels)` in [-1, 1].

    Raises:
        ValueError: if `resolution` is no multiple of 8.

    Reference:
        [Miyato et al., 2018](https://arxiv.org/abs/1802.05957), Table 3.
    """
    start = _start(resolution)

    def normal():
        return keras.initializers.RandomNormal(stddev=0.02)

    model = keras.Sequential(name="generator")
    model.add(keras.Input((latent_dim,), name="latents"))
    first = scaled(512, width)
    model.add(layers.Dense(start * start * first, kernel_initializer=normal()))
    model.add(layers.Reshape((start, start, first)))
    model.add(batch_normalization())
    model.add(layers.ReLU())
    for filters in (256, 128, 64):
        model.add(
            layers.Conv2DTranspose(
                scaled(filters, width),
                4,
                strides=2,
                padding="same",
                kernel_initializer=normal(),
            )
        )
        model.add(batch_normalization())
        model.add(layers.ReLU())
    model.add(
        layers.Conv2D(
            channels,
            3,
            padding="same",
            activation="tanh",
            kernel_initializer=normal(),
        )
    )
    return model


def critic(
    resolution=32,
    channels=3,
    width=1.0,
    normalizer="san",
    padding="circular",
    kernel_initializer="he_normal",
    kernel_constraint=None,
    kernel_regularizer=None,
    activation_norm=None,
):
    """The standard CNN from images to one logit each.

    Args:
        resolution: Int, a multiple of 8: the height and width of the images.
        channels: Int, the channels of the images.
        width: Positive float, a factor on the channels of all hidden layers.
        normalizer: What `keras_san.normalizers.get` takes.
        padding: `"circular"`, under which the norm is exact, or `"same"`.
        kernel_initializer: What Keras initializers take. In the divided form
            the size of the raw kernels sets how far one step of Adam turns
            them: those of N(0, 0.02), the original's, turn so fast that SAN's
            logits run into the thousands.
        kernel_constraint: What Keras constraints take, for all kernels.
        kernel_regularizer: What Keras regularizers take, for all kernels.
        activation_norm: `None`, or the normalization between each convolution
            and its activation: `"batch"`, or `"layer"` for layer
            normalization over height, width and channels. Both learn a shift
            for each channel, but no scale.

    Returns:
        A `keras.Sequential` from `(batch, resolution, resolution, channels)`
        to `(batch, 1)`.

    Raises:
        ValueError: if `resolution` is no multiple of 8, a setting is unknown,
            or both `normalizer` and `activation_norm` are given.

    Reference:
        [Miyato et al., 2018](https://arxiv.org/abs/1802.05957), Table 3, and
        section 4.1 for `activation_norm`.
    """
    _start(resolution)
    _check_activation_norm(activation_norm, normalizer)
    settings = {
        "normalizer": normalizer,
        "kernel_constraint": kernel_constraint,
        "kernel_regularizer": kernel_regularizer,
    }
    model = keras.Sequential(name="critic")
    model.add(keras.Input((resolution, resolution, channels), name="images"))
    convolutions = (
        (64, 3, 1),
        (64, 4, 2),
        (128, 3, 1),
        (128, 4, 2),
        (256, 3, 1),
        (256, 4, 2),
        (512, 3, 1),
    )
    for index, (filters, kernel_size, strides) in enumerate(convolutions):
        model.add(
            SANConv2D(
                scaled(filters, width),
                kernel_size,
                strides,
                padding,
                kernel_initializer=fresh(kernel_initializer),
                name=f"conv_{index + 1}",
                **settings,
            )
        )
        if activation_norm is not None:
            normalization = _ACTIVATION_NORMS[activation_norm]
            model.add(normalization(scale=False, name=f"norm_{index + 1}"))
        model.add(layers.LeakyReLU(negative_slope=0.1))
    model.add(layers.Flatten())
    model.add(
        SANDense(
            1,
            kernel_initializer=fresh(kernel_initializer),
            name="dense",
            **settings,
        )
    )
    return model


def resnet_generator(resolution=32, channels=3, latent_dim=128, width=1.0):
    """The ResNet from latent vectors to images.

    Args:
        resolution: Int, the height and width of the images: 32 for the
            network of CIFAR-10, or a multiple of 16 from 48 on for that of
            STL-10 (which is for 48), with larger first maps.
        channels: Int, the channels of the images.
        latent_dim: Int.
        width: Positive float, a factor on the channels of all hidden layers.

    Returns:
        A functional `keras.Model` from `(batch, latent_dim)` to
        `(batch, resolution, resolution, channels)` in [-1, 1].

    Raises:
        ValueError: if there is no network for `resolution`.

    Reference:
        [Miyato et al., 2018](https://arxiv.org/abs/1802.05957), Tables 4
        and 5.
    """
    _check_resnet_resolution(resolution)
    filters = (256, 256, 256, 256) if resolution == 32 else (512, 256, 128, 64)

    def convolution(filters, kernel_size, name, **kwargs):
        # No ReLU follows the last one, as none follows kernels of 1x1.
        last = name == "conv"
        return layers.Conv2D(
            filters,
            kernel_size,
            padding="same",
            kernel_initializer=_glorot(1 if last else kernel_size),
            name=name,
            **kwargs,
        )

    def normalize(x, name):
        return batch_normalization(name=name)(x)

    latents = keras.Input((latent_dim,), name="latents")
    images = residual_generator(
        latents,
        resolution // 8,
        [scaled(n, width) for n in filters],
        channels,
        layers.Dense,
        convolution,
        normalize,
    )
    return keras.Model(latents, images, name="generator")


def resnet_critic(
    resolution=32,
    channels=3,
    width=1.0,
    normalizer="san",
    padding="circular",
    kernel_initializer=None,
    kernel_constraint=None,
    kernel_regularizer=None,
    last_block=False,
):
    """The ResNet from images to one logit each.

    With SAN, its logits start in the hundreds or thousands: SAN's norm is
    smaller than a convolution's operator norm, and the last layer sums over
    the image.

    Args:
        resolution: Int, the height and width of the images: 32 for the
            network of CIFAR-10, or a multiple of 16 from 48 on for that of
            STL-10 (which is for 48), with larger last maps.
        channels: Int, the channels of the images.
        width: Positive float, a factor on the channels of all hidden layers.
        normalizer: What `keras_san.normalizers.get` takes.
        padding: `"circular"`, under which the norm is exact, or `"same"`.
        kernel_initializer: What Keras initializers take. By default the
            original's: Glorot's uniform distribution, times the square root
            of 2 for 3x3 kernels.
        kernel_constraint: What Keras constraints take, for all kernels.
        kernel_regularizer: What Keras regularizers take, for all kernels.
        last_block: Boolean, whether the network of STL-10 ends in the block
            of 1024 channels that it has in SN-GAN. The SAN paper leaves it
            out, and with it three quarters of the weights. The network of
            CIFAR-10 has no such block.

    Returns:
        A functional `keras.Model` from
        `(batch, resolution, resolution, channels)` to `(batch, 1)`.

    Raises:
        ValueError: if there is no network for `resolution`, or a setting is
            unknown.

    Reference:
        [Miyato et al., 2018](https://arxiv.org/abs/1802.05957), Tables 4
        and 5; [Kligvasser and Michaeli,
        2021](https://arxiv.org/abs/2103.02458).
    """
    _check_resnet_resolution(resolution)
    if resolution == 32:
        if last_block:
            raise ValueError(
                "Only the network of STL-10, for images of 48x48 and more, "
                "has a `last_block`: leave it out for 32x32. "
                f"Received: last_block={last_block}, resolution={resolution}"
            )
        blocks = [(128, True), (128, True), (128, False), (128, False)]
    else:
        blocks = [(64, True), (128, True), (256, True), (512, True)]
        if last_block:
            blocks.append((1024, False))

    def settings(kernel_size):
        return {
            "normalizer": normalizer,
            "kernel_initializer": fresh(
                kernel_initializer or _glorot(kernel_size)
            ),
            "kernel_constraint": kernel_constraint,
            "kernel_regularizer": kernel_regularizer,
        }

    def convolution(filters, kernel_size, name):
        return SANConv2D(
            filters,
            kernel_size,
            padding=padding,
            name=name,
            **settings(kernel_size),
        )

    images = keras.Input((resolution, resolution, channels), name="images")
    features = residual_features(
        images, [(scaled(n, width), halve) for n, halve in blocks], convolution
    )
    dense = SANDense(1, use_bias=False, name="dense", **settings(1))
    return keras.Model(images, dense(features), name="critic")


def _layer_normalization(**kwargs):
    return layers.GroupNormalization(groups=1, epsilon=1e-5, **kwargs)


_ACTIVATION_NORMS = {
    "batch": batch_normalization,
    "layer": _layer_normalization,
}


def _check_activation_norm(activation_norm, normalizer):
    if activation_norm is None:
        return
    if activation_norm not in _ACTIVATION_NORMS:
        raise ValueError(
            '`activation_norm` must be None, "batch" or "layer". '
            f"Received: activation_norm={activation_norm!r}"
        )
    if normalizer is not None:
        raise ValueError(
            "`activation_norm` cancels any factor on the kernel before it, so "
            "that `normalizer` would do nothing. Pass normalizer=None with "
            f"it. Received: activation_norm={activation_norm!r}, "
            f"normalizer={normalizer!r}"
        )


def _glorot(kernel_size):
    return keras.initializers.VarianceScaling(
        2.0 if kernel_size == 3 else 1.0, mode="fan_avg", distribution="uniform"
    )


def _start(resolution):
    if resolution < 8 or resolution % 8:
        raise ValueError(
            "The standard CNN halves its images three times: `resolution` "
            "must be a multiple of 8. "
            f"Received: resolution={resolution}"
        )
    return resolution // 8


def _check_resnet_resolution(resolution):
    if resolution < 32 or resolution % 16:
        raise ValueError(
            "There are ResNets for images of 32x32 (as CIFAR-10), and of "
            "48x48 and more (as STL-10), which are halved four times: "
            "`resolution` must be 32, or a multiple of 16 from 48 on. "
            f"Received: resolution={resolution}"
        )
