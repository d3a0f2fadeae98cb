"""Measurements of diagnostics against NumPy in float64 and closed forms."""

import math

import helpers
import keras
import numpy as np
import pytest
from helpers import (
    images_of,
    matrix_norm,
    operator_norm,
    sparsity_aware,
    to_numpy,
)
from keras import layers, ops

from keras_san import SANConv2D, SANDense, SANWrapper, normalizers
from keras_san.diagnostics import (
    channel_sparsity,
    diagnose,
    gradient_bounds,
    hessian_norm,
    input_gradients,
    layer_norms,
    mean_score,
    signal_gains,
    weight_gradients,
)
from keras_san.diagnostics.kernels import running_with
from keras_san.diagnostics.recording import record
from keras_san.differentiation import value_and_gradients
from keras_san.kernels import find_kernels

pytestmark = helpers.ignore_torch_copies

ONES = (1, 1)


def approx(expected, rel=1e-4, abs=1e-6):
    return pytest.approx(expected, rel=rel, abs=abs)


def sequential(shape, *parts):
    keras.utils.set_random_seed(1)
    return keras.Sequential([keras.Input(shape), *parts])


def swapped(kernel):
    return np.swapaxes(kernel, -1, -2)


def convolve(images, kernel, stride=1):
    """The cyclic convolution with the borders of "same" padding."""
    before = [max(size - stride, 0) // 2 for size in kernel.shape[:2]]
    result = 0.0
    for tap in np.ndindex(*kernel.shape[:2]):
        shift = tuple(np.subtract(before, tap))
        moved = np.roll(images, shift, axis=(1, 2))
        result = result + moved[:, ::stride, ::stride] @ kernel[tap]
    return result


def lengths(x):
    return np.linalg.norm(x.reshape(len(x), -1), axis=1)


def channel_lengths(x):
    return np.sqrt(np.sum(np.square(x), axis=tuple(range(1, x.ndim - 1))))


# Norms.


def of_convolution(kernel, strides=ONES, grid=(6, 4)):
    return {
        "san": sparsity_aware(kernel, grid, ONES),
        "sn": matrix_norm(kernel),
        "sn_transposed": matrix_norm(swapped(kernel)),
        "operator": operator_norm(kernel, grid, strides, ONES),
    }


def of_zero_padded(kernel):
    return of_convolution(kernel, grid=(8, 6))


def of_matrix(kernel):
    norm = matrix_norm(kernel)
    return dict.fromkeys(("san", "sn", "sn_transposed", "operator"), norm)


def of_transposed(kernel):
    # The transpose of a convolution from (12, 8), of the other fan-in.
    return {
        "san": sparsity_aware(kernel, (12, 8), ONES),
        "sn": matrix_norm(swapped(kernel)),
        "sn_transposed": matrix_norm(kernel),
        "operator": operator_norm(kernel, (12, 8), (2, 2), ONES),
    }


def of_depthwise(kernel):
    size = kernel.shape[:2]
    flat = kernel.reshape(*size, 1, -1)
    return {
        "san": sparsity_aware(kernel, (6, 4), ONES),
        "sn": matrix_norm(flat),
        "sn_transposed": np.linalg.norm(flat),
        "operator": max(
            operator_norm(kernel[:, :, c : c + 1], (6, 4), ONES, ONES)
            for c in range(kernel.shape[2])
        ),
    }


def of_pointwise(kernel):
    return {**of_matrix(kernel), "san": np.abs(kernel).max()}


# Name: a layer from a normalizer, and by kernel its norms, by how many output
# positions a pixel is read, and fan-in and fan-out.
LAYERS = {
    "convolution": (
        lambda n: SANConv2D(3, 3, normalizer=n),
        [(of_convolution, 9, 18, 27)],
    ),
    "stride": (
        lambda n: SANConv2D(3, 4, 2, normalizer=n),
        [(lambda k: of_convolution(k, (2, 2)), 4, 32, 48)],
    ),
    "odd_stride": (
        lambda n: SANConv2D(1, 3, 2, normalizer=n),
        [(lambda k: of_convolution(k, (2, 2)), 4, 18, 9)],
    ),
    "transposed": (
        lambda n: SANWrapper(
            layers.Conv2DTranspose(3, 4, 2), n, padding="circular"
        ),
        [(of_transposed, 16, 32, 48)],
    ),
    "depthwise": (
        lambda n: SANWrapper(
            layers.DepthwiseConv2D(3, depth_multiplier=2), n, "circular"
        ),
        [(of_depthwise, 9, 9, 18)],
    ),
    "separable": (
        lambda n: SANWrapper(layers.SeparableConv2D(3, 3), n, "circular"),
        [(of_depthwise, 9, 9, 9), (of_pointwise, 1, 2, 3)],
    ),
    "dense": (lambda n: SANDense(3, normalizer=n), [(of_matrix, 1, 2, 3)]),
    "einsum": (
        lambda n: SANWrapper(layers.EinsumDense("abcd,de->abce", (6, 4, 3)), n),
        [(of_matrix, 1, 2, 3)],
    ),
    "plain_convolution": (
        lambda n: layers.Conv2D(3, 3, padding="same"),
        [(of_zero_padded, 9, 18, 27)],
    ),
    "plain_dense": (lambda n: layers.Dense(3), [(of_matrix, 1, 2, 3)]),
    "keras_spectral": (
        lambda n: layers.SpectralNormalization(
            layers.Conv2D(3, 3, padding="same"), power_iterations=30
        ),
        [(of_zero_padded, 9, 18, 27)],
    ),
}

NORMALIZERS = {
    "san": normalizers.SparsityAware(),
    "san_scaled": normalizers.SparsityAware(scale=3.0, gain=2.0),
    "san_projected": normalizers.SparsityAware(scale=2.0, form="project"),
    "sn": normalizers.Spectral(scale=0.5),
    "bsn": normalizers.BidirectionalSpectral(),
}

PAIRS = [(name, "san") for name in LAYERS] + [
    ("stride", normalizer) for normalizer in NORMALIZERS if normalizer != "san"
]


@pytest.mark.parametrize("name, normalizer", PAIRS)
def test_layer_norms(name, normalizer):
    make, parts = LAYERS[name]
    settings = NORMALIZERS[normalizer]
    model = sequential((6, 4, 2), make(settings))
    layer = model.layers[0]
    ours = hasattr(layer, "normalizations")
    if name == "keras_spectral":
        model(images_of(1, 6, 4, 2), training=True)
    found = layer_norms(model, slope=0.5)
    kernels = [
        to_numpy(v) for v in model.trainable_variables if "bias" not in v.path
    ]
    assert len(found) == len(kernels) == len(parts)
    for row, raw, (reference, readers, *fans) in zip(found, kernels, parts):
        expected = reference(raw)
        expected["bsn"] = (expected["sn"] + expected["sn_transposed"]) / 2
        factor = 1.0
        if ours:
            key = normalizer.partition("_")[0]
            matrix = reference is of_matrix
            intended = settings.scale / (
                1.0
                if matrix
                else getattr(settings, "gain", 1.0)
                if normalizer == "san_scaled"
                else 1.0
            )
            factor = intended / expected[key]
            assert row["normalizer"] == type(settings).__name__
        elif name == "keras_spectral":
            assert row["normalizer"] == "Spectral"
            assert row["sn"] == approx(1.0, rel=1e-3)
        else:
            assert row["normalizer"] == ""
        if row["normalizer"]:
            assert row["norm_over_intended"] == approx(1.0, rel=1e-3)
        else:
            assert math.isnan(row["norm_over_intended"])
        for norm, value in expected.items():
            assert row[norm] == approx(value * factor, rel=1e-3), norm
        for norm in ("sn", "san"):
            assert row[f"operator_over_{norm}"] == approx(
                expected["operator"] / expected[norm], rel=1e-3
            )
        assert row["operator_over_sn_limit"] == approx(math.sqrt(readers))
        limit = (
            1.0
            if reference is of_matrix
            else math.sqrt(math.prod(raw.shape[-2:]))
        )
        assert row["operator_over_san_limit"] == approx(limit)
        for norm in ("sn", "san"):
            ratio = row[f"operator_over_{norm}"]
            assert ratio <= row[f"operator_over_{norm}_limit"] * 1.0001
        fan_in, fan_out = fans
        square = np.mean(np.square(raw)) * factor**2
        assert row["variance_lecun"] == approx(square * fan_in)
        assert row["variance_xavier"] == approx(square * (fan_in + fan_out) / 2)
        assert row["variance_kaiming"] == approx(square * fan_in * 1.25 / 2)
        assert row["shape"] == " x ".join(map(str, raw.shape))


def test_variances_of_groups():
    model = sequential((4, 4, 4), SANConv2D(6, 3, groups=2, normalizer=None))
    (row,) = layer_norms(model, operator=False)
    square = np.mean(np.square(to_numpy(model.layers[0].kernel)))
    assert row["variance_lecun"] == approx(square * 9 * 2)
    assert row["variance_xavier"] == approx(square * 9 * (2 + 3) / 2)


@pytest.mark.parametrize("seed", range(2))
def test_the_operator_norm_is_at_least_that_of_the_matrix(seed):
    rng = np.random.default_rng(seed)
    model = sequential(
        (8, 8, 2),
        SANConv2D(3, 3, kernel_initializer="zeros", normalizer=None),
        SANConv2D(4, 4, 2, kernel_initializer="zeros", normalizer=None),
    )
    for layer in model.layers:
        shape = layer.kernel.shape
        layer.kernel.assign(rng.standard_t(2, shape).astype("float32"))
    for row in layer_norms(model):
        assert 0.9999 <= row["operator_over_sn"]
        assert row["operator_over_sn"] <= row["operator_over_sn_limit"]
        assert row["operator_over_san"] <= row["operator_over_san_limit"]


def test_constant_taps_reach_the_limit():
    model = sequential((8, 8, 2), SANConv2D(3, 3), SANConv2D(2, 4, 2))
    for layer in model.layers:
        kernel = np.ones(layer.kernel.shape[:2] + (1, 1))
        mixing = images_of(*layer.kernel.shape[2:], seed=3)
        layer.kernel.assign((kernel * mixing).astype("float32"))
    found = layer_norms(model)
    np.testing.assert_allclose(found["operator_over_sn"], [3, 2], rtol=1e-4)
    np.testing.assert_allclose(
        found["operator_over_sn_limit"], [3, 2], rtol=1e-6
    )


@pytest.mark.parametrize("form, factor", [("divide", 3.0), ("project", 0.3)])
def test_a_kernel_that_moved(form, factor):
    model = sequential(
        (4, 4, 2),
        SANConv2D(3, 3, normalizer=normalizers.SparsityAware(form=form)),
        layers.Flatten(),
        SANDense(1, normalizer=normalizers.Spectral(scale=1.7, form=form)),
    )
    before = layer_norms(model)
    for layer in (model.layers[0], model.layers[2]):
        layer.kernel.assign(layer.kernel * factor)
    after = layer_norms(model)
    np.testing.assert_allclose(before["norm_over_intended"], 1.0, rtol=1e-3)
    np.testing.assert_allclose(after["norm_over_intended"], factor, rtol=1e-3)
    np.testing.assert_allclose(after["san"], before["san"] * factor, rtol=1e-3)


def test_measured_gains_and_shares():
    # The gain is what signals ask for, and not 1 as at the start.
    adaptive = normalizers.SparsityAware(gain="adaptive")
    model = sequential(
        (8, 8, 9), SANConv2D(9, 3, normalizer=adaptive, name="conv")
    )
    images = np.broadcast_to(images_of(4, 8, 8, 1), (4, 8, 8, 9))
    kernel = np.zeros((3, 3, 9, 9), "float32")
    kernel[1, 1] = np.sign(images_of(9, 9))
    model.layers[0].kernel.assign(kernel)
    model(images, training=True)
    (row,) = layer_norms(model, operator=False)
    assert row["san"] == approx(1.0 / 3.0)  # Of 9 equal channels.
    assert row["norm_over_intended"] == approx(1.0)
    kernels = find_kernels(model)
    with running_with(kernels, [kernels[0].effective()]):
        inside = to_numpy(model(images))
    np.testing.assert_allclose(inside, to_numpy(model(images)), atol=1e-5)

    # Of a share of the filters: all of them over what Eq. 9 makes of it.
    share = normalizers.SparsityAware(ratio=0.5)
    model = sequential((8, 8, 1), SANConv2D(2, 1, normalizer=share))
    model.layers[0].kernel.assign(np.ones((1, 1, 1, 2)))
    model(images[..., :1], training=True)
    (row,) = layer_norms(model, operator=False)
    assert row["san"] == approx(1.0 / 1.5)  # H(2) / H(1) = 1.5
    assert row["norm_over_intended"] == approx(1.0 / 1.5)


def test_without_a_size_operator_norms_are_unknown():
    model = sequential((None, None, 2), SANConv2D(3, 3), SANConv2D(3, 3))
    found = layer_norms(model)
    assert np.isnan(found["operator"]).all()
    assert np.isnan(found["operator_over_sn"]).all()
    assert np.isfinite(found["san"]).all()
    # No multiple of the stride, and by wish.
    model = sequential((5, 5, 2), SANConv2D(3, 3, 2))
    assert np.isnan(layer_norms(model)["operator"]).all()
    model = sequential((4, 4, 2), layers.Conv2D(3, 3, 2))
    assert np.isnan(layer_norms(model, operator=False)["operator"]).all()
    assert np.isfinite(layer_norms(model)["operator"]).all()


def test_names_and_order():
    images = keras.Input((4, 4, 3))
    nested = [layers.Conv2D(2, 1, name=name) for name in ("zero", "first")]
    x = sequential((4, 4, 3), *nested)(images)
    x = SANWrapper(layers.SeparableConv2D(2, 1), name="second")(x)
    x = layers.SpectralNormalization(layers.Dense(1, name="in"), name="third")(
        x
    )
    found = layer_norms(keras.Model(images, x), operator=False)["layer"]
    assert list(found) == [
        "zero",
        "first",
        "second/depthwise_kernel",
        "second/pointwise_kernel",
        "third",
    ]


def test_names_of_equal_parts():
    def part():
        return sequential((4, 4, 3), SANConv2D(2, 3, name="conv"))

    images = keras.Input((4, 4, 3))
    parts = [part(), part()]
    model = keras.Model(images, [p(images) for p in parts])
    parts[1].layers[0].kernel.assign(parts[1].layers[0].kernel * 3.0)
    found = layer_norms(model, operator=False)
    assert list(found["layer"]) == ["conv", "conv#2"]
    np.testing.assert_allclose(found["norm_over_intended"], [1, 3], rtol=1e-3)
    images = images_of(2, 4, 4, 3)
    for row in signal_gains(model, images):
        part = parts[row["layer"] == "conv#2"]
        expected = lengths(to_numpy(part(images))) / lengths(images)
        assert row["gain"] == approx(expected.mean())


class Own(layers.Layer):
    """A layer of a user, with a kernel as Keras' layers have it."""

    def build(self, input_shape):
        self.kernel = self.add_weight(shape=(input_shape[-1], 2), name="kernel")

    def call(self, inputs):
        return ops.matmul(inputs, self.kernel)


def test_which_kernels_are_found():
    model = sequential(
        (4,),
        layers.Embedding(5, 3),
        layers.SeparableConv1D(3, 2, name="two"),
        Own(name="own"),
    )
    assert [kernel.name for kernel in find_kernels(model)] == [
        "two/depthwise_kernel",
        "two/pointwise_kernel",
        "own",
    ]
    assert len(layer_norms(model)) == 3


def test_a_model_without_kernels():
    model = sequential((4, 4, 3), layers.Flatten(), layers.PReLU())
    with pytest.raises(ValueError, match="Received: model="):
        layer_norms(model)


# Recordings.


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__(name="critic")
        self.conv = SANConv2D(3, 3, name="conv")
        self.act = layers.LeakyReLU(0.1, name="act")
        self.flat = layers.Flatten(name="flat")
        self.dense = SANDense(1, name="dense")

    def call(self, inputs):
        # The activation twice.
        x = self.act(self.conv(inputs))
        return self.act(self.dense(self.flat(x)))


def make_model(kind):
    keras.utils.set_random_seed(2)
    if kind == "subclassed":
        model = Subclassed()
        model(images_of(1, 4, 4, 3))
        return model, ["conv", "act", "flat", "dense", "act"]
    own = layers.LeakyReLU(0.1, name="own") if kind == "own" else None
    parts = [
        SANConv2D(3, 3, name="conv", activation=own),
        layers.Dropout(0.5, name="dropout"),
        layers.Flatten(name="flat"),
        layers.SpectralNormalization(
            layers.Dense(1, name="dense"), name="spectral"
        ),
    ]
    names = ["conv", "flat", "dense"]
    if kind == "sequential":
        return sequential((4, 4, 3), *parts), names
    if kind == "wrapped":
        layer = layers.Conv2D(3, 3, name="inner")
        parts[0] = SANWrapper(layer, padding="circular", name="conv")
        return sequential((4, 4, 3), *parts), names
    if kind == "own":
        return sequential((4, 4, 3), *parts), ["own", *names]
    images = keras.Input((4, 4, 3))
    if kind == "functional":
        x = parts[0](images)
        y = ops.tanh(x)
        outputs = parts[3](parts[2](parts[1](layers.Add(name="add")([x, y]))))
        names = ["conv", "tanh", "add", "flat", "dense"]
    elif kind == "nested":
        inner = sequential((4, 4, 3), *parts[:2])
        outputs = parts[3](parts[2](inner(images)))
    elif kind == "shared":
        x = parts[0](parts[0](images))
        outputs = parts[3](parts[2](x))
        names = ["conv", "conv", "flat", "dense"]
    return keras.Model(images, outputs), names


KINDS = (
    "sequential",
    "functional",
    "subclassed",
    "nested",
    "shared",
    "own",
    "wrapped",
)


@pytest.mark.parametrize("kind", KINDS)
def test_record(kind):
    model, names = make_model(kind)
    images = images_of(2, 4, 4, 3)
    before = to_numpy(model(images))
    weights = [to_numpy(w) for w in model.weights]
    outputs, calls = record(model, images)
    assert [c.layer.name.split("_")[0] for c in calls] == names
    np.testing.assert_array_equal(to_numpy(outputs), before)
    assert calls[-1].outputs[0] is outputs
    by_layer = {call.layer.name.split("_")[0]: call for call in calls}
    flat = by_layer["flat"]
    np.testing.assert_array_equal(
        to_numpy(flat.outputs[0]), to_numpy(flat.inputs[0]).reshape(2, -1)
    )
    np.testing.assert_array_equal(to_numpy(calls[0].inputs[0]).shape[0], 2)
    for layer in model._flatten_layers():
        assert "call" not in vars(layer)
    np.testing.assert_array_equal(to_numpy(model(images)), before)
    for weight, value in zip(model.weights, weights):
        np.testing.assert_array_equal(to_numpy(weight), value)


@pytest.mark.filterwarnings("ignore:.*`quantize` method:UserWarning")
@pytest.mark.parametrize("mode", ["int8", "float8"])
def test_quantized_layers_are_refused(mode):
    model = sequential((8, 8, 1), layers.Flatten(), layers.Dense(1, name="d"))
    model.quantize(mode)
    images = images_of(2, 8, 8, 1)
    for measure in (weight_gradients, channel_sparsity, hessian_norm, diagnose):
        with pytest.raises(
            ValueError, match=f"before it is quantized.*layer d .*'{mode}_from"
        ):
            measure(model, images)


def test_record_leaves_nothing_after_an_error():
    model, _ = make_model("subclassed")
    model.flat.__class__ = type(
        "Broken", (layers.Flatten,), {"call": lambda self, x: 1 / 0}
    )
    with pytest.raises(ZeroDivisionError):
        record(model, images_of(2, 4, 4, 3))
    for layer in model._flatten_layers():
        assert "call" not in vars(layer)


# Signals.


def single_layer(kernel, **kwargs):
    """A critic of one 1x1 convolution with a given kernel."""
    model = sequential(
        (4, 4, len(kernel)),
        SANConv2D(
            len(kernel[0]), 1, normalizer=None, name="conv", use_bias=False
        ),
        *kwargs.values(),
    )
    model.layers[0].kernel.assign(np.reshape(kernel, (1, 1, *np.shape(kernel))))
    return model


def test_channels_that_are_known():
    # Of 16 channels one is zero, one falls below 1 %, three are equal.
    relative = np.zeros(16)
    relative[:6] = [1.0, 1.0, 1.0, 0.505, 0.305, 0.005]
    relative[6:15] = 0.105
    model = single_layer([relative], act=layers.ReLU(name="act"))
    (row,) = channel_sparsity(
        model, np.abs(images_of(3, 4, 4, 1)) + 0.1, bins=100
    )
    assert row["layer"] == "act" and row["channels"] == 16
    assert row["zero"] == approx(1 / 16)
    assert row["nearly_zero"] == approx(2 / 16)
    assert row["effective"] == approx(np.sum(relative**2))
    expected = np.zeros(100)
    expected[[0, 10, 30, 50, 99]] = np.array([2, 9, 1, 1, 3]) / 16
    np.testing.assert_allclose(row["histogram"], expected)


def test_all_channels_zero_or_equal():
    images = images_of(3, 4, 4, 1)
    model = single_layer([[-1.0, -2.0]], act=layers.ReLU())
    (row,) = channel_sparsity(model, np.abs(images), bins=4)
    assert row["zero"] == row["nearly_zero"] == 1.0
    assert row["effective"] == 0.0
    np.testing.assert_allclose(row["histogram"], [1, 0, 0, 0])
    model = single_layer([[1.0, -1.0]], act=layers.Activation("tanh"))
    (row,) = channel_sparsity(model, images, bins=4)
    assert row["zero"] == row["nearly_zero"] == 0.0
    assert row["effective"] == approx(2.0)
    np.testing.assert_allclose(row["histogram"], [0, 0, 0, 1])


def test_sparsity_of_random_critics():
    model = sequential(
        (8, 8, 3),
        layers.Conv2D(6, 3, padding="same", activation="relu", name="conv"),
        layers.Conv2D(5, 3, padding="same", name="other"),
        layers.LeakyReLU(0.1, name="leaky"),
        layers.Flatten(),
        layers.Dense(1),
    )
    images = images_of(7, 8, 8, 3)
    features = [
        to_numpy(keras.Model(model.inputs[0], layer.output)(images))
        for layer in (model.layers[0], model.layers[2])
    ]
    found = channel_sparsity(model, images, bins=10)
    assert list(found["layer"]) == ["conv", "leaky"]
    for row, x in zip(found, features):
        norms = channel_lengths(x)
        largest = norms.max(axis=1, keepdims=True)
        effective = np.sum((norms / largest) ** 2, axis=1)
        assert row["zero"] == np.mean(norms == 0.0)
        assert row["nearly_zero"] == np.mean(norms < 0.01 * largest)
        assert row["effective"] == approx(effective.mean())
        assert row["histogram"].sum() == approx(1.0)
        expected, _ = np.histogram(norms / largest, 10, (0, 1))
        np.testing.assert_allclose(row["histogram"] * norms.size, expected)
    for size in (1, 3):
        parts = channel_sparsity(model, images, bins=10, batch_size=size)
        for name in found.dtype.names[1:]:
            np.testing.assert_allclose(parts[name], found[name], rtol=1e-5)


def test_an_activation_within_a_layer_counts_once():
    model, _ = make_model("own")
    images = images_of(2, 4, 4, 3)
    (row,) = channel_sparsity(model, images)
    assert row["layer"] == "conv"
    activation = model.layers[0].activation
    assert list(signal_gains(model, images)["layer"]) == [
        "conv",
        "spectral",
    ]
    assert model.layers[0].activation is activation


def reference_gains(x, y, row):
    gain = lengths(y) / lengths(x)
    channel = channel_lengths(y).max(axis=1) / channel_lengths(x).max(axis=1)
    growth = np.sqrt(
        np.mean(
            np.mean(y.reshape(len(y), -1) ** 2, axis=1)
            / np.mean(x.reshape(len(x), -1) ** 2, axis=1)
        )
        / 2.0
    )
    energy = channel_lengths(x) ** 2
    return {
        "channels": x.shape[-1],
        "effective": np.mean(energy.sum(axis=1) / energy.max(axis=1)),
        "gain": gain.mean(),
        "gain_max": gain.max(),
        "gain_over_san": gain.mean() / row["san"],
        "gain_over_sn": gain.mean() / row["sn"],
        "gain_over_operator": gain.mean() / row["operator"],
        "channel_gain": channel.mean(),
        "channel_gain_max": channel.max(),
        "channel_gain_over_san": channel.mean() / row["san"],
        "growth": growth,
    }


def test_signal_gains():
    model = sequential(
        (6, 4, 3),
        SANConv2D(4, 3, name="first", activation="relu"),
        SANWrapper(
            layers.Conv2D(5, 4, 2, use_bias=False),
            "sn",
            padding="circular",
            name="second",
        ),
        layers.LeakyReLU(0.2),
        layers.Flatten(),
        layers.Dense(2, name="dense"),
    )
    for layer in (model.layers[0], model.layers[-1]):
        layer.bias.assign(images_of(*layer.bias.shape, seed=4))
    images = images_of(5, 6, 4, 3).astype("float64")
    kernels = [to_numpy(kernel.effective()) for kernel in find_kernels(model)]
    bias = to_numpy(model.layers[0].bias)
    a = convolve(images, kernels[0])
    x = np.maximum(a + bias, 0.0)
    b = convolve(x, kernels[1], 2)
    flat = np.where(b > 0, b, 0.2 * b).reshape(5, -1)
    signals = [(images, a), (x, b), (flat, flat @ kernels[2])]
    norms = layer_norms(model)
    found = signal_gains(model, images)
    assert list(found["layer"]) == ["first", "second", "dense"]
    for row, (x, y), norm in zip(found, signals, norms):
        for name, value in reference_gains(x, y, norm).items():
            assert row[name] == approx(value, rel=1e-3), name
    parts = signal_gains(model, images, norms, batch_size=2)
    for name in found.dtype.names[1:]:
        np.testing.assert_allclose(parts[name], found[name], rtol=1e-4)
    # Bias and activation are back.
    np.testing.assert_array_equal(to_numpy(model.layers[0].bias), bias)
    assert model.layers[0].activation is keras.activations.relu


@pytest.mark.parametrize("seed", range(2))
def test_norms_bound_gains(seed):
    rng = np.random.default_rng(seed)
    model = sequential(
        (8, 8, 3), SANConv2D(5, 3), SANConv2D(4, 4, 2, normalizer="sn")
    )
    for layer in model.layers:
        kernel = rng.standard_t(2, layer.kernel.shape)
        layer.kernel.assign(kernel.astype("float32"))
    images = np.zeros((3, 8, 8, 3), "float32")
    for image in images:
        image[..., rng.integers(3)] = rng.normal(size=(8, 8))
    norms = layer_norms(model)
    for x in (images, images_of(3, 8, 8, 3, seed=seed)):
        found = signal_gains(model, x, norms)
        assert (found["gain_max"] <= norms["operator"] * 1.0001).all()
        assert (found["gain_over_operator"] <= 1.0001).all()
    (first, _) = signal_gains(model, images, norms)
    assert first["effective"] == approx(1.0)
    assert first["channel_gain_max"] <= norms["san"][0] * 1.0001


def test_growth_of_he_and_xavier():
    for initializer, expected in (("he_normal", 1.0), ("glorot_normal", 0.707)):
        model = sequential(
            (8, 8, 64),
            SANConv2D(64, 3, normalizer=None, kernel_initializer=initializer),
            layers.ReLU(),
            SANConv2D(64, 3, normalizer=None, kernel_initializer=initializer),
        )
        images = np.random.default_rng(0).normal(size=(4, 8, 8, 64))
        norms = layer_norms(model, operator=False)
        found = signal_gains(model, images.astype("float32"), norms)
        np.testing.assert_allclose(found["growth"], expected, rtol=0.1)


def test_embeddings_have_no_signals():
    images = keras.Input((4, 4, 3))
    labels = keras.Input((), dtype="int32")
    x = layers.Flatten()(SANConv2D(2, 3, name="conv")(images))
    embedding = SANWrapper(layers.Embedding(5, 32), name="embedding")
    y = ops.sum(x * embedding(labels), axis=1, keepdims=True)
    model = keras.Model([images, labels], y)
    data = [images_of(3, 4, 4, 3), np.array([0, 4, 1])]
    assert list(signal_gains(model, data)["layer"]) == ["conv"]
    assert np.isnan(gradient_bounds(model, data)["bound"]).all()
    assert input_gradients(model, data).shape == (3,)


# Gradients.


def divided_by(kernel, kind):
    """The kernel that a layer runs with, in float64."""
    matrices = [kernel.reshape(-1, kernel.shape[-1])]
    if kind == "bsn" and kernel.ndim > 2:
        other = swapped(kernel)
        matrices.append(other.reshape(-1, other.shape[-1]))
    if kind in ("sn", "bsn", "keras"):
        return kernel / np.mean([np.linalg.norm(m, 2) for m in matrices])
    if kind == "weight":
        return 1.5 * (matrices[0] / lengths(matrices[0].T)).reshape(
            kernel.shape
        )
    return kernel


def small_critic(kind):
    """`D(x) = mean(w . tanh(conv(x)))`, and its raw kernels."""
    kernel = images_of(3, 3, 2, 2, seed=5)
    weights = images_of(32, 1, seed=6)
    if kind == "keras":
        parts = [
            layers.SpectralNormalization(layer, power_iterations=5)
            for layer in (
                SANConv2D(2, 3, normalizer=None, use_bias=False),
                layers.Dense(1, use_bias=False),
            )
        ]
    else:
        settings = {
            "plain": None,
            "san": normalizers.SparsityAware(scale=2.0),
            "projected": normalizers.SparsityAware(form="project"),
            "sn": "sn",
            "bsn": "bsn",
            "weight": "weight",
        }[kind]
        parts = [
            SANConv2D(2, 3, normalizer=settings, use_bias=False),
            SANDense(1, normalizer=settings, use_bias=False),
        ]
    model = sequential(
        (4, 4, 2),
        parts[0],
        layers.Activation("tanh"),
        layers.Flatten(),
        parts[1],
    )
    raw = [kernel.variable for kernel in find_kernels(model)]
    for variable, value in zip(raw, (kernel, weights)):
        variable.assign(value)
    if kind == "weight":
        for kernel in find_kernels(model):
            trained = kernel.normalization.lengths
            trained.assign(np.full(trained.shape, 1.5))
    for _ in range(6):
        model(images_of(1, 4, 4, 2), training=True)
    return model, [to_numpy(variable) for variable in raw]


def derivative(function, x, step=1e-5):
    result = np.zeros_like(x)
    for place in np.ndindex(*x.shape):
        moved = np.zeros_like(x)
        moved[place] = step
        result[place] = (function(x + moved) - function(x - moved)) / (2 * step)
    return result


@pytest.mark.parametrize(
    "kind", ["plain", "san", "projected", "sn", "bsn", "weight", "keras"]
)
def test_gradients_by_finite_differences(kind):
    model, raw = small_critic(kind)
    images = images_of(3, 4, 4, 2, seed=7).astype("float64")

    def score(x, kernel, weights):
        hidden = np.tanh(convolve(x, kernel)).reshape(len(x), -1)
        return np.mean(hidden @ weights)

    # The norm of SAN is a constant.
    factors = [1.0, 1.0]
    if kind == "san":
        norms = sparsity_aware(raw[0], (4, 4), ONES), matrix_norm(raw[1])
        factors = [2.0 / norm for norm in norms]
    run = [divided_by(f * w, kind) for f, w in zip(factors, raw)]
    by_run, by_raw = [], []
    for i in range(2):

        def of_run(value, i=i):
            return score(images, *[value if j == i else run[j] for j in (0, 1)])

        def of_raw(value, i=i, of_run=of_run):
            return of_run(divided_by(factors[i] * value, kind))

        by_run.append(derivative(of_run, run[i]))
        by_raw.append(derivative(of_raw, raw[i]))
    before = [to_numpy(w) for w in model.weights]
    found = weight_gradients(model, images.astype("float32"))
    assert list(found["layer"]) == [k.name for k in find_kernels(model)]
    for name, expected in (
        ("norm", by_run),
        ("raw_norm", by_raw),
        ("weight_norm", run),
    ):
        lengths = [np.linalg.norm(x) for x in expected]
        np.testing.assert_allclose(found[name], lengths, rtol=2e-3)
    if kind in ("sn", "bsn", "weight", "keras"):
        # A norm that is kept has no gradient along the kernel.
        for gradient, kernel in zip(by_raw, raw):
            assert np.sum(gradient * kernel) == approx(0.0, abs=1e-6)

    by_images = derivative(lambda x: 3 * score(x, *run), images)
    norms = np.linalg.norm(by_images.reshape(3, -1), axis=1)
    for size in (64, 2):
        found = input_gradients(
            model, images.astype("float32"), batch_size=size
        )
        np.testing.assert_allclose(found, norms, rtol=2e-3)

    if kind in ("san", "weight"):
        point = np.concatenate([w.ravel() for w in run])
        # What each entry of the kernel adds, as there are many to score.
        taps = np.stack(
            [convolve(images, k.reshape(3, 3, 2, 2)) for k in np.eye(36)]
        ).reshape(36, 3, -1)

        def joint(values):
            hidden = np.tanh(np.tensordot(values[:36], taps, 1))
            return np.mean(hidden @ values[36:])

        assert joint(point) == approx(score(images, *run))
        hessian = np.stack(
            [
                derivative(
                    lambda t, i=i: derivative_along(joint, t, i), point, 1e-3
                )
                for i in range(len(point))
            ]
        )
        expected = np.abs(np.linalg.eigvalsh((hessian + hessian.T) / 2)).max()
        found = hessian_norm(model, images.astype("float32"), steps=30)
        assert found == approx(expected, rel=0.02)
    for weight, value in zip(model.weights, before):
        np.testing.assert_array_equal(to_numpy(weight), value)


def derivative_along(function, x, i, step=1e-3):
    moved = np.zeros_like(x)
    moved[i] = step
    return (function(x + moved) - function(x - moved)) / (2 * step)


def test_a_linear_critic():
    model = sequential(
        (4, 4, 2), layers.Flatten(), layers.Dense(1, name="dense")
    )
    weights = images_of(32, 1, seed=1)
    model.layers[1].kernel.assign(weights)
    images = images_of(3, 4, 4, 2)
    (row,) = weight_gradients(model, images)
    assert row["norm"] == approx(np.linalg.norm(images.mean(axis=0)))
    assert row["raw_norm"] == approx(row["norm"])
    assert row["weight_norm"] == approx(np.linalg.norm(weights))
    np.testing.assert_allclose(
        input_gradients(model, images), np.linalg.norm(weights), rtol=1e-5
    )
    assert hessian_norm(model, images) == 0.0
    # A bound that is reached, by one image.
    (bound,) = gradient_bounds(model, images[:1])
    assert bound["bound"] == approx(np.linalg.norm(images[0]))
    (row,) = weight_gradients(model, images[:1])
    assert row["norm"] == approx(bound["bound"])


@pytest.mark.parametrize("normalizer", [None, "san"])
def test_a_linear_critic_of_two_layers(normalizer):
    # D(x) = x A b: the Hessian couples A_ij to b_j, by x_i.
    model = sequential(
        (5,),
        SANDense(3, use_bias=False, normalizer=normalizer),
        SANDense(1, use_bias=False, normalizer=normalizer),
    )
    a, b = (to_numpy(kernel.effective()) for kernel in find_kernels(model))
    x = images_of(4, 5)
    mean = x.mean(axis=0)
    found = weight_gradients(model, x)["norm"]
    expected = [
        np.linalg.norm(mean) * np.linalg.norm(b),
        np.linalg.norm(mean @ a),
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    for seed in (0, 1):
        assert hessian_norm(model, x, seed=seed) == approx(np.linalg.norm(mean))


def test_raw_gradients_of_a_kernel_that_moved():
    # By the norm that is kept, as the layer runs: none is measured on the way.
    model = sequential((5,), SANDense(1, use_bias=False))
    kernel = to_numpy(model.layers[0].kernel)
    model.layers[0].kernel.assign(kernel * 3.0)
    images = images_of(4, 5)
    (row,) = weight_gradients(model, images)
    assert row["norm"] == approx(np.linalg.norm(images.mean(axis=0)))
    assert row["raw_norm"] == approx(row["norm"] / np.linalg.norm(kernel))
    assert row["weight_norm"] == approx(3.0)


@pytest.mark.parametrize("normalizer", ["san", "bsn"])
def test_eulers_rule(normalizer):
    # Without bias D is homogeneous in each of its kernels.
    model = sequential(
        (8, 8, 3),
        SANConv2D(4, 3, normalizer=normalizer, use_bias=False),
        layers.LeakyReLU(0.1),
        SANConv2D(4, 4, 2, normalizer=normalizer, use_bias=False),
        layers.LeakyReLU(0.1),
        layers.Flatten(),
        SANDense(1, normalizer=normalizer, use_bias=False),
    )
    images = ops.convert_to_tensor(images_of(2, 8, 8, 3))
    kernels = find_kernels(model)
    values = [ops.stop_gradient(kernel.effective()) for kernel in kernels]

    def score(values):
        with running_with(kernels, values):
            return mean_score(model(images))

    value, gradients = value_and_gradients(score, values)
    expected = to_numpy(ops.mean(model(images)))
    for gradient, kernel in zip(gradients, values):
        product = to_numpy(ops.sum(ops.stop_gradient(gradient) * kernel))
        assert product == approx(expected, rel=1e-3)


def test_scores_of_several_scales():
    x = [
        images_of(2, *shape, seed=i)
        for i, shape in enumerate(((4, 4, 1), (3, 2, 2, 1), (2, 2, 1)))
    ]
    assert to_numpy(mean_score(x[0])) == approx(x[0].mean())
    assert to_numpy(mean_score([x[0], x[2]])) == approx(
        (x[0].mean() + x[2].mean()) / 2
    )
    assert to_numpy(mean_score([[x[1], x[0]], [x[1], x[2]]])) == approx(
        (x[0].mean() + x[2].mean()) / 2
    )

    images = keras.Input((8, 8, 3))
    small = layers.AveragePooling2D(2)(images)
    outputs = [
        SANConv2D(1, 1, name=name, use_bias=False)(y)
        for name, y in (("large", images), ("small", small))
    ]
    data = images_of(2, 8, 8, 3)
    model = keras.Model(images, outputs)
    found = {r["layer"]: r["norm"] for r in weight_gradients(model, data)}
    expected = np.linalg.norm(data.mean(axis=(0, 1, 2))) / 2
    assert found["large"] == approx(expected)
    assert found["small"] == approx(expected)
    bounds = {r["layer"]: r["bound"] for r in gradient_bounds(model, data)}
    mean_length = lengths(data).mean()
    # A share of 1/2, and the mean of 64 logits.
    assert bounds["large"] == approx(mean_length / 2 / 8)


# Bounds.


def residual_critic(width):
    images = keras.Input((8, 8, 3))
    x = SANConv2D(width, 3, normalizer="sn")(layers.ReLU()(images))
    x = SANConv2D(width, 3, normalizer=None)(layers.LeakyReLU(0.3)(x))
    x = layers.AveragePooling2D(2)(x)
    shortcut = SANConv2D(width, 1)(layers.AveragePooling2D(2)(images))
    x = layers.Add()([x, shortcut])
    y = layers.MaxPooling2D(3, 2, padding="same")(x)
    y = layers.GlobalAveragePooling2D()(y)
    z = ops.sum(layers.ReLU()(x), axis=(1, 2))
    return keras.Model(images, SANDense(1)(layers.Concatenate()([y, z, y])))


def chain_critic(width):
    return sequential(
        (8, 8, 3),
        SANConv2D(width, 3, normalizer=None, activation="tanh"),
        layers.Dropout(0.5),
        SANConv2D(width, 4, 2, normalizer=None),
        layers.LeakyReLU(0.1),
        SANConv2D(width, 3, 2, normalizer=None, activation="sigmoid"),
        layers.BatchNormalization(),
        SANDense(2, normalizer=None),
    )


@pytest.mark.parametrize("make", [chain_critic, residual_critic])
def test_bounds_hold(make):
    model = make(4)
    for seed in range(2):
        rng = np.random.default_rng(seed)
        for weight in model.weights:
            if weight.trainable:
                value = rng.standard_t(3, weight.shape)
                weight.assign(value.astype("float32"))
        images = images_of(3, 8, 8, 3, seed=seed) ** 3
        found = weight_gradients(model, images)
        bounds = gradient_bounds(model, images)
        assert list(bounds["layer"]) == list(found["layer"])
        assert (found["norm"] <= bounds["bound"] * 1.0001).all()
        assert np.isfinite(bounds["bound"]).all()


def test_a_bound_by_hand():
    model = sequential(
        (8, 8, 2),
        SANConv2D(3, 3, normalizer=None, name="conv"),
        layers.Dropout(0.5),
        layers.AveragePooling2D(2),
        layers.Flatten(),
        layers.Dense(1, name="dense"),
    )
    images = images_of(3, 8, 8, 2)
    kernels = [to_numpy(k.variable) for k in find_kernels(model)]
    bounds = gradient_bounds(model, images)["bound"]
    dense = np.linalg.norm(kernels[1])
    # The pooling halves, and 9 positions share a kernel.
    assert bounds[0] == approx(lengths(images).mean() * 3 * dense / 2)
    hidden = convolve(images.astype("float64"), kernels[0])
    hidden = hidden.reshape(3, 4, 2, 4, 2, 3).mean(axis=(2, 4))
    assert bounds[1] == approx(lengths(hidden).mean())


def test_bounds_of_ways_and_slopes():
    # First a shortcut, then activations of slopes up to 1/4 and 2.
    inputs = keras.Input((4,))
    a = layers.Dense(4, name="a", use_bias=False)(inputs)
    b = layers.Dense(4, name="b", use_bias=False)(a)
    x = layers.Add()([a, b])
    x = layers.Dense(4, name="c", activation="sigmoid")(x)
    x = layers.LeakyReLU(2.0)(x)
    model = keras.Model(inputs, layers.Dense(1, name="d")(x))
    data = images_of(3, 4)
    norms = layer_norms(model)["sn"]
    bounds = dict(zip("abcd", gradient_bounds(model, data)["bound"]))
    size = lengths(data).mean()
    behind = norms[2] * 2.0 * norms[3] / 4
    assert bounds["a"] == approx(size * (1 + norms[1]) * behind)
    hidden = data @ to_numpy(model.get_layer("a").kernel)
    assert bounds["b"] == approx(lengths(hidden).mean() * behind)
    hidden = hidden @ (np.eye(4) + to_numpy(model.get_layer("b").kernel))
    assert bounds["c"] == approx(lengths(hidden).mean() * norms[3] / 2)


def test_bounds_where_one_number_is_added_to_several():
    inputs = keras.Input((4,))
    settings = {"use_bias": False, "kernel_initializer": "ones"}
    one = layers.Dense(1, name="one", **settings)(inputs)
    several = layers.Dense(8, name="several", **settings)(inputs)
    x = layers.Add()([one, several])
    model = keras.Model(inputs, layers.Dense(1, name="last", **settings)(x))
    data = np.ones((1, 4), "float32")
    found = weight_gradients(model, data)
    bounds = gradient_bounds(model, data)["bound"]
    # Each of four weights counts eight times.
    assert found["norm"][list(found["layer"]).index("one")] == approx(16.0)
    found = found["norm"]
    np.testing.assert_allclose(bounds, found, rtol=1e-4)


def test_bounds_of_averages_beside_a_border():
    # All there is, is in a corner, where an average is of one pixel.
    model = sequential(
        (3, 3, 1),
        layers.Conv2D(1, 1, use_bias=False),
        layers.AveragePooling2D(2, padding="same"),
        layers.Flatten(),
        layers.Dense(1),
    )
    model.layers[-1].kernel.assign([[0.0], [0.0], [0.0], [1.0]])
    corner = np.zeros((1, 3, 3, 1), "float32")
    corner[:, 2, 2] = 1.0
    (found, _) = weight_gradients(model, corner)["norm"]
    (bound, _) = gradient_bounds(model, corner)["bound"]
    assert found == approx(1.0)
    assert bound == approx(1.0)


def test_bounds_of_what_is_unknown():
    def bounds_with(*parts, shape=(4, 4, 3)):
        model = sequential(
            shape,
            SANConv2D(3, 3, name="first"),
            *parts,
            layers.GlobalAveragePooling2D(),
            SANDense(1, name="last"),
        )
        return np.isnan(gradient_bounds(model, images_of(2, 4, 4, 3))["bound"])

    unit = layers.UnitNormalization()
    assert bounds_with(unit).tolist() == [True, False]
    assert bounds_with(layers.Activation("swish")).tolist() == [True, False]
    assert bounds_with(layers.Activation("elu")).tolist() == [False, False]
    assert bounds_with(layers.SeparableConv2D(2, 1)).tolist() == [
        *[False, True, True, False]
    ]
    assert bounds_with(SANConv2D(2, 3), shape=(None, None, 3)).tolist() == [
        True,
        False,
        False,
    ]
