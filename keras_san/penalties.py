"""Penalties on the critic's gradient by images, added to its loss."""

import keras
from keras import ops

from keras_san.checks import check_count, check_positive, deserialized


class Penalty:
    """A function of the critic's gradients at some images.

    Subclasses define `points(real, fake, share)`, the images at which the
    gradients are taken, and `__call__(gradients)`, a scalar. The gradients are
    those of the sum of all logits of an image, by the images before they are
    augmented, never by a condition.

    Args:
        weight: Positive float, a factor.
        interval: Int, the updates of the critic from one in which the penalty
            is added, this many times as large, to the next (StyleGAN2's lazy
            regularization, [Karras et al.,
            2020](https://arxiv.org/abs/1912.04958), section 3.1: 16).

    Attributes:
        of_fake: Boolean. Whether the condition of generated images belongs to
            the points, not that of real ones.
        draws: Boolean. Whether the points are drawn at random: then `share` is
            a tensor of one number in [0, 1] for each image.

    Raises:
        ValueError: if `weight` is not positive, or `interval` below 1.
    """

    of_fake = False
    draws = False

    def __init__(self, weight, interval=1):
        check_positive("weight", weight)
        check_count("interval", interval)
        self.weight = weight
        self.interval = interval

    def get_config(self):
        return {"weight": self.weight, "interval": self.interval}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable("keras_san")
class GradientPenalty(Penalty):
    """Holds the norm of the critic's gradient near 1, as WGAN-GP does.

    The gradient is taken between real and generated images, at points drawn
    uniformly from the lines that join them in pairs.

    Args:
        weight: Positive float, the factor on the mean of `(norm - 1)^2`.
        interval: As in `Penalty`.

    Reference:
        [Gulrajani et al., 2017](https://arxiv.org/abs/1704.00028), Eq. 3.
    """

    draws = True

    def __init__(self, weight=10.0, interval=1):
        super().__init__(weight, interval)

    def points(self, real, fake, share):
        return real + share * (fake - real)

    def __call__(self, gradients):
        # The root's own gradient is infinite at zero.
        norms = ops.sqrt(_squares(gradients) + 1e-12)
        return self.weight * ops.mean(ops.square(norms - 1.0))


@keras.saving.register_keras_serializable("keras_san")
class R1(Penalty):
    """Holds the critic's gradient at real images near 0.

    Args:
        weight: Positive float, gamma: the penalty is half of it times the
            mean of the squared norm.
        interval: As in `Penalty`.

    Reference:
        [Mescheder et al., 2018](https://arxiv.org/abs/1801.04406), Eq. 9.
    """

    def points(self, real, fake, share):
        return real

    def __call__(self, gradients):
        return 0.5 * self.weight * ops.mean(_squares(gradients))


@keras.saving.register_keras_serializable("keras_san")
class R2(R1):
    """Holds the critic's gradient at generated images near 0.

    Args:
        weight: As in `R1`.
        interval: As in `Penalty`.

    Reference:
        [Mescheder et al., 2018](https://arxiv.org/abs/1801.04406), Eq. 10.
    """

    of_fake = True

    def points(self, real, fake, share):
        return fake


def _squares(gradients):
    """The squared norm of each image's gradient."""
    return ops.sum(ops.square(gradients), axis=tuple(range(1, gradients.ndim)))


def get(identifier):
    """A list of penalties from whatever names them.

    Args:
        identifier: `None`, a `Penalty`, its serialized form, or a list of
            these.

    Returns:
        A list of `Penalty`.

    Raises:
        ValueError: if it is none of these.
    """
    if identifier is None:
        return []
    several = isinstance(identifier, (list, tuple))
    found = [deserialized(x) for x in (identifier if several else [identifier])]
    if not all(isinstance(x, Penalty) for x in found):
        raise ValueError(
            "`penalty` must be None, or an object of keras_san.penalties, as "
            f"R1(1.0), or a list of them. Received: penalty={identifier!r}"
        )
    return found
