"""Keras layers that make GAN critics stable, and GANs that train with `fit`.

Reference:
    [Kligvasser and Michaeli, 2021](https://arxiv.org/abs/2103.02458).
"""

from keras_san import (
    augmentation,
    callbacks,
    diagnostics,
    losses,
    metrics,
    networks,
    normalizers,
    norms,
    padding,
    penalties,
    regularizers,
)
from keras_san.conversion import normalize, strip
from keras_san.gan import GAN, AttributeGAN, PairedGAN
from keras_san.kernel_normalization import hold_norms
from keras_san.layers import (
    SANConv2D,
    SANDense,
    SANWrapper,
    measure_norms,
)

__version__ = "0.1.0"

__all__ = [
    "GAN",
    "AttributeGAN",
    "PairedGAN",
    "SANConv2D",
    "SANDense",
    "SANWrapper",
    "augmentation",
    "callbacks",
    "diagnostics",
    "hold_norms",
    "losses",
    "measure_norms",
    "metrics",
    "networks",
    "normalize",
    "normalizers",
    "norms",
    "padding",
    "penalties",
    "regularizers",
    "strip",
]
