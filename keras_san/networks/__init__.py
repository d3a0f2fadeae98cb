"""Generators and critics of the papers, as functions that return models."""

from keras_san.networks import sngan

__all__ = ["sngan"]
