"""Train a classifier that knows what it does not know: `python -m fastood.train`."""

from __future__ import annotations

import inspect
import itertools
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast, get_args

import tyro

from fastood.common.files import NO_ROOM
from fastood.console.command_line import launcher, read_command_line
from fastood.console.names import expanded, printable_lines
from fastood.console.terminal import tolerant_terminal
from fastood.train.config import PRESETS, RunConfig
from fastood.train.engine.processes import launched_processes, require_known_launcher
from fastood.train.environment import begin_session
from fastood.train.methods import METHODS, PresetName
from fastood.train.recipe import read_recipe

if TYPE_CHECKING:
    # Imported where they are needed: help and wrong options do not wait for them.
    from fastood.train.run_folder import RunFolder

EXAMPLES = """

Examples:

  python -m fastood.train ice --name mine --seed 1
  python -m fastood.train oe --data.in-dist folder:cats --data.background folder:others --data.ood dogs=folder:dogs
  python -m fastood.train --name mine --resume
"""
SOME_FAILED = 3
"""Exit code of a run that has come to its end without some of its arms."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """Train a method's arms, judge them side by side, and write a report.

    Without options it needs no download and takes a minute or two on two CPU cores. A run leaves its configuration,
    metrics.json, scores, weights, TensorBoard curves and report.html in OUT/NAME.

    Several GPUs, or CPU processes, share every batch and train what one would:
    torchrun --nproc-per-node 2 -m fastood.train METHOD --name NAME.
    """

    config: Annotated[RunConfig, tyro.conf.arg(name="")]
    """What decides the result."""
    method: Annotated[
        tyro.conf.Positional[str],
        tyro.conf.arg(
            metavar="{" + ",".join(METHODS) + "}",
            help="Comes first, and decides which --method options there are; METHOD --help shows them.\n"
            + "\n".join(f"{name}: {method.summary}." for name, method in METHODS.items()),
        ),
    ] = "resample"
    recipe: Annotated[Path | None, tyro.conf.arg(name="config", metavar="FILE")] = None
    """A recipe, by file or name, or config.yaml of a run: its fields are the defaults, beside the options given here.
    What it leaves open is of the preset paper, unless --preset says otherwise."""
    name: str | None = None
    """Name of the run; by default that of the recipe, or the method and the preset, and the time."""
    out: Path = Path("runs")
    """Folder that holds runs."""
    checkpoint_every: int = 200
    """Training steps between two checkpoints; every stage ends with one."""
    resume: bool = False
    """Go on with the run of this name, stopped at any moment, to the result that it would have had.
    A run that does not exist yet is begun, so that one command can be repeated until it is through."""
    preset: PresetName = "embedded"
    """Where the defaults shown here come from.
    embedded: images that need no download, a small network, the paper's schedule.
    paper: the wide residual network and 32×32 images with flips of the method's paper; name the images with --data."""

    def __post_init__(self) -> None:
        if self.checkpoint_every < 1:
            raise ValueError(f"checkpoint_every must be at least 1 step, got {self.checkpoint_every}")


def parse_command(args: Sequence[str]) -> Command:
    """Read the command line; recipe and preset decide every default that is not given.

    A run that is resumed brings its own: config.yaml of its folder, unless --config or --preset is given.

    Raises:
        FileNotFoundError: If there is no such recipe.
        ValueError: If there is no method of this name, or the recipe or the run to resume is of another or cannot be
            read.

    Example:
        >>> command = parse_command(["ice", "--preset", "paper", "--seed", "3"])
        >>> command.config.model.name, command.config.seed
        ('wrn-34-10', 3)
    """
    method = args[0] if args and not args[0].startswith("-") else None
    if method is not None and method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    recipe, preset = _given("config", args), _given("preset", args)
    if preset not in (None, *get_args(PresetName)):
        raise ValueError(f"preset must be one of {', '.join(get_args(PresetName))}, got {preset!r}")
    begun = None if recipe or preset else _run_to_resume(args)
    if recipe is not None:
        config, source = (
            read_recipe(expanded(Path(recipe)), preset=cast(PresetName, preset or "paper")),
            f"the recipe {recipe}",
        )
    elif begun is not None:
        config, source = begun.read_config(), f"the run in {begun.path}"
    else:
        config, source = PRESETS[method or "resample", cast(PresetName, preset or "embedded")], "the preset"
    if method not in (None, config.method.name):
        raise ValueError(f"method must be that of {source}, {config.method.name}, got {method}")
    command: Command = read_command_line(
        Command,
        args=args,
        prog=" ".join(["python -m fastood.train", *([] if method is None else [method])]),
        default=Command(
            config=config,
            method=config.method.name,
            preset=cast(PresetName, preset or ("embedded" if recipe is None else "paper")),
        ),
        description=inspect.cleandoc(cast(str, Command.__doc__)) + EXAMPLES,
        # The default decides which method's options there are.
        config=(tyro.conf.AvoidSubcommands,),
    )
    return command


def _run_to_resume(args: Sequence[str]) -> RunFolder | None:
    """The run that --resume and --name tell of, if it has begun."""
    from fastood.train.run_folder import RunFolder

    name = _given("name", args)
    if name is None or "--resume" not in args:
        return None
    folder = RunFolder(expanded(Path(_given("out", args) or Command.out)) / name)
    return folder if folder.config.exists() else None


def _given(option: str, args: Sequence[str]) -> str | None:
    """The value of an option on the command line, the last one if there are several."""
    found = [value for name, value in itertools.pairwise(args) if name == f"--{option}"]
    found += [arg.partition("=")[2] for arg in args if arg.startswith(f"--{option}=")]
    return found[-1] if found else None


def check_command(command: Command) -> None:
    """Refuse options that do not go together.

    Raises:
        ValueError: If they do not.
    """
    require_known_launcher()
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
            "preset paper wants images of your own, --data.in-dist, --data.background and --data.ood: "
            "its flips and its wide network are not for the embedded digits"
        )


def main(args: Sequence[str] | None = None) -> int:
    """The command line.

    Returns:
        0 at the end of a run; 3 at its end if training failed in some of its arms and not in others; 1 after an error,
        or if it failed in every arm; 130 if stopped by Ctrl-C. (2 is of a wrong option.)
    """
    with tolerant_terminal(), ExitStack() as held:
        return _run(sys.argv[1:] if args is None else args, held)


def _run(args: Sequence[str], held: ExitStack) -> int:
    """The command line; the group of processes and the lock of the run end with `held`."""
    began = time.monotonic()
    try:
        command = parse_command(args)
        check_command(command)
        from fastood.train.engine.failure import StageFailedError
        from fastood.train.engine.processes import close_group, from_first_process, open_fabric
        from fastood.train.run import print_table, resolve_device
        from fastood.train.run_folder import RunFolder
        from fastood.train.session import begin, complete

        held.callback(close_group)
        kind = f"{command.method}-{command.preset}" if command.recipe is None else command.recipe.stem
        name = command.name or f"{kind}-{datetime.now():%Y%m%d-%H%M%S}"
        folder = RunFolder(expanded(command.out) / name)
        again = command_to_resume(command, name)
        fabric = open_fabric(resolve_device(command.config.device), precision=command.config.precision)
        from_first_process(lambda: held.enter_context(folder.lock(exist_ok=command.resume)), fabric)
        run = begin(command.config, folder, resume=command.resume, fabric=fabric)
    except (OSError, TypeError, ValueError) as error:
        print(f"error: {printable_lines(str(error))}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped before training began", file=sys.stderr)
        return 130
    run.fabric.print(f"run folder: {folder.path}", flush=True)
    try:
        if run.fabric.is_global_zero:
            line = shlex.join(["python", "-m", "fastood.train", *args])
            device, processes = run.fabric.device.type, run.fabric.world_size
            begin_session(folder.environment, command=line, device=device, processes=processes)
        metrics = complete(run, folder, checkpoint_every=command.checkpoint_every)
    except (StageFailedError, OSError, ValueError) as error:
        print(f"error: {printable_lines(str(error))}", file=sys.stderr)
        if isinstance(error, OSError) and error.errno in NO_ROOM:
            print(f"make room, then go on with: {again}", file=sys.stderr)
        return 1
    except RuntimeError as error:
        if run.fabric.world_size == 1 or "onnection" not in str(error):
            raise
        print(f"error: another process of the group has ended: {str(error).splitlines()[0]}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as stopped:
        if run.fabric.is_global_zero:
            print(f"{stopped or 'stopped'}\ngo on with: {again}", file=sys.stderr)
        return 130
    if not run.fabric.is_global_zero:
        return 0
    print_table(metrics)
    print(f"report: {folder.path / 'report.html'}")
    print(f"total: {time.monotonic() - began:.0f} s")
    return SOME_FAILED if "failed" in metrics else 0


def command_to_resume(command: Command, name: str) -> str:
    """Return the command that goes on with a run, to be pasted where this one was given.

    Args:
        command: Command that began the run.
        name: Name of the run.
    """
    options = ["-m", "fastood.train", "--name", name]
    if command.out != Command.out:
        options += ["--out", str(command.out)]
    if command.checkpoint_every != Command.checkpoint_every:
        options += ["--checkpoint-every", str(command.checkpoint_every)]
    return shlex.join([*launcher(), *options, "--resume"])
