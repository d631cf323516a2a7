"""Parts that the commands share: options with their help, and the command that was given."""

import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

T = TypeVar("T")


def read_command_line(kind: type[T], *, args: Sequence[str] | None, prog: str, **options: Any) -> T:
    """Read a command line with tyro.

    Args:
        kind: Dataclass of the options.
        args: The command line; None for that of the process.
        prog: How the command is called in its help.
        **options: Of `tyro.cli`.
    """
    command: T = tyro.cli(kind, args=args, prog=prog, **options)
    return command


def launcher() -> list[str]:
    """Return how this process was launched: Python, or torchrun with as many processes, as it is found from here."""
    local = os.environ.get("LOCAL_WORLD_SIZE")
    if "TORCHELASTIC_RUN_ID" not in os.environ or local is None:
        return [_from_here(sys.executable)]
    torchrun = Path(sys.executable).with_name("torchrun")
    known = [_from_here(sys.executable), "-m", "torch.distributed.run"]
    if torchrun.exists():
        known = [_from_here(str(torchrun))]
    nodes = int(os.environ["WORLD_SIZE"]) // int(local)
    several = ["--nnodes", str(nodes), "--master-addr", os.environ.get("MASTER_ADDR", "HOST"), "--node-rank", "RANK"]
    return [*known, *(several if nodes > 1 else []), "--nproc-per-node", local]


def _from_here(program: str) -> str:
    """Name a program as the shell finds it in this directory."""
    name = Path(program).name
    if not program:
        return "python"
    if shutil.which(name) == program:
        return name
    # As it is written: where a virtual environment's link leads there are no packages.
    here = os.path.relpath(program)
    if here.startswith(os.pardir):
        return program
    return here if os.sep in here else f"{os.curdir}{os.sep}{here}"
