"""The kernels of a model."""

import dataclasses

import keras
from keras import ops

from keras_san import normalizers
from keras_san.geometry import (
    CONVOLUTIONS,
    Convolution,
    Matrix,
    geometry_of,
    kernels_of,
)
from keras_san.kernel_normalization import KernelNormalization
from keras_san.layers import SANWrapper, flatten_layers


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One kernel of one layer.

    Attributes:
        name: String, the layer's name. If the layer has several kernels, a
            slash and the kernel's name follow; if layers of several models
            share a name, `#2`, `#3` and so on.
        layer: The layer that is called, `holder` or a wrapper of it.
        holder: The layer that has the kernel as an attribute.
        variable: A `keras.Variable`, the raw kernel.
        geometry: A `Matrix` or `Convolution`.
        normalization: The `KernelNormalization` that divides or projects it,
            or `None`.
        keras_spectral: Boolean, whether `keras.layers.SpectralNormalization`
            overwrites it.
    """

    name: str
    layer: keras.layers.Layer
    holder: keras.layers.Layer
    variable: keras.Variable
    geometry: Matrix | Convolution
    normalization: KernelNormalization | None = None
    keras_spectral: bool = False

    @property
    def normalizer(self):
        """The `normalizers.Normalizer` of the kernel, or `None`."""
        if self.keras_spectral:
            return normalizers.Spectral()
        return self.normalization and self.normalization.normalizer

    @property
    def divided(self):
        """`True` if the layer divides the kernel when it runs."""
        return self.normalization is not None and self.normalization.divides

    def effective(self):
        """The kernel that inference uses, a tensor without gradient."""
        kernel = self.variable
        if self.divided:
            kernel = self.normalization(training=False)
        return ops.stop_gradient(ops.convert_to_tensor(kernel))

    def intended_norm(self):
        """The norm that the normalization aims at, a float."""
        gain = self.normalization.gain() if self.normalization else 1.0
        return self.normalizer.scale / float(gain)


def find_kernels(model):
    """Finds the kernels of a model, in the order of its weights.

    Args:
        model: A built Keras model.

    Returns:
        A list of `Kernel`: all kernels of layers, normalized or not, and the
        embeddings that are normalized.
    """
    layers = flatten_layers(model)
    wrappers = {
        id(layer.layer): layer
        for layer in layers
        if isinstance(layer, (SANWrapper, keras.layers.SpectralNormalization))
    }
    outer = {id(wrapper) for wrapper in wrappers.values()}
    found = []
    for holder in layers:
        # Keras' wrapper has the kernel as an attribute, too.
        if id(holder) in outer:
            continue
        layer = wrappers.get(id(holder), holder)
        spectral = isinstance(layer, keras.layers.SpectralNormalization)
        normalizations = {
            id(normalization.get_kernel()): normalization
            for normalization in getattr(layer, "normalizations", [])
        }
        for attribute, variable in kernels_of(holder).items():
            normalization = normalizations.get(id(variable))
            normalized = spectral or normalization is not None
            if attribute == "embeddings" and not normalized:
                continue
            found.append(
                Kernel(
                    layer.name,
                    # Keras' wrapper calls what it wraps as a layer.
                    holder if spectral else layer,
                    holder,
                    variable,
                    normalization.geometry
                    if normalization
                    else _geometry(layer, holder, attribute),
                    normalization,
                    spectral,
                )
            )
    place = {id(weight): i for i, weight in enumerate(model.weights)}
    found.sort(key=lambda kernel: place[id(kernel.variable)])
    owners = [id(kernel.layer) for kernel in found]
    seen = {}
    named = []
    for kernel in found:
        name = kernel.name
        if owners.count(id(kernel.layer)) > 1:
            name = f"{name}/{kernel.variable.name}"
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1:
            name = f"{name}#{seen[name]}"
        named.append(dataclasses.replace(kernel, name=name))
    return named


def _geometry(layer, holder, attribute):
    config = layer.get_build_config() or {}
    shape = config.get("input_shape")
    rank = len(getattr(holder, attribute).shape)
    if shape is None and isinstance(holder, CONVOLUTIONS):
        # Images of a size that the layer does not tell.
        shape = (None,) * (len(holder.kernel_size) + 2)
    circular = getattr(layer, "circular", False)
    return geometry_of(holder, attribute, rank, shape, circular)
