"""Conversion of models: to normalized kernels, and back to plain layers."""

import inspect
import warnings

import keras
from keras import ops

from keras_san import normalizers
from keras_san.diagnostics import inert_normalizations
from keras_san.geometry import CONVOLUTIONS, kernels_of
from keras_san.kernels import find_kernels
from keras_san.layers import (
    SANConv2D,
    SANDense,
    SANWrapper,
    flatten_layers,
)
from keras_san.padding import call_circular

_WRAPPERS = (SANWrapper, keras.layers.SpectralNormalization)

# Layers whose weights of several axes are not kernels.
_WITHOUT_KERNELS = (
    keras.layers.GroupNormalization,
    keras.layers.LayerNormalization,
    keras.layers.PReLU,
)


def normalize(model, normalizer="san", padding=None, only=None, verbose=True):
    """Normalizes the kernels of a model that exists.

    Every layer that `SANWrapper` can wrap becomes a `SANWrapper` of the same
    name, with the plain layer as its attribute `layer`. Layers of `keras_san`
    get the new normalizer, and `keras.layers.SpectralNormalization` is taken
    off (its layer has the divided kernel: training overwrites the raw one).
    Weights, dtype policies and what is frozen stay as they are. A compiled
    model is compiled again, with a new optimizer.

    A warning names the kernels that are left as they are, because they are
    inside of another layer (a recurrent or attention layer, or one of your
    own) or LoRA is enabled, and those whose normalization does nothing,
    because a batch, layer, instance, group or RMS normalization follows.

    Files with the weights of the plain model fit that model only: load them
    there, and normalize it afterwards.

    Args:
        model: A built `Sequential` or functional `keras.Model`, which may hold
            others, or a single built layer. It is left as it is.
        normalizer: What `keras_san.normalizers.get` takes. `None` takes the
            normalization off and keeps the raw kernels, where `strip` keeps
            the divided ones.
        padding: `None`, or `"circular"` for convolutions with `"same"`
            padding; others keep theirs.
        only: `None` for all layers, or those to normalize: a layer's name, a
            type (of a layer, or of what it wraps), a function from a layer to
            a boolean, or a list of these.
        verbose: Boolean, whether to print a table of all kernels, with their
            norms before the division, or why they are left as they are.

    Returns:
        A new model, or layer.

    Raises:
        ValueError: if the model is not built or is a subclass with a `call` of
            its own, if a layer is quantized, if `only` fits no layer, if there
            is nothing to normalize, and for what `SANWrapper` refuses.

    Example:
    ```python
    critic = keras_san.normalize(critic, "sn")
    ```
    """
    normalizer = normalizers.get(normalizer)
    if padding not in (None, "circular"):
        raise ValueError(
            '`padding` must be "circular", or None to leave it as it is. '
            f"Received: padding={padding!r}"
        )
    _check_model(model)
    layers = _layers_of(model)
    for layer in layers:
        _check_quantization(layer)
    chosen = {id(layer) for layer in _choose(layers, only)}
    if not chosen and normalizer is not None:
        raise ValueError(
            "There is nothing to normalize: no layer has a kernel that can "
            f"be. Received: model={model}"
        )

    def convert(layer):
        if id(layer) in chosen:
            return _normalize_layer(layer, normalizer, padding)

    normalized, made = _rebuild(model, convert)
    inert = _inert_layers(normalized) if normalizer is not None else []
    rows, left_out = [], []
    for layer in layers:
        if id(layer) in chosen:
            new = made[id(layer)]
            if new in inert:
                note = "no effect: another normalization follows"
            else:
                note = _padding_note(layer, new, padding)
            rows += _rows(layer, new, note)
        else:
            found = _rows_left_out(layer, _obstacle(layer) or "not in `only`")
            rows += found
            if only is None:
                left_out += [row for row in found if row[3] is None]
    if verbose:
        _print_table(rows)
    if inert:
        names = ", ".join(layer.name for layer in inert)
        warnings.warn(
            f"The normalization of {names} does nothing: the one that follows "
            "it cancels any factor. Remove either of them.",
            stacklevel=2,
        )
    if left_out and normalizer is not None:
        names = ", ".join(f"{name} ({note})" for name, *_, note in left_out)
        warnings.warn(
            f"These kernels are not normalized: {names}. Choose layers by "
            "`only`, and there is no warning.",
            stacklevel=2,
        )
    return normalized


def strip(model):
    """Converts a model to plain Keras layers that compute the same.

    Kernels are divided by their norms once and for all. A circular layer
    becomes a small `keras.Model` of its own, which pads and convolves; if it
    does not know the size of its images, it cannot check that they are at
    least as large as the padding.

    Args:
        model: A built `Sequential` or functional `keras.Model`, or a single
            built layer. It is left as it is.

    Returns:
        A model (or layer) with equal outputs in inference, that can be saved
        and loaded where `keras_san` is not installed.

    Raises:
        ValueError: if the model is not built, is a subclass with a `call` of
            its own, or holds `keras_san` layers inside of custom layers.
    """
    _check_model(model)
    stripped, _ = _rebuild(model, _strip_layer)
    for layer in flatten_layers(stripped):
        if type(layer).__module__.split(".")[0] == __package__:
            raise ValueError(
                "Layers of keras_san inside of custom layers cannot be "
                "replaced. Build the model from plain and keras_san layers. "
                f"Received: model={model.name} with layer {layer.name} (of "
                f"type {type(layer).__name__}) inside of a custom layer"
            )
    return stripped


def _check_model(model):
    if not isinstance(model, keras.layers.Layer):
        raise ValueError(
            "Only a model or layer of Keras 3 can be converted. "
            f"Received: model={model} (of type {type(model).__module__}."
            f"{type(model).__name__})"
        )
    if not model.built:
        raise ValueError(
            "Only a built model has kernels to divide. Call it on data "
            f"first. Received: model={model} (not built)"
        )
    if isinstance(model, keras.Model) and not _is_graph(model):
        parts = ", ".join(
            f"{layer.name} ({type(layer).__name__})" for layer in model.layers
        )
        raise ValueError(
            "Only `Sequential` and functional models can be rebuilt from "
            "their layers; one with a `call` of its own cannot. Convert the "
            "models that it holds one by one (of a GAN: "
            "`keras_san.normalize(gan.critic)`, and make a GAN of the "
            "result), or wrap layers in its constructor: `self.conv = "
            f"keras_san.SANWrapper(...)`. Received: model={model}, of {parts}"
        )


def _is_graph(layer):
    return isinstance(layer, keras.Sequential) or (
        isinstance(layer, keras.Model) and isinstance(layer, keras.Function)
    )


def _layers_of(model):
    """The layers of a model and of the models in it, each of them once."""
    if not _is_graph(model):
        return [model]
    found = {}
    for layer in model.layers:
        found |= {id(inner): inner for inner in _layers_of(layer)}
    return list(found.values())


def _holder(layer):
    """The layer that has the kernel as an attribute."""
    return layer.layer if isinstance(layer, _WRAPPERS) else layer


def _choose(layers, only):
    able = [layer for layer in layers if not _obstacle(layer)]
    if only is None:
        return able
    rules = only if isinstance(only, (list, tuple)) else [only]
    names = [layer.name for layer in able]

    def fits(layer, rule):
        if isinstance(rule, str):
            return layer.name == rule
        if isinstance(rule, type):
            return isinstance(layer, rule) or isinstance(_holder(layer), rule)
        return rule(layer)

    for rule in rules:
        if not (callable(rule) or rule in names):
            raise ValueError(
                "`only` must be the name of a layer that can be normalized, a "
                "type of layers, a function from a layer to a boolean, or a "
                f"list of these. Received: only={only!r}, while the names are "
                f"{names}"
            )
    chosen = [x for x in able if any(fits(x, rule) for rule in rules)]
    if not chosen:
        raise ValueError(
            "`only` fits no layer that can be normalized. "
            f"Received: only={only!r}, while these layers can be: {names}"
        )
    return chosen


def _obstacle(layer):
    """Why a layer cannot be normalized, or an empty string."""
    holder = _holder(layer)
    if getattr(holder, "lora_enabled", False):
        return "LoRA is enabled"
    if not kernels_of(holder):
        return "no attribute `kernel`"
    _, *others = inspect.signature(holder.call).parameters.values()
    for other in others:
        if other.name != "training" and other.kind != other.VAR_KEYWORD:
            return f"its call takes `{other.name}`"
    return ""


def _rebuild(model, convert):
    """Rebuilds a model, or layer, from its layers.

    Args:
        model: A built model or layer.
        convert: Callable that takes a layer, and returns the one to take its
            place, or `None` for a copy of it.

    Returns:
        `(rebuilt, made)`: the new model, and a dict of the new layers by the
        `id` of the old ones.
    """
    made, copied = {}, []

    def clone(layer):
        new = convert(layer)
        if new is None:
            new = _copy(layer)
            copied.append((layer, new))
        made[id(layer)] = new
        return new

    if _is_graph(model):
        rebuilt = keras.models.clone_model(
            model, clone_function=clone, recursive=True
        )
    else:
        rebuilt = clone(model)
    for layer, new in copied:
        if not isinstance(layer, keras.layers.Layer):
            continue
        # Those of a model are built when it is made, by calling them.
        if not new.built:
            new.build_from_config(layer.get_build_config())
        new.set_weights(layer.get_weights())
        if isinstance(layer, keras.layers.Normalization):
            new.finalize_state()
    _copy_trainable(model, rebuilt)
    return rebuilt, made


def _copy(layer):
    """A layer, or an operation, of the same settings, not built."""
    config = layer.get_config()
    if isinstance(layer, keras.layers.Lambda):
        # Keras refuses to make one from a configuration, which may come from
        # a stranger.
        return keras.layers.Lambda(
            layer.function,
            layer._output_shape,
            layer.mask,
            layer.arguments,
            **{name: config[name] for name in ("name", "trainable", "dtype")},
        )
    return type(layer).from_config(config)


def _copy_trainable(layer, new):
    # From outside to inside, because a layer passes its own on.
    if new.trainable != layer.trainable:
        new.trainable = layer.trainable
    pairs = ()
    if _is_graph(layer):
        pairs = zip(layer.layers, new.layers)
    elif type(layer) is type(new):
        pairs = zip(layer._layers, new._layers)
    for pair in pairs:
        _copy_trainable(*pair)


def _check_quantization(layer):
    mode = _holder(layer).quantization_mode
    if mode is not None:
        raise ValueError(
            "A quantized kernel cannot be normalized. Quantize what `strip` "
            "makes of the normalized model. "
            f"Received: layer {layer.name}, quantized to {mode}"
        )


def _normalize_layer(layer, normalizer, padding):
    holder = _holder(layer)
    circular = getattr(layer, "circular", False) or (
        padding == "circular" and _can_be_circular(holder)
    )
    settings = {"normalizer": normalizer}
    if circular:
        settings["padding"] = "circular"
    shape = (layer.get_build_config() or {}).get("input_shape")
    if isinstance(layer, (SANConv2D, SANDense)) and any(settings.values()):
        new = type(layer).from_config({**layer.get_config(), **settings})
        # So that the norm is measured of this kernel.
        initializer = new.kernel_initializer
        new.kernel_initializer = lambda shape, dtype: _values(layer.kernel)
        new.build(shape)
        new.kernel_initializer = initializer
        if layer.use_bias:
            new.bias.assign(_values(layer.bias))
        return new
    plain = _plain_layer(layer)
    plain.build_from_config(holder.get_build_config())
    _copy_weights(layer, plain, {})
    if not any(settings.values()):
        return plain
    new = SANWrapper(
        plain, **settings, name=layer.name, trainable=layer.trainable
    )
    if shape is not None:
        new.build(shape)
    return new


def _can_be_circular(holder):
    return (
        isinstance(holder, CONVOLUTIONS)
        and holder.padding == "same"
        and getattr(holder, "output_padding", None) is None
    )


class _FindInert(keras.Operation):
    """Finds normalizations that do nothing, without any data."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def call(self, inputs):
        self.names = inert_normalizations(self.model, inputs)
        return inputs


def _inert_layers(model):
    """The layers whose normalization does nothing."""
    if not _is_graph(model):
        return []
    find = _FindInert(model)
    sequential = isinstance(model, keras.Sequential)
    find.compute_output_spec(model.inputs[0] if sequential else model.input)
    named = {kernel.name: kernel.layer for kernel in find_kernels(model)}
    return [named[name] for name in dict.fromkeys(find.names)]


# The table: lines of layer, its type, shape of the kernel, normalizer, norm,
# and a remark.


def _rows(layer, new, note):
    """The lines of a layer that has been converted to `new`."""
    holder = _holder(layer)
    kernels = kernels_of(holder)
    normalizations = getattr(new, "normalizations", []) or [None] * len(kernels)
    rows = []
    for (attribute, kernel), normalization in zip(
        kernels.items(), normalizations
    ):
        name = layer.name if len(kernels) == 1 else f"{layer.name}/{attribute}"
        rows.append((name, holder, kernel, normalization, note))
    return rows


def _rows_left_out(layer, note):
    """The lines of a layer that is left as it is."""
    parts = flatten_layers(layer)
    normalizations = {
        id(normalization.get_kernel()): normalization
        for part in parts
        for normalization in getattr(part, "normalizations", [])
    }
    found = [
        (part, variable)
        for part in parts
        if not isinstance(part, _WITHOUT_KERNELS)
        for variable in part._trainable_variables
        if len(variable.shape) > 1 and "bias" not in variable.name
    ]
    rows = []
    for part, variable in found:
        name = layer.name if len(found) == 1 else variable.path
        if part not in (layer, _holder(layer)):
            note = f"inside of {type(layer).__name__}"
        normalization = normalizations.get(id(variable))
        rows.append((name, part, variable, normalization, note))
    return rows


def _padding_note(layer, new, padding):
    padded = getattr(new, "circular", False)
    if padded and not getattr(layer, "circular", False):
        return "circular padding"
    holder = _holder(layer)
    if padding and not padded and isinstance(holder, CONVOLUTIONS):
        return f'padding stays "{holder.padding}"'
    return ""


def _print_table(rows):
    table = [("Layer", "Kernel", "Normalizer", "Norm before", "")]
    for name, holder, kernel, normalization, note in rows:
        by, norm = "-", ""
        if normalization is not None:
            by = type(normalization.normalizer).__name__
            norm = f"{_norm_before(normalization, kernel):.4g}"
        shape = " x ".join(map(str, kernel.shape))
        kind = type(holder).__name__
        table.append((f"{name} ({kind})", shape, by, norm, note))
    widths = [max(map(len, column)) for column in zip(*table)]
    for row in table:
        cells = [cell.ljust(width) for cell, width in zip(row, widths)]
        print("  ".join(cells).rstrip())


def _norm_before(normalization, kernel):
    if normalization.divides:
        return float(normalization.current())
    kernel = ops.stop_gradient(ops.convert_to_tensor(kernel))
    kernel = ops.cast(kernel, "float32")
    norm = normalization.rule.norm(kernel, normalization.geometry)
    return float(norm) * normalization.gain()


def _strip_layer(layer):
    if not isinstance(layer, (SANConv2D, SANDense, SANWrapper)):
        return None
    plain = _plain_layer(layer)
    divided = {
        id(normalization.get_kernel()): normalization(training=False)
        for normalization in layer.normalizations
        if normalization.divides
    }
    input_shape = layer.get_build_config()["input_shape"]
    if not layer.circular:
        plain.build(input_shape)
        _copy_weights(layer, plain, divided)
        return plain
    inputs = keras.Input(input_shape[1:], dtype=layer.compute_dtype)
    outputs = call_circular(plain, plain, inputs)
    _copy_weights(layer, plain, divided)
    return keras.Model(inputs, outputs, name=layer.name)


def _plain_layer(layer):
    """A plain layer, not built, under the name of a normalized one."""
    config = _holder(layer).get_config()
    kind = type(_holder(layer))
    config |= {"name": layer.name, "trainable": layer.trainable}
    if isinstance(layer, (SANConv2D, SANDense)):
        del config["normalizer"]
        kind = keras.layers.Dense
        if isinstance(layer, SANConv2D):
            kind = keras.layers.Conv2D
    if getattr(layer, "circular", False):
        config["padding"] = "valid"
    return kind.from_config(config)


def _copy_weights(layer, plain, divided):
    """Copies the weights of a layer, with some in another form.

    Args:
        layer: A layer with a kernel, normalized or not.
        plain: A built plain layer.
        divided: Dict of tensors by the `id` of the kernel they stand for.
    """
    state = {
        id(weight)
        for normalization in getattr(layer, "normalizations", [])
        for weight in normalization.weights
    }
    weights = [w for w in _holder(layer).weights if id(w) not in state]
    for weight, target in zip(weights, plain.weights):
        value = divided.get(id(weight), weight)
        # A copy: JAX would share, and then donate, one buffer.
        target.assign(_values(value))
        target.trainable = weight.trainable


def _values(x):
    return ops.convert_to_numpy(ops.convert_to_tensor(x))
