"""Measurements of a critic's signals and gradients, and a diagnosis."""

from keras_san.diagnostics.bounds import gradient_bounds
from keras_san.diagnostics.gradients import (
    hessian_norm,
    input_gradients,
    mean_score,
    weight_gradients,
)
from keras_san.diagnostics.kernels import layer_norms
from keras_san.diagnostics.signals import channel_sparsity, signal_gains
from keras_san.diagnostics.verdict import (
    Diagnosis,
    diagnose,
    inert_normalizations,
)

__all__ = [
    "Diagnosis",
    "channel_sparsity",
    "diagnose",
    "gradient_bounds",
    "hessian_norm",
    "inert_normalizations",
    "input_gradients",
    "layer_norms",
    "mean_score",
    "signal_gains",
    "weight_gradients",
]
