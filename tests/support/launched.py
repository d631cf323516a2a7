"""Processes with the variables of a launcher, each in a folder of its own, and their exit codes and output."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

FORKSERVER = multiprocessing.get_context("forkserver")
# The server imports them once for all processes that are forked from it.
FORKSERVER.set_forkserver_preload(
    ["fastood.train.run", "lightning_fabric.strategies.ddp", "torch.nn.parallel", "torch.utils.tensorboard"]
)
FOREIGN = ("TORCHELASTIC", "SLURM", "OMPI", "PMI", "MPI_")
"""Beginnings of the names of launchers' variables."""
PLAIN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Ended:
    """Exit code and output of a process that has ended."""

    code: int | None
    said: str


def free_port() -> int:
    """Return a port that is free now."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    return port


def launched(
    run: Callable[..., int],
    variables: Sequence[Mapping[str, str]],
    folders: Sequence[Path],
    *args: Any,
    timeout: float = 120,
) -> list[Ended]:
    """Run a function in one process per entry of `variables`, each in its folder, and wait for them.

    Args:
        run: Called with `args`; its result is the exit code.
        variables: Environment of each process; no other launcher's variables are left.
        folders: Current directory of each process.
        *args: Arguments of `run`.
        timeout: Seconds after which a process is killed.
    """
    logs = [folder / f"rank{rank}.log" for rank, folder in enumerate(folders)]
    group = [
        FORKSERVER.Process(target=_begin, args=(dict(own), folder, log, run, args))
        for own, folder, log in zip(variables, folders, logs, strict=True)
    ]
    for process in group:
        process.start()
    for process in group:
        process.join(timeout)
        process.kill()
        process.join()
    return [Ended(process.exitcode, log.read_text()) for process, log in zip(group, logs, strict=True)]


def _begin(own: dict[str, str], folder: Path, log: Path, run: Callable[..., int], args: Sequence[Any]) -> None:
    torch.set_num_threads(1)
    for name in list(os.environ):
        if name in PLAIN or name.startswith(FOREIGN):
            del os.environ[name]
    os.environ |= own
    os.chdir(folder)
    with log.open("w") as file:
        os.dup2(file.fileno(), 2)
        os.dup2(file.fileno(), 1)
    pytest.MonkeyPatch().setattr("fastood.train.run.write_report", lambda *args, **kwargs: None)
    sys.exit(run(*args))
