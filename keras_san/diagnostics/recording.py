"""The inputs and outputs of each layer of a model, on real data."""

import contextlib
import dataclasses

import keras
from keras import ops

from keras_san.diagnostics.kernels import check_not_quantized
from keras_san.kernel_normalization import KernelNormalization
from keras_san.kernels import find_kernels
from keras_san.layers import SANWrapper, flatten_layers


@dataclasses.dataclass(frozen=True)
class Call:
    """One call of one layer.

    Attributes:
        layer: A layer without layers of its own, the `layer` of a
            `kernels.Kernel`, or an operation of a functional model.
        inputs: List of tensors.
        outputs: List of tensors.
    """

    layer: keras.Operation
    inputs: list
    outputs: list


def record(model, inputs):
    """Runs a model in inference, uncompiled, and records all calls.

    Args:
        model: A built Keras model of any kind.
        inputs: The inputs of the model, as arrays.

    Returns:
        `(outputs, calls)`: the outputs of the model, and a list of `Call` in
        the order in which they were run, without those that did nothing.
    """
    check_not_quantized(model)
    calls = []

    def recording(layer, call):
        def recorded(*args, **kwargs):
            outputs = call(*args, **kwargs)
            tensors = [
                [x for x in keras.tree.flatten(part) if keras.ops.is_tensor(x)]
                for part in ((args, kwargs), outputs)
            ]
            # Not if it passes on a tensor as it is: the identity of a tensor
            # tells which call made it.
            if not _holds(*tensors):
                calls.append(Call(layer, *tensors))
            return outputs

        return recorded

    with contextlib.ExitStack() as stack:
        for layer in _recorded(model):
            # In the dictionary: Keras tracks what is set as an attribute.
            layer.__dict__["call"] = recording(layer, layer.call)
            stack.callback(layer.__dict__.pop, "call")
        inputs = keras.tree.map_structure(ops.convert_to_tensor, inputs)
        outputs = model(inputs, training=False)
    return outputs, calls


def _holds(inputs, outputs):
    """`True` if all outputs are among the inputs."""
    held = {id(x) for x in inputs}
    return all(id(x) in held for x in outputs)


def _recorded(model):
    """Layers without sublayers, layers with kernels, and operations."""
    layers = flatten_layers(model)
    inside = {id(x.layer) for x in layers if isinstance(x, SANWrapper)}
    kernels = {id(kernel.layer) for kernel in find_kernels(model)}
    found = {}
    for layer in layers:
        inner = [
            x
            for x in layer._flatten_layers(include_self=False, recursive=False)
            if not isinstance(x, KernelNormalization)
        ]
        if not inner or id(layer) in kernels:
            found[id(layer)] = layer
        # The operations of functional models need not be layers.
        for operation in getattr(layer, "operations", []):
            if not isinstance(operation, keras.layers.Layer):
                found[id(operation)] = operation
    unseen = (KernelNormalization, keras.layers.InputLayer)
    return [
        layer
        for key, layer in found.items()
        if key not in inside and not isinstance(layer, unseen)
    ]
