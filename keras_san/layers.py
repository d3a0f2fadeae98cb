"""Layers that keep their kernel divided by its norm."""

import contextlib
import functools
import inspect

import keras
from keras import ops

from keras_san import normalizers
from keras_san.checks import check_keras_3
from keras_san.differentiation import InheritingScope
from keras_san.geometry import (
    CONVOLUTIONS,
    DEPTHWISE,
    KERNELS,
    LINEAR,
    geometry_of,
    kernels_of,
)
from keras_san.kernel_normalization import (
    KernelNormalization,
    LengthNormalization,
    refuse_quantization,
)
from keras_san.padding import (
    call_circular,
    circular_output_shape,
    padded_shape,
)


def flatten_layers(model):
    """All layers of a model at any depth, the model itself included."""
    check_keras_3(model)
    return model._flatten_layers()


def measure_norms(model):
    """Measures the norms of all kernels anew, exactly, as when built.

    For kernels that you have assigned: until the next training call that
    measures, they are divided by the norms of those before, and the first
    power iteration starts from their singular vectors. With `form="project"`
    the kernels are projected. An adaptive gain stays. Norms that are loaded
    with their kernels, by `load_weights` or `set_weights`, are right already.

    Args:
        model: A built Keras model, or a layer of `keras_san`.

    Raises:
        ValueError: if a kernel is not finite.

    Example:
    ```python
    layer.kernel.assign(kernel)
    keras_san.measure_norms(layer)
    ```
    """
    for layer in flatten_layers(model):
        if isinstance(layer, KernelNormalization):
            layer.measure_exactly()


def _build_normalized(owner, layer, build, input_shape):
    """Builds a layer and the normalizations of its kernels.

    Args:
        owner: The layer whose `normalizer` is applied.
        layer: The layer that holds the kernels, `owner` or its inner layer.
        build: Callable that builds `layer`.
        input_shape: Tuple.

    Returns:
        A list of `KernelNormalization`.
    """
    normalizer = owner.normalizer
    if layer.quantization_mode is not None:
        raise ValueError(
            "A quantized layer cannot be wrapped, nor its kernel normalized: "
            "set the dtype policy to that of floats. Received: layer "
            f"{owner.name} with dtype policy '{layer.dtype_policy.name}'"
        )
    if normalizer is None:
        build(input_shape)
        return []

    kind = KernelNormalization if normalizer.fixes_norm else LengthNormalization

    def make_normalization(name, rank):
        return kind(
            normalizer,
            geometry_of(layer, name, rank, input_shape, owner.circular),
            lambda: getattr(layer, name),
            owner.name,
            name,
        )

    projects = normalizer.form == "project"
    already_built = layer.built
    with contextlib.ExitStack() as stack:
        if projects and not already_built:
            for name in KERNELS:
                stack.enter_context(
                    _projected_initializer(layer, name, make_normalization)
                )
        build(input_shape)
    normalizations = []
    for name, kernel in kernels_of(layer).items():
        normalization = make_normalization(name, len(kernel.shape))
        normalization.build()
        if projects:
            if already_built:
                raw = ops.convert_to_tensor(kernel)
                kernel.assign(normalization.project(raw))
            kernel.constraint = _Projection(normalization, kernel.constraint)
        normalizations.append(normalization)
    if not normalizations:
        raise ValueError(_no_kernel_message(layer))
    return normalizations


class _Projection(keras.constraints.Constraint):
    """The user's constraint, if there is one, and then the projection."""

    def __init__(self, normalization, first):
        self.normalization = normalization
        self.first = first

    def __call__(self, kernel):
        if self.first:
            kernel = self.first(kernel)
        return self.normalization.project(kernel)


@contextlib.contextmanager
def _projected_initializer(layer, name, make_normalization):
    """A context in which a layer is built with a projected kernel."""
    attribute = f"{name.removesuffix('_kernel')}_initializer"
    if isinstance(layer, DEPTHWISE):
        attribute = "depthwise_initializer"
    initializer = getattr(layer, attribute, None)
    if initializer is None:
        yield
        return

    def projected(shape, dtype=None):
        kernel = initializer(shape, dtype=dtype)
        return make_normalization(name, len(shape)).project(kernel)

    setattr(layer, attribute, projected)
    try:
        yield
    finally:
        setattr(layer, attribute, initializer)


def _call_divided(owner, layer, call, inputs, training):
    """Runs `call(inputs)` with divided kernels in place of the raw ones."""
    # Not the trainability of the normalizations themselves: they are made
    # when the layer is built, and it may have been frozen before.
    training = bool(training) and owner.trainable and layer.trainable
    for normalization in owner.normalizations:
        if not isinstance(normalization.get_kernel(), keras.Variable):
            raise ValueError(
                "LoRA adds a term to the kernel that would not be normalized. "
                "Use `strip` first, and enable LoRA on the plain layer. "
                f"Received: enable_lora() on layer {owner.name}"
            )
    divided = {
        id(normalization.get_kernel()): normalization(
            training=training, inputs=inputs if normalization.adapts else None
        )
        for normalization in owner.normalizations
        if normalization.divides
    }
    if not divided:
        return call(inputs)
    mapping = [(v, divided.get(id(v), v.value)) for v in layer.variables]
    with InheritingScope(mapping, collect_losses=True) as scope:
        before = [(v, scope.get_current_value(v)) for v in layer.variables]
        outputs = call(inputs)
    # All else that the layer has assigned (a random state, say) and its losses
    # are to last. New tensors, because Keras knows losses by identity and
    # would count those of a wrapped layer twice.
    for loss in scope.losses:
        owner.add_loss(loss * 1.0)
    for variable, value in before:
        new = scope.get_current_value(variable)
        if new is not value:
            variable.assign(new)
    return outputs


def _no_kernel_message(layer):
    return (
        "Only layers with a `kernel`, a `depthwise_kernel` and "
        "`pointwise_kernel`, or `embeddings` can be normalized: "
        "convolutions, Dense, EinsumDense, Embedding and custom layers with "
        f"such an attribute. Received: layer={layer} (of type "
        f"{type(layer).__name__})"
    )


class _Normalized:
    """A mixin for Keras layers that normalizes their own kernel."""

    circular = False

    def build(self, input_shape):
        self.normalizations = _build_normalized(
            self, self, super().build, input_shape
        )

    def call(self, inputs, training=None):
        call = super().call
        if self.circular:
            call = functools.partial(call_circular, self, call)
        return _call_divided(self, self, call, inputs, training)

    def compute_output_shape(self, input_shape):
        compute = super().compute_output_shape
        if self.circular:
            return circular_output_shape(self, compute, input_shape)
        return compute(input_shape)

    def quantize(self, mode=None, **kwargs):
        refuse_quantization(self.name, mode)

    def get_config(self):
        return {**super().get_config(), **_config(self)}


def _config(owner):
    config = {"normalizer": None}
    if owner.normalizer is not None:
        config["normalizer"] = keras.saving.serialize_keras_object(
            owner.normalizer
        )
    if owner.circular:
        config["padding"] = "circular"
    return config


@keras.saving.register_keras_serializable("keras_san")
class SANConv2D(_Normalized, keras.layers.Conv2D):
    """A `keras.layers.Conv2D` that keeps its kernel normalized.

    The norm is measured when the layer is built, and in training. Once you
    have assigned a kernel, call `keras_san.measure_norms(layer)`.

    Args:
        filters: Int, the number of output channels.
        kernel_size: Int or pair of ints.
        strides: Int or pair of ints.
        padding: `"circular"` (the image continues periodically; the output
            has the size that `"same"` gives, see
            `keras_san.padding.circular_amounts`), `"same"` or `"valid"`, in
            upper or lower case. The norm is exact with `"circular"`, and an
            upper bound with the others.
        *args: As those of `keras.layers.Conv2D`.
        normalizer: What `keras_san.normalizers.get` takes: a name such as
            `"san"`, a normalizer, or `None`.
        **kwargs: As those of `keras.layers.Conv2D`.

    Input shape:
        `(batch, height, width, channels)`, floats.

    Output shape:
        `(batch, ceil(height / stride), ceil(width / stride), filters)` with
        `"circular"` and `"same"` padding.

    Raises:
        ValueError: for an unknown normalizer or padding; when built, for a
            circular padding wider than the image.

    Example:
    ```python
    layer = keras_san.SANConv2D(64, 3, strides=2, activation="relu")
    features = layer(images)  # (8, 32, 32, 3) -> (8, 16, 16, 64)
    ```

    Reference:
        [Kligvasser and Michaeli, 2021](https://arxiv.org/abs/2103.02458).
    """

    def __init__(
        self,
        filters,
        kernel_size,
        strides=(1, 1),
        padding="circular",
        *args,
        normalizer="san",
        **kwargs,
    ):
        if _lower(padding) not in ("circular", "same", "valid"):
            raise ValueError(
                '`padding` must be "circular", "same" or "valid". '
                f"Received: padding={padding!r}"
            )
        circular = _lower(padding) == "circular"
        super().__init__(
            filters,
            kernel_size,
            strides,
            "valid" if circular else padding,
            *args,
            **kwargs,
        )
        self.circular = circular
        self.normalizer = normalizers.get(normalizer)


@keras.saving.register_keras_serializable("keras_san")
class SANDense(_Normalized, keras.layers.Dense):
    """A `keras.layers.Dense` divided by its top singular value.

    The norm is measured when the layer is built, and in training. Once you
    have assigned a kernel, call `keras_san.measure_norms(layer)`.

    Args:
        units: Int, the size of the output.
        *args: As those of `keras.layers.Dense`.
        normalizer: What `keras_san.normalizers.get` takes. For dense layers
            all normalizers but `"weight"` measure the top singular value,
            tracked by one power iteration per training step from a converged
            start.
        **kwargs: As those of `keras.layers.Dense`.

    Input shape:
        `(batch, ..., inputs)`, floats.

    Output shape:
        `(batch, ..., units)`.

    Raises:
        ValueError: for an unknown normalizer.

    Example:
    ```python
    logits = keras_san.SANDense(1)(features)  # (8, 512) -> (8, 1)
    ```

    Reference:
        [Kligvasser and Michaeli, 2021](https://arxiv.org/abs/2103.02458),
        section "Efficiency", last sentence of the first paragraph.
    """

    def __init__(self, units, *args, normalizer="san", **kwargs):
        super().__init__(units, *args, **kwargs)
        self.normalizer = normalizers.get(normalizer)


@keras.saving.register_keras_serializable("keras_san")
class SANWrapper(keras.layers.Wrapper):
    """Keeps the kernel of any layer normalized.

    The norm is measured when the layer is built, and in training. Once you
    have assigned a kernel, call `keras_san.measure_norms(layer)`. Keras'
    `quantize` is refused, also of `layer`: `strip` comes first.

    Args:
        layer: A layer with a `kernel` (convolutions of all kinds, `Dense`,
            `EinsumDense`, custom layers), a `depthwise_kernel` and
            `pointwise_kernel` (separable convolutions), or `embeddings`. Of
            convolutions and `EinsumDense` the meaning of each axis is known;
            any other kernel counts as a matrix `(..., outputs)`.
        normalizer: What `keras_san.normalizers.get` takes: a name such as
            `"san"`, a normalizer, or `None`.
        padding: `None`, or for convolutions `"circular"`, which replaces the
            layer's own padding. Transposed convolutions then are the
            transpose of the strided circular convolution.
        **kwargs: As those of `keras.layers.Layer`. A `dtype` is set on
            `layer`, too, which computes in it (Keras' own wrappers leave it
            as it is, and cast around it); without one the wrapper has that of
            `layer`.

    Input and output shape:
        Those of `layer`; with `padding="circular"` those that it has with
        `padding="same"`.

    Raises:
        ValueError: for an unknown normalizer or padding, for a layer without
            a kernel (when built, if it cannot be known before), for
            `padding="circular"` on anything but a convolution, for a `dtype`
            in which the weights of a built layer are not; when built, for a
            circular padding wider than the image, and for a quantized layer.

    Example:
    ```python
    layer = keras_san.SANWrapper(
        keras.layers.Conv1D(16, 5, padding="same"), normalizer="sn"
    )
    features = layer(signals)  # (8, 100, 4) -> (8, 100, 16)
    ```

    Reference:
        [Kligvasser and Michaeli, 2021](https://arxiv.org/abs/2103.02458).
    """

    def __init__(self, layer, normalizer="san", padding=None, **kwargs):
        check_keras_3(layer)
        if not isinstance(layer, keras.layers.Layer) or _has_no_kernel(layer):
            raise ValueError(_no_kernel_message(layer))
        if isinstance(layer, (_Normalized, SANWrapper)):
            raise ValueError(
                "The layer normalizes its kernel itself. Wrap a plain Keras "
                f"layer instead. Received: layer={layer}"
            )
        if _lower(padding) not in (None, "circular"):
            raise ValueError(
                '`padding` must be "circular", or None for the padding of '
                f"the wrapped layer. Received: padding={padding!r}"
            )
        if padding is not None:
            _check_circular(layer)
        _set_policy(layer, kwargs.pop("dtype", None))
        kwargs.setdefault("activity_regularizer", layer.activity_regularizer)
        # Not `san_...`: `SANConv2D` takes such names.
        kwargs.setdefault("name", f"{layer.name}_san")
        super().__init__(
            layer, dtype=layer.dtype_policy, autocast=layer.autocast, **kwargs
        )
        self.circular = padding is not None
        if self.circular:
            layer.padding = "valid"
        # Keras quantizes inner layers by themselves, and would call them so.
        layer.quantize = functools.partial(refuse_quantization, self.name)
        self.normalizer = normalizers.get(normalizer)
        self.supports_masking = layer.supports_masking
        self._pass_training = (
            "training" in inspect.signature(layer.call).parameters
        )

    def build(self, input_shape):
        def build(shape):
            # Keras checks that the kernel fits into the image.
            if self.circular:
                shape = padded_shape(self.layer, shape)
            if not self.layer.built:
                self.layer.build(shape)

        self.normalizations = _build_normalized(
            self, self.layer, build, input_shape
        )
        self.input_spec = self.layer.input_spec

    def call(self, inputs, training=None):
        kwargs = {"training": training} if self._pass_training else {}

        # Not `self.layer(inputs)`: what Keras does around a call (losses of
        # the activity, masks, casts) this wrapper's own call has done, and
        # inside of the scope of the divided kernel losses would be lost.
        def call(inputs):
            return self.layer.call(inputs, **kwargs)

        if self.circular:
            call = functools.partial(call_circular, self.layer, call)
        return _call_divided(self, self.layer, call, inputs, training)

    def compute_output_shape(self, input_shape):
        compute = self.layer.compute_output_shape
        if self.circular:
            return circular_output_shape(self.layer, compute, input_shape)
        return compute(input_shape)

    def compute_mask(self, inputs, previous_mask=None):
        return self.layer.compute_mask(inputs, previous_mask)

    def quantize(self, mode=None, **kwargs):
        refuse_quantization(self.name, mode)

    # The weights are those of `layer`; this tells a file of plain layers.
    def save_own_variables(self, store):
        store["normalized"] = ops.ones(())

    def load_own_variables(self, store):
        if "normalized" not in store.keys():
            raise ValueError(
                "The file has no normalized layer in this place. If it holds "
                "the weights of a plain model, load them into a plain model, "
                "and normalize that, as in `keras_san.normalize(plain)`. "
                f"Received: weights for layer {self.name}"
            )

    def get_config(self):
        return {**super().get_config(), **_config(self)}


def _has_no_kernel(layer):
    """`True` if even an unbuilt layer certainly has no kernel."""
    if any(hasattr(layer, name) for name in KERNELS):
        return False
    if isinstance(layer, (*LINEAR, keras.layers.Embedding)):
        return False
    return layer.built or type(layer).__module__.startswith("keras.")


def _set_policy(layer, dtype):
    """Sets the dtype policy of a layer that may have been built."""
    if dtype is None:
        return
    policy = keras.dtype_policies.get(dtype)
    if layer.built and policy.variable_dtype != layer.variable_dtype:
        raise ValueError(
            "The layer has been built, and its weights keep their dtype: give "
            f"`dtype` to the layer itself. Received: dtype={dtype}, while the "
            f"layer's weights are {layer.variable_dtype}"
        )
    if policy != layer.dtype_policy:
        layer.dtype_policy = policy


def _lower(padding):
    """The padding in lower case, as Keras reads it."""
    return padding.lower() if isinstance(padding, str) else padding


def _check_circular(layer):
    if not isinstance(layer, CONVOLUTIONS):
        raise ValueError(
            'padding="circular" is for convolutions: other layers have no '
            "borders to pad. Leave it out. Received: "
            f"layer={layer} (of type {type(layer).__name__})"
        )
    if layer.padding == "causal":
        raise ValueError(
            'padding="circular" would show a causal convolution its future. '
            "Wrap a layer with another padding. Received: "
            f"layer={layer} with padding={layer.padding!r}"
        )
    if getattr(layer, "output_padding", None) is not None:
        raise ValueError(
            'With padding="circular" the size of the output is the input\'s '
            "times the stride. Leave out `output_padding` of the wrapped "
            f"layer. Received: output_padding={layer.output_padding}"
        )
