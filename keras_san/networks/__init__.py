"""Generators and critics of the papers, as functions that return models."""

from keras_san.networks import (
    biggan,
    hifigan,
    r3gan,
    sngan,
    spade,
    srgan,
    stargan,
)

__all__ = ["biggan", "hifigan", "r3gan", "sngan", "spade", "srgan", "stargan"]
