"""Adversarial losses: what critic and generator minimize."""

import keras
from keras import ops

from keras_san.checks import check_positive


class AdversarialLoss:
    """A pair of functions of the critic's logits, one for each image.

    Subclasses define `critic(real, fake)` and `generator(fake)`. Both return
    a scalar. Register a subclass with Keras to save GANs that use it.
    """

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable("keras_san")
class Hinge(AdversarialLoss):
    """The hinge loss, `"hinge"`.

    Reference:
        [Miyato et al., 2018](https://arxiv.org/abs/1802.05957), Eq. 16-17.
    """

    def critic(self, real, fake):
        """Mean of `max(0, 1 - real)` plus mean of `max(0, 1 + fake)`."""
        return ops.mean(ops.relu(1.0 - real)) + ops.mean(ops.relu(1.0 + fake))

    def generator(self, fake):
        """Minus the mean of `fake`."""
        return -ops.mean(fake)


@keras.saving.register_keras_serializable("keras_san")
class Wasserstein(AdversarialLoss):
    """The Wasserstein loss, `"wasserstein"`.

    Reference:
        [Arjovsky et al., 2017](https://arxiv.org/abs/1701.07875), Eq. 2.
    """

    def critic(self, real, fake):
        """Mean of `fake` minus mean of `real`."""
        return ops.mean(fake) - ops.mean(real)

    def generator(self, fake):
        """Minus the mean of `fake`."""
        return -ops.mean(fake)


@keras.saving.register_keras_serializable("keras_san")
class NonSaturating(AdversarialLoss):
    """Cross entropy, non-saturating for the generator, `"non_saturating"`.

    Reference:
        [Goodfellow et al., 2014](https://arxiv.org/abs/1406.2661), section 3.
    """

    def critic(self, real, fake):
        """Mean of `softplus(-real)` plus mean of `softplus(fake)`."""
        return ops.mean(ops.softplus(-real)) + ops.mean(ops.softplus(fake))

    def generator(self, fake):
        """Mean of `softplus(-fake)`."""
        return ops.mean(ops.softplus(-fake))


@keras.saving.register_keras_serializable("keras_san")
class GradientPenalty:
    """Holds the norm of the critic's gradient near 1, as WGAN-GP does.

    The gradient is taken between real and generated images, at points drawn
    uniformly from the lines that join them in pairs.

    Args:
        weight: Positive float, the factor on the mean of `(norm - 1)^2`.

    Raises:
        ValueError: if `weight` is not positive.

    Reference:
        [Gulrajani et al., 2017](https://arxiv.org/abs/1704.00028), Eq. 3.
    """

    def __init__(self, weight=10.0):
        check_positive("weight", weight)
        self.weight = weight

    def __call__(self, gradient, real, fake, share):
        """The penalty.

        Args:
            gradient: Callable from images to the gradients of their logits.
            real: Tensor `(batch, height, width, channels)`.
            fake: Tensor of the same shape.
            share: Tensor `(batch, 1, 1, 1)`, uniform in [0, 1].

        Returns:
            A scalar.
        """
        gradients = gradient(real + share * (fake - real))
        squares = ops.sum(ops.square(gradients), axis=(1, 2, 3))
        # The root's own gradient is infinite at zero.
        norms = ops.sqrt(squares + 1e-12)
        return self.weight * ops.mean(ops.square(norms - 1.0))

    def get_config(self):
        return {"weight": self.weight}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


_NAMES = {
    "hinge": Hinge,
    "wasserstein": Wasserstein,
    "non_saturating": NonSaturating,
}


def get(identifier):
    """An adversarial loss from whatever names one.

    Args:
        identifier: `"hinge"`, `"wasserstein"`, `"non_saturating"`, a
            serialized loss, or an `AdversarialLoss`.

    Returns:
        An `AdversarialLoss`.

    Raises:
        ValueError: if it is none of these.
    """
    if isinstance(identifier, dict):
        identifier = keras.saving.deserialize_keras_object(identifier)
    if isinstance(identifier, AdversarialLoss):
        return identifier
    if isinstance(identifier, str) and identifier in _NAMES:
        return _NAMES[identifier]()
    raise ValueError(
        f"Unknown loss. Choose one of {sorted(_NAMES)}, or an object of "
        f"keras_san.losses. Received: loss={identifier!r}"
    )
