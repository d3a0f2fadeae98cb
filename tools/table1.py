r"""Trains a matrix of networks, normalizers and seeds, and makes one table.

Run it again to go on: finished runs are kept, interrupted ones are resumed.
Arguments behind `--` go to every run, as in

    python tools/table1.py --networks cnn --normalizers san sn,form=project \
        --seeds 0 1 2 -- --download --width 0.5

which by default train on CIFAR-10, and are evaluated every 5,000 steps.

See `python tools/table1.py --help`.
"""

import csv
import dataclasses
import json
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from experiments import image_generation, settings  # noqa: E402
from keras_san import callbacks  # noqa: E402
from tools import judge  # noqa: E402

# Published Inception scores, from Table 1 of the SAN paper, and FIDs, from
# the SN-GAN paper, which took them of 5,000 samples.
PUBLISHED = {
    "cifar10": {
        ("cnn", "clip"): ("6.41 ± .11", "42.6"),
        ("cnn", "wgan_gp"): ("6.68 ± .06", "40.2"),
        ("cnn", "batch_norm"): ("6.27 ± .10", "56.3"),
        ("cnn", "layer_norm"): ("7.19 ± .12", "33.9"),
        ("cnn", "weight_norm"): ("6.84 ± .07", "34.7"),
        ("cnn", "orthonormal"): ("7.40 ± .12", "29.0"),
        ("cnn", "sn"): ("7.58 ± .12", "25.5"),
        ("cnn", "san"): ("7.89 ± .09", ""),
        ("resnet", "orthonormal"): ("7.92 ± .04", "23.8"),
        ("resnet", "sn"): ("8.22 ± .05", "21.7"),
        ("resnet", "san"): ("8.43 ± .13", ""),
        ("biggan", "sn"): ("9.24 ± .16", ""),
        ("biggan", "san"): ("9.53 ± .13", ""),
    },
    "stl10": {
        ("cnn", "clip"): ("7.57 ± .10", "64.2"),
        ("cnn", "wgan_gp"): ("8.42 ± .13", "55.1"),
        ("cnn", "layer_norm"): ("7.61 ± .12", "75.6"),
        ("cnn", "weight_norm"): ("7.16 ± .10", "73.4"),
        ("cnn", "orthonormal"): ("8.67 ± .08", "44.2"),
        ("cnn", "sn"): ("8.79 ± .14", "43.2"),
        ("cnn", "san"): ("9.18 ± .06", ""),
        ("resnet", "orthonormal"): ("8.72 ± .06", "42.4"),
        ("resnet", "sn"): ("9.10 ± .04", "40.1"),
        ("resnet", "san"): ("9.21 ± .10", ""),
    },
}

COLUMNS = [
    "network",
    "normalizer",
    "seed",
    "published IS",
    "published FID",
    "measured IS",
    "measured FID",
    "measured KID",
    "samples",
    "splits",
    "steps",
    "extractor",
    "hours",
    "state",
]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Trains a matrix of networks, normalizers and seeds, and makes one table.

    Arguments behind -- go to every run.
    """

    networks: tuple[str, ...] = ("cnn", "resnet", "biggan")
    """of these networks"""
    normalizers: tuple[str, ...] | None = None
    """with more flags of the run, as san,form=project or bssn,scale=1.4; by \
default those that were published for the network"""
    seeds: tuple[int, ...] = (0,)
    """of these seeds"""
    output: str | None = None
    """folder of all runs, and of the table of those that were asked for last; \
by default runs/table1, or runs/table1-quick"""
    quick: bool = False
    """a table of digits in about a minute, to see that it works"""


# What a run's name says, so that it cannot be said once more.
_OWN = {"--network", "--normalizer", "--seed", "--name", "--output"}


def parse(kind, prog, argv=None):
    """Reads the command line of a tool that trains.

    Args:
        kind: The dataclass of its settings.
        prog: String, the command.
        argv: List of strings, or `None` for the arguments of the process.

    Returns:
        Settings of that class, and a list of strings: the arguments of runs.

    Raises:
        ValueError: if these say what the tool itself says.
    """
    argv = sys.argv[1:] if argv is None else [str(x) for x in argv]
    place = argv.index("--") if "--" in argv else len(argv)
    argv, rest = argv[:place], argv[place + 1 :]
    repeated = _OWN & {argument.partition("=")[0] for argument in rest}
    if repeated:
        raise ValueError(
            "Behind -- cannot stand what the tool itself passes on. "
            f"Received: {' '.join(sorted(repeated))}"
        )
    return settings.parse(kind, prog, argv), rest


def main(argv=None):
    """Trains as the command line says, and returns the rows of the table."""
    return make(*parse(Settings, "tools/table1.py", argv))


def make(args, rest=()):
    """Trains what is missing, and writes the table after each run.

    Args:
        args: `Settings`.
        rest: List of strings, further arguments of every run.

    Returns:
        A list of dicts, the rows of the table.

    Raises:
        ValueError: if there is nothing to train.
    """
    default = Settings()
    output = args.output or f"runs/table1{'-quick' if args.quick else ''}"
    args, changes = dataclasses.replace(args, output=output), {}
    if args.quick:
        if (args.networks, args.normalizers) != (
            default.networks,
            default.normalizers,
        ):
            raise ValueError(
                "--quick has its own networks and normalizers. Received: "
                "--quick with --networks or --normalizers"
            )
        args = dataclasses.replace(
            args, networks=("small",), normalizers=("san", "sn")
        )
        changes = quick_changes(output)
    runs = list(matrix(args, rest, **changes))
    if not runs:
        raise ValueError(
            "Nothing is published for these networks on this dataset: pass "
            f"--normalizers. Received: --networks {' '.join(args.networks)}"
        )
    os.makedirs(output, exist_ok=True)
    for run in runs:
        train(run)
        rows = [describe(run) for run in runs]
        write(rows, runs, output)
    print(table(rows))
    failed = [run["name"] for run in runs if run["state"] == "failed"]
    if failed:
        sys.exit(f"error: these runs failed, see above: {failed}")
    return rows


def matrix(args, rest=(), **changes):
    """Tells what there is to run.

    Args:
        args: `Settings`.
        rest: List of strings, further arguments of every run.
        **changes: Settings of every run, if they are not among these.

    Yields:
        Dicts of a name, a folder, and the settings of the run.
    """
    changes = {"data": "cifar10", "evaluate_every": 5000, **changes}

    def make(network, row, **settled):
        normalizer, *flags = row.split(",")
        preset = image_generation.preset(network, normalizer)
        return settings.parse(
            image_generation.Settings,
            "-m experiments.image_generation",
            [*rest, *(f"--{flag}" for flag in flags)],
            dataclasses.replace(preset, **changes, **settled),
        )

    for network in args.networks:
        dataset = make(network, "san").dataset
        published = PUBLISHED.get(dataset, {})
        rows = args.normalizers
        if rows is None:
            known = published or PUBLISHED["cifar10"]
            rows = [row for net, row in known if net == network]
        for row in rows:
            for seed in args.seeds:
                name = f"{dataset}-{network}-{row}-seed{seed}".replace(",", "-")
                key = network, row.partition(",")[0]
                yield {
                    "name": name,
                    "row": row,
                    "folder": os.path.join(args.output, name),
                    "settings": make(
                        network, row, seed=seed, output=args.output, name=name
                    ),
                    "published": published.get(key, ("", "")),
                    "state": "missing",
                }


def train(run):
    """Runs, or goes on with, one training in a process of its own."""
    print(f"# {run['name']}", flush=True)
    args = run["settings"]
    if os.path.exists(os.path.join(run["folder"], "settings.json")):
        args = dataclasses.replace(args, resume=True)
        try:
            # Else a run of other settings would pass for this one. (Nothing
            # is computed in this process: it would hold the accelerator.)
            image_generation.open_run(
                dataclasses.replace(args, strategy="none")
            )
        except ValueError as error:
            print(f"error: {error}", flush=True)
            run["state"] = "failed"
            return
        if is_finished(run):
            run["state"] = "finished"
            return
    trained = settings.in_a_process(image_generation.run, args)
    run["state"] = "finished" if trained else "failed"


def is_finished(run):
    """Tells if a run has come to the epoch that it is to end with."""
    log = callbacks.read_log(os.path.join(run["folder"], "log.csv"))
    return (
        os.path.exists(os.path.join(run["folder"], "gan.keras"))
        and log[-1]["epoch"] >= run["settings"].epochs
    )


def describe(run):
    """The row of one run, from the log that it left."""
    args = run["settings"]
    log = callbacks.read_log(os.path.join(run["folder"], "log.csv"))
    last = log[-1] if log else {}
    evaluated = [r for r in log if any(name.endswith("fid") for name in r)]
    measured = evaluated[-1] if evaluated else {}

    # "judge_", say, so that nobody takes a value for Inception's.
    label = next((n[: -len("fid")] for n in measured if n.endswith("fid")), "")

    def value(name, digits, mark=False):
        if label + name not in measured:
            return ""
        number = f"{measured[label + name]:.{digits}f}"
        return f"{label.replace('_', ' ')}{number}" if mark else number

    score = value("is", 2, mark=True)
    if score:
        score += f" ± {value('is_std', 2)}"
    return {
        "network": args.network,
        "normalizer": run["row"],
        "seed": args.seed,
        "published IS": run["published"][0],
        "published FID": run["published"][1],
        "measured IS": score,
        "measured FID": value("fid", 1, mark=True),
        "measured KID": value("kid", 4, mark=True),
        "samples": value("samples", 0),
        "splits": value("splits", 0),
        "steps": int((measured or last).get("step", 0)),
        "extractor": extractor_name(run) if measured else "none",
        "hours": f"{last.get('seconds', 0.0) / 3600:.2f}",
        "state": run["state"],
    }


def extractor_name(run):
    """The extractor that a run was measured with, as it says itself."""
    with open(os.path.join(run["folder"], "settings.json")) as file:
        return json.load(file)["extractor"]


def table(rows):
    """The rows as Markdown."""
    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    lines += [[str(row[name]) for name in COLUMNS] for row in rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return (
        f"{text}\n\nPublished scores are the Inception network's, after the "
        "papers' numbers of steps and\nsamples. Those of a judge, another "
        "classifier, compare with each other only. IS is the\nmean over so "
        "many splits of the samples ± their deviation; higher is better, of "
        "FID\nand KID lower.\n"
    )


def write(rows, runs, folder):
    """Leaves `table1.md`, `table1.csv` and, of what was evaluated, curves."""
    with open(os.path.join(folder, "table1.md"), "w") as file:
        file.write(table(rows))
    with open(os.path.join(folder, "table1.csv"), "w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)
    draw(runs, os.path.join(folder, "table1.png"))


def draw(runs, path):
    """Inception score and FID of all runs over the steps, as PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 2)
    for axes, kind in zip(panels, ("is", "fid")):
        for run in runs:
            log = callbacks.read_log(os.path.join(run["folder"], "log.csv"))
            points = [
                (row["step"], value, name)
                for row in log
                for name, value in row.items()
                if name.split("_")[-1] == kind
            ]
            if points:
                steps, values, names = zip(*points)
                axes.plot(steps, values, marker=".", label=run["name"])
                axes.set_title(names[0])
        axes.set_xlabel("updates of the generator")
        axes.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(
            handles, labels, loc="outside lower center", fontsize=7, ncols=3
        )
    figure.savefig(path, dpi=100)


def quick_changes(folder):
    """A few steps on digits, and a judge of digits to measure them with."""
    os.makedirs(folder, exist_ok=True)
    path = os.path.join(folder, "digits_judge.keras")
    if not os.path.exists(path):
        args = judge.Settings(epochs=6, width=0.5, output=path)
        if not settings.in_a_process(judge.run, args):
            raise ValueError(f"The judge failed, see above. Received: {args}")
    return {
        "data": "digits",
        "width": 0.125,
        "epochs": 2,
        "steps_per_epoch": 25,
        "evaluate_every": 25,
        "samples": 500,
        "extractor": path,
    }


if __name__ == "__main__":
    settings.start(lambda: main() and None)
