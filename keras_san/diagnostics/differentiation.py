"""Gradients of functions of tensors, on any backend."""

import keras
from keras import ops


def value_and_gradients(function, values):
    """A function's value and its gradients, through which others can flow.

    Args:
        function: Callable from a list of tensors to a scalar.
        values: List of float tensors.

    Returns:
        `(value, gradients)`: a scalar, and a list of tensors, zeros where the
        value does not depend on an entry.
    """
    backend = keras.config.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(values)
            value = function(values)
        return value, tape.gradient(value, values, unconnected_gradients="zero")
    if backend == "jax":
        import jax

        return jax.value_and_grad(function)(values)
    import torch

    values = [v if v.requires_grad else v.requires_grad_() for v in values]
    with torch.enable_grad():
        value = function(values)
        gradients = [None] * len(values)
        # PyTorch refuses what depends on no entry at all.
        if value.requires_grad:
            gradients = torch.autograd.grad(
                value, values, create_graph=True, allow_unused=True
            )
    return value, [
        ops.zeros_like(v) if g is None else g for v, g in zip(values, gradients)
    ]


def hessian_product(function, values, directions):
    """The product of a function's Hessian and a vector.

    Args:
        function: As of `value_and_gradients`.
        values: List of float tensors.
        directions: List of tensors of the same shapes.

    Returns:
        A list of tensors of these shapes.
    """

    def along(values):
        _, gradients = value_and_gradients(function, values)
        return sum(ops.sum(g * d) for g, d in zip(gradients, directions))

    return value_and_gradients(along, values)[1]
