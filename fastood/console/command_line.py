"""Reading of command lines with their help, and the launcher of this process."""

import os
import shutil
import sys
from collections.abc import Collection, Sequence
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any, get_args

import tyro

from fastood.console.help import describe_fields, hidden_fields, in_terminal_width


def read_command_line(
    kind: Any, *, args: Sequence[str], prog: str, description: str, common: Collection[str] = (), **options: Any
) -> Any:
    """Parse a command line with tyro; its help is wrapped to the width of the terminal.

    Args:
        kind: Dataclass of the options, or a union of dataclasses, one per subcommand.
        args: The command line.
        prog: Name of the command in its help.
        description: Paragraphs above the options; a line that begins with a space is not joined.
        common: Patterns of the options that --help shows, as `hidden_fields` takes them; --help-all shows every
            option. Empty shows every option in --help.
        **options: Further arguments of `tyro.cli`.

    Returns:
        Instance of the dataclass.

    Raises:
        SystemExit: If help is requested, or an option is invalid.
    """
    if common:
        description += "\n\n--help-all shows every option." if "--help" in args or "-h" in args else ""
    help_all = "--help-all" in args
    args = ["--help" if arg == "--help-all" else arg for arg in args]

    def parse() -> Any:
        return tyro.cli(kind, args=args, prog=prog, description=description, **options)

    if not {"-h", "--help"} & set(args):
        return parse()
    default = options.get("default")
    for part in (default, kind, *(get_args(member)[0] for member in get_args(kind))):
        if is_dataclass(part):
            describe_fields(part)
    if not common or help_all:
        return in_terminal_width(parse)
    with hidden_fields(default, shown=common):
        return in_terminal_width(parse)


def launcher() -> list[str]:
    """Return the words that launched this process: Python, after torchrun, srun or mpirun with the number of processes.

    RANK and WORLD_SIZE alone do not identify the launcher: for such a process the words are those of Python.
    """
    local = os.environ.get("LOCAL_WORLD_SIZE")
    if "TORCHELASTIC_RUN_ID" not in os.environ or local is None:
        python = [_from_here(sys.executable)]
        for name, *words in (("SLURM_STEP_NUM_TASKS", "srun", "--ntasks"), ("OMPI_COMM_WORLD_SIZE", "mpirun", "-n")):
            if (count := os.environ.get(name, "1")) != "1":
                return [*words, count, *python]
        return python
    torchrun = Path(sys.executable).with_name("torchrun")
    words = [_from_here(sys.executable), "-m", "torch.distributed.run"]
    if torchrun.exists():
        words = [_from_here(str(torchrun))]
    nodes = int(os.environ["WORLD_SIZE"]) // int(local)
    several = ["--nnodes", str(nodes), "--master-addr", os.environ.get("MASTER_ADDR", "HOST"), "--node-rank", "RANK"]
    return [*words, *(several if nodes > 1 else []), "--nproc-per-node", local]


def _from_here(program: str) -> str:
    """Return the shortest name by which a shell in this directory runs a program."""
    name = Path(program).name
    if not program:
        return "python"
    if shutil.which(name) == program:
        return name
    # Links are not resolved: the target of a virtual environment's link has no packages.
    here = os.path.relpath(program)
    if here.startswith(os.pardir):
        return program
    return here if os.sep in here else f"{os.curdir}{os.sep}{here}"
