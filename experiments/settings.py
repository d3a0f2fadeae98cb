"""Settings that experiments share, and the command line made of them.

The settings of an experiment are a frozen dataclass of the classes here. Each
field is a flag, and the text below it its help.
"""

import argparse
import dataclasses
import multiprocessing
import os
import sys
from typing import Annotated, Literal

import tyro

# What a normalizer is called that divides by a norm.
DIVIDING = ("san", "sn", "ssn", "bsn", "bssn", "conv_sn")


def _default(text):
    return f"({text})" if text not in ("None", "False", "") else ""


def shown(kind, metavar):
    """A type by another name in the help, where defaults of none are not."""
    hint = tyro.conf.arg(metavar=metavar, help_behavior_hint=_default)
    return Annotated[kind, hint]


Count = shown(int, "N")
Name = shown(str, "NAME")
Path = shown(str, "PATH")
Number = shown(float, "X")
SomeCount = shown(int | None, "N")
SomeName = shown(str | None, "NAME")
SomePath = shown(str | None, "PATH")
SomeNumber = shown(float | None, "X")
Flag = shown(bool, None)
Positional = tyro.conf.Positional[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Data:
    """Where data come from."""

    data: Name
    """a name in tensorflow-datasets, or a folder"""
    data_dir: SomePath = None
    """where tensorflow-datasets keeps its data"""
    download: Flag = False
    """let missing data and networks be downloaded"""

    @property
    def dataset(self):
        """The dataset in the names of files."""
        return os.path.basename(os.path.normpath(self.data))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Critic:
    """The size of networks, and the norms of the critic."""

    width: Number = 1.0
    """factor on the channels"""
    critic_width: SomeNumber = None
    """that of the critic, if it is another"""
    normalizer: Name = "san"
    """what kernels are divided by: san, sn, ssn, bsn, bssn, conv_sn, none"""
    form: shown(Literal["divide", "project"] | None, "NAME") = None
    """divide in each pass (default), or project after updates"""
    scale: SomeNumber = None
    """factor on the kernels; ssn and bssn need it"""
    update_interval: SomeCount = None
    """steps from one measurement of norms to the next"""
    ratio: SomeNumber = None
    """san: the share of filters to measure, at random"""
    gain: shown(float | Literal["auto", "adaptive"] | None, "X") = None
    """san: factor on norms; auto (Eq. 9) or adaptive"""
    sparsity: SomeCount = None
    """san: divide by the norm for signals of N channels"""
    padding: shown(Literal["circular", "same"], "NAME") = "circular"
    """of the critic: circular, or same (zeros)"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Training:
    """The length of a training, and its optimizers."""

    epochs: Count
    """how often to report and to save"""
    steps_per_epoch: Count
    """updates of the generator from one to the next"""
    batch_size: Count
    """images of one update"""
    learning_rate: Number
    """of Adam"""
    critic_learning_rate: SomeNumber = None
    """that of the critic, if it is another"""
    betas: shown(tuple[float, float], "B1 B2") = (0.5, 0.9)
    """of Adam"""
    decay: Number = 1.0
    """part of the training after which rates fall to 0"""
    halve_at: shown(tuple[float, ...], "PART...") = ()
    """parts of it after which they halve"""
    critic_steps: Count = 1
    """updates of the critic for one of the generator"""
    ema: Number = 0.0
    """decay of the average generator, 0: none"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Evaluation:
    """When and with what to measure."""

    evaluate_every: SomeCount = None
    """steps from one measurement (FID, ...) to the next"""
    extractor: SomePath = None
    """classifier to measure with, or inception"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """Where a run is kept, and on what it runs."""

    name: SomeName = None
    """of the run; by default dataset and normalizer"""
    output: Path = "runs"
    """folder that holds all runs"""
    resume: Flag = False
    """go on with a run that was interrupted"""
    seed: Count = 0
    """of all that is random"""
    precision: Name = "float32"
    """or mixed_float16, or mixed_bfloat16"""
    jit: Flag = False
    """compile with XLA; else Keras decides"""
    steps_per_execution: Count = 1
    """from one return to Python to the next"""
    strategy: Name = "none"
    """mirrored, multi_worker, tpu, or (JAX) data_parallel"""

    @property
    def run_name(self):
        """The folder of the run."""
        return self.name or self.default_name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Conversion:
    """The files that are converted, and the folder that they go to."""

    paths: tyro.conf.Positional[shown(tuple[str, ...], "PATH...")]
    """files, and folders of them"""
    output: Path
    """folder to write to, under the same names"""
    force: Flag = False
    """overwrite files"""


def parse(kind, prog, argv=None, default=None, choose=None):
    """Reads settings from the command line.

    Args:
        kind: Their dataclass.
        prog: String, the command.
        argv: List of strings, or `None` for the arguments of the process.
        default: Settings that stand for what is not passed.
        choose: Callable from settings to the default settings that they ask
            for, by the name of a preset, say.

    Returns:
        An object of that class.
    """
    argv = sys.argv[1:] if argv is None else [str(x) for x in argv]
    shared = {
        "prog": f"python {prog}",
        "config": (tyro.conf.FlagCreatePairsOff, tyro.conf.DisallowNone),
    }
    if default is not None:
        shared["default"] = default
    if choose is not None:
        asked = [x for x in argv if x not in ("-h", "--help")]
        shared["return_unknown_args"] = True
        asked, _ = tyro.cli(kind, args=asked, **shared)
        shared["return_unknown_args"] = False
        shared["default"] = choose(asked)
    return tyro.cli(kind, args=argv, **shared)


def preset(presets, asked):
    """The settings of a dict that others name by their `preset`."""
    if asked.preset not in presets:
        raise ValueError(
            f"The presets are {[*presets]}. Received: --preset {asked.preset}"
        )
    return presets[asked.preset]


def command(name, commands, argv=None):
    """Runs one of several commands.

    Args:
        name: String, the module.
        commands: Dict from names to pairs: the dataclass of its settings, and
            a callable that takes the arguments behind the name.
        argv: As of `parse`.

    Returns:
        An int, the exit status.
    """
    argv = sys.argv[1:] if argv is None else [str(x) for x in argv]
    lines = [f"{key}: {kind.__doc__}" for key, (kind, _) in commands.items()]
    parser = argparse.ArgumentParser(
        prog=f"python -m experiments.{name}",
        description=" ".join(lines),
        epilog="Each command has a --help of its own.",
    )
    parser.add_argument("command", choices=commands)
    chosen = parser.parse_args(argv[:1]).command
    return commands[chosen][1](argv[1:]) or 0


def start(main):
    """Runs the main function of a process, whose errors are one line."""
    try:
        sys.exit(main())
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"error: {error}")


def in_a_process(function, args):
    """Calls a function in a process of its own.

    Args:
        function: One of a module.
        args: Its only argument.

    Returns:
        A boolean, whether it came to its end.
    """
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=_call, args=(function, args))
    process.start()
    process.join()
    return process.exitcode == 0


def _call(function, args):
    start(lambda: function(args) and None)


def check_multiple(settings, name, unit):
    """Raises a `ValueError` unless one setting is a multiple of another."""
    steps, steps_of_unit = getattr(settings, name), getattr(settings, unit)
    if min(steps, steps_of_unit) < 1 or steps % steps_of_unit:
        flag, flag_of_unit = (f"--{n.replace('_', '-')}" for n in (name, unit))
        raise ValueError(
            f"{flag} must be a positive multiple of {flag_of_unit}. Received: "
            f"{flag} {steps} with {flag_of_unit} {steps_of_unit}"
        )
