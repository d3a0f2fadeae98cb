"""The gradients of a critic with respect to its kernels and its images."""

import math

import keras
import numpy as np
from keras import ops

from keras_san.critic_output import of_scales
from keras_san.diagnostics.kernels import check_not_quantized, running_with
from keras_san.differentiation import hessian_product, value_and_gradients
from keras_san.kernel_normalization import hold_norms
from keras_san.kernels import find_kernels


def mean_score(outputs):
    """The mean of all logits of a critic, a float32 scalar.

    Args:
        outputs: The outputs of a critic: logits, or a list with one entry per
            scale, logits or a list that ends in logits, as
            `keras_san.PairedGAN` takes them.
    """
    means = [
        ops.mean(ops.cast(logits, "float32"))
        for logits in of_scales(outputs).logits
    ]
    return sum(means) / len(means)


WEIGHT_GRADIENTS = np.dtype(
    [
        ("layer", "U80"),
        ("norm", float),
        ("raw_norm", float),
        ("weight_norm", float),
    ]
)


def weight_gradients(model, images, score=mean_score):
    """Measures the gradients of a critic with respect to its kernels.

    Args:
        model: A built Keras model from images.
        images: Array `(n, height, width, channels)`, or a list of arrays if
            the model has several inputs. All pass at once.
        score: Callable from the outputs of the model to a scalar, of which
            the gradient is taken.

    Returns:
        A NumPy array of records, one per kernel in the order of the weights:
        `layer`, a string; `norm`, the Frobenius norm of the gradient with
        respect to the kernel that the layer runs with in inference;
        `raw_norm`, that of the gradient with respect to the raw kernel in
        training, which is what an optimizer gets; `weight_norm`, the Frobenius
        norm of the kernel that the layer runs with.

    Reference:
        [Lin, Sekar and Fanti, 2021](https://arxiv.org/abs/2009.02773),
        on exploding gradients.
    """
    check_not_quantized(model)
    kernels = find_kernels(model)
    images = _tensors(images)
    effective = [_float32(kernel.effective()) for kernel in kernels]

    def by_effective(values):
        with running_with(kernels, values):
            return score(model(images, training=False))

    def by_raw(values):
        mapping = [(k.variable, v) for k, v in zip(kernels, values)]
        # As in training, where the norm of some normalizers has a gradient.
        with keras.StatelessScope(mapping), hold_norms():
            return score(model(images, training=True))

    _, gradients = value_and_gradients(by_effective, effective)
    _, raw_gradients = value_and_gradients(
        by_raw, [_float32(kernel.variable) for kernel in kernels]
    )
    return np.array(
        [
            (kernel.name, _length(g), _length(r), _length(w))
            for kernel, g, r, w in zip(
                kernels, gradients, raw_gradients, effective
            )
        ],
        WEIGHT_GRADIENTS,
    )


def input_gradients(model, images, score=mean_score, batch_size=64):
    """The norms of a critic's gradients with respect to its images.

    Args:
        model: A built Keras model from images.
        images: As in `weight_gradients`. The gradient is that with respect to
            the first array.
        score: Callable from the outputs of the model to a scalar, the mean of
            something over the images.
        batch_size: Int, how many images pass at once.

    Returns:
        A float64 array `(n,)`, the Euclidean norm for each image.
    """
    norms = []
    count = len(keras.tree.flatten(images)[0])
    for start in range(0, count, batch_size):
        part = slice(start, start + batch_size)
        first, *others = keras.tree.flatten(
            _tensors(keras.tree.map_structure(lambda x: x[part], images))
        )

        def total(values, others=others, size=first.shape[0]):
            inputs = [*values, *others] if others else values[0]
            # A sum, so that each image has the gradient of its own score.
            return score(model(inputs, training=False)) * size

        # What the model assigns on the way is not to last.
        with keras.StatelessScope():
            _, (gradient,) = value_and_gradients(total, [_float32(first)])
        gradient = np.asarray(ops.convert_to_numpy(gradient), "float64")
        norms.append(
            np.linalg.norm(gradient.reshape(len(gradient), -1), axis=1)
        )
    return np.concatenate(norms)


def hessian_norm(model, images, score=mean_score, steps=10, seed=0):
    """The spectral norm of a critic's Hessian with respect to its kernels.

    The kernels are those that layers run with, all taken together. If the
    activations and the score are piecewise linear, second derivatives within
    one kernel are zero, and only those between different kernels remain.

    Args:
        model: A built Keras model from images.
        images: As in `weight_gradients`. All pass at once.
        score: Callable from the outputs of the model to a scalar.
        steps: Int, the steps of power iteration, which estimates the norm
            from below.
        seed: Int.

    Returns:
        A float.
    """
    check_not_quantized(model)
    kernels = find_kernels(model)
    images = _tensors(images)
    values = [_float32(kernel.effective()) for kernel in kernels]

    def function(values):
        with running_with(kernels, values):
            return score(model(images, training=False))

    rng = np.random.default_rng(seed)
    directions = [rng.normal(size=tuple(v.shape)) for v in values]
    norm = math.sqrt(sum(np.sum(d**2) for d in directions))
    for _ in range(steps):
        unit = [
            ops.convert_to_tensor((d / norm).astype("float32"))
            for d in directions
        ]
        directions = [
            np.asarray(ops.convert_to_numpy(ops.stop_gradient(d)), "float64")
            for d in hessian_product(function, values, unit)
        ]
        norm = math.sqrt(sum(np.sum(d**2) for d in directions))
        if norm == 0.0:
            break
    return norm


def _tensors(images):
    return keras.tree.map_structure(ops.convert_to_tensor, images)


def _float32(x):
    return ops.cast(ops.stop_gradient(ops.convert_to_tensor(x)), "float32")


def _length(x):
    x = np.asarray(ops.convert_to_numpy(ops.stop_gradient(x)), "float64")
    return math.sqrt(np.sum(x**2))
