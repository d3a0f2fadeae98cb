r"""Trains a matrix of networks, normalizers and seeds, and makes one table.

Run it again to go on: finished runs are kept, interrupted ones are resumed.
Arguments behind `--` go to every run, as in

    python tools/table1.py --networks cnn --normalizers san sn \\
        --seeds 0 1 2 -- --dataset cifar10 --download --evaluate-every 5000

See `python tools/table1.py --help`.
"""

import argparse
import csv
import json
import os
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from examples import image_generation  # noqa: E402
from keras_san import callbacks  # noqa: E402

# Published Inception scores, from Table 1 of the SAN paper, and FIDs, from
# Table 2 of the SN-GAN paper, which used other numbers of samples.
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

# Where a row of the table was not trained as its network's other rows.
SETTINGS = {
    "clip": ["--loss", "non_saturating"],
    "wgan_gp": ["--critic-steps", "5", "--learning-rate", "1e-4"],
    "batch_norm": ["--loss", "non_saturating"],
    "layer_norm": ["--loss", "non_saturating"],
    "weight_norm": ["--loss", "non_saturating"],
    "orthonormal": ["--loss", "non_saturating"],
}

COLUMNS = [
    "network",
    "normalizer",
    "seed",
    "published IS",
    "published FID",
    "IS",
    "FID",
    "KID",
    "samples",
    "steps",
    "extractor",
    "hours",
    "state",
]


def parse(argv=None):
    """Reads the command line: the tool's namespace, the runs' arguments."""
    argv = sys.argv[1:] if argv is None else list(argv)
    rest = []
    if "--" in argv:
        place = argv.index("--")
        argv, rest = argv[:place], argv[place + 1 :]
    parser = argparse.ArgumentParser(
        prog="python tools/table1.py",
        description=__doc__.splitlines()[0],
        epilog="Arguments behind -- go to every run.",
    )
    add = parser.add_argument
    add(
        "--networks",
        nargs="+",
        default=["cnn", "resnet", "biggan"],
        choices=list(image_generation.NETWORKS),
    )
    add(
        "--normalizers",
        nargs="+",
        metavar="NAME[,FLAG=VALUE...]",
        help="with more flags of the run, as san,form=project or "
        "bssn,scale=1.4. Default: those that were published for the network",
    )
    add("--seeds", nargs="+", type=int, default=[0])
    add("--output", default="runs/table1", help="folder of all runs")
    add(
        "--quick",
        action="store_true",
        help="a table of digits in about a minute, to see that it works",
    )
    return parser.parse_args(argv), rest


def main(argv=None):
    """Trains what is missing, and writes the table after each run.

    Args:
        argv: List of strings, or `None` for the arguments of the process.

    Returns:
        A list of dicts, the rows of the table.
    """
    args, rest = parse(argv)
    os.makedirs(args.output, exist_ok=True)
    if args.quick:
        args.networks, args.normalizers = ["small"], ["san", "sn"]
        rest = [*quick_arguments(args.output), *rest]
    runs = list(matrix(args, rest))
    for run in runs:
        train(run)
        rows = [describe(run) for run in runs]
        write(rows, runs, args.output)
    print(table(rows))
    failed = [run["name"] for run in runs if run["state"] == "failed"]
    if failed:
        sys.exit(f"error: these runs failed, see above: {failed}")
    return rows


def matrix(args, rest):
    """What there is to run: dicts of a name, a folder and a command line."""
    for network in args.networks:
        normalizers = args.normalizers
        if normalizers is None:
            rows = PUBLISHED["cifar10"]
            normalizers = [n for net, n in rows if net == network]
        for row in normalizers:
            normalizer, *flags = row.split(",")
            own = [
                part
                for flag in flags
                for part in "--{}={}".format(*flag.split("=")).split("=")
            ]
            for seed in args.seeds:
                command = ["--network", network, "--normalizer", normalizer]
                command += [*SETTINGS.get(normalizer, []), *rest, *own]
                command += ["--seed", str(seed), "--output", args.output]
                settings = image_generation.parse(command)
                dataset = os.path.basename(os.path.normpath(settings.dataset))
                name = "-".join(
                    [dataset, network, row.replace(",", "-"), f"seed{seed}"]
                )
                yield {
                    "name": name,
                    "folder": os.path.join(args.output, name),
                    "command": [*command, "--name", name],
                    "row": row,
                    "settings": settings,
                    "published": PUBLISHED.get(dataset, {}).get(
                        (network, normalizer), ("", "")
                    ),
                    "state": "missing",
                }


def train(run):
    """Runs, or goes on with, one training in a process of its own."""

    def exists(name):
        return os.path.exists(os.path.join(run["folder"], name))

    if not exists("gan.keras"):
        resume = ["--resume"] * exists("settings.json")
        print(f"# {run['name']}", flush=True)
        paths = [ROOT, os.environ.get("PYTHONPATH", "")]
        result = subprocess.run(
            [sys.executable, "-m", "examples.image_generation"]
            + [*run["command"], *resume],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            },
        )
        if result.returncode:
            run["state"] = "failed"
            return
    run["state"] = "finished"


def describe(run):
    """The row of one run, from the log that it left."""
    settings = run["settings"]
    log = callbacks.read_log(os.path.join(run["folder"], "log.csv"))
    last = log[-1] if log else {}
    evaluated = [r for r in log if any(name.endswith("fid") for name in r)]
    measured = evaluated[-1] if evaluated else {}

    def value(name, digits):
        found = [v for k, v in measured.items() if k.split("_")[-1] == name]
        return f"{found[0]:.{digits}f}" if found else ""

    score = value("is", 2)
    if score:
        score += f" ± {value('std', 2)}"
    return {
        "network": settings.network,
        "normalizer": run["row"],
        "seed": settings.seed,
        "published IS": run["published"][0],
        "published FID": run["published"][1],
        "IS": score,
        "FID": value("fid", 1),
        "KID": value("kid", 4),
        "samples": value("samples", 0),
        "steps": int(last.get("step", 0)),
        "extractor": extractor_name(run) if measured else "none",
        "hours": f"{last.get('seconds', 0.0) / 3600:.2f}",
        "state": run["state"],
    }


def extractor_name(run):
    """What a run was measured with, as it says itself."""
    with open(os.path.join(run["folder"], "settings.json")) as file:
        return json.load(file)["extractor"]


def table(rows):
    """The rows as Markdown."""
    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    lines += [[str(row[name]) for name in COLUMNS] for row in rows]
    text = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return (
        f"{text}\n\nPublished scores are the Inception network's, after the "
        "papers' numbers of steps. Scores\nunder another extractor compare "
        "with each other only. KID, FID: lower is better.\n"
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
    for axes, kind, title in zip(panels, ("is", "fid"), ("IS", "FID")):
        for run in runs:
            log = callbacks.read_log(os.path.join(run["folder"], "log.csv"))
            points = [
                (row["step"], value)
                for row in log
                for name, value in row.items()
                if name.split("_")[-1] == kind
            ]
            if points:
                axes.plot(*zip(*points), marker=".", label=run["name"])
        axes.set_title(title)
        axes.set_xlabel("updates of the generator")
        axes.grid(alpha=0.3)
    handles, labels = panels[0].get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", fontsize=7)
    figure.savefig(path, dpi=100)


def quick_arguments(folder):
    """A few steps on digits, and a judge of digits to measure them with."""
    judge = os.path.join(folder, "digits_judge.keras")
    if not os.path.exists(judge):
        from tools import judge as trainer

        trainer.main(["--epochs", "6", "--width", "0.5", "--output", judge])
    return (
        f"--extractor {judge} --samples 500 --width 0.125 --epochs 2 "
        "--steps-per-epoch 25 --evaluate-every 25"
    ).split(" ")


if __name__ == "__main__":
    main()
