"""Differentiable augmentation of what a critic is shown."""

import keras
from keras import ops

from keras_san import numerics
from keras_san.checks import check_count, deserialized

# The operations of each name.
_POLICIES = {
    "color": ("brightness", "saturation", "contrast"),
    "translation": ("translation",),
    "cutout": ("cutout",),
}


@keras.saving.register_keras_serializable("keras_san")
class Augmentation:
    """Augments images at random, so that gradients flow through.

    The critic is shown augmented real and generated images, in its own
    updates and in those of the generator: so the augmentation does not find
    its way into what is generated, and a critic that cannot learn a small
    dataset by heart goes on teaching.

    - `"color"`: adds to the brightness from -0.5 to 0.5, and multiplies the
      distance from grey by 0 to 2, and that from the mean of the image by 0.5
      to 1.5.
    - `"translation"`: moves the image by up to an eighth of its size, in whole
      pixels; zeros come in.
    - `"cutout"`: sets a square of half of the size to 0.

    Args:
        policy: String of these names, separated by commas, or a list of them.
        probability: Float in [0, 1], with which an operation (colour is three
            of them) is applied to an image.

    Raises:
        ValueError: if a name or a number is none of these.

    Reference:
        [Zhao et al., 2020](https://arxiv.org/abs/2006.10738), section 3.2 and
        appendix.
    """

    # Further means that a GAN reports.
    means = ()

    def __init__(self, policy="color,translation,cutout", probability=1.0):
        names = policy
        if isinstance(policy, str):
            names = [name.strip() for name in policy.split(",")]
        unknown = [name for name in names if name not in _POLICIES]
        if unknown or not names or len({*names}) < len(names):
            raise ValueError(
                f"The augmentations are {[*_POLICIES]}, each at most once. "
                f"Received: {policy!r}"
            )
        _check_share("probability", probability)
        self.policy = list(names)
        self.probability = probability
        self._operations = [op for name in names for op in _POLICIES[name]]

    def check(self, shape):
        """Raises a `ValueError` unless it can augment images of a shape."""
        if len(shape) != 4 or None in shape[1:]:
            raise ValueError(
                "Images of a known size, (batch, height, width, channels), can "
                "be augmented. Received: a critic that takes images of shape "
                f"{tuple(shape)}"
            )

    def __call__(self, images, draws, probability):
        """Augments images.

        Args:
            images: Float tensor `(batch, height, width, channels)`.
            draws: Float tensor `(batch, NUM_DRAWS)`, uniform in [0, 1].
            probability: Scalar, with which an operation is applied.

        Returns:
            A tensor of the shape and type of `images`.
        """
        x = ops.cast(images, "float32")
        place = 0
        for index, (operation, count) in enumerate(_OPERATIONS):
            if operation.__name__[1:] in self._operations:
                numbers = [
                    ops.reshape(draws[:, place + i], (-1, 1, 1, 1))
                    for i in range(count)
                ]
                gate = draws[:, NUM_DRAWS - len(_OPERATIONS) + index]
                applied = ops.reshape(gate < probability, (-1, 1, 1, 1))
                changed = operation(x, *numbers)
                x = ops.where(applied, changed, x)
            place += count
        return ops.cast(x, images.dtype)

    # A GAN holds the state of its augmentation: this one has none.

    def make_state(self, add_weight):
        """A list of variables, made by `keras.layers.Layer.add_weight`."""
        return []

    def strength(self, state):
        """The probability with which operations are applied now."""
        return self.probability

    def adapt(self, state, means, batch_size):
        """Follows an update of the critic, and returns means to report.

        Args:
            state: What `make_state` returned.
            means: Dict of the means of that update.
            batch_size: Int or scalar tensor, the images of all replicas.
        """
        return {}

    def get_config(self):
        return {"policy": self.policy, "probability": self.probability}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable("keras_san")
class AdaptiveAugmentation(Augmentation):
    """Augments as much as it takes to keep the critic from overfitting.

    Every four updates of the critic its probability grows while the logits of
    real images have a positive sign more often than `target` says, and else
    falls. It is a weight of the GAN, and in its logs as
    `augmentation_probability`.

    Args:
        policy: As in `Augmentation`.
        target: Float in [0, 1], the mean sign of the logits of real images
            (r_t) to be held.
        images: Int, the real images in which the probability may go from 0
            to 1.

    Raises:
        ValueError: if a name or a number is none of these.

    Reference:
        [Karras et al., 2020](https://arxiv.org/abs/2006.06676), section 3.1.
    """

    means = ("augmentation_probability",)
    _INTERVAL = 4

    def __init__(
        self, policy="color,translation,cutout", target=0.6, images=500_000
    ):
        super().__init__(policy)
        _check_share("target", target)
        check_count("images", images)
        self.target = target
        self.images = images

    def make_state(self, add_weight):
        shared = {"shape": (), "initializer": "zeros", "trainable": False}
        shared.update(dtype="float32", autocast=False)
        return [
            add_weight(
                name="augmentation_probability",
                aggregation="only_first_replica",
                **shared,
            ),
            # The mean sign since the last change, and the updates in it. The
            # first is a mean over the replicas, too.
            add_weight(name="real_sign", aggregation="mean", **shared),
            add_weight(
                name="signed_updates",
                aggregation="only_first_replica",
                **shared,
            ),
        ]

    def strength(self, state):
        return state[0].value

    def adapt(self, state, means, batch_size):
        probability, sign, updates = state
        sign.assign(sign + means["real_sign"] / self._INTERVAL)
        updates.assign(updates + 1.0)
        due = ops.cast(updates >= self._INTERVAL, "float32")
        step = ops.cast(batch_size, "float32") * self._INTERVAL / self.images
        moved = probability + due * step * ops.sign(sign - self.target)
        probability.assign(ops.clip(moved, 0.0, 1.0))
        sign.assign(sign * (1.0 - due))
        updates.assign(updates * (1.0 - due))
        return {"augmentation_probability": probability.value}

    def get_config(self):
        return {
            "policy": self.policy,
            "target": self.target,
            "images": self.images,
        }


def _check_share(name, value):
    if not (isinstance(value, (int, float)) and 0.0 <= value <= 1.0):
        raise ValueError(
            f"`{name}` must be from 0 to 1. Received: {name}={value!r}"
        )


# Each takes images `(batch, height, width, channels)`, and numbers in [0, 1]
# of shape `(batch, 1, 1, 1)`.


def _brightness(x, a):
    return x + (a - 0.5)


def _saturation(x, a):
    grey = ops.mean(x, axis=-1, keepdims=True)
    return grey + 2.0 * a * (x - grey)


def _contrast(x, a):
    mean = ops.mean(x, axis=(1, 2, 3), keepdims=True)
    return mean + (a + 0.5) * (x - mean)


def _translation(x, a, b):
    _, height, width, channels = x.shape
    rows, columns = (
        _moving(size, share) for size, share in ((height, a), (width, b))
    )
    # Products with matrices of a single 1 a row: gradients of gathered pixels
    # are slow on accelerators.
    x = numerics.matmul(rows, ops.reshape(x, (-1, height, width * channels)))
    x = ops.reshape(x, (-1, height, width, channels))
    x = numerics.matmul(columns[:, None], x)
    return x


def _moving(size, share):
    """Matrices `(batch, size, size)` that move by up to an eighth."""
    most = int(size / 8 + 0.5)
    shift = _whole(ops.reshape(share, (-1, 1, 1)), 2 * most + 1) - most
    places = ops.arange(size, dtype="float32")
    moved = places[:, None] + shift
    return ops.cast(ops.equal(moved, places), "float32")


def _cutout(x, a, b):
    hidden = True
    for axis, share in ((1, a), (2, b)):
        size = x.shape[axis]
        length = int(size / 2 + 0.5)
        # The centre is at any pixel, or one beyond where the length is even.
        first = _whole(share, size + 1 - length % 2) - length // 2
        shape = [1, 1, 1, 1]
        shape[axis] = size
        places = ops.reshape(ops.arange(size, dtype="float32"), shape)
        inside = ops.logical_and(places >= first, places < first + length)
        hidden = ops.logical_and(hidden, inside)
    return ops.where(hidden, 0.0, x)


def _whole(share, count):
    """One of the whole numbers from 0 to below `count`, all as likely."""
    return ops.minimum(ops.floor(share * count), count - 1.0)


# In the order in which they are applied, and how many numbers each takes.
_OPERATIONS = (
    (_brightness, 1),
    (_saturation, 1),
    (_contrast, 1),
    (_translation, 2),
    (_cutout, 2),
)

# The numbers that are drawn for an image, whichever of them are used: those of
# all operations, and for each whether it is applied.
NUM_DRAWS = sum(count for _, count in _OPERATIONS) + len(_OPERATIONS)


def get(identifier):
    """An augmentation from whatever names one.

    Args:
        identifier: `None`, a policy as of `Augmentation`, the serialized form
            of an augmentation, or an `Augmentation`.

    Returns:
        An `Augmentation`, or `None`.

    Raises:
        ValueError: if it is none of these.
    """
    found = deserialized(identifier)
    if isinstance(found, (str, list, tuple)):
        return Augmentation(found)
    if identifier is None or isinstance(found, Augmentation):
        return found
    raise ValueError(
        "`augmentation` must be None, a policy as 'color,translation,cutout', "
        "or an object of keras_san.augmentation. Received: "
        f"augmentation={identifier!r}"
    )
