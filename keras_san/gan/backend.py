"""The base of all GANs on the backend in use."""

import keras

if keras.config.backend() == "jax":
    from keras_san.gan.jax import JAXGAN as BackendGAN
elif keras.config.backend() == "tensorflow":
    from keras_san.gan.tensorflow import TensorFlowGAN as BackendGAN
else:
    from keras_san.gan.base import BaseGAN as BackendGAN

__all__ = ["BackendGAN"]
