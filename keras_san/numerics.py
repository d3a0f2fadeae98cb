"""Arithmetic that keeps float32 in range, and bad numbers visible."""

import keras
from keras import ops

# Nearly the smallest normal number: a zero divided by it stays zero.
TINY = 1e-37


def largest(values):
    """The maximum, or NaN if not all values are finite.

    Compiled by XLA, a plain maximum passes over NaN.
    """
    return ops.where(
        ops.all(ops.isfinite(values)), ops.max(values), float("nan")
    )


def float32(x):
    """Converts `x` to a float32 tensor."""
    return ops.cast(ops.convert_to_tensor(x), "float32")


def unit_scale(x):
    """Divides by the largest entry, so that squares stay in float32's range.

    Returns:
        `(x / scale, scale)`, where `scale` is a scalar, NaN if not all
        entries are finite.
    """
    x = float32(x)
    scale = ops.maximum(largest(ops.abs(x)), TINY)
    return x / scale, scale


def matmul(a, b):
    """The product of float32 matrices, in float32 on accelerators, too.

    By default JAX rounds the factors to bfloat16 (8 significant bits) on TPUs
    and to TensorFloat-32 (11 bits) on GPUs. TensorFlow does the latter, too,
    but has a switch only for the whole process:
    `tf.config.experimental.enable_tensor_float_32_execution`.
    """
    if keras.backend.backend() == "jax":
        import jax

        return jax.numpy.matmul(a, b, precision="highest")
    return ops.matmul(a, b)
