"""Metrics of generated images."""

from keras_san.metrics import extractors, image_quality
from keras_san.metrics.generative import (
    FrechetInceptionDistance,
    InceptionScore,
    KernelInceptionDistance,
)
from keras_san.metrics.image_quality import NIQE, PSNR, SSIM

__all__ = [
    "NIQE",
    "PSNR",
    "SSIM",
    "FrechetInceptionDistance",
    "InceptionScore",
    "KernelInceptionDistance",
    "extractors",
    "image_quality",
]
