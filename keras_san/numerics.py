"""What keeps float32 numbers in range, and bad ones visible."""

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
    """The tensor that `x` is, in float32."""
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
