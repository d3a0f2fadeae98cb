"""The losses of critic and generator.

Adversarial losses look at logits, content losses at images whose target is
known.
"""

import os

import keras
from keras import ops

from keras_san.checks import check_keras_3, check_positive, deserialized


class AdversarialLoss:
    """A pair of functions of the critic's logits, one for each image.

    Subclasses define `critic(real, fake)` and `generator(real, fake)`. Both
    return a scalar. Register a subclass with Keras to save GANs that use it.

    Attributes:
        relativistic: Boolean. Whether the loss of the generator depends on
            the logits of real images, which are `None` there otherwise.
    """

    relativistic = False

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

    def generator(self, real, fake):
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

    def generator(self, real, fake):
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

    def generator(self, real, fake):
        """Mean of `softplus(-fake)`."""
        return ops.mean(ops.softplus(-fake))


@keras.saving.register_keras_serializable("keras_san")
class Relativistic(AdversarialLoss):
    """Cross entropy of differences between pairs, `"relativistic"`.

    Real and generated images are paired by their places in the batch.

    Reference:
        [Huang et al., 2024](https://arxiv.org/abs/2501.05441), Eq. 2, after
        [Jolicoeur-Martineau, 2018](https://arxiv.org/abs/1807.00734).
    """

    relativistic = True

    def critic(self, real, fake):
        """Mean of `softplus(fake - real)`."""
        return ops.mean(ops.softplus(fake - real))

    def generator(self, real, fake):
        """Mean of `softplus(real - fake)`."""
        return ops.mean(ops.softplus(real - fake))


@keras.saving.register_keras_serializable("keras_san")
class PixelLoss:
    """The mean difference of values in [0, 1], `pixel_loss` in logs.

    Args:
        weight: Positive float, a factor on what the generator minimizes.
        order: 1 for the mean absolute error, 2 for the mean squared one.

    Raises:
        ValueError: for settings other than that.

    Reference:
        [Kligvasser and Michaeli, 2021](https://arxiv.org/abs/2103.02458),
        section 4.3.
    """

    name = "pixel_loss"

    def __init__(self, weight=1.0, order=1):
        check_positive("weight", weight)
        if order not in (1, 2):
            raise ValueError(
                f"`order` must be 1 or 2. Received: order={order!r}"
            )
        self.weight = weight
        self.order = order

    def __call__(self, target, output):
        """The loss, without the weight.

        Args:
            target: Tensor `(batch, height, width, channels)` in [-1, 1].
            output: Tensor of the same shape.

        Returns:
            A scalar.
        """
        # Half: from the range [-1, 1] to [0, 1], that of published weights.
        difference = 0.5 * (
            ops.cast(output, "float32") - ops.cast(target, "float32")
        )
        if self.order == 1:
            return ops.mean(ops.abs(difference))
        return ops.mean(ops.square(difference))

    def get_config(self):
        return {"weight": self.weight, "order": self.order}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable("keras_san")
class PerceptualLoss:
    """The mean absolute difference of features, `perceptual_loss` in logs.

    Args:
        weight: Positive float, a factor on what the generator minimizes.
        extractor: `"vgg19"`, for which Keras downloads the weights unless it
            has them; the path of a file of weights for
            `keras.applications.VGG19`, with or without its dense layers
            (`.h5`); the path of any other Keras model (`.keras`); or a
            functional `keras.Model`. VGG19 gets RGB images as
            `keras.applications.vgg19.preprocess_input` leaves them, any other
            model gets them in [-1, 1]. Its features are those of images of
            any size, so nothing up to `layers` may depend on it.
        layers: String, the name of a layer, or a dict of such names and
            factors on their parts of the sum.
        activated: Boolean. Whether to compare what the layers' own activation
            functions put out, or, as SAN's authors do, what goes into them.

    Raises:
        ValueError: if the extractor, a file of weights, or a layer is not
            what is said above.

    Reference:
        [Ledig et al., 2017](https://arxiv.org/abs/1609.04802), Eq. 5; before
        the activation: [Wang et al., 2018](https://arxiv.org/abs/1809.00219),
        section 3.3. The weights of `keras.applications` are those of VGG's
        authors; the codes of both papers use PyTorch's, whose features may
        differ in size.
    """

    name = "perceptual_loss"

    def __init__(
        self,
        weight=1.0,
        extractor="vgg19",
        layers="block5_conv4",
        activated=False,
    ):
        check_positive("weight", weight)
        self.weight = weight
        if isinstance(extractor, os.PathLike):
            extractor = os.fspath(extractor)
        self.extractor = extractor
        self.layers = layers
        self.activated = activated
        model, self._preprocess = _feature_network(extractor)
        names = layers if isinstance(layers, dict) else {layers: 1.0}
        self._factors = list(names.values())
        self.network = _features_of(model, list(names), activated)

    def features(self, images):
        """The features of images in [-1, 1], a list of one tensor per layer."""
        features = self.network(self._preprocess(images), training=False)
        return features if isinstance(features, list) else [features]

    def __call__(self, target, output):
        """The loss, without the weight.

        Args:
            target: Tensor `(batch, height, width, channels)` in [-1, 1].
            output: Tensor of the same shape.

        Returns:
            A scalar.
        """
        loss = 0.0
        pairs = zip(self.features(target), self.features(output))
        for factor, (a, b) in zip(self._factors, pairs):
            a, b = ops.cast(a, "float32"), ops.cast(b, "float32")
            loss += factor * ops.mean(ops.abs(b - ops.stop_gradient(a)))
        return loss

    def get_config(self):
        extractor = self.extractor
        if isinstance(extractor, keras.Model):
            # A file of the GAN holds nobody else's weights.
            extractor = None
        return {
            "weight": self.weight,
            "extractor": extractor,
            "layers": self.layers,
            "activated": self.activated,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)


def feature_matching(real, fake):
    """The distance of generated from real images in a critic's features.

    The mean absolute difference of features, summed over the layers, its mean
    over the scales. No gradient flows through the features of real images.

    Args:
        real: List of scales, each a list of tensors, the features of real
            images.
        fake: The same of generated images.

    Returns:
        A scalar.

    Reference:
        [Wang et al., 2018](https://arxiv.org/abs/1711.11585), Eq. 4.
    """
    loss = 0.0
    for real_features, fake_features in zip(real, fake):
        for a, b in zip(real_features, fake_features):
            a, b = ops.cast(a, "float32"), ops.cast(b, "float32")
            loss += ops.mean(ops.abs(b - ops.stop_gradient(a)))
    return loss / len(real)


def _feature_network(extractor):
    """A model, and what brings images in [-1, 1] into its range."""

    def unchanged(images):
        return images

    def preprocess_vgg(images):
        return keras.applications.vgg19.preprocess_input(
            127.5 * (ops.cast(images, "float32") + 1.0)
        )

    check_keras_3(extractor)
    if isinstance(extractor, keras.Model):
        return extractor, unchanged
    if extractor == "vgg19":
        model = keras.applications.VGG19(include_top=False, weights="imagenet")
        return model, preprocess_vgg
    if not isinstance(extractor, str):
        raise ValueError(
            "`extractor` must be 'vgg19', the path of a file, or a "
            "`keras.Model`, which is not saved with a GAN: build the GAN "
            "anew, and load its weights only. "
            f"Received: extractor={extractor!r}"
        )
    path = extractor
    if not os.path.isfile(path):
        raise ValueError(
            "There is no such file of weights or of a model. "
            f"Received: extractor={path!r}"
        )
    errors = []
    if path.endswith(".keras"):
        try:
            return keras.saving.load_model(path, compile=False), unchanged
        except Exception as error:
            errors.append(error)
    else:
        for include_top in (False, True):
            model = keras.applications.VGG19(
                include_top=include_top, weights=None
            )
            try:
                model.load_weights(path)
                return model, preprocess_vgg
            except Exception as error:
                errors.append(error)
    reason = str(errors[0]).partition("\n")[0][:200]
    raise ValueError(
        "The file holds neither weights for `keras.applications.VGG19` "
        "(.h5) nor a Keras model (.keras). "
        f"Received: extractor={path!r} ({reason})"
    ) from errors[0]


def _features_of(model, names, activated):
    """A frozen model of the same weights, from images of any size."""
    known = [layer.name for layer in model.layers]
    missing = [name for name in names if name not in known]
    if missing or not names:
        raise ValueError(
            f"The extractor must have the `layers`. Received: {missing} with "
            f"a model with the layers {known}"
        )
    part = keras.Model(
        model.inputs[0], [model.get_layer(name).output for name in names]
    )
    found = {}

    def call(layer, *args, **kwargs):
        activation = None
        if layer.name in names and not activated:
            # Of the copy only, and what comes behind it sees no difference.
            activation = getattr(layer, "activation", None)
            layer.activation = keras.activations.linear
        found[layer.name] = outputs = layer(*args, **kwargs)
        if activation is not None:
            outputs = keras.layers.Activation(activation)(outputs)
        return outputs

    channels = model.inputs[0].shape[-1]
    try:
        copy = keras.models.clone_model(
            part,
            input_tensors=keras.Input((None, None, channels)),
            call_function=call,
        )
    except Exception as error:
        raise ValueError(
            "The layers must not depend on the size of the images: choose "
            f"convolutions, before any dense layer. Received: {names} "
            f"({str(error).partition(chr(10))[0]})"
        ) from error
    copy.set_weights(part.get_weights())
    network = keras.Model(copy.inputs[0], [found[name] for name in names])
    network.trainable = False
    return network


_NAMES = {
    "hinge": Hinge,
    "wasserstein": Wasserstein,
    "non_saturating": NonSaturating,
    "relativistic": Relativistic,
}


def get(identifier):
    """Retrieves an adversarial loss by an identifier.

    Args:
        identifier: `"hinge"`, `"wasserstein"`, `"non_saturating"`,
            `"relativistic"`, a serialized loss, or an `AdversarialLoss`.

    Returns:
        An `AdversarialLoss`.

    Raises:
        ValueError: if it is none of these.
    """
    found = deserialized(identifier)
    if isinstance(found, AdversarialLoss):
        return found
    if isinstance(identifier, str) and identifier in _NAMES:
        return _NAMES[identifier]()
    raise ValueError(
        f"Unknown loss. Choose one of {sorted(_NAMES)}, or an object of "
        f"keras_san.losses. Received: loss={identifier!r}"
    )
