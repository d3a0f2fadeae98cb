"""The layers that divide a kernel by its norm, or project it."""

import contextlib
import math
import threading

import keras
from keras import ops

from keras_san.checks import require
from keras_san.geometry import Matrix
from keras_san.normalizers import Spectral

_hold = threading.local()


@contextlib.contextmanager
def hold_norms():
    """A context in which no norm is measured anew.

    For training steps that call one critic several times: measure at the
    first call, and hold the norms for the others. Use it inside of a compiled
    function, not around it: it acts where Python runs. Other threads are not
    affected.

    Example:
    ```python
    real_logits = critic(real, training=True)
    with keras_san.hold_norms():
        fake_logits = critic(fake, training=True)
    ```
    """
    before = norms_held()
    _hold.active = True
    try:
        yield
    finally:
        _hold.active = before


def norms_held():
    """`True` inside of `hold_norms()`."""
    return getattr(_hold, "active", False)


class KernelNormalization(keras.layers.Layer):
    """Divides, or projects, one kernel of one layer, and keeps the state.

    It is a layer of its own, so that Keras saves, restores and freezes its
    state as that of any layer, and so that with `autocast=False` it reads the
    kernel in full precision under a mixed dtype policy.

    Args:
        normalizer: A `keras_san.normalizers.Normalizer`.
        geometry: A `Matrix` or `Convolution`.
        get_kernel: Callable that returns the kernel, a `keras.Variable` of
            another layer. (Were it an argument itself, Keras would count it
            as a weight of this layer, too.)
        owner: String, the name of that layer.
        kernel_name: String, the attribute of that layer.
    """

    def __init__(self, normalizer, geometry, get_kernel, owner, kernel_name):
        # Not the kernel's own name: a path would lead to a weight and to a
        # layer, and neither `.h5` files nor `get_state_tree` allow that.
        name = f"{kernel_name}_normalization"
        super().__init__(name=name, dtype="float32", autocast=False)
        self.normalizer = normalizer
        self.rule = normalizer.for_kernel(geometry)
        self.geometry = geometry
        self.get_kernel = get_kernel
        self.owner = owner
        self.kernel_name = kernel_name
        self.seed_generator = None
        self.vectors = []
        self.divides = normalizer.form == "divide"
        self.adapts = self.rule.adapts(geometry)

    def build(self):
        if not self.divides:
            return
        kernel_shape = self.get_kernel().shape

        def draw(seed):
            return self.rule.draw(kernel_shape, self.geometry, seed)

        def kernel():
            return ops.cast(self._read_kernel(), "float32")

        def start():
            return self.rule.start(kernel(), self.geometry)

        def first_norm(shape, dtype):
            return self.rule.norm(kernel(), self.geometry, draw(seed=0))

        # Initializers, not values: Keras may put them off until the kernel
        # itself has got its value.
        self.norm = self._add_state("norm", (), first_norm)
        shapes = self.rule.state_shapes(kernel(), self.geometry)
        for index, shape in enumerate(shapes):
            self.vectors.append(
                self._add_state(
                    f"vectors_{index}",
                    shape,
                    lambda shape, dtype, index=index: start()[index],
                )
            )
        self.counter = self._add_state("counter", (), "zeros", "int32")
        if self.adapts:
            self.channels = self._add_state("channels", (), "zeros")
            self.adaptive_gain = self._add_state(
                "gain",
                (),
                keras.initializers.Constant(
                    self.rule.gain_for(kernel_shape, self.geometry)
                ),
            )
        if draw(seed=0) is not None:
            self.seed_generator = keras.random.SeedGenerator()

    def _add_state(self, name, shape, initializer, dtype="float32"):
        return self.add_weight(
            name=name,
            shape=shape,
            initializer=initializer,
            dtype=dtype,
            trainable=False,
            autocast=False,
            aggregation="only_first_replica",
        )

    def _read_kernel(self):
        return _wide(self.get_kernel())

    # Not first: what Keras does with the mask of a first tensor is up to the
    # layer that owns the kernel.
    def call(self, training=False, inputs=None):
        raw = self._read_kernel()
        kernel = ops.cast(raw, "float32")
        if training and not norms_held():
            self._measure(ops.stop_gradient(kernel), inputs)
        norm = self.norm.value
        if training and self.rule.differentiable:
            # The value of the norm that was measured, with the gradient of
            # its linearization around the stored vectors.
            linear = self.rule.linearized(kernel, self.geometry, self.vectors)
            norm = norm + (linear - ops.stop_gradient(linear))
        return self.rule.divide(raw, self.geometry, norm, self.gain())

    def _measure(self, kernel, inputs):
        variables = [self.norm, *self.vectors]
        if self.adapts:
            inputs = ops.stop_gradient(inputs)
            variables += [self.channels, self.adaptive_gain]
        before = [variable.value for variable in variables]
        sample = self.rule.draw(
            kernel.shape, self.geometry, self.seed_generator
        )

        def measured():
            state = before[1 : 1 + len(self.vectors)]
            norm, new_state = self.rule.measure(
                kernel, self.geometry, state, sample
            )
            if self.adapts:
                new_state += self.rule.adapt(
                    kernel, self.geometry, norm, inputs, self.channels.value
                )
            return [norm, *new_state]

        if self.rule.update_interval == 1:
            new = measured()
        else:
            count = ops.mod(self.counter.value + 1, self.rule.update_interval)
            self.counter.assign(count)
            new = ops.cond(ops.equal(count, 0), measured, lambda: before)
        self._require_finite(new[0])
        for variable, value in zip(variables, new):
            variable.assign(value)

    def measure_exactly(self):
        """Measures as when it was built, or projects the kernel."""
        kernel = self.get_kernel()
        if not self.divides:
            kernel.assign(self.project(ops.convert_to_tensor(kernel)))
            return
        kernel = ops.cast(self._read_kernel(), "float32")
        sample = self.rule.draw(kernel.shape, self.geometry, seed=0)
        norm = self.rule.norm(kernel, self.geometry, sample)
        self._require_finite(norm)
        self.norm.assign(norm)
        start = self.rule.start(kernel, self.geometry)
        for variable, value in zip(self.vectors, start):
            variable.assign(value)

    def gain(self):
        """The current factor on the norm.

        A Python float, or, if the gain is measured, a float32 scalar. It
        changes only when the norm is measured, too.
        """
        if self.adapts:
            return self.adaptive_gain.value
        return self.rule.gain_for(self.get_kernel().shape, self.geometry)

    def current(self):
        """The norm of the kernel as it is trained, times the gain."""
        if not self.divides:
            kernel = ops.cast(self._read_kernel(), "float32")
            norm = self.rule.norm(kernel, self.geometry)
        else:
            norm = self.norm.value
        return norm * self.gain()

    def neutral(self, kernel):
        """A variable, and the value with which a kernel stays as it is."""
        norm = self.normalizer.scale / float(self.gain())
        return self.norm, ops.convert_to_tensor(norm, "float32")

    def project(self, kernel):
        """The multiple of the kernel that has norm `scale / gain`."""
        wide = _wide(kernel)
        norm = self.rule.norm(ops.cast(wide, "float32"), self.geometry)
        self._require_finite(norm)
        projected = self.rule.divide(wide, self.geometry, norm)
        return ops.cast(projected, kernel.dtype)

    def _require_finite(self, norm):
        require(
            ops.isfinite(norm),
            f"The norm of the {self.kernel_name} of layer {self.owner} is "
            "not finite. Training has diverged (try a smaller learning rate, "
            "and look at the loss and the data of the last steps), or broken "
            "weights were loaded. Received: a kernel with NaN or infinity",
        )

    # Of all layers of a model, Keras quantizes those without layers inside.
    def quantize(self, mode=None, **kwargs):
        refuse_quantization(self.owner, mode)

    def save_own_variables(self, store):
        super().save_own_variables(store)
        if self.seed_generator is not None:
            store["seed"] = self.seed_generator.state

    def load_own_variables(self, store):
        if self.seed_generator is not None:
            self.seed_generator.state.assign(store["seed"])
            store = {key: store[key] for key in store.keys() if key != "seed"}
        super().load_own_variables(store)


def refuse_quantization(owner, mode=None, **kwargs):
    """Raises a `ValueError`: a quantized kernel cannot be divided.

    Args:
        owner: String, the name of the layer that normalizes its kernel.
        mode: String, that of Keras' `quantize`.
        **kwargs: The other arguments of Keras' `quantize`.
    """
    raise ValueError(
        "A kernel that is divided by its norm, or wrapped, cannot be "
        "quantized. Quantize what `keras_san.strip` makes of the model. "
        f"Received: quantize({mode!r}) on layer {owner}"
    )


class LengthNormalization(KernelNormalization):
    """Gives the weights of each output of a kernel a trained length.

    The arguments are those of `KernelNormalization`, the normalizer a
    `WeightNormalization`.
    """

    def build(self):
        kernel = self.get_kernel()
        self.axes = self._input_axes(len(kernel.shape))
        self.broadcast = tuple(
            1 if axis in self.axes else extent
            for axis, extent in enumerate(kernel.shape)
        )

        def first_lengths(shape, dtype):
            norms = ops.sqrt(self._squares(self._read_kernel()))
            return ops.reshape(norms, shape)

        self.lengths = self.add_weight(
            name="lengths",
            shape=(math.prod(self.broadcast),),
            initializer=first_lengths,
            dtype=self._read_kernel().dtype,
            autocast=False,
        )
        # As the kernel, if the layer was frozen before.
        self.trainable = kernel.trainable

    def _input_axes(self, rank):
        """The axes of the weights that one output has."""
        # A table is looked up, not multiplied: it puts out rows.
        if self.kernel_name == "embeddings":
            return tuple(range(1, rank))
        if isinstance(self.geometry, Matrix):
            return self.geometry.inputs
        inputs = rank - 1 if self.geometry.transposed else rank - 2
        taps = tuple(range(rank - 2))
        return taps if self.geometry.depthwise else (*taps, inputs)

    def _squares(self, kernel):
        return ops.sum(ops.square(kernel), self.axes, keepdims=True)

    def _norms(self, kernel):
        """The norms to divide by: one for zeros, whose root has no slope."""
        squares = self._squares(kernel)
        return ops.sqrt(ops.where(squares == 0.0, 1.0, squares))

    def call(self, training=False, inputs=None):
        kernel = self._read_kernel()
        lengths = ops.reshape(self.lengths.value, self.broadcast)
        return kernel * (lengths / self._norms(kernel))

    def measure_exactly(self):
        """Does nothing: lengths are trained, not measured."""

    def current(self):
        """The top singular value of the kernel that the layer runs with."""
        rule = Spectral().for_kernel(self.geometry)
        return rule.norm(ops.cast(self(), "float32"), self.geometry)

    def neutral(self, kernel):
        norms = self._norms(ops.cast(kernel, self.lengths.dtype))
        return self.lengths, ops.reshape(norms, (-1,))


def _wide(kernel):
    """The kernel in the precision to divide it in: at least float32."""
    kernel = ops.convert_to_tensor(kernel)
    if keras.utils.standardize_dtype(kernel.dtype) == "float64":
        return kernel
    return ops.cast(kernel, "float32")
