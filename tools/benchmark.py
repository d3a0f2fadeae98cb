"""Times what normalization costs: norms, padding, updates, the monitor.

Each figure is a median over rounds in which all methods of a comparison run
once, in turn, in this process, after calls that are not counted. See
`python tools/benchmark.py --help`.
"""

import argparse
import csv
import math
import os
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
SECTIONS = ("norm", "growth", "kernels", "padding", "update", "monitor")
COLUMNS = {
    "section": "see `Benchmark`",
    "case": "the critic and layer, or what the kernel is like",
    "kernel": "its shape",
    "image": "height x width",
    "method": "what ran",
    "milliseconds": "median of a call",
    "ratio": "to the first method of the case",
    "ratio_in_graph": "the same where one function holds several such calls",
    "extra_mib": "peak memory of a call beyond what was in use before",
    "value": "the norm that was found",
}

# Above this many numbers the transforms of all padded filters are left out.
FFT_LIMIT = 350_000_000

# Updates from one lazy penalty to the next, as in StyleGAN2.
LAZY = 16

# Kernels in one function, to see the cost of a norm within a graph.
IN_GRAPH = 8


def main(argv=None):
    """Measures as the command line says, prints tables, writes CSV and PNG.

    Args:
        argv: List of strings, or `None` for the arguments of the process.

    Returns:
        A list of dicts, one for each measured method, with `COLUMNS`.

    Raises:
        ValueError: if the device is not there, or nothing is to be measured.
    """
    parser = argparse.ArgumentParser(
        prog="python tools/benchmark.py",
        description=__doc__.splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--backend",
        default=os.environ.get("KERAS_BACKEND", "tensorflow"),
        choices=("tensorflow", "jax", "torch"),
    )
    add("--device", default="cpu", choices=("cpu", "gpu"))
    add(
        "--sections",
        nargs="+",
        default=SECTIONS,
        choices=SECTIONS,
        metavar="SECTION",
        help=f"of {', '.join(SECTIONS)}",
    )
    add(
        "--critic",
        metavar="FILE",
        help="a saved GAN or critic, whose kernels and layers to measure "
        "instead of random ones of all critics",
    )
    add("--match", default="", help="measure layers whose name contains this")
    add("--rounds", type=int, default=31, help="of which the median is taken")
    add("--seed", type=int, default=0)
    add("--quick", action="store_true", help="few and small: does it run?")
    add("--output", default="benchmark", help="folder to write to")
    args = parser.parse_args(argv)
    if args.rounds < 1:
        raise ValueError(
            f"A median needs a round. Received: rounds={args.rounds}"
        )
    os.environ["KERAS_BACKEND"] = args.backend
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    if args.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        os.environ["JAX_PLATFORMS"] = "cpu"
    sys.path.insert(0, ROOT)
    bench = Benchmark(args)
    for section in args.sections:
        getattr(bench, section)()
    if not bench.rows:
        raise ValueError(
            "Nothing was measured. Received: "
            f"match={args.match!r}, sections={list(args.sections)}"
        )
    bench.write(args.output)
    return bench.rows


class Benchmark:
    """The sections, each a method, and the rows that they leave."""

    def __init__(self, args):
        import keras
        import numpy as np

        from tools.backends import Backend

        self.rounds = 1 if args.quick else args.rounds
        self.warm_up = 1 if args.quick else 2
        self.in_graph = 2 if args.quick else IN_GRAPH
        self.quick = args.quick
        self.backend = Backend(args.backend, args.device)
        self.compiled = {"jit_compile": self.backend.jit}
        if args.quick and args.backend == "tensorflow":
            # To trace a step takes longer than all that is timed.
            self.compiled = {"run_eagerly": True, "jit_compile": False}
        self.device = f"{self.backend.describe()}, {self.rounds} rounds"
        self.rng = np.random.default_rng(args.seed)
        self.rows = []
        keras.utils.set_random_seed(args.seed)
        self.trained = {}
        if args.critic:
            import keras_san  # noqa: F401, which registers its classes

            model = keras.saving.load_model(args.critic)
            model = getattr(model, "critic", model)
            self.layers = {"trained": convolutions(model)}
            self.trained = {
                layer.name: np.array(layer.kernel)
                for layer in model._flatten_layers(include_self=False)
                if hasattr(layer, "kernel")
            }
        else:
            self.layers = critic_layers()
        for critic, layers in list(self.layers.items()):
            self.layers[critic] = [
                layer
                for layer in layers
                if args.match in f"{critic}, {layer[0]}"
            ]
        if args.quick and not args.critic:
            self.layers = {
                "CNN 32": self.layers["CNN 32"][:1],
                "SPADE 128x256": self.layers["SPADE 128x256"][-1:],
            }

    def norm(self):
        """Ours against power iteration and transforms, layer by layer."""
        seen = set()
        for critic, layers in self.layers.items():
            for name, shape, image, _ in layers:
                if (shape, image) in seen:
                    continue
                seen.add((shape, image))
                kernel = self.trained.get(name)
                if kernel is None:
                    kernel = self._he_normal(shape)
                methods = {
                    "power iteration": power_iteration(shape),
                    "Keras' power iteration": keras_power_iteration(shape),
                    "ours": ours(image),
                    "ours, ratio=0.25": ours(image, ratio=0.25, seed=0),
                }
                numbers = math.prod(shape[2:]) * math.prod(image)
                if numbers <= FFT_LIMIT and shape[0] <= min(image):
                    methods.update(self.backend.transforms(image))
                self._compare(
                    "norm", f"{critic}, {name}", methods, kernel, image
                )

    def growth(self):
        """Ours as the image grows, against its cost on the smallest one."""
        shape = (3, 3, 8, 8) if self.quick else (3, 3, 256, 256)
        kernel = self._he_normal(shape)
        sizes = (32, 64) if self.quick else (32, 64, 128, 256, 512, 1024)
        methods = {f"{size}x{size}": ours((size, size)) for size in sizes}
        self._compare("growth", "He normal", methods, kernel, ("N", "N"))

    def kernels(self):
        """Ours on hard kernels, against the scan that it falls back on."""
        cases = [((3, 3, 256, 256), (32, 32)), ((4, 4, 256, 512), (8, 8))]
        if self.quick:
            cases = [((3, 3, 16, 16), (32, 32))]
        for shape, image in cases:
            for name, kernel in hard_kernels(shape, self.rng).items():
                methods = {"scan": scan(shape, image), "ours": ours(image)}
                self._compare("kernels", name, methods, kernel, image)

    def padding(self):
        """Circular against zero padding, forward and backward."""
        from keras import ops

        from keras_san import SANConv2D

        totals = {}
        batches = {"SR": 16, "SP": 4, "Wi": 1}
        for critic, layers in self.layers.items():
            batch = 2 if self.quick else batches.get(critic[:2], 64)
            for name, shape, image, stride in layers:
                inputs = self.rng.normal(size=(batch, *image, shape[2]))
                methods = {}
                for padding in ("same", "circular"):
                    layer = SANConv2D(
                        shape[3],
                        shape[:2],
                        strides=stride,
                        padding=padding,
                        normalizer=None,
                    )
                    layer.build(inputs.shape)
                    methods[padding] = self.backend.gradient_step(layer)
                rows = self._compare(
                    "padding",
                    f"{critic}, {name}",
                    methods,
                    ops.convert_to_tensor(inputs, "float32"),
                    image,
                    shape=shape,
                    compiled=True,
                )
                for row in rows:
                    key = critic, row["method"]
                    totals[key] = totals.get(key, 0.0) + row["milliseconds"]
        for critic in dict.fromkeys(critic for critic, _ in totals):
            zero = totals[critic, "same"]
            for padding in ("same", "circular"):
                total = totals[critic, padding]
                self._add(
                    section="padding",
                    case=f"{critic}, sum",
                    method=padding,
                    milliseconds=total,
                    ratio=total / zero,
                )

    def update(self):
        """A whole update of the CNN critic, by what keeps it in check."""
        import keras

        import keras_san
        from keras_san.networks import sngan

        batch = 2 if self.quick else 64
        width = 0.125 if self.quick else 1.0

        class CriticOnly(keras_san.GAN):
            """One update of the critic a step, and none of the generator."""

            def _generator_step(self, real, condition):
                zero = keras.ops.zeros(())
                return {"loss": zero, "generator_loss": zero}

        def gan(critic, **kwargs):
            generator = keras.Sequential(
                [
                    keras.Input((4,)),
                    keras.layers.Dense(32 * 32 * 3, activation="tanh"),
                    keras.layers.Reshape((32, 32, 3)),
                ]
            )
            gan = CriticOnly(generator, critic, latent_dim=4, **kwargs)
            gan.compile(**self.compiled)
            return gan

        def critic(normalizer, padding):
            return sngan.critic(
                32, width=width, normalizer=normalizer, padding=padding
            )

        def with_keras_norm():
            # The same critic, of Keras' own layers.
            plain = critic(None, "same")
            model = keras.Sequential([keras.Input((32, 32, 3))])
            for layer in plain.layers:
                config = layer.get_config()
                config.pop("normalizer", None)
                if isinstance(layer, keras.layers.Conv2D):
                    layer = keras.layers.Conv2D.from_config(
                        {**config, "padding": "same"}
                    )
                elif isinstance(layer, keras.layers.Dense):
                    layer = keras.layers.Dense.from_config(config)
                else:
                    model.add(layer.__class__.from_config(config))
                    continue
                model.add(keras.layers.SpectralNormalization(layer))
            return model

        gans = {
            "none, zero padding": gan(critic(None, "same")),
            "none, circular": gan(critic(None, "circular")),
            "SAN, circular": gan(critic("san", "circular")),
            "SN, circular": gan(critic("sn", "circular")),
            "Keras' SpectralNormalization": gan(with_keras_norm()),
            "WGAN-GP, zero padding": gan(
                critic(None, "same"),
                loss="wasserstein",
                penalty=keras_san.penalties.GradientPenalty(),
            ),
            "R1, zero padding": gan(
                critic(None, "same"), penalty=keras_san.penalties.R1(1.0)
            ),
            "none, zero padding, joint": gan(critic(None, "same"), joint=True),
            "SAN, circular, joint": gan(critic("san", "circular"), joint=True),
        }
        lazy = keras_san.penalties.R1(1.0, interval=LAZY)
        lazy = gan(critic(None, "same"), penalty=lazy)
        real = self.rng.uniform(-1, 1, (batch, 32, 32, 3)).astype("float32")

        def train_lazily(real):
            for _ in range(LAZY):
                logs = lazy.train_on_batch(real)
            return logs

        methods = {name: one.train_on_batch for name, one in gans.items()}
        methods[f"R1 every {LAZY}, zero padding"] = train_lazily
        if self.quick:
            methods = {
                name: methods[name]
                for name in (
                    "none, zero padding",
                    "Keras' SpectralNormalization",
                    "WGAN-GP, zero padding",
                )
            }
        self._compare(
            "update",
            f"CNN 32, batch {batch}",
            methods,
            real,
            (32, 32),
            shape=(),
            compiled=True,
            repeats={f"R1 every {LAZY}, zero padding": LAZY},
        )

    def monitor(self):
        """A diagnosis, as a monitor makes it, against one step."""
        import keras_san
        from keras_san.networks import sngan

        batch = 2 if self.quick else 64
        real = self.rng.uniform(-1, 1, (batch, 32, 32, 3)).astype("float32")
        for width in (0.125,) if self.quick else (0.25, 1.0):
            gan = keras_san.GAN(
                sngan.generator(32, width=width),
                sngan.critic(32, width=width, normalizer="san"),
                latent_dim=128,
            )
            gan.compile(**self.compiled)
            with tempfile.TemporaryDirectory() as folder:
                monitor = keras_san.callbacks.NormMonitor(folder, real[:16])
                monitor.set_model(gan)

                def observe(real, monitor=monitor):
                    monitor.on_train_begin()

                self._compare(
                    "monitor",
                    f"CNN 32, width {width}, batch {batch}",
                    {"a step": gan.train_on_batch, "a diagnosis": observe},
                    real,
                    (32, 32),
                    shape=(),
                    compiled=True,
                )

    def _he_normal(self, shape):
        scale = math.sqrt(2.0 / math.prod(shape[:-1]))
        return (scale * self.rng.normal(size=shape)).astype("float32")

    def _compare(
        self,
        section,
        case,
        methods,
        data,
        image,
        shape=None,
        compiled=False,
        repeats={},
    ):
        """Times the methods in turn; the first is what others relate to.

        `repeats` says how often a method's call does what is to be timed.
        """
        calls, in_graph = {}, {}
        for name, function in methods.items():
            if compiled:
                calls[name] = function, (data,)
            else:
                shape = tuple(data.shape)
                tensor = self.backend.tensor(data)
                calls[name] = self.backend.compile(function), (tensor,)
                if "fft" not in name and section != "kernels":
                    copies = [self.backend.tensor(data)] * self.in_graph
                    in_graph[name] = self._on_each(function), copies
        fast = {n: c for n, c in calls.items() if "fft" not in n}
        slow = {n: c for n, c in calls.items() if "fft" in n}
        times = self._medians(fast, self.rounds)
        times.update(self._medians(slow, min(self.rounds, 3)))
        times = {n: time / repeats.get(n, 1) for n, time in times.items()}
        graph_times = self._medians(in_graph, self.rounds)
        first = next(iter(methods))
        rows = []
        for name, (function, arguments) in calls.items():
            value = None
            if not compiled:
                value = float(self.backend.numpy(function(*arguments)))
            graph_ratio = None
            if name in graph_times:
                graph_ratio = graph_times[name] / graph_times[first]
            rows.append(
                self._add(
                    section=section,
                    case=case,
                    kernel="x".join(map(str, shape)),
                    image="x".join(map(str, image)),
                    method=name,
                    milliseconds=times[name],
                    ratio=times[name] / times[first],
                    ratio_in_graph=graph_ratio,
                    extra_mib=self.backend.extra_memory(function, arguments),
                    value=value,
                )
            )
        return rows

    def _on_each(self, function):
        return self.backend.compile(lambda *x: [function(each) for each in x])

    def _medians(self, calls, rounds):
        times = {name: [] for name in calls}
        for number in range(-self.warm_up, rounds):
            for name, (function, arguments) in calls.items():
                start = time.perf_counter()
                self.backend.wait(function(*arguments))
                if number >= 0:
                    times[name].append(time.perf_counter() - start)
        return {n: 1e3 * sorted(t)[len(t) // 2] for n, t in times.items()}

    def _add(self, **row):
        row = {name: row.get(name) for name in COLUMNS}
        if not self.rows or self.rows[-1]["section"] != row["section"]:
            print(f"\n{row['section']} ({self.device})\n{header()}", flush=True)
        print(line(row), flush=True)
        self.rows.append(row)
        return row

    def write(self, folder):
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, "benchmark")
        with open(f"{path}.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.rows)
        with open(f"{path}.md", "w") as file:
            for section in dict.fromkeys(row["section"] for row in self.rows):
                file.write(f"## {section}\n\n{self.device}\n\n{header()}\n")
                for row in self.rows:
                    if row["section"] == section:
                        file.write(line(row) + "\n")
                file.write("\n")
        draw(self.rows, f"{path}.png", self.device)
        print(f"\nwrote {path}.csv, .md and .png")


def critic_layers():
    """All convolutions: `{critic: [(name, kernel shape, image, stride)]}`."""
    from keras_san.networks import biggan, sngan, spade, srgan

    found = {}
    for name, model in {
        "CNN 32": sngan.critic(32, normalizer=None),
        "CNN 48": sngan.critic(48, normalizer=None),
        "ResNet 32": sngan.resnet_critic(32, normalizer=None),
        "ResNet 48": sngan.resnet_critic(48, normalizer=None),
        "BigGAN 32": biggan.critic(32, normalizer=None),
        "SR 128": srgan.critic(128, normalizer=None),
    }.items():
        found[name] = convolutions(model)
    # SPADE's has one critic for each of two scales.
    layers = convolutions(spade.critic((256, 512), normalizer=None))
    for scale, image in (("scale_1_", "256x512"), ("scale_2_", "128x256")):
        found[f"SPADE {image}"] = [
            (name.removeprefix(scale), *rest)
            for name, *rest in layers
            if name.startswith(scale)
        ]
    # No critic of the papers: what their transforms take too long for.
    found["Wide 32"] = [("512 channels", (3, 3, 512, 512), (32, 32), 1)]
    return found


def convolutions(model):
    """`[(name, kernel shape, image, stride)]` of a model's convolutions."""
    return [
        (
            layer.name,
            tuple(layer.kernel.shape),
            tuple(layer.input.shape[1:3]),
            layer.strides[0],
        )
        for layer in model._flatten_layers(include_self=False)
        if len(getattr(getattr(layer, "kernel", None), "shape", ())) == 4
    ]


def hard_kernels(shape, rng):
    """Kernels of that shape whose bounds decide more or less."""
    import numpy as np

    k, _, fan_in, out = shape
    spread = math.sqrt(6.0 / (k * k * (fan_in + out)))
    one_hot = np.zeros((k * k, fan_in * out))
    one_hot[rng.integers(k * k, size=fan_in * out), range(fan_in * out)] = 1.0
    # Quadratic phases have flat spectra, which the sum of moduli exceeds.
    t = (np.arange(k) + rng.integers(k, size=(2, fan_in, out, 1))) % k
    y, x = np.cos(np.pi * t**2 / k + 1e-3 * rng.uniform(size=t.shape))
    kernels = {
        "He normal": math.sqrt(2.0 / (k * k * fan_in)) * rng.normal(size=shape),
        "Glorot uniform": rng.uniform(-spread, spread, shape),
        "Student t (3 degrees)": rng.standard_t(3, shape),
        "one-hot": one_hot.reshape(shape),
        "all filters equal": np.broadcast_to(
            rng.normal(size=(k, k, 1, 1)), shape
        ),
        "nearly tied": rng.normal(size=(k, k, 1, 1))
        + 1e-3 * rng.normal(size=shape),
        "chirps": np.einsum("ijy,ijx->yxij", y, x),
        "signs": rng.choice([-1.0, 1.0], shape),
    }
    return {name: kernel.astype("float32") for name, kernel in kernels.items()}


def ours(image, **kwargs):
    """The norm as the package has it, exact unless `kwargs` say otherwise."""
    from keras_san.norms import sparsity_aware_norm

    return lambda kernel: sparsity_aware_norm(kernel, image, **kwargs)


def scan(shape, image):
    """The scan of all filters at all frequencies, as the last resort."""
    from keras import ops

    from keras_san import spectra

    taps = spectra.indices(shape[:2]).astype("int32")

    def norm(kernel):
        filters = ops.reshape(kernel, (len(taps), -1))
        return spectra._scan(filters, taps, image)

    return norm


def power_iteration(shape):
    """One step of Miyato et al., Algorithm 1: two products with the kernel."""
    from keras import ops

    def norm(kernel):
        matrix = ops.reshape(kernel, (-1, shape[-1]))
        v = _unit(ops.matmul(_start(shape), ops.transpose(matrix)))
        return _length(ops.matmul(v, matrix))

    return norm


def keras_power_iteration(shape):
    """One step of `keras.layers.SpectralNormalization`: three products."""
    from keras import ops

    def norm(kernel):
        matrix = ops.reshape(kernel, (-1, shape[-1]))
        v = _unit(ops.matmul(_start(shape), ops.transpose(matrix)))
        u = _unit(ops.matmul(v, matrix))
        product = ops.matmul(ops.matmul(v, matrix), ops.transpose(u))
        return ops.reshape(product, ())

    return norm


def _start(shape):
    import numpy as np

    return np.full((1, shape[-1]), shape[-1] ** -0.5, "float32")


def _length(x):
    from keras import ops

    return ops.sqrt(ops.sum(ops.square(x)))


def _unit(x):
    from keras import ops

    return x / ops.maximum(_length(x), 1e-12)


def header():
    """The first two lines of a table."""
    names = " | ".join(name.replace("_", " ") for name in list(COLUMNS)[1:])
    return f"| {names} |\n|{'---|' * (len(COLUMNS) - 1)}"


def line(row):
    """The line of a table that shows a row."""
    formats = {
        "milliseconds": ".3f",
        "ratio": ".2f",
        "ratio_in_graph": ".2f",
        "extra_mib": ".1f",
        "value": ".7g",
    }
    cells = []
    for name in list(COLUMNS)[1:]:
        value = row[name]
        if value is None:
            cells.append("")
        else:
            cells.append(format(value, formats.get(name, "")))
    return f"| {' | '.join(cells)} |"


def draw(rows, path, title):
    """The ratios of all cases, one panel for each section."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    sections = list(dict.fromkeys(row["section"] for row in rows))
    cases = {
        s: list(dict.fromkeys(r["case"] for r in rows if r["section"] == s))
        for s in sections
    }
    heights = [4 + len(cases[section]) for section in sections]
    # Below two inches there is no room for a panel beside its labels.
    height = max(2.5, 0.15 * sum(heights))
    figure = Figure(figsize=(9, height), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(
        len(sections), squeeze=False, height_ratios=heights
    )
    for axes, section in zip(panels[:, 0], sections):
        chosen = [row for row in rows if row["section"] == section]
        labels = cases[section]
        for method in dict.fromkeys(row["method"] for row in chosen):
            points = [row for row in chosen if row["method"] == method]
            axes.plot(
                [row["ratio"] for row in points],
                [-labels.index(row["case"]) for row in points],
                "o",
                markersize=4,
                label=method,
            )
        axes.set_yticks(range(0, -len(labels), -1), labels, fontsize=6)
        axes.set_title(section, fontsize=9)
        axes.set_xlabel("time, as a ratio", fontsize=7)
        if section in ("norm", "kernels"):
            axes.set_xscale("log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=6)
    figure.suptitle(title, fontsize=8)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")
