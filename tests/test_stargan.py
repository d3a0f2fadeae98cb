import inspect
import json

import keras
import numpy as np
import pytest
from helpers import BACKEND, sparsity_aware, to_numpy, trainable_parameters
from keras import layers

from keras_san import SANConv2D, normalizers
from keras_san.networks import stargan

RNG = np.random.default_rng(0)


def randomized(model):
    """The model with random weights, also where they start at 0 or 1."""
    rng = np.random.default_rng(1)
    for weight in model.trainable_weights:
        weight.assign(rng.normal(0.0, 0.5, weight.shape))
    return model


def compiled(model):
    """Compiles on JAX, which would otherwise compile each operation."""
    if BACKEND != "jax":
        return model
    import jax

    return jax.jit(lambda inputs: model(inputs))


def some_inputs(height=8, width=12, num_attributes=5, channels=3, n=2):
    images = RNG.uniform(-1, 1, (n, height, width, channels))
    attributes = RNG.integers(2, size=(n, num_attributes))
    return [images.astype("float32"), attributes.astype("float32")]


@pytest.mark.parametrize(
    ("settings", "parameters"),
    [
        ({}, 8_430_528),
        ({"num_attributes": 2, "channels": 1, "blocks": 1}, 2_505_216),
    ],
)
def test_parameter_counts_of_the_generator(settings, parameters):
    """Counted by hand from Table 4 of Choi et al."""
    channels = settings.get("channels", 3)
    inputs = channels + settings.get("num_attributes", 5)
    kernels = [
        (7, inputs, 64),
        (4, 64, 128),
        (4, 128, 256),
        *[(3, 256, 256)] * 2 * settings.get("blocks", 6),
        (4, 256, 128),
        (4, 128, 64),
        (7, 64, channels),
    ]
    expected = sum(k**2 * a * b for k, a, b in kernels)
    # A factor and a shift for each channel, but for those of the last.
    expected += 2 * sum(b for *_, b in kernels[:-1])
    assert expected == parameters
    model = stargan.generator(**settings)
    assert model.count_params() == trainable_parameters(model) == expected


@pytest.mark.parametrize(
    ("settings", "parameters"),
    [
        ({}, 44_762_048),
        (
            {
                "resolution": 24,
                "num_attributes": 2,
                "channels": 1,
                "halvings": 3,
            },
            663_744,
        ),
    ],
)
def test_parameter_counts_of_the_critic(settings, parameters):
    """Counted by hand from Table 5 of Choi et al."""
    expected, channels = 0, settings.get("channels", 3)
    for index in range(settings.get("halvings", 6)):
        filters = 64 * 2**index
        expected += 16 * channels * filters + filters
        channels = filters
    size = 3 if settings else 2
    expected += 9 * channels
    expected += size**2 * channels * settings.get("num_attributes", 5)
    assert expected == parameters
    # What normalizes is not trained, and takes its time.
    model = stargan.critic(**settings, normalizer=None)
    assert trainable_parameters(model) == expected


# The networks once more, in NumPy.


def relu(x):
    return np.maximum(x, 0.0)


def numpy_conv(x, kernel, stride=1, mode="constant"):
    """A convolution with zero or circular padding; if odd, more after."""
    # Of what a circular padding has, the last is not read with a stride.
    total = kernel.shape[0] - (stride if mode == "constant" else 1)
    before = total // 2
    pad = (before, total - before)
    height, width = x.shape[1:3]
    x = np.pad(x, ((0, 0), pad, pad, (0, 0)), mode)
    return sum(
        x[:, i : i + height : stride, j : j + width : stride] @ kernel[i, j]
        for i, j in np.ndindex(kernel.shape[:2])
    )


def numpy_double(x, kernel):
    """A transposed convolution: each pixel adds 4 x 4, around its own 2."""
    n, height, width, _ = x.shape
    made = np.zeros((n, 2 * height + 2, 2 * width + 2, kernel.shape[2]))
    for i, j in np.ndindex(4, 4):
        part = made[:, i : i + 2 * height : 2, j : j + 2 * width : 2]
        part += x @ kernel[i, j].T
    return made[:, 1:-1, 1:-1]


def numpy_generator(model, images, attributes, blocks):
    def kernel(name):
        return to_numpy(model.get_layer(name).kernel)

    def normalize(x, name):
        layer = model.get_layer(f"{name}_norm")
        x = x - x.mean(axis=(1, 2), keepdims=True)
        x = x / np.sqrt((x**2).mean(axis=(1, 2), keepdims=True) + 1e-5)
        return x * to_numpy(layer.gamma) + to_numpy(layer.beta)

    tiled = np.broadcast_to(
        attributes[:, None, None],
        (*images.shape[:3], attributes.shape[1]),
    )
    x = np.concatenate([images, tiled], axis=-1)
    for name, stride in (("conv_in", 1), ("halve_1", 2), ("halve_2", 2)):
        x = relu(normalize(numpy_conv(x, kernel(name), stride), name))
    for index in range(blocks):
        first, second = (f"block_{index + 1}_conv_{i}" for i in (1, 2))
        y = relu(normalize(numpy_conv(x, kernel(first)), first))
        x = x + normalize(numpy_conv(y, kernel(second)), second)
    for name in ("double_1", "double_2"):
        x = relu(normalize(numpy_double(x, kernel(name)), name))
    return np.tanh(numpy_conv(x, kernel("conv_out")))


@pytest.mark.parametrize("resolution", [None, 12])
def test_the_generator_in_numpy(resolution):
    model = randomized(
        stargan.generator(3, 2, 0.05, blocks=2, resolution=resolution)
    )
    inputs = some_inputs(12, 12 if resolution else 8, 3, 2)
    made = to_numpy(compiled(model)(inputs))
    expected = numpy_generator(model, *inputs, blocks=2)
    assert expected.std() > 0.1
    np.testing.assert_allclose(made, expected, rtol=1e-3, atol=1e-4)
    assert made.shape == inputs[0].shape and np.abs(made).max() <= 1.0


@pytest.mark.parametrize(
    ("resolution", "halvings", "padding"),
    [(2, 1, "circular"), (8, 2, "circular"), (6, 1, "same")],
)
def test_the_critic_in_numpy(resolution, halvings, padding):
    model = randomized(
        stargan.critic(
            resolution, 4, 2, 0.05, halvings=halvings, padding=padding
        )
    )
    images, _ = some_inputs(resolution, resolution, 4, 2)
    model(images, training=True)  # Measures the kernels.
    mode = {"circular": "wrap", "same": "constant"}[padding]

    def conv(x, name, stride=1):
        layer = model.get_layer(name)
        kernel = to_numpy(layer.kernel)
        kernel = kernel / sparsity_aware(kernel, x.shape[1:3], (1, 1))
        x = numpy_conv(x, kernel, stride, mode=mode)
        return x + to_numpy(layer.bias) if layer.use_bias else x

    x = images
    for index in range(halvings):
        x = conv(x, f"conv_{index + 1}", 2)
        x = np.where(x > 0.0, x, 0.01 * x)
    head = to_numpy(model.get_layer("attributes").kernel)
    logits, attributes = compiled(model)(images)
    np.testing.assert_allclose(
        to_numpy(logits), conv(x, "logits"), rtol=2e-3, atol=2e-4
    )
    np.testing.assert_allclose(
        to_numpy(attributes),
        np.einsum("nhwc,hwca->na", x, head),
        rtol=2e-3,
        atol=2e-4,
    )
    size = resolution // 2**halvings
    assert logits.shape == (2, size, size, 1)
    assert attributes.shape == (2, 4)


@pytest.mark.parametrize("attribute", [0, 2])
def test_attributes_reach_every_pixel(attribute):
    """They pass the instance normalization by the zeros around images."""
    model = randomized(stargan.generator(3, width=0.1, blocks=1))
    images, attributes = some_inputs(16, 20, 3)
    changed = attributes.copy()
    changed[0, attribute] = 1.0 - changed[0, attribute]
    call = compiled(model)
    before, after = (to_numpy(call([images, x])) for x in (attributes, changed))
    assert np.all(np.any(before[0] != after[0], axis=-1))
    assert np.abs(before[0] - after[0]).mean() > 0.01
    np.testing.assert_allclose(before[1], after[1], atol=1e-5)


def test_any_size():
    model = randomized(stargan.generator(width=0.05, blocks=1))
    assert model.input_shape == [(None, None, None, 3), (None, 5)]
    assert model.output_shape == (None, None, None, 3)

    call = compiled(model)
    if BACKEND == "tensorflow":
        import tensorflow as tf

        # One graph for all of them.
        signature = [tf.TensorSpec(shape) for shape in model.input_shape]
        call = tf.function(model, input_signature=[signature])
    for height, width in ((4, 8), (12, 4), (32, 20)):
        inputs = some_inputs(height, width)
        made = to_numpy(call([keras.ops.convert_to_tensor(x) for x in inputs]))
        expected = numpy_generator(model, *inputs, blocks=1)
        np.testing.assert_allclose(made, expected, rtol=1e-3, atol=1e-3)


def test_other_sizes_come_back_larger():
    model = stargan.generator(width=0.05, blocks=1)
    assert compiled(model)(some_inputs(9, 12)).shape == (2, 12, 12, 3)


def test_a_fixed_size():
    model = stargan.generator(resolution=8, width=0.05, blocks=1)
    assert model.input_shape == [(None, 8, 8, 3), (None, 5)]
    assert model.output_shape == (None, 8, 8, 3)
    assert [x.name for x in model.inputs] == ["images", "attributes"]


@pytest.mark.parametrize("resolution", [None, 8])
def test_the_generator_needs_keras_alone(resolution, tmp_path):
    model = stargan.generator(width=0.05, blocks=1, resolution=resolution)
    assert "keras_san" not in json.dumps(model.to_json())
    randomized(model).save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    inputs = some_inputs(8, 8)
    np.testing.assert_array_equal(
        to_numpy(compiled(loaded)(inputs)), to_numpy(compiled(model)(inputs))
    )


def test_saving_the_critic(tmp_path):
    model = randomized(stargan.critic(8, width=0.05, halvings=2))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    images, _ = some_inputs(8, 8)
    pairs = zip(compiled(loaded)(images), compiled(model)(images), strict=True)
    for made, expected in pairs:
        np.testing.assert_array_equal(to_numpy(made), to_numpy(expected))


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_the_generator_has_all_levels_in_half_precision(dtype):
    keras.config.set_dtype_policy(dtype)
    try:
        model = stargan.generator(width=0.05, blocks=1)
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.get_layer("conv_in").compute_dtype == dtype[len("mixed_") :]
    made = compiled(model)(some_inputs(16, 16, n=4))
    assert keras.backend.standardize_dtype(made.dtype) == "float32"
    # Of 3,072 values bfloat16 has some hundreds, and those near 1 equal.
    made = to_numpy(made)
    assert len(np.unique(made)) > 0.95 * made.size


@pytest.mark.parametrize(
    ("normalizer", "padding"),
    [("san", "circular"), ("sn", "same"), (None, "circular")],
)
def test_what_the_critic_normalizes(normalizer, padding):
    model = stargan.critic(
        8, width=0.02, halvings=2, normalizer=normalizer, padding=padding
    )
    found = [x for x in model.layers if isinstance(x, SANConv2D)]
    assert [x.name for x in found] == ["conv_1", "conv_2", "logits"]
    for layer in found:
        assert type(layer.normalizer) is type(normalizers.get(normalizer))
        assert layer.circular == (padding == "circular")
        assert layer.use_bias == (layer.name != "logits")
    head = model.get_layer("attributes")
    assert type(head) is layers.Conv2D and not head.use_bias


def test_initializers_of_the_critic():
    given = keras.initializers.Constant(0.25)
    model = stargan.critic(
        8, width=0.02, halvings=2, normalizer=None, kernel_initializer=given
    )
    for name in ("conv_1", "conv_2", "logits", "attributes"):
        layer = model.get_layer(name)
        assert np.all(to_numpy(layer.kernel) == 0.25)
        assert layer.kernel_initializer is not given


@pytest.mark.parametrize("network", [stargan.generator, stargan.critic])
def test_arguments_are_documented(network):
    for argument in inspect.signature(network).parameters:
        assert f"\n        {argument}: " in network.__doc__, argument


@pytest.mark.parametrize("resolution", [0, 6])
def test_resolutions_of_the_generator(resolution):
    with pytest.raises(
        ValueError, match=f"multiple of 4.*Received: resolution={resolution}"
    ):
        stargan.generator(resolution=resolution)


@pytest.mark.parametrize("resolution", [0, 12])
def test_resolutions_of_the_critic(resolution):
    with pytest.raises(
        ValueError, match=f"multiple of 8. Received: resolution={resolution} "
    ):
        stargan.critic(resolution, halvings=3)


@pytest.mark.parametrize("halvings", [0, 1.5])
def test_halvings_of_the_critic(halvings):
    with pytest.raises(ValueError, match=f"Received: halvings={halvings}"):
        stargan.critic(halvings=halvings)


@pytest.mark.parametrize("network", [stargan.generator, stargan.critic])
def test_bad_width(network):
    with pytest.raises(ValueError, match="Received: width=0"):
        network(width=0)


def test_bad_settings_of_the_critic():
    with pytest.raises(ValueError, match="normalizer"):
        stargan.critic(width=0.02, normalizer="nothing")
    with pytest.raises(ValueError, match="padding='nothing'"):
        stargan.critic(width=0.02, padding="nothing")
