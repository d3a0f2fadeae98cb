"""Gradients and optimizer steps, as each backend takes them."""

import contextlib

import keras
from keras import ops


class InheritingScope(keras.StatelessScope):
    """A `keras.StatelessScope` that knows the values of the one around it.

    Else a variable that it does not map itself would have the value that it
    has outside of both: on JAX none, in the midst of `fit`.
    """

    def __enter__(self):
        super().__enter__()
        if self.original_scope is not None:
            self.state_mapping = {
                **self.original_scope.state_mapping,
                **self.state_mapping,
            }
        return self


def value_and_gradients(function, values):
    """Evaluates a function and its gradients, which can be differentiated.

    Args:
        function: Callable from a list of tensors to a scalar, or to a tuple
            of a scalar and structures of tensors.
        values: List of float tensors, or of the values of variables.

    Returns:
        `(value, gradients)`: the function's result, and a list of tensors,
        zeros where the scalar does not depend on an entry.
    """
    backend = keras.config.backend()
    if backend == "jax":
        import jax

        def with_result(values):
            result = function(values)
            return _scalar(result), result

        gradients, result = jax.grad(with_result, has_aux=True)(values)
        return result, gradients
    if backend == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(values)
            result = function(values)
        return result, tape.gradient(
            _scalar(result), values, unconnected_gradients="zero"
        )
    import torch

    if not values:  # Nothing is trained.
        return function(values), []
    # Inside of `torch.no_grad()` nobody differentiates the gradients.
    create_graph = torch.is_grad_enabled()
    values = [v if v.requires_grad else v.requires_grad_() for v in values]
    with torch.enable_grad():
        result = function(values)
        scalar = _scalar(result)
        gradients = [None] * len(values)
        # PyTorch refuses what depends on no entry at all.
        if scalar.requires_grad:
            gradients = torch.autograd.grad(
                scalar, values, create_graph=create_graph, allow_unused=True
            )
    return result, [
        ops.zeros_like(v) if g is None else g for v, g in zip(values, gradients)
    ]


def _scalar(result):
    return result[0] if isinstance(result, tuple) else result


def without_gradients():
    """A context whose results are constants, where that saves memory."""
    if keras.config.backend() != "torch":
        # Nothing is recorded there outside of what is differentiated.
        return contextlib.nullcontext()
    import torch

    return torch.no_grad()


def input_gradients(function, inputs, state):
    """The gradients of a function by its inputs; it assigns nothing.

    Args:
        function: Callable from a list of tensors to a scalar.
        inputs: List of float tensors.
        state: List of all `keras.Variable` that it reads.

    Returns:
        A list of tensors, through which gradients flow to the variables.
    """
    mapping = [(variable, variable.value) for variable in state]

    def without_assignments(values):
        with InheritingScope(mapping):
            return function(values)

    return value_and_gradients(without_assignments, inputs)[1]


def hessian_product(function, values, directions):
    """The product of a function's Hessian and a vector.

    Args:
        function: Callable from a list of tensors to a scalar.
        values: List of float tensors.
        directions: List of tensors of the same shapes.

    Returns:
        A list of tensors of these shapes.
    """

    def along(values):
        _, gradients = value_and_gradients(function, values)
        return sum(ops.sum(g * d) for g, d in zip(gradients, directions))

    return value_and_gradients(along, values)[1]


def minimize(compute_loss, optimizer, variables, state):
    """Takes one step of an optimizer, also inside of a compiled step.

    Args:
        compute_loss: Callable without arguments, which returns a scalar and
            a structure of tensors.
        optimizer: A built Keras optimizer.
        variables: List of `keras.Variable`, which the optimizer updates.
        state: List of all variables that `compute_loss` reads or assigns,
            such as the norms of normalized layers. They keep the values that
            it assigns.

    Returns:
        The structure of tensors that `compute_loss` returned.
    """
    trained = {id(variable) for variable in variables}
    others = [variable for variable in state if id(variable) not in trained]

    def loss_of(values):
        mapping = [(variable, variable.value) for variable in others]
        mapping += zip(variables, values)
        with keras.StatelessScope(mapping, collect_losses=True) as scope:
            before = [scope.get_current_value(v) for v in others]
            loss, extra = compute_loss()
            # Optimizers add up the gradients of all replicas.
            loss = optimizer.scale_loss(loss / _num_replicas())
        after = [scope.get_current_value(v) for v in others]
        assigned = {
            index: new
            for index, (old, new) in enumerate(zip(before, after))
            if new is not old
        }
        return loss, extra, assigned

    values = [variable.value for variable in variables]
    (_, extra, assigned), gradients = value_and_gradients(loss_of, values)
    for index, value in assigned.items():
        others[index].assign(value)
    if keras.config.backend() != "jax":
        optimizer.apply(gradients, variables)
        return extra
    slots = optimizer.variables
    values, slot_values = optimizer.stateless_apply(
        [slot.value for slot in slots], gradients, values
    )
    for variable, value in zip([*variables, *slots], [*values, *slot_values]):
        variable.assign(value)
    return extra


def _num_replicas():
    if keras.config.backend() != "tensorflow":
        return 1
    import tensorflow as tf

    return tf.distribute.get_strategy().num_replicas_in_sync


def as_pure_function(step, groups):
    """Turns a step that assigns variables into a function of their values.

    `jax.jit` can compile only such a function.

    Args:
        step: Callable.
        groups: Lists of all `keras.Variable` that it reads or assigns.

    Returns:
        A callable from the values of each group, and the arguments of `step`,
        to the result of `step` and the new values.
    """

    def function(state, *args):
        mapping = [
            pair
            for variables, values in zip(groups, state)
            for pair in zip(variables, values)
        ]
        with keras.StatelessScope(mapping) as scope:
            result = step(*args)
        return result, tuple(
            [scope.get_current_value(v) for v in variables]
            for variables in groups
        )

    return function
