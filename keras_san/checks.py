"""Checks of arguments, some of which only a compiled step can make."""

import importlib
import math
import numbers

import keras
import numpy as np
from keras import ops


def require(condition, message, *values):
    """Raises a `ValueError` unless `condition` holds.

    Where the condition is a tensor of a TensorFlow graph, running the graph
    raises an `InvalidArgumentError` of the same words instead. Inside of
    `jax.jit`, and inside of what XLA compiles, nothing can be raised.

    Args:
        condition: Bool, or scalar bool tensor.
        message: String.
        *values: Scalars or strings that complete the message.

    Returns:
        `None`, or what the graph must run before it relies on the condition,
        see `after`.
    """
    backend = keras.config.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        if tf.is_symbolic_tensor(condition):
            return tf.debugging.Assert(condition, [message, *values])
    if backend == "jax":
        import jax

        if isinstance(condition, jax.core.Tracer):
            return None
    if not bool(condition):
        words = (x if isinstance(x, str) else f"{float(x):g}" for x in values)
        raise ValueError(" ".join([message, *words]))
    return None


def after(requirement, tensor):
    """A tensor that is there once a requirement was found to hold.

    Args:
        requirement: What `require` returned.
        tensor: Tensor, or `None`.
    """
    if requirement is None or tensor is None:
        return tensor
    import tensorflow as tf

    with tf.control_dependencies([requirement]):
        return tf.identity(tensor)


def require_range(values, low, high, message):
    """Raises a `ValueError`, as `require`, if values are out of a range.

    Args:
        values: Array or tensor.
        low: The lowest value allowed.
        high: The highest.
        message: String, to which the range that was found is added.

    Returns:
        What `require` returns.
    """
    numpy = isinstance(values, np.ndarray)
    if numpy and not values.size:
        return None
    lowest, highest = (
        getattr(np if numpy else ops, name)(values) for name in ("min", "max")
    )
    within = ops.logical_and if not numpy else np.logical_and
    return require(
        within(lowest >= low, highest <= high),
        f"{message} Received: values from",
        *(lowest, "to", highest),
    )


def check_keras_3(layer):
    """Raises a `ValueError` for a layer or model of Keras 2."""
    if any(c.__module__.split(".")[0] == "tf_keras" for c in type(layer).mro()):
        raise ValueError(
            "keras_san takes layers and models of Keras 3, as `import keras` "
            "has them, and not those of tf_keras, as `tf.keras` has them if "
            "TF_USE_LEGACY_KERAS is set. "
            f"Received: {layer} (of type {type(layer).__module__}."
            f"{type(layer).__name__})"
        )


def deserialized(identifier):
    """An object of its serialized form, `None` if that is not of one."""
    if not isinstance(identifier, dict):
        return identifier
    try:
        return keras.saving.deserialize_keras_object(identifier)
    except (TypeError, ValueError, KeyError):
        # What Keras raises for a class unknown to it, and others.
        return None


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
    """Raises an `ImportError` unless a package is installed.

    A callback that found out only when it writes would cost the first epoch.
    """
    try:
        importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            "The callback needs a package that is not installed: "
            f"pip install {package or module}"
        ) from error
