"""GANs that train with `fit`."""

from keras_san.gan.attribute_gan import AttributeGAN
from keras_san.gan.gan import GAN
from keras_san.gan.paired_gan import PairedGAN

__all__ = ["AttributeGAN", "GAN", "PairedGAN"]
