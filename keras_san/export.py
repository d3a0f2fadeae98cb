"""Conversion of trained layers to plain Keras layers."""

import keras
from keras import ops

from keras_san.layers import (
    SANConv2D,
    SANDense,
    SANWrapper,
    flatten_layers,
)
from keras_san.padding import call_circular


def strip(model):
    """Converts a model to plain Keras layers that compute the same.

    Kernels are divided by their norms once and for all. A circular layer
    becomes a small `keras.Model` of its own, which pads and convolves; if it
    does not know the size of its images, it cannot check that they are at
    least as large as the padding.

    Args:
        model: A built `Sequential` or functional `keras.Model`, or a single
            built layer of `keras_san`. It is left as it is.

    Returns:
        A model (or layer) with equal outputs in inference, that can be saved
        and loaded where `keras_san` is not installed.

    Raises:
        ValueError: if the model is not built, is a subclass with a `call` of
            its own, or holds `keras_san` layers inside of custom layers.
    """
    if not model.built:
        raise ValueError(
            "Only a built model has kernels to divide. Call it on data "
            f"first. Received: model={model} (not built)"
        )
    if isinstance(model, (SANConv2D, SANDense, SANWrapper)):
        return _strip_layer(model)
    stripped = keras.models.clone_model(
        model, clone_function=_strip_layer, recursive=True
    )
    for layer in flatten_layers(stripped):
        if type(layer).__module__.split(".")[0] == __package__:
            raise ValueError(
                "Layers of keras_san inside of custom layers cannot be "
                "replaced. Build the model from plain and keras_san layers. "
                f"Received: model={model.name} with layer {layer.name} (of "
                f"type {type(layer).__name__}) inside of a custom layer"
            )
    return stripped


def _strip_layer(layer):
    if not isinstance(layer, keras.layers.Layer):
        return type(layer).from_config(layer.get_config())  # An operation.
    build_config = layer.get_build_config()
    if not isinstance(layer, (SANConv2D, SANDense, SANWrapper)):
        copy = type(layer).from_config(layer.get_config())
        if layer.built and build_config:
            copy.build_from_config(build_config)
        copy.set_weights(layer.get_weights())
        return copy
    plain = _plain_layer(layer)
    input_shape = build_config["input_shape"]
    if not layer.circular:
        plain.build(input_shape)
        _copy_weights(layer, plain)
        return plain
    inputs = keras.Input(input_shape[1:], dtype=layer.compute_dtype)
    outputs = call_circular(plain, plain, inputs)
    _copy_weights(layer, plain)
    return keras.Model(inputs, outputs, name=layer.name)


def _plain_layer(layer):
    if isinstance(layer, SANWrapper):
        config = {**layer.layer.get_config(), "name": layer.name}
        return type(layer.layer).from_config(config)
    config = layer.get_config()
    del config["normalizer"]
    if isinstance(layer, SANDense):
        return keras.layers.Dense.from_config(config)
    if layer.circular:
        config["padding"] = "valid"
    return keras.layers.Conv2D.from_config(config)


def _copy_weights(layer, plain):
    source = layer.layer if isinstance(layer, SANWrapper) else layer
    divided = {
        id(normalization.get_kernel()): normalization(training=False)
        for normalization in layer.normalizations
        if normalization.divides
    }
    state = {
        id(weight)
        for normalization in layer.normalizations
        for weight in normalization.weights
    }
    weights = [w for w in source.weights if id(w) not in state]
    for weight, target in zip(weights, plain.weights):
        value = divided.get(id(weight), weight)
        # A copy: JAX would share, and then donate, one buffer.
        target.assign(ops.convert_to_numpy(ops.convert_to_tensor(value)))
