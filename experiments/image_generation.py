"""Trains a GAN on images, and leaves samples, curves and a generator.

Without arguments: handwritten digits, which need no network, for about a
minute on two CPU cores. See `python -m experiments.image_generation --help`.
"""

import dataclasses
import os

import keras
import numpy as np

import keras_san
from experiments import batches, data, runs, settings, training
from keras_san import callbacks, penalties, regularizers
from keras_san.augmentation import AdaptiveAugmentation
from keras_san.checks import check_count
from keras_san.networks import biggan, r3gan, sngan

LATENT_DIM = 128


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images(settings.Data):
    """The images to learn from, and the networks."""

    data: settings.Name = "digits"
    """digits; a name in tensorflow-datasets; a folder"""
    size: settings.SomeCount = None
    """crop and scale to N x N"""
    train_images: settings.SomeCount = None
    """train on N of them, watch the logits of others"""
    network: settings.Name = "small"
    """small, cnn, resnet, biggan or r3gan; sets what follows"""
    last_block: settings.Flag = False
    """resnet: keep the block that SAN drops at 48 pixels"""
    initializer: settings.SomeName = None
    """of the critic: a name in Keras, or a deviation"""
    loss: settings.Name = "hinge"
    """or wasserstein, non_saturating, relativistic"""
    r1: settings.Number = 0.0
    """weight of the penalty on gradients at real images"""
    r2: settings.Number = 0.0
    """that of the one at generated images"""
    penalty_interval: settings.Count = 1
    """updates of the critic from one penalty to the next"""
    augmentation: settings.SomeName = None
    """of what the critic sees: color,translation,cutout or adaptive"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings(
    settings.Run,
    settings.Evaluation,
    settings.Training,
    settings.Critic,
    Images,
):
    """Trains a GAN on images, and leaves samples, curves and a generator."""

    normalizer: settings.Name = "san"
    """san, sn, ssn, bsn, bssn, conv_sn, none, wgan_gp, clip, \
weight_norm, batch_norm, layer_norm, orthonormal"""
    epsilon: settings.Number = 1e-7
    """of Adam"""
    samples: settings.Count = 10_000
    """images to measure with"""
    monitor: settings.SomeCount = None
    """steps from one diagnosis of the critic to the next"""

    @property
    def default_name(self):
        """The dataset, the network unless it is small, and the normalizer."""
        network = [self.network] * (self.network != "small")
        return "-".join([self.dataset, *network, self.normalizer])


# The papers' settings, but for "small", which is for trying things out. An
# epoch is no pass over the data but what lies between two reports.
CNN = Settings(
    network="cnn",
    batch_size=64,
    learning_rate=2e-4,
    epochs=625,
    steps_per_epoch=250,
)
SMALL = dataclasses.replace(
    CNN,
    network="small",
    width=0.25,
    # Ten times that of the papers. At a quarter of it half of the digits are
    # missing after as many steps.
    learning_rate=2e-3,
    ema=0.995,
    epochs=10,
    steps_per_epoch=150,
)
BIGGAN = dataclasses.replace(
    CNN,
    network="biggan",
    batch_size=50,
    betas=(0.5, 0.999),
    epsilon=1e-8,
    critic_steps=4,
    ema=0.9999,
    epochs=500,
)
PRESETS = {
    "small": SMALL,
    "cnn": CNN,
    "resnet": dataclasses.replace(CNN, network="resnet"),
    "biggan": BIGGAN,
    # But for its schedules, and for labels.
    "r3gan": dataclasses.replace(
        CNN,
        network="r3gan",
        padding="same",
        loss="relativistic",
        r1=0.05,
        r2=0.05,
        betas=(0.0, 0.99),
        epsilon=1e-8,
        ema=0.999,
    ),
}
NETWORKS = {
    "small": (sngan.generator, sngan.critic),
    "cnn": (sngan.generator, sngan.critic),
    "resnet": (sngan.resnet_generator, sngan.resnet_critic),
    "biggan": (biggan.generator, biggan.critic),
    "r3gan": (r3gan.generator, r3gan.critic),
}

# What a normalizer gives to the critic that divides by no norm: the other
# rows of the paper's Table 1.
BASELINES = {
    "none": {},
    "wgan_gp": {},
    "clip": {"kernel_constraint": regularizers.Clip(0.01)},
    "weight_norm": {"kernel_constraint": regularizers.UnitFilters()},
    "batch_norm": {"activation_norm": "batch"},
    "layer_norm": {"activation_norm": "layer"},
    "orthonormal": {
        "kernel_initializer": "orthogonal",
        "kernel_regularizer": regularizers.Orthonormal(),
    },
}

# Where a row was not trained as the network's other rows.
_CROSS_ENTROPY = {"loss": "non_saturating"}
_ROWS = {
    "wgan_gp": {
        "loss": "wasserstein",
        "critic_steps": 5,
        "learning_rate": 1e-4,
    },
    "clip": _CROSS_ENTROPY,
    "weight_norm": _CROSS_ENTROPY,
    "batch_norm": _CROSS_ENTROPY,
    "layer_norm": _CROSS_ENTROPY,
    "orthonormal": _CROSS_ENTROPY,
}


def preset(network="small", normalizer="san"):
    """The settings of a network and a row of Table 1."""
    for name, value, known in (
        ("network", network, [*PRESETS]),
        ("normalizer", normalizer, [*settings.DIVIDING, *BASELINES]),
    ):
        if value not in known:
            raise ValueError(
                f"--{name} must be one of {known}. Received: --{name} {value}"
            )
    return dataclasses.replace(
        PRESETS[network], normalizer=normalizer, **_ROWS.get(normalizer, {})
    )


def parse(argv=None):
    """Reads `Settings` from the command line."""
    return settings.parse(
        *(Settings, "-m experiments.image_generation", argv, SMALL),
        choose=lambda asked: preset(asked.network, asked.normalizer),
    )


def main(argv=None):
    """Trains as the command line says, and returns the exit status."""
    run(parse(argv))
    return 0


def run(args):
    """Trains a GAN.

    Args:
        args: `Settings`.

    Returns:
        The trained `keras_san.GAN`.

    Raises:
        ValueError: for settings or images that cannot be trained with, and
            for an output folder that exists from another run.
        OSError: if a checkpoint cannot be written.
        ImportError: if TensorBoard is not installed.
    """
    run = open_run(args)
    images = data.load(
        args.data,
        size=args.size,
        data_dir=args.data_dir,
        download=args.download,
    )
    learned, held_out = divide(args, images)
    drawn = make_batches(args, learned)
    gan = run.build(lambda: make_gan(args, images))
    # Digits of 16 pixels are hard to see in their own size.
    scale = max(2, 64 // images.images.shape[1])
    first, last = [], []
    if run.extractor is not None and gan.is_chief:
        every = args.evaluate_every // args.steps_per_epoch
        first.append(
            callbacks.Evaluation(
                *(images.images, run.extractor, every),
                *(args.samples, args.seed),
            )
        )
    if args.monitor is not None:
        last.append(make_monitor(args, run, images))
    if gan.is_chief:
        run.begin()
    grid = callbacks.SampleGrid(run.folder, scale=scale)
    run.fit(gan, drawn, grid, first, last, held_out=held_out)
    if gan.is_chief:
        run.export(gan.averaged_generator or gan.generator)
        # Last, and at once: with it the run is finished.
        gan.save(run.path("new.keras"))
        os.replace(run.path("new.keras"), run.path("gan.keras"))
        print(f"Look at {run.path('samples.png')}")
        print(f"Curves: tensorboard --logdir {run.path('tensorboard')}")
    return gan


def open_run(args):
    """The `runs.Run` that settings describe, once they fit together."""
    preset(args.network, args.normalizer)
    if args.evaluate_every is not None:
        check_count("samples", args.samples, least=10)
    return runs.Run(args, processes=True)


def divide(args, images):
    """The images to train on, and up to 1,000 of the others, or `None`."""
    count = args.train_images
    if count is None:
        return images, None
    if not 2 <= count < len(images):
        raise ValueError(
            "--train-images must be at least 2, and leave some images to "
            f"compare with. Received: --train-images {count} of the "
            f"{len(images)} of {images.name!r}"
        )
    order = np.random.default_rng(args.seed).permutation(len(images))
    others = images.take(order[count : count + 1000])
    held_out = [batches.to_float(others.images)]
    if args.network == "biggan" and others.labels is not None:
        held_out.append(others.labels)
    return images.take(order[:count]), tuple(held_out)


def make_batches(args, images):
    """Batches of images in [-1, 1], for BigGAN with labels."""
    size = args.batch_size * args.critic_steps
    if size > len(images):
        raise ValueError(
            "A step takes --batch-size images for each of --critic-steps, and "
            f"{images.name!r} has {len(images)}. Received: --batch-size "
            f"{args.batch_size} --critic-steps {args.critic_steps}"
        )
    arrays = [images.images]
    if args.network == "biggan":
        if images.labels is None:
            raise ValueError(
                "These images have no labels. Sort the files into one "
                "sub-folder a class, choose another dataset, or another "
                f"network. Received: --network biggan with {images.name!r}"
            )
        arrays.append(images.labels)
    return batches.Batches(
        arrays,
        size,
        args.seed,
        prepare=lambda pixels, *labels: (batches.to_float(pixels), *labels),
    )


def make_monitor(args, run, images):
    """The callback that watches the critic, on images spread over all."""
    some = slice(None, None, max(1, len(images) // 16))
    watched = batches.to_float(images.images[some])
    if args.network == "biggan":
        watched = [watched, images.labels[some]]
    return callbacks.NormMonitor(
        run.folder, watched, args.monitor, run.path("tensorboard")
    )


def make_gan(args, images):
    """The compiled GAN that settings describe, for these images."""
    _, height, width, channels = images.images.shape
    if height != width:
        raise ValueError(
            "The networks make square images. Pass --size N. "
            f"Received: images of {height}x{width}"
        )
    make_generator, make_critic = NETWORKS[args.network]
    shared = {"resolution": height, "channels": channels}
    if args.network == "biggan":
        shared["num_classes"] = images.num_classes
    critic_width = args.critic_width or args.width
    gan = keras_san.GAN(
        make_generator(latent_dim=LATENT_DIM, width=args.width, **shared),
        make_critic(width=critic_width, **shared, **critic_settings(args)),
        LATENT_DIM,
        loss=args.loss,
        critic_steps=args.critic_steps,
        penalty=make_penalties(args),
        augmentation=(
            AdaptiveAugmentation()
            if args.augmentation == "adaptive"
            else args.augmentation
        ),
        ema=args.ema or None,
        num_classes=shared.get("num_classes"),
        seed=args.seed,
    )
    return training.compile(gan, args, epsilon=args.epsilon)


def make_penalties(args):
    """A list of the penalties on the critic that settings describe."""
    weights = {
        penalties.GradientPenalty: 10.0 * (args.normalizer == "wgan_gp"),
        penalties.R1: args.r1,
        penalties.R2: args.r2,
    }
    return [
        kind(weight, args.penalty_interval)
        for kind, weight in weights.items()
        if weight
    ]


def critic_settings(args):
    """The critic's arguments that follow from `Settings`."""
    found = {
        "padding": args.padding,
        "normalizer": training.make_normalizer(args),
        **BASELINES.get(args.normalizer, {}),
    }
    if args.initializer is not None:
        if args.network == "r3gan":
            raise ValueError(
                "R3GAN's networks have an initialization of their own. "
                f"Received: --initializer {args.initializer} with --network "
                "r3gan"
            )
        try:
            deviation = float(args.initializer)
            initializer = keras.initializers.RandomNormal(stddev=deviation)
        except ValueError:
            initializer = args.initializer
        found["kernel_initializer"] = initializer
    if "activation_norm" in found and args.network not in ("small", "cnn"):
        raise ValueError(
            "Batch and layer normalization are there for the CNN's critic "
            "only, as in the papers. Received: "
            f"--normalizer {args.normalizer} with --network {args.network}"
        )
    if args.last_block:
        if args.network != "resnet":
            raise ValueError(
                "Only the resnet has a last block to keep. "
                f"Received: --last-block with --network {args.network}"
            )
        found["last_block"] = True
    return found


if __name__ == "__main__":
    settings.start(main)
