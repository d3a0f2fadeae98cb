import inspect

import keras
import numpy as np
import pytest
from helpers import BACKEND, to_numpy, trainable_parameters
from keras import layers

import keras_san
from keras_san import SANConv2D, SANDense, SANWrapper, normalizers
from keras_san.networks import biggan, sngan, srgan

NETWORKS = {
    "cnn_generator": (sngan.generator, {"resolution": 16}),
    "cnn_critic": (sngan.critic, {"resolution": 16}),
    "cifar_generator": (sngan.resnet_generator, {}),
    "cifar_critic": (sngan.resnet_critic, {}),
    "stl_generator": (sngan.resnet_generator, {"resolution": 48}),
    "stl_critic": (sngan.resnet_critic, {"resolution": 48, "last_block": True}),
    "biggan_generator": (biggan.generator, {"resolution": 16}),
    "biggan_critic": (biggan.critic, {"resolution": 16}),
    "sr_generator": (srgan.generator, {"scale": 2, "blocks": 2}),
    "sr_critic": (srgan.critic, {"resolution": 32}),
    "sr_critic_of_the_authors": (
        srgan.critic,
        {"resolution": 32, "batch_norm": True},
    ),
}
FUNCTIONS = list(dict.fromkeys(f for f, _ in NETWORKS.values()))
CRITICS = [sngan.critic, sngan.resnet_critic, biggan.critic]


def make(name, **kwargs):
    """A narrow network with random weights, also those that start at zero."""
    function, settings = NETWORKS[name]
    model = function(width=0.02, **settings, **kwargs)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        for weight in layer.weights:
            if weight.name == "moving_variance":
                weight.assign(rng.uniform(0.5, 2.0, weight.shape))
            elif weight.trainable or weight.name == "moving_mean":
                weight.assign(rng.normal(0.0, 0.5, weight.shape))
    return model


def some_inputs(model, n=3):
    """Inputs of a model: floats, or labels; 6 x 6 if any size does."""
    rng = np.random.default_rng(1)
    arrays = [
        rng.integers(0, 10, n).astype("int32")
        if x.dtype == "int32"
        else rng.uniform(-1, 1, (n, *(d or 6 for d in x.shape[1:]))).astype(
            "float32"
        )
        for x in model.inputs
    ]
    return arrays if len(arrays) > 1 else arrays[0]


def conv(kernel_size, inputs, outputs):
    return kernel_size**2 * inputs * outputs + outputs


@pytest.mark.parametrize(
    ("resolution", "generator", "critic"),
    [(32, 3_815_299, 2_935_873), (48, 5_136_259, 2_946_113)],
)
def test_parameter_counts(resolution, generator, critic):
    """Counted by hand from Table 3 of Miyato et al."""
    start = resolution // 8
    dense = (128 + 1) * start**2 * 512
    deconvolutions = sum(
        16 * a * b + b for a, b in ((512, 256), (256, 128), (128, 64))
    )
    batch_norms = 4 * (512 + 256 + 128 + 64)  # Two of the four are trained.
    assert dense + deconvolutions + batch_norms + 9 * 64 * 3 + 3 == generator
    assert sngan.generator(resolution).count_params() == generator
    shapes = [
        (9, 3, 64),
        (16, 64, 64),
        (9, 64, 128),
        (16, 128, 128),
        (9, 128, 256),
        (16, 256, 256),
        (9, 256, 512),
    ]
    expected = sum(k * a * b + b for k, a, b in shapes) + start**2 * 512 + 1
    assert expected == critic
    model = sngan.critic(resolution, normalizer=None)
    assert trainable_parameters(model) == critic


@pytest.mark.parametrize(
    ("resolution", "filters", "parameters"),
    [
        (32, (256, 256, 256, 256), 4_276_739),
        (48, (512, 256, 128, 64), 4_878_083),
    ],
)
def test_parameter_counts_of_resnet_generators(resolution, filters, parameters):
    """Counted by hand from Tables 4 and 5 of Miyato et al."""
    expected = (128 + 1) * (resolution // 8) ** 2 * filters[0]
    for a, b in zip(filters, filters[1:]):
        batch_norms = 2 * a + 2 * b
        expected += batch_norms + conv(3, a, b) + conv(3, b, b) + conv(1, a, b)
    expected += 2 * filters[-1] + conv(3, filters[-1], 3)
    assert expected == parameters
    model = sngan.resnet_generator(resolution)
    assert trainable_parameters(model) == parameters


@pytest.mark.parametrize(
    ("settings", "filters", "shortcuts", "parameters"),
    [
        ({}, (128, 128, 128, 128), 2, 1_053_824),
        ({"resolution": 48}, (64, 128, 256, 512), 4, 4_859_072),
        (
            {"resolution": 48, "last_block": True},
            (64, 128, 256, 512, 1024),
            5,
            19_542_720,
        ),
    ],
)
def test_parameter_counts_of_resnet_critics(
    settings, filters, shortcuts, parameters
):
    """Counted by hand from Tables 4 and 5 of Miyato et al."""
    pairs = list(zip((3, *filters), filters))
    expected = sum(conv(3, a, b) + conv(3, b, b) for a, b in pairs)
    expected += sum(conv(1, a, b) for a, b in pairs[:shortcuts])
    assert expected + filters[-1] == parameters
    model = sngan.resnet_critic(**settings, normalizer=None)
    assert trainable_parameters(model) == parameters


def test_parameter_counts_of_biggan():
    """Counted by hand from Brock et al.'s code for CIFAR-10."""
    block = 2 * conv(3, 256, 256)
    gains_and_biases = 2 * 2 * 10 * 256
    expected = (128 + 1) * 4 * 4 * 256
    expected += 3 * (block + conv(1, 256, 256) + gains_and_biases)
    expected += 2 * 256 + conv(3, 256, 3)
    assert expected == 4_304_387
    assert trainable_parameters(biggan.generator()) == expected
    expected = conv(3, 3, 256) + conv(3, 256, 256) + conv(1, 3, 256)
    expected += block + conv(1, 256, 256) + 2 * block
    expected += 256 + 1 + 10 * 256
    assert expected == 4_207_361
    assert trainable_parameters(biggan.critic(normalizer=None)) == expected


@pytest.mark.parametrize("normalizer", ["san", "conv_sn", None])
def test_shapes_and_ranges(normalizer):
    generator = sngan.generator(16, 1, latent_dim=4, width=0.05)
    critic = sngan.critic(16, 1, width=0.05, normalizer=normalizer)
    latents = np.random.default_rng(0).normal(size=(3, 4)).astype("float32")
    images = to_numpy(generator(latents))
    assert images.shape == (3, 16, 16, 1)
    assert np.abs(images).max() <= 1.0
    assert critic(images).shape == (3, 1)
    kind = type(normalizers.get(normalizer))
    assert {type(n) for n in normalized_layers(critic).values()} == {kind}


@pytest.mark.parametrize(
    ("networks", "resolution", "normalizer"),
    [
        ((sngan.resnet_generator, sngan.resnet_critic), 32, "san"),
        ((sngan.resnet_generator, sngan.resnet_critic), 64, None),
        ((biggan.generator, biggan.critic), 8, None),
        ((biggan.generator, biggan.critic), 24, "san"),
    ],
)
def test_shapes_and_ranges_of_resnets(networks, resolution, normalizer):
    settings = {"channels": 1, "width": 0.02}
    generator = networks[0](resolution, latent_dim=4, **settings)
    critic = networks[1](resolution, normalizer=normalizer, **settings)
    inputs = some_inputs(generator)
    images = to_numpy(generator(inputs))
    assert images.shape == (3, resolution, resolution, 1)
    assert np.abs(images).max() <= 1.0
    if isinstance(inputs, list):
        assert critic([images, inputs[1]]).shape == (3, 1)
    else:
        assert critic(images).shape == (3, 1)


# The networks once more, in NumPy.


def affine(model, name):
    """The kernel that a layer runs with, and its bias."""
    layer = model.get_layer(name)
    normalizations = getattr(layer, "normalizations", [])
    layer = getattr(layer, "layer", layer)
    embedding = isinstance(layer, layers.Embedding)
    kernel = to_numpy(layer.embeddings if embedding else layer.kernel)
    for normalization in normalizations:
        kernel = kernel / to_numpy(normalization.norm)
    bias = getattr(layer, "bias", None)
    return kernel, 0.0 if bias is None else to_numpy(bias)


def numpy_dense(model, name, x):
    kernel, bias = affine(model, name)
    return x @ kernel + bias


def numpy_conv(model, name, x, mode):
    kernel, bias = affine(model, name)
    height, width = x.shape[1:3]
    pad = kernel.shape[0] // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode)
    return bias + sum(
        x[:, i : i + height, j : j + width] @ kernel[i, j]
        for i, j in np.ndindex(kernel.shape[:2])
    )


def numpy_normalize(model, name, x):
    layer = model.get_layer(name)
    x = x - to_numpy(layer.moving_mean)
    x = x / np.sqrt(to_numpy(layer.moving_variance) + 1e-5)
    if layer.scale:
        return x * to_numpy(layer.gamma) + to_numpy(layer.beta)
    return x


def relu(x):
    return np.maximum(x, 0.0)


def double(x):
    return x.repeat(2, axis=1).repeat(2, axis=2)


def halve(x):
    n, height, width, channels = x.shape
    x = x.reshape(n, height // 2, 2, width // 2, 2, channels)
    return x.mean(axis=(2, 4))


def numpy_generator(model, start, latents, labels=None):
    def normalize(name, x):
        x = numpy_normalize(model, name, x)
        if labels is None:
            return x
        gain, bias = (
            to_numpy(model.get_layer(f"{name}_{kind}").embeddings)[labels]
            for kind in ("gain", "bias")
        )
        return x * (1.0 + gain[:, None, None]) + bias[:, None, None]

    x = numpy_dense(model, "dense", latents)
    x = x.reshape(len(x), start, start, -1)
    for name in ("block_1", "block_2", "block_3"):
        y = double(relu(normalize(f"{name}_norm_1", x)))
        y = numpy_conv(model, f"{name}_conv_1", y, "constant")
        y = relu(normalize(f"{name}_norm_2", y))
        y = numpy_conv(model, f"{name}_conv_2", y, "constant")
        x = y + numpy_conv(model, f"{name}_shortcut", double(x), "constant")
    x = relu(numpy_normalize(model, "norm", x))
    return np.tanh(numpy_conv(model, "conv", x, "constant"))


def numpy_critic(model, halved, shortcuts, images, labels=None):
    x = images
    for index, is_halved in enumerate(halved):
        name = f"block_{index + 1}"
        y = relu(x) if index else x
        y = relu(numpy_conv(model, f"{name}_conv_1", y, "wrap"))
        y = numpy_conv(model, f"{name}_conv_2", y, "wrap")
        if index < shortcuts:
            x = numpy_conv(model, f"{name}_shortcut", x, "wrap")
        x = halve(y) + halve(x) if is_halved else y + x
    features = relu(x).sum(axis=(1, 2))
    logits = numpy_dense(model, "dense", features)
    if labels is None:
        return logits
    classes = affine(model, "embedding")[0][labels]
    return logits + np.sum(classes * features, axis=-1, keepdims=True)


@pytest.mark.parametrize(
    ("name", "in_numpy", "arguments"),
    [
        ("cifar_generator", numpy_generator, (4,)),
        ("stl_generator", numpy_generator, (6,)),
        ("biggan_generator", numpy_generator, (2,)),
        ("cifar_critic", numpy_critic, ([True, True, False, False], 2)),
        ("stl_critic", numpy_critic, ([True] * 4 + [False], 5)),
        ("biggan_critic", numpy_critic, ([True, True, False, False], 2)),
    ],
)
def test_residual_networks_are_those_of_the_papers(name, in_numpy, arguments):
    model = make(name)
    inputs = some_inputs(model)
    arrays = inputs if isinstance(inputs, list) else [inputs]
    expected = in_numpy(model, *arguments, *arrays)
    assert expected.std() > 1e-3
    np.testing.assert_allclose(
        to_numpy(model(inputs)), expected, rtol=2e-3, atol=2e-4
    )


@pytest.mark.parametrize("name", [n for n in NETWORKS if "stl" not in n])
def test_saving_and_strip(name, tmp_path):
    model = make(name)
    inputs = some_inputs(model)
    expected = to_numpy(model(inputs))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(to_numpy(loaded(inputs)), expected)

    stripped = keras_san.strip(model)
    assert not any(
        isinstance(layer, (SANConv2D, SANDense, SANWrapper))
        for layer in stripped.layers
    )
    np.testing.assert_allclose(
        to_numpy(stripped(inputs)),
        expected,
        rtol=1e-5,
        atol=1e-5 * np.abs(expected).max(),
    )


@pytest.mark.parametrize("name", ["biggan_generator", "biggan_critic"])
def test_labels_matter(name):
    model = make(name)
    first = some_inputs(model, n=1)[0].repeat(10, axis=0)
    outputs = to_numpy(model([first, np.arange(10, dtype="int32")]))
    for index, output in enumerate(outputs):
        for other in outputs[:index]:
            assert np.abs(output - other).max() > 1e-4


def normalized_layers(model):
    return {
        layer.name: layer.normalizer
        for layer in model.layers
        if isinstance(layer, (SANConv2D, SANDense, SANWrapper))
    }


@pytest.mark.parametrize(
    ("normalizer", "kind", "last"),
    [
        (
            normalizers.SparsityAware(form="project"),
            normalizers.SparsityAware,
            normalizers.Spectral,
        ),
        (
            normalizers.BidirectionalSpectral(scale=1.5, update_interval=3),
            normalizers.BidirectionalSpectral,
            normalizers.Spectral,
        ),
        (None, type(None), type(None)),
    ],
)
def test_what_the_whole_biggan_critic_normalizes(normalizer, kind, last):
    critic = biggan.critic(8, width=0.02, normalizer=normalizer)
    blocks = {f"block_{i}_conv_{j}" for i in (1, 2, 3, 4) for j in (1, 2)}
    blocks |= {"block_1_shortcut", "block_2_shortcut"}
    found = normalized_layers(critic)
    assert set(found) == {*blocks, "dense", "embedding"}
    for name, found_normalizer in found.items():
        assert type(found_normalizer) is (kind if name in blocks else last)
        # All have the settings of the one that was given.
        if normalizer is not None:
            for name in ("scale", "update_interval", "form"):
                given = getattr(normalizer, name)
                assert getattr(found_normalizer, name) == given


def test_what_the_biggan_generator_normalizes():
    generator = biggan.generator(8, width=0.02)
    found = normalized_layers(generator)
    assert len(found) == 3 * 3 + 2
    assert {type(n) for n in found.values()} == {normalizers.Spectral}
    plain = [
        layer
        for layer in generator.layers
        if isinstance(layer, layers.Embedding)
    ]
    assert len(plain) == 3 * 2 * 2


def test_one_normalizer_in_the_whole_resnet_critic():
    critic = sngan.resnet_critic(width=0.02, normalizer="sn")
    found = normalized_layers(critic)
    assert len(found) == 2 * 4 + 2 + 1
    assert {type(n) for n in found.values()} == {normalizers.Spectral}


@pytest.mark.parametrize("critic", [*CRITICS, srgan.critic])
def test_padding(critic):
    model = critic(width=0.02, padding="same", normalizer=None)
    for layer in model.layers:
        if isinstance(layer, SANConv2D):
            assert not layer.circular
            assert layer.get_config()["padding"] == "same"


@pytest.mark.parametrize(
    "network", [sngan.generator, sngan.resnet_generator, biggan.generator]
)
def test_settings_of_batch_normalization(network):
    found = {
        (layer.momentum, layer.epsilon)
        for layer in network(width=0.02).layers
        if isinstance(layer, layers.BatchNormalization)
    }
    assert found == {(0.9, 1e-5)}


@pytest.mark.parametrize("name", ["cifar_generator", "cifar_critic"])
def test_default_initializers_of_resnets(name):
    """Glorot's, times the square root of 2 for 3x3 kernels but the last."""
    function, settings = NETWORKS[name]
    if name.endswith("critic"):
        settings = {**settings, "normalizer": None}
    model = function(width=0.5, **settings)
    for layer in model.layers:
        if not hasattr(layer, "kernel"):
            continue
        kernel = to_numpy(layer.kernel)
        taps = int(np.prod(kernel.shape[:-2]))
        limit = np.sqrt(6.0 / (taps * sum(kernel.shape[-2:])))
        limit *= np.sqrt(2.0) if taps == 9 and layer.name != "conv" else 1.0
        largest = np.abs(kernel).max()
        # The largest of few draws, in the narrow last layer.
        low = 0.98 if kernel.size > 1000 else 0.8
        assert low * limit < largest <= limit * (1 + 1e-6), layer.name
        if layer.bias is not None:
            assert not np.any(to_numpy(layer.bias))


@pytest.mark.parametrize("name", ["biggan_generator", "biggan_critic"])
def test_default_initializers_of_biggan(name):
    keras.utils.set_random_seed(0)
    function, settings = NETWORKS[name]
    model = function(width=0.25, **settings)
    for weight in model.trainable_weights:
        values = to_numpy(weight)
        if weight.name in ("kernel", "embeddings"):
            deviation = 0.02 * 4 / np.sqrt(values.size)
            assert abs(values.std() - 0.02) < deviation / 2**0.5, weight.path
            assert abs(values.mean()) < deviation, weight.path
        elif weight.name in ("bias", "beta"):
            assert not np.any(values)


def kernels(model):
    return {
        weight.path: weight
        for weight in model.trainable_weights
        if weight.name in ("kernel", "embeddings")
    }


@pytest.mark.parametrize("critic", CRITICS)
def test_kernel_settings_and_initializers(critic):
    constraint = keras.constraints.MaxNorm(0.5)
    settings = {
        "kernel_initializer": keras.initializers.RandomNormal(stddev=0.1),
        "kernel_constraint": constraint,
        "kernel_regularizer": keras.regularizers.L2(0.25),
    }
    model = critic(width=0.1, **settings)
    found = kernels(model)
    assert len(found) == sum(
        isinstance(layer, (SANConv2D, SANDense, SANWrapper))
        for layer in model.layers
    )
    for path, kernel in found.items():
        assert kernel.constraint is constraint, path
        deviation = 0.1 * 4 / np.sqrt(2 * to_numpy(kernel).size)
        assert abs(to_numpy(kernel).std() - 0.1) < deviation, path
    expected = 0.25 * sum(np.sum(to_numpy(k) ** 2) for k in found.values())
    losses = sum(to_numpy(loss) for loss in model.losses)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    # One initializer draws anew for each layer.
    corners = {to_numpy(kernel).ravel()[0] for kernel in found.values()}
    assert len(corners) == len(found)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("batch", layers.BatchNormalization),
        ("layer", layers.GroupNormalization),
    ],
)
def test_activation_norm(name, kind):
    critic = sngan.critic(16, width=0.1, normalizer=None, activation_norm=name)
    kinds = [type(layer) for layer in critic.layers]
    assert kinds == (
        7 * [SANConv2D, kind, layers.LeakyReLU] + [layers.Flatten, SANDense]
    )
    images = some_inputs(critic, n=8)
    critic(images, training=True)
    maps = critic.layers[0](images)
    normalization = critic.layers[1]
    assert not normalization.scale
    assert normalization.beta.shape == (6,)
    axes = (0, 1, 2) if name == "batch" else (1, 2, 3)
    normal = to_numpy(normalization(maps, training=True))
    np.testing.assert_allclose(normal.mean(axes), 0.0, atol=1e-4)
    np.testing.assert_allclose(normal.std(axes), 1.0, atol=1e-2)


@pytest.mark.parametrize("kind", ["instance", True])
def test_unknown_activation_norm(kind):
    with pytest.raises(ValueError, match=f"Received: activation_norm={kind!r}"):
        sngan.critic(normalizer=None, activation_norm=kind)


def test_activation_norm_that_cancels_the_normalizer():
    with pytest.raises(ValueError, match="cancels any factor .* Received: "):
        sngan.critic(activation_norm="batch", normalizer="san")


@pytest.mark.parametrize(
    ("network", "resolutions"),
    [
        (sngan.generator, (0, 30)),
        (sngan.critic, (0, 30)),
        (biggan.generator, (0, 30)),
        (biggan.critic, (0, 30)),
        (sngan.resnet_generator, (0, 16, 50)),
        (sngan.resnet_critic, (0, 16, 50)),
        (srgan.critic, (0, 48)),
    ],
)
def test_bad_resolution(network, resolutions):
    for resolution in resolutions:
        with pytest.raises(
            ValueError, match=f"Received: resolution={resolution}"
        ):
            network(resolution)


def test_no_last_block_for_small_images():
    with pytest.raises(ValueError, match="Received: last_block=True"):
        sngan.resnet_critic(32, last_block=True)


def test_a_conditional_gan_trains(tmp_path):
    generator = biggan.generator(8, width=0.02)
    critic = biggan.critic(8, width=0.02, normalizer=None)
    gan = keras_san.GAN(generator, critic, 128, num_classes=10, ema=0.9)
    gan.compile(run_eagerly=BACKEND == "tensorflow")
    before = [
        {w.path: to_numpy(w) for w in m.trainable_weights}
        for m in (generator, critic)
    ]
    rng = np.random.default_rng(0)
    images = rng.uniform(-1, 1, (8, 8, 8, 3)).astype("float32")
    labels = np.arange(8, dtype="int32")
    history = gan.fit(images, labels, batch_size=8, verbose=0).history
    assert np.isfinite(history["loss"][-1])
    for model, weights in zip((generator, critic), before):
        for weight in model.trainable_weights:
            # One before batch normalization has no effect, and may stay.
            if "bias" not in weight.name:
                moved = np.abs(to_numpy(weight) - weights[weight.path])
                assert moved.max() > 0.0, weight.path
    assert gan.generate(3, labels=[0, 1, 2]).shape == (3, 8, 8, 3)
    gan.save(tmp_path / "gan.keras")
    loaded = keras.saving.load_model(tmp_path / "gan.keras")
    np.testing.assert_array_equal(
        loaded.generate(2, seed=0), gan.generate(2, seed=0)
    )


@pytest.mark.parametrize("network", FUNCTIONS)
def test_arguments_are_documented(network):
    for argument in inspect.signature(network).parameters:
        assert f"\n        {argument}: " in network.__doc__, argument


@pytest.mark.parametrize("network", [sngan.critic, biggan.generator])
def test_bad_width(network):
    with pytest.raises(ValueError, match="Received: width=0.0"):
        network(width=0.0)


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_parameter_counts_of_srgan(scale):
    """Counted layer by layer; at 4 as many as in the authors' code."""
    stages = {2: [2], 3: [3], 4: [2, 2], 8: [2, 2, 2]}[scale]
    expected = 25 * 3 * 64 + 64 + 16 * 2 * 9 * 64 * 64
    for factor in stages:
        expected += 9 * 64 * 64 * factor**2 + 64 * factor**2
    expected += 9 * 64 * 64 + 64 + 25 * 64 * 3 + 3
    model = srgan.generator(scale)
    assert trainable_parameters(model) == model.count_params() == expected
    if scale == 4:
        assert expected == 1_521_667


@pytest.mark.parametrize("batch_norm", [False, True])
def test_parameter_counts_of_the_srgan_critic(batch_norm):
    expected, channels = 0, 3
    for index, filters in enumerate((64, 128, 256, 512, 512)):
        expected += (9 * channels + 16 * filters) * filters
        expected += 2 * filters if index == 0 or not batch_norm else 0
        expected += 4 * filters if batch_norm else 0
        channels = filters
    expected += 4 * 4 * 512 * 64 + 64 + 64 + 1
    model = srgan.critic(batch_norm=batch_norm, normalizer=None)
    assert trainable_parameters(model) == expected


def leaky(x):
    return np.where(x > 0.0, x, 0.1 * x)


def numpy_bilinear(x, scale):
    for axis in (1, 2):
        n = x.shape[axis]
        places = (np.arange(n * scale) + 0.5) / scale - 0.5
        places = np.clip(places, 0, n - 1)
        low = np.minimum(places.astype(int), n - 2)
        share = (places - low).reshape(
            [-1 if i == axis else 1 for i in range(4)]
        )
        a, b = (np.take(x, low + i, axis=axis) for i in (0, 1))
        x = (1.0 - share) * a + share * b
    return x


def numpy_shuffle(x, factor):
    n, height, width, channels = x.shape
    x = x.reshape(n, height, width, factor, factor, -1)
    x = x.transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(n, height * factor, width * factor, -1)


@pytest.mark.parametrize("scale", [2, 3, 4, 8])
def test_the_srgan_generator_in_numpy(scale):
    model = srgan.generator(scale, width=0.05, blocks=2)
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(rng.normal(0.0, 0.3, weight.shape))
    images = rng.uniform(-1, 1, (2, 5, 7, 3)).astype("float32")

    def conv(name, x):
        return numpy_conv(model, name, x, "constant")

    x = leaky(conv("conv_in", images))
    for index in (1, 2):
        y = relu(conv(f"block_{index}_conv_1", x))
        x = x + conv(f"block_{index}_conv_2", y)
    factors = {2: [2], 3: [3], 4: [2, 2], 8: [2, 2, 2]}[scale]
    for index, factor in enumerate(factors):
        x = conv(f"enlarge_{index + 1}", x)
        x = leaky(numpy_shuffle(x, factor))
    x = conv("conv_out", leaky(conv("conv_hidden", x)))
    expected = x + numpy_bilinear(images, scale)
    np.testing.assert_allclose(
        to_numpy(model(images)), expected, rtol=1e-3, atol=1e-3
    )


def test_the_srgan_generator_starts_as_bilinear_interpolation():
    keras.utils.set_random_seed(0)
    images = np.random.default_rng(0).uniform(-1, 1, (1, 12, 12, 3))
    model = srgan.generator()
    expected = numpy_bilinear(images, 4)
    difference = to_numpy(model(images.astype("float32"))) - expected
    assert 0.0 < difference.std() < 0.3 * expected.std()


def test_the_srgan_critic_in_numpy():
    model = make("sr_critic")
    images = some_inputs(model)
    x = images
    for index in range(5):
        x = leaky(numpy_conv(model, f"conv_{index + 1}_1", x, "wrap"))
        kernel, bias = affine(model, f"conv_{index + 1}_2")
        size = x.shape[1]
        x = np.pad(x, ((0, 0), (1, 2), (1, 2), (0, 0)), "wrap")
        x = leaky(
            bias
            + sum(
                x[:, i : i + size : 2, j : j + size : 2] @ kernel[i, j]
                for i, j in np.ndindex(4, 4)
            )
        )
    x = leaky(numpy_dense(model, "dense_1", x.reshape(len(x), -1)))
    np.testing.assert_allclose(
        to_numpy(model(images)),
        numpy_dense(model, "dense_2", x),
        rtol=2e-3,
        atol=2e-4,
    )


@pytest.mark.parametrize("batch_norm", [False, True])
def test_what_batch_normalization_cancels(batch_norm):
    """The size of the kernel before it."""
    keras.utils.set_random_seed(0)
    critic = srgan.critic(32, width=0.1, normalizer=None, batch_norm=batch_norm)
    images = np.random.default_rng(0).normal(size=(8, 32, 32, 3))
    before = to_numpy(critic(images.astype("float32"), training=True))
    for index in range(1, 6):
        for place in (1, 2):
            layer = critic.get_layer(f"conv_{index}_{place}")
            layer.kernel.assign(3.0 * layer.kernel)
    after = to_numpy(critic(images.astype("float32"), training=True))
    assert np.allclose(before, after, rtol=0.01, atol=0.01) == batch_norm


@pytest.mark.parametrize("normalizer", ["bssn", None])
def test_what_the_srgan_critic_normalizes(normalizer):
    found = normalized_layers(srgan.critic(32, 1, 0.02, normalizer))
    assert len(found) == 12
    kind = type(normalizers.get(normalizer))
    assert {type(n) for n in found.values()} == {kind}


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_the_srgan_generator_has_all_levels_in_half_precision(dtype):
    keras.config.set_dtype_policy(dtype)
    try:
        model = srgan.generator(2, width=0.1, blocks=1)
    finally:
        keras.config.set_dtype_policy("float32")
    for weight in model.weights:
        weight.assign(np.zeros(weight.shape))
    images = np.linspace(-1, 1, 256, dtype="float32").reshape(1, 16, 16, 1)
    images = images.repeat(3, axis=3)
    made = model(images)
    assert keras.backend.standardize_dtype(made.dtype) == "float32"
    np.testing.assert_allclose(
        to_numpy(made), numpy_bilinear(images, 2), atol=1e-6
    )


@pytest.mark.parametrize("scale", [1, 5])
def test_scales_of_srgan(scale):
    with pytest.raises(ValueError, match=f"scale={scale}"):
        srgan.generator(scale)


def test_depth_to_space():
    """The stand-in agrees with NumPy and, where there is one, with Keras."""
    maps = np.random.default_rng(0).normal(size=(2, 3, 5, 12))
    expected = maps.reshape(2, 3, 5, 2, 2, 3).transpose(0, 1, 3, 2, 4, 5)
    expected = expected.reshape(2, 6, 10, 3)
    layer = srgan.DepthToSpace(2)
    inputs = keras.Input((None, None, 12))
    model = keras.Model(inputs, layer(inputs))
    assert model.output_shape == (None, None, None, 3)
    np.testing.assert_allclose(to_numpy(model(maps)), expected, rtol=1e-6)
    if hasattr(keras.ops, "depth_to_space"):
        found = to_numpy(keras.ops.depth_to_space(maps, 2))
        np.testing.assert_array_equal(found, expected)
    copy = srgan.DepthToSpace.from_config(layer.get_config())
    assert copy.factor == 2
