"""The sparsity of signals, and their amplification by layers."""

import contextlib
import math

import keras
import numpy as np
from keras import ops

from keras_san.diagnostics.kernels import layer_norms
from keras_san.diagnostics.recording import record
from keras_san.kernels import find_kernels

# Below this share of the largest channel's norm a channel counts as nearly
# zero.
NEARLY_ZERO = 0.01

_ACTIVATIONS = (
    keras.layers.Activation,
    keras.layers.ReLU,
    keras.layers.LeakyReLU,
    keras.layers.PReLU,
    keras.layers.ELU,
    keras.layers.Softmax,
)


def channel_sparsity(model, images, bins=50, batch_size=64):
    """Measures how many channels of a critic's signals are active.

    Args:
        model: A built Keras model from images.
        images: Array `(n, height, width, channels)`, or a list of arrays if
            the model has several inputs.
        bins: Int, the number of bins of the histograms.
        batch_size: Int, how many images pass at once.

    Returns:
        A NumPy array of records, one for each activation (a layer of its own,
        or that of a convolution or dense layer) in the order in which they
        are run, over all images:

        - `layer`: string; `channels`: int;
        - `zero`: the share of channels that are exactly zero in an image, and
          `nearly_zero`: the share whose norm over the pixels is below 1 % of
          that of the image's largest channel;
        - `effective`: the effective number of channels, that is the energy of
          all channels over that of the largest one, averaged over the images:
          from 1 (only one channel is not zero) to `channels` (all are equally
          large);
        - `histogram`: the shares of channels in `bins` equal steps from 0 to
          1 of their norm over that of the image's largest channel.

    Reference:
        [Kligvasser and Michaeli, 2021](https://arxiv.org/abs/2103.02458),
        Figure 5.
    """
    kernels = {id(k.layer): k.holder for k in find_kernels(model)}
    norms = {}
    for _, calls in _recorded(model, images, batch_size):
        # Once where a convolution's own activation is a layer.
        active = {
            id(call.outputs[0]): call
            for call in calls
            if isinstance(call.layer, _ACTIVATIONS)
            or _is_active(kernels.get(id(call.layer)))
        }
        for index, call in enumerate(active.values()):
            key = index, call.layer.name
            norms.setdefault(key, []).append(_channel_norms(call.outputs[0]))
    return np.array(
        [
            (name, values[0].shape[1], *_sparsity(np.concatenate(values), bins))
            for (_, name), values in norms.items()
        ],
        [
            ("layer", "U80"),
            ("channels", int),
            ("zero", float),
            ("nearly_zero", float),
            ("effective", float),
            ("histogram", float, (bins,)),
        ],
    )


SIGNAL_GAINS = np.dtype(
    [
        ("layer", "U80"),
        ("channels", int),
        ("effective", float),
        ("gain", float),
        ("gain_max", float),
        ("gain_over_san", float),
        ("gain_over_sn", float),
        ("gain_over_operator", float),
        ("channel_gain", float),
        ("channel_gain_max", float),
        ("channel_gain_over_san", float),
        ("growth", float),
    ]
)


def signal_gains(model, images, norms=None, batch_size=64):
    """Measures how much the layers of a critic amplify their inputs.

    Args:
        model: A built Keras model from images.
        images: As in `channel_sparsity`.
        norms: `None`, or the result of `layer_norms(model)`, to save time.
        batch_size: Int, how many images pass at once.

    Returns:
        A NumPy array of records, one for each kernel but those of embeddings
        (for a separable convolution one, under the name of its second kernel),
        in the order in which they are run. Let `x` be the input of a layer for
        one image, and `W x` its output without bias and activation:

        - `layer`: string; `channels`: int, those of `x`; `effective`: the
          effective number of channels of `x`, as in `channel_sparsity`;
        - `gain`, `gain_max`: the mean and the maximum over the images of
          `||W x|| / ||x||`; `gain_over_san`, `gain_over_sn`,
          `gain_over_operator`: the mean, divided by each of the layer's norms.
          The last is at most 1;
        - `channel_gain`, `channel_gain_max`: the same for the norm of the
          largest channel of `W x` over that of the largest channel of `x`.
          For signals of one channel it is at most SAN's norm.
          `channel_gain_over_san`: the mean, divided by SAN's norm;
        - `growth`: the root mean square of `W x` over that of `x`, divided by
          the square root of 2. It is 1 if the signals have their old size
          after an activation that, as ReLU, halves their energy.

    Reference:
        [Kligvasser and Michaeli, 2021](https://arxiv.org/abs/2103.02458),
        Eqs. 5 and 6; for `growth` [He et al.,
        2015](https://arxiv.org/abs/1502.01852), Eq. 10.
    """
    norms = layer_norms(model) if norms is None else norms
    norms = {row["layer"]: row for row in norms}
    # The last one of a layer with several kernels.
    kernels = {id(kernel.layer): kernel for kernel in find_kernels(model)}
    found = {}
    for _, calls in _recorded(model, images, batch_size):
        for index, call in enumerate(calls):
            kernel = kernels.get(id(call.layer))
            # Others with a kernel, as recurrent cells, take a state as well.
            if kernel is None or len(call.inputs) != 1:
                continue
            (x,) = call.inputs
            if not _is_float(x):
                continue
            with _linear(kernel.holder):
                y = call.layer(x, training=False)
            inner, outer = _channel_norms(x), _channel_norms(y)
            values = [
                inner.shape[1] * np.ones(len(inner)),
                _effective(inner),
                _ratio(_total(outer), _total(inner)),
                _ratio(outer.max(axis=1), inner.max(axis=1)),
                _ratio(_size(y, outer), _size(x, inner)) / math.sqrt(2.0),
            ]
            found.setdefault((index, kernel.name), []).append(values)
    rows = []
    for (_, name), values in found.items():
        channels, effective, gain, channel_gain, growth = np.concatenate(
            values, axis=1
        )
        of_kernel = norms[name]
        rows.append(
            (
                name,
                channels[0],
                np.mean(effective),
                np.mean(gain),
                np.max(gain),
                *(_over(gain, of_kernel[n]) for n in ("san", "sn", "operator")),
                np.mean(channel_gain),
                np.max(channel_gain),
                _over(channel_gain, of_kernel["san"]),
                np.sqrt(np.mean(growth**2)),
            )
        )
    return np.array(rows, SIGNAL_GAINS)


def _recorded(model, images, batch_size):
    """The results of `record`, batch by batch."""
    count = len(keras.tree.flatten(images)[0])
    for start in range(0, count, batch_size):
        part = slice(start, start + batch_size)
        yield record(model, keras.tree.map_structure(lambda x: x[part], images))


def _is_float(x):
    return "float" in keras.utils.standardize_dtype(x.dtype)


def _is_active(layer):
    """`True` if a layer applies an activation of its own."""
    activation = getattr(layer, "activation", None)
    return activation not in (None, keras.activations.linear)


@contextlib.contextmanager
def _linear(layer):
    """A context in which a layer has neither bias nor activation."""
    bias = getattr(layer, "bias", None)
    mapping = []
    if isinstance(bias, keras.Variable):
        mapping.append((bias, ops.zeros(bias.shape, bias.dtype)))
    # In the dictionary: PyTorch lets no function take the place of a layer.
    attributes = vars(layer)
    before = {k: attributes[k] for k in ["activation"] if k in attributes}
    attributes["activation"] = keras.activations.linear
    try:
        with keras.StatelessScope(mapping):
            yield
    finally:
        del attributes["activation"]
        attributes.update(before)


def _channel_norms(x):
    """The norms over all pixels: `(batch, channels)`, float64."""
    x = ops.stop_gradient(ops.cast(x, "float32"))
    first = keras.config.image_data_format() == "channels_first"
    channels = 1 if first else len(x.shape) - 1
    axes = [a for a in range(1, len(x.shape)) if a != channels]
    largest = ops.maximum(ops.max(ops.abs(x)), 1e-30)
    squares = ops.sum(ops.square(x / largest), axis=axes)
    norms = np.sqrt(np.asarray(ops.convert_to_numpy(squares), "float64"))
    # Beside an infinite number all others may be zero.
    with np.errstate(invalid="ignore"):
        return norms * float(largest)


def _total(norms):
    return np.sqrt(np.sum(norms**2, axis=1))


def _size(x, norms):
    """The root mean square of each image's numbers."""
    return _total(norms) / math.sqrt(math.prod(x.shape[1:]))


def _ratio(a, b):
    """`a / b`, 0 where nothing enters."""
    return np.divide(a, b, out=np.zeros_like(a), where=b > 0)


def _over(gains, norm):
    return np.mean(gains) / norm if norm else math.nan


def _effective(norms):
    return _ratio(np.sum(norms**2, axis=1), np.max(norms**2, axis=1))


def _sparsity(norms, bins):
    relative = _ratio(norms, norms.max(axis=1, keepdims=True) + 0.0 * norms)
    counts, _ = np.histogram(relative, bins=bins, range=(0.0, 1.0))
    return (
        np.mean(norms == 0.0),
        np.mean(relative < NEARLY_ZERO),
        np.mean(_effective(norms)),
        counts / relative.size,
    )
