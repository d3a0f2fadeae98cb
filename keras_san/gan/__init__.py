"""GANs that train with `fit`."""

from keras_san.gan.attributes import AttributeGAN
from keras_san.gan.latent import GAN
from keras_san.gan.paired import PairedGAN

__all__ = ["AttributeGAN", "GAN", "PairedGAN"]
