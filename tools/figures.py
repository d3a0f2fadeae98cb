r"""Redraws the figures of both papers, from runs of its own.

Each figure is a PNG with a CSV beside it. What must be trained is trained by
`experiments.image_generation`, and kept: run it again to go on. Arguments
behind `--` go to every run, as in

    python tools/figures.py --figures singular_values update_interval \
        -- --data cifar10 --data-dir DIR --width 0.5

See `python tools/figures.py --help`.
"""

import concurrent.futures
import dataclasses
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import keras  # noqa: E402
import numpy as np  # noqa: E402

from experiments import data, settings  # noqa: E402
from experiments.batches import to_float  # noqa: E402
from keras_san import SANWrapper, callbacks, norms  # noqa: E402
from keras_san.callbacks.logs import read_rows, write_rows  # noqa: E402
from keras_san.diagnostics import channel_sparsity, layer_norms  # noqa: E402
from tools import table1  # noqa: E402

BSSN = "bssn,scale=1.6"

# Rows of `tools/table1.py`. Figure 4 is of a WGAN.
EXACT_ROWS = ("sn,loss=wasserstein", "conv_sn,loss=wasserstein")
RESIDUAL_ROWS = (
    "none",
    "sn",
    "san",
    "san,gain=adaptive",
    "san,sparsity=4,update-interval=100",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Redraws the figures of both papers, from runs of its own.

    Arguments behind -- go to every run.
    """

    figures: tuple[str, ...] = ()
    """names, by default all"""
    quick: bool = False
    """few and small: digits, minutes"""
    seeds: tuple[int, ...] = (0,)
    """of these seeds"""
    jobs: int = 1
    """runs at a time, which share the cores"""
    output: str | None = None
    """by default runs/figures, or runs/figures-quick"""

    def path(self, name):
        """The path of a file among the figures."""
        return os.path.join(self.output, name)


def main(argv=None):
    """Draws what the command line asks for, see `make`."""
    return make(*table1.parse(Settings, "tools/figures.py", argv))


def make(args, rest=()):
    """Trains what is missing, and draws.

    Args:
        args: `Settings`.
        rest: List of strings, further arguments of every run.

    Returns:
        A list of strings, the pictures.

    Raises:
        ValueError: if there is no such figure, or a run cannot be trained as
            it is asked for.
    """
    figures = args.figures or tuple(FIGURES)
    if not {*figures} <= {*FIGURES}:
        raise ValueError(
            f"The figures are {[*FIGURES]}. Received: --figures {args.figures}"
        )
    output = args.output or f"runs/figures{'-quick' if args.quick else ''}"
    args = dataclasses.replace(args, output=output)
    os.makedirs(output, exist_ok=True)
    changes = {"monitor": 1000}
    if args.quick:
        # Short runs: most of their time is one core's.
        args = dataclasses.replace(
            args, jobs=max(args.jobs, os.cpu_count() or 1)
        )
        changes = {
            **table1.quick_changes(output),
            "steps_per_epoch": 50,
            "evaluate_every": 50,
            "monitor": 50,
            # The ResNets make no smaller images.
            "size": 32,
        }
    needed = dict.fromkeys(
        pair for name in figures for pair in RUNS[name](args.quick)
    )
    trained = train(args, needed, rest, **changes)
    pictures = []
    for name in figures:
        rows, draw = FIGURES[name](args, trained)
        write_rows(rows, args.path(f"{name}.csv"))
        pictures.append(args.path(f"{name}.png"))
        save(draw, pictures[-1])
        print(f"Look at {pictures[-1]}", flush=True)
    return pictures


def train(args, needed, rest=(), **changes):
    """Trains what is missing.

    Args:
        args: `Settings`.
        needed: Pairs: a network and a row of `tools/table1.py`.
        rest: List of strings, further arguments of every run.
        **changes: As of `table1.matrix`.

    Returns:
        A dict from `(network, row, seed)` to the run, see `table1.matrix`.
    """
    found = {}
    for network, row in needed:
        table = table1.Settings(
            networks=(network,),
            normalizers=(row,),
            seeds=args.seeds,
            output=args.path("runs"),
        )
        for run in table1.matrix(table, rest, **changes):
            found[network, row, run["settings"].seed] = run
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        list(pool.map(table1.train, found.values()))
    failed = [run["name"] for run in found.values() if run["state"] == "failed"]
    if failed:
        raise ValueError(f"These runs failed, see above. Received: {failed}")
    return found


# What each figure needs of runs, and the figures: callables that return the
# rows of the CSV, and a callable that draws them on a Matplotlib figure.


def _intervals(quick):
    return (1, 10, 50) if quick else (1, 10, 100, 1000)


def _interval_rows(quick):
    return ["none", "sn", "san"] + [
        f"san,update-interval={n}" for n in _intervals(quick)[1:]
    ]


def _scales(quick):
    return (0.7, 1.6) if quick else (0.7, 1.0, 1.4, 2.0, 3.0, 4.0)


RUNS = {
    "lipschitz_fit": lambda quick: [],
    "singular_values": lambda quick: [("resnet", "none"), ("resnet", "sn")],
    "exact_normalization": lambda quick: [("cnn", row) for row in EXACT_ROWS],
    "channel_sparsity": lambda quick: [("cnn", "none"), ("resnet", "none")],
    "subset_gain": lambda quick: [("cnn", "none")],
    "residual": lambda quick: [("resnet", row) for row in RESIDUAL_ROWS],
    "update_interval": lambda quick: [
        ("cnn", row) for row in _interval_rows(quick)
    ],
    "gradient_norms": lambda quick: [
        ("cnn", row) for row in ("none", "sn", "conv_sn", BSSN, "san")
    ],
    "scale": lambda quick: [
        ("cnn", f"{name},scale={scale}")
        for name in ("ssn", "bssn")
        for scale in _scales(quick)
    ],
}
RUNS["weight_variance"] = RUNS["gradient_norms"]


def lipschitz_fit(args, trained):
    """SAN paper, Figure 2: fits of a function of slope 1 or -1 everywhere.

    The layers are 1x1 convolutions over points, so that SAN's norm is that of
    Lemma 1: for dense layers it would be SN's.
    """
    x = np.linspace(-4.0, 4.0, 161, dtype="float32")[None, :, None]
    # It rises at both ends, which layers of norm 1 cannot (Example 1).
    target = x + np.abs(x - 1.0) - np.abs(x + 1.0)
    steps = 300 if args.quick else 5000
    fits = {}
    for name in ("none", "sn", "san"):
        keras.utils.set_random_seed(args.seeds[0])
        normalizer = None if name == "none" else name

        def layer(filters, normalizer=normalizer):
            return SANWrapper(keras.layers.Conv1D(filters, 1), normalizer)

        model = keras.Sequential(
            [keras.Input((161, 1)), layer(64), keras.layers.ReLU(), layer(1)]
        )
        model.compile(keras.optimizers.Adam(1e-2), "mse", jit_compile=False)
        model.fit(
            x.repeat(50, 0), target.repeat(50, 0), 1, steps // 50, verbose=0
        )
        fits[name] = np.asarray(model.predict_on_batch(x))[0, :, 0]
    rows = [
        {"x": x[0, i, 0], "target": target[0, i, 0]}
        | {name: fit[i] for name, fit in fits.items()}
        for i in range(x.shape[1])
    ]

    def draw(figure):
        axes = figure.subplots()
        axes.plot(x[0, :, 0], target[0, :, 0], "k.", label="target")
        for name, fit in fits.items():
            error = np.sqrt(np.mean((fit - target[0, :, 0]) ** 2))
            steepest = np.abs(np.diff(fit)).max() / (x[0, 1, 0] - x[0, 0, 0])
            label = f"{name}: error {error:.2g}, steepest {steepest:.2g}"
            axes.plot(x[0, :, 0], fit, label=label)
        axes.legend()
        axes.grid(alpha=0.3)

    return rows, draw


def singular_values(args, trained):
    """SAN paper, Figure 3: the operator norm, and Miyato's estimate of it."""
    rows = []
    for row in ("none", "sn"):
        critic = load(trained["resnet", row, args.seeds[0]]).critic
        for found in layer_norms(critic):
            rows.append(
                {
                    "critic": row,
                    "layer": str(found["layer"]),
                    "operator": found["operator"],
                    "sn": found["sn"],
                    "ratio": found["operator_over_sn"],
                    "limit": found["operator_over_sn_limit"],
                }
            )

    def draw(figure):
        panels = figure.subplots(2, sharex=True, squeeze=False)[:, 0]
        for axes, row in zip(panels, ("none", "sn")):
            some = [r for r in rows if r["critic"] == row]
            names = [r["layer"] for r in some]
            axes.plot(names, [r["operator"] for r in some], "k-o", label="true")
            axes.plot(names, [r["sn"] for r in some], "r-o", label="Miyato's")
            for r in some:
                axes.annotate(f"{r['ratio']:.1f}", (r["layer"], r["operator"]))
            axes.set_title(f"ResNet critic trained with {row}")
            axes.set_ylabel("top singular value")
            axes.set_ylim(0)
            axes.legend()
        panels[-1].tick_params("x", rotation=90)

    return rows, draw


def exact_normalization(args, trained):
    """SAN paper, Figure 4: the exact operator norm, and Miyato's estimate."""
    return curves(args, trained, "cnn", EXACT_ROWS)


def update_interval(args, trained):
    """SAN paper, Figure 6: norms that are measured ever more rarely."""
    return curves(args, trained, "cnn", _interval_rows(args.quick))


def residual(args, trained):
    """Beyond the papers: SAN for signals that are not sparse, on a ResNet."""
    return curves(args, trained, "resnet", RESIDUAL_ROWS)


def curves(args, trained, network, names):
    """The critic's loss and FID of runs over the steps."""
    rows = []
    for name in names:
        for seed in args.seeds:
            log = log_of(trained[network, name, seed])
            for entry in log:
                values = {
                    key: value
                    for key, value in entry.items()
                    if key in ("step", "critic_loss")
                    or key.endswith(("fid", "judge_is"))
                }
                rows.append({"run": name, "seed": seed, **values})

    def draw(figure):
        keys = [k for k in ("critic_loss", *_metrics(rows))]
        panels = figure.subplots(1, len(keys), squeeze=False)[0]
        for axes, key in zip(panels, keys):
            for name in names:
                for seed in args.seeds:
                    some = [
                        (r["step"], r[key])
                        for r in rows
                        if (r["run"], r["seed"]) == (name, seed) and key in r
                    ]
                    if some:
                        axes.plot(*zip(*some), marker=".", label=name)
            axes.set_title(key)
            axes.set_xlabel("step")
            axes.grid(alpha=0.3)
        # Wasserstein's may differ by powers of ten, and is of both signs.
        if max(abs(r["critic_loss"]) for r in rows) > 10.0:
            panels[0].set_yscale("symlog", linthresh=0.01)
        panels[0].legend(fontsize="small")

    return rows, draw


def sparsity(args, trained):
    """SAN paper, Figure 5: how large channels are, behind each activation."""
    found = {}
    for network in ("cnn", "resnet"):
        run = trained[network, "none", args.seeds[0]]
        images = real_images(run, 128 if args.quick else 2048)
        found[network] = channel_sparsity(load(run).critic, images)
    rows = [
        {
            "critic": network,
            **{
                name: row[name].item()
                for name in row.dtype.names
                if name != "histogram"
            },
            **{f"share_{i}": x for i, x in enumerate(row["histogram"])},
        }
        for network, records in found.items()
        for row in records
    ]

    def draw(figure):
        panels = figure.subplots(1, 2, squeeze=False)[0]
        for axes, (network, records) in zip(panels, found.items()):
            last = records[-1]
            edges = np.linspace(0.0, 1.0, len(last["histogram"]) + 1)
            axes.stairs(last["histogram"], edges, fill=True)
            axes.set_title(
                f"last layer of the {network}: {last['zero']:.0%} zero, "
                f"{last['nearly_zero']:.0%} nearly,\nenergy of "
                f"{last['effective']:.1f} of {last['channels']} channels",
                fontsize=9,
            )
            axes.set_xlabel("norm of a channel over the largest")

    return rows, draw


def subset_gain(args, trained):
    """SAN paper, Eq. 9: the gain of a share of filters, and the best one."""
    rng = np.random.default_rng(args.seeds[0])
    critic = load(trained["cnn", "none", args.seeds[0]]).critic
    trained_kernel = max(
        (np.asarray(w) for w in critic.get_weights() if w.ndim == 4),
        key=lambda kernel: kernel.shape[-2] * kernel.shape[-1],
    )
    kernels = {
        "Gaussian": rng.normal(size=trained_kernel.shape),
        "trained": trained_kernel,
    }
    draws = 100 if args.quick else 2000
    rows = []
    for name, kernel in kernels.items():
        transform = np.abs(np.fft.rfft2(kernel, (32, 32), axes=(0, 1)))
        tops = transform.max(axis=(0, 1)).ravel()
        for ratio in (0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0):
            size = int(np.ceil(len(tops) * ratio))
            found = np.array(
                [
                    tops[rng.permutation(len(tops))[:size]].max()
                    for _ in range(draws)
                ]
            )
            rows.append(
                {
                    "kernel": name,
                    "shape": " x ".join(map(str, kernel.shape)),
                    "ratio": ratio,
                    "eq9": norms.subset_gain(len(tops), ratio),
                    "measured": tops.max() / np.mean(found),
                    "measured_std": np.std(tops.max() / found),
                }
            )

    def draw(figure):
        axes = figure.subplots()
        for name in kernels:
            some = [r for r in rows if r["kernel"] == name]
            ratios = [r["ratio"] for r in some]
            axes.errorbar(
                ratios,
                [r["measured"] for r in some],
                [r["measured_std"] for r in some],
                marker="o",
                capsize=3,
                label=f"best for {name} filters, {some[0]['shape']}",
            )
        axes.plot(ratios, [r["eq9"] for r in some], "k-", label="Eq. 9")
        axes.set_xscale("log")
        axes.set_xlabel("share of the filters")
        axes.set_ylabel("gain")
        axes.grid(alpha=0.3)
        axes.legend()

    return rows, draw


def gradient_norms(args, trained):
    """Lin et al.: gradients of the critic's kernels during training."""
    return monitored(args, trained, "gradient_norm", "gradient norm")


def weight_variance(args, trained):
    """Lin et al.: the variance of the weights over LeCun's, during training."""
    return monitored(args, trained, "variance_lecun", "variance over LeCun's")


def monitored(args, trained, field, title):
    """Rows of a `NormMonitor`: the range over the layers."""
    names = [row for _, row in RUNS["gradient_norms"](args.quick)]
    rows = []
    for name in names:
        for seed in args.seeds:
            folder = trained["cnn", name, seed]["folder"]
            for entry in read_rows(os.path.join(folder, "monitor.csv")):
                values = {
                    key.partition("/")[2]: float(value)
                    for key, value in entry.items()
                    if key.startswith(f"{field}/")
                }
                rows.append(
                    {
                        "run": name,
                        "seed": seed,
                        "step": int(entry["step"]),
                        "mean": np.exp(np.mean(np.log([*values.values()]))),
                        **values,
                    }
                )

    def draw(figure):
        axes = figure.subplots()
        for name in names:
            some = [
                r
                for r in rows
                if (r["run"], r["seed"]) == (name, args.seeds[0])
            ]
            steps = [r["step"] for r in some]
            layers = [k for k in some[0] if k not in ("run", "seed", "step")]
            (line,) = axes.plot(steps, [r["mean"] for r in some], label=name)
            low, high = (
                [end(r[k] for k in layers if k in r) for r in some]
                for end in (min, max)
            )
            axes.fill_between(
                steps, low, high, color=line.get_color(), alpha=0.12
            )
        axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.set_ylabel(f"{title}: geometric mean and range of the layers")
        axes.grid(alpha=0.3)
        axes.legend()

    return rows, draw


def scale(args, trained):
    """Lin et al.: quality against the scale of SSN and BSSN."""
    rows = []
    for name in ("ssn", "bssn"):
        for value in _scales(args.quick):
            for seed in args.seeds:
                log = log_of(trained["cnn", f"{name},scale={value}", seed])
                last = [r for r in log if _metrics([r])][-1:]
                for entry in last:
                    rows.append(
                        {
                            "run": name,
                            "scale": value,
                            "seed": seed,
                            "step": entry["step"],
                            **{k: entry[k] for k in _metrics([entry])},
                        }
                    )

    def draw(figure):
        keys = _metrics(rows)
        panels = figure.subplots(1, max(1, len(keys)), squeeze=False)[0]
        for axes, key in zip(panels, keys):
            for name in ("ssn", "bssn"):
                some = [r for r in rows if r["run"] == name]
                values = sorted({r["scale"] for r in some})
                means = [
                    np.mean([r[key] for r in some if r["scale"] == v])
                    for v in values
                ]
                axes.plot(values, means, marker="o", label=name)
            axes.set_xlabel("scale")
            axes.set_title(key)
            axes.grid(alpha=0.3)
            axes.legend()

    return rows, draw


FIGURES = {
    "lipschitz_fit": lipschitz_fit,
    "singular_values": singular_values,
    "exact_normalization": exact_normalization,
    "channel_sparsity": sparsity,
    "update_interval": update_interval,
    "residual": residual,
    "subset_gain": subset_gain,
    "gradient_norms": gradient_norms,
    "weight_variance": weight_variance,
    "scale": scale,
}


def _metrics(rows):
    """The values that an evaluation has left in rows, by name."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [n for n in names if n.endswith(("fid", "_is")) or n == "is"]


def load(run):
    """The GAN that a run has left."""
    return keras.saving.load_model(os.path.join(run["folder"], "gan.keras"))


def log_of(run):
    """The rows of a run's log."""
    return callbacks.read_log(os.path.join(run["folder"], "log.csv"))


def real_images(run, count):
    """Images that a run was trained on, in [-1, 1]."""
    args = run["settings"]
    images = data.load(args.data, data_dir=args.data_dir, size=args.size).images
    return to_float(images[:: max(1, len(images) // count)][:count])


def save(draw, path):
    """Draws on a new figure, and saves it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    FigureCanvasAgg(figure)
    draw(figure)
    figure.savefig(path, dpi=100)


if __name__ == "__main__":
    settings.start(lambda: main() and None)
