"""The diagnosis of a critic: healthy, exploding or vanishing, and where."""

import dataclasses
import math

import keras
import numpy as np
from keras import ops

from keras_san.diagnostics.bounds import GRADIENT_BOUNDS, gradient_bounds
from keras_san.diagnostics.gradients import (
    input_gradients,
    mean_score,
    weight_gradients,
)
from keras_san.diagnostics.kernels import layer_norms
from keras_san.diagnostics.recording import record
from keras_san.diagnostics.signals import signal_gains
from keras_san.kernels import find_kernels

# The factor by which signals or a norm may be larger than they should be, or
# smaller. Critics of He's start lie within a factor of 1.3, also when trained.
_BAND = 2.2

# The most and the least that the score of a critic may change from one image
# to another. The hinge loss needs 2; critics that trained began between 0.1
# (SN-GAN's CNN with SN) and 10,000 (a ResNet with SAN).
_STEEP, _FLAT = 1e5, 0.05

# How far a norm may be from what it should be.
_INEXACT = 0.1

_NORMALIZATIONS = (
    keras.layers.BatchNormalization,
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.UnitNormalization,
    # Keras has it from 3.9 on.
    *filter(None, [getattr(keras.layers, "RMSNormalization", None)]),
)

# Layers that may stand between a kernel and those without any effect on them.
_TRANSPARENT = (
    keras.layers.Dropout,
    keras.layers.Identity,
    keras.layers.Reshape,
    keras.layers.SpatialDropout1D,
    keras.layers.SpatialDropout2D,
    keras.layers.SpatialDropout3D,
)


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """The result of `diagnose`.

    Attributes:
        verdict: String, `"healthy"`, `"exploding"` or `"vanishing"`.
        layer: String, the layer to blame, or `None`.
        reason: String, the figure that says so.
        warnings: List of strings.
        inert: List of strings, the layers whose normalization does nothing.
        slope: Float, how much the score changes from one image to another:
            the mean norm of its gradient, times the mean distance of images.
        norms: The result of `layer_norms`.
        gains: The result of `signal_gains`.
        gradients: The result of `weight_gradients`.
        bounds: The result of `gradient_bounds`, empty with `operator=False`.
    """

    verdict: str
    layer: str | None
    reason: str
    warnings: list
    inert: list
    slope: float
    norms: np.ndarray
    gains: np.ndarray
    gradients: np.ndarray
    bounds: np.ndarray


def diagnose(model, images, score=mean_score, operator=False):
    """Tells whether a critic explodes or vanishes, and which layer is to blame.

    A critic explodes if

    - a number is not finite,
    - a layer's norm is more than 2.2 times the one its normalizer aims at,
    - a layer without a normalizer, or with weight normalization, amplifies
      signals more than 2.2 times as much as with Kaiming's initializer, judged
      both by the signals and by the weights, or
    - the score changes by more than 100,000 from one image to another.

    It vanishes if a norm or an amplification is smaller by the same factor
    (the weights then have to be small beside Xavier's initializer, too), or if
    the score changes by less than 0.05.

    A single layer without a normalizer that is three times too large or too
    small may pass: initializers differ by as much from each other.

    Args:
        model: A built Keras model from images.
        images: Array `(n, height, width, channels)` of at least two images as
            the critic is trained on, or a list of arrays where the model has
            several inputs.
        score: As in `weight_gradients`.
        operator: As in `layer_norms`.

    Returns:
        A `Diagnosis`.

    Raises:
        ValueError: if there are fewer than two images, they are all the same
            or hold NaN or infinity, or the model has no kernel, or a
            quantized layer.
    """
    first = keras.tree.flatten(images)[0]
    if len(first) < 2:
        raise ValueError(
            "A diagnosis needs at least two images, preferably a hundred. "
            f"Received: {len(first)}"
        )
    if not _is_finite(first):
        raise ValueError(
            "Images must be finite. Received: images with NaN or infinity"
        )
    distance = _distance(first)
    if distance == 0.0:
        raise ValueError(
            "The images must differ: a diagnosis measures how much the score "
            "changes from one to the next. "
            f"Received: {len(first)} images, all the same"
        )
    norms = layer_norms(model, operator=operator)
    gains = signal_gains(model, images, norms)
    few = _part(images, 64)
    gradients = weight_gradients(model, few, score)
    bounds = np.zeros(0, GRADIENT_BOUNDS)
    if operator and score is mean_score:
        bounds = gradient_bounds(model, few, norms)
    slope = float(np.mean(input_gradients(model, images, score))) * distance
    broken = _first_not_finite(model, few)
    verdict, layer, reason = _judge(norms, gains, slope, broken)
    inert = inert_normalizations(model, _part(images, 2))
    warnings = [
        f"The normalization of {name} does nothing: the one that follows it "
        "cancels any factor. Remove either of them."
        for name in inert
    ]
    warnings += [
        f"The norm of {row['layer']} is {row['norm_over_intended']:.2f} times "
        "what it should be: the kernel has changed since its norm was "
        "measured, or the measurement is not exact."
        for row in norms
        if abs(row["norm_over_intended"] - 1.0) > _INEXACT
    ]
    return Diagnosis(
        verdict,
        layer,
        reason,
        warnings,
        inert,
        slope,
        norms,
        gains,
        gradients,
        bounds,
    )


def inert_normalizations(model, images):
    """Finds normalized layers whose normalization does nothing.

    Their outputs go straight into batch, instance, layer, group or RMS
    normalization, which cancels any factor of the kernel.

    Args:
        model: A built Keras model from images.
        images: As in `diagnose`; one or two suffice.

    Returns:
        A list of strings, the names of layers.
    """
    names = {
        id(kernel.layer): kernel.name
        for kernel in find_kernels(model)
        if kernel.normalizer is not None
        # Trained lengths differ from channel to channel.
        and kernel.normalizer.fixes_norm
        and getattr(kernel.holder, "activation", keras.activations.linear)
        in (None, keras.activations.linear)
    }
    _, calls = record(model, images)
    makers = {id(x): call for call in calls for x in call.outputs}
    inert = []
    for call in calls:
        if not _normalizes_activations(call.layer):
            continue
        maker = makers.get(id(call.inputs[0]))
        while maker is not None and isinstance(maker.layer, _TRANSPARENT):
            maker = makers.get(id(maker.inputs[0]))
        if maker is not None and id(maker.layer) in names:
            inert.append(names[id(maker.layer)])
    return inert


def _normalizes_activations(layer):
    return isinstance(layer, _NORMALIZATIONS) or (
        "InstanceNorm" in type(layer).__name__
    )


def _first_not_finite(model, images):
    """The name of the first layer that puts out NaN or infinity, or `None`."""
    names = {id(kernel.layer): kernel.name for kernel in find_kernels(model)}
    _, calls = record(model, images)
    for call in calls:
        if not all(_is_finite(x) for x in call.outputs):
            return names.get(id(call.layer), call.layer.name)
    return None


def _is_finite(x):
    return bool(ops.all(ops.isfinite(ops.convert_to_tensor(x))))


def _judge(norms, gains, slope, broken):
    """The verdict, the layer and the reason."""
    for row in norms:
        if not np.isfinite(row["sn"]):
            name = str(row["layer"])
            return "exploding", name, f"the kernel of {name} is not finite"
    if broken is not None:
        return "exploding", broken, f"the output of {broken} is not finite"
    growth = {str(row["layer"]): row["growth"] for row in gains}
    suspects = [_suspect(row, growth.get(row["layer"])) for row in norms]
    factor, layer, reason = max(suspects, key=lambda s: abs(math.log(s[0])))
    if factor > _BAND or factor < 1.0 / _BAND:
        return "exploding" if factor > 1.0 else "vanishing", layer, reason
    change = f"the score changes by {slope:.3g} from one image to another"
    # Also where it is not a number.
    if not slope <= _STEEP:
        layer = max(growth, key=growth.get)
        return "exploding", layer, f"{change}; {_growth(growth, layer)}"
    if slope < _FLAT:
        layer = min(growth, key=growth.get)
        return "vanishing", layer, f"{change}; {_growth(growth, layer)}"
    return "healthy", None, change


def _growth(growth, layer):
    return (
        f"{layer} amplifies signals {growth[layer]:.2g} times as much as with "
        "Kaiming's initializer"
    )


def _suspect(row, growth):
    """The factor by which a layer is off, its name, and the reason."""
    name = str(row["layer"])
    factor = row["norm_over_intended"]
    if not math.isnan(factor):
        reason = (
            f"the norm of {name} is {factor:.2f} times what its normalizer "
            "aims at"
        )
        return max(factor, 1e-30), name, reason
    kaiming = math.sqrt(row["variance_kaiming"])
    # Of ReLU's start by Xavier's rule.
    xavier = math.sqrt(row["variance_xavier"] / 2.0)
    signals = kaiming if growth is None else growth
    # Both sides have to say so: signals alone say little of a layer with one
    # output, and weights alone nothing of what they meet.
    large = min(signals, kaiming)
    small = max(signals, kaiming, xavier)
    factor = large if large > 1.0 else min(small, 1.0)
    reason = (
        f"{name} amplifies signals {signals:.2g} times as much as with "
        f"Kaiming's initializer ({kaiming:.2g} times by its weights)"
    )
    return max(factor, 1e-30), name, reason


def _distance(images):
    """The mean distance between one image and the next."""
    images = np.asarray(images, "float64").reshape(len(images), -1)
    return float(np.mean(np.linalg.norm(np.diff(images, axis=0), axis=1)))


def _part(images, count):
    return keras.tree.map_structure(lambda x: x[:count], images)
