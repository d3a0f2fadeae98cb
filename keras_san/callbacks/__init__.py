"""Callbacks that show how a GAN is doing."""

from keras_san.callbacks.checkpoint import Checkpoint
from keras_san.callbacks.evaluation import Evaluation
from keras_san.callbacks.image_quality import ImageQuality, enlarge
from keras_san.callbacks.logs import (
    draw_curves,
    kernel_norms,
    read_log,
    steps_taken,
)
from keras_san.callbacks.monitor import NormMonitor, draw_monitor
from keras_san.callbacks.overfitting import Overfitting
from keras_san.callbacks.progress import Progress
from keras_san.callbacks.samples import SampleGrid, image_grid, sample_grid
from keras_san.callbacks.stop_when_not_finite import StopWhenNotFinite
from keras_san.callbacks.tensorboard import TensorBoard
from keras_san.callbacks.training_log import TrainingLog

__all__ = [
    "Checkpoint",
    "Evaluation",
    "ImageQuality",
    "NormMonitor",
    "Overfitting",
    "Progress",
    "SampleGrid",
    "StopWhenNotFinite",
    "TensorBoard",
    "TrainingLog",
    "draw_curves",
    "draw_monitor",
    "enlarge",
    "image_grid",
    "kernel_norms",
    "read_log",
    "sample_grid",
    "steps_taken",
]
