"""Every layer and every normalizer against the promises of the design.

Each promise is a test that fails when the promise is broken. Expected
values come from NumPy in float64, or from the plain Keras layer.
"""

import functools

import keras
import numpy as np
import pytest
from helpers import (
    BACKEND,
    circular_convolution,
    kernel_gradient,
    matrix_norm,
    operator_norm,
    sparse_gain,
    sparsity_aware,
    to_numpy,
)
from keras import layers, ops

import keras_san
from keras_san import SANConv2D, SANDense, SANWrapper, normalizers

IMAGE = (2, 6, 4, 4)  # Height and width differ, so that mixing them up shows.

# Name: (layer from normalizer and keyword arguments, shape of its input).
LAYERS = {
    "san_conv2d": (lambda n, **k: SANConv2D(3, 3, normalizer=n, **k), IMAGE),
    "san_conv2d_stride": (
        lambda n, **k: SANConv2D(3, 4, 2, normalizer=n, **k),
        IMAGE,
    ),
    "san_conv2d_same": (
        lambda n, **k: SANConv2D(3, 3, 2, "same", normalizer=n, **k),
        IMAGE,
    ),
    "san_conv2d_dilated": (
        lambda n, **k: SANConv2D(3, 3, dilation_rate=2, normalizer=n, **k),
        IMAGE,
    ),
    "san_conv2d_groups": (
        lambda n, **k: SANConv2D(6, 3, groups=2, normalizer=n, **k),
        IMAGE,
    ),
    "san_dense": (lambda n, **k: SANDense(3, normalizer=n, **k), (5, 7)),
    "conv1d": (
        lambda n, **k: SANWrapper(
            layers.Conv1D(3, 4, strides=2, **k), n, padding="circular"
        ),
        (2, 8, 3),
    ),
    "conv2d": (
        lambda n, **k: SANWrapper(layers.Conv2D(3, 2, **k), n),
        IMAGE,
    ),
    "conv3d": (
        lambda n, **k: SANWrapper(
            layers.Conv3D(2, 2, **k), n, padding="circular"
        ),
        (1, 4, 3, 2, 2),
    ),
    "conv2d_transpose": (
        lambda n, **k: SANWrapper(
            layers.Conv2DTranspose(3, 4, 2, **k), n, padding="circular"
        ),
        (2, 3, 2, 4),
    ),
    "depthwise": (
        lambda n, **k: SANWrapper(
            layers.DepthwiseConv2D(3, depth_multiplier=2, **k),
            n,
            padding="circular",
        ),
        IMAGE,
    ),
    "separable": (
        lambda n, **k: SANWrapper(
            layers.SeparableConv2D(3, 3, **k), n, padding="circular"
        ),
        IMAGE,
    ),
    "dense": (lambda n, **k: SANWrapper(layers.Dense(3, **k), n), (5, 7)),
    "einsum_dense": (
        lambda n, **k: SANWrapper(
            layers.EinsumDense("abc,cde->abde", (3, 2, 4), **k), n
        ),
        (2, 3, 5),
    ),
    "embedding": (
        lambda n, **k: SANWrapper(layers.Embedding(9, 4, **k), n),
        (2, 5),
    ),
}

NORMALIZERS = {
    "san": normalizers.SparsityAware,
    "san adaptive": functools.partial(
        normalizers.SparsityAware, gain="adaptive"
    ),
    "san sparsity=4": functools.partial(normalizers.SparsityAware, sparsity=4),
    "sn": normalizers.Spectral,
    "bssn": normalizers.BidirectionalSpectral,
    "conv_sn": normalizers.ConvSpectral,
}

# The projected form keeps no state to adapt with.
SETTINGS = [
    (normalizer, form)
    for normalizer in NORMALIZERS
    for form in ("divide", "project")
    if (normalizer, form) != ("san adaptive", "project")
]

# What a layer does with its kernels does not depend on which norm they have,
# and a form is attached to any layer in one way: all layers with one setting,
# one convolution with all settings, and a layer of two kernels that are
# projected. Tests whose promise depends on both add what they need.
CONVOLUTION = "san_conv2d_groups"
DIVIDED = [(layer, "san") for layer in LAYERS] + [
    (CONVOLUTION, normalizer)
    for normalizer in NORMALIZERS
    if normalizer != "san"
]
PROJECTED = [("separable", "san")] + [
    (CONVOLUTION, normalizer)
    for normalizer, form in SETTINGS
    if form == "project"
]
CASES = [(*case, "divide") for case in DIVIDED] + [
    (*case, "project") for case in PROJECTED
]
# Weight normalization measures nothing: it has to keep the other promises.
LENGTHS = ("separable", "weight")
# The norms, and their gradients, of the kinds of geometry there are.
KINDS = ["san_conv2d_same", "conv2d_transpose", "depthwise", "san_dense"]
PRODUCTS = [
    (layer, normalizer)
    for layer in KINDS
    for normalizer in ("sn", "bssn", "conv_sn")
]
# Each layer has initializers and constraints of its own to project with.
ALL_PROJECTED = [(layer, "san") for layer in LAYERS] + PROJECTED[2:]

each_normalizer = pytest.mark.parametrize("normalizer_name", NORMALIZERS)
each_divided = pytest.mark.parametrize("layer_name, normalizer_name", DIVIDED)
each_divided_or_weight = pytest.mark.parametrize(
    "layer_name, normalizer_name", [*DIVIDED, LENGTHS]
)
each_case = pytest.mark.parametrize("layer_name, normalizer_name, form", CASES)
each_case_or_weight = pytest.mark.parametrize(
    "layer_name, normalizer_name, form", [*CASES, (*LENGTHS, "divide")]
)
each_form = pytest.mark.parametrize("form", ["divide", "project"])
each_setting = pytest.mark.parametrize("normalizer_name, form", SETTINGS)


@keras.saving.register_keras_serializable("keras_san_tests")
class AlmostOneTap(keras.initializers.Initializer):
    """Spectra so flat that a few channels are enough for a gain above 1."""

    def __call__(self, shape, dtype=None):
        rng = np.random.default_rng(4)
        value = 0.002 * rng.normal(size=shape)
        value[(0,) * (len(shape) - 2)] += rng.choice([-0.1, 0.1], shape[-2:])
        return ops.convert_to_tensor(value, dtype)


def make(layer_name, normalizer_name, form="divide", seed=0, **kwargs):
    """A layer built with seeded kernels, and an input for it."""
    settings = {
        k: kwargs.pop(k)
        for k in ("scale", "gain", "ratio", "update_interval")
        if k in kwargs
    }
    if normalizer_name == "san adaptive":
        names = {"separable": ["depthwise", "pointwise"]}
        for name in names.get(layer_name, ["kernel"]):
            kwargs[f"{name}_initializer"] = AlmostOneTap()
    constructor, shape = LAYERS[layer_name]
    keras.utils.set_random_seed(seed)
    normalizer = "weight"
    if normalizer_name != "weight":
        normalizer = NORMALIZERS[normalizer_name](form=form, **settings)
    layer = constructor(normalizer, **kwargs)
    layer.build(shape)
    return layer, example(layer_name)


def example(layer_name, seed=0):
    _, shape = LAYERS[layer_name]
    rng = np.random.default_rng(seed)
    if layer_name == "embedding":
        return rng.integers(9, size=shape)
    return rng.normal(size=shape).astype("float32")


def kernels(layer):
    return [
        normalization.get_kernel() for normalization in layer.normalizations
    ]


def divided_kernels(layer):
    """The kernels that the layer really runs with, by way of `strip`."""
    plain = keras_san.strip(layer)
    shapes = [k.shape for k in kernels(layer)]
    found = [w for w in plain.weights if len(w.shape) > 1]
    assert [w.shape for w in found] == shapes
    return [to_numpy(w) for w in found]


def expected_norm(layer_name, normalizer_name, index, kernel):
    """The norm of kernel number `index`, in NumPy float64."""
    kernel = np.asarray(kernel, "float64")
    if layer_name in ("san_dense", "dense", "embedding"):
        return np.linalg.norm(kernel, 2)
    if layer_name == "einsum_dense":
        return np.linalg.norm(kernel.reshape(kernel.shape[0], -1), 2)
    _, shape = LAYERS[layer_name]
    grid = shape[1:-1]
    rank = len(grid)
    strides = {
        "san_conv2d_stride": (2, 2),
        "san_conv2d_same": (2, 2),
        "conv1d": (2,),
        "conv2d_transpose": (2, 2),
    }.get(layer_name, (1,) * rank)
    dilation_rate = (
        (2, 2) if layer_name == "san_conv2d_dilated" else (1,) * rank
    )
    groups = 2 if layer_name == "san_conv2d_groups" else 1
    if layer_name == "conv2d_transpose":
        grid = tuple(2 * n for n in grid)
    if layer_name == "san_conv2d_same":  # Zero padding of 3 taps.
        grid = tuple(n + 2 for n in grid)
    if layer_name == "depthwise" or (layer_name == "separable" and index == 0):
        groups = kernel.shape[-2]
        kernel = kernel.reshape(*kernel.shape[:-2], 1, -1)
    swapped = np.swapaxes(kernel, -1, -2)
    if normalizer_name in ("san", "san adaptive"):
        return sparsity_aware(kernel, grid, dilation_rate)
    if normalizer_name == "san sparsity=4":
        transposed = layer_name == "conv2d_transpose"
        kernel = swapped if transposed else kernel
        return sparse_gain(kernel, 4, grid, dilation_rate)
    if normalizer_name == "sn":
        transposed = layer_name == "conv2d_transpose"
        return matrix_norm(swapped if transposed else kernel)
    if normalizer_name == "bssn":
        return (matrix_norm(kernel) + matrix_norm(swapped)) / 2
    return operator_norm(kernel, grid, strides, dilation_rate, groups)


@pytest.mark.parametrize(
    "layer_name, normalizer_name, form",
    [(*case, "divide") for case in DIVIDED + PRODUCTS]
    + [(*case, "project") for case in ALL_PROJECTED]
    + [
        ("san_conv2d_dilated", "conv_sn", "divide"),
        ("san_conv2d_dilated", "san sparsity=4", "divide"),
        ("conv2d_transpose", "san sparsity=4", "divide"),
        ("depthwise", "san sparsity=4", "divide"),
    ],
)
def test_kernels_are_divided_by_their_norm(layer_name, normalizer_name, form):
    layer, inputs = make(layer_name, normalizer_name, form, scale=1.5)
    for index, (kernel, divided) in enumerate(
        zip(kernels(layer), divided_kernels(layer))
    ):
        kernel = to_numpy(kernel)
        norm = expected_norm(layer_name, normalizer_name, index, kernel)
        if form == "project":
            np.testing.assert_allclose(norm, 1.5, rtol=1e-5)
            np.testing.assert_array_equal(divided, kernel)
        else:
            np.testing.assert_allclose(divided, kernel * 1.5 / norm, rtol=1e-5)
    plain = keras_san.strip(layer)
    np.testing.assert_allclose(
        to_numpy(layer(inputs)), to_numpy(plain(inputs)), rtol=1e-5, atol=1e-6
    )


# 1. No forward pass ever overwrites the trainable kernel; every pass of one
# training step sees the same weights.


@each_case_or_weight
def test_held_passes_see_the_same_weights(layer_name, normalizer_name, form):
    layer, inputs = make(layer_name, normalizer_name, form)
    layer(inputs)
    for kernel in kernels(layer):
        kernel.assign(to_numpy(kernel) * 2)
    before = [to_numpy(k) for k in kernels(layer)]
    first = to_numpy(layer(inputs, training=True))
    with keras_san.hold_norms():
        second = to_numpy(layer(inputs, training=True))
        with keras_san.hold_norms():
            pass
        third = to_numpy(layer(inputs, training=True))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, third)
    np.testing.assert_array_equal(first, to_numpy(layer(inputs)))
    for kernel, value in zip(kernels(layer), before):
        np.testing.assert_array_equal(to_numpy(kernel), value)


# 2. SAN's norm is a constant to the gradient; the sigma of the others carries
# gradient through the kernel, none through the vectors.


@pytest.mark.parametrize("layer_name, normalizer_name", DIVIDED + PRODUCTS)
def test_gradient(layer_name, normalizer_name):
    layer, inputs = (
        make(layer_name, normalizer_name, scale=1.5, use_bias=False)
        if (layer_name not in ("einsum_dense", "embedding"))
        else make(layer_name, normalizer_name, scale=1.5)
    )
    layer(inputs, training=True)  # A gain that is measured, is from now on.
    plain = keras_san.strip(layer)
    shape = tuple(plain(inputs).shape)
    cotangent = np.random.default_rng(1).normal(size=shape)
    for kernel in kernels(layer):
        target = next(
            w for w in plain.trainable_weights if w.shape == kernel.shape
        )
        outer = kernel_gradient(plain, target, inputs, cotangent)
        gradient = kernel_gradient(layer, kernel, inputs, cotangent)
        value, divided = to_numpy(kernel), to_numpy(target)
        factor = divided.flat[0] / value.flat[0]  # scale / norm
        scale = np.abs(factor * outer).max()
        if not NORMALIZERS[normalizer_name]().differentiable:
            np.testing.assert_allclose(
                gradient, factor * outer, atol=1e-5 * scale
            )
        else:
            # The divided kernel does not change with the kernel's size.
            along = np.sum(gradient * value) / np.linalg.norm(value)
            across = np.linalg.norm(gradient)
            assert abs(along) < 1e-4 * across
            assert np.abs(gradient - factor * outer).max() > 1e-3 * scale


@pytest.mark.parametrize("layer_name", ["dense", "san_conv2d"])
@pytest.mark.parametrize("normalizer_name", ["sn", "bssn"])
def test_gradient_through_sigma(layer_name, normalizer_name):
    layer, inputs = make(layer_name, normalizer_name, use_bias=False)
    plain = keras_san.strip(layer)
    cotangent = np.random.default_rng(1).normal(size=plain(inputs).shape)
    (kernel,) = kernels(layer)
    (target,) = plain.trainable_weights
    outer = kernel_gradient(plain, target, inputs, cotangent)
    value = to_numpy(kernel)

    def rank_one(matrix):
        u, s, v = np.linalg.svd(matrix, full_matrices=False)
        return s[0], np.outer(u[:, 0], v[0])

    sigma, direction = rank_one(value.reshape(-1, value.shape[-1]))
    direction = direction.reshape(value.shape)
    if normalizer_name == "bssn" and value.ndim > 2:
        swapped = np.swapaxes(value, -1, -2)
        sigma2, direction2 = rank_one(swapped.reshape(-1, swapped.shape[-1]))
        direction2 = np.swapaxes(direction2.reshape(swapped.shape), -1, -2)
        sigma, direction = (sigma + sigma2) / 2, (direction + direction2) / 2
    expected = (outer - np.sum(outer * value) / sigma * direction) / sigma
    np.testing.assert_allclose(
        kernel_gradient(layer, kernel, inputs, cotangent),
        expected,
        atol=1e-4 * np.abs(expected).max(),
    )


# The axes of each kernel that tell its outputs apart, if not the last one.
OUTPUTS = {
    "conv2d_transpose": [(2,)],
    "depthwise": [(2, 3)],
    "separable": [(2, 3), (3,)],
    "einsum_dense": [(1, 2)],
    "embedding": [(0,)],
}


@pytest.mark.parametrize("layer_name", LAYERS)
def test_weight_normalization(layer_name):
    """Salimans and Kingma's Eqs. 2 and 3, of any kind of layer."""
    layer, inputs = make(layer_name, "weight")
    found = zip(kernels(layer), divided_kernels(layer))
    for kernel, divided in found:
        np.testing.assert_array_equal(divided, to_numpy(kernel))
    rng = np.random.default_rng(1)
    for normalization in layer.normalizations:
        kernel, lengths = normalization.get_kernel(), normalization.lengths
        kernel.assign(rng.normal(size=kernel.shape))
        lengths.assign(rng.normal(size=lengths.shape))
    plain = keras_san.strip(layer)
    outputs = to_numpy(layer(inputs))
    np.testing.assert_allclose(outputs, to_numpy(plain(inputs)), atol=1e-5)
    cotangent = rng.normal(size=outputs.shape)
    for index, normalization in enumerate(layer.normalizations):
        kernel, lengths = normalization.get_kernel(), normalization.lengths
        v, g = to_numpy(kernel), to_numpy(lengths)
        outputs = OUTPUTS.get(layer_name, [(v.ndim - 1,)])[index]
        summed = tuple(a for a in range(v.ndim) if a not in outputs)
        norm = np.sqrt(np.sum(v**2, axis=summed, keepdims=True))
        g = g.reshape(norm.shape)
        (target,) = (w for w in plain.weights if w.shape == kernel.shape)
        np.testing.assert_allclose(to_numpy(target), g * v / norm, rtol=1e-5)
        outer = kernel_gradient(plain, target, inputs, cotangent)
        by_length = np.sum(outer * v, summed, keepdims=True) / norm
        by_kernel = g / norm * (outer - by_length * v / norm)
        for variable, expected in ((kernel, by_kernel), (lengths, by_length)):
            gradient = kernel_gradient(layer, variable, inputs, cotangent)
            scale = np.abs(expected).max()
            assert scale > 0.1
            np.testing.assert_allclose(
                gradient.ravel(), expected.ravel(), atol=1e-5 * scale
            )


@pytest.mark.parametrize(
    "dtype, expected",
    [("mixed_float16", "float32"), ("bfloat16", "float32")]
    + [("float64", "float64")] * (BACKEND != "jax"),
)
def test_lengths_are_trained(dtype, expected):
    layer, inputs = make("dense", "weight", dtype=dtype)
    (kernel,), (normalization,) = kernels(layer), layer.normalizations
    lengths = normalization.lengths
    assert lengths.dtype == expected
    assert lengths.aggregation == kernel.aggregation
    outputs = layer(inputs, training=True)
    plain = keras_san.strip(layer)(inputs)
    assert outputs.dtype == plain.dtype
    np.testing.assert_array_equal(
        *(to_numpy(ops.cast(x, "float32")) for x in (outputs, plain))
    )
    assert {id(v) for v in (kernel, lengths)} < {
        id(v) for v in layer.trainable_variables
    }
    layer.trainable = False
    assert not layer.trainable_variables
    frozen = SANDense(3, normalizer="weight", trainable=False)
    model = keras.Sequential([keras.Input((7,)), frozen])
    assert not model.trainable_variables


def test_outputs_of_zeros_stay_zero():
    layer, inputs = make("dense", "weight")
    (kernel,), (normalization,) = kernels(layer), layer.normalizations
    kernel.assign(to_numpy(kernel) * [1.0, 0.0, 1.0])
    cotangent = np.ones((5, 3))
    np.testing.assert_array_equal(to_numpy(layer(inputs))[:, 1], 0.0)
    for variable in (kernel, normalization.lengths):
        gradient = kernel_gradient(layer, variable, inputs, cotangent)
        assert np.isfinite(gradient).all()
    # Also a length that begins so.
    layer = SANDense(2, normalizer="weight", kernel_initializer="zeros")
    np.testing.assert_array_equal(to_numpy(layer(inputs)), np.zeros((5, 2)))


# 3. Measured (and projected) at build; then at every `update_interval`-th
# training call outside of `hold_norms`; never in inference or when frozen.


@each_divided
def test_when_the_norm_is_measured(layer_name, normalizer_name):
    layer, inputs = make(layer_name, normalizer_name, update_interval=3)
    start = to_numpy(layer(inputs))
    for kernel in kernels(layer):
        kernel.assign(to_numpy(kernel) * 2)

    def measured(**kwargs):
        layer(inputs, **kwargs)
        return all(
            np.allclose(
                float(to_numpy(normalization.norm)),
                expected_norm(
                    layer_name,
                    normalizer_name,
                    i,
                    to_numpy(normalization.get_kernel()),
                ),
                rtol=1e-3,
            )
            for i, normalization in enumerate(layer.normalizations)
        )

    assert not measured(training=False)
    layer.trainable = False
    for _ in range(3):
        assert not measured(training=True)
    layer.trainable = True
    with keras_san.hold_norms():
        for _ in range(3):
            assert not measured(training=True)
    assert not measured(training=True)
    assert not measured(training=True)
    assert measured(training=True)
    if len(layer.normalizations) == 1 and layer_name != "embedding":
        # Kernel and norm have doubled both; only a bias could tell.
        gain = to_numpy(layer.normalizations[0].gain())
        np.testing.assert_allclose(
            to_numpy(layer(inputs)) * gain, start, rtol=1e-3, atol=1e-4
        )


@pytest.mark.parametrize("layer_name, normalizer_name", ALL_PROJECTED)
def test_projection_follows_the_update(layer_name, normalizer_name):
    layer, inputs = make(layer_name, normalizer_name, "project", scale=0.5)
    optimizer = keras.optimizers.SGD(0.3)
    trainable = layer.trainable_variables
    rng = np.random.default_rng(0)
    optimizer.apply(
        [
            ops.convert_to_tensor(rng.normal(size=v.shape), "float32")
            for v in trainable
        ],
        trainable,
    )
    for index, kernel in enumerate(kernels(layer)):
        norm = expected_norm(
            layer_name, normalizer_name, index, to_numpy(kernel)
        )
        np.testing.assert_allclose(norm, 0.5, rtol=1e-4)
    assert not [n for n in layer.normalizations if n.weights]


@pytest.mark.parametrize("normalizer_name", ["sn", "bssn", "conv_sn"])
def test_a_changing_kernel_is_followed(normalizer_name):
    """Power iteration from the last vectors keeps up with training."""
    layer, inputs = make("san_conv2d", normalizer_name)
    rng = np.random.default_rng(3)
    (normalization,) = layer.normalizations
    kernel = normalization.get_kernel()
    # The same on all backends, and no near tie, at which it would lag.
    kernel.assign(rng.normal(size=kernel.shape) * 0.2)
    for _ in range(60):
        step = rng.normal(size=kernel.shape) * 0.01
        kernel.assign(to_numpy(kernel) + step)
        layer(inputs, training=True)
    expected = expected_norm("san_conv2d", normalizer_name, 0, to_numpy(kernel))
    np.testing.assert_allclose(
        to_numpy(normalization.norm), expected, rtol=0.01
    )
    before = to_numpy(normalization.norm)
    for _ in range(3):
        layer(inputs)
    np.testing.assert_array_equal(to_numpy(normalization.norm), before)


def expected_gain(layer_name, kernel, inputs):
    """The number of active channels, and the adaptive gain, in float64."""
    if layer_name in ("san_dense", "separable"):
        return None, 1.0
    groups = 2 if layer_name == "san_conv2d_groups" else 1
    energy = np.square(np.float64(inputs))
    energy = energy.sum(axis=tuple(range(1, inputs.ndim - 1)))
    energy = energy.reshape(-1, inputs.shape[-1] // groups)
    channels = np.mean(energy.sum(axis=1) / energy.max(axis=1))
    norm = expected_norm(layer_name, "san", 0, kernel)
    mean_square = np.sum(kernel**2) / np.prod(kernel.shape[-2:])
    return channels, max(1.0, np.sqrt(channels * mean_square) / norm)


@pytest.mark.parametrize(
    "layer_name",
    [
        "san_conv2d_stride",
        "san_conv2d_groups",
        "san_dense",
        "conv1d",
        "conv2d_transpose",
        "separable",
    ],
)
def test_the_adaptive_gain(layer_name):
    layer, inputs = make(layer_name, "san adaptive", update_interval=2)
    before = divided_kernels(layer)

    def check(channels, gain):
        for index, normalization in enumerate(layer.normalizations):
            kernel = to_numpy(normalization.get_kernel())
            lemma_1 = expected_norm(layer_name, "san", index, kernel)
            np.testing.assert_allclose(
                to_numpy(normalization.gain()), gain, rtol=1e-5
            )
            np.testing.assert_allclose(
                to_numpy(normalization.current()), gain * lemma_1, rtol=1e-5
            )
            np.testing.assert_allclose(
                divided_kernels(layer)[index], before[index] / gain, rtol=1e-5
            )
            if channels is not None:
                np.testing.assert_allclose(
                    to_numpy(normalization.channels), channels, rtol=1e-5
                )

    kernel = to_numpy(kernels(layer)[0])
    channels, gain = expected_gain(layer_name, kernel, inputs)
    start = None if channels is None else 0.0
    check(start, 1.0)
    layer(inputs)
    with keras_san.hold_norms():
        layer(inputs, training=True)
        layer(inputs, training=True)
    layer.trainable = False
    layer(inputs, training=True)
    layer(inputs, training=True)
    layer.trainable = True
    layer(inputs, training=True)  # The first of two.
    check(start, 1.0)
    layer(inputs, training=True)
    check(channels, gain)
    if channels is None:
        return
    assert gain > 1.15
    # The outputs are those of the divided kernel, at once.
    outputs = to_numpy(keras_san.strip(layer)(inputs))
    with keras_san.hold_norms():
        found = to_numpy(layer(inputs, training=True))
    np.testing.assert_allclose(found, outputs, rtol=1e-5, atol=1e-6)
    # Now signals of one channel each: 99 % of the average stays.
    sparse = np.zeros_like(inputs)
    sparse[..., 1] = inputs[..., 1]
    layer(sparse, training=True)
    check(channels, gain)
    layer(sparse, training=True)
    channels = 0.99 * channels + 0.01
    check(channels, gain * np.sqrt(channels / (channels - 0.01) * 0.99))


@pytest.mark.parametrize(
    "layer_name", ["san_conv2d", "san_conv2d_groups", "conv2d_transpose"]
)
def test_sparse_signals_get_plain_san(layer_name):
    layer, inputs = make(layer_name, "san adaptive")
    if layer_name == "san_conv2d_groups":
        inputs = inputs * 0  # Each group has a largest channel of its own.
    inputs[..., 1:] = 0.0
    plain = type(layer).from_config(
        {
            **layer.get_config(),
            "normalizer": keras.saving.serialize_keras_object(
                normalizers.SparsityAware()
            ),
        }
    )
    plain.build(inputs.shape)
    for kernel, other in zip(kernels(layer), kernels(plain)):
        other.assign(kernel)
    for _ in range(3):
        np.testing.assert_array_equal(
            to_numpy(layer(inputs, training=True)),
            to_numpy(plain(inputs, training=True)),
        )
    for normalization in layer.normalizations:
        assert float(to_numpy(normalization.gain())) == 1.0


# 4. State is weights: it survives files and checkpoints, bit for bit.


@each_case_or_weight
def test_files_restore_everything(layer_name, normalizer_name, form, tmp_path):
    layer, inputs = make(layer_name, normalizer_name, form)
    model = keras.Sequential([keras.Input(inputs.shape[1:]), layer])
    for kernel in kernels(layer):
        kernel.assign(to_numpy(kernel) * 1.1 + 0.01)
    model(inputs, training=True)
    expected = to_numpy(model(inputs))
    path = str(tmp_path / "model.keras")
    model.save(path)
    loaded = keras.saving.load_model(path)
    np.testing.assert_array_equal(to_numpy(loaded(inputs)), expected)
    with keras_san.hold_norms():
        trained = to_numpy(loaded(inputs, training=True))
    np.testing.assert_array_equal(trained, expected)


@pytest.mark.parametrize(
    "normalizer_name, form", [*SETTINGS, ("weight", "divide")]
)
def test_weights_restore_everything(normalizer_name, form, tmp_path):
    layer, inputs = make(CONVOLUTION, normalizer_name, form)
    model = keras.Sequential([keras.Input(inputs.shape[1:]), layer])
    for kernel in kernels(layer):
        kernel.assign(to_numpy(kernel) * 1.1 + 0.01)
    model(inputs, training=True)
    path = str(tmp_path / "model.weights.h5")
    model.save_weights(path)
    keras.utils.set_random_seed(7)
    fresh = keras.Sequential(
        [
            keras.Input(inputs.shape[1:]),
            type(layer).from_config(layer.get_config()),
        ]
    )
    fresh.load_weights(path)
    np.testing.assert_array_equal(
        to_numpy(fresh(inputs)), to_numpy(model(inputs))
    )
    for ours, theirs in zip(model.weights, fresh.weights):
        np.testing.assert_array_equal(to_numpy(ours), to_numpy(theirs))


@each_normalizer
def test_state_is_float32_and_agrees_between_replicas(normalizer_name):
    layer, _ = make("san_conv2d", normalizer_name, dtype="mixed_bfloat16")
    for normalization in layer.normalizations:
        for weight in normalization.weights:
            expected = "int32" if weight.name == "counter" else "float32"
            assert weight.dtype == expected
            assert not weight.trainable
            assert weight.aggregation == "only_first_replica"
    names = {w.name for w in normalization.weights}
    assert {"norm", "counter"} <= names
    follows = NORMALIZERS[normalizer_name]().differentiable
    assert follows == ("vectors_0" in names)
    adaptive = normalizer_name == "san adaptive"
    assert ({"channels", "gain"} <= names) == adaptive
    assert len(names) == 2 + (2 if adaptive else "vectors_0" in names) + (
        "vectors_1" in names
    )


def test_random_state_survives_files(tmp_path):
    layer, inputs = make("san_conv2d", "san", ratio=0.25)
    model = keras.Sequential([keras.Input(inputs.shape[1:]), layer])
    model(inputs, training=True)
    model.save(str(tmp_path / "model.keras"))
    loaded = keras.saving.load_model(str(tmp_path / "model.keras"))
    seen = set()
    for _ in range(6):
        model(inputs, training=True)
        loaded(inputs, training=True)
        norm = float(to_numpy(layer.normalizations[0].norm))
        assert norm == float(to_numpy(loaded.layers[0].normalizations[0].norm))
        seen.add(norm)
    assert len(seen) > 1  # Each measurement draws its own filters.


# 5. Low precision computes in low precision and measures in float32.


@pytest.mark.parametrize(
    "layer_name, normalizer_name, form, dtype",
    [(layer, "san", "divide", "mixed_bfloat16") for layer in LAYERS]
    + [
        ("san_conv2d", "san", "divide", "mixed_float16"),
        ("san_conv2d", "san", "project", "mixed_bfloat16"),
        ("san_conv2d", "sn", "divide", "mixed_bfloat16"),
        ("san_conv2d", "bssn", "divide", "mixed_float16"),
        ("san_conv2d", "conv_sn", "project", "mixed_float16"),
        ("san_conv2d", "san sparsity=4", "divide", "mixed_bfloat16"),
        ("san_dense", "san", "divide", "mixed_float16"),
        ("embedding", "sn", "project", "mixed_float16"),
    ],
)
def test_mixed_precision(layer_name, normalizer_name, form, dtype):
    layer, inputs = make(layer_name, normalizer_name, form, dtype=dtype)
    reference, _ = make(layer_name, normalizer_name, form)
    compute = layer.compute_dtype
    assert compute in ("float16", "bfloat16")
    try:
        outputs = layer(inputs, training=True)
    except Exception as error:  # A kernel that this backend lacks on CPU.
        plain = keras_san.strip(layer)
        with pytest.raises(type(error)):
            plain(inputs)
        pytest.skip(f"Keras' own layer has no {compute} here: {error}")
    assert keras.utils.standardize_dtype(outputs.dtype) == compute
    for index, normalization in enumerate(layer.normalizations):
        kernel = normalization.get_kernel()
        assert kernel.dtype == "float32"
        expected = expected_norm(
            layer_name, normalizer_name, index, to_numpy(kernel)
        )
        np.testing.assert_allclose(
            to_numpy(normalization.current()), expected, rtol=1e-5
        )
        if form == "divide":  # As it was measured inside of the call.
            np.testing.assert_allclose(
                to_numpy(normalization.norm), expected, rtol=1e-5
            )
    epsilon = 0.01 if compute == "float16" else 0.05
    expected = to_numpy(reference(inputs))
    np.testing.assert_allclose(
        to_numpy(ops.cast(outputs, "float32")),
        expected,
        atol=epsilon * max(1.0, np.abs(expected).max()),
    )


@pytest.mark.skipif(
    BACKEND == "jax", reason="jax has no float64 by default; run elsewhere"
)
@each_setting
def test_double_precision_is_kept(normalizer_name, form):
    constructor, shape = LAYERS["san_conv2d"]
    layer = constructor(
        NORMALIZERS[normalizer_name](form=form), dtype="float64"
    )
    layer.build(shape)
    kernel = to_numpy(kernels(layer)[0])
    ratio = divided_kernels(layer)[0] / kernel
    np.testing.assert_allclose(ratio, ratio.flat[0], rtol=1e-14)
    assert np.any(kernel != kernel.astype("float32"))


# 6. The same numbers, to rounding, eager and compiled. (Two replicas: see
# test_distribution. Backends: each is held to the same NumPy above.)


@each_divided_or_weight
def test_compiled_is_eager(layer_name, normalizer_name):
    layer, inputs = make(layer_name, normalizer_name, update_interval=2)
    for kernel in kernels(layer):
        kernel.assign(to_numpy(kernel) * 1.3 + 0.02)
    start = [to_numpy(w) for w in layer.weights]

    def restart():
        for weight, value in zip(layer.weights, start):
            weight.assign(value)

    expected = [to_numpy(layer(inputs, training=True)) for _ in range(3)]
    # XLA takes long, and knows the norms, not the layers.
    for run in compiled(layer, inputs, xla=layer_name == CONVOLUTION):
        restart()
        for value in expected:
            np.testing.assert_allclose(run(), value, rtol=1e-4, atol=1e-5)


def compiled(layer, inputs, xla):
    if BACKEND == "tensorflow":
        import tensorflow as tf

        for jit in (False, True) if xla else (False,):
            function = tf.function(layer, jit_compile=jit)
            yield lambda f=function: to_numpy(f(inputs, training=True))
    elif BACKEND == "jax":
        import jax

        @jax.jit
        def function(trainable, rest):
            return layer.stateless_call(trainable, rest, inputs, training=True)

        def run():
            outputs, rest = function(
                [v.value for v in layer.trainable_variables],
                [v.value for v in layer.non_trainable_variables],
            )
            for variable, value in zip(layer.non_trainable_variables, rest):
                variable.assign(value)
            return to_numpy(outputs)

        yield run


@each_form
def test_fit(form):
    """A model that `fit` itself builds has the right loss from the start."""
    rng = np.random.default_rng(3)
    raw = [rng.normal(size=(3, 3, 4, 2)), rng.normal(size=(48, 1))]

    def known(value):
        return lambda shape, dtype=None: ops.convert_to_tensor(value, dtype)

    conv = SANConv2D(
        2,
        3,
        kernel_initializer=known(raw[0]),
        normalizer=normalizers.SparsityAware(form=form),
    )
    dense = SANDense(
        1,
        kernel_initializer=known(raw[1]),
        normalizer=normalizers.Spectral(form=form),
    )
    model = keras.Sequential([conv, layers.Flatten(), dense])
    model.compile(keras.optimizers.SGD(0.01), "mse")
    inputs = example("san_conv2d")
    loss = model.fit(inputs, np.zeros((2, 1)), epochs=20, verbose=0)
    loss = loss.history["loss"]
    norm = sparsity_aware(raw[0], IMAGE[1:3])
    outputs = circular_convolution(inputs, raw[0] / norm)
    outputs = outputs.reshape(2, -1) @ raw[1] / np.linalg.norm(raw[1])
    np.testing.assert_allclose(loss[0], np.mean(outputs**2), rtol=1e-4)
    assert loss[-1] < loss[0]
    kernel = to_numpy(conv.kernel)
    norm = sparsity_aware(kernel, IMAGE[1:3])
    if form == "project":
        np.testing.assert_allclose(norm, 1.0, rtol=1e-5)
    else:
        # Measured at the last step, before its update.
        np.testing.assert_allclose(
            to_numpy(conv.normalizations[0].norm), norm, rtol=0.01
        )


# 7. Corner cases have a defined result or a clear error.


@each_case
def test_zero_kernel_gives_zero_and_recovers(layer_name, normalizer_name, form):
    layer, inputs = make(layer_name, normalizer_name, form)
    values = [to_numpy(k) for k in kernels(layer)]
    for kernel in kernels(layer):
        kernel.assign(np.zeros(kernel.shape))
    outputs = to_numpy(layer(inputs, training=True))
    np.testing.assert_array_equal(outputs, np.zeros_like(outputs))
    if form == "project":
        for normalization in layer.normalizations:
            zero = to_numpy(normalization.project(normalization.get_kernel()))
            np.testing.assert_array_equal(zero, np.zeros_like(zero))
        return
    for kernel, value in zip(kernels(layer), values):
        kernel.assign(value)
    layer(inputs, training=True)
    for index, normalization in enumerate(layer.normalizations):
        expected = expected_norm(
            layer_name, normalizer_name, index, values[index]
        )
        np.testing.assert_allclose(
            to_numpy(normalization.norm), expected, rtol=1e-3
        )


@each_setting
def test_not_finite_kernels_stop_and_name_the_layer(normalizer_name, form):
    layer, inputs = make("san_conv2d", normalizer_name, form, name="culprit")
    (kernel,) = kernels(layer)
    value = to_numpy(kernel)
    value[1, 1, 2, 0] = np.nan if form == "divide" else np.inf
    with pytest.raises(
        ValueError, match="kernel of layer culprit is not finite"
    ):
        if form == "divide":
            kernel.assign(value)
            layer(inputs, training=True)
        else:
            kernel.constraint(ops.convert_to_tensor(value, "float32"))


@pytest.mark.skipif(
    BACKEND != "tensorflow",
    reason="inside of jax.jit nothing can raise; GANs check at epoch's end, "
    "see test_gan",
)
@each_form
def test_not_finite_kernels_stop_fit(form):
    normalizer = normalizers.SparsityAware(form=form)
    model = keras.Sequential(
        [
            keras.Input(IMAGE[1:]),
            SANConv2D(2, 3, name="culprit", normalizer=normalizer),
            layers.Flatten(),
        ]
    )
    model.compile("sgd", "mse")
    model.layers[0].kernel.assign(np.full((3, 3, 4, 2), np.nan))
    with pytest.raises(
        Exception, match="kernel of layer culprit is not finite"
    ):
        model.fit(example("san_conv2d"), np.zeros((2, 48)), verbose=0)


@each_normalizer
def test_a_single_filter(normalizer_name):
    _, shape = LAYERS["san_conv2d"]
    layer = SANConv2D(1, 3, normalizer=NORMALIZERS[normalizer_name]())
    layer.build((*shape[:-1], 1))
    np.testing.assert_allclose(
        to_numpy(layer.normalizations[0].norm),
        expected_norm("san_conv2d", normalizer_name, 0, to_numpy(layer.kernel)),
        rtol=1e-5,
    )


def test_a_pointwise_kernel():
    layer = SANConv2D(4, 1)
    layer.build((None, 5, 5, 3))
    np.testing.assert_allclose(
        to_numpy(layer.normalizations[0].norm),
        np.abs(to_numpy(layer.kernel)).max(),
        rtol=1e-6,
    )


def test_a_kernel_larger_than_the_image_wraps():
    layer = SANConv2D(2, 5, use_bias=False)
    inputs = np.random.default_rng(0).normal(size=(1, 3, 4, 2))
    outputs = to_numpy(layer(inputs))
    kernel = to_numpy(layer.kernel)
    norm = sparsity_aware(kernel, (3, 4))
    transform = circular_convolution(inputs, kernel)
    np.testing.assert_allclose(outputs, transform / norm, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "normalizer_name, form",
    [
        ("san", "divide"),
        ("san", "project"),
        ("sn", "divide"),
        ("bssn", "project"),
    ],
)
def test_unknown_height_and_width(normalizer_name, form):
    layer = SANConv2D(3, 3, normalizer=NORMALIZERS[normalizer_name](form=form))
    inputs = keras.Input((None, None, 4))
    model = keras.Model(inputs, layer(inputs))
    assert model.output_shape == (None, None, None, 3)
    rng = np.random.default_rng(0)
    for size in ((6, 4), (9, 7)):
        images = rng.normal(size=(1, *size, 4)).astype("float32")
        outputs = to_numpy(model(images, training=True))
        kernel = to_numpy(layer.kernel)
        np.testing.assert_allclose(
            outputs,
            circular_convolution(images, kernel) * divided(layer),
            rtol=1e-4,
            atol=1e-5,
        )
    if normalizer_name == "san":
        # The bound for every image, to what its docstring says.
        dense = sparsity_aware(kernel, (512, 512))
        effective = dense * divided(layer)
        assert 1 / 1.0013**2 <= effective <= 1.0


def divided(layer):
    normalization = layer.normalizations[0]
    return 1 / to_numpy(normalization.norm) if normalization.divides else 1.0


def test_unknown_size_has_no_operator_norm():
    layer = SANConv2D(3, 3, normalizer="conv_sn")
    with pytest.raises(ValueError, match="fixed input size"):
        layer.build((None, None, None, 4))


def test_operator_norm_needs_strides_that_divide():
    layer = SANConv2D(3, 3, 2, normalizer="conv_sn")
    with pytest.raises(ValueError, match="divides"):
        layer.build((None, 5, 6, 4))


# 8. Losses of the wrapped layer are kept, masks pass, shapes hold.


@pytest.mark.parametrize("layer_name", LAYERS)
def test_output_shape(layer_name):
    layer, inputs = make(layer_name, "san")
    expected = tuple(layer(inputs).shape)
    assert tuple(layer.compute_output_shape(inputs.shape)) == expected
    unknown = (None, *inputs.shape[1:])
    # EinsumDense of old versions tells the batch that it was built with.
    batch = keras_san.strip(layer).compute_output_shape(unknown)[0]
    assert tuple(layer.compute_output_shape(unknown)) == (batch, *expected[1:])
    symbolic = layer(keras.Input(inputs.shape[1:]))
    assert symbolic.shape == (batch, *expected[1:])


@each_form
@pytest.mark.parametrize("wrap", [True, False])
def test_losses_are_kept(wrap, form):
    settings = {
        "kernel_regularizer": keras.regularizers.L2(0.1),
        "activity_regularizer": keras.regularizers.L1(0.01),
    }
    san = normalizers.SparsityAware(form=form)
    if wrap:
        layer = SANWrapper(layers.Conv2D(3, 3, **settings), san, "circular")
    else:
        layer = SANConv2D(3, 3, normalizer=san, **settings)
    inputs = example("san_conv2d")
    outputs = to_numpy(layer(inputs, training=True))
    kernel = to_numpy(kernels(layer)[0])
    expected = sorted(
        [0.1 * np.sum(kernel**2), 0.01 * np.abs(outputs).sum() / len(inputs)]
    )
    losses = sorted(float(to_numpy(loss)) for loss in layer.losses)
    # Keras divides the activity's loss by the batch size on some versions.
    if not np.allclose(losses, expected, rtol=1e-4):
        expected = sorted(
            [0.1 * np.sum(kernel**2), 0.01 * np.abs(outputs).sum()]
        )
    np.testing.assert_allclose(losses, expected, rtol=1e-4)


def test_losses_reach_fit():
    def loss_of(layer):
        keras.utils.set_random_seed(0)
        model = keras.Sequential([keras.Input((6, 4, 4)), layer])
        model.compile("sgd", "mse")
        inputs = example("san_conv2d")
        targets = np.zeros(model(inputs).shape)
        return model.evaluate(inputs, targets, verbose=0)

    regularizer = keras.regularizers.L1(0.5)
    plain = loss_of(SANWrapper(layers.Conv2D(2, 3)))
    extra = loss_of(
        SANWrapper(layers.Conv2D(2, 3, activity_regularizer=regularizer))
    )
    assert extra > plain + 0.01


def test_masks_pass():
    layer, inputs = make("embedding", "san", mask_zero=True)
    mask = to_numpy(layer.compute_mask(inputs))
    np.testing.assert_array_equal(mask, inputs != 0)

    class Spy(layers.Layer):
        def call(self, inputs, mask=None):
            self.mask = mask
            return inputs

    for plain in (layers.Conv2D(2, 3), layers.Dense(2)):
        assert SANWrapper(plain).supports_masking == plain.supports_masking
    dense, spy = SANWrapper(layers.Dense(2)), Spy()
    spy.supports_masking = True
    spy(dense(layer(ops.convert_to_tensor(inputs))))
    np.testing.assert_array_equal(to_numpy(spy.mask), inputs != 0)
