"""Upper bounds on gradients, from norms alone."""

import math

import keras
import numpy as np
from keras import ops

from keras_san.critic_output import of_scales
from keras_san.diagnostics.kernels import layer_norms
from keras_san.diagnostics.recording import record
from keras_san.geometry import LINEAR
from keras_san.kernels import find_kernels

# The steepest slope of each activation.
_SLOPES = {
    keras.activations.linear: 1.0,
    keras.activations.relu: 1.0,
    keras.activations.leaky_relu: 1.0,
    keras.activations.elu: 1.0,
    keras.activations.softplus: 1.0,
    keras.activations.tanh: 1.0,
    keras.activations.sigmoid: 0.25,
}

# Layers and operations, by name, that only move or leave out numbers.
_NEUTRAL = {
    "Concatenate",
    "Cropping2D",
    "Dropout",
    "Flatten",
    "GetItem",
    "Identity",
    "Permute",
    "ReLU",
    "Reshape",
    "SpatialDropout2D",
    "Squeeze",
    "ZeroPadding2D",
}

GRADIENT_BOUNDS = np.dtype([("layer", "U80"), ("bound", float)])


def gradient_bounds(model, images, norms=None):
    """Bounds the gradient of the mean logit for each kernel from above.

    The gradient with respect to the kernel that a layer runs with is at most
    the norm of the layer's input (averaged over the images) times the operator
    norms of all layers on a path to the logits, summed over the paths. For a
    convolution there is one more factor, the square root of the number of
    output positions that read a pixel, since they share the kernel.

    Args:
        model: A built Keras model from images to what `mean_score` takes.
        images: Array `(n, height, width, channels)`, or a list of arrays if
            the model has several inputs.
        norms: The result of `layer_norms(model)`, with operator norms.

    Returns:
        A NumPy array of records, one per kernel in the order of the weights:
        `layer`, a string, and `bound`, NaN if something on a path is unknown
        (a layer of another kind, an image of unknown size, several kernels in
        one layer).

    Reference:
        [Lin, Sekar and Fanti, 2021](https://arxiv.org/abs/2009.02773), who
        bound gradients by such a product for a chain of layers without bias,
        with the norm of the image in place of that of the layer's input.
    """
    norms = layer_norms(model) if norms is None else norms
    operator = {row["layer"]: row["operator"] for row in norms}
    kernels = {}
    for kernel in find_kernels(model):
        kernels.setdefault(id(kernel.layer), []).append(kernel)
    outputs, calls = record(model, images)
    scales = of_scales(outputs).logits
    # Of the mean over the logits of one image.
    behind = {
        id(x): 1.0 / len(scales) / math.sqrt(math.prod(x.shape[1:]))
        for x in scales
    }
    bounds = {}
    for call in reversed(calls):
        found = [behind[id(x)] for x in call.outputs if id(x) in behind]
        if not found:
            continue
        own = kernels.get(id(call.layer), [])
        slope = (
            _slope(getattr(own[0].holder, "activation", None)) if own else 1.0
        )
        known = all(isinstance(kernel.holder, LINEAR) for kernel in own)
        if len(own) == 1 and known:
            bounds.setdefault(own[0].name, 0.0)
            bounds[own[0].name] += (
                found[0]
                * slope
                * math.sqrt(own[0].geometry.sharing(own[0].variable.shape))
                * _mean_norm(call.inputs[0])
            )
        for x in call.inputs:
            if own and known:
                factor = slope * math.prod(operator[k.name] for k in own)
            else:
                factor = math.nan if own else _factor(call, x)
            behind[id(x)] = behind.get(id(x), 0.0) + found[0] * factor
    return np.array(
        [(name, bounds.get(name, math.nan)) for name in operator],
        GRADIENT_BOUNDS,
    )


def _factor(call, x):
    """The largest amplification of a change of `x`, without a kernel."""
    layer = call.layer
    name = type(layer).__name__
    if name in _NEUTRAL:
        return 1.0
    if name in ("Add", "Subtract"):
        # More than one where one number is added to several.
        return math.sqrt(math.prod(call.outputs[0].shape) / math.prod(x.shape))
    if isinstance(layer, keras.layers.LeakyReLU):
        return max(1.0, abs(float(layer.negative_slope)))
    if isinstance(layer, keras.layers.Activation):
        return _slope(layer.activation)
    if "Pooling2D" in name and not name.startswith("Global"):
        shared = math.prod(
            math.ceil(p / s) for p, s in zip(layer.pool_size, layer.strides)
        )
        size = math.prod(layer.pool_size)
        # Beside a border an average may be of a single pixel.
        if name.startswith("Max") or _is_padded(layer, x):
            size = 1
        return math.sqrt(shared / size)
    if name in ("Sum", "Mean", "GlobalAveragePooling2D"):
        reduced = math.prod(x.shape) / math.prod(call.outputs[0].shape)
        return math.sqrt(reduced) if name == "Sum" else 1 / math.sqrt(reduced)
    if isinstance(layer, keras.layers.BatchNormalization):
        scale = 1.0 if layer.gamma is None else ops.abs(layer.gamma.value)
        deviation = ops.sqrt(layer.moving_variance.value + layer.epsilon)
        return float(ops.stop_gradient(ops.max(scale / deviation)))
    return math.nan


def _is_padded(pooling, x):
    first = pooling.data_format == "channels_first"
    extents = x.shape[2:] if first else x.shape[1:-1]
    fits = pooling.pool_size == pooling.strides and not any(
        extent % size for extent, size in zip(extents, pooling.pool_size)
    )
    return pooling.padding == "same" and not fits


def _slope(activation):
    if activation is None:
        return 1.0
    if isinstance(activation, keras.layers.LeakyReLU):
        return max(1.0, abs(float(activation.negative_slope)))
    if isinstance(activation, keras.layers.ReLU):
        return 1.0
    return _SLOPES.get(activation, math.nan)


def _mean_norm(x):
    x = np.asarray(ops.convert_to_numpy(ops.cast(x, "float32")), "float64")
    return float(np.mean(np.linalg.norm(x.reshape(len(x), -1), axis=1)))
