"""Tests of `keras_san.padding` against `numpy.pad(mode="wrap")`."""

import math

import helpers
import hypothesis
import keras
import numpy as np
import pytest
from helpers import BACKEND
from hypothesis import strategies as st
from keras import ops

from keras_san.padding import call_circular, circular_amounts, circular_pad

pytestmark = helpers.ignore_torch_copies

only_on_tensorflow = pytest.mark.skipif(
    BACKEND != "tensorflow", reason="Only TensorFlow has unknown sizes."
)


property_test = helpers.property_test(tensorflow=40, jax=10, torch=40)


def images(spatial, data_format="channels_last", seed=0):
    shape = (2, *spatial, 3)
    if data_format == "channels_first":
        shape = (2, 3, *spatial)
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def wrapped(inputs, amounts, data_format="channels_last"):
    pairs = [(0, 0), *amounts, (0, 0)]
    if data_format == "channels_first":
        pairs = [(0, 0), (0, 0), *amounts]
    return np.pad(inputs, pairs, mode="wrap")


@pytest.mark.parametrize(
    "kernel_size, dilation_rate, expected",
    [
        ((), (), ()),
        ((1,), (1,), ((0, 0),)),
        ((1,), (5,), ((0, 0),)),
        ((2,), (1,), ((0, 1),)),  # the extra pixel goes after
        ((3,), (1,), ((1, 1),)),
        ((4,), (1,), ((1, 2),)),
        ((4,), (3,), ((4, 5),)),
        ((4,), (2,), ((3, 3),)),
        ((3, 4), (1, 1), ((1, 1), (1, 2))),
        ((3, 2), (2, 3), ((2, 2), (1, 2))),
        ((3, 1, 6), (1, 2, 1), ((1, 1), (0, 0), (2, 3))),
    ],
)
def test_circular_amounts(kernel_size, dilation_rate, expected):
    assert circular_amounts(kernel_size, dilation_rate) == expected


@property_test
@hypothesis.given(
    st.lists(
        st.tuples(st.integers(1, 9), st.integers(1, 4)),
        min_size=1,
        max_size=3,
    )
)
def test_circular_amounts_add_up(axes):
    kernel_size, dilation_rate = zip(*axes)
    amounts = circular_amounts(kernel_size, dilation_rate)
    for k, d, (before, after) in zip(kernel_size, dilation_rate, amounts):
        assert before + after == (k - 1) * d
        assert after - before in (0, 1)


@property_test
@hypothesis.given(
    st.lists(
        st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(0, 3)),
        min_size=1,
        max_size=3,
    ),
    st.sampled_from(["channels_last", "channels_first"]),
)
def test_circular_pad_is_numpy_wrap(axes, data_format):
    amounts = circular_amounts([k for k, _, _ in axes], [d for _, d, _ in axes])
    # From the smallest image that can be padded so, to 3 pixels more.
    spatial = [max(1, *pair) + x for pair, (_, _, x) in zip(amounts, axes)]
    inputs = images(spatial, data_format)
    outputs = circular_pad(inputs, amounts, data_format)
    np.testing.assert_array_equal(
        ops.convert_to_numpy(outputs), wrapped(inputs, amounts, data_format)
    )


@pytest.mark.parametrize("amounts", [((0, 3), (2, 0)), ((1, 4), (5, 5))])
def test_circular_pad_takes_any_amounts(amounts):
    inputs = images((4, 5))
    np.testing.assert_array_equal(
        ops.convert_to_numpy(circular_pad(inputs, amounts, "channels_last")),
        wrapped(inputs, amounts),
    )


def test_circular_pad_by_nothing():
    inputs = images((4, 5))
    outputs = circular_pad(inputs, ((0, 0), (0, 0)), "channels_last")
    np.testing.assert_array_equal(ops.convert_to_numpy(outputs), inputs)


def test_circular_pad_follows_the_configured_data_format():
    before = keras.config.image_data_format()
    try:
        for data_format in ["channels_first", "channels_last"]:
            keras.config.set_image_data_format(data_format)
            inputs = images((4, 5), data_format)
            np.testing.assert_array_equal(
                ops.convert_to_numpy(circular_pad(inputs, ((1, 1), (1, 2)))),
                wrapped(inputs, ((1, 1), (1, 2)), data_format),
            )
    finally:
        keras.config.set_image_data_format(before)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int32"])
def test_circular_pad_keeps_the_dtype(dtype):
    inputs = ops.cast(np.arange(5).reshape(1, 5, 1), dtype)
    outputs = circular_pad(inputs, ((2, 1),), "channels_last")
    assert keras.utils.standardize_dtype(outputs.dtype) == dtype
    np.testing.assert_array_equal(
        ops.convert_to_numpy(ops.cast(outputs, "float32")).ravel(),
        [3, 4, 0, 1, 2, 3, 4, 0],
    )


@pytest.mark.parametrize(
    "spatial, amounts, quoted",
    [
        ((3,), ((4, 0),), "padding=(4, 0) on axis 1 of inputs"),
        ((8, 2), ((2, 2), (2, 3)), "padding=(2, 3) on axis 2 of inputs"),
        (
            (4, 4, 4),
            ((0, 0), (1, 1), (5, 5)),
            "padding=(5, 5) on axis 3 of inputs",
        ),
    ],
)
def test_a_pad_wider_than_the_image(spatial, amounts, quoted):
    with pytest.raises(ValueError) as error:
        circular_pad(images(spatial), amounts, "channels_last")
    assert f"Received: {quoted}" in str(error.value)


def test_a_pad_wider_than_the_image_with_channels_first():
    inputs = images((4, 2), "channels_first")
    with pytest.raises(ValueError, match=r"padding=\(3, 3\) on axis 3 of"):
        circular_pad(inputs, ((1, 1), (3, 3)), "channels_first")
    # 3 channels are enough for nothing: the axis counted is the right one.
    inputs = images((4, 4), "channels_first")
    circular_pad(inputs, ((4, 4), (4, 4)), "channels_first")


def test_the_error_quotes_the_image():
    with pytest.raises(ValueError) as error:
        circular_pad(images((2, 8)), ((3, 3), (1, 1)), "channels_last")
    assert "(2, 2, 8, 3)" in str(error.value)
    # Also when an axis before it has been padded already.
    with pytest.raises(ValueError) as error:
        circular_pad(images((8, 2)), ((3, 3), (3, 3)), "channels_last")
    assert "(2, 8, 2, 3)" in str(error.value)


def test_symbolic_images_of_known_size():
    x = keras.KerasTensor((None, 5, 6, 3))
    padded = circular_pad(x, ((1, 1), (1, 2)), "channels_last")
    assert padded.shape == (None, 7, 9, 3)


def test_symbolic_images_of_unknown_size():
    inputs = keras.Input((None, 6, 3))
    outputs = keras.layers.Lambda(
        lambda x: circular_pad(x, ((1, 2), (2, 2)), "channels_last")
    )(inputs)
    assert outputs.shape == (None, None, 10, 3)
    model = keras.Model(inputs, outputs)
    for height in [2, 5]:
        x = images((height, 6))
        np.testing.assert_array_equal(
            ops.convert_to_numpy(model(x)), wrapped(x, ((1, 2), (2, 2)))
        )


@only_on_tensorflow
def test_unknown_sizes_in_a_graph():
    import tensorflow as tf

    traces = []

    @tf.function(
        input_signature=[tf.TensorSpec((None, None, None, 3), "float32")]
    )
    def pad(x):
        traces.append(x.shape)
        return circular_pad(x, ((2, 3), (1, 0)), "channels_last")

    for spatial in [(3, 1), (4, 7), (16, 16)]:
        x = images(spatial)
        np.testing.assert_array_equal(
            pad(x).numpy(), wrapped(x, ((2, 3), (1, 0)))
        )
    with pytest.raises(tf.errors.InvalidArgumentError) as error:
        pad(images((2, 7)))
    assert "Received: padding=(2, 3) on axis 1" in str(error.value)
    assert len(traces) == 1


@only_on_tensorflow
def test_known_sizes_in_a_graph():
    import tensorflow as tf

    for jit_compile in [False, True]:
        pad = tf.function(
            lambda x: circular_pad(x, ((2, 3), (1, 0)), "channels_last"),
            jit_compile=jit_compile,
            autograph=False,
        )
        x = images((3, 4))
        np.testing.assert_array_equal(
            pad(x).numpy(), wrapped(x, ((2, 3), (1, 0)))
        )
        with pytest.raises(ValueError, match=r"padding=\(2, 3\) on axis 1"):
            pad(images((2, 4)))


@pytest.mark.skipif(BACKEND != "jax", reason="jax.jit")
def test_circular_pad_under_jit():
    import jax

    pad = jax.jit(lambda x: circular_pad(x, ((2, 3), (1, 0)), "channels_last"))
    x = images((3, 4))
    np.testing.assert_array_equal(
        np.asarray(pad(x)), wrapped(x, ((2, 3), (1, 0)))
    )
    with pytest.raises(ValueError, match=r"padding=\(2, 3\) on axis 1"):
        pad(images((2, 4)))


def test_circular_pad_carries_gradients():
    # Each pixel's gradient sums over the places where it was copied to.
    x = np.arange(4, dtype="float32").reshape(1, 4, 1)
    weights = np.arange(1, 9, dtype="float32").reshape(1, 8, 1)

    def loss(x):
        padded = circular_pad(x, ((1, 3),), "channels_last")
        return ops.sum(padded * ops.convert_to_tensor(weights))

    _, gradient = helpers.value_and_gradient(loss, x)
    # Outputs: 3 | 0 1 2 3 | 0 1 2.
    np.testing.assert_allclose(
        gradient.ravel(), [2 + 6, 3 + 7, 4 + 8, 1 + 5], rtol=1e-6
    )


@only_on_tensorflow
@property_test
@hypothesis.given(
    st.tuples(st.integers(1, 6), st.integers(1, 6)),
    st.lists(
        st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=2
    ),
    st.sampled_from(["channels_last", "channels_first"]),
)
def test_gradients_of_the_first_and_second_order(spatial, amounts, data_format):
    hypothesis.assume(all(max(a) <= n for a, n in zip(amounts, spatial)))
    import tensorflow as tf

    x = tf.constant(images(spatial, data_format))
    weights = wrapped(images(spatial, data_format), amounts, data_format)
    weights = np.random.default_rng(1).normal(size=weights.shape)
    # The padding is linear, so its matrix says what its gradients are.
    basis = np.eye(math.prod(x.shape), dtype="float32")
    matrix = np.stack(
        [
            wrapped(row.reshape(x.shape), amounts, data_format).ravel()
            for row in basis
        ],
        axis=1,
    )
    with tf.GradientTape() as outer:
        outer.watch(x)
        with tf.GradientTape() as inner:
            inner.watch(x)
            padded = circular_pad(x, amounts, data_format)
            value = tf.reduce_sum(padded**3 * weights)
        gradient = inner.gradient(value, x)
        squares = tf.reduce_sum(gradient**2)
    second = outer.gradient(squares, x).numpy().ravel()
    p = matrix @ x.numpy().ravel()
    w = weights.ravel()
    expected = matrix.T @ (3 * p**2 * w)
    np.testing.assert_allclose(
        gradient.numpy().ravel(), expected, rtol=1e-4, atol=1e-4
    )
    # d(g . g) / dx = 2 P^T diag(6 p w) P g.
    expected = 2 * matrix.T @ (6 * p * w * (matrix @ expected))
    np.testing.assert_allclose(second, expected, rtol=1e-3, atol=2e-2)


@only_on_tensorflow
def test_the_gradient_of_a_padding_is_a_slice_and_a_few_sums():
    # Without one of its own, TensorFlow fills images with zeros to add up.
    import tensorflow as tf

    @tf.function(autograph=False)
    def gradient(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            padded = circular_pad(x, ((1, 1), (1, 2)), "channels_last")
            value = tf.reduce_sum(padded * padded)
        return tape.gradient(value, x)

    graph = gradient.get_concrete_function(tf.TensorSpec((2, 8, 8, 3))).graph
    kinds = [op.type for op in graph.get_operations()]
    assert "StridedSliceGrad" not in kinds
    assert kinds.count("ConcatV2") == 4


@pytest.mark.parametrize(
    "extent, stride",
    [(5, 1), (4, 2), (7, 2), (4, 3), (5, 3), (6, 3), (4, 5), (7, 5)],
)
def test_strided_layers_read_no_more_than_they_need(extent, stride):
    for kernel_size in range(1, 5):
        layer = keras.layers.Conv1D(
            2, kernel_size, strides=stride, use_bias=False
        )
        layer.build((None, extent, 1))
        x = np.random.default_rng(0).normal(size=(1, extent, 1))
        x = x.astype("float32")
        read = []

        def call(padded):
            read.append(padded.shape[1])
            return layer(padded)

        outputs = ops.convert_to_numpy(call_circular(layer, call, x))
        before = (kernel_size - 1) // 2
        expected = [
            sum(
                x[0, (i * stride + t - before) % extent, 0]
                * np.asarray(ops.convert_to_numpy(layer.kernel))[t, 0]
                for t in range(kernel_size)
            )
            for i in range(-(-extent // stride))
        ]
        np.testing.assert_allclose(outputs[0], expected, rtol=1e-4, atol=1e-5)
        last = (len(expected) - 1) * stride + kernel_size
        assert read == [max(last, extent + before)]
