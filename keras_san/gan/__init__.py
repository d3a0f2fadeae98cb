"""GANs that train with `fit`."""

from keras_san.gan.latent import GAN
from keras_san.gan.paired import PairedGAN

__all__ = ["GAN", "PairedGAN"]
