"""Helpers of several tests: backends, and norms in plain NumPy."""

import os
import runpy
import sys
import threading
import warnings

import hypothesis
import keras
import numpy as np
import pytest
from keras import ops
from PIL import Image

from keras_san.differentiation import value_and_gradients

BACKEND = keras.config.backend()

# What torch hands to NumPy 2 in `convert_to_numpy`.
ignore_torch_copies = pytest.mark.filterwarnings(
    "ignore:__array__ implementation doesn't accept:DeprecationWarning"
)


def property_test(**examples):
    """A hypothesis test of the same examples each time, as many per backend.

    JAX compiles every operation anew for each new shape, and so gets few.
    """
    return hypothesis.settings(
        max_examples=examples[BACKEND],
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(hypothesis.HealthCheck),
    )


def quickly(patch, export=False):
    """Makes trainings of a few steps fast.

    On TensorFlow it takes longer to trace a step than to run it a few times,
    and longer still to export a network.

    Args:
        patch: A `pytest.MonkeyPatch`.
        export: Boolean, whether networks are to be exported all the same.
    """
    # Where Keras' own is: it warns of models that override it.
    owner = next(c for c in keras.Model.__mro__ if "compile" in vars(c))
    compile = owner.compile

    def compile_eagerly(self, *args, **kwargs):
        if BACKEND == "tensorflow":
            kwargs["run_eagerly"] = True
        compile(self, *args, **kwargs)

    patch.setattr(owner, "compile", compile_eagerly)
    if not export:
        patch.setattr(keras.Model, "export", lambda self, path, **kwargs: None)


def assert_exported(path, inputs, expected):
    """Asserts that a SavedModel makes an image, and needs TensorFlow only.

    Args:
        path: Its folder.
        inputs: List of arrays, without a dimension for the batch.
        expected: Array, the image in [0, 255].
    """
    if BACKEND != "tensorflow":
        pytest.skip("each backend exports in its own way; run on tensorflow")
    import tensorflow as tf

    network = tf.saved_model.load(str(path))
    inputs = [np.float32([x]) for x in inputs]
    made = network.serve(inputs if len(inputs) > 1 else inputs[0])
    np.testing.assert_allclose((made[0] + 1.0) * 127.5, expected, atol=0.01)
    graph = network.signatures["serving_default"].graph.as_graph_def()
    nodes = [graph.node, *(f.node_def for f in graph.library.function)]
    used = {node.op for part in nodes for node in part}
    # Nothing that would call Python.
    assert used and not [name for name in used if "PyFunc" in name]


def run_module(patch, module, arguments):
    """Runs `python -m module`, but in this process.

    Args:
        patch: A `pytest.MonkeyPatch`.
        module: String.
        arguments: List of strings.

    Returns:
        The exit status as Python has it: an int, or a message.
    """
    patch.setattr(sys, "argv", [module, *map(str, arguments)])
    with warnings.catch_warnings():
        # That the module is there already is what makes this quick.
        warnings.simplefilter("ignore", RuntimeWarning)
        try:
            runpy.run_module(module, run_name="__main__")
        except SystemExit as error:
            return error.code or 0
    return 0


def run_children_here(patch):
    """Makes tools train in this process, one after the other.

    Args:
        patch: A `pytest.MonkeyPatch`.

    Returns:
        A list, which fills with the settings of each training.
    """
    from experiments import image_generation, settings
    from tools import judge

    trained, lock = [], threading.Lock()

    def make_judge(args):
        fit = keras.Model.fit

        def fit_few(self, x, y, epochs, **kwargs):
            return fit(self, x[:640], y[:640], **kwargs)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(keras.Model, "fit", fit_few)
            judge.run(args)

    def run(function, args):
        with lock:
            trained.append(args)
            keras.utils.clear_session(free_memory=False)
            try:
                if function.__module__ == image_generation.__name__:
                    function(args)
                else:
                    make_judge(args)
            except (ValueError, OSError) as error:
                print(f"error: {error}")
                return False
            return True

    patch.setattr(settings, "in_a_process", run)
    return trained


def to_numpy(x):
    return np.asarray(ops.convert_to_numpy(ops.convert_to_tensor(x)), "float64")


def images_of(*shape, seed=0):
    rng = np.random.default_rng(seed)
    return rng.uniform(-1.0, 1.0, shape).astype("float32")


def trainable_parameters(model):
    return sum(int(np.prod(w.shape)) for w in model.trainable_weights)


RNG = np.random.default_rng(0)


def noise(height, width, channels=3):
    """Random pixels, `(height, width, channels)`."""
    return RNG.integers(256, size=(height, width, channels), dtype="uint8")


def numbers(height, width, high=5):
    """Random labels, `(height, width)`."""
    return RNG.integers(high, size=(height, width), dtype="uint8")


def save(path, array, palette=None, **kwargs):
    """Writes an array to an image file, and returns it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = array.ndim == 3 and array.shape[2] == 1
    image = Image.fromarray(array[..., 0] if grey else array)
    if palette is not None:
        image.putpalette(np.ravel(palette).tolist())
        assert image.mode == "P"
    image.save(path, **kwargs)
    return array


def pixels(path):
    """The pixels of an image file of colours, as floats."""
    with Image.open(path) as image:
        assert image.mode == "RGB"
        return np.asarray(image).astype("float64")


def nearly(a, b):
    """Asserts that arrays are equal up to rounding to 8 bits."""
    np.testing.assert_allclose(a, b, atol=0.51)
    return True


def written(folder):
    """The files below a folder, if there is one."""
    from experiments import data

    return data.files_below(folder) if os.path.exists(folder) else []


def kernel_gradient(layer, kernel, inputs, cotangent):
    """The gradient of `sum(layer(inputs) * cotangent)` in a training call."""

    others = [v for v in layer.variables if v is not kernel]

    def objective(values):
        mapping = [(v, v.value) for v in others]
        with keras.StatelessScope([*mapping, (kernel, values[0])]):
            outputs = layer(inputs, training=True)
        outputs = ops.cast(outputs, "float32")
        return ops.sum(outputs * ops.convert_to_tensor(cotangent, "float32"))

    _, (gradient,) = value_and_gradients(objective, [kernel.value])
    return detached(gradient)


def value_and_gradient(function, x):
    """A float, and its gradient with respect to `x`, in NumPy."""

    def stateless(values):
        with keras.StatelessScope():
            return function(values[0])

    value, (gradient,) = value_and_gradients(
        stateless, [ops.convert_to_tensor(x)]
    )
    return float(detached(value)), detached(gradient)


def detached(x):
    """Converts to NumPy, also a tensor of PyTorch with a gradient."""
    return to_numpy(ops.stop_gradient(x))


# References in float64, of kernels `(*kernel_size, in, out)` and images that
# continue periodically.


def circular_transform(kernel, grid, dilation_rate=1):
    """The DFT of all filters, wrapped around: `(*grid, in, out)`, complex."""
    rank = len(grid)
    dilation_rate = np.broadcast_to(dilation_rate, (rank,))
    image = np.zeros((*grid, *kernel.shape[rank:]))
    for tap in np.ndindex(*kernel.shape[:rank]):
        place = tuple((t * d) % n for t, d, n in zip(tap, dilation_rate, grid))
        image[place] += kernel[tap]
    return np.fft.fftn(image, axes=tuple(range(rank))) if rank else image


def sparsity_aware(kernel, grid, dilation_rate=1):
    return np.abs(circular_transform(kernel, grid, dilation_rate)).max()


def sparse_gain(kernel, sparsity, grid, dilation_rate=1):
    """The root of the largest sum of `sparsity` powers."""
    # Squares of the smallest numbers would be none.
    kernel = np.asarray(kernel, "float64")
    scale = max(np.abs(kernel).max(), 1e-30)
    power = np.abs(circular_transform(kernel / scale, grid, dilation_rate)) ** 2
    power = np.sort(power, axis=-2)[..., -sparsity:, :].sum(axis=-2)
    return scale * np.sqrt(power.max())


def matrix_norm(kernel):
    return np.linalg.norm(kernel.reshape(-1, kernel.shape[-1]), 2)


def dense_operator(kernel, spatial_shape, strides=1, dilation_rate=1, groups=1):
    """A strided convolution as a matrix `(output pixels, input pixels)`."""
    grid = spatial_shape
    rank = len(grid)
    strides = np.broadcast_to(strides, (rank,))
    dilation_rate = np.broadcast_to(dilation_rate, (rank,))
    fan_in, out = kernel.shape[-2:]
    outputs = [int(n // s) for n, s in zip(grid, strides)]
    matrix = np.zeros((*outputs, out, *grid, fan_in * groups))
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
    return matrix.reshape(int(np.prod(outputs)) * out, -1)


def operator_norm(kernel, grid, strides=1, dilation_rate=1, groups=1):
    matrix = dense_operator(kernel, grid, strides, dilation_rate, groups)
    return np.linalg.norm(matrix, 2)


def circular_convolution(inputs, kernel, strides=1, dilation_rate=1, groups=1):
    """The convolution whose output `i` is centred on input `i * stride`."""
    rank = kernel.ndim - 2
    strides = np.broadcast_to(strides, (rank,))
    dilation_rate = np.broadcast_to(dilation_rate, (rank,))
    inputs, kernel = np.asarray(inputs, "float64"), kernel.astype("float64")
    fan_in, filters = kernel.shape[-2:]
    outputs = np.zeros((*inputs.shape[:-1], filters))
    for group in range(groups):
        rows = slice(group * fan_in, (group + 1) * fan_in)
        columns = slice(
            group * filters // groups, (group + 1) * filters // groups
        )
        for tap in np.ndindex(*kernel.shape[:rank]):
            shift = [
                (k - 1) * d // 2 - t * d
                for k, t, d in zip(kernel.shape, tap, dilation_rate)
            ]
            rolled = np.roll(inputs[..., rows], shift, range(1, rank + 1))
            outputs[..., columns] += rolled @ kernel[tap][:, columns]
    return outputs[(slice(None), *(slice(None, None, s) for s in strides))]
