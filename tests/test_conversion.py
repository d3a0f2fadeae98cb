"""Tests of `normalize`, `strip` and `model.export`."""

import functools
import os
import re
import subprocess
import sys

import keras
import numpy as np
import pytest
from helpers import (
    BACKEND,
    circular_convolution,
    matrix_norm,
    sparsity_aware,
    to_numpy,
)
from keras import layers

import keras_san
from keras_san import SANConv2D, SANDense, SANWrapper, normalizers
from keras_san.kernels import find_kernels

each_form = pytest.mark.parametrize("form", ["divide", "project"])


def san(form):
    return normalizers.SparsityAware(form=form)


def sequential(form):
    return keras.Sequential(
        [
            keras.Input((6, 4, 3)),
            SANConv2D(4, 3, activation="relu", name="first"),
            SANConv2D(4, (4, 2), 2, normalizer=normalizers.Spectral(form=form)),
            layers.LeakyReLU(0.1),
            SANConv2D(4, 3, padding="same", normalizer=san(form)),
            SANConv2D(4, 2, padding="valid", use_bias=False, normalizer=None),
            layers.Flatten(),
            SANDense(2, normalizer=san(form)),
        ],
        name="critic",
    )


def functional(form):
    images = keras.Input((6, 4, 3), name="images")
    labels = keras.Input((2,), dtype="int32", name="labels")
    x = SANConv2D(4, 3, normalizer=san(form))(images)
    y = SANWrapper(layers.SeparableConv2D(4, 3), san(form), padding="circular")(
        x
    )
    x = layers.Add()([x, y])
    x = layers.GlobalAveragePooling2D()(x)
    z = SANWrapper(layers.Embedding(5, 4), san(form))(labels)
    z = layers.Flatten()(z)
    x = layers.Concatenate()([x, z])
    return keras.Model([images, labels], [SANDense(1)(x), z])


def nested(form):
    inner = keras.Sequential(
        [
            keras.Input((6, 4, 4)),
            SANConv2D(4, 3, 2, normalizer=san(form)),
            layers.ReLU(),
        ],
        name="inner",
    )
    inputs = keras.Input((3, 2, 4))
    outputs = SANWrapper(layers.Dense(4), san(form))(inputs)
    middle = keras.Model(inputs, outputs, name="middle")
    images = keras.Input((6, 4, 3))
    x = SANConv2D(4, 2, normalizer=san(form))(images)
    return keras.Model(images, SANDense(1)(middle(inner(x))))


def shared(form):
    conv = SANConv2D(3, 3, normalizer=san(form), name="shared_conv")
    dense = SANDense(3, normalizer=san(form), name="shared_dense")
    one, two = keras.Input((6, 4, 3)), keras.Input((6, 4, 3))
    outputs = [dense(conv(conv(one))), dense(conv(two))]
    return keras.Model([one, two], outputs)


def transposed(form):
    return keras.Sequential(
        [
            keras.Input((6, 4, 3)),
            SANWrapper(
                layers.Conv2DTranspose(4, 4, 2, activation="tanh"),
                san(form),
                padding="circular",
            ),
            SANWrapper(
                layers.Conv2DTranspose(2, 3, 2, padding="same"), san(form)
            ),
        ]
    )


def depthwise(form):
    return keras.Sequential(
        [
            keras.Input((6, 4, 3)),
            SANWrapper(
                layers.DepthwiseConv2D(3, 2, depth_multiplier=2),
                normalizers.BidirectionalSpectral(form=form),
                padding="circular",
            ),
            SANWrapper(
                layers.DepthwiseConv2D(2, padding="same"),
                normalizers.ConvSpectral(form=form),
            ),
            SANWrapper(
                layers.EinsumDense("bhwc,cd->bhwd", (None, None, 3)), san(form)
            ),
        ]
    )


def other_layers(form):
    return keras.Sequential(
        [
            keras.Input((6, 4, 3)),
            SANConv2D(4, 3, normalizer=san(form)),
            layers.BatchNormalization(name="batch"),
            layers.Dropout(0.5, seed=1),
            layers.Conv2D(4, 3, name="plain"),
            layers.PReLU(),
            layers.GlobalMaxPooling2D(),
            SANDense(1, normalizer=san(form)),
        ]
    )


def operations(form):
    """A functional model whose author has written arithmetic."""
    images = keras.Input((6, 4, 3))
    x = SANConv2D(4, 3, normalizer=san(form))(images * 2.0)
    x = x + keras.ops.relu(SANConv2D(4, 3, normalizer=san(form))(x))
    x = keras.ops.sum(x[:, 1:], axis=(1, 2))
    return keras.Model(images, SANDense(1, normalizer=san(form))(x))


def unknown_size(form):
    images = keras.Input((None, None, 3))
    x = SANConv2D(4, 3, normalizer=san(form))(images)
    x = SANWrapper(layers.Conv2D(4, 4, 2), san(form), padding="circular")(x)
    return keras.Model(images, x)


def unknown_size_transposed(form):
    images = keras.Input((None, None, 3))
    conv = layers.Conv2DTranspose(4, 4, 2)
    return keras.Model(images, SANWrapper(conv, san(form), "circular")(images))


MODELS = [
    sequential,
    functional,
    nested,
    shared,
    transposed,
    depthwise,
    other_layers,
    operations,
    unknown_size,
    unknown_size_transposed,
]
# How a projected kernel is copied does not depend on the model around it.
CASES = [(make, "divide") for make in MODELS] + [
    (make, "project") for make in (sequential, functional, depthwise)
]


def inputs_of(model):
    rng = np.random.default_rng(0)

    def draw(tensor):
        shape = [4, *(size or 6 for size in tensor.shape[1:])]
        if tensor.dtype == "int32":
            return rng.integers(5, size=shape).astype("int32")
        return rng.normal(size=shape).astype("float32")

    drawn = [draw(tensor) for tensor in model.inputs]
    return drawn if len(drawn) > 1 else drawn[0]


def outputs_of(model, inputs):
    outputs = model(inputs)
    return [
        to_numpy(keras.ops.cast(x, "float32"))
        for x in (outputs if isinstance(outputs, (list, tuple)) else [outputs])
    ]


def moved(model):
    """Sets kernels that the layers have not been built with."""
    keras.utils.set_random_seed(2)
    rng = np.random.default_rng(2)
    for weight in model.trainable_weights:
        value = to_numpy(weight)
        value = value + 0.1 * rng.normal(size=value.shape)
        if weight.constraint is not None:
            value = to_numpy(
                weight.constraint(keras.ops.convert_to_tensor(value, "float32"))
            )
        weight.assign(value)
    model(inputs_of(model), training=True)
    return model


@functools.cache
def prepared(make, form):
    """Prepares each model only once; no test may change it."""
    return moved(make(form))


def names_of(model):
    """The names that a user may give; Keras numbers the inputs anew."""
    names = [layer.name for layer in model.layers]
    return [n for n in names if not n.startswith(("input_l", "keras_tensor"))]


def assert_plain(model):
    names = [type(layer).__module__ for layer in model._flatten_layers()]
    assert not [name for name in names if name.startswith("keras_san")]


def assert_equal_outputs(one, two, inputs, tolerance=1e-5):
    for found, expected in zip(
        outputs_of(one, inputs), outputs_of(two, inputs)
    ):
        np.testing.assert_allclose(
            found, expected, rtol=tolerance, atol=tolerance
        )


@pytest.mark.parametrize("make, form", CASES)
def test_strip(make, form):
    model = prepared(make, form)
    inputs = inputs_of(model)
    before = [to_numpy(w) for w in model.weights]
    config = model.get_config()
    expected = outputs_of(model, inputs)
    stripped = keras_san.strip(model)
    assert type(stripped) is type(model)
    assert stripped.name == model.name
    assert_plain(stripped)
    for found, value in zip(outputs_of(stripped, inputs), expected):
        assert found.shape == value.shape
        np.testing.assert_allclose(found, value, rtol=1e-5, atol=1e-5)
    # The names by which a user finds the layers are the same.
    assert names_of(stripped) == names_of(model)
    # The original is as it was, and shares nothing.
    assert model.get_config() == config
    for weight in stripped.weights:
        weight.assign(to_numpy(weight) * 0)
    for weight, value in zip(model.weights, before):
        np.testing.assert_array_equal(to_numpy(weight), value)
    for found, value in zip(outputs_of(model, inputs), expected):
        np.testing.assert_array_equal(found, value)


LOAD = """
import sys
sys.modules["keras_san"] = None
import keras, numpy as np
found = []
for name in {names!r}:
    model = keras.saving.load_model(f"{folder}/{{name}}.keras")
    arrays = np.load(f"{folder}/{{name}}.npz")
    count = len(model.inputs)
    inputs = [arrays[f"input_{{i}}"] for i in range(count)]
    outputs = model(inputs if count > 1 else inputs[0])
    if not isinstance(outputs, (list, tuple)):
        outputs = [outputs]
    for i, output in enumerate(outputs):
        output = keras.ops.convert_to_numpy(output)
        np.testing.assert_allclose(
            output, arrays[f"output_{{i}}"], rtol=1e-5, atol=1e-5, err_msg=name
        )
    found.append(name)
assert found == {names!r}
assert not [n for n in sys.modules if n.startswith("keras_san.")]
print("all equal")
"""


# `export` needs no `strip`.
SERVE = """
import tensorflow as tf
for form in ("divide", "project"):
    model = tf.saved_model.load(f"{folder}/{{form}}")
    arrays = np.load(f"{folder}/{{form}}.npz")
    outputs = model.serve(arrays["inputs"]).numpy()
    np.testing.assert_allclose(outputs, arrays["outputs"], rtol=1e-5, atol=1e-5)
    served = model.signatures["serving_default"]
    found = served(tf.constant(arrays["inputs"]))
    np.testing.assert_allclose(
        list(found.values())[0].numpy(), outputs, rtol=1e-6, atol=1e-6
    )
print("all served")
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The folder of one critic in both forms, with its outputs."""
    folder = tmp_path_factory.mktemp("exported")
    for form in ("divide", "project"):
        model = prepared(sequential, form)
        inputs = inputs_of(model)
        model.export(str(folder / form), verbose=False)
        (outputs,) = outputs_of(model, inputs)
        np.savez(folder / f"{form}.npz", inputs=inputs, outputs=outputs)
    return folder


def run(script):
    """Runs a script where keras_san cannot be found."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


def test_files_load_without_keras_san(tmp_path, request):
    names = []
    for make, form in CASES:
        model = prepared(make, form)
        inputs = inputs_of(model)
        listed = inputs if isinstance(inputs, list) else [inputs]
        outputs = outputs_of(model, inputs)
        name = f"{make.__name__}_{form}"
        names.append(name)
        keras_san.strip(model).save(tmp_path / f"{name}.keras")
        np.savez(
            tmp_path / f"{name}.npz",
            **{f"input_{i}": x for i, x in enumerate(listed)},
            **{f"output_{i}": x for i, x in enumerate(outputs)},
        )
    script = LOAD.format(names=names, folder=tmp_path)
    if BACKEND == "tensorflow":
        folder = request.getfixturevalue("exported")
        script += SERVE.format(folder=folder)
    printed = run(script)
    assert "all equal" in printed
    assert BACKEND != "tensorflow" or "all served" in printed


@each_form
def test_a_stripped_model_can_be_stripped_and_trained(form):
    model = prepared(sequential, form)
    stripped = keras_san.strip(keras_san.strip(model))
    inputs = inputs_of(model)
    assert_equal_outputs(stripped, model, inputs)
    stripped.compile("sgd", "mse")
    targets = np.zeros((4, 2))
    history = stripped.fit(inputs, targets, epochs=3, verbose=0).history
    assert history["loss"][-1] < history["loss"][0]


def test_other_layers_keep_what_they_have_learned():
    model = moved(other_layers("divide"))
    batch = model.get_layer("batch")
    batch.moving_mean.assign([0.3, -0.2, 0.1, 0.7])
    batch.moving_variance.assign([2.0, 0.5, 1.5, 0.1])
    stripped = keras_san.strip(model)
    copy = stripped.get_layer("batch")
    assert copy is not batch
    for ours, theirs in zip(batch.weights, copy.weights):
        np.testing.assert_array_equal(to_numpy(ours), to_numpy(theirs))
    assert stripped.get_layer("plain").get_config() == (
        model.get_layer("plain").get_config()
    )
    assert_equal_outputs(stripped, model, inputs_of(model))


@pytest.mark.parametrize(
    "dtype, form", [("mixed_bfloat16", "project"), ("mixed_float16", "divide")]
)
def test_mixed_precision(dtype, form):
    before = keras.config.dtype_policy()
    keras.config.set_dtype_policy(dtype)
    try:
        model = moved(sequential(form))
    finally:
        keras.config.set_dtype_policy(before)
    stripped = keras_san.strip(model)
    assert_plain(stripped)
    inputs = inputs_of(model)
    outputs = stripped(inputs)
    assert keras.utils.standardize_dtype(outputs.dtype) == (
        dtype.removeprefix("mixed_")
    )
    for weight in stripped.weights:
        assert weight.dtype == "float32"
    tolerance = 0.01 if dtype == "mixed_float16" else 0.05
    assert_equal_outputs(stripped, model, inputs, tolerance)


@each_form
def test_frozen_layers_and_regularizers_stay(form):
    model = keras.Sequential(
        [
            keras.Input((6, 4, 3)),
            SANConv2D(4, 3, padding="same", normalizer=san(form)),
            SANDense(3, normalizer=san(form), kernel_regularizer="l2"),
        ]
    )
    model.layers[0].trainable = False
    stripped = keras_san.strip(model)
    assert [layer.trainable for layer in stripped.layers] == [False, True]
    assert type(stripped.layers[0]) is layers.Conv2D
    assert type(stripped.layers[1]) is layers.Dense
    assert len(stripped.losses) == 1
    assert stripped.layers[0].padding == "same"


@each_form
def test_strip_one_layer(form):
    for layer, shape in (
        (SANConv2D(2, 3, normalizer=san(form), name="one"), (2, 6, 4, 3)),
        (SANDense(2, normalizer=san(form), name="one"), (2, 3)),
        (
            SANWrapper(layers.Conv1D(2, 3, 2), san(form), name="one"),
            (2, 7, 3),
        ),
    ):
        layer.build(shape)
        plain = keras_san.strip(layer)
        assert plain.name == "one"
        assert_plain(plain)
        inputs = np.random.default_rng(0).normal(size=shape).astype("float32")
        np.testing.assert_allclose(
            to_numpy(plain(inputs)),
            to_numpy(layer(inputs)),
            rtol=1e-5,
            atol=1e-6,
        )


class Holder(layers.Layer):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = SANDense(2, name="hidden")

    def build(self, input_shape):
        self.inner.build(input_shape)

    def call(self, inputs):
        return self.inner(inputs)


class Subclassed(keras.Model):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.dense = SANDense(2)

    def call(self, inputs):
        return self.dense(inputs)


def test_what_cannot_be_stripped():
    model = keras.Sequential([SANDense(2)], name="unbuilt")
    with pytest.raises(ValueError, match="Received: model=.*unbuilt"):
        keras_san.strip(model)
    with pytest.raises(ValueError, match="Received: model=<SANDense.*built"):
        keras_san.strip(SANDense(2))
    model = keras.Sequential([keras.Input((3,)), Holder()], name="critic")
    with pytest.raises(
        ValueError,
        match="inside of custom layers cannot be.*model=critic with layer",
    ):
        keras_san.strip(model)
    distributed = layers.TimeDistributed(SANDense(2))
    model = keras.Sequential([keras.Input((4, 3)), distributed])
    with pytest.raises(ValueError, match="inside of custom layers cannot be"):
        keras_san.strip(model)


def test_a_subclassed_model_cannot_be_stripped():
    model = Subclassed(name="mine")
    model(np.zeros((1, 3), "float32"))
    with pytest.raises(ValueError, match="Sequential.*[fF]unctional"):
        keras_san.strip(model)


def operations_of(function):
    graph = function.graph.as_graph_def()
    nodes = list(graph.node)
    for inner in graph.library.function:
        nodes += inner.node_def
    return [node.op for node in nodes]


@pytest.mark.skipif(
    BACKEND != "tensorflow", reason="SavedModels are TensorFlow's"
)
def test_exported_critics_measure_nothing(exported):
    import tensorflow as tf

    for form in ("divide", "project"):
        loaded = tf.saved_model.load(str(exported / form))
        seen = operations_of(loaded.signatures["serving_default"])
        assert "Conv2D" in seen
        assert not [op for op in seen if "Assign" in op]


# `normalize`.


def plain_critic():
    return keras.Sequential(
        [
            keras.Input((6, 5, 3)),
            layers.Conv2D(4, 3, activation="relu", name="first"),
            layers.SpectralNormalization(
                layers.Conv2D(4, 2, bias_initializer="ones"), name="second"
            ),
            layers.Flatten(name="flat"),
            layers.Dense(2, name="third"),
        ],
        name="critic",
    )


def convert(model, *args, **kwargs):
    return keras_san.normalize(model, *args, **kwargs, verbose=False)


def raw_kernels(model):
    return [to_numpy(kernel.variable) for kernel in find_kernels(model)]


def test_normalize(capsys):
    plain = plain_critic()
    inputs = inputs_of(plain)
    before = plain.get_weights()
    normalized = keras_san.normalize(plain)
    printed = capsys.readouterr().out
    names = ["first", "second", "third"]
    assert (
        names_of(normalized) == names_of(plain) == [*names[:2], "flat", "third"]
    )
    for ours, theirs in zip(plain.get_weights(), before):
        np.testing.assert_array_equal(ours, theirs)
    # The raw kernels, in plain layers.
    raw = convert(normalized, None)
    kinds = [layers.Conv2D, layers.Conv2D, layers.Flatten, layers.Dense]
    assert [type(layer) for layer in raw.layers] == kinds
    np.testing.assert_array_equal(
        outputs_of(raw, inputs), outputs_of(plain, inputs)
    )
    # Divided by hand.
    for name, grid in zip(names, [(6, 5), (4, 3), None]):
        kernel = raw.get_layer(name).kernel
        value = to_numpy(kernel)
        norm = sparsity_aware(value, grid) if grid else matrix_norm(value)
        assert f"{norm:.4g}" in re.search(f"^{name} .*$", printed, re.M)[0]
        kernel.assign(value / norm)
    assert_equal_outputs(normalized, raw, inputs)
    assert_equal_outputs(keras_san.strip(normalized), raw, inputs)


@pytest.mark.parametrize("make", [functional, nested, shared, operations])
def test_normalize_any_structure(make):
    """Layers that are normalized already get another normalizer."""
    model = prepared(make, "divide")
    again = convert(model, "sn")
    assert names_of(again) == names_of(model)
    kernels = find_kernels(again)
    # All that are not in a custom layer, each of them once.
    assert [k.name for k in kernels] == [k.name for k in find_kernels(model)]
    for kernel, before in zip(kernels, raw_kernels(model)):
        assert type(kernel.normalizer) is normalizers.Spectral
        np.testing.assert_array_equal(to_numpy(kernel.variable), before)
        value, geometry = kernel.variable, kernel.geometry
        norm = kernel.normalizer.for_kernel(geometry).norm(value, geometry)
        np.testing.assert_allclose(
            to_numpy(kernel.normalization.norm), to_numpy(norm), rtol=1e-5
        )
    assert_equal_outputs(keras_san.strip(again), again, inputs_of(model))


def test_projected_kernels(capsys):
    plain = plain_critic()
    projected = keras_san.normalize(plain, san("project"))
    kernel = to_numpy(plain.get_layer("first").kernel)
    norm = f"{sparsity_aware(kernel, (6, 5)):.4g}"
    assert norm in capsys.readouterr().out.splitlines()[1]
    assert_equal_outputs(projected, convert(plain), inputs_of(plain))
    # No state: the weights are those of plain layers.
    expected = convert(plain, None)
    projected.set_weights(expected.get_weights())
    assert_equal_outputs(projected, expected, inputs_of(plain))


def test_what_is_frozen_and_dtypes_stay():
    inner = keras.Sequential(
        [keras.Input((4,)), layers.Dense(4), layers.Dense(4)], name="inner"
    )
    inner.trainable = False
    inputs = keras.Input((4,))
    x = layers.Dense(4, dtype="mixed_bfloat16", name="low")(inner(inputs))
    model = keras.Model(inputs, layers.Dense(1, name="last")(x))
    model.get_layer("low").trainable = False
    model.get_layer("last").bias.trainable = False
    for new in (convert(model), convert(convert(model), None)):
        assert not new.get_layer("inner").trainable
        assert new.get_layer("low").compute_dtype == "bfloat16"
        flags = [layer.trainable for layer in new.layers]
        assert flags == [layer.trainable for layer in model.layers]
        assert len(new.trainable_weights) == 1


class Block(layers.Layer):
    """As many users write them: no `build`, and layers inside."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = layers.Dense(3)
        self.matrix = self.add_weight((3, 3), name="matrix")

    def call(self, inputs):
        return keras.ops.matmul(self.inner(inputs), self.matrix)


def test_layers_that_are_copied():
    shift = 2.0
    normalization = layers.Normalization()
    normalization.adapt(np.float32([[1, 2], [3, 5]]))
    attention = layers.MultiHeadAttention(2, 3)
    lora = layers.Dense(3, name="lora")
    inputs = keras.Input((4, 2))
    x = normalization(inputs)
    x = layers.Lambda(lambda x: x + shift)(x)
    x = Block(name="block")(attention(x, x))
    x = layers.LSTM(3, name="lstm")(lora(x))
    model = keras.Model(inputs, layers.Dense(1, name="last")(x))
    lora.enable_lora(2)
    lora.lora_kernel_b.assign(np.ones((2, 3)))
    with pytest.warns(UserWarning, match="not normalized") as warned:
        normalized = convert(model)
    (message,) = [str(x.message) for x in warned if x.category is UserWarning]
    for text in (
        "/query/kernel (inside of MultiHeadAttention)",
        "lora/kernel (LoRA is enabled)",
        "lstm/lstm_cell/recurrent_kernel (inside of LSTM)",
        "block/dense",
        "block/matrix (no attribute `kernel`)",
    ):
        assert text in message
    assert "last" not in message and "bias" not in message
    for new in (keras_san.strip(model), convert(normalized, None)):
        assert_equal_outputs(new, model, inputs_of(model), 1e-6)
        flags = [weight.trainable for weight in new.weights]
        assert flags == [weight.trainable for weight in model.weights]


@pytest.mark.parametrize(
    "only, expected",
    [
        ("second", ["second"]),
        (layers.Dense, ["third"]),
        (lambda layer: layer.name < "second", ["first"]),
        (["first", layers.Dense], ["first", "third"]),
        (layers.Conv2D, ["first", "second"]),
    ],
)
def test_only(only, expected):
    normalized = convert(plain_critic(), only=only)
    found = [
        layer.name
        for layer in normalized.layers
        if isinstance(layer, SANWrapper)
    ]
    assert found == expected
    # The others are as they have been.
    if "second" not in expected:
        kind = layers.SpectralNormalization
        assert type(normalized.get_layer("second")) is kind


def test_circular_padding(capsys):
    images = keras.Input((6, 5, 3))
    x = layers.Conv2D(4, 3, 2, padding="same", name="same")(images)
    y = layers.Conv2D(4, 2, name="valid")(x)
    z = layers.Conv2DTranspose(
        2, 3, 2, padding="same", output_padding=1, name="larger"
    )(x)
    model = keras.Model(images, [x, y, z])
    padded = keras_san.normalize(model, None, padding="circular")
    printed = capsys.readouterr().out.splitlines()
    notes = ["circular padding", 'stays "valid"', 'stays "same"']
    assert [note in line for note, line in zip(notes, printed[1:])] == [
        True
    ] * 3
    inputs = inputs_of(model)
    kernel = to_numpy(model.get_layer("same").kernel)
    np.testing.assert_allclose(
        outputs_of(padded, inputs)[0],
        circular_convolution(inputs, kernel, 2),
        rtol=1e-5,
        atol=1e-5,
    )
    # It stays so, and the norm is that of the image.
    again = convert(padded, "san", only="same").get_layer("same")
    assert again.circular
    np.testing.assert_allclose(
        float(again.normalizations[0].current()),
        sparsity_aware(kernel, (6, 5)),
        rtol=1e-5,
    )
    # So it does in a layer of this package.
    layer = SANConv2D(4, 3, padding="same")
    layer.build((1, 6, 5, 3))
    circular = convert(layer, "sn", padding="circular")
    assert type(circular) is SANConv2D and circular.circular


def test_normalizations_that_do_nothing():
    critic = keras.Sequential(
        [
            keras.Input((None, None, 3)),
            layers.Conv2D(4, 3, name="first"),
            layers.LeakyReLU(0.2),
            layers.Conv2D(4, 3, name="second"),
            layers.BatchNormalization(),
        ]
    )
    with pytest.warns(UserWarning, match="of second does nothing"):
        convert(critic)
    convert(critic, None)


def test_what_cannot_be_normalized():
    model = plain_critic()
    for arguments, received in (
        ({"only": "flat"}, "only='flat'.*'first', 'second', 'third'"),
        ({"only": ["first", 3]}, "only=.*3"),
        ({"only": layers.Conv1D}, "only=<class.*'first', 'second', 'third'"),
        ({"padding": "same"}, "padding='same'"),
        ({"normalizer": "spectral"}, "normalizer='spectral'"),
    ):
        with pytest.raises(ValueError, match=f"Received: {received}"):
            convert(model, **arguments)
    with pytest.raises(ValueError, match="Keras 3.*of type builtins.str"):
        convert("critic")
    with pytest.raises(ValueError, match="nothing to normalize"):
        convert(keras.Sequential([keras.Input((3,)), layers.ReLU()]))
    gan = keras_san.GAN(
        keras.Sequential([keras.Input((2,)), layers.Dense(3)], name="maker"),
        keras.Sequential([keras.Input((3,)), layers.Dense(1)], name="judge"),
        latent_dim=2,
    )
    message = r"normalize\(gan.critic\).*GAN.*maker \(Sequential\), judge"
    with pytest.raises(ValueError, match=message):
        convert(gan)


def test_quantized_layers_are_refused():
    dense = layers.Dense(2)
    model = keras.Sequential([keras.Input((4,)), dense])
    dense.quantize("int8")
    with pytest.raises(ValueError, match="quantized to int8"):
        convert(model)


def test_files_of_plain_weights(tmp_path):
    plain = plain_critic()
    plain.save_weights(tmp_path / "plain.weights.h5")
    normalized = convert(plain)
    with pytest.raises(ValueError, match="and normalize that"):
        normalized.load_weights(tmp_path / "plain.weights.h5")
    normalized.save_weights(tmp_path / "normalized.weights.h5")
    other = convert(plain_critic())
    other.load_weights(tmp_path / "normalized.weights.h5")
    inputs = inputs_of(plain)
    assert_equal_outputs(other, normalized, inputs, 1e-6)


# Critics as users have them.


def wgan_gp():
    """As keras.io's example of WGAN-GP, but small."""
    x = images = keras.Input((12, 12, 1))
    x = layers.ZeroPadding2D(2)(x)
    for filters in (4, 8):
        x = layers.Conv2D(filters, 5, 2, padding="same")(x)
        x = layers.LeakyReLU(0.2)(x)
        x = layers.Dropout(0.3)(x)
    x = layers.Dropout(0.2)(layers.Flatten()(x))
    return keras.Model(images, layers.Dense(1)(x), name="discriminator")


def dcgan():
    """As keras.io's example of DCGAN, but small."""
    parts = [keras.Input((16, 16, 3))]
    for filters in (4, 8, 8):
        parts.append(layers.Conv2D(filters, 4, 2, padding="same"))
        parts.append(layers.LeakyReLU(0.2))
    parts += [layers.Flatten(), layers.Dropout(0.2)]
    return keras.Sequential([*parts, layers.Dense(1, activation="sigmoid")])


def cyclegan():
    """As keras.io's example of CycleGAN, but small."""
    x = images = keras.Input((16, 16, 3))
    x = layers.Conv2D(4, 4, 2, padding="same")(x)
    x = layers.LeakyReLU(0.2)(x)
    for filters, strides in ((8, 2), (8, 1)):
        x = layers.Conv2D(filters, 4, strides, padding="same", use_bias=False)(
            x
        )
        x = layers.GroupNormalization(groups=-1)(x)
        x = layers.LeakyReLU(0.2)(x)
    x = layers.Conv2D(1, 4, padding="same")(x)
    return keras.Model(images, x, name="discriminator")


def spade():
    return keras_san.networks.spade.critic(
        (32, 32), 2, width=1 / 16, scales=1, normalizer=None, padding="same"
    )


@pytest.mark.parametrize("make", [wgan_gp, dcgan, cyclegan, spade])
@pytest.mark.filterwarnings("ignore:The normalization of")
def test_critics_of_users(make, quick, tmp_path):
    critic = convert(make(), padding="circular" if make is dcgan else None)
    inputs = inputs_of(critic)
    critic.compile("adam", "mse")
    targets = [np.zeros_like(x) for x in outputs_of(critic, inputs)]
    if make is not spade:
        (targets,) = targets
    critic.fit(inputs, targets, epochs=3, verbose=0)
    critic.save(tmp_path / "critic.keras")
    loaded = keras.saving.load_model(tmp_path / "critic.keras")
    stripped = keras_san.strip(loaded)
    assert_plain(stripped)
    assert_equal_outputs(stripped, critic, inputs)
