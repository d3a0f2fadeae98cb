"""Normalizers: which norm a kernel is divided by, in which form, how often.

A normalizer is a set of settings, serializable as a Keras initializer is. It
holds no weights: the layer keeps the state between steps, and passes it in and
out.
"""

import numbers

import keras
from keras import ops

from keras_san import norms
from keras_san.checks import check_count, check_positive
from keras_san.geometry import Matrix
from keras_san.numerics import matmul

# The share of an average over measurements that each of them keeps.
_MOMENTUM = 0.99


class Normalizer:
    """The base class of normalizers. Use one of the subclasses.

    A subclass computes, in `norm`, the number that kernels of convolutions
    are divided by. If it tracks top singular values by power iteration, it is
    a `SpectralNormalizer`. Dense kernels are always normalized in this way.

    Args:
        scale: Positive float that the normalized kernel is multiplied by.
        update_interval: Int >= 1, training steps from one measurement of the
            norm to the next. Must be 1 with `form="project"`.
        form: `"divide"` or `"project"`. `"divide"`: the raw kernel is
            trained, and the layer runs with the kernel divided by its norm.
            `"project"`: after each update the optimizer rescales the kernel
            to the norm `scale`; the layer has no state. Only optimizers of
            Keras do so; with any other nothing is normalized.

    Raises:
        ValueError: for a value outside of what is listed above.
    """

    # Whether the gradient sees the norm as a function of the kernel.
    differentiable = False
    # Whether a normalized kernel has the norm `scale`, or trained lengths.
    fixes_norm = True

    def __init__(self, scale=1.0, update_interval=1, form="divide"):
        check_positive("scale", scale)
        if not isinstance(update_interval, numbers.Integral) or (
            update_interval < 1
        ):
            raise ValueError(
                "`update_interval` must be an int >= 1, the training steps "
                "from one measurement of the norm to the next. "
                f"Received: update_interval={update_interval!r}"
            )
        if form not in ("divide", "project"):
            raise ValueError(
                '`form` must be "divide" (the norm divides the kernel in the '
                'forward pass) or "project" (the optimizer keeps the kernel '
                f"normalized). Received: form={form!r}"
            )
        if form == "project" and update_interval > 1:
            raise ValueError(
                'form="project" projects after every update, as a Keras '
                'constraint does; use form="divide" to measure less often. '
                f"Received: update_interval={update_interval}"
            )
        self.scale = scale
        self.update_interval = int(update_interval)
        self.form = form

    def for_kernel(self, geometry):
        """The normalizer of such kernels: for a matrix, always the same."""
        return _Dense(self) if isinstance(geometry, Matrix) else self

    def draw(self, kernel_shape, geometry, seed):
        """The random choice that a measurement needs, or `None`."""
        return None

    def norm(self, kernel, geometry, sample=None):
        """The exact norm, measured without a state, as a float32 scalar."""
        raise NotImplementedError

    def state_shapes(self, kernel, geometry):
        """The shapes of the tensors that `start` returns."""
        return []

    def start(self, kernel, geometry):
        """The first state to measure from, a list of float32 tensors."""
        return []

    def measure(self, kernel, geometry, state, sample=None):
        """The norm, measured from the last state, and the new state."""
        return self.norm(kernel, geometry, sample), []

    def gain_for(self, kernel_shape, geometry):
        """The least factor on the measured norm, a Python float."""
        return 1.0

    def adapts(self, geometry):
        """`True` if the gain is measured, by `adapt`."""
        return False

    def divide(self, kernel, geometry, norm, gain=None):
        """The kernel times `scale`, divided by norm and gain; or zero."""
        if gain is None:
            gain = self.gain_for(kernel.shape, geometry)
        norm = norm * gain
        factor = self.scale / ops.where(norm == 0.0, 1.0, norm)
        return kernel * ops.cast(factor, kernel.dtype)

    def get_config(self):
        return {
            "scale": self.scale,
            "update_interval": self.update_interval,
            "form": self.form,
        }

    @classmethod
    def from_config(cls, config):
        return cls(**config)

    def __repr__(self):
        settings = ", ".join(f"{k}={v!r}" for k, v in self.get_config().items())
        return f"{type(self).__name__}({settings})"


class SpectralNormalizer(Normalizer):
    """A normalizer by top singular values, tracked by power iteration.

    A subclass returns the matrices. The norm is the mean of their top singular
    values, and its gradient is that of the linearization around the singular
    vectors of the last measurement.
    """

    differentiable = True

    def matrices(self, kernel, geometry):
        """The matrices of a kernel, a list of batches.

        Returns:
            A list of tensors `(batch, rows, columns)`, of each of which the
            largest singular value of all its matrices counts.
        """
        raise NotImplementedError

    def norm(self, kernel, geometry, sample=None):
        return _mean(
            map(norms.top_singular_value, self.matrices(kernel, geometry))
        )

    def state_shapes(self, kernel, geometry):
        return [
            (m.shape[0], m.shape[2]) for m in self.matrices(kernel, geometry)
        ]

    def start(self, kernel, geometry):
        """The converged vectors, a tensor `(batch, columns)` per batch."""
        return [
            norms.top_right_vectors(m) for m in self.matrices(kernel, geometry)
        ]

    def measure(self, kernel, geometry, state, sample=None):
        """The norm by one power iteration from `state`, and the new state."""
        tops, new_state = [], []
        for matrices, u in zip(self.matrices(kernel, geometry), state):
            sigma, _, u = norms.power_iteration(matrices, u)
            tops.append(norms.largest(sigma))
            new_state.append(u)
        return _mean(tops), new_state

    def linearized(self, kernel, geometry, state):
        """The norm as a function of the kernel, with `u` and `v` constant."""
        tops = []
        for matrices, u in zip(self.matrices(kernel, geometry), state):
            u = ops.stop_gradient(ops.convert_to_tensor(u))
            v = norms.left_vectors(ops.stop_gradient(matrices), u)
            product = matmul(matrices, u[..., None])[..., 0]
            tops.append(ops.max(ops.sum(v * product, axis=-1)))
        return _mean(tops)


class _Dense(SpectralNormalizer):
    """The normalizer of dense kernels, by their top singular value."""

    def __init__(self, normalizer):
        super().__init__(
            normalizer.scale, normalizer.update_interval, normalizer.form
        )
        self.differentiable = normalizer.differentiable

    def matrices(self, kernel, geometry):
        return [geometry.matrices(kernel)]


def _mean(values):
    values = list(values)
    return sum(values) / len(values)


@keras.saving.register_keras_serializable("keras_san")
class SparsityAware(Normalizer):
    """Sparsity aware normalization, `"san"`.

    Convolutions are divided by the largest gain from one input channel to
    one output channel (Lemma 1), dense layers by their top singular value.
    The gradient takes the norm for a constant, as the authors' code does for
    convolutions (for dense layers theirs has the gradient of `Spectral`). The
    norm is exact with circular padding, and an upper bound with any other.

    Args:
        ratio: Float in (0, 1], the share of a convolution's filters that is
            measured, drawn anew each time. Must be 1 with `form="project"`.
        gain: Positive float that a convolution's norm is multiplied by;
            `"auto"` for Eq. 9, which makes up for `ratio` (1 if it is 1); or
            `"adaptive"` to measure it, see below.
        update_interval: Int >= 1, training steps from one measurement to the
            next.
        scale: Positive float that the normalized kernel is multiplied by.
        form: `"divide"` or `"project"`, see `Normalizer`. In three pairs of
            runs on CIFAR-10 (`results/README.md`) projected critics were
            ahead at first, but not always in the end. The default works with
            any optimizer, `ratio` and `update_interval`. With a Keras
            optimizer, and both of those at 1, try `"project"`.
        sparsity: Int >= 1, the largest number of nonzero input channels of a
            signal. 1 is Lemma 1; more is `norms.sparse_norm`, which takes a
            hundred times as long in wide layers (a larger `update_interval`
            makes up for that).

    The adaptive gain is for layers whose inputs are less sparse than SAN
    assumes (the paper's "Limitations" suggest a factor for such layers). Let
    a layer have `n` input and `m` output channels, let `||W||` be the norm of
    Lemma 1, and `k` the number of channels that `norms.active_channels`
    measures. The output channels for signals of random phases are then, in
    the root mean square, `A` times as large as the largest input channel, with

        A = sqrt(k) ||W||_F / sqrt(m n),        gain = max(1, A / ||W||).

    (If `ratio` is less than 1, Eq. 9 takes the place of the 1.) So the kernel
    is divided by `max(||W||, A)`, which is SAN's norm where signals are sparse.

    `k` is a moving average over the inputs of the training calls that measure
    the norm: it starts with the first of them, and each later one has a weight
    of 1 %. Before the first the gain is 1. In a `keras_san.GAN` these inputs
    come from real images. In a loop of your own that calls a layer several
    times per step, use `hold_norms`, so that the gain does not change in
    between. Inputs that are not finite are ignored.

    Grouped channels are measured group by group. The gain stays 1 for
    depthwise kernels, which read one channel each, for pointwise kernels of
    separable convolutions, whose inputs are not the layer's, and for dense
    layers.

    Raises:
        ValueError: for a value outside of what is listed above, and for
            combinations that do not work: `form="project"`, which keeps no
            state, with `ratio < 1` or `gain="adaptive"`; `sparsity > 1` with
            either of these two.

    Reference:
        [Kligvasser and Michaeli, 2021](https://arxiv.org/abs/2103.02458).
    """

    def __init__(
        self,
        ratio=1.0,
        gain="auto",
        update_interval=1,
        scale=1.0,
        form="divide",
        sparsity=1,
    ):
        super().__init__(scale, update_interval, form)
        norms.check_ratio(ratio)
        check_count("sparsity", sparsity)
        if gain not in ("auto", "adaptive"):
            check_positive("gain", gain, ' (or "auto", or "adaptive")')
        if form == "project" and gain == "adaptive":
            raise ValueError(
                'form="project" keeps no state, and so cannot average over '
                'signals: use form="divide", or another gain. '
                f"Received: gain={gain!r}"
            )
        if form == "project" and ratio < 1.0:
            raise ValueError(
                'form="project" keeps no random state to draw filters with: '
                'use ratio=1.0, or form="divide". '
                f"Received: ratio={ratio}"
            )
        if sparsity > 1 and ratio < 1.0:
            raise ValueError(
                "The norm for signals of several channels needs all filters, "
                "since it sums over them: use ratio=1.0, or sparsity=1. "
                f"Received: sparsity={sparsity}, ratio={ratio}"
            )
        if sparsity > 1 and gain == "adaptive":
            raise ValueError(
                'gain="adaptive" measures how many channels are active, and '
                "`sparsity` sets that number: choose one of them. "
                f"Received: sparsity={sparsity}, gain={gain!r}"
            )
        self.ratio = ratio
        self.gain = gain
        self.sparsity = int(sparsity)

    def draw(self, kernel_shape, geometry, seed):
        return norms.sample_filters(kernel_shape, self.ratio, seed)

    def norm(self, kernel, geometry, sample=None):
        if self.sparsity > 1:
            kernel = geometry.standard(kernel)
            if geometry.transposed:
                kernel = ops.swapaxes(kernel, -1, -2)
            return norms.sparse_norm(
                kernel,
                self.sparsity,
                geometry.spatial_shape,
                geometry.dilation_rate,
            )
        return norms.sparsity_aware_norm(
            kernel,
            geometry.spatial_shape,
            dilation_rate=geometry.dilation_rate,
            sample=sample,
        )

    def gain_for(self, kernel_shape, geometry):
        if self.gain in ("auto", "adaptive"):
            num_filters = geometry.num_filters(kernel_shape)
            return norms.subset_gain(num_filters, self.ratio)
        return self.gain

    def adapts(self, geometry):
        return (
            self.gain == "adaptive"
            and geometry.channels_axis is not None
            and not geometry.depthwise
        )

    def adapt(self, kernel, geometry, norm, inputs, channels):
        """Measures the gain for the inputs of a layer.

        Args:
            kernel: float32 tensor.
            geometry: A `Convolution`.
            norm: float32 scalar, the kernel's norm.
            inputs: Tensor, the layer's inputs.
            channels: float32 scalar, the average number of active channels so
                far, zero before the first measurement.

        Returns:
            `(channels, gain)`: the new average and the gain, float32 scalars.
        """
        found = norms.active_channels(
            inputs, geometry.groups, geometry.channels_axis
        )
        average = _MOMENTUM * channels + (1.0 - _MOMENTUM) * found
        average = ops.where(channels == 0.0, found, average)
        channels = ops.where(ops.isfinite(found), average, channels)
        modulus = norms.rms_modulus(
            kernel, geometry.spatial_shape, geometry.dilation_rate
        )
        gain = ops.sqrt(channels) * modulus / ops.where(norm == 0.0, 1.0, norm)
        return channels, ops.maximum(
            gain, self.gain_for(kernel.shape, geometry)
        )

    def get_config(self):
        return {
            "ratio": self.ratio,
            "gain": self.gain,
            **super().get_config(),
            "sparsity": self.sparsity,
        }


@keras.saving.register_keras_serializable("keras_san")
class Spectral(SpectralNormalizer):
    """Spectral normalization as Miyato et al. define it, `"sn"`.

    The norm is the top singular value of the kernel as a `(fan_in, out)`
    matrix, tracked by one power iteration per measurement from a converged
    start. Gradients flow through the norm, not through its vectors `u` and
    `v`. In the gradient `v` follows from the new `u`, and so is half a step
    further than in Algorithm 1.

    Args:
        scale: Positive float that the normalized kernel is multiplied by.
        update_interval: Int >= 1, training steps from one measurement to the
            next.
        form: `"divide"` or `"project"`, see `Normalizer`.

    Raises:
        ValueError: for a value outside of what is listed above.

    Reference:
        [Miyato et al., 2018](https://arxiv.org/abs/1802.05957), Algorithm 1.
    """

    def matrices(self, kernel, geometry):
        kernel = geometry.standard(kernel)
        if geometry.transposed:
            return [norms.fan_out_matrix(kernel)]
        return [norms.fan_in_matrix(kernel)]


@keras.saving.register_keras_serializable("keras_san")
class BidirectionalSpectral(SpectralNormalizer):
    """Bidirectional spectral normalization, `"bsn"`, and `"bssn"` if scaled.

    The norm is the mean of the top singular values of the `(fan_in, out)`
    and the `(fan_out, in)` matrix, each tracked by a power iteration of its
    own. Both names give a `scale` of 1, the authors' default: the best one
    depends on the data and has to be searched for (they try 0.7 to 4).

    Args:
        scale: Positive float that the normalized kernel is multiplied by.
        update_interval: Int >= 1, training steps from one measurement to the
            next.
        form: `"divide"` or `"project"`, see `Normalizer`.

    Raises:
        ValueError: for a value outside of what is listed above.

    Reference:
        [Lin, Sekar and Fanti, 2021](https://arxiv.org/abs/2009.02773).
    """

    def matrices(self, kernel, geometry):
        kernel = geometry.standard(kernel)
        return [norms.fan_in_matrix(kernel), norms.fan_out_matrix(kernel)]


@keras.saving.register_keras_serializable("keras_san")
class ConvSpectral(SpectralNormalizer):
    """Normalization by the exact operator norm, `"conv_sn"`.

    The norm is that of the convolution with cyclic padding, an upper bound
    with any other (see `keras_san.geometry.Convolution`), tracked by power
    iteration in the Fourier domain, with one vector for each frequency. That
    takes memory for about four times the kernel's channels times the
    frequencies of the image: a yardstick, not a workhorse.

    Args:
        scale: Positive float that the normalized kernel is multiplied by.
        update_interval: Int >= 1, training steps from one measurement to the
            next.
        form: `"divide"` or `"project"`, see `Normalizer`.

    Raises:
        ValueError: for a value outside of what is listed above; when a layer
            is built on images of unknown size, or, with circular padding, on
            images whose size its stride does not divide.

    Reference:
        [Sedghi, Gupta and Long, 2018](https://arxiv.org/abs/1805.10408).
    """

    def matrices(self, kernel, geometry):
        return [
            norms.fourier_blocks(
                geometry.standard(kernel), **self._settings(geometry)
            )
        ]

    def norm(self, kernel, geometry, sample=None):
        return norms.conv_spectral_norm(
            geometry.standard(kernel), **self._settings(geometry)
        )

    def _settings(self, geometry):
        if geometry.spatial_shape is None:
            raise ValueError(
                "The operator norm of a convolution depends on the size of "
                "the image. Give the model a fixed input size, or choose "
                'another normalizer than "conv_sn". Received: images of '
                "unknown size"
            )
        return {
            "spatial_shape": geometry.strided_shape(),
            "strides": geometry.strides,
            "dilation_rate": geometry.dilation_rate,
            "groups": geometry.groups,
        }


@keras.saving.register_keras_serializable("keras_san")
class WeightNormalization(Normalizer):
    """Weight normalization, `"weight"`.

    The weights `v` of each output get a length `g`, which is trained as they
    are: the layer runs with `g v / ||v||`. The length starts as `||v||`, so
    that at first the layer puts out what it does without normalization. The
    gradient is that of both factors. There is nothing to measure, to hold or
    to scale, and so there are no settings.

    The outputs of a convolution are its output channels (of a depthwise one
    its input channels times the multiplier), those of a dense layer its
    units, and those of an embedding its rows. `EinsumDense` has a length for
    each index that appears in the layer's output. Values and gradients are
    those of `torch.nn.utils.parametrizations.weight_norm`, which takes input
    channels for the outputs of transposed convolutions unless its `dim` is 1.

    An output of weights that are all zero has a length of zero, and stays so:
    choose another initializer than zeros.

    A length may grow: unlike all other normalizers this one sets no limit to
    what a layer makes of its inputs.

    Reference:
        [Salimans and Kingma, 2016](https://arxiv.org/abs/1602.07868), Eq. 2.
    """

    fixes_norm = False

    def __init__(self):
        super().__init__()

    def get_config(self):
        return {}


_NAMES = {
    "san": SparsityAware,
    "sn": Spectral,
    "bsn": BidirectionalSpectral,
    "bssn": BidirectionalSpectral,
    "conv_sn": ConvSpectral,
    "weight": WeightNormalization,
}


def get(identifier):
    """Retrieves a normalizer by an identifier.

    Args:
        identifier: `None` for no normalization, one of the names `"san"`,
            `"sn"`, `"bsn"`, `"bssn"`, `"conv_sn"`, `"weight"`, a serialized
            normalizer, or a normalizer.

    Returns:
        A `Normalizer`, or `None`.

    Raises:
        ValueError: if it is none of these.
    """
    if identifier is None or isinstance(identifier, Normalizer):
        return identifier
    if isinstance(identifier, dict):
        try:
            found = keras.saving.deserialize_keras_object(identifier)
        except TypeError:  # What Keras raises for a class unknown to it.
            found = None
        if isinstance(found, Normalizer):
            return found
    if isinstance(identifier, str) and identifier in _NAMES:
        return _NAMES[identifier]()
    raise ValueError(
        f"Unknown normalizer. Choose one of {sorted(_NAMES)}, None, or an "
        "object of keras_san.normalizers. "
        f"Received: normalizer={identifier!r}"
    )
