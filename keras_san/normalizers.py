"""Normalizers: which norm a kernel is divided by, in which form, how often.

A normalizer is a bag of settings, as serializable as a Keras initializer. It
holds no weights: what must be remembered between steps is passed in and out,
and kept by the layer.
"""

import dataclasses
import math
import numbers

import keras
from keras import ops

from keras_san import norms
from keras_san.checks import check_positive


@dataclasses.dataclass(frozen=True)
class Matrix:
    """A kernel that stands for a matrix, as that of a dense layer.

    Args:
        inputs: Axes of the kernel that are summed over.
        outputs: Axes of the kernel that appear in the layer's output.
        batch: Axes that stand for separate matrices.
    """

    inputs: tuple = (0,)
    outputs: tuple = (1,)
    batch: tuple = ()

    def matrices(self, kernel):
        """The kernel as a tensor `(batch, inputs, outputs)`."""
        groups = (self.batch, self.inputs, self.outputs)
        shape = [math.prod(kernel.shape[axis] for axis in g) for g in groups]
        return ops.reshape(ops.transpose(kernel, sum(groups, ())), shape)


@dataclasses.dataclass(frozen=True)
class Convolution:
    """A kernel that stands for a convolution, `(*kernel_size, in, out)`.

    Args:
        spatial_shape: Extents of the image on the side of the convolution
            that the stride does not thin out (its input; the output of a
            transposed convolution), or `None` if unknown.
        strides: Ints, one for each spatial axis.
        dilation_rate: Ints, one for each spatial axis.
        groups: Int.
        transposed: Whether the kernel is laid out `(*kernel_size, out, in)`.
        depthwise: Whether it is laid out `(*kernel_size, in, multiplier)`.
    """

    spatial_shape: tuple | None
    strides: tuple
    dilation_rate: tuple
    groups: int = 1
    transposed: bool = False
    depthwise: bool = False

    def standard(self, kernel):
        """The kernel of a plain or grouped convolution of equal norms."""
        if self.depthwise:
            *kernel_size, channels, multiplier = kernel.shape
            return ops.reshape(kernel, (*kernel_size, 1, channels * multiplier))
        return kernel


class Normalizer:
    """What the normalizers share. Use one of the subclasses.

    A subclass says which matrices, in `convolution_matrices`, or which norm
    it divides convolutions by. All divide dense layers by the top singular
    value of their matrix.

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
    differentiable = True

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

    def matrices(self, kernel, geometry):
        """Batches of matrices; the norm is the mean of their top values.

        Empty if the norm is not made of singular values.
        """
        if isinstance(geometry, Matrix):
            return [geometry.matrices(kernel)]
        return self.convolution_matrices(kernel, geometry)

    def draw(self, kernel_shape, geometry, seed):
        """The random choice that a measurement needs; `None` for none."""
        return None

    def norm(self, kernel, geometry, sample=None):
        """The norm from scratch, a float32 scalar: exact, needs no state."""
        tops = [
            norms.top_singular_value(m) for m in self.matrices(kernel, geometry)
        ]
        return sum(tops) / len(tops)

    def gain_for(self, kernel_shape, geometry):
        """A Python float that the measured norm is multiplied by."""
        return 1.0

    def start(self, kernel, geometry):
        """The state to measure from: converged vectors, one for a batch."""
        return [
            norms.top_right_vectors(m) for m in self.matrices(kernel, geometry)
        ]

    def measure(self, kernel, geometry, state, sample=None):
        """The norm by one power iteration from `state`, and the new state."""
        if not state:
            return self.norm(kernel, geometry, sample), []
        tops, new_state = [], []
        for matrices, u in zip(self.matrices(kernel, geometry), state):
            sigma, _, u = norms.power_iteration(matrices, u)
            tops.append(norms.largest(sigma))
            new_state.append(u)
        return sum(tops) / len(tops), new_state

    def linearized(self, kernel, geometry, state):
        """The norm as a function of the kernel with `u` and `v` held fixed."""
        tops = []
        for matrices, u in zip(self.matrices(kernel, geometry), state):
            u = ops.stop_gradient(ops.convert_to_tensor(u))
            v = norms.left_vectors(ops.stop_gradient(matrices), u)
            tops.append(ops.max(ops.einsum("br,brc,bc->b", v, matrices, u)))
        return sum(tops) / len(tops)

    def divide(self, kernel, geometry, norm):
        """The kernel over its norm, times `scale`; zero for a zero kernel."""
        norm = norm * self.gain_for(kernel.shape, geometry)
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
        gain: Positive float that a convolution's norm is multiplied by, or
            `"auto"` for Eq. 9, which makes up for `ratio` (1 if it is 1).
        update_interval: Int >= 1, training steps from one measurement to the
            next.
        scale: Positive float that the normalized kernel is multiplied by.
        form: `"divide"` or `"project"`, see `Normalizer`. In three pairs of
            runs on CIFAR-10 (`results/README.md`) projected critics were
            ahead at first, and not always in the end. The default is what
            works with any optimizer, `ratio` and `update_interval`; with a
            Keras optimizer and neither of those, try `"project"`.

    Raises:
        ValueError: for a value outside of what is listed above.

    Reference:
        [Kligvasser and Michaeli, 2021](https://arxiv.org/abs/2103.02458).
    """

    differentiable = False

    def __init__(
        self,
        ratio=1.0,
        gain="auto",
        update_interval=1,
        scale=1.0,
        form="divide",
    ):
        super().__init__(scale, update_interval, form)
        norms.check_ratio(ratio)
        if gain != "auto":
            check_positive("gain", gain, ' (or "auto")')
        if form == "project" and ratio < 1.0:
            raise ValueError(
                'form="project" keeps no random state to draw filters with; '
                'use ratio=1.0, or form="divide". '
                f"Received: ratio={ratio}"
            )
        self.ratio = ratio
        self.gain = gain

    def convolution_matrices(self, kernel, geometry):
        return []

    def draw(self, kernel_shape, geometry, seed):
        if isinstance(geometry, Matrix):
            return None
        return norms.sample_filters(kernel_shape, self.ratio, seed)

    def norm(self, kernel, geometry, sample=None):
        if isinstance(geometry, Matrix):
            return super().norm(kernel, geometry)
        return norms.sparsity_aware_norm(
            kernel,
            geometry.spatial_shape,
            dilation_rate=geometry.dilation_rate,
            sample=sample,
        )

    def gain_for(self, kernel_shape, geometry):
        if isinstance(geometry, Matrix):
            return 1.0
        if self.gain == "auto":
            num_filters = kernel_shape[-2] * kernel_shape[-1]
            return norms.subset_gain(num_filters, self.ratio)
        return self.gain

    def get_config(self):
        return {"ratio": self.ratio, "gain": self.gain, **super().get_config()}


@keras.saving.register_keras_serializable("keras_san")
class Spectral(Normalizer):
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

    def convolution_matrices(self, kernel, geometry):
        kernel = geometry.standard(kernel)
        if geometry.transposed:
            return [norms.fan_out_matrix(kernel)]
        return [norms.fan_in_matrix(kernel)]


@keras.saving.register_keras_serializable("keras_san")
class BidirectionalSpectral(Normalizer):
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

    def convolution_matrices(self, kernel, geometry):
        kernel = geometry.standard(kernel)
        return [norms.fan_in_matrix(kernel), norms.fan_out_matrix(kernel)]


@keras.saving.register_keras_serializable("keras_san")
class ConvSpectral(Normalizer):
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

    def convolution_matrices(self, kernel, geometry):
        return [
            norms.fourier_blocks(
                geometry.standard(kernel), **self._settings(geometry)
            )
        ]

    def norm(self, kernel, geometry, sample=None):
        if isinstance(geometry, Matrix):
            return super().norm(kernel, geometry)
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
