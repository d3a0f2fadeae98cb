"""Metrics: how good images are."""

from keras_san.metrics import extractors
from keras_san.metrics.generative import (
    FrechetInceptionDistance,
    InceptionScore,
    KernelInceptionDistance,
)

__all__ = [
    "FrechetInceptionDistance",
    "InceptionScore",
    "KernelInceptionDistance",
    "extractors",
]
