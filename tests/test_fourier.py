"""Tests of `keras_san.fourier` against sums over taps in NumPy float64."""

import itertools

import helpers
import keras
import numpy as np
import pytest
from helpers import BACKEND, kernel_gradient, to_numpy
from keras import layers, ops

import keras_san
from keras_san import SANConv2D, SANWrapper, fourier
from keras_san.padding import circular_amounts, circular_pad

pytestmark = helpers.ignore_torch_copies

only_on_tensorflow = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="What only TensorFlow has."
)
offered = pytest.mark.skipif(
    BACKEND == "torch", reason="On PyTorch padding is used."
)

# Image, kernel size, strides.
GEOMETRIES = [
    ((4, 4), (3, 3), (1, 1)),
    ((8, 8), (3, 3), (1, 1)),
    ((8, 8), (4, 4), (2, 2)),
    ((5, 7), (3, 3), (1, 1)),  # one frequency is its own negative
    ((6, 5), (2, 4), (1, 1)),  # two are
    ((4, 6), (5, 4), (2, 1)),
    ((6, 8), (4, 5), (1, 2)),
    ((9, 4), (3, 2), (3, 2)),
    ((6, 6), (5, 5), (3, 3)),
    ((2, 3), (2, 3), (1, 1)),
    ((1, 1), (1, 1), (1, 1)),
    ((1, 6), (1, 4), (1, 3)),
    ((4, 4), (2, 2), (4, 4)),
    ((3, 4), (8, 7), (1, 2)),  # taps that fall on one pixel add up
]


def taps(kernel):
    """All taps, and how far to roll an image to the pixels they multiply."""
    for tap in np.ndindex(*kernel.shape[:2]):
        yield tap, [(k - 1) // 2 - t for k, t in zip(kernel.shape, tap)]


def convolve(x, w, strides):
    y = sum(np.roll(x, shift, (1, 2)) @ w[tap] for tap, shift in taps(w))
    return y[:, :: strides[0], :: strides[1]]


def of_inputs(x, w, strides, cotangent):
    """The gradient of `sum(convolve(x, w, strides) * cotangent)` in `x`."""
    full = np.zeros((*x.shape[:3], w.shape[-1]))
    full[:, :: strides[0], :: strides[1]] = cotangent
    back = [(tap, [-s for s in shift]) for tap, shift in taps(w)]
    return sum(np.roll(full @ w[tap].T, s, (1, 2)) for tap, s in back)


def of_kernel(x, w, strides, cotangent):
    """The gradient of the same in `w`."""
    gradient = np.zeros(w.shape)
    for tap, shift in taps(w):
        seen = np.roll(x, shift, (1, 2))[:, :: strides[0], :: strides[1]]
        gradient[tap] = np.einsum("bijc,bijo->co", seen, cotangent)
    return gradient


def data(image, kernel_size, channels=3, filters=4, batch=2, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(batch, *image, channels)).astype("float32")
    w = rng.normal(size=(*kernel_size, channels, filters)).astype("float32")
    return x, w


def transformed(strides):
    return lambda x, w: fourier.circular_convolution(x, w, strides)


def padded(strides):
    """The same convolution by way of padding."""

    def convolution(x, w):
        amounts = circular_amounts(w.shape[:2], (1, 1))
        x = circular_pad(x, amounts, "channels_last")
        return ops.conv(x, w, strides, "valid", "channels_last")

    return convolution


def compiled(function):
    """Compiles on JAX, which would otherwise compile each operation."""
    if BACKEND == "jax":
        import jax

        return jax.jit(function)
    return lambda *arrays: function(*map(ops.convert_to_tensor, arrays))


def gradients(function, *arrays):
    """The gradients of a scalar function, differentiable themselves."""
    if BACKEND == "jax":
        import jax

        return jax.grad(function, tuple(range(len(arrays))))(*arrays)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        with tf.GradientTape() as tape:
            tape.watch(arrays)
            value = function(*arrays)
        return tape.gradient(value, arrays)
    import torch

    for array in arrays:
        array.requires_grad_()
    return torch.autograd.grad(function(*arrays), arrays, create_graph=True)


def penalty(convolution, v):
    """A gradient penalty, the critic being a convolution and a cube."""

    def value(x, w):
        return ops.sum(ops.convert_to_tensor(v) * convolution(x, w) ** 3)

    def squares(x, w):
        (gradient,) = gradients(lambda x: value(x, w), x)
        return ops.sum(gradient**2)

    return lambda x, w: (gradients(value, x, w), gradients(squares, x, w))


def expected_of_penalty(x, w, v, strides):
    """The expected result of `penalty`, in NumPy float64."""
    y = convolve(x, w, strides)
    upstream = 3 * v * y**2
    g = of_inputs(x, w, strides, upstream)
    second = 12 * v * y * convolve(g, w, strides)
    return [
        g,
        of_kernel(x, w, strides, upstream),
        of_inputs(x, w, strides, second),
        of_kernel(x, w, strides, second)
        + 2 * of_kernel(g, w, strides, upstream),
    ]


def close(found, expected, tolerance=1e-5):
    """Asserts equality, relative to the largest number expected."""
    found, expected = to_numpy(found), np.asarray(expected, "float64")
    assert found.shape == expected.shape
    atol = tolerance * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=atol)


@pytest.mark.parametrize("image, kernel_size, strides", GEOMETRIES)
def test_sums_over_taps(image, kernel_size, strides):
    x, w = data(image, kernel_size)
    found = compiled(transformed(strides))(x, w)
    close(found, convolve(x, w, strides), 1e-6)


@pytest.mark.parametrize("strides", [(1, 1), (2, 2), (1, 2)])
def test_all_kernel_sizes(strides):
    for kernel_size in itertools.product((2, 3, 4, 5), repeat=2):
        if sum(kernel_size) % 3:  # Leaves all sizes of each axis.
            continue
        x, w = data((6, 8), kernel_size, channels=1, filters=2, batch=1)
        found = compiled(transformed(strides))(x, w)
        close(found, convolve(x, w, strides), 1e-6)


def test_the_references_are_adjoint():
    x, w = data((4, 6), (5, 4))
    y = convolve(x, w, (2, 1))
    u = np.random.default_rng(1).normal(size=y.shape)
    for gradient, variable in [(of_inputs, x), (of_kernel, w)]:
        found = np.sum(gradient(x, w, (2, 1), u) * variable)
        np.testing.assert_allclose(found, np.sum(y * u), rtol=1e-6)


@pytest.mark.parametrize(
    "image, kernel_size, strides, way",
    [(*geometry, transformed) for geometry in GEOMETRIES[:8]]
    # The gradients of padding itself, test_padding has.
    + [(*geometry, padded) for geometry in GEOMETRIES[5:7]],
)
def test_gradients_of_both_orders(image, kernel_size, strides, way):
    x, w = data(image, kernel_size)
    v = np.random.default_rng(1).normal(size=convolve(x, w, strides).shape)
    v = v.astype("float32")
    found = compiled(penalty(way(strides), v))(x, w)
    expected = expected_of_penalty(x, w, v, strides)
    for one, other in zip([*found[0], *found[1]], expected, strict=True):
        close(one, other, 1e-5)


def test_a_gradient_is_a_difference():
    x, w = data((4, 6), (3, 4))
    step = np.random.default_rng(1).normal(size=w.shape).astype("float32")
    convolution = transformed((1, 2))

    def value(w):
        return ops.sum(convolution(ops.convert_to_tensor(x), w) ** 2)

    (gradient,) = compiled(lambda w: gradients(value, w))(w)
    # Exact for squares, but for rounding.
    up, down = (to_numpy(compiled(value)(w + t * step)) for t in (1, -1))
    found = np.sum(to_numpy(gradient) * step)
    np.testing.assert_allclose(found, (up - down) / 2, rtol=1e-4)


@only_on_tensorflow
@pytest.mark.parametrize("jit_compile", [False, True])
def test_batches_of_unknown_size(jit_compile):
    import tensorflow as tf

    x, w = data((6, 8), (4, 3), batch=5)
    signature = [
        tf.TensorSpec((None, 6, 8, 3)),
        tf.TensorSpec(w.shape),
        tf.TensorSpec((None, 3, 8, 4)),
    ]

    @tf.function(
        input_signature=signature, jit_compile=jit_compile, autograph=False
    )
    def both_orders(x, w, v):
        found = transformed((2, 1))(x, w)
        assert found.shape == (None, 3, 8, 4)
        return found, *penalty(transformed((2, 1)), v)(x, w)

    for batch in (5, 2):
        seen = x[:batch]
        y = convolve(seen, w, (2, 1))
        v = np.random.default_rng(1).normal(size=y.shape).astype("float32")
        found, first, second = both_orders(seen, w, v)
        close(found, y, 1e-6)
        expected = expected_of_penalty(seen, w, v, (2, 1))
        for one, other in zip([*first, *second], expected, strict=True):
            close(one, other, 1e-5)


def asked(batch=64, image=(8, 8), k=(3, 3), c=128, f=128, s=(1, 1), dtypes=()):
    """The result of `is_faster` for such inputs and kernels."""
    of_inputs, of_kernel = dtypes or ("float32", "float32")
    inputs = np.broadcast_to(np.zeros((), of_inputs), (batch, *image, c))
    kernel = np.broadcast_to(np.zeros((), of_kernel), (*k, c, f))
    return fourier.is_faster(inputs, kernel, s)


@offered
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"batch": 16},
        {"image": (4, 16)},
        {"k": (2, 5)},
        {"k": (4, 4), "c": 256, "f": 256, "s": (2, 2)},
        {"image": (12, 12), "f": 256},
        {"image": (12, 12), "c": 1024, "f": 1024},
        {"image": (3, 3), "k": (3, 3)},
    ],
)
def test_where_the_transforms_are_used(settings):
    assert asked(**settings) is True


@pytest.mark.parametrize(
    "settings",
    [
        {"batch": 8},  # one kernel is transformed for few images
        {"batch": 0},
        {"image": (8, 32)},
        {"image": (32, 32)},
        {"image": (13, 13), "c": 1024, "f": 1024},  # by memory alone
        {"image": (4, 42), "c": 2048, "f": 2048},
        {"c": 3},
        {"f": 1},
        {"k": (1, 1)},
        {"k": (2, 1)},
        {"s": (2, 2)},  # too few taps for four phases
        {"k": (4, 4), "c": 256, "f": 256, "s": (2, 2), "image": (8, 7)},
        {"k": (4, 4), "c": 256, "f": 256, "s": (2, 2), "image": (7, 8)},
        {"k": (4, 4), "c": 256, "f": 256, "s": (2, 2), "batch": 16},
        {"image": (8, 2)},  # padding says what is too small
        {"image": (2, 8)},
        {"dtypes": ("float16", "float32")},
        {"dtypes": ("float64", "float64")},
        {"dtypes": ("float32", "float16")},
    ],
)
def test_where_padding_is_used(settings):
    assert asked(**settings) is False


@offered
def test_only_on_cpus(monkeypatch):
    for devices in (["gpu:0", "gpu:1"], ["tpu:0"]):
        monkeypatch.setattr(
            keras.distribution, "list_devices", lambda devices=devices: devices
        )
        assert not asked()


@pytest.mark.skipif(BACKEND != "torch", reason="PyTorch")
def test_never_on_torch():
    assert not asked()


@only_on_tensorflow
def test_sizes_that_are_not_known():
    import tensorflow as tf

    uses = []

    @tf.function(autograph=False)
    def trace(x):
        kernel = np.zeros((3, 3, 128, 128), "float32")
        uses.append(fourier.is_faster(x, kernel, (1, 1)))

    # Only of a batch there is something to suppose.
    for shape in [(None, 8, 8, 128), (64, None, 8, 128), (64, 8, None, 128)]:
        trace.get_concrete_function(tf.TensorSpec(shape))
    assert uses == [True, False, False]


@pytest.fixture
def count(monkeypatch):
    """Sets which way layers take, and counts calls of the transforms."""
    original, calls = fourier.circular_convolution, []

    def convolution(*args):
        calls.append(args)
        return original(*args)

    monkeypatch.setattr(fourier, "circular_convolution", convolution)

    def use(faster):
        answer = None if faster is None else lambda *args: faster
        if answer:
            monkeypatch.setattr(fourier, "is_faster", answer)
        calls.clear()
        return calls

    return use


def own(normalizer, **kwargs):
    return SANConv2D(5, (4, 3), (2, 1), normalizer=normalizer, **kwargs)


def wrapped(normalizer, **kwargs):
    layer = layers.Conv2D(5, (4, 3), (2, 1), **kwargs)
    return SANWrapper(layer, normalizer, padding="circular")


SETTINGS = {
    "bias_initializer": "random_normal",
    "activation": "tanh",
    "activity_regularizer": "l2",
}


@pytest.mark.parametrize(
    "make, normalizer, training",
    [
        (own, "san", True),
        (own, None, False),
        (wrapped, "sn", True),
        (wrapped, "san", False),
    ],
)
def test_layers_do_the_same_both_ways(make, normalizer, training, count):
    x, _ = data((6, 5), (4, 3))
    first, second = make(normalizer, **SETTINGS), make(normalizer, **SETTINGS)
    first.build(x.shape)
    second.build(x.shape)
    second.set_weights(first.get_weights())
    found = []
    for layer, faster in [(first, False), (second, True)]:
        calls = count(faster)
        outputs = layer(x, training=training)
        (loss,) = layer.losses
        assert len(calls) == faster
        cotangent = np.random.default_rng(1).normal(size=outputs.shape)
        kernel = getattr(layer, "layer", layer).kernel
        gradient = kernel_gradient(layer, kernel, x, cotangent)
        assert len(calls) == 2 * faster
        found.append([outputs, loss, gradient, *layer.weights])
    for one, other in zip(*found, strict=True):
        close(one, to_numpy(other))


@pytest.mark.parametrize("make", [own, wrapped])
def test_layers_without_bias_and_activation(make, count):
    x, _ = data((6, 5), (4, 3))
    layer = make(None, use_bias=False)
    getattr(layer, "layer", layer).activation = None  # Keras allows for it.
    calls = count(True)
    found = layer(x)
    assert len(calls) == 1
    kernel = to_numpy(getattr(layer, "layer", layer).kernel)
    close(found, convolve(x, kernel, (2, 1)))


def test_what_lora_adds_to_a_kernel(count):
    x, _ = data((6, 5), (4, 3))
    layer = own(None)
    layer.build(x.shape)
    layer.enable_lora(2)
    layer.lora_kernel_b.assign(np.ones(layer.lora_kernel_b.shape))
    count(False)
    expected = layer(x)
    calls = count(True)
    close(layer(x), to_numpy(expected))
    assert len(calls) == 1


class OwnCall(layers.Conv2D):
    def call(self, inputs):
        return 2 * super().call(inputs)


class OwnConvolution(layers.Conv2D):
    def convolution_op(self, inputs, kernel):
        return 2 * super().convolution_op(inputs, kernel)


def changed(name):
    """A layer one of whose methods was set from outside."""
    layer = layers.Conv2D(4, 3)
    method = getattr(layer, name)
    setattr(layer, name, lambda *args: 2 * method(*args))
    return layer


@pytest.mark.parametrize(
    "make",
    [
        lambda: OwnCall(4, 3),
        lambda: OwnConvolution(4, 3),
        lambda: changed("call"),
        lambda: changed("convolution_op"),
        lambda: layers.Conv2D(4, 3, groups=2),
        lambda: layers.Conv2D(4, 3, dilation_rate=(1, 2)),
        lambda: layers.Conv2D(4, 3, dilation_rate=(2, 1)),
        lambda: layers.Conv2DTranspose(4, 3),
        lambda: layers.DepthwiseConv2D(3),
        lambda: layers.SeparableConv2D(4, 3),
    ],
)
def test_other_layers_are_padded(make, count):
    x, _ = data((6, 5), (3, 3), channels=4)
    layer = SANWrapper(make(), padding="circular")
    calls = count(True)
    found = layer(x)
    assert not calls
    count(False)
    np.testing.assert_array_equal(to_numpy(layer(x)), to_numpy(found))


@pytest.mark.parametrize("rank", [1, 3])
def test_images_of_other_ranks_are_padded(rank, count):
    cls = {1: layers.Conv1D, 3: layers.Conv3D}[rank]
    layer = SANWrapper(cls(2, 3), padding="circular")
    calls = count(True)
    layer(np.ones((2, *(4,) * rank, 3), "float32"))
    assert not calls


def test_channels_first_is_padded(count):
    layer = SANConv2D(4, 3, data_format="channels_first")
    layer.build((2, 4, 6, 6))
    calls = count(True)
    try:
        layer(np.ones((2, 4, 6, 6), "float32"))
    except Exception as error:  # Some CPUs lack this layout.
        assert "NHWC" in str(error)
    assert not calls


def test_a_subclass_that_calls_its_parent(count):
    class Twice(SANConv2D):
        def call(self, inputs, training=None):
            return 2 * super().call(inputs, training=training)

    x, _ = data((6, 5), (4, 3))
    layer = Twice(4, 3, normalizer=None)
    calls = count(True)
    found = layer(x)
    assert len(calls) == 1
    close(found, 2 * convolve(x, to_numpy(layer.kernel), (1, 1)))


@offered
def test_what_layers_do_by_themselves(count):
    calls = count(None)
    x = np.ones((64, 4, 4, 64), "float32")
    SANConv2D(64, 3)(x)
    SANWrapper(layers.Conv2D(64, 3), padding="circular")(x)
    assert len(calls) == 2
    for policy in ("mixed_float16", "bfloat16"):
        SANConv2D(64, 3, dtype=policy)(x)
    SANConv2D(64, 3)(x[:1])
    assert len(calls) == 2


def critic():
    return keras.Sequential(
        [
            keras.Input((8, 4, 3)),
            own("san", **SETTINGS),
            wrapped("sn", **SETTINGS),
            SANConv2D(2, 2, normalizer=None),
        ]
    )


def test_a_stripped_model_is_plain_and_equal(count):
    model = critic()
    x, _ = data((8, 4), (4, 3))
    calls = count(True)
    expected = model(x)
    assert len(calls) == 3
    plain = keras_san.strip(model)
    close(plain(x), to_numpy(expected))
    assert len(calls) == 3


def test_a_reloaded_model_is_equal_to_the_bit(tmp_path, count):
    model = critic()
    x, _ = data((8, 4), (4, 3))
    calls = count(True)
    model(x, training=True)
    expected = to_numpy(model(x))
    model.save(tmp_path / "critic.keras")
    loaded = keras.saving.load_model(tmp_path / "critic.keras")
    np.testing.assert_array_equal(to_numpy(loaded(x)), expected)
    assert len(calls) == 9


@only_on_tensorflow
def test_an_exported_model_gives_the_same(tmp_path, count):
    import tensorflow as tf

    model = critic()
    calls = count(True)
    model.export(tmp_path / "critic", verbose=False)
    assert calls
    count(False)
    exported = tf.saved_model.load(tmp_path / "critic")
    for batch in (1, 3):
        x, _ = data((8, 4), (4, 3), batch=batch)
        close(exported.serve(x), to_numpy(model(x)))
