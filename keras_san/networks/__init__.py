"""Generators and critics of the papers, as functions that return models."""

from keras_san.networks import biggan, sngan

__all__ = ["biggan", "sngan"]
