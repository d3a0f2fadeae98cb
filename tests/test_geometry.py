"""Norms are never below what a layer does, whatever its padding.

The operators are those of the layers themselves, applied to every unit vector:
their entries are taps of the kernel, and what follows is in float64.
"""

import math

import helpers
import hypothesis
import keras
import numpy as np
import pytest
from helpers import BACKEND, sparsity_aware, to_numpy
from hypothesis import strategies as st
from keras import layers

from keras_san import SANConv2D, SANWrapper
from keras_san.geometry import geometry_of
from keras_san.layers import flatten_layers
from keras_san.networks import biggan, r3gan, sngan, spade, srgan, stargan

pytestmark = helpers.ignore_torch_copies

property_test = helpers.property_test(tensorflow=25, jax=5, torch=25)

FORWARD = {1: layers.Conv1D, 2: layers.Conv2D}
TRANSPOSED = {1: layers.Conv1DTranspose, 2: layers.Conv2DTranspose}
TRANSPOSED_KINDS = tuple(TRANSPOSED.values())
DEPTHWISE = {1: layers.DepthwiseConv1D, 2: layers.DepthwiseConv2D}


def random_kernel(kind, seed):
    def initializer(shape, dtype):
        rng = np.random.default_rng(seed)
        kernel = rng.normal(size=shape)
        if kind == "alternating":
            kernel = (
                0.1 * kernel
                + (-1.0) ** np.indices(shape[:-2]).sum(0)[..., None, None]
            )
        return keras.ops.convert_to_tensor(kernel, dtype)

    return initializer


@st.composite
def convolutions(draw):
    """A layer, its padding in a wrapper, and the shape of its input."""
    rank = draw(st.sampled_from([1, 1, 2]))
    kind = draw(st.sampled_from(["plain", "transposed", "depthwise"]))
    paddings = ["same", "same", "valid", "circular"]
    if kind == "plain" and rank == 1:
        paddings.append("causal")
    padding = draw(st.sampled_from(paddings))
    largest = 6 if rank == 1 else 3
    kernel_size = [draw(st.integers(1, largest)) for _ in range(rank)]
    # Keras has one stride for all axes of depthwise kernels, and no strides
    # of dilated ones.
    stride = draw(st.integers(1, 3))
    strides = [stride] * rank
    dilation = 1
    if kind == "plain" and stride == 1:
        dilation = draw(st.integers(1, 3))
    reach = [(k - 1) * dilation for k in kernel_size]
    smallest = [1] * rank
    if padding == "valid" and kind != "transposed":
        smallest = [r + 1 for r in reach]
    if padding == "circular":
        smallest = [max(1, math.ceil(r / 2)) for r in reach]
    extra = 6 if rank == 1 else 2
    image = [draw(st.integers(n, n + extra)) for n in smallest]
    settings = {
        "kernel_size": kernel_size,
        "strides": strides,
        "padding": "valid" if padding == "circular" else padding,
        "use_bias": False,
    }
    initializer = random_kernel(
        draw(st.sampled_from(["normal", "alternating"])),
        draw(st.integers(0, 10**6)),
    )
    if kind == "depthwise":
        settings["depthwise_initializer"] = initializer
        layer = DEPTHWISE[rank](depth_multiplier=2, **settings)
        return layer, padding, (*image, 2)
    settings["kernel_initializer"] = initializer
    if kind == "transposed":
        # PyTorch warns that it makes something else of some of these.
        if padding != "circular" and stride > 1 and BACKEND != "torch":
            settings["output_padding"] = tuple(
                draw(
                    st.integers(
                        int(padding == "same" and k % 2 == 0), stride - 1
                    )
                )
                for k in kernel_size
            )
        return TRANSPOSED[rank](2, **settings), padding, (*image, 2)
    settings["dilation_rate"] = dilation
    groups = draw(st.sampled_from([1, 1, 2]))
    layer = FORWARD[rank](2 * groups, groups=groups, **settings)
    return layer, padding, (*image, 2 * groups)


def operator(layer, shape):
    """A layer as a matrix `(input pixels, in, output pixels, out)`."""
    size = math.prod(shape)
    units = np.eye(size, dtype="float32").reshape(size, *shape)
    outputs = to_numpy(layer(units)).astype("float64")
    pixels = math.prod(shape[:-1])
    return outputs.reshape(pixels, shape[-1], -1, outputs.shape[-1])


def normalized(layer, padding, normalizer):
    padding = "circular" if padding == "circular" else None
    return SANWrapper(layer, normalizer, padding=padding)


@property_test
@hypothesis.given(convolutions())
def test_no_channel_gains_more_than_the_norm(convolution):
    layer, padding, shape = convolution
    matrix = operator(normalized(layer, padding, "san"), shape)
    gains = np.linalg.norm(np.transpose(matrix, (1, 3, 0, 2)), 2, axis=(2, 3))
    assert gains.max() <= 1 + 1e-5
    if padding == "circular" and set(layer.strides) == {1}:
        assert gains.max() == pytest.approx(1, rel=1e-5)


@property_test
@hypothesis.given(convolutions())
def test_no_signal_gains_more_than_the_operator_norm(convolution):
    layer, padding, shape = convolution
    extents = shape[:-1]
    if padding == "circular" and not isinstance(layer, TRANSPOSED_KINDS):
        hypothesis.assume(
            not any(n % s for n, s in zip(extents, layer.strides))
        )
    matrix = operator(normalized(layer, padding, "conv_sn"), shape)
    gain = np.linalg.norm(matrix.reshape(math.prod(shape), -1), 2)
    assert gain <= 1 + 1e-4
    if padding == "circular":
        assert gain == pytest.approx(1, rel=1e-4)


@pytest.mark.parametrize(
    "layer, circular, extents, strided",
    [
        (layers.Conv2D(2, (3, 4), 2, "same"), False, (8, 12), (8, 12)),
        (layers.Conv2D(2, (4, 4), 2, "same"), False, (9, 12), (10, 12)),
        (layers.Conv2D(2, 4, 2, "valid"), False, (6, 9), (6, 10)),
        (layers.Conv2D(2, 4, 2, "valid"), True, (6, 9), (6, 9)),
        (layers.Conv2D(2, 3, padding="same", dilation_rate=2), False)
        + 2 * ((10, 13),),
        (layers.SeparableConv2D(2, 3, padding="same"), False) + 2 * ((8, 11),),
        (layers.Conv2DTranspose(2, 3, 2, "same"), False, (14, 20), (14, 20)),
        (layers.Conv2DTranspose(2, 4, 2, "same"), False, (15, 21), (16, 22)),
        (layers.Conv2DTranspose(2, 4, 2), False, (14, 20), (14, 20)),
        (layers.Conv2DTranspose(2, 4, 2), True, (12, 18), (12, 18)),
    ],
)
def test_extents(layer, circular, extents, strided):
    layer.build((None, 6, 9, 3))
    name = next(n for n in ("depthwise_kernel", "kernel") if hasattr(layer, n))
    geometry = geometry_of(layer, name, 4, (None, 6, 9, 3), circular)
    assert geometry.spatial_shape == extents
    assert geometry.strided_shape() == strided
    unknown = geometry_of(layer, name, 4, (None, None, 9, 3), circular)
    assert unknown.spatial_shape is None
    assert unknown.strided_shape() is None


CRITICS = {
    "cnn": (sngan.critic, {"resolution": 16, "width": 0.05}),
    "resnet": (sngan.resnet_critic, {"width": 0.05}),
    "biggan": (biggan.critic, {"resolution": 16, "width": 0.05}),
    "super resolution": (srgan.critic, {"resolution": 32, "width": 0.05}),
    "spade": (
        spade.critic,
        {"resolution": (64, 96), "map_channels": 2, "width": 0.05},
    ),
    "stargan": (
        stargan.critic,
        {"resolution": 32, "halvings": 3, "width": 0.05},
    ),
    "r3gan": (
        r3gan.critic,
        {"resolution": 8, "width": 1 / 96, "normalizer": "san"},
    ),
}


@pytest.mark.skipif(BACKEND != "tensorflow", reason="compiled by TensorFlow")
@pytest.mark.parametrize("name", CRITICS)
def test_norms_in_a_training_step_are_those_of_all_transforms(name):
    import tensorflow as tf

    function, settings = CRITICS[name]
    critic = function(padding="same", **settings)
    inputs = [
        tf.zeros((2, *(n for n in x.shape[1:])), x.dtype) for x in critic.inputs
    ]
    inputs = inputs if len(inputs) > 1 else inputs[0]
    found = [
        layer
        for layer in flatten_layers(critic)
        if isinstance(layer, SANConv2D)
    ]
    rng = np.random.default_rng(0)
    for layer in found:
        layer.kernel.assign(rng.normal(size=layer.kernel.shape))

    @tf.function
    def step(inputs):
        outputs = keras.tree.flatten(critic(inputs, training=True))
        return sum(tf.reduce_mean(x) for x in outputs)

    kernels = [to_numpy(layer.kernel) for layer in found]
    step(inputs)
    assert len(found) > 2
    for layer, kernel in zip(found, kernels):
        assert layer.padding == "same"
        image = layer.input.shape[1:3]
        extents = [n + k - 1 for n, k in zip(image, layer.kernel_size)]
        expected = sparsity_aware(kernel, extents)
        norm = to_numpy(layer.normalizations[0].norm)
        assert norm == pytest.approx(expected, rel=1e-5)
