r"""Trains a matrix of networks, normalizers and seeds, and makes one table.

Run it again to go on: finished runs are kept, interrupted ones are resumed.
Arguments behind `--` go to every run, as in

    python tools/table1.py --networks cnn --normalizers san sn,form=project \
        --seeds 0 1 2 -- --download --width 0.5

which by default train on CIFAR-10, and are evaluated every 5,000 steps.

See `python tools/table1.py --help`.
"""

import argparse
import csv
import json
import os
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from experiments import image_generation  # noqa: E402
from keras_san import callbacks  # noqa: E402

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
        choices=list(image_generation.NETWORKS),
        help="default: cnn resnet biggan",
    )
    add(
        "--normalizers",
        nargs="+",
        metavar="NAME[,FLAG=VALUE...]",
        help="with more flags of the run, as san,form=project or "
        "bssn,scale=1.4. Default: those that were published for the network",
    )
    add("--seeds", nargs="+", type=int, default=[0])
    add(
        "--output",
        help="folder of all runs, and of the table of those that were asked "
        "for last; default: runs/table1, or runs/table1-quick",
    )
    add(
        "--quick",
        action="store_true",
        help="a table of digits in about a minute, to see that it works",
    )
    args = parser.parse_args(argv)
    # A run's name says what these are, so they cannot be said once more.
    own = {"--network", "--normalizer", "--seed", "--name", "--output"}
    repeated = own & {argument.partition("=")[0] for argument in rest}
    if repeated:
        parser.error(
            "behind -- cannot stand what the tool itself passes on: "
            f"{' '.join(sorted(repeated))}"
        )
    if args.quick:
        if args.networks or args.normalizers:
            parser.error("--quick has its own --networks and --normalizers")
        args.networks, args.normalizers = ["small"], ["san", "sn"]
    args.networks = args.networks or ["cnn", "resnet", "biggan"]
    if args.output is None:
        args.output = "runs/table1-quick" if args.quick else "runs/table1"
    return args, rest


def main(argv=None):
    """Trains what is missing, and writes the table after each run.

    Args:
        argv: List of strings, or `None` for the arguments of the process.

    Returns:
        A list of dicts, the rows of the table.
    """
    args, rest = parse(argv)
    if args.quick:
        rest = [*quick_arguments(args.output), *rest]
    runs = list(matrix(args, rest))
    if not runs:
        raise ValueError(
            "Nothing is published for these networks on this dataset: pass "
            f"--normalizers. Received: --networks {' '.join(args.networks)}"
        )
    os.makedirs(args.output, exist_ok=True)
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
    # Further arguments win.
    rest = ["--dataset", "cifar10", "--evaluate-every", "5000", *rest]
    dataset = image_generation.parse(rest).dataset
    dataset = os.path.basename(os.path.normpath(dataset))
    published = PUBLISHED.get(dataset, {})
    for network in args.networks:
        rows = args.normalizers
        if rows is None:
            known = published or PUBLISHED["cifar10"]
            rows = [row for net, row in known if net == network]
        for row in rows:
            normalizer, *flags = row.split(",")
            for seed in args.seeds:
                name = f"{dataset}-{network}-{row}-seed{seed}".replace(",", "-")
                command = ["--network", network, "--normalizer", normalizer]
                command += [*rest, *(f"--{flag}" for flag in flags)]
                command += ["--seed", str(seed), "--output", args.output]
                command += ["--name", name]
                yield {
                    "name": name,
                    "row": row,
                    "command": command,
                    "folder": os.path.join(args.output, name),
                    "settings": image_generation.parse(command),
                    "published": published.get((network, normalizer), ("", "")),
                    "state": "missing",
                }


def train(run):
    """Runs, or goes on with, one training in a process of its own."""
    print(f"# {run['name']}", flush=True)
    command = run["command"]
    if os.path.exists(os.path.join(run["folder"], "settings.json")):
        command = [*command, "--resume"]
        try:
            # Else a run of other settings would pass for this one. (Nothing
            # is computed in this process: it would hold the accelerator.)
            image_generation.open_run(image_generation.parse(command))
        except ValueError as error:
            print(f"error: {error}", flush=True)
            run["state"] = "failed"
            return
        if is_finished(run):
            run["state"] = "finished"
            return
    paths = [ROOT, os.environ.get("PYTHONPATH", "")]
    paths = os.pathsep.join(filter(None, paths))
    result = subprocess.run(
        [sys.executable, "-m", "experiments.image_generation", *command],
        env={**os.environ, "PYTHONPATH": paths},
    )
    run["state"] = "failed" if result.returncode else "finished"


def is_finished(run):
    """Whether a run has come to the epoch that it is to end with."""
    log = callbacks.read_log(os.path.join(run["folder"], "log.csv"))
    return (
        os.path.exists(os.path.join(run["folder"], "gan.keras"))
        and log[-1]["epoch"] >= run["settings"].epochs
    )


def describe(run):
    """The row of one run, from the log that it left."""
    settings = run["settings"]
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
        "network": settings.network,
        "normalizer": run["row"],
        "seed": settings.seed,
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


def quick_arguments(folder):
    """A few steps on digits, and a judge of digits to measure them with."""
    os.makedirs(folder, exist_ok=True)
    judge = os.path.join(folder, "digits_judge.keras")
    if not os.path.exists(judge):
        tool = os.path.join(ROOT, "tools", "judge.py")
        arguments = ["--epochs", "6", "--width", "0.5", "--output", judge]
        subprocess.run([sys.executable, tool, *arguments], check=True)
    short = "--dataset digits --width 0.125 --epochs 2 --steps-per-epoch 25"
    short += " --evaluate-every 25 --samples 500"
    return [*short.split(), "--extractor", judge]


if __name__ == "__main__":
    try:
        main()
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")
