"""What several tests need: backends, and norms in plain NumPy."""

import hypothesis
import keras
import numpy as np
import pytest
from keras import ops

BACKEND = keras.config.backend()

# What torch hands to NumPy 2 in `convert_to_numpy`.
ignore_torch_copies = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept:DeprecationWarning"
)


def property_test(**examples):
    """A hypothesis test of so many examples, by backend; the same each time.

    JAX compiles every operation anew for each new shape, and so gets few.
    """
    return hypothesis.settings(
        max_examples=examples[BACKEND],
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


def to_numpy(x):
    return np.asarray(ops.convert_to_numpy(ops.convert_to_tensor(x)), "float64")


def kernel_gradient(layer, kernel, inputs, cotangent):
    """The gradient of `sum(layer(inputs) * cotangent)` in a training call."""

    def objective():
        outputs = layer(inputs, training=True)
        outputs = ops.cast(outputs, "float32")
        return ops.sum(outputs * ops.convert_to_tensor(cotangent, "float32"))

    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            value = objective()
        gradient = tape.gradient(value, kernel.value)
    elif BACKEND == "jax":
        import jax

        def stateless(value):
            mapping = [(v, v.value) for v in layer.variables]
            mapping.append((kernel, value))
            with keras.StatelessScope(mapping):
                return objective()

        gradient = jax.grad(stateless)(kernel.value)
    else:
        kernel.value.grad = None
        objective().backward()
        gradient = kernel.value.grad
    return to_numpy(gradient)


def circular_transform(kernel, grid, dilation_rate):
    """DFT of all filters, wrapped around: `(*grid, in, out)`, complex."""
    rank = len(grid)
    image = np.zeros((*grid, *kernel.shape[rank:]))
    for tap in np.ndindex(*kernel.shape[:rank]):
        place = tuple((t * d) % n for t, d, n in zip(tap, dilation_rate, grid))
        image[place] += kernel[tap]
    return np.fft.fftn(image, axes=tuple(range(rank))) if rank else image


def sparsity_aware(kernel, grid, dilation_rate):
    return np.abs(circular_transform(kernel, grid, dilation_rate)).max()


def matrix_norm(kernel):
    return np.linalg.norm(kernel.reshape(-1, kernel.shape[-1]), 2)


def operator_norm(kernel, grid, strides, dilation_rate, groups=1):
    """Norm of the strided circular convolution, by its dense matrix."""
    rank = len(grid)
    fan_in, out = kernel.shape[-2:]
    channels = fan_in * groups
    outputs = [n // s for n, s in zip(grid, strides)]
    matrix = np.zeros((*outputs, out, *grid, channels))
    blocks = [
        (
            slice(g * out // groups, (g + 1) * out // groups),
            slice(g * fan_in, (g + 1) * fan_in),
        )
        for g in range(groups)
    ]
    for position in np.ndindex(*outputs):
        for tap in np.ndindex(*kernel.shape[:rank]):
            source = tuple(
                (p * s + t * d) % n
                for p, s, t, d, n in zip(
                    position, strides, tap, dilation_rate, grid
                )
            )
            for rows, columns in blocks:
                index = (*position, rows, *source, columns)
                matrix[index] += kernel[tap][:, rows].T
    size = int(np.prod(outputs)) * out
    return np.linalg.norm(matrix.reshape(size, -1), 2)
