"""Losses, optimizers and checks of a training, made of its settings."""

import os
import sys

import keras

from experiments.settings import DIVIDING, check_multiple
from keras_san import losses, normalizers
from keras_san.checks import check_count


def check(settings, processes=False):
    """Raises a `ValueError` if settings of a training cannot be right.

    Args:
        settings: Those of a training.
        processes: Boolean, whether it may run in several processes.
    """
    if settings.strategy == "multi_worker" and not processes:
        raise ValueError(
            "This experiment trains in one process. Received: --strategy "
            "multi_worker"
        )
    check_multiple(settings, "steps_per_epoch", "steps_per_execution")
    for name in ("epochs", "batch_size", "critic_steps"):
        check_count(name, getattr(settings, name))
    for name, lowest, highest, meaning in (
        ("learning_rate", 0.0, sys.float_info.max, "a number >= 0"),
        ("critic_learning_rate", 0.0, sys.float_info.max, "a number >= 0"),
        ("decay", 0.0, 1.0, "a part of the training, from 0 to 1"),
        ("halve_at", 1e-9, 1 - 1e-9, "parts of it, above 0 and below 1"),
        ("ema", 0.0, 1 - 1e-9, "what a step keeps, from 0 to below 1"),
    ):
        value = getattr(settings, name)
        values = value if isinstance(value, tuple) else (value,)
        if not all(x is None or lowest <= x <= highest for x in values):
            flag = f"--{name.replace('_', '-')}"
            raise ValueError(
                f"{flag} takes {meaning}. Received: {flag} {value}"
            )
    make_normalizer(settings)


def make_normalizer(settings):
    """The normalizer that settings describe, or `None`.

    Raises:
        ValueError: if a setting is not one of the normalizer's.
    """
    names = ("scale", "update_interval", "form", "ratio", "gain", "sparsity")
    given = {name: getattr(settings, name) for name in names}
    given = {name: value for name, value in given.items() if value is not None}
    name = settings.normalizer
    if name not in DIVIDING:
        if given:
            raise ValueError(
                "Only normalizers that divide by a norm have these settings. "
                f"Received: {given} with --normalizer {name}"
            )
        return None
    if name in ("ssn", "bssn") and "scale" not in given:
        raise ValueError(
            "What makes it more than sn or bsn is its scale, and no best one "
            "was published (the authors try 0.7 to 4): pass --scale. Received: "
            f"--normalizer {name} without --scale"
        )
    if name != "san" and {"ratio", "gain", "sparsity"} & {*given}:
        raise ValueError(
            "Only SAN measures a share of the filters, has a gain, and signals "
            f"of some channels. Received: {given} with --normalizer {name}"
        )
    kind = normalizers.get("sn" if name == "ssn" else name)
    return type(kind)(**given)


@keras.saving.register_keras_serializable("experiments")
class Decay(keras.optimizers.schedules.LearningRateSchedule):
    """A learning rate that falls linearly to 0, or halves, or both.

    Args:
        rate: Positive float.
        steps: Int, the steps of the whole training.
        start: Float in [0, 1], the part of the steps after which it falls.
        halve_at: Floats in (0, 1), the parts after which it halves.
    """

    def __init__(self, rate, steps, start=1.0, halve_at=()):
        self.rate = rate
        self.steps = steps
        self.start = start
        self.halve_at = tuple(halve_at)

    def __call__(self, step):
        step = keras.ops.cast(step, "float32")
        rate = self.rate
        if self.start < 1.0:
            left = (1.0 - step / self.steps) / (1.0 - self.start)
            rate = rate * keras.ops.clip(left, 0.0, 1.0)
        for part in self.halve_at:
            # In a short training several may fall on one step.
            end = float(max(1, round(part * self.steps)))
            rate = rate * keras.ops.where(step > end, 0.5, 1.0)
        return rate

    def get_config(self):
        return {
            "rate": self.rate,
            "steps": self.steps,
            "start": self.start,
            "halve_at": self.halve_at,
        }


def falls(settings):
    """Tells whether rates fall by the length of the training."""
    return settings.decay < 1.0 or len(settings.halve_at) > 0


def make_adam(settings, rate, updates_per_step=1, epochs=None, **kwargs):
    """A Keras Adam for a training, whose rate falls as the settings say."""
    if falls(settings):
        epochs = settings.epochs if epochs is None else epochs
        steps = epochs * settings.steps_per_epoch * updates_per_step
        rate = Decay(rate, steps, settings.decay, settings.halve_at)
    return keras.optimizers.Adam(rate, **kwargs)


def compile(gan, settings, generator_betas=None, **kwargs):
    """Compiles a GAN with an Adam for each network, and returns it."""
    rate, critic_rate = settings.learning_rate, settings.critic_learning_rate
    optimizers = [
        make_adam(
            *(settings, rate if own is None else own, updates),
            beta_1=betas[0],
            beta_2=betas[1],
            **kwargs,
        )
        for own, updates, betas in (
            (rate, 1, generator_betas or settings.betas),
            (critic_rate, settings.critic_steps, settings.betas),
        )
    ]
    gan.compile(*optimizers, **execution(settings))
    return gan


def execution(settings):
    """The arguments of `compile` about how steps run."""
    return {
        "jit_compile": True if settings.jit else "auto",
        "steps_per_execution": settings.steps_per_execution,
    }


def make_perceptual_losses(settings, **kwargs):
    """A list of the `losses.PerceptualLoss` of settings, or an empty one."""
    if settings.perceptual == "none" or not settings.perceptual_weight:
        return []
    if settings.perceptual == "vgg19" and not settings.download:
        raise ValueError(
            "Nothing is downloaded unless you say so: pass --download, or "
            "--perceptual with a file of VGG19's weights, or with none. "
            "Received: --perceptual vgg19 without --download"
        )
    return [
        losses.PerceptualLoss(
            settings.perceptual_weight, settings.perceptual, **kwargs
        )
    ]


def find_extractor(settings):
    """The extractor to evaluate with, as its `get` takes it, or `None`.

    Raises:
        ValueError: if nothing was passed, found, or may be downloaded.
    """
    if getattr(settings, "evaluate_every", None) is None:
        return None
    check_multiple(settings, "evaluate_every", "steps_per_epoch")
    if settings.extractor == "inception" and not settings.download:
        raise ValueError(
            "Nothing is downloaded unless you say so: pass --download, too, or "
            "the folder of a copy of the module. Received: --extractor "
            "inception without --download"
        )
    if settings.extractor:
        return settings.extractor
    name = f"{settings.dataset}_judge.keras"
    folder = settings.data_dir or "."
    places = [os.path.join(x, name) for x in (folder, f"{folder}/..", ".")]
    for path in places:
        if os.path.exists(path):
            print(f"Evaluating with {path}: judge scores, not Inception's.")
            return path
    if settings.download:
        return "inception"
    raise ValueError(
        "To evaluate, pass --extractor with a Keras classifier or the folder "
        "of a copy of TF-GAN's Inception module, or --download to get that "
        "module. Received: --evaluate-every "
        f"{settings.evaluate_every} without --extractor, and none of {places}"
    )
