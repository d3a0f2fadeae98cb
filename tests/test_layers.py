"""Layers against explicit circular convolutions in NumPy float64.

Promises of every layer with every normalizer are in test_contract. Here are
the results of single layers, their errors, their configuration, and their
use inside of larger models.
"""

import dataclasses
import inspect
import os
import subprocess
import sys
import threading

import helpers
import hypothesis
import keras
import numpy as np
import pytest
from helpers import (
    BACKEND,
    circular_convolution,
    matrix_norm,
    sparsity_aware,
    to_numpy,
    value_and_gradient,
)
from hypothesis import strategies as st
from keras import layers, ops

import keras_san
from keras_san import SANConv2D, SANDense, SANWrapper, normalizers
from keras_san.kernel_normalization import norms_held
from keras_san.padding import circular_amounts

each_form = pytest.mark.parametrize("form", ["divide", "project"])
forms = st.sampled_from(["divide", "project"])
seeds = st.integers(0, 2**16)

ACTIVATIONS = {
    None: lambda x: x,
    "relu": lambda x: np.maximum(x, 0.0),
    "tanh": np.tanh,
}


property_test = helpers.property_test(tensorflow=12, jax=4, torch=12)


def raw_kernel(shape, seed):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def seeded(seed):
    """An initializer whose values the tests know."""

    def initializer(shape, dtype=None):
        return ops.convert_to_tensor(raw_kernel(shape, seed), dtype)

    return initializer


def some_inputs(shape, seed):
    return np.random.default_rng([1, seed]).normal(size=shape).astype("float32")


def dense_matrix(kernel, grid, strides, dilation_rate):
    """The circular convolution of images of size `grid` as a matrix."""
    inputs = int(np.prod(grid)) * kernel.shape[-2]
    images = np.eye(inputs).reshape(inputs, *grid, kernel.shape[-2])
    columns = circular_convolution(images, kernel, strides, dilation_rate)
    return columns.reshape(inputs, -1).T


@st.composite
def geometries(draw, rank, even_strides=False, groups=1, dilate=True):
    """Kernel sizes, strides, dilation rates and fitting image sizes."""
    kernel_size = tuple(draw(st.integers(1, 5)) for _ in range(rank))
    strides = dilation_rate = (1,) * rank
    if dilate and draw(st.booleans()):
        dilation_rate = tuple(draw(st.integers(1, 2)) for _ in range(rank))
    elif even_strides:
        strides = (draw(st.integers(1, 3)),) * rank
    else:
        strides = tuple(draw(st.integers(1, 3)) for _ in range(rank))
    smallest = [
        max(1, -(-(k - 1) * d // 2)) for k, d in zip(kernel_size, dilation_rate)
    ]
    grid = tuple(draw(st.integers(n, n + 4)) for n in smallest)
    return kernel_size, strides, dilation_rate, grid


def check(found, expected):
    assert tuple(found.shape) == expected.shape
    np.testing.assert_allclose(
        to_numpy(found),
        expected,
        rtol=1e-4,
        atol=2e-5 * max(1.0, np.abs(expected).max()),
    )


# What the layers compute.


@property_test
@hypothesis.given(
    geometry=geometries(2),
    groups=st.sampled_from([1, 1, 2]),
    use_bias=st.booleans(),
    activation=st.sampled_from([None, "relu", "tanh"]),
    normalizer=st.sampled_from(["san", "sn"]),
    form=forms,
    seed=seeds,
)
def test_conv2d(geometry, groups, use_bias, activation, normalizer, form, seed):
    kernel_size, strides, dilation_rate, grid = geometry
    layer = SANConv2D(
        2 * groups,
        kernel_size,
        strides,
        dilation_rate=dilation_rate,
        groups=groups,
        use_bias=use_bias,
        activation=activation,
        kernel_initializer=seeded(seed),
        bias_initializer=seeded(seed + 1),
        normalizer=type(normalizers.get(normalizer))(form=form),
    )
    inputs = some_inputs((2, *grid, 3 * groups), seed)
    kernel = raw_kernel((*kernel_size, 3, 2 * groups), seed)
    if normalizer == "san":
        norm = sparsity_aware(kernel, grid, dilation_rate)
    else:
        norm = matrix_norm(kernel)
    expected = circular_convolution(
        inputs, kernel / norm, strides, dilation_rate, groups
    )
    if use_bias:
        expected = expected + raw_kernel((2 * groups,), seed + 1)
    check(layer(inputs), ACTIVATIONS[activation](expected))
    check(layer(inputs, training=True), ACTIVATIONS[activation](expected))


@property_test
@hypothesis.given(data=st.data(), form=forms, seed=seeds)
@pytest.mark.parametrize(
    "cls, rank", [(layers.Conv1D, 1), (layers.Conv2D, 2), (layers.Conv3D, 3)]
)
def test_wrapped_convolution(cls, rank, data, form, seed):
    # TensorFlow's CPU has no dilated 3-D convolution.
    dilate = rank < 3 or BACKEND != "tensorflow"
    kernel_size, strides, dilation_rate, grid = data.draw(
        geometries(rank, dilate=dilate)
    )
    layer = SANWrapper(
        cls(
            2,
            kernel_size,
            strides,
            dilation_rate=dilation_rate,
            kernel_initializer=seeded(seed),
        ),
        normalizers.SparsityAware(form=form),
        padding="circular",
    )
    inputs = some_inputs((1, *grid, 2), seed)
    kernel = raw_kernel((*kernel_size, 2, 2), seed)
    kernel = kernel / sparsity_aware(kernel, grid, dilation_rate)
    check(
        layer(inputs),
        circular_convolution(inputs, kernel, strides, dilation_rate),
    )


@property_test
@hypothesis.given(
    geometry=geometries(2, even_strides=True),
    multiplier=st.integers(1, 2),
    form=forms,
    seed=seeds,
)
def test_wrapped_depthwise(geometry, multiplier, form, seed):
    kernel_size, strides, dilation_rate, grid = geometry
    layer = SANWrapper(
        layers.DepthwiseConv2D(
            kernel_size,
            strides,
            depth_multiplier=multiplier,
            dilation_rate=dilation_rate,
            depthwise_initializer=seeded(seed),
        ),
        normalizers.SparsityAware(form=form),
        padding="circular",
    )
    inputs = some_inputs((2, *grid, 3), seed)
    kernel = raw_kernel((*kernel_size, 3, multiplier), seed)
    kernel = kernel / sparsity_aware(kernel, grid, dilation_rate)
    kernel = kernel.reshape(*kernel_size, 1, 3 * multiplier)
    check(
        layer(inputs),
        circular_convolution(inputs, kernel, strides, dilation_rate, groups=3),
    )


@property_test
@hypothesis.given(
    geometry=geometries(2, even_strides=True), form=forms, seed=seeds
)
def test_wrapped_separable(geometry, form, seed):
    kernel_size, strides, dilation_rate, grid = geometry
    layer = SANWrapper(
        layers.SeparableConv2D(
            4,
            kernel_size,
            strides,
            dilation_rate=dilation_rate,
            depth_multiplier=2,
            depthwise_initializer=seeded(seed),
            pointwise_initializer=seeded(seed + 1),
        ),
        normalizers.SparsityAware(form=form),
        padding="circular",
    )
    inputs = some_inputs((2, *grid, 3), seed)
    kernel = raw_kernel((*kernel_size, 3, 2), seed)
    kernel = kernel / sparsity_aware(kernel, grid, dilation_rate)
    middle = circular_convolution(
        inputs,
        kernel.reshape(*kernel_size, 1, 6),
        strides,
        dilation_rate,
        groups=3,
    )
    pointwise = raw_kernel((1, 1, 6, 4), seed + 1)
    # One tap: the transform has the modulus of the weight everywhere.
    check(layer(inputs), middle @ (pointwise / np.abs(pointwise).max())[0, 0])


@property_test
@hypothesis.given(data=st.data(), form=forms, seed=seeds)
@pytest.mark.parametrize(
    "cls, rank",
    [
        (layers.Conv1DTranspose, 1),
        (layers.Conv2DTranspose, 2),
        (layers.Conv3DTranspose, 3),
    ],
)
def test_wrapped_transpose_is_the_adjoint(cls, rank, data, form, seed):
    """`<A x, y> == <x, A^T y>` with A of images of `stride * n` pixels."""
    kernel_size = tuple(data.draw(st.integers(1, 5)) for _ in range(rank))
    # TensorFlow's CPU has no dilated transposed convolutions.
    dilation_rate = strides = (1,) * rank
    if BACKEND != "tensorflow" and data.draw(st.booleans()):
        dilation_rate = (2,) * rank
    else:
        strides = tuple(data.draw(st.integers(1, 3)) for _ in range(rank))
    smallest = [
        max(1, -(-k * d // 2)) for k, d in zip(kernel_size, dilation_rate)
    ]
    small = tuple(data.draw(st.integers(n, n + 1)) for n in smallest)
    large = tuple(n * s for n, s in zip(small, strides))
    layer = SANWrapper(
        cls(
            2,
            kernel_size,
            strides,
            dilation_rate=dilation_rate,
            use_bias=False,
            kernel_initializer=seeded(seed),
        ),
        normalizers.SparsityAware(form=form),
        padding="circular",
    )
    y = some_inputs((1, *small, 1), seed)
    x = some_inputs((1, *large, 2), seed + 1)
    outputs = layer(y)
    assert tuple(outputs.shape) == (1, *large, 2)
    assert tuple(layer.compute_output_shape(y.shape)) == (1, *large, 2)
    # `(*kernel_size, out, in)` of the transpose is `(.., in, out)` of A.
    kernel = raw_kernel((*kernel_size, 2, 1), seed)
    kernel = kernel / sparsity_aware(kernel, large, dilation_rate)
    forward = circular_convolution(x, kernel, strides, dilation_rate)
    np.testing.assert_allclose(
        np.sum(forward * y), np.sum(x * to_numpy(outputs)), rtol=1e-4, atol=1e-4
    )
    matrix = dense_matrix(kernel, large, strides, dilation_rate)
    check(outputs, (matrix.T @ y.ravel()).reshape(1, *large, 2))


PADDED = {
    "conv1d": (lambda **k: layers.Conv1D(2, 3, 2, **k), (2, 7, 3)),
    "conv2d": (lambda **k: layers.Conv2D(2, (3, 2), 2, **k), (2, 7, 6, 3)),
    "conv3d": (lambda **k: layers.Conv3D(2, 2, **k), (1, 4, 3, 5, 2)),
    "conv1d_transpose": (
        lambda **k: layers.Conv1DTranspose(2, 4, 2, **k),
        (2, 3, 3),
    ),
    "conv2d_transpose": (
        lambda **k: layers.Conv2DTranspose(2, (4, 2), 2, **k),
        (2, 3, 4, 3),
    ),
    "depthwise": (
        lambda **k: layers.DepthwiseConv2D(3, 2, depth_multiplier=2, **k),
        (2, 7, 6, 3),
    ),
    "separable": (lambda **k: layers.SeparableConv2D(2, 3, **k), (2, 7, 6, 3)),
}


@pytest.mark.parametrize(
    "name, padding, form",
    [(name, "same", "divide") for name in PADDED]
    + [
        ("conv2d", "valid", "divide"),
        ("conv2d_transpose", "valid", "divide"),
        ("separable", "valid", "project"),
    ],
)
def test_other_paddings_are_the_plain_layers(name, padding, form):
    constructor, shape = PADDED[name]
    keras.utils.set_random_seed(0)
    layer = SANWrapper(
        constructor(padding=padding, bias_initializer="ones"),
        normalizers.SparsityAware(form=form),
    )
    inputs = some_inputs(shape, 0)
    outputs = layer(inputs)
    plain = constructor(padding=padding, bias_initializer="ones")
    plain.build(shape)
    grid = shape[1:-1]
    if "transpose" in name:
        grid = tuple(2 * n for n in grid)
    if padding == "same":
        reach = plain.kernel_size, plain.dilation_rate
        grid = tuple(n + (k - 1) * d for n, k, d in zip(grid, *reach))
    elif "transpose" in name:  # Of 4 and 2 taps.
        grid = grid[0] + 2, grid[1]
    for source, target in zip(layer.layer.weights, plain.weights):
        value = to_numpy(source)
        if source.path.endswith("pointwise_kernel"):
            value = value / np.abs(value).max()
        elif value.ndim > 1:
            value = value / sparsity_aware(value, grid, (1,) * len(grid))
        target.assign(value)
    check(outputs, to_numpy(plain(inputs)))
    assert tuple(layer.compute_output_shape(shape)) == tuple(outputs.shape)


def test_causal_padding_without_circular():
    layer = SANWrapper(layers.Conv1D(2, 3, padding="causal", use_bias=False))
    inputs = some_inputs((1, 6, 2), 0)
    before = to_numpy(layer(inputs))
    inputs[:, 4:] += 1.0
    np.testing.assert_array_equal(to_numpy(layer(inputs))[:, :4], before[:, :4])


CHANNELS_FIRST = {
    "san_conv2d": (lambda **k: SANConv2D(2, (3, 4), **k), (2, 3, 5, 4)),
    "same": (lambda **k: SANConv2D(2, 3, 2, "same", **k), (2, 3, 5, 4)),
    "conv1d": (
        lambda **k: SANWrapper(layers.Conv1D(2, 4, 2, **k), "san", "circular"),
        (2, 3, 6),
    ),
    "transpose": (
        lambda **k: SANWrapper(
            layers.Conv2DTranspose(2, 4, 2, **k), "san", "circular"
        ),
        (2, 3, 4, 3),
    ),
    "depthwise": (
        lambda **k: (
            SANWrapper(layers.DepthwiseConv2D(3, **k), padding=None)
            if k.pop("valid", False)
            else SANWrapper(layers.DepthwiseConv2D(3, **k), "san", "circular")
        ),
        (2, 3, 5, 4),
    ),
}


@pytest.mark.parametrize("name", CHANNELS_FIRST)
def test_channels_first(name):
    constructor, shape = CHANNELS_FIRST[name]
    layer = constructor(data_format="channels_first")
    last = constructor(data_format="channels_last")
    moved = (shape[0], *shape[2:], shape[1])
    layer.build(shape)
    last.build(moved)
    last.set_weights(layer.get_weights())
    for normalization, other in zip(layer.normalizations, last.normalizations):
        channels_last = dataclasses.replace(
            normalization.geometry, channels_axis=-1
        )
        assert channels_last == other.geometry
        assert normalization.geometry.channels_axis == 1
    inputs = some_inputs(shape, 0)
    expected = np.moveaxis(to_numpy(last(np.moveaxis(inputs, 1, -1))), -1, 1)
    assert layer.compute_output_shape(shape) == expected.shape
    inputs = ops.convert_to_tensor(inputs)
    try:
        outputs = layer(inputs)
    except Exception as error:
        # Some CPUs lack convolutions for this layout. Then Keras' own has to
        # fail as well, and only the shapes could be compared.
        inner = layer.layer if isinstance(layer, SANWrapper) else layer
        cls = layers.Conv2D if inner is layer else type(inner)
        config = inner.get_config()
        config.pop("normalizer", None)
        with pytest.raises(type(error)):
            cls.from_config({**config, "padding": "valid"})(inputs)
        pytest.skip(f"Keras' own layer fails on this CPU: {error}")
    check(outputs, expected)


# What the layers refuse.


class NoKernel(layers.Layer):
    def call(self, inputs):
        return inputs


class Custom(layers.Layer):
    """A user's own layer; `rank` 3 sums over two axes."""

    def __init__(self, rank, **kwargs):
        super().__init__(**kwargs)
        self.rank = rank

    def build(self, input_shape):
        self.kernel = self.add_weight(
            name="kernel", shape=(*input_shape[1 - self.rank :], 4)
        )

    def call(self, inputs):
        axes = self.rank - 1
        return ops.tensordot(inputs, self.kernel, axes=axes)

    def get_config(self):
        return {"rank": self.rank, **super().get_config()}


def built(layer, shape):
    layer.build(shape)
    return layer


@pytest.mark.parametrize(
    "construct, message",
    [
        (
            lambda: SANConv2D(2, 3, normalizer="snn"),
            r"Choose one of \[.*'san'.*Received: normalizer='snn'",
        ),
        (
            lambda: SANWrapper(layers.Dense(2), "spectral"),
            "Received: normalizer='spectral'",
        ),
        (
            lambda: SANWrapper(layers.ReLU(name="act")),
            r"Only layers with a `kernel`.*Received: layer=<ReLU name=act",
        ),
        (
            lambda: SANWrapper(built(NoKernel(), (1, 2))),
            r"Only layers with a `kernel`.*type NoKernel\)",
        ),
        (
            lambda: SANWrapper(NoKernel()).build((1, 2)),
            r"Only layers with a `kernel`.*type NoKernel\)",
        ),
        (
            lambda: SANWrapper("dense"),
            r"Only layers with a `kernel`.*layer=dense \(of type str\)",
        ),
        (
            lambda: SANWrapper(SANDense(2, name="mine")),
            "normalizes its kernel itself.*Received: layer=<SANDense name=mine",
        ),
        (
            lambda: SANWrapper(SANWrapper(layers.Dense(2))),
            "normalizes its kernel itself.*Received: layer=<SANWrapper",
        ),
        (
            lambda: SANWrapper(layers.Dense(2, name="d"), padding="circular"),
            r"is for convolutions.*Received: layer=<Dense name=d,.*type Dense",
        ),
        (
            lambda: SANWrapper(
                layers.Conv1D(2, 3, padding="causal"), padding="circular"
            ),
            "Wrap a layer with another padding.*padding='causal'",
        ),
        (
            lambda: SANWrapper(
                layers.Conv2DTranspose(2, 3, 2, output_padding=1),
                padding="circular",
            ),
            r"Leave out `output_padding`.*output_padding=\(1, 1\)",
        ),
        (
            lambda: SANWrapper(built(layers.Dense(2), (1, 2)), dtype="float16"),
            "has been built.*Received: dtype=float16, while .*float32",
        ),
        (
            lambda: SANWrapper(
                layers.Dense(2, dtype="int8_from_float32"), normalizer=None
            ).build((1, 2)),
            "quantized layer cannot.*Received: .* 'int8_from_float32'",
        ),
        (
            lambda: SANDense(2, dtype="int8_from_float32").build((1, 2)),
            "quantized layer cannot.*Received: .* 'int8_from_float32'",
        ),
        (
            lambda: SANWrapper(layers.Dense(2), padding="bad"),
            "must be \"circular\", or None.*Received: padding='bad'",
        ),
        (
            lambda: SANConv2D(2, (3, 7), name="wide").build((None, 4, 2, 1)),
            r"wider than the image.*axis 2.*\(None, 4, 2, 1\) "
            r"\(layer 'wide', kernel_size=\(3, 7\)",
        ),
        (
            lambda: SANWrapper(
                layers.Conv1D(2, 4, dilation_rate=2, name="wide"),
                padding="circular",
            ).build((None, 2, 1)),
            r"wider than the image.*\(None, 2, 1\) \(layer 'wide', "
            r"kernel_size=\(4,\), dilation_rate=\(2,\)",
        ),
        (
            lambda: SANWrapper(
                layers.Conv2DTranspose(2, 7, name="wide"), padding="circular"
            ).build((None, 2, 5, 1)),
            r"wider than the image.*\(None, 2, 5, 1\) \(layer 'wide'",
        ),
    ],
)
def test_bad_settings(construct, message):
    with pytest.raises(ValueError, match=message):
        construct()


def test_bad_padding_names_all_that_there_are():
    with pytest.raises(ValueError, match="Received: .*bad") as caught:
        SANConv2D(2, 3, padding="bad")
    assert "circular" in str(caught.value)


def test_padding_in_upper_case():
    """As Keras reads it, in whatever case."""
    for padding in ("circular", "same", "valid"):
        layer = SANConv2D(2, 3, padding=padding.upper())
        assert layer.get_config()["padding"] == padding
    wrapper = SANWrapper(layers.Conv2D(2, 3), padding="Circular")
    assert wrapper.circular and wrapper.layer.padding == "valid"


class OfKeras2(layers.Layer):
    """A stand-in, which even has a kernel."""

    __module__ = "tf_keras.src.layers.core.dense"
    kernel = None


@pytest.mark.parametrize(
    "use",
    [
        SANWrapper,
        keras_san.diagnostics.layer_norms,
        keras_san.metrics.extractors.KerasExtractor,
        lambda layer: keras_san.losses.PerceptualLoss(extractor=layer),
        lambda layer: keras_san.GAN(layer, layer, 2),
    ],
)
@pytest.mark.parametrize("derived", [False, True])
def test_keras_2_is_named(use, derived):
    cls = type("Derived", (OfKeras2,), {}) if derived else OfKeras2
    with pytest.raises(ValueError, match="Keras 3.*tf_keras.*Received: <"):
        use(cls())


@pytest.mark.parametrize("mode", ["int8", "int4", "float8"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: SANDense(3),
        lambda: SANDense(3, normalizer=None),
        lambda: SANConv2D(2, 3),
        lambda: SANWrapper(layers.Dense(3)),
        lambda: SANWrapper(layers.Dense(3), normalizer=None),
        lambda: SANWrapper(
            layers.EinsumDense("...a,ab->...b", 3),
            normalizers.Spectral(form="project"),
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*`quantize` method:UserWarning")
def test_quantization_is_refused(make, mode):
    layer = make()
    inputs = some_inputs((2, 4, 4, 2), 0)
    model = keras.Sequential([keras.Input(inputs.shape[1:]), layer])
    before = to_numpy(model(inputs))
    parts = [model, layer, getattr(layer, "layer", layer)]
    for part in parts:
        with pytest.raises(ValueError, match="strip.*Received: quantize"):
            part.quantize(mode)
    np.testing.assert_array_equal(to_numpy(model(inputs)), before)


def test_a_stripped_layer_can_be_quantized():
    layer = SANWrapper(layers.Dense(3))
    layer.build((None, 4))
    inputs = some_inputs((2, 4), 0)
    expected = to_numpy(layer(inputs))
    plain = keras_san.strip(layer)
    plain.quantize("int8")
    np.testing.assert_allclose(to_numpy(plain(inputs)), expected, atol=0.1)


def test_padding_wider_than_an_image_of_unknown_size():
    message = (
        r"cannot be wider.*Received: padding=\(2, 2\) on axis 2 of inputs of "
    )
    layer = SANConv2D(2, 5)
    layer.build((None, None, None, 1))
    assert layer(np.ones((1, 2, 2, 1), "float32")).shape == (1, 2, 2, 2)
    small = np.ones((1, 3, 1, 1), "float32")
    with pytest.raises(ValueError, match=message + r"shape \(1, 3, 1, 1\)"):
        layer(small)
    model = keras.Sequential([keras.Input((None, None, 1)), layer])
    with pytest.raises(Exception, match=message):
        model.predict(small, verbose=0)


@pytest.mark.skipif(BACKEND != "tensorflow", reason="only tf.function has it")
def test_padding_wider_than_an_image_of_unknown_size_in_a_graph():
    import tensorflow as tf

    layer = SANConv2D(2, 5)
    layer.build((None, None, None, 1))
    signature = [tf.TensorSpec((None, None, None, 1))]
    function = tf.function(layer, input_signature=signature)
    assert function(tf.ones((1, 2, 3, 1))).shape == (1, 2, 3, 2)
    with pytest.raises(
        tf.errors.InvalidArgumentError,
        match=r"cannot be wider.*padding=\(2, 2\) on axis 1",
    ):
        function(tf.ones((1, 1, 3, 1)))


# What can be wrapped, and what remains of it.


@pytest.mark.parametrize("rank, form", [(2, "project"), (3, "divide")])
def test_custom_layers_count_as_matrices(rank, form):
    layer = SANWrapper(Custom(rank), normalizers.SparsityAware(form=form))
    inputs = some_inputs((2, 3, 5), 0)
    layer.build(inputs.shape)
    kernel = raw_kernel((5, 4) if rank == 2 else (3, 5, 4), 7)
    if form == "divide":
        layer.layer.kernel.assign(kernel)
    else:
        layer.layer.kernel.assign(layer.layer.kernel.constraint(kernel))
    for _ in range(30):  # Power iteration arrives at the new kernel's norm.
        outputs = layer(inputs, training=True)
    expected = np.tensordot(inputs, kernel, rank - 1) / matrix_norm(kernel)
    np.testing.assert_allclose(to_numpy(outputs), expected, rtol=1e-3)


class Busy(layers.Layer):
    """A user's layer that counts its calls, adds a loss and drops out."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dropout = layers.Dropout(0.5, seed=0)

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], 8))
        self.calls = self.add_weight(
            shape=(), initializer="zeros", trainable=False
        )

    def call(self, inputs, training=False):
        self.calls.assign(self.calls + 1.0)
        outputs = ops.matmul(inputs, self.kernel)
        self.add_loss(ops.mean(outputs**2))
        return self.dropout(outputs, training=training)


@each_form
def test_what_a_wrapped_layer_updates_is_kept(form):
    layer = SANWrapper(Busy(), normalizers.SparsityAware(form=form))
    inputs = some_inputs((8, 4), 0)
    first = to_numpy(layer(inputs, training=True))
    (loss,) = layer.losses  # By add_loss inside of the wrapped layer.
    outputs = to_numpy(layer(inputs))  # Without dropout.
    np.testing.assert_allclose(
        float(to_numpy(loss)), np.mean(outputs**2), rtol=1e-5
    )
    layer.layer.calls.assign(1.0)
    second = to_numpy(layer(inputs, training=True))
    assert float(to_numpy(layer.layer.calls)) == 2.0
    assert np.any((first == 0) != (second == 0)), "the same dropout twice"


def test_a_trained_layer_keeps_its_weights():
    plain = layers.Conv2D(3, 3, padding="same", bias_initializer="ones")
    inputs = some_inputs((2, 5, 4, 2), 0)
    plain(inputs)
    before = [to_numpy(w) for w in plain.weights]
    layer = SANWrapper(plain)
    outputs = to_numpy(layer(inputs))
    for weight, value in zip(plain.weights, before):
        np.testing.assert_array_equal(to_numpy(weight), value)
    norm = sparsity_aware(before[0], (7, 6))  # 3 taps of zero padding.
    np.testing.assert_allclose(
        outputs - 1, (to_numpy(plain(inputs)) - 1) / norm, rtol=1e-3, atol=1e-5
    )


def test_a_trained_layer_is_projected():
    plain = layers.Conv2D(3, 3, padding="same", bias_initializer="ones")
    plain.build((None, 5, 4, 2))
    kernel, bias = (to_numpy(w) for w in plain.weights)
    layer = SANWrapper(plain, normalizers.SparsityAware(form="project"))
    layer.build((None, 5, 4, 2))
    norm = sparsity_aware(kernel, (7, 6))
    np.testing.assert_allclose(
        to_numpy(plain.kernel), kernel / norm, rtol=1e-4, atol=1e-7
    )
    np.testing.assert_array_equal(to_numpy(plain.bias), bias)


def test_user_constraints_stay():
    layer = SANDense(
        3,
        kernel_constraint="non_neg",
        normalizer=normalizers.SparsityAware(form="project"),
    )
    layer.build((None, 4))
    value = raw_kernel((4, 3), 0)
    found = to_numpy(layer.kernel.constraint(ops.convert_to_tensor(value)))
    positive = np.maximum(value, 0)
    np.testing.assert_allclose(
        found, positive / matrix_norm(positive), rtol=1e-4, atol=1e-7
    )


# Settings.


SAN = {"ratio": 0.5, "gain": 2.0, "update_interval": 3, "scale": 0.7}
ROUND_TRIPS = {
    "conv": lambda **k: SANConv2D(
        2, 3, 2, normalizer=normalizers.SparsityAware(**SAN), **k
    ),
    "conv_same": lambda **k: SANConv2D(
        2,
        (1, 2),
        padding="same",
        dilation_rate=(1, 2),
        kernel_regularizer="l2",
        **k,
    ),
    "conv_none": lambda **k: SANConv2D(2, 3, normalizer=None, **k),
    "dense": lambda **k: SANDense(
        3, normalizer=normalizers.Spectral(form="project"), **k
    ),
    "wrapper": lambda dtype=None, **k: SANWrapper(
        layers.Conv2D(2, 3, padding="same", dtype=dtype), "bssn", **k
    ),
    "wrapper_circular": lambda dtype=None, **k: SANWrapper(
        layers.Conv2DTranspose(2, 4, 2, dtype=dtype, name="inner"),
        normalizers.SparsityAware(**SAN),
        padding="circular",
        **k,
    ),
}


@pytest.mark.parametrize("name", ROUND_TRIPS)
@pytest.mark.parametrize(
    "settings",
    [
        {"dtype": "float16"},
        {
            "name": "mine",
            "trainable": False,
            "activity_regularizer": "l1",
            "dtype": "mixed_bfloat16",
        },
    ],
    ids=["few", "many"],
)
def test_configuration_round_trip(name, settings):
    layer = ROUND_TRIPS[name](**settings)
    config = layer.get_config()
    serialized = keras.saving.serialize_keras_object(layer)
    for copy in (
        type(layer).from_config(dict(config)),  # Keras' wrappers empty it.
        keras.saving.deserialize_keras_object(serialized),
    ):
        assert type(copy) is type(layer)
        assert copy.get_config() == config
        assert copy.name == layer.name
        assert copy.trainable == settings.get("trainable", True)
        assert copy.dtype_policy == layer.dtype_policy
        assert copy.circular == layer.circular
        assert repr(copy.normalizer) == repr(layer.normalizer)
        assert (copy.activity_regularizer is None) == (
            "activity_regularizer" not in settings
        )
    # The configuration is that of the copy: nothing is shared.
    assert config == layer.get_config()


def test_a_wrapper_has_the_policy_and_regularizer_of_its_layer():
    layer = SANWrapper(
        layers.Dense(2, dtype="mixed_bfloat16", activity_regularizer="l2")
    )
    assert layer.dtype_policy.name == "mixed_bfloat16"
    copy = SANWrapper.from_config(layer.get_config())
    assert isinstance(copy.activity_regularizer, keras.regularizers.L2)
    outputs = copy(np.ones((2, 3), "float32"))
    assert keras.utils.standardize_dtype(outputs.dtype) == "bfloat16"
    assert len(copy.losses) == 1


@pytest.mark.parametrize("is_built", [False, True])
def test_a_wrapper_gives_its_policy_to_its_layer(is_built):
    plain = layers.Dense(2)
    if is_built:
        plain.build((None, 3))
    layer = SANWrapper(plain, dtype="mixed_bfloat16")
    copy = SANWrapper.from_config(layer.get_config())
    inputs = some_inputs((2, 3), 0)
    expected = layers.Dense(2, dtype="mixed_bfloat16")
    expected.build((None, 3))
    for wrapper in (layer, copy):
        outputs = wrapper(inputs)
        expected.set_weights(keras_san.strip(wrapper).get_weights())
        assert wrapper.layer.kernel.dtype == "float32"
        assert keras.utils.standardize_dtype(outputs.dtype) == "bfloat16"
        np.testing.assert_array_equal(
            to_numpy(ops.cast(outputs, "float32")),
            to_numpy(ops.cast(expected(inputs), "float32")),
        )


CONV_ARGUMENTS = {
    "filters": 4,
    "kernel_size": (3, 2),
    "strides": (1, 1),
    "padding": "same",
    "data_format": "channels_first",
    "dilation_rate": (2, 3),
    "groups": 2,
    "activation": "relu",
    "use_bias": False,
    "kernel_initializer": "ones",
    "bias_initializer": "ones",
    "kernel_regularizer": "l1",
    "bias_regularizer": "l1",
    "activity_regularizer": "l1",
    "kernel_constraint": "non_neg",
    "bias_constraint": "non_neg",
}


def arguments_of(cls):
    parameters = inspect.signature(cls.__init__).parameters.values()
    return [
        p.name
        for p in parameters
        if p.kind == p.POSITIONAL_OR_KEYWORD and p.name != "self"
    ]


def test_conv2d_takes_every_argument_of_keras():
    names = arguments_of(layers.Conv2D)
    assert names == list(CONV_ARGUMENTS)  # If not, Keras has got a new one.
    own = arguments_of(SANConv2D)
    assert own == names[: len(own)]
    expected = layers.Conv2D(**CONV_ARGUMENTS, name="conv").get_config()
    for layer in (
        SANConv2D(**CONV_ARGUMENTS, name="conv"),
        SANConv2D(*CONV_ARGUMENTS.values(), name="conv"),
    ):
        config = layer.get_config()
        del config["normalizer"]
        assert config == expected
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(SANConv2D).parameters.items()
    }
    assert defaults["strides"] == (1, 1)
    assert defaults["padding"] == "circular"
    assert defaults["normalizer"] == "san"


def test_dense_takes_every_argument_of_keras():
    values = {
        **{n: v for n, v in CONV_ARGUMENTS.items() if n in DENSE_ARGUMENTS},
        "units": 4,
    }
    names = arguments_of(layers.Dense)
    expected = layers.Dense(**values, name="dense").get_config()
    positional = [
        values[n] for n in names if n in values
    ]  # Those behind them are LoRA's and quantization's.
    assert names[: len(positional)] == ["units", *DENSE_ARGUMENTS]
    for layer in (
        SANDense(**values, name="dense"),
        SANDense(*positional, name="dense"),
    ):
        config = layer.get_config()
        del config["normalizer"]
        assert config == expected


DENSE_ARGUMENTS = [
    "activation",
    "use_bias",
    "kernel_initializer",
    "bias_initializer",
    "kernel_regularizer",
    "bias_regularizer",
    "activity_regularizer",
    "kernel_constraint",
    "bias_constraint",
]


@pytest.mark.parametrize(
    "wrap", [lambda n: SANConv2D(4, 3, normalizer=n), None], ids=["own", "wrap"]
)
def test_settings_reach_the_measurement(wrap):
    keras.utils.set_random_seed(0)
    normalizer = normalizers.SparsityAware(**SAN)
    if wrap is None:
        layer = SANWrapper(layers.Conv2D(4, 3), normalizer, "circular")
    else:
        layer = wrap(normalizer)
    inputs = some_inputs((1, 5, 4, 4), 0)
    layer.build(inputs.shape)
    (normalization,) = layer.normalizations
    assert normalization.seed_generator is not None
    kernel = to_numpy(normalization.get_kernel())
    filters = {
        float(sparsity_aware(kernel[..., i : i + 1, j : j + 1], (5, 4)))
        for i in range(4)
        for j in range(4)
    }
    seen = [float(to_numpy(normalization.norm))]
    for _ in range(24):
        layer(inputs, training=True)
        seen.append(float(to_numpy(normalization.norm)))
    # Measured at each third call, of a subset: some filter's own norm.
    for start in range(0, 24, 3):
        assert len(set(seen[start : start + 3])) == 1
    assert len(set(seen)) > 1
    for value in seen:
        assert min(abs(value - f) / f for f in filters) < 1e-4
    # Half of 16 filters always hold one of the nine largest.
    assert min(seen) >= sorted(filters)[-9] * 0.999
    np.testing.assert_allclose(
        to_numpy(layer(inputs)),
        circular_convolution(inputs, kernel * 0.7 / (2.0 * seen[-1])),
        rtol=1e-4,
        atol=1e-5,
    )


# The adaptive gain. What it is, and when it is measured, see test_contract.


def adaptive(**settings):
    return normalizers.SparsityAware(gain="adaptive", **settings)


def test_dense_signals_leave_as_large_as_they_came():
    # Of random phases, and far from sparse: the assumption behind the gain.
    layer = SANConv2D(48, 3, use_bias=False, normalizer=adaptive())
    inputs = some_inputs((8, 12, 12, 64), 0)
    plain = SANConv2D(48, 3, use_bias=False)
    plain.build(inputs.shape)
    outputs = to_numpy(layer(inputs, training=True))

    def channel_norms(x):
        return np.sqrt(np.square(np.float64(x)).sum((1, 2)))

    largest = channel_norms(inputs).max(axis=1)
    ratio = np.sqrt(np.mean(np.square(channel_norms(outputs)), axis=1))
    np.testing.assert_allclose(ratio / largest, 1.0, rtol=0.05)
    (normalization,) = layer.normalizations
    assert 1.3 < float(to_numpy(normalization.gain())) < 8.0
    # SAN alone lets them grow by that factor.
    for weight, other in zip(plain.trainable_weights, layer.trainable_weights):
        weight.assign(other)
    grown = to_numpy(plain(inputs, training=True))
    gain = float(to_numpy(normalization.gain()))
    np.testing.assert_allclose(grown / gain, outputs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_channels_are_counted_in_full_precision(dtype):
    inputs = (300.0 * some_inputs((2, 4, 6, 5), 0)).astype("float32")
    low = ops.cast(inputs, dtype)
    assert np.abs(inputs).max() > 256.0  # Squares overflow float16.
    policy = "float32" if dtype == "float32" else f"mixed_{dtype}"
    layer = SANConv2D(2, 3, normalizer=adaptive(), dtype=policy)
    layer.build(inputs.shape)
    (normalization,) = layer.normalizations
    normalization(training=True, inputs=low)
    exact = to_numpy(ops.cast(low, "float32"))
    energy = np.square(exact).sum((1, 2))
    expected = np.mean(energy.sum(1) / energy.max(1))
    np.testing.assert_allclose(
        to_numpy(normalization.channels), expected, rtol=1e-5
    )
    assert normalization.channels.dtype == "float32"
    assert (
        keras.utils.standardize_dtype(normalization.gain().dtype) == "float32"
    )


def test_channels_are_counted_where_they_are():
    inputs = some_inputs((2, 5, 4, 6), 0) * np.arange(1.0, 6.0).reshape(5, 1, 1)
    for data_format, axis in (("channels_first", 1), ("channels_last", 3)):
        layer = SANConv2D(2, 3, normalizer=adaptive(), data_format=data_format)
        layer.build(inputs.shape)
        (normalization,) = layer.normalizations
        # Not the layer: some CPUs lack convolutions for this layout.
        normalization(
            training=True, inputs=ops.convert_to_tensor(inputs, "float32")
        )
        energy = np.moveaxis(np.square(inputs), axis, -1).sum((1, 2))
        expected = np.mean(energy.sum(1) / energy.max(1))
        np.testing.assert_allclose(
            to_numpy(normalization.channels), expected, rtol=1e-5
        )


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e30])
def test_bad_inputs_do_not_spoil_the_average(bad):
    layer = SANConv2D(2, 3, normalizer=adaptive())
    inputs = some_inputs((2, 5, 4, 40), 0)
    layer.build(inputs.shape)
    (normalization,) = layer.normalizations
    broken = inputs.copy()
    broken[1, 2, 3, 4] = bad
    layer(broken, training=True)
    assert float(to_numpy(normalization.channels)) == 0.0
    assert float(to_numpy(normalization.gain())) == 1.0
    layer(inputs, training=True)
    before = [to_numpy(weight) for weight in normalization.weights]
    assert before[-2] > 20.0
    layer(broken, training=True)
    for weight, value in zip(normalization.weights, before):
        np.testing.assert_array_equal(to_numpy(weight), value)


def test_only_what_adapts_keeps_more_state():
    def names(layer, shape):
        layer.build(shape)
        return [
            [w.name for w in normalization.weights]
            for normalization in layer.normalizations
        ]

    image = (None, 5, 4, 2)
    plain, more = ["norm", "counter"], ["norm", "counter", "channels", "gain"]
    assert names(SANConv2D(2, 3), image) == [plain]
    assert names(SANConv2D(2, 3, normalizer=adaptive()), image) == [more]
    sparse = normalizers.SparsityAware(sparsity=3)
    assert names(SANConv2D(2, 3, normalizer=sparse), image) == [plain]
    dense = ["norm", "vectors_0", "counter"]
    assert names(SANDense(2, normalizer=adaptive()), (None, 3)) == [dense]
    for inner, count in [
        (layers.DepthwiseConv2D(3), 1),
        (layers.SeparableConv2D(2, 3), 2),
    ]:
        found = names(SANWrapper(inner, adaptive()), image)
        assert found == [plain] * count


def test_masked_inputs():
    """Keras would warn of a layer that is given, and does not pass, a mask."""
    conv = layers.Conv1D(3, 3)
    conv.supports_masking = True
    embedded = layers.Embedding(5, 4, mask_zero=True)(
        ops.convert_to_tensor([[1, 2, 0, 0], [3, 4, 1, 0]])
    )
    SANWrapper(conv, adaptive(), "circular")(embedded, training=True)


def input_gradient(function, inputs):
    """The gradient of the sum of the squares of `function(inputs)`."""
    _, gradient = value_and_gradient(
        lambda x: ops.sum(ops.square(function(x))), inputs
    )
    return gradient


def test_no_gradient_flows_through_the_gain():
    layer = SANConv2D(3, 3, normalizer=adaptive())
    inputs = some_inputs((2, 5, 4, 40), 0)
    layer(inputs, training=True)
    assert float(to_numpy(layer.normalizations[0].gain())) > 1.2
    # The average of equal numbers: the gain is the same as in this pass.
    expected = input_gradient(keras_san.strip(layer), inputs)
    found = input_gradient(lambda x: layer(x, training=True), inputs)
    np.testing.assert_allclose(
        found, expected, atol=1e-5 * np.abs(expected).max()
    )


@pytest.mark.skipif(
    BACKEND == "torch", reason="GANs train on TensorFlow and JAX"
)
def test_a_gan_measures_its_real_images():
    keras.utils.set_random_seed(0)
    generator = keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(8 * 8 * 3, activation="tanh"),
            layers.Reshape((8, 8, 3)),
        ]
    )
    critic = keras.Sequential(
        [
            keras.Input((8, 8, 3)),
            SANConv2D(32, 3, normalizer=adaptive(), dtype="mixed_bfloat16"),
            layers.LeakyReLU(0.8),
            SANConv2D(4, 4, 2, normalizer=adaptive(), dtype="mixed_bfloat16"),
            layers.Flatten(),
            SANDense(1, normalizer=adaptive()),
        ]
    )
    gan = keras_san.GAN(generator, critic, latent_dim=5)
    gan.compile(keras.optimizers.Adam(1e-3), keras.optimizers.Adam(1e-3))
    images = np.tanh(some_inputs((8, 8, 8, 3), 0) * [1.0, 0.5, 0.2])
    images = images.astype("float32")
    first, second = (critic.layers[i].normalizations[0] for i in (0, 2))
    gan.fit(images, batch_size=8, verbose=0)
    energy = np.square(images).sum((1, 2))
    expected = np.mean(energy.sum(1) / energy.max(1))
    np.testing.assert_allclose(to_numpy(first.channels), expected, rtol=0.01)
    # Random features of noise: many channels.
    assert 6.0 < float(to_numpy(second.channels)) <= 32.0
    assert float(to_numpy(second.gain())) > 1.05
    kernel = to_numpy(second.get_kernel())
    a = np.sqrt(to_numpy(second.channels)) * np.linalg.norm(kernel)
    np.testing.assert_allclose(
        to_numpy(second.current()),
        a / np.sqrt(32 * 4),
        rtol=0.01,  # The kernel has been updated since.
    )
    found = keras_san.callbacks.kernel_norms(critic)
    names = [layer.name for layer in critic.layers]
    np.testing.assert_allclose(
        found[f"norm/{names[2]}"], to_numpy(second.current()), rtol=1e-6
    )
    gan.fit(images, batch_size=8, epochs=3, verbose=0)
    for normalization in (first, second):
        assert np.isfinite(to_numpy(normalization.gain()))


REPLICAS = """
import sys
import keras, numpy as np, tensorflow as tf
from keras_san import SANConv2D, normalizers

(cpu,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(
    cpu, [tf.config.LogicalDeviceConfiguration()] * 2
)
mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
with mirrored.scope():
    layer = SANConv2D(
        2,
        3,
        normalizer=normalizers.SparsityAware(
            gain="adaptive", update_interval=2
        ),
    )
    layer.build((None, 6, 6, 40))

images = np.random.default_rng(0).normal(size=(2, 1, 6, 6, 40))
images[1] *= np.linspace(0.0, 1.0, 40)
images = images.astype("float32")

@tf.function
def step():
    def replica():
        number = tf.distribute.get_replica_context().replica_id_in_sync_group
        return layer(tf.constant(images)[number], training=True)
    mirrored.run(replica)

for _ in range(2):
    step()
energy = np.square(images[0, 0]).sum((0, 1))
(normalization,) = layer.normalizations
for variable, expected in [
    (normalization.channels, energy.sum() / energy.max()),
    (normalization.adaptive_gain, None),
]:
    copies = mirrored.experimental_local_results(variable.value)
    assert len(copies) == 2
    assert copies[0].numpy() == copies[1].numpy()
    if expected is None:
        assert copies[0].numpy() > 1.2
    else:
        np.testing.assert_allclose(copies[0].numpy(), expected, rtol=1e-5)
print("all equal")
"""


@pytest.mark.skipif(
    BACKEND != "tensorflow", reason="tf.distribute is TensorFlow's"
)
def test_replicas_go_on_with_the_gain_of_the_first():
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    paths = filter(None, [package, os.environ.get("PYTHONPATH")])
    result = subprocess.run(
        [sys.executable, "-c", REPLICAS],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        timeout=300,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    assert "all equal" in result.stdout


# hold_norms.


def test_hold_norms_nests_and_restores():
    assert not norms_held()
    with keras_san.hold_norms():
        assert norms_held()
        with keras_san.hold_norms():
            assert norms_held()
        assert norms_held()
        with pytest.raises(KeyError):
            with keras_san.hold_norms():
                raise KeyError
        assert norms_held()
    assert not norms_held()
    with pytest.raises(KeyError):
        with keras_san.hold_norms():
            raise KeyError
    assert not norms_held()


def test_hold_norms_leaves_other_threads_alone():
    layer = SANDense(3)
    inputs = some_inputs((2, 4), 0)
    layer.build(inputs.shape)
    before = float(to_numpy(layer.normalizations[0].norm))
    layer.kernel.assign(to_numpy(layer.kernel) * 2)
    seen = []

    def run():
        seen.append(norms_held())
        layer(inputs, training=True)

    with keras_san.hold_norms():
        layer(inputs, training=True)
        held = float(to_numpy(layer.normalizations[0].norm))
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        assert norms_held()
    assert seen == [False]
    assert held == before
    np.testing.assert_allclose(
        to_numpy(layer.normalizations[0].norm), 2 * before, rtol=1e-4
    )


# In models. The norm is measured before the kernel is updated, so that what
# one step of `fit` has measured is known.


def double(normalization):
    """Doubles a kernel, and returns the norm to be measured then."""
    kernel = normalization.get_kernel()
    kernel.assign(to_numpy(kernel) * 2)
    return 2 * to_numpy(normalization.norm)


class Block(layers.Layer):
    """A user's layer that holds one of ours."""

    def __init__(self, form="divide", **kwargs):
        super().__init__(**kwargs)
        self.form = form
        normalizer = normalizers.SparsityAware(form=form)
        self.inner = SANConv2D(2, 3, normalizer=normalizer, name="inner")

    def build(self, input_shape):
        self.inner.build(input_shape)

    def call(self, inputs, training=None):
        return ops.relu(self.inner(inputs, training=training))

    def compute_output_shape(self, input_shape):
        return self.inner.compute_output_shape(input_shape)


class Subclassed(keras.Model):
    def __init__(self, form="divide"):
        super().__init__()
        self.block = Block(form)
        self.flatten = layers.Flatten()
        self.inner_dense = SANDense(1)

    # On JAX, Keras tells a model that it trains only by this argument, and
    # those in it only if it is passed on; elsewhere having it is enough.
    def call(self, inputs, training=None):
        outputs = self.block(inputs, training=training)
        return self.inner_dense(self.flatten(outputs), training=training)


def time_distributed(form):
    normalizer = normalizers.SparsityAware(form=form)
    conv = SANConv2D(2, 3, normalizer=normalizer)
    model = keras.Sequential(
        [
            keras.Input((3, 5, 4, 2)),
            layers.TimeDistributed(conv),
            layers.Flatten(),
            layers.Dense(1),
        ]
    )
    return model, conv, (4, 3, 5, 4, 2)


def in_a_layer(form):
    block = Block(form)
    model = keras.Sequential(
        [keras.Input((5, 4, 2)), block, layers.Flatten(), layers.Dense(1)]
    )
    return model, block.inner, (4, 5, 4, 2)


def in_a_model(form):
    model = Subclassed(form)
    return model, model.block.inner, (4, 5, 4, 2)


def used_twice(form):
    normalizer = normalizers.SparsityAware(form=form)
    conv = SANConv2D(2, 3, normalizer=normalizer)
    inputs = keras.Input((5, 4, 2))
    outputs = layers.Dense(1)(layers.Flatten()(conv(conv(inputs))))
    return keras.Model(inputs, outputs), conv, (4, 5, 4, 2)


@pytest.mark.parametrize(
    "make, form",
    [
        (time_distributed, "divide"),
        (in_a_layer, "divide"),
        (in_a_model, "project"),
        (used_twice, "divide"),
    ],
)
def test_fit_measures_and_trains(make, form):
    keras.utils.set_random_seed(0)
    model, conv, shape = make(form)
    inputs = some_inputs(shape, 0)
    targets = inputs.reshape(4, -1)[:, :1]
    model(inputs)
    (normalization,) = conv.normalizations
    kernel = to_numpy(conv.kernel)
    model.compile(keras.optimizers.Adam(0.01), "mse")
    if form == "divide":
        expected = double(normalization)
    first = model.fit(inputs, targets, verbose=0).history["loss"][0]
    if form == "divide":
        np.testing.assert_allclose(
            to_numpy(normalization.norm), expected, rtol=1e-4
        )
    history = model.fit(inputs, targets, epochs=10, verbose=0).history
    assert history["loss"][-1] < first
    trained = to_numpy(conv.kernel)
    assert np.abs(trained - kernel).max() > 1e-3
    if form == "project":
        np.testing.assert_allclose(
            sparsity_aware(trained, (5, 4)), 1.0, rtol=1e-4
        )


def test_one_layer_twice_sees_one_kernel():
    """Both passes of a step divide by the same number."""
    model, conv, shape = used_twice("divide")
    inputs = some_inputs(shape, 0)
    kernel = to_numpy(conv.kernel) * 3
    conv.kernel.assign(kernel)
    kernel = kernel / sparsity_aware(kernel, (5, 4))
    once = circular_convolution(inputs, kernel)
    twice = circular_convolution(once, kernel)
    weight, bias = (to_numpy(w) for w in model.layers[-1].weights)
    check(model(inputs, training=True), twice.reshape(4, -1) @ weight + bias)


def freeze_layer(model, layer):
    layer.trainable = False


def freeze_model(model, layer):
    model.trainable = False


@pytest.mark.parametrize("freeze", [freeze_layer, freeze_model])
def test_frozen_norms_are_not_measured(freeze):
    model, conv, shape = in_a_model("divide")
    inputs = some_inputs(shape, 0)
    model(inputs)
    freeze(model, conv)
    (normalization,) = conv.normalizations
    before = to_numpy(normalization.norm)
    double(normalization)
    model.compile(keras.optimizers.SGD(0.1), "mse")
    if model.trainable:
        model.fit(inputs, np.zeros((4, 1)), verbose=0)
    model(inputs, training=True)
    np.testing.assert_array_equal(to_numpy(normalization.norm), before)
    conv.trainable = True
    model(inputs, training=True)
    np.testing.assert_allclose(
        to_numpy(normalization.norm), 2 * before, rtol=1e-4
    )


def frozen_argument():
    return SANConv2D(2, 3, trainable=False)


def frozen_before_build():
    layer = SANConv2D(2, 3)
    layer.trainable = False
    return layer


def frozen_configuration():
    return SANConv2D.from_config(frozen_before_build().get_config())


def frozen_wrapper():
    return SANWrapper(layers.Conv2D(2, 3), trainable=False)


def frozen_inside():
    return SANWrapper(layers.Conv2D(2, 3, trainable=False))


@pytest.mark.parametrize(
    "make",
    [
        frozen_argument,
        frozen_before_build,
        frozen_configuration,
        frozen_wrapper,
        frozen_inside,
    ],
)
def test_frozen_before_it_is_built(make):
    layer = make()
    inputs = some_inputs((1, 5, 4, 2), 0)
    layer.build(inputs.shape)
    assert not layer.trainable_weights
    (normalization,) = layer.normalizations
    before = to_numpy(normalization.norm)
    double(normalization)
    layer(inputs, training=True)
    np.testing.assert_array_equal(to_numpy(normalization.norm), before)


@pytest.mark.parametrize("wrap", [True, False])
def test_kernels_larger_than_the_image(wrap):
    """The kernel may span two images, but one border only one."""
    settings = {"use_bias": False, "kernel_initializer": seeded(0)}
    if wrap:
        plain = layers.Conv2D(2, (5, 4), **settings)
        layer = SANWrapper(plain, padding="circular")
    else:
        layer = SANConv2D(2, (5, 4), **settings)
    inputs = some_inputs((1, 2, 3, 2), 0)
    outputs = layer(inputs)
    kernel = raw_kernel((5, 4, 2, 2), 0)
    kernel = kernel / sparsity_aware(kernel, (2, 3))
    check(outputs, circular_convolution(inputs, kernel))


def test_documented_alignment():
    """`before = total // 2`: even kernels reach further down and right."""
    for k in (1, 2, 3, 4):
        kernel = np.zeros((k, k, 1, 1), "float32")
        kernel[0, 0] = 1.0
        layer = SANConv2D(1, k, use_bias=False, normalizer=None)
        inputs = some_inputs((1, 6, 7, 1), k)
        layer.build(inputs.shape)
        layer.kernel.assign(kernel)
        ((before, after), _) = circular_amounts((k, k), (1, 1))
        assert (before, after) == ((k - 1) // 2, k // 2)
        np.testing.assert_allclose(
            to_numpy(layer(inputs)),
            np.roll(inputs, (before, before), (1, 2)),
            rtol=1e-6,
        )


@pytest.mark.parametrize("wrap, form", [(True, "divide"), (False, "project")])
def test_lora_is_refused(wrap, form):
    san = normalizers.SparsityAware(form=form)
    layer = (
        SANWrapper(layers.Dense(3), san)
        if wrap
        else SANDense(3, normalizer=san)
    )
    layer.build((None, 4))
    (layer.layer if wrap else layer).enable_lora(2)
    with pytest.raises(ValueError, match="Received: enable_lora"):
        layer(some_inputs((2, 4), 0))


@pytest.mark.parametrize("form", ["divide", "project"])
@pytest.mark.parametrize("name, norm", [("san", None), ("sn", matrix_norm)])
def test_assigned_kernels_are_measured_on_request(name, norm, form):
    cls = type(normalizers.get(name))
    layer = SANConv2D(2, 3, use_bias=False, normalizer=cls(form=form))
    inputs = some_inputs((1, 4, 5, 2), 0)
    model = keras.Sequential([keras.Input(inputs.shape[1:]), layer])
    kernel = raw_kernel((3, 3, 2, 2), 1)
    layer.kernel.assign(kernel)
    keras_san.measure_norms(model)
    if norm is None:
        kernel = kernel / sparsity_aware(kernel, (4, 5))
    else:
        kernel = kernel / norm(kernel.reshape(-1, 2))
    check(model(inputs), circular_convolution(inputs, kernel))
    if (name, form) == ("sn", "divide"):
        # One more step of power iteration changes nothing.
        before = to_numpy(layer.normalizations[0].norm)
        model(inputs, training=True)
        after = to_numpy(layer.normalizations[0].norm)
        np.testing.assert_allclose(after, before, rtol=1e-5)


def test_no_path_leads_to_a_weight_and_to_a_layer(tmp_path):
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            SANConv2D(2, 3),
            SANWrapper(layers.SeparableConv2D(2, 3), "sn"),
            SANDense(2, name="dense"),
        ],
        name="critic",
    )
    inputs = some_inputs((2, 6, 6, 2), 0)
    model(inputs, training=True)
    path = str(tmp_path / "model.h5")
    model.save(path)
    loaded = keras.saving.load_model(path, compile=False)
    np.testing.assert_array_equal(
        to_numpy(loaded(inputs)), to_numpy(model(inputs))
    )
    model.trainable = False
    model.compile("adam")
    tree = model.get_state_tree()["non_trainable_variables"]
    assert {"kernel", "kernel_normalization"} <= {*tree["critic"]["dense"]}


def test_default_names_do_not_clash():
    keras.utils.clear_session()  # Names count from the start of a process.
    model = keras.Sequential(
        [
            keras.Input((6, 6, 2)),
            SANConv2D(2, 3),
            SANWrapper(layers.Conv2D(2, 3)),
            SANDense(2),
            SANWrapper(layers.Dense(2)),
        ]
    )
    assert len({layer.name for layer in model.layers}) == 4
