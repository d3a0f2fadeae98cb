"""The norms of a critic's kernels, as used in inference."""

import contextlib
import math

import keras
import numpy as np
from keras import ops

from keras_san import normalizers, norms
from keras_san.geometry import Matrix
from keras_san.kernels import find_kernels
from keras_san.layers import flatten_layers


def check_not_quantized(model):
    """Raises a `ValueError` for a model with a quantized layer.

    Its kernel is of whole numbers, and its `call` is not what runs.
    """
    for layer in flatten_layers(model):
        if layer.quantization_mode is not None:
            raise ValueError(
                "A quantized layer cannot be measured: diagnose the model "
                f"before it is quantized. Received: layer {layer.name} with "
                f"dtype policy '{layer.dtype_policy.name}'"
            )


@contextlib.contextmanager
def running_with(kernels, values):
    """A context in which layers run with other kernels, taken as they are.

    Args:
        kernels: List of `Kernel`.
        values: Tensors in place of their `effective()`, one for each.
    """
    mapping = []
    for kernel, value in zip(kernels, values):
        mapping.append((kernel.variable, value))
        if kernel.divided:
            # So that what divides it divides by one.
            mapping.append(kernel.normalization.neutral(value))
    with keras.StatelessScope(mapping):
        yield


LAYER_NORMS = np.dtype(
    [
        ("layer", "U80"),
        ("shape", "U40"),
        ("normalizer", "U24"),
        ("san", float),
        ("sn", float),
        ("sn_transposed", float),
        ("bsn", float),
        ("operator", float),
        ("operator_over_sn", float),
        ("operator_over_sn_limit", float),
        ("operator_over_san", float),
        ("operator_over_san_limit", float),
        ("norm_over_intended", float),
        ("variance_lecun", float),
        ("variance_xavier", float),
        ("variance_kaiming", float),
    ]
)


def layer_norms(model, operator=True, slope=0.0):
    """Measures the norms of all kernels of a critic, as used in inference.

    Args:
        model: A built Keras model, with or without normalized layers.
        operator: Boolean, whether to compute the exact operator norms, which
            takes long for wide layers on large images.
        slope: Float, the slope of the activations on negative numbers (0 for
            ReLU), for Kaiming's variance.

    Returns:
        A NumPy array of records, one per kernel in the order of the weights:

        - `layer`, `shape`, `normalizer`: strings;
        - `san`: Lemma 1; `sn`: the top singular value of the `(fan_in,
          outputs)` matrix, `sn_transposed`: that of the `(fan_out, inputs)`
          matrix, `bsn`: their mean, all converged; `operator`: the exact
          operator norm with the stride (an upper bound, if the padding is
          not circular), NaN if the size of the image is unknown or, with
          circular padding, no multiple of the stride. For a dense layer all
          of them are its top singular value.
        - `operator_over_sn`, which is at least 1 (unless channels are
          grouped, or a transposed convolution has a stride) and at most
          `operator_over_sn_limit`, the square root of the number of output
          positions that read a pixel; `operator_over_san`, which is at most
          `operator_over_san_limit`, the square root of the number of filters
          (and at least 1, unless a stride thins out the output).
        - `norm_over_intended`: the norm of the kernel, as its own normalizer
          defines it, over the norm that the normalizer aims at. It differs
          from 1 by the error of the power iteration, if the kernel has changed
          since its norm was measured, and by chance if only a share of the
          filters is measured. NaN without a normalizer, and for weight
          normalization, which aims at none.
        - `variance_lecun`, `variance_xavier`, `variance_kaiming`: the mean
          square of the weights over the variance of those initializers, which
          is `1 / fan_in`, `2 / (fan_in + fan_out)` and
          `2 / ((1 + slope**2) * fan_in)`.

    Raises:
        ValueError: if the model has no kernel, or a quantized one.

    Reference:
        [Kligvasser and Michaeli, 2021](https://arxiv.org/abs/2103.02458),
        Lemma 1; [Miyato et al., 2018](https://arxiv.org/abs/1802.05957);
        [Lin, Sekar and Fanti, 2021](https://arxiv.org/abs/2009.02773).
    """
    check_not_quantized(model)
    kernels = find_kernels(model)
    if not kernels:
        raise ValueError(
            "There is nothing to measure: the model has no convolution or "
            "dense layer that is built. Call it on data first, or pass "
            f"another one. Received: model={model}"
        )
    rows = []
    for kernel in kernels:
        weights, geometry = kernel.effective(), kernel.geometry
        found = _norms(weights, geometry, operator)
        shape = kernel.variable.shape
        fan_in, fan_out = geometry.fans(shape)
        square = float(ops.mean(ops.square(ops.cast(weights, "float32"))))
        rows.append(
            (
                kernel.name,
                " x ".join(map(str, shape)),
                type(kernel.normalizer).__name__ if kernel.normalizer else "",
                found["san"],
                found["sn"],
                found["sn_transposed"],
                found["bsn"],
                found["operator"],
                _over(found["operator"], found["sn"]),
                math.sqrt(_readers(kernel)),
                _over(found["operator"], found["san"]),
                math.sqrt(geometry.num_filters(shape)),
                _norm_over_intended(kernel, weights, found),
                square * fan_in,
                square * (fan_in + fan_out) / 2.0,
                square * fan_in * (1.0 + slope**2) / 2.0,
            )
        )
    return np.array(rows, LAYER_NORMS)


# The field of `LAYER_NORMS` that holds a normalizer's own norm.
_OWN = {
    normalizers.SparsityAware: "san",
    normalizers.Spectral: "sn",
    normalizers.BidirectionalSpectral: "bsn",
    normalizers.ConvSpectral: "operator",
}


def _norms(weights, geometry, operator):
    """All norms of a kernel, as floats."""
    names = tuple(_OWN.values())
    if isinstance(geometry, Matrix):
        sn = float(norms.top_singular_value(geometry.matrices(weights)))
        return dict.fromkeys((*names, "sn_transposed"), sn)
    tops = [
        float(norms.top_singular_value(matrices))
        for matrices in normalizers.BidirectionalSpectral().matrices(
            weights, geometry
        )
    ]
    found = {
        "san": float(normalizers.SparsityAware().norm(weights, geometry)),
        "bsn": sum(tops) / 2.0,
        "operator": math.nan,
    }
    # Inputs and outputs of a transposed one change places.
    if geometry.transposed:
        tops.reverse()
    found["sn"], found["sn_transposed"] = tops
    extents = geometry.strided_shape()
    if operator and extents is not None:
        if not any(e % s for e, s in zip(extents, geometry.strides)):
            norm = normalizers.ConvSpectral().norm(weights, geometry)
            found["operator"] = float(norm)
    return found


def _readers(kernel):
    """The number of output positions that read a pixel of the input."""
    if getattr(kernel.geometry, "transposed", False):
        return math.prod(kernel.variable.shape[:-2])
    return kernel.geometry.sharing(kernel.variable.shape)


def _norm_over_intended(kernel, weights, found):
    if kernel.normalizer is None or not kernel.normalizer.fixes_norm:
        return math.nan
    rule, geometry = (
        kernel.normalizer.for_kernel(kernel.geometry),
        kernel.geometry,
    )
    norm = found.get(_OWN.get(type(kernel.normalizer)), math.nan)
    if math.isnan(norm) or getattr(rule, "sparsity", 1) > 1:
        norm = float(rule.norm(weights, geometry))
    # This norm is of all filters, also where a share of them is measured.
    share = norms.subset_gain(
        geometry.num_filters(kernel.variable.shape), getattr(rule, "ratio", 1.0)
    )
    return norm / (kernel.intended_norm() * share)


def _over(a, b):
    return a / b if b else math.nan
