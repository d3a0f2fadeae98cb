"""Measures the peak memory of SPADE's updates, with and without a norm.

`python tools/peak_memory.py` trains the networks at full width, on batches of
one map and image of 256 x 512 pixels, once for each normalizer in a process of
its own, and prints a table in Markdown: what TensorFlow has allocated for
tensors at the peak of an update (the largest of all), and the peak of the
whole process, TensorFlow itself included, on a CPU.
"""

import argparse
import math
import os
import resource
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def main(argv=None):
    """Prints the table.

    Args:
        argv: List of strings, or `None` for the arguments of the process.
    """
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], allow_abbrev=False
    )
    add = parser.add_argument
    add("--size", type=int, nargs=2, default=[256, 512])
    add("--width", type=float, default=1.0, help="of both networks")
    add(
        "--normalizers",
        nargs="+",
        default=["none", "san", "sn"],
        help="of the critic; the first is what others are compared with",
    )
    add("--updates", type=int, default=3)
    add(
        "--whole-steps",
        action="store_true",
        help="updates of the generator, too",
    )
    add("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.measure is not None:
        print(*measure(args, args.measure))
        return
    height, width = args.size
    what = "step" if args.whole_steps else "update of the critic"
    print(
        f"| {what}, {height}x{width} | tensors, MiB | of the first | process, "
        "MiB | of the first |\n|---|---|---|---|---|"
    )
    first = None
    for normalizer in args.normalizers:
        command = [sys.executable, __file__, "--measure", normalizer]
        command += [*(argv if argv is not None else sys.argv[1:])]
        environment = {
            **os.environ,
            "KERAS_BACKEND": "tensorflow",
            "CUDA_VISIBLE_DEVICES": "",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        environment.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
        run = subprocess.run(
            command, env=environment, check=True, stdout=subprocess.PIPE
        )
        peaks = [float(x) for x in run.stdout.split()[-2:]]
        first = first or peaks
        cells = " | ".join(
            " | " if math.isnan(peak) else f"{peak:.0f} | {peak / other:.3f}"
            for peak, other in zip(peaks, first)
        )
        print(f"| {normalizer} | {cells} |", flush=True)


def measure(args, normalizer):
    """Peaks in MiB: of the tensors of an update, and of the process."""
    sys.path.insert(0, ROOT)
    import keras
    import numpy as np
    import tensorflow as tf

    import keras_san
    from keras_san.networks import spade
    from tools.backends import tensorflow_memory

    keras.utils.set_random_seed(0)
    size = tuple(args.size)
    gan = keras_san.PairedGAN(
        spade.generator(size, width=args.width),
        spade.critic(
            size,
            width=args.width,
            normalizer=None if normalizer == "none" else normalizer,
        ),
        feature_matching=10.0,
        joint=True,
        seed=0,
    )
    gan.compile()
    rng = np.random.default_rng(0)
    labels = rng.integers(36, size=(1, *size))
    maps = tf.one_hot(labels, 36)
    images = tf.constant(rng.uniform(-1, 1, (1, *size, 3)), "float32")

    @tf.function
    def update():
        if args.whole_steps:
            gan.step((maps, images))
        else:
            gan._critic_step(images, maps)

    peaks = []
    for _ in range(args.updates):
        _, peak = tensorflow_memory(update, "CPU:0")
        peaks.append(math.nan if peak is None else peak / 2**20)
    process = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
    return max(peaks), process


if __name__ == "__main__":
    main()
