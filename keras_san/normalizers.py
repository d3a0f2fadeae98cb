"""Normalizers: which norm a kernel is divided by, in which form, how often.

A normalizer is a bag of settings, as serializable as a Keras initializer. It
holds no weights: what must be remembered between steps is passed in and out,
and kept by the layer.
"""

import numbers

import keras
from keras import ops

from keras_san import norms
from keras_san.checks import check_count, check_positive
from keras_san.geometry import Matrix
from keras_san.numerics import matmul

# How much of an average over measurements stays at each of them.
_MOMENTUM = 0.99


class Normalizer:
    """The settings that all normalizers share. Use one of the subclasses.

    A subclass computes, in `norm`, what the kernels of convolutions are
    divided by. One that follows top singular values by power iteration is a
    `SpectralNormalizer`, and so is what all divide dense kernels by.

    Args:
        scale: Positive float that the normalized kernel is multiplied by.
        update_interval: Int >= 1. In training, the norm is measured at every
            such call of the layer. Only the form `"divide"` can skip calls.
        form: `"divide"` or `"project"`. `"divide"`: the raw kernel is
            trained, and the layer runs with the kernel divided by its norm.
            `"project"`: after each update the optimizer replaces the kernel
            by its multiple of norm `scale`; the layer has no state. Only
            Keras' optimizers do that; under others nothing is normalized.

    Raises:
        ValueError: for a value outside of what is listed above.
    """

    # Whether the gradient sees the norm as a function of the kernel.
    differentiable = False

    def __init__(self, scale=1.0, update_interval=1, form="divide"):
        check_positive("scale", scale)
        if not isinstance(update_interval, numbers.Integral) or (
            update_interval < 1
        ):
            raise ValueError(
                "`update_interval` must be an int >= 1: the norm is measured "
                "at every so many training steps. "
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
        """The normalizer that divides such kernels; of a matrix, all alike."""
        return _Dense(self) if isinstance(geometry, Matrix) else self

    def draw(self, kernel_shape, geometry, seed):
        """The random choice that a measurement needs; `None` for none."""
        return None

    def norm(self, kernel, geometry, sample=None):
        """The norm from scratch, a float32 scalar: exact, needs no state."""
        raise NotImplementedError

    def state_shapes(self, kernel, geometry):
        """The shapes of what `start` returns."""
        return []

    def start(self, kernel, geometry):
        """The state to measure from, a list of float32 tensors."""
        return []

    def measure(self, kernel, geometry, state, sample=None):
        """The norm, given the last measurement's state, and the new state."""
        return self.norm(kernel, geometry, sample), []

    def gain_for(self, kernel_shape, geometry):
        """A Python float that the measured norm is multiplied by, at least."""
        return 1.0

    def adapts(self, geometry):
        """`True` if the gain is measured, by `adapt`."""
        return False

    def divide(self, kernel, geometry, norm, gain=None):
        """The kernel over norm and gain, times `scale`; zero stays zero."""
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
    """A normalizer by top singular values, followed by power iteration.

    A subclass says of which matrices. The norm is the mean of their top
    singular values. Its gradient is that of the linearization around the
    vectors that the last measurement has left.
    """

    differentiable = True

    def matrices(self, kernel, geometry):
        """A list of tensors `(batch, rows, columns)`: of each, the largest."""
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
        """Converged vectors, one tensor `(batch, columns)` for each batch."""
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
        """The norm as a function of the kernel with `u` and `v` held fixed."""
        tops = []
        for matrices, u in zip(self.matrices(kernel, geometry), state):
            u = ops.stop_gradient(ops.convert_to_tensor(u))
            v = norms.left_vectors(ops.stop_gradient(matrices), u)
            product = matmul(matrices, u[..., None])[..., 0]
            tops.append(ops.max(ops.sum(v * product, axis=-1)))
        return _mean(tops)


class _Dense(SpectralNormalizer):
    """Divides dense kernels by their top singular value, as all do."""

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
    To the gradient the norm is a constant, as in the authors' code. Zero
    padding makes the measured norm approximate; circular makes it exact.

    Args:
        ratio: Float in (0, 1], the share of a convolution's filters that is
            looked at, drawn anew at each measurement. `form="project"` keeps
            no random state and measures all.
        gain: Positive float that a convolution's norm is multiplied by;
            `"auto"` for Eq. 9, which makes up for `ratio` (1 if it is 1); or
            `"adaptive"` to measure it, see below.
        update_interval: Int >= 1, training steps from one measurement to the
            next.
        scale: Positive float that the normalized kernel is multiplied by.
        form: `"divide"` or `"project"`, see `Normalizer`. In three pairs of
            runs on CIFAR-10 (`results/README.md`) projected critics were
            ahead at first, and not always in the end. The default is what
            works with any optimizer, `ratio` and `update_interval`; with a
            Keras optimizer and neither of those, try `"project"`.
        sparsity: Int >= 1, how many input channels a signal may have that
            are not zero. 1 is Lemma 1; more is `norms.sparse_norm`, which
            for wide layers takes a hundred times as long (a larger
            `update_interval` makes up for that).

    The adaptive gain is for layers whose inputs are less sparse than SAN
    takes them to be (the paper's "Limitations" suggest a factor of their own
    for them). With `n` input and `m` output channels, `||W||` the norm of
    Lemma 1 and `k` as `norms.active_channels` measures it, signals of random
    phases leave a layer with channels `A` times as large as the largest one
    that they came with, in the root mean square, where

        A = sqrt(k) ||W||_F / sqrt(m n),        gain = max(1, A / ||W||).

    (For 1 read Eq. 9 if `ratio` is less.) So the kernel is divided by
    `max(||W||, A)`: as by SAN, to rounding, where signals are sparse. `k`
    is an average over the inputs of training calls that measure the norm,
    the first such call's and from then on 99 % of the last average and 1 % of
    the new; until the first it counts as 0, and the gain is 1. In a
    `keras_san.GAN` those are what the layer gets of the real images. A loop
    that calls a layer several times a step should use `hold_norms`, lest the
    gain change in between. Inputs that are not finite are passed over.
    Channels in groups are measured group by group; a depthwise kernel reads
    one at a time, and has no gain, nor has the pointwise kernel of a separable
    convolution, whose inputs are not the layer's, nor a dense layer.

    Raises:
        ValueError: for a value outside of what is listed above, and for what
            does not go together: `form="project"`, which keeps no state, with
            `ratio < 1` or `gain="adaptive"`; `sparsity > 1` with either.

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
                'signals; use form="divide", or another gain. '
                f"Received: gain={gain!r}"
            )
        if form == "project" and ratio < 1.0:
            raise ValueError(
                'form="project" keeps no random state to draw filters with; '
                'use ratio=1.0, or form="divide". '
                f"Received: ratio={ratio}"
            )
        if sparsity > 1 and ratio < 1.0:
            raise ValueError(
                "The norm for signals of several channels looks at all "
                "filters: its maximum is over sums of them. Use ratio=1.0, "
                f"or sparsity=1. Received: sparsity={sparsity}, ratio={ratio}"
            )
        if sparsity > 1 and gain == "adaptive":
            raise ValueError(
                'gain="adaptive" measures how many channels are active, '
                "`sparsity` presumes it: choose one. "
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
        """The gain for the inputs that a layer gets.

        Args:
            kernel: float32 tensor.
            geometry: A `Convolution`.
            norm: float32 scalar, the kernel's norm.
            inputs: Tensor, the layer's inputs.
            channels: float32 scalar, the average of active channels so far,
                zero if there is none.

        Returns:
            `(channels, gain)`: the new average, and float32 scalars both.
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
    """Spectral normalization as Miyato et al. have it, `"sn"`.

    The norm is the top singular value of the kernel as a `(fan_in, out)`
    matrix, followed by one power iteration a measurement from a converged
    start. Gradients flow through the norm, not through its vectors.

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
    and the `(fan_out, in)` matrix, each followed by a power iteration of its
    own. Both names give a `scale` of 1, the authors' default: the best one
    depends on the data and is found by trying (they try 0.7 to 4).

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
    """The true operator norm of a convolution with cyclic padding, `"conv_sn"`.

    It is followed by power iteration in the Fourier domain, one vector for
    each frequency. That takes memory for about four times the kernel's
    channels times the frequencies of the image: a yardstick, not a workhorse.

    Args:
        scale: Positive float that the normalized kernel is multiplied by.
        update_interval: Int >= 1, training steps from one measurement to the
            next.
        form: `"divide"` or `"project"`, see `Normalizer`.

    Raises:
        ValueError: for a value outside of what is listed above; when a layer
            is built on images of unknown size, or whose size its stride does
            not divide.

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
                "the image, which is unknown here. Give the model a fixed "
                'input size, or choose another normalizer than "conv_sn".'
            )
        return {
            "spatial_shape": geometry.spatial_shape,
            "strides": geometry.strides,
            "dilation_rate": geometry.dilation_rate,
            "groups": geometry.groups,
        }


_NAMES = {
    "san": SparsityAware,
    "sn": Spectral,
    "bsn": BidirectionalSpectral,
    "bssn": BidirectionalSpectral,
    "conv_sn": ConvSpectral,
}


def get(identifier):
    """A normalizer from whatever names one.

    Args:
        identifier: `None` for no normalization, one of the names `"san"`,
            `"sn"`, `"bsn"`, `"bssn"`, `"conv_sn"`, a serialized normalizer,
            or a normalizer.

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
