"""Conditions on arguments, some known only when a compiled step runs."""

import importlib
import math
import numbers

import keras


def require(condition, message):
    """Raises a `ValueError` with `message` unless `condition` holds.

    Where the condition is a tensor of a TensorFlow graph, running the graph
    raises an `InvalidArgumentError` with that message instead. Inside of
    `jax.jit`, and inside of what XLA compiles, nothing can be raised.

    Args:
        condition: Bool, or scalar bool tensor.
        message: String.
    """
    backend = keras.config.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        if tf.is_symbolic_tensor(condition):
            tf.debugging.Assert(condition, [message])
            return
    if backend == "jax":
        import jax

        if isinstance(condition, jax.core.Tracer):
            return
    if not bool(condition):
        raise ValueError(message)


def check_positive(name, value, alternative=""):
    """Raises a `ValueError` unless `value` is a positive finite number."""
    if not (isinstance(value, numbers.Real) and 0.0 < value < math.inf):
        raise ValueError(
            f"`{name}` must be a positive number{alternative}. "
            f"Received: {name}={value!r}"
        )


def check_count(name, value, least=1):
    """Raises a `ValueError` unless `value` is an int of at least `least`."""
    if not isinstance(value, numbers.Integral) or value < least:
        raise ValueError(
            f"`{name}` must be an int >= {least}. Received: {name}={value!r}"
        )


def check_package(module, package=None):
    """Raises now what would else end the first epoch, before it is saved."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"The callback needs a package: pip install {package or module}"
        ) from error
