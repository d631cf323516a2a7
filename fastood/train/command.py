"""Command line of `python -m fastood.train`: options, help, and the command that resumes a run."""

from __future__ import annotations

import inspect
import itertools
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Annotated, cast, get_args

import tyro

from fastood.console.command_line import launcher, read_command_line
from fastood.console.names import expanded
from fastood.train.config import PRESETS, RunConfig
from fastood.train.engine.launch import launched_processes
from fastood.train.methods import METHODS, PresetName
from fastood.train.recipe import read_recipe, recipe_name

EXAMPLES = """

Examples:

  python -m fastood.train ice --name mine --seed 1
  python -m fastood.train oe --data.in-dist folder:cats --data.background folder:others --data.ood dogs=folder:dogs
  python -m fastood.train --name mine --resume
"""
COMMON_OPTIONS = (
    "method",
    "recipe",
    "name",
    "out",
    "resume",
    "preset",
    "seed",
    "device",
    "data.in_dist",
    "data.background",
    "data.ood",
    "data.image_size",
    "model.name",
    "method.arms",
    "method.backgrounds",
    "method.sample_rate",
    "method.batch_size",
    "method.*.epochs",
)
"""Options that --help shows, as far as the method has them; --help-all shows every option."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """Train the arms of a method, evaluate them side by side, and write a report.

    Without options it needs no download and takes a minute or two on two CPU cores. A run leaves its config,
    metrics.json, scores, weights, TensorBoard curves and report.html in OUT/NAME.

    Several GPUs or CPU processes, on one or more machines, divide every batch and compute the result of one process:
    torchrun --nproc-per-node 2 -m fastood.train METHOD --name NAME. Slurm's srun, accelerate launch, and processes with
    RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT join one run in the same way. The first process writes the results.
    """

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    """Everything that decides the result."""
    method: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(
            metavar="{" + ",".join(METHODS) + "}",
            help="Comes before all options and decides which --method options there are; METHOD --help shows them.\n"
            + "\n".join(f"{name}: {method.summary}." for name, method in METHODS.items()),
        ),
    ] = "resample"
    recipe: Annotated[Path | None, tyro.conf.arg(name="config", metavar="FILE")] = None
    """A recipe, as FILE or FILE:VARIANT, or config.yaml of a run. Its fields replace the defaults; options given here
    replace its fields. Fields that it does not set have the values of the preset paper, unless --preset is given."""
    name: str | None = None
    """Name of the run; by default the name of the recipe, or of the method and the preset, and the time."""
    out: Path = Path("runs")
    """Folder that holds runs."""
    checkpoint_every: int = 200
    """Training steps between two checkpoints; every stage ends with one."""
    resume: bool = False
    """Resume the run of this name from where it was stopped; its result equals that of an uninterrupted run. A run that
    does not exist yet is started, so that one command can be repeated until the run is finished."""
    preset: PresetName = "embedded"
    """Source of the defaults shown here.
    embedded: images that need no download, a small network, the paper's schedule.
    paper: the wide residual network and 32×32 images with flips of the method's paper; name the images with --data."""

    def __post_init__(self) -> None:
        if self.checkpoint_every < 1:
            raise ValueError(f"checkpoint_every must be at least 1 step, got {self.checkpoint_every}")

    @property
    def path(self) -> Path:
        """Folder of the run, which must have a name."""
        if self.name is None:
            raise ValueError("name must be set before the run has a folder")
        return expanded(self.out) / self.name

    def to_resume(self) -> str:
        """Return the command that resumes the run, to be pasted into the shell that gave this one."""
        options = _option("name", str(self.name))
        if self.out != Command.out:
            options += _option("out", str(self.out))
        if self.checkpoint_every != Command.checkpoint_every:
            options += _option("checkpoint-every", str(self.checkpoint_every))
        return shlex.join([*launcher(), "-m", "fastood.train", *options, "--resume"])


def parse_command(args: Sequence[str]) -> Command:
    """Read a command line; a recipe, the run to resume or a preset sets the defaults.

    Raises:
        FileNotFoundError: If there is no such recipe.
        ValueError: If there is no method of this name, or the recipe or the run to resume has another method or cannot
            be read.

    Example:
        >>> command = parse_command(["ice", "--preset", "paper", "--seed", "3"])
        >>> command.config.model.name, command.config.seed
        ('wrn-34-10', 3)
    """
    method = args[0] if args and not args[0].startswith("-") else None
    default = _default_command(args, method)
    command: Command = read_command_line(
        Command,
        args=args,
        prog=" ".join(["python -m fastood.train", *([] if method is None else [method])]),
        default=default,
        description=inspect.cleandoc(cast(str, Command.__doc__)) + EXAMPLES,
        common=COMMON_OPTIONS,
        # The default decides which method's options there are.
        config=(tyro.conf.AvoidSubcommands,),
    )
    return command


def complete_command(command: Command) -> Command:
    """Return a command with the name of its run, after checking its options against each other.

    Raises:
        ValueError: If two options exclude each other, or one needs another.
    """
    if command.resume and command.name is None:
        raise ValueError("resume needs the name of a run: --name NAME --resume")
    if command.name is None and launched_processes() > 1:
        raise ValueError("several processes need the name of the run that they share: --name NAME")
    if command.name is not None and (command.name in ("", "..") or Path(command.name).name != command.name):
        raise ValueError(f"name must be a plain folder name inside --out, got {command.name!r}")
    if not isinstance(command.config.method, METHODS[command.method]):
        raise ValueError(f"the method must come before every option: python -m fastood.train {command.method} …")
    if command.recipe is None and command.preset == "paper" and command.config.data.in_dist == "embedded":
        raise ValueError(
            "preset paper needs images of your own, --data.in-dist, --data.background and --data.ood: "
            "its flips and its wide network are not for the embedded digits"
        )
    kind = f"{command.method}-{command.preset}" if command.recipe is None else recipe_name(command.recipe)
    return replace(command, name=command.name or f"{kind}-{datetime.now():%Y%m%d-%H%M%S}")


def _default_command(args: Sequence[str], method: str | None) -> Command:
    """Return the command whose values apply where `args` has none.

    In order of precedence: a recipe (--config), the config of the run to resume, the preset.
    """
    if method is not None and method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    recipe, preset = _value_of("config", args), _value_of("preset", args)
    if preset not in (None, *get_args(PresetName)):
        raise ValueError(f"preset must be one of {', '.join(get_args(PresetName))}, got {preset!r}")
    name = cast(PresetName, preset or ("embedded" if recipe is None else "paper"))
    if recipe is not None:
        config, source = read_recipe(expanded(Path(recipe)), preset=name), f"the recipe {recipe}"
    elif preset is None and (begun := _run_to_resume(args)) is not None:
        # Imported here: help and wrong options do not wait for it.
        from fastood.train.run_folder import RunFolder

        config, source = RunFolder(begun).read_config(), f"the run in {begun}"
    else:
        config, source = PRESETS[method or "resample", name], "the preset"
    if method not in (None, config.method.name):
        raise ValueError(f"method must be that of {source}, {config.method.name}, got {method}")
    return Command(config=config, method=config.method.name, preset=name)


def _run_to_resume(args: Sequence[str]) -> Path | None:
    """Return the folder of the run that --resume and --name refer to, or None if it has not begun."""
    name, out = _value_of("name", args), _value_of("out", args)
    if name is None or "--resume" not in args:
        return None
    from fastood.train.run_folder import CONFIG_NAME

    path = expanded(Path(out or Command.out)) / name
    return path if (path / CONFIG_NAME).exists() else None


def _option(name: str, value: str) -> list[str]:
    """Return the words of an option; a value that looks like an option is joined to the name by =."""
    return [f"--{name}={value}"] if value.startswith("-") else [f"--{name}", value]


def _value_of(option: str, args: Sequence[str]) -> str | None:
    """Return the value of an option on the command line, the last one if there are several."""
    values = [value for name, value in itertools.pairwise(args) if name == f"--{option}"]
    values += [arg.partition("=")[2] for arg in args if arg.startswith(f"--{option}=")]
    return values[-1] if values else None
