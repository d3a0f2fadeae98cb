"""Exported models compute what the models did that they were made of."""

import keras
import numpy as np
import pytest
from helpers import BACKEND
from keras import layers

import keras_san
from keras_san import SANConv2D, SANDense, SANWrapper
from keras_san.networks import sngan

RNG = np.random.default_rng(0)


def critic():
    """One layer of each kind that a format has to know."""
    model = keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            SANConv2D(8, 4, strides=2, activation="leaky_relu"),
            SANWrapper(layers.DepthwiseConv2D(3), "sn", padding="circular"),
            SANWrapper(layers.Conv2DTranspose(4, 4, 2, "same")),
            layers.ReLU(),
            SANConv2D(4, 3, padding="same"),
            layers.Flatten(),
            SANDense(1),
        ]
    )
    for weight in model.trainable_weights:
        if weight.name == "bias":
            weight.assign(RNG.normal(size=weight.shape))
    return keras_san.strip(model)


def generator():
    return sngan.generator(16, width=0.03)


def run_saved_model(path, x):
    import tensorflow as tf

    loaded = tf.saved_model.load(path)
    return loaded.serve(tf.constant(x))


def run_litert(path, x):
    import tensorflow as tf

    interpreter = tf.lite.Interpreter(path)
    (given,) = interpreter.get_input_details()
    (made,) = interpreter.get_output_details()
    interpreter.resize_tensor_input(given["index"], x.shape)
    interpreter.allocate_tensors()
    interpreter.set_tensor(given["index"], x)
    interpreter.invoke()
    return interpreter.get_tensor(made["index"])


def run_onnx(path, x):
    import onnxruntime

    session = onnxruntime.InferenceSession(path)
    (given,) = session.get_inputs()
    return session.run(None, {given.name: x})[0]


def run_openvino(path, x):
    import openvino

    return openvino.Core().compile_model(path, "CPU")(x)[0]


def run_torch(path, x):
    import torch

    made = torch.export.load(path).module()(torch.tensor(x))
    return made.detach().numpy()


# The endings of files, and the backends on which the format can be written.
FORMATS = {
    "tf_saved_model": ("", ("tensorflow", "jax"), run_saved_model),
    "litert": (".tflite", ("tensorflow",), run_litert),
    "onnx": (".onnx", ("tensorflow", "torch"), run_onnx),
    "openvino": (".xml", ("tensorflow", "torch"), run_openvino),
    "torch": (".pt2", ("torch",), run_torch),
}


@pytest.mark.filterwarnings("ignore")  # What converters say of each other.
@pytest.mark.parametrize("make", [critic, generator])
@pytest.mark.parametrize("name", FORMATS)
def test_outputs(make, name, tmp_path):
    ending, backends, run = FORMATS[name]
    if BACKEND not in backends:
        pytest.skip(f"{name} is written on {' and '.join(backends)} only")
    if name in ("onnx", "openvino"):
        pytest.importorskip(
            {"onnx": "onnxruntime"}.get(name, name),
            reason="the extra `export` is not installed; it is in the gate",
        )
    model = make()
    x = RNG.normal(size=(3, *model.input_shape[1:])).astype("float32")
    expected = keras.ops.convert_to_numpy(model(x, training=False))
    path = str(tmp_path / f"exported{ending}")
    kwargs = {}
    if BACKEND == "torch":
        # A batch size that is not given becomes 1.
        kwargs["input_signature"] = [keras.InputSpec(shape=x.shape)]
    model.export(path, format=name, verbose=False, **kwargs)
    np.testing.assert_allclose(run(path, x), expected, rtol=1e-5, atol=1e-5)
