"""Generators and critics of the papers, as functions that return models."""

from keras_san.networks import biggan, sngan, spade, srgan, stargan

__all__ = ["biggan", "sngan", "spade", "srgan", "stargan"]
