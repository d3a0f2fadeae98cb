"""Normalizers: their settings, and their norms against plain NumPy."""

import json
import math

import helpers
import keras
import numpy as np
import pytest
from helpers import (
    operator_norm,
    sparse_gain,
    sparsity_aware,
    value_and_gradient,
)
from keras import ops

from keras_san import SANConv2D, SANWrapper, normalizers
from keras_san.geometry import Convolution, Matrix

pytestmark = helpers.ignore_torch_copies

CLASSES = {
    "san": normalizers.SparsityAware,
    "sn": normalizers.Spectral,
    "bsn": normalizers.BidirectionalSpectral,
    "bssn": normalizers.BidirectionalSpectral,
    "conv_sn": normalizers.ConvSpectral,
}
DENSE = Matrix()


def convolution(spatial_shape, strides=(1, 1), dilation_rate=(1, 1), **kwargs):
    return Convolution(spatial_shape, strides, dilation_rate, **kwargs)


def gaussian(*shape, seed=0, magnitude=1.0):
    kernel = np.random.default_rng(seed).normal(size=shape) * magnitude
    return kernel.astype("float32")


def tensor(x):
    return ops.convert_to_tensor(x)


def array(x):
    return ops.convert_to_numpy(x)


# References in float64.


def top(matrix):
    return np.linalg.norm(np.asarray(matrix, np.float64), 2)


def bidirectional(kernel):
    fan_in = kernel.reshape(-1, kernel.shape[-1])
    fan_out = kernel.swapaxes(-1, -2).reshape(-1, kernel.shape[-2])
    return (top(fan_in) + top(fan_out)) / 2


# Choosing one.


@pytest.mark.parametrize("name", CLASSES)
def test_get_by_name(name):
    normalizer = normalizers.get(name)
    assert type(normalizer) is CLASSES[name]
    assert normalizer.get_config() == CLASSES[name]().get_config()


def test_defaults():
    assert normalizers.SparsityAware().get_config() == {
        "ratio": 1.0,
        "gain": "auto",
        "scale": 1.0,
        "update_interval": 1,
        "form": normalizers.SparsityAware().form,
        "sparsity": 1,
    }
    for name in CLASSES:
        normalizer = normalizers.get(name)
        assert normalizer.scale == 1.0
        assert normalizer.update_interval == 1
        assert normalizer.form in ("divide", "project")
        assert normalizer.differentiable == (name != "san")


def test_get_none_and_objects():
    assert normalizers.get(None) is None
    for name in CLASSES:
        normalizer = CLASSES[name](scale=2.0)
        assert normalizers.get(normalizer) is normalizer


@pytest.mark.parametrize(
    "unknown",
    [
        "SAN",
        3,
        normalizers.Spectral,
        {},
        {"class_name": "Nothing", "config": {}},
        keras.saving.serialize_keras_object(keras.layers.Dense(3)),
    ],
    ids=str,
)
def test_get_unknown(unknown):
    with pytest.raises(ValueError) as error:
        normalizers.get(unknown)
    assert "Unknown normalizer" in str(error.value)
    assert "conv_sn" in str(error.value)
    # A dict of a layer is reported as that layer.
    if not isinstance(unknown, dict):
        assert f"Received: normalizer={unknown!r}" in str(error.value)


# Serialization.

SETTINGS = [
    {},
    {"form": "project", "scale": 3},
    {"form": "divide", "scale": 2.5, "update_interval": 2},
]
SAN_SETTINGS = [
    {"ratio": 0.5, "gain": 1.1, "scale": 0.1, "update_interval": 3},
    {"gain": "adaptive", "ratio": 0.5, "scale": 2.0},
    {"sparsity": 2, "gain": 1.3, "form": "project"},
]


@pytest.mark.parametrize(
    "cls, settings",
    [(c, s) for c in sorted(set(CLASSES.values()), key=str) for s in SETTINGS]
    + [(normalizers.SparsityAware, s) for s in SAN_SETTINGS],
)
def test_serialization_round_trip(cls, settings):
    normalizer = cls(**settings)
    config = normalizer.get_config()
    for key, value in settings.items():
        assert config[key] == value
        assert getattr(normalizer, key) == value
    serialized = keras.saving.serialize_keras_object(normalizer)
    serialized = json.loads(json.dumps(serialized))
    for copy in [
        cls.from_config(config),
        keras.saving.deserialize_keras_object(serialized),
        normalizers.get(serialized),
        eval(repr(normalizer), vars(normalizers)),
    ]:
        assert type(copy) is cls
        assert copy is not normalizer
        assert copy.get_config() == config
    assert serialized["registered_name"] == f"keras_san>{cls.__name__}"


def test_configs_from_before_there_was_a_sparsity():
    serialized = keras.saving.serialize_keras_object(
        normalizers.SparsityAware(gain=1.3)
    )
    del serialized["config"]["sparsity"]
    found = normalizers.get(serialized)
    assert (
        found.get_config() == normalizers.SparsityAware(gain=1.3).get_config()
    )


def test_a_bad_setting_in_a_config_is_reported():
    serialized = keras.saving.serialize_keras_object(normalizers.Spectral())
    serialized["config"]["scale"] = -3
    with pytest.raises(ValueError, match="scale=-3"):
        normalizers.get(serialized)


def test_weight_normalization_has_no_settings():
    normalizer = normalizers.get("weight")
    assert type(normalizer) is normalizers.WeightNormalization
    assert normalizer.get_config() == {}
    assert repr(normalizer) == "WeightNormalization()"
    serialized = keras.saving.serialize_keras_object(normalizer)
    copy = normalizers.get(json.loads(json.dumps(serialized)))
    assert type(copy) is normalizers.WeightNormalization
    for setting in ({"scale": 1.0}, {"form": "project"}):
        with pytest.raises(TypeError, match=list(setting)[0]):
            normalizers.WeightNormalization(**setting)


# A layer of Keras, the shape of its input, the same of PyTorch with `dim`, and
# the axes of Keras' kernel in the order in which PyTorch has them.
TORCH = {
    "dense": (
        lambda **k: keras.layers.Dense(3, **k),
        (5, 4),
        lambda nn: (nn.Linear(4, 3), 0),
        (1, 0),
    ),
    "conv1d": (
        lambda **k: keras.layers.Conv1D(6, 3, strides=2, groups=2, **k),
        (2, 9, 4),
        lambda nn: (nn.Conv1d(4, 6, 3, stride=2, groups=2), 0),
        (2, 1, 0),
    ),
    "conv2d": (
        lambda **k: keras.layers.Conv2D(3, (3, 2), dilation_rate=2, **k),
        (2, 7, 6, 4),
        lambda nn: (nn.Conv2d(4, 3, (3, 2), dilation=2), 0),
        (3, 2, 0, 1),
    ),
    "conv2d_transpose": (
        lambda **k: keras.layers.Conv2DTranspose(3, 3, **k),
        (2, 5, 4, 2),
        lambda nn: (nn.ConvTranspose2d(2, 3, 3), 1),
        (3, 2, 0, 1),
    ),
    "depthwise": (
        lambda **k: keras.layers.DepthwiseConv2D(3, depth_multiplier=2, **k),
        (2, 5, 4, 3),
        lambda nn: (nn.Conv2d(3, 6, 3, groups=3), 0),
        None,
    ),
    "embedding": (
        lambda **k: keras.layers.Embedding(5, 3, **k),
        None,
        lambda nn: (nn.Embedding(5, 3), 0),
        (0, 1),
    ),
}


@pytest.mark.skipif(
    helpers.BACKEND != "torch", reason="compares with PyTorch; run on torch"
)
@pytest.mark.parametrize("name", TORCH)
def test_weight_normalization_is_pytorchs(name):
    import torch

    make, shape, make_torch, axes = TORCH[name]
    layer = SANWrapper(make(dtype="float64"), "weight")
    rng = np.random.default_rng(0)
    x = (
        rng.integers(5, size=(2, 4))
        if shape is None
        else rng.normal(size=shape)
    )
    layer(x)
    (normalization,) = layer.normalizations
    kernel, lengths = normalization.get_kernel(), normalization.lengths
    module, dim = make_torch(torch.nn)
    module = torch.nn.utils.parametrizations.weight_norm(
        module.double(), dim=dim
    )
    g, v = module.parametrizations.weight.parameters()
    g.data = torch.from_numpy(rng.normal(size=g.shape))
    v.data = torch.from_numpy(rng.normal(size=v.shape))
    if hasattr(module, "bias"):
        module.bias.data.zero_()

    def of_torch(value):
        """A kernel of PyTorch as Keras has it."""
        value = value.detach().numpy()
        if axes is not None:
            return value.transpose(np.argsort(axes))
        # (in * multiplier, 1, *size) to (*size, in, multiplier).
        return np.moveaxis(value[:, 0], 0, -1).reshape(kernel.shape)

    kernel.assign(of_torch(v).copy())
    lengths.assign(g.detach().numpy().ravel())
    inputs = torch.from_numpy(x)
    if shape is not None:
        inputs = inputs.movedim(-1, 1)
    theirs = module(inputs)
    ours = layer(torch.from_numpy(x), training=True)
    cotangent = torch.from_numpy(rng.normal(size=tuple(ours.shape)))
    (ours * cotangent).sum().backward()
    if shape is not None:
        cotangent = cotangent.movedim(-1, 1)
        ours = ours.movedim(-1, 1)
    (theirs * cotangent).sum().backward()
    # Matrices of PyTorch Keras multiplies in float32.
    atol = 1e-6 if name == "dense" else 1e-12
    for a, b in [
        (ours.detach(), theirs.detach()),
        (kernel.value.grad, of_torch(v.grad)),
        (lengths.value.grad, g.grad.ravel()),
    ]:
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=atol)


# Bad settings.


@pytest.mark.parametrize(
    "cls, settings",
    [
        (normalizers.SparsityAware, settings)
        for settings in [
            {"scale": 0.0},
            {"scale": float("nan")},
            {"scale": float("inf")},
            {"scale": "b"},
            {"update_interval": 0},
            {"update_interval": 2.0},
            {"form": "Divide"},
            {"ratio": 0},
            {"ratio": 1.5},
            {"gain": -1},
            {"gain": "b"},
            {"sparsity": 0},
            {"sparsity": 2.0},
        ]
    ]
    # The others share their constructor.
    + [
        (normalizers.Spectral, {"scale": None}),
        (normalizers.BidirectionalSpectral, {"update_interval": None}),
        (normalizers.ConvSpectral, {"form": None}),
    ],
    ids=repr,
)
def test_bad_settings(cls, settings):
    [(name, value)] = settings.items()
    with pytest.raises(ValueError) as error:
        cls(**settings)
    assert f"Received: {name}={value!r}" in str(error.value)


def test_project_measures_all_and_always():
    with pytest.raises(ValueError) as error:
        normalizers.SparsityAware(ratio=0.25, form="project")
    assert "Received: ratio=0.25" in str(error.value)
    for cls in CLASSES.values():
        with pytest.raises(ValueError) as error:
            cls(update_interval=2, form="project")
        assert "Received: update_interval=2" in str(error.value)


@pytest.mark.parametrize(
    "settings, quoted",
    [
        ({"gain": "adaptive", "form": "project"}, "gain='adaptive'"),
        ({"sparsity": 2, "ratio": 0.5}, "sparsity=2, ratio=0.5"),
        (
            {"sparsity": 2, "gain": "adaptive"},
            "sparsity=2, gain='adaptive'",
        ),
    ],
)
def test_settings_of_san_that_do_not_go_together(settings, quoted):
    with pytest.raises(ValueError) as error:
        normalizers.SparsityAware(**settings)
    assert str(error.value).endswith(f"Received: {quoted}")


# Eq. 9.


def test_gain_for():
    def harmonic(n):
        return math.fsum(1 / k for k in range(1, n + 1))

    conv = convolution((8, 8))
    shape = (3, 3, 16, 32)
    san = normalizers.SparsityAware
    expected = harmonic(512) / harmonic(128)
    assert san(ratio=0.25).gain_for(shape, conv) == pytest.approx(expected)
    assert san().gain_for(shape, conv) == 1.0
    assert san(gain=1.3).gain_for(shape, conv) == 1.3
    assert san(ratio=0.25, gain=1.3).gain_for(shape, conv) == 1.3
    # Where the gain is measured, this is the least that it can be.
    assert san(gain="adaptive").gain_for(shape, conv) == 1.0
    actual = san(gain="adaptive", ratio=0.25).gain_for(shape, conv)
    assert actual == pytest.approx(expected)
    shape = (3, 3, 64, 64)
    actual = san(ratio=0.25).gain_for(shape, conv)
    assert actual == pytest.approx(1.185, abs=5e-4)
    # Dense layers have no filters to choose from.
    for settings in [
        {},
        {"ratio": 0.25},
        {"gain": 1.3},
        {"gain": "adaptive"},
        {"sparsity": 3},
    ]:
        dense = san(**settings).for_kernel(DENSE)
        assert dense.gain_for((64, 32), DENSE) == 1.0
    for name in ["sn", "bsn", "bssn", "conv_sn"]:
        assert normalizers.get(name).gain_for(shape, conv) == 1.0


# The norms.

KERNEL = gaussian(3, 3, 4, 6)
IMAGE = (6, 8)
STRIDED = convolution(IMAGE, strides=(2, 1))


@pytest.mark.parametrize(
    "name, expected",
    [
        ("san", sparsity_aware(KERNEL, IMAGE)),
        ("sn", top(KERNEL.reshape(-1, 6))),
        ("bsn", bidirectional(KERNEL)),
        ("bssn", bidirectional(KERNEL)),
        ("conv_sn", operator_norm(KERNEL, IMAGE, (2, 1))),
    ],
)
def test_norm_of_a_convolution(name, expected):
    normalizer = normalizers.get(name)
    norm = normalizer.norm(KERNEL, STRIDED)
    assert float(array(norm)) == pytest.approx(expected, rel=1e-5)
    # One measurement from the start it gives itself is as good.
    state = normalizer.start(KERNEL, STRIDED)
    measured, new_state = normalizer.measure(KERNEL, STRIDED, state)
    assert float(array(measured)) == pytest.approx(expected, rel=1e-5)
    assert [tuple(u.shape) for u in new_state] == [
        tuple(u.shape) for u in state
    ]
    assert len(state) == {"san": 0, "sn": 1, "conv_sn": 1}.get(name, 2)


@pytest.mark.parametrize("name", CLASSES)
def test_norm_of_a_dense_layer(name):
    normalizer = normalizers.get(name).for_kernel(DENSE)
    kernel = gaussian(7, 5)
    norm = normalizer.norm(kernel, DENSE)
    assert float(array(norm)) == pytest.approx(top(kernel), rel=1e-5)
    state = normalizer.start(kernel, DENSE)
    assert [tuple(u.shape) for u in state] == [(1, 5)]
    assert normalizer.state_shapes(kernel, DENSE) == [(1, 5)]
    measured, _ = normalizer.measure(kernel, DENSE, state)
    assert float(array(measured)) == pytest.approx(top(kernel), rel=1e-5)


@pytest.mark.parametrize("name", CLASSES)
def test_norm_of_an_einsum(name):
    # "abc,bdec->adec": c stands for separate matrices, b is summed over.
    kernel = gaussian(3, 2, 4, 5)
    geometry = Matrix(inputs=(0,), outputs=(1, 2), batch=(3,))
    expected = max(top(kernel[..., c].reshape(3, 8)) for c in range(5))
    norm = normalizers.get(name).for_kernel(geometry).norm(kernel, geometry)
    assert float(array(norm)) == pytest.approx(expected, rel=1e-5)
    matrices = array(geometry.matrices(tensor(kernel)))
    np.testing.assert_array_equal(
        matrices, np.einsum("bdec->cbde", kernel).reshape(5, 3, 8)
    )


def test_norm_of_a_transposed_convolution():
    # The kernel is laid out (*kernel_size, out, in).
    geometry = convolution(IMAGE, strides=(2, 1), transposed=True)
    fan_in = KERNEL.swapaxes(2, 3).reshape(-1, 4)
    for name, expected in [
        ("san", sparsity_aware(KERNEL, IMAGE)),
        ("sn", top(fan_in)),
        ("bsn", bidirectional(KERNEL)),
        ("conv_sn", operator_norm(KERNEL, IMAGE, (2, 1))),
    ]:
        norm = normalizers.get(name).norm(KERNEL, geometry)
        assert float(array(norm)) == pytest.approx(expected, rel=1e-5)


def test_norm_of_a_depthwise_convolution():
    # Each of the 4 channels has 6 filters of its own.
    geometry = convolution(IMAGE, strides=(2, 1), groups=4, depthwise=True)
    exact = max(
        operator_norm(KERNEL[:, :, i : i + 1], IMAGE, (2, 1)) for i in range(4)
    )
    flat = KERNEL.reshape(3, 3, 1, 24)
    for name, expected in [
        ("san", sparsity_aware(KERNEL, IMAGE)),
        ("sn", top(flat.reshape(9, 24))),
        ("bsn", bidirectional(flat)),
        ("conv_sn", exact),
    ]:
        norm = normalizers.get(name).norm(KERNEL, geometry)
        assert float(array(norm)) == pytest.approx(expected, rel=1e-5)


def test_norm_of_a_grouped_and_dilated_convolution():
    geometry = convolution(IMAGE, dilation_rate=(2, 3), groups=2)
    expected = operator_norm(KERNEL, IMAGE, (1, 1), (2, 3), groups=2)
    norm = normalizers.get("conv_sn").norm(KERNEL, geometry)
    assert float(array(norm)) == pytest.approx(expected, rel=1e-5)
    expected = sparsity_aware(KERNEL, IMAGE, (2, 3))
    norm = normalizers.get("san").norm(KERNEL, geometry)
    assert float(array(norm)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("sparsity", [1, 3, 50])
def test_norm_for_sparse_signals(sparsity):
    normalizer = normalizers.SparsityAware(sparsity=sparsity)
    swapped = KERNEL.swapaxes(2, 3)
    for geometry, expected in [
        (STRIDED, sparse_gain(KERNEL, sparsity, IMAGE)),
        (
            convolution(IMAGE, dilation_rate=(2, 3)),
            sparse_gain(KERNEL, sparsity, IMAGE, (2, 3)),
        ),
        # Each of the outputs reads but the four channels of its group.
        (convolution(IMAGE, groups=2), sparse_gain(KERNEL, sparsity, IMAGE)),
        (
            convolution(IMAGE, strides=(2, 1), transposed=True),
            sparse_gain(swapped, sparsity, IMAGE),
        ),
        # Each of the outputs reads one channel.
        (
            convolution(IMAGE, groups=4, depthwise=True),
            sparsity_aware(KERNEL, IMAGE),
        ),
    ]:
        norm = normalizer.norm(KERNEL, geometry)
        assert float(array(norm)) == pytest.approx(expected, rel=1e-5)
        assert normalizer.start(KERNEL, geometry) == []
        measured, state = normalizer.measure(KERNEL, geometry, [])
        assert float(array(measured)) == float(array(norm))
        assert state == []
        assert normalizer.gain_for(KERNEL.shape, geometry) == 1.0
    assert normalizer.draw(KERNEL.shape, STRIDED, 0) is None
    dense = normalizer.for_kernel(DENSE).norm(gaussian(7, 5), DENSE)
    assert float(array(dense)) == pytest.approx(top(gaussian(7, 5)), rel=1e-5)
    norm = float(array(normalizer.norm(KERNEL, convolution(None))))
    supremum = sparse_gain(KERNEL, sparsity, (256, 256))
    assert supremum <= norm <= supremum * 1.0013**2


def test_sparsity_one_is_lemma_1_to_the_bit():
    expected = normalizers.SparsityAware().norm(KERNEL, STRIDED)
    norm = normalizers.SparsityAware(sparsity=1).norm(KERNEL, STRIDED)
    assert float(array(norm)) == float(array(expected))


# The adaptive gain.


def adapt(inputs, channels, kernel=KERNEL, geometry=None, **settings):
    geometry = geometry or convolution(IMAGE)
    normalizer = normalizers.SparsityAware(gain="adaptive", **settings)
    norm = normalizer.norm(kernel, geometry)
    found = normalizer.adapt(
        tensor(kernel),
        geometry,
        norm,
        tensor(inputs),
        ops.convert_to_tensor(channels, "float32"),
    )
    assert [keras.backend.standardize_dtype(x.dtype) for x in found] == (
        ["float32"] * 2
    )
    return [float(array(x)) for x in found], float(array(norm))


def test_which_kernels_adapt():
    adaptive = normalizers.SparsityAware(gain="adaptive")
    assert adaptive.adapts(convolution(IMAGE))
    assert adaptive.adapts(convolution(IMAGE, transposed=True))
    assert adaptive.adapts(convolution(IMAGE, groups=2))
    assert not adaptive.adapts(convolution(IMAGE, groups=4, depthwise=True))
    assert not adaptive.adapts(convolution(IMAGE, channels_axis=None))
    assert not adaptive.for_kernel(DENSE).adapts(DENSE)
    for name in CLASSES:
        assert not normalizers.get(name).adapts(convolution(IMAGE))
    assert not normalizers.SparsityAware(gain=2.0).adapts(convolution(IMAGE))


def test_the_adaptive_gain_is_the_formula():
    inputs = gaussian(5, *IMAGE, 4, seed=1) * [1.0, 0.5, 2.0, 3.0]
    energy = np.square(inputs).sum((1, 2))
    k = np.mean(energy.sum(1) / energy.max(1))
    for factor in (1.0, 1e-3, 50.0):
        # One large filter makes Lemma 1 large against the average.
        kernel = KERNEL.copy()
        kernel[..., 1, 2] *= factor
        for geometry, wrapped in [
            (convolution(IMAGE, strides=(2, 1)), kernel),
            (convolution(None), kernel),
            (convolution((1, 8)), kernel.sum(0)),
        ]:
            (channels, gain), norm = adapt(inputs, 0.0, kernel, geometry)
            assert channels == pytest.approx(k, rel=1e-5)
            frobenius = np.linalg.norm(wrapped.astype("float64"))
            a = math.sqrt(k) * frobenius / math.sqrt(4 * 6)
            assert gain == pytest.approx(max(1.0, a / norm), rel=1e-5)
    # Of random kernels it is above 1 only if there are many channels.
    kernel = gaussian(3, 3, 256, 2)
    (channels, gain), norm = adapt(np.ones((1, *IMAGE, 256)), 0.0, kernel)
    assert channels == pytest.approx(256.0)
    a = 16.0 * np.linalg.norm(kernel) / math.sqrt(512)
    assert gain == pytest.approx(a / norm, rel=1e-5)
    assert gain > 2.0


def test_the_adaptive_gain_of_sparse_signals_is_one():
    inputs = np.zeros((2, *IMAGE, 4), "float32")
    inputs[0, ..., 1] = 3.0
    inputs[1, 2, 3, 0] = 1.0
    for kernel in (KERNEL, gaussian(3, 3, 4, 6, seed=9)):
        # Even for a kernel that wraps around, and cancels out.
        for image in (IMAGE, (2, 2), (1, 1), None):
            found, _ = adapt(inputs, 0.0, kernel, convolution(image))
            assert found == [1.0, 1.0]
    assert adapt(inputs * 0, 0.0)[0] == [1.0, 1.0]
    assert adapt(inputs, 0.0, KERNEL * 0)[0] == [1.0, 1.0]


def test_the_channels_are_averaged():
    inputs = np.ones((2, *IMAGE, 4), "float32")
    assert adapt(inputs, 0.0)[0][0] == pytest.approx(4.0)
    assert adapt(inputs, 1.0)[0][0] == pytest.approx(1.03)
    assert adapt(inputs, 2.0)[0][0] == pytest.approx(2.02)
    # Inputs that are not finite are passed over, also at the first time.
    inputs[1, 2, 3, 1] = np.nan
    assert adapt(inputs, 2.0)[0][0] == 2.0
    assert adapt(inputs, 0.0)[0] == [0.0, 1.0]


def test_the_adaptive_gain_looks_at_each_group():
    inputs = gaussian(3, *IMAGE, 8, seed=2) * np.arange(1.0, 9.0)
    energy = np.square(inputs).sum((1, 2)).reshape(3, 2, 4)
    k = np.mean(energy.sum(2) / energy.max(2))
    geometry = convolution(IMAGE, groups=2)
    (channels, _), _ = adapt(inputs, 0.0, KERNEL, geometry)
    assert channels == pytest.approx(k, rel=1e-5)


def test_the_adaptive_gain_knows_where_the_channels_are():
    inputs = gaussian(3, *IMAGE, 4, seed=2) * np.arange(1.0, 5.0)
    expected, _ = adapt(inputs, 0.0)
    geometry = convolution(IMAGE, channels_axis=1)
    found, _ = adapt(np.moveaxis(inputs, -1, 1), 0.0, KERNEL, geometry)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_the_adaptive_gain_is_at_least_that_of_the_share():
    least = normalizers.SparsityAware(ratio=0.25).gain_for(
        (3, 3, 4, 6), STRIDED
    )
    assert least > 1.0
    inputs = np.zeros((1, *IMAGE, 4), "float32")
    (_, gain), _ = adapt(inputs, 0.0, ratio=0.25)
    assert gain == pytest.approx(least)


def test_images_of_unknown_size():
    geometry = convolution(None)
    supremum = sparsity_aware(KERNEL, (512, 512))
    norm = float(array(normalizers.get("san").norm(KERNEL, geometry)))
    assert supremum <= norm <= supremum * 1.0013**2
    for method in ["norm", "matrices", "start"]:
        with pytest.raises(ValueError, match="depends on the size"):
            getattr(normalizers.get("conv_sn"), method)(KERNEL, geometry)


def test_a_stride_that_does_not_divide():
    geometry = convolution((6, 7), strides=(2, 2))
    with pytest.raises(ValueError) as error:
        normalizers.get("conv_sn").norm(KERNEL, geometry)
    assert "Received: spatial_shape=(6, 7), strides=(2, 2)" in str(error.value)


# The draw of a subset.


def test_measuring_a_subset():
    normalizer = normalizers.SparsityAware(ratio=0.25)
    gains = np.abs(np.fft.fft2(KERNEL, IMAGE, axes=(0, 1))).max((0, 1))
    geometry = convolution(IMAGE)
    seen = set()
    for seed in range(12):
        sample = normalizer.draw(KERNEL.shape, geometry, seed)
        chosen = array(sample)
        assert chosen.shape == (6,)
        expected = gains.ravel()[chosen].max()
        norm, state = normalizer.measure(KERNEL, geometry, [], sample)
        assert float(array(norm)) == pytest.approx(expected, rel=1e-5)
        assert state == []
        seen.add(round(expected, 5))
    assert len(seen) > 2


def test_nothing_is_drawn_where_nothing_is_left_out():
    geometry = convolution(IMAGE)
    subset = normalizers.SparsityAware(ratio=0.25)
    assert subset.for_kernel(DENSE).draw((64, 32), DENSE, 0) is None
    assert normalizers.SparsityAware().draw(KERNEL.shape, geometry, 0) is None
    for name in ["sn", "bsn", "conv_sn"]:
        assert normalizers.get(name).draw(KERNEL.shape, geometry, 0) is None


@pytest.mark.parametrize("name", [*CLASSES, "sparsity=3"])
def test_bad_numbers_are_never_hidden(name):
    if name == "sparsity=3":
        normalizer = normalizers.SparsityAware(sparsity=3)
    else:
        normalizer = normalizers.get(name)
    state = normalizer.start(KERNEL, STRIDED)
    for bad in (np.nan, np.inf):
        broken = KERNEL.copy()
        broken[1, 1, 2, 3] = bad
        assert np.isnan(array(normalizer.norm(broken, STRIDED)))
        norm, _ = normalizer.measure(broken, STRIDED, state)
        assert np.isnan(array(norm))


def test_bad_numbers_outside_of_the_subset_are_never_hidden():
    normalizer = normalizers.SparsityAware(ratio=0.25)
    broken = KERNEL.copy()
    broken[1, 1, 2, 3] = np.nan
    for seed in range(4):
        sample = normalizer.draw(KERNEL.shape, STRIDED, seed)
        assert np.isnan(array(normalizer.norm(broken, STRIDED, sample)))


# Dividing.


@pytest.mark.parametrize("name", CLASSES)
def test_the_divided_kernel_has_the_norm_that_was_asked_for(name):
    normalizer = CLASSES[name](scale=0.3)
    for kernel, geometry in [(KERNEL, STRIDED), (gaussian(7, 5), DENSE)]:
        normalizer = normalizer.for_kernel(geometry)
        norm = normalizer.norm(kernel, geometry)
        divided = array(normalizer.divide(tensor(kernel), geometry, norm))
        assert divided.dtype == np.float32
        after = float(array(normalizer.norm(divided, geometry)))
        assert after == pytest.approx(0.3, rel=1e-5)
        factor = divided.ravel() @ kernel.ravel() / np.square(kernel).sum()
        np.testing.assert_allclose(divided, kernel * factor, rtol=1e-4)


def test_the_gain_divides_further():
    normalizer = normalizers.SparsityAware(gain=1.25, scale=2.0)
    divided = normalizer.divide(tensor(KERNEL), STRIDED, tensor(4.0))
    np.testing.assert_allclose(array(divided), KERNEL * 0.4, rtol=1e-6)
    kernel = gaussian(7, 5)
    dense = normalizer.for_kernel(DENSE)
    divided = dense.divide(tensor(kernel), DENSE, tensor(4.0))
    np.testing.assert_allclose(array(divided), kernel * 0.5, rtol=1e-6)


def test_a_measured_gain_divides_instead():
    for normalizer in [
        normalizers.SparsityAware(gain="adaptive", scale=2.0),
        normalizers.Spectral(scale=2.0),
    ]:
        for gain in (1.6, tensor(1.6)):
            divided = normalizer.divide(
                tensor(KERNEL), STRIDED, tensor(4.0), gain
            )
            np.testing.assert_allclose(array(divided), KERNEL / 3.2, rtol=1e-6)


@pytest.mark.parametrize("name", CLASSES)
def test_a_zero_kernel_stays_zero(name):
    for kernel, geometry in [
        (np.zeros((3, 3, 4, 6), "float32"), STRIDED),
        (np.zeros((7, 5), "float32"), DENSE),
    ]:
        normalizer = normalizers.get(name).for_kernel(geometry)
        state = normalizer.start(kernel, geometry)
        for u in state:
            np.testing.assert_allclose(
                np.linalg.norm(array(u), axis=-1), 1.0, rtol=1e-5
            )
        norm, new_state = normalizer.measure(kernel, geometry, state)
        assert float(array(norm)) == 0.0
        for u, new_u in zip(state, new_state):
            np.testing.assert_array_equal(array(new_u), array(u))
        divided = array(normalizer.divide(tensor(kernel), geometry, norm))
        np.testing.assert_array_equal(divided, kernel)


# Warm-started measurement.


@pytest.mark.parametrize("name", ["sn", "bsn", "conv_sn"])
def test_measurement_follows_a_changed_kernel(name):
    normalizer = normalizers.get(name)
    state = normalizer.start(KERNEL, STRIDED)
    changed = KERNEL + 0.3 * gaussian(3, 3, 4, 6, seed=1)
    exact = float(array(normalizer.norm(changed, STRIDED)))
    values = []
    for _ in range(50):
        norm, state = normalizer.measure(changed, STRIDED, state)
        values.append(float(array(norm)))
    assert max(values) <= exact * (1 + 1e-5)
    assert values[0] >= 0.8 * exact
    assert values[-1] == pytest.approx(exact, rel=1e-4)


# The linearized norm.


def finite_differences(function, x, step=1e-5):
    x = np.asarray(x, np.float64)
    gradient = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        shift = np.zeros_like(x)
        shift[index] = step
        gradient[index] = (function(x + shift) - function(x - shift)) / (
            2 * step
        )
    return gradient


SMALL = gaussian(3, 2, 2, 3, seed=3)
MATRIX = gaussian(6, 4, seed=3)


@pytest.mark.parametrize(
    "name, kernel, geometry, norm",
    [
        ("san", MATRIX, DENSE, top),
        ("sn", MATRIX, DENSE, top),
        ("bsn", MATRIX, DENSE, top),
        ("conv_sn", MATRIX, DENSE, top),
        (
            "sn",
            SMALL,
            convolution((4, 4)),
            lambda k: top(k.reshape(-1, 3)),
        ),
        (
            "sn",
            SMALL,
            convolution((4, 4), transposed=True),
            lambda k: top(k.swapaxes(2, 3).reshape(-1, 2)),
        ),
        ("bsn", SMALL, convolution((4, 4)), bidirectional),
        (
            "conv_sn",
            SMALL,
            convolution((4, 4)),
            lambda k: operator_norm(k, (4, 4), (1, 1)),
        ),
        (
            "conv_sn",
            SMALL,
            convolution((4, 6), strides=(2, 1)),
            lambda k: operator_norm(k, (4, 6), (2, 1)),
        ),
        (
            "conv_sn",
            SMALL,
            convolution((4, 2), groups=2, depthwise=True),
            lambda k: max(operator_norm(k[:, :, [i]], (4, 2)) for i in (0, 1)),
        ),
        (
            "san",
            gaussian(2, 3, 4, seed=5),
            Matrix(inputs=(1,), outputs=(2,), batch=(0,)),
            lambda k: max(top(k[0]), top(k[1])),
        ),
    ],
)
def test_linearized_has_value_and_gradient_of_the_norm(
    name, kernel, geometry, norm
):
    normalizer = normalizers.get(name).for_kernel(geometry)
    state = normalizer.start(kernel, geometry)
    for _ in range(10):
        _, state = normalizer.measure(kernel, geometry, state)

    def linearized(kernel):
        return normalizer.linearized(kernel, geometry, state)

    value, gradient = value_and_gradient(linearized, kernel)
    assert value == pytest.approx(norm(kernel.astype("float64")), rel=1e-5)
    expected = finite_differences(norm, kernel)
    np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-3)


def test_the_gradient_of_the_linearized_norm_is_linear_in_the_kernel():
    # With u and v held fixed, Euler's identity holds at any kernel, and the
    # gradient is the rank one matrix v u'.
    normalizer = normalizers.Spectral().for_kernel(DENSE)
    u = np.array([[0.6, 0.8, 0.0, 0.0]], "float32")

    def linearized(kernel):
        return normalizer.linearized(kernel, DENSE, [u])

    value, gradient = value_and_gradient(linearized, MATRIX)
    v = MATRIX @ u[0] / np.linalg.norm(MATRIX @ u[0])
    assert value == pytest.approx(v @ MATRIX @ u[0], rel=1e-5)
    np.testing.assert_allclose(
        gradient, np.outer(v, u[0]), rtol=1e-5, atol=1e-6
    )


@pytest.mark.skipif(
    helpers.BACKEND != "jax",
    reason="only JAX says in what precision it multiplies; run there",
)
@pytest.mark.parametrize("name", [n for n in CLASSES if n != "bssn"])
def test_norms_are_products_in_float32_on_accelerators(name):
    import jax

    layer = SANConv2D(64, 3, normalizer=name, padding="same")
    layer.build((None, 32, 32, 32))
    others = [v.value for v in layer.non_trainable_variables]

    def loss(values, images):
        outputs, others_now = layer.stateless_call(
            values, others, images, training=True
        )
        return ops.sum(ops.square(outputs)), others_now

    values = [v.value for v in layer.trainable_variables]
    gradient = jax.jit(jax.grad(loss, has_aux=True))
    program = gradient.lower(values, np.ones((2, 32, 32, 32))).as_text()
    products = [line for line in program.split("\n") if "dot_general" in line]
    assert products
    assert all("[HIGHEST, HIGHEST]" in line for line in products)
