"""Measures one thing on a GPU, on JAX or PyTorch, without TensorFlow.

`tools/accelerator.sh` runs all parts. Each row is written as soon as it is
known. See `python tools/accelerator.py --help`.
"""

import argparse
import concurrent.futures
import contextlib
import csv
import itertools
import os
import platform
import statistics
import sys
import time
import traceback

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)
os.environ.setdefault("KERAS_BACKEND", "jax")

import keras  # noqa: E402
import numpy as np  # noqa: E402
from keras import ops  # noqa: E402

import keras_san  # noqa: E402
from keras_san import losses, norms, penalties  # noqa: E402
from keras_san.differentiation import (  # noqa: E402
    as_pure_function,
    input_gradients,
    minimize,
)
from keras_san.metrics import extractors, generative  # noqa: E402
from keras_san.networks import sngan, spade  # noqa: E402
from tools import benchmark  # noqa: E402
from tools.backends import Backend  # noqa: E402

BACKEND = keras.backend.backend()

# What normalizes a critic, how it pads, and what its loss holds besides.
METHODS = {
    "none": (None, "same", None),
    "san, same": ("san", "same", None),
    "san, circular": ("san", "circular", None),
    "none, circular": (None, "circular", None),
    "sn": ("sn", "same", None),
    "wgan_gp": (None, "same", "wgan_gp"),
    "r1": (None, "same", "r1"),
}
KERNELS = (
    ((3, 3, 64, 64), (32, 32)),
    ((4, 4, 128, 256), (8, 8)),
    ((3, 3, 256, 512), (4, 4)),
    ((3, 3, 512, 512), (32, 32)),
    ((4, 4, 256, 512), (32, 64)),
)
DTYPES = ("float32", "mixed_bfloat16")
R1_GAMMA = 0.05

# Of a norm in one program, which shows what it takes within a step.
COPIES = 4


def main(argv=None):
    """Runs one part as the command line says.

    Args:
        argv: List of strings, or `None` for the arguments of the process.
    """
    parser = argparse.ArgumentParser(
        prog="python tools/accelerator.py",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("part", choices=("about", "norms", "updates", "train"))
    add("--output", default=".", help="folder to write to")
    add("--device", default="gpu", choices=("cpu", "gpu"))
    add("--quick", action="store_true", help="tiny: does it run?")
    add("--networks", nargs="+", default=list(NETWORKS), choices=NETWORKS)
    add("--dtypes", nargs="+", default=DTYPES, choices=DTYPES)
    add("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    add("--data", help="train: an .npz whose `images` are uint8 (n, h, w, 3)")
    add("--judge", help="train: a Keras classifier for FID")
    add("--critic", default="san", choices=CRITICS, help="train")
    add("--seed", type=int, default=0)
    add("--steps", type=int, default=100_000)
    add("--every", type=int, default=2500, help="train: steps between FIDs")
    add("--until", type=float, help="train: stop at this `time.time()`")
    args = parser.parse_args(argv)
    args.backend = Backend(BACKEND, args.device)
    os.makedirs(args.output, exist_ok=True)
    {
        "about": about,
        "norms": time_norms,
        "updates": time_updates,
        "train": train,
    }[args.part](args)


class Table:
    """A CSV file that grows by rows, also those of later runs."""

    def __init__(self, args, name, columns):
        self.path = os.path.join(args.output, f"{name}.csv")
        if not os.path.exists(self.path):
            self.add(*columns)

    def add(self, *row):
        print(*row, sep=", ", flush=True)
        with open(self.path, "a", newline="") as file:
            csv.writer(file).writerow(row)


def about(args):
    """Versions and the card."""
    text = f"{args.backend.describe()}, Python {platform.python_version()}\n"
    with open(os.path.join(args.output, f"about-{BACKEND}.txt"), "w") as file:
        file.write(text)
    print(text, end="")


def time_norms(args):
    """Time and error of norms, of random kernels and of hard ones."""
    table = Table(
        args,
        f"norms-{BACKEND}",
        ["kernel", "image", "weights", "method", "ms", "ms in graph", "error"],
    )
    rng = np.random.default_rng(args.seed)
    cases = [
        (shape, image, "He normal", np.float32(rng.normal(size=shape)))
        for shape, image in KERNELS[: 1 if args.quick else None]
    ]
    hard = (3, 3, 16, 16) if args.quick else (4, 4, 64, 128)
    cases += [
        (hard, (32, 32), *pair)
        for pair in benchmark.hard_kernels(hard, rng).items()
    ]
    rows = []
    for shape, image, weights, kernel in cases:
        matrix = kernel.reshape(-1, shape[-1]).astype("float64")
        exact = modulus(kernel, image)
        methods = {"SAN": (benchmark.ours(image), exact)}
        if weights == "He normal":
            methods["power iteration"] = benchmark.power_iteration(shape), None
            methods["converged SN"] = (
                norms.spectral_norm,
                np.linalg.svd(matrix, compute_uv=False)[0],
            )
            if np.prod(shape[2:]) * np.prod(image) <= benchmark.FFT_LIMIT:
                fft = args.backend.transforms(image)["rfft2"]
                methods["rfft2"] = fft, exact
        tensor = args.backend.tensor(kernel)
        for name, (function, expected) in methods.items():
            single = args.backend.compile(function)
            many = None
            if weights == "He normal" and name in ("SAN", "power iteration"):
                many = args.backend.compile(
                    lambda *x, f=function: [f(each) for each in x]
                )
            row = shape, image, weights, name
            rows.append((row, tensor, single, many, expected))

    def prepare(row):
        _, tensor, single, many, _ = row
        single(tensor)
        if many is not None:
            many(*[tensor] * COPIES)

    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        list(pool.map(prepare, rows))
    for row, tensor, single, many, expected in rows:
        error = inside = ""
        if expected is not None:
            value = float(args.backend.numpy(single(tensor)))
            error = f"{value / expected - 1.0:.1e}"
        if many is not None:
            inside = milliseconds(args, many, *[tensor] * COPIES) / COPIES
            inside = f"{inside:.4f}"
        once = f"{milliseconds(args, single, tensor):.4f}"
        table.add(*row, once, inside, error)


def modulus(kernel, image):
    """Lemma 1 by NumPy in float64, a few input channels at a time."""
    best = 0.0
    for part in np.array_split(kernel, max(1, kernel.shape[2] // 16), axis=2):
        part = np.moveaxis(part.astype("float64"), (2, 3), (0, 1))
        best = max(best, np.abs(np.fft.rfft2(part, image)).max())
    return best


def milliseconds(args, function, *arguments):
    """The median over groups of calls, of which a call's share is taken."""
    groups, calls = (2, 1) if args.quick else (7, 20)
    args.backend.wait(function(*arguments))
    times = []
    for _ in range(groups):
        start = time.perf_counter()
        for _ in range(calls):
            result = function(*arguments)
        args.backend.wait(result)
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times) / calls


def time_updates(args):
    """One update of a critic, by network, precision and method."""
    table = Table(
        args,
        f"updates-{BACKEND}",
        ["network", "dtype", "method", "ms", "extra MiB", "compile s"],
    )
    for network, dtype in itertools.product(args.networks, args.dtypes):
        keras.config.set_dtype_policy(dtype)
        with on_host():
            prepared = {
                name: Update(args, network, *METHODS[name])
                for name in args.methods
            }
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            compiled = {
                name: pool.submit(update.compile)
                for name, update in prepared.items()
            }
            concurrent.futures.wait(compiled.values())
        for name, update in prepared.items():
            try:
                seconds = compiled[name].result()
                cells = (
                    f"{milliseconds(args, update.run):.3f}",
                    update.extra_mib(),
                    f"{seconds:.1f}",
                )
            except Exception as error:  # A row, and on with the others.
                traceback.print_exc()
                cells = f"{type(error).__name__}: {error}"[:200], "", ""
            table.add(network, dtype, name, *cells)
            update.state = None


def on_host():
    """Where JAX builds networks: it compiles operation by operation there."""
    if BACKEND != "jax":
        return contextlib.nullcontext()
    import jax

    return jax.default_device(jax.devices("cpu")[0])


# Image, channels of label maps, batch, and what makes the critic.
NETWORKS = {
    "CNN 32": ((32, 32), 0, 64, sngan.critic),
    "ResNet 32": ((32, 32), 0, 64, sngan.resnet_critic),
    "SPADE 256x512": ((256, 512), 36, 4, spade.critic),
}


class Update:
    """One update of a critic with Adam, as `keras_san.GAN` does it.

    `GAN` itself also makes images and reports means, and does not run on all
    backends.
    """

    def __init__(self, args, network, normalizer, padding, penalty):
        image, map_channels, batch, make = NETWORKS[network]
        if args.quick:
            batch = 2
            image = tuple(min(n, 64) for n in image)
        self.args = args
        self.critic = make(
            image if map_channels else image[0],
            width=0.125 if args.quick else 1.0,
            normalizer=normalizer,
            padding=padding,
        )
        self.penalty = {
            None: None,
            "wgan_gp": penalties.GradientPenalty(),
            "r1": penalties.R1(R1_GAMMA),
        }[penalty]
        self.hinge = losses.Hinge()
        self.optimizer = keras.optimizers.Adam(2e-4, beta_1=0.5, beta_2=0.9)
        self.variables = self.critic.trainable_variables
        self.optimizer.build(self.variables)
        rng = np.random.default_rng(args.seed)
        size = batch, *image

        def draw(*shape):
            uniform = rng.uniform(-1, 1, shape).astype("float32")
            return ops.convert_to_tensor(uniform)

        self.data = [
            draw(*size, 3),
            draw(*size, 3),
            draw(batch, 1, 1, 1) / 2.0 + 0.5,
            draw(*size, map_channels) if map_channels else None,
        ]

    def loss(self, data):
        """The loss of the critic."""
        real, fake, share, maps = data

        def criticize(images):
            inputs = images if maps is None else [images, maps]
            logits = self.critic(inputs, training=True)
            if maps is None:
                return [ops.cast(logits, "float32")]
            return [ops.cast(scale[-1], "float32") for scale in logits]

        def score(points):
            return sum(map(ops.sum, criticize(points[0])))

        of_real = criticize(real)
        with keras_san.hold_norms():
            of_fake = criticize(fake)
            loss = sum(map(self.hinge.critic, of_real, of_fake)) / len(of_real)
            if self.penalty is not None:
                points = [self.penalty.points(real, fake, share)]
                variables = self.critic.variables
                (gradients,) = input_gradients(score, points, variables)
                loss = loss + self.penalty(gradients)
        return loss

    def step(self, data):
        """One update, uncompiled."""
        return minimize(
            lambda: (self.loss(data), ()),
            self.optimizer,
            self.variables,
            self.critic.variables,
        )

    def compile(self):
        """Makes `run()`, one update; returns the seconds that it took."""
        start = time.perf_counter()
        self.run = getattr(self, f"_compile_{BACKEND}")()
        return time.perf_counter() - start

    def _compile_jax(self):
        import jax

        device = jax.devices()[0]
        groups = (
            self.variables,
            self.critic.non_trainable_variables,
            self.optimizer.variables,
        )
        self.state = tuple(copies(group, device) for group in groups)
        self.data = jax.device_put(self.data, device)
        step = jax.jit(as_pure_function(self.step, groups), donate_argnums=0)
        self.compiled = step.lower(self.state, self.data).compile()

        def run():
            _, self.state = self.compiled(self.state, self.data)
            return self.state

        return run

    def _compile_torch(self):
        step = self.args.backend.compile(self.step)
        return lambda: step(self.data)

    def extra_mib(self):
        """Peak memory beyond weights, slots and data; "" if unknown."""
        if BACKEND == "jax":
            size = self.compiled.memory_analysis().temp_size_in_bytes
            return f"{size / 2**20:.1f}"
        mib = self.args.backend.extra_memory(self.run, [])
        return "" if mib is None else f"{mib:.1f}"


def copies(variables, device):
    """Their values on a device, to be given away."""
    import jax

    return [jax.device_put(np.asarray(v.value), device) for v in variables]


# Of the trainings: normalizer, padding, loss, penalty.
CRITICS = {
    "none": (None, "same", "hinge", None),
    "sn": ("sn", "same", "hinge", None),
    "san": ("san", "circular", "hinge", None),
    "san_same": ("san", "same", "hinge", None),
    "san_project": (
        keras_san.normalizers.SparsityAware(form="project"),
        "circular",
        "hinge",
        None,
    ),
    "r1": (None, "same", "non_saturating", penalties.R1(R1_GAMMA)),
}


def train(args):
    """SN-GAN's CNN at full width, JAX only: judge FID over the steps.

    Images lie on the device, and many steps are one program, so that several
    trainings beside each other fill it.
    """
    import jax

    with np.load(args.data) as file:
        images = file["images"]
    extractor = extractors.KerasExtractor(args.judge, batch_size=1000)
    samples = 100 if args.quick else 10_000
    in_graph = 2 if args.quick else 100
    batch = 4 if args.quick else 64

    fid = generative.FrechetInceptionDistance(extractor)
    score = generative.InceptionScore(extractor)
    for start in range(0, len(images), 5000):
        fid.update_state(images[start : start + 5000], real=True)

    keras.utils.set_random_seed(args.seed)
    normalizer, padding, loss, penalty = CRITICS[args.critic]
    width = 0.125 if args.quick else 1.0
    resolution = images.shape[1]
    with on_host():
        gan = keras_san.GAN(
            sngan.generator(resolution, width=width),
            sngan.critic(
                resolution, width=width, normalizer=normalizer, padding=padding
            ),
            latent_dim=128,
            loss=loss,
            penalty=penalty,
            ema=0.999,
            seed=args.seed,
        )
        gan.compile()
    groups = gan._state_variables()
    device = jax.devices()[0]
    images = jax.device_put(images, device)

    def steps(state, key, images):
        def one(state, key):
            index, flip = jax.random.split(key)
            index = jax.random.randint(index, (batch,), 0, len(images))
            real = images[index].astype("float32") / 127.5 - 1.0
            flip = jax.random.bernoulli(flip, 0.5, (batch, 1, 1, 1))
            real = jax.numpy.where(flip, real[:, :, ::-1], real)
            logs, state = gan.train_step(state, real)
            return state, logs

        keys = jax.random.split(key, in_graph)
        state, logs = jax.lax.scan(one, state, keys)
        return state, {name: value[-1] for name, value in logs.items()}

    steps = jax.jit(steps, donate_argnums=0)
    state = tuple(copies(group, device) for group in groups)
    key = jax.random.key(args.seed)
    table = Table(
        args,
        f"train-{args.critic}-{args.seed}",
        ["step", "seconds", "fid", "is", "real_logit", "fake_logit"],
    )
    seconds = 0.0
    for step in range(in_graph, args.steps + 1, in_graph):
        start = time.perf_counter()
        state, logs = steps(state, jax.random.fold_in(key, step), images)
        logs = {name: float(value) for name, value in logs.items()}
        if step > in_graph:  # The first compiles.
            seconds += time.perf_counter() - start
        over = args.until is not None and time.time() > args.until
        if step % args.every == 0 or over:
            for group, values in zip(groups, state):
                for variable, value in zip(group, values):
                    variable.assign(value)
            fid.reset_state(keep_real=True)
            score.reset_state()
            generated = gan.generate(samples, seed=1, batch_size=500)
            fid.update_state(generated)
            score.update_state(generated)
            table.add(
                step,
                f"{seconds:.1f}",
                f"{fid.result()['fid']:.2f}",
                f"{score.result()['inception_score']:.3f}",
                f"{logs['real_logit']:.4g}",
                f"{logs['fake_logit']:.4g}",
            )
            state = tuple(copies(group, device) for group in groups)
        if over:
            break


if __name__ == "__main__":
    main()
