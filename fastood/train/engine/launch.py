"""Facts about the launch of this process: its rank and the number of processes, from the variables of a launcher."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch.distributed as dist

Launcher = Literal["none", "torchrun", "variables", "srun", "mpirun", "group"]
_INTERACTIVE = ("bash", "interactive")
"""Names of Slurm jobs that are shells."""
_MPI = (("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK"), ("PMI_SIZE", "PMI_RANK"))
"""Variables of Open MPI, and of MPICH and Intel MPI: number of processes, and rank."""
_LOCAL_RANKS = ("LOCAL_RANK", "SLURM_LOCALID", "OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID")
"""Variables with the rank of a process on its node; the first one that is set counts."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How this process was launched."""

    launcher: Launcher = "none"
    """torchrun (also below `accelerate launch`), RANK and WORLD_SIZE alone, srun, mpirun, or a process group that is
    already set up, as Ray Train and Lightning do; "none" for a single process."""
    rank: int = 0
    """Rank of this process, from 0."""
    processes: int = 1
    """Number of processes."""
    address: str = ""
    """Host of the first process; empty for a group that is set up."""
    port: int = 0
    """Port there; 0 for a group that is set up."""


def launched_processes() -> int:
    """Return the number of processes of this run; 1 without a launcher.

    Raises:
        ValueError: If the launcher's variables contradict one another.
    """
    return find_launch().processes


def launcher_local_rank() -> int | None:
    """Return the rank of this process on its node by the launcher's variables; None if none is set."""
    return next((number for name in _LOCAL_RANKS if (number := _number(os.environ, name)) is not None), None)


def find_launch(variables: Mapping[str, str] | None = None) -> Launch:
    """Read how this process was launched.

    A process group that is already set up takes precedence, then the variables of torchrun, which may run inside a
    Slurm job. Otherwise RANK and WORLD_SIZE, the variables of Slurm and those of MPI count. If several of these name
    more than one process, they must agree.

    Args:
        variables: Environment variables; None for the process group and the environment of this process.

    Raises:
        ValueError: If variables contradict one another, or do not suffice to join the other processes.

    Example:
        >>> find_launch({})
        Launch(launcher='none', rank=0, processes=1, address='', port=0)
        >>> find_launch({"WORLD_SIZE": "2"})
        Traceback (most recent call last):
            ...
        ValueError: WORLD_SIZE is 2, but RANK is not set: each process needs its own RANK in 0 … 1; \
unset WORLD_SIZE for a single process
    """
    if variables is None:
        if dist.is_available() and dist.is_initialized():
            return Launch(launcher="group", rank=dist.get_rank(), processes=dist.get_world_size())
        variables = os.environ
    plain = _plain(variables)
    if "TORCHELASTIC_RUN_ID" in variables:
        if plain is None:
            raise ValueError("torchrun must set RANK and WORLD_SIZE, and TORCHELASTIC_RUN_ID alone is set: unset it")
        return plain if plain.processes > 1 else Launch()
    launches = [launch for launch in (plain, _srun(variables), *_mpi(variables)) if launch is not None]
    if not launches and (count := _number(variables, "WORLD_SIZE", least=1) or 1) > 1:
        raise ValueError(
            f"WORLD_SIZE is {count}, but RANK is not set: each process needs its own RANK in 0 … {count - 1}; "
            "unset WORLD_SIZE for a single process"
        )
    several = [launch for launch in launches if launch.processes > 1]
    if not several:
        return Launch()
    _require_agreement(several, variables)
    return several[0]


def _plain(variables: Mapping[str, str]) -> Launch | None:
    """Read RANK and WORLD_SIZE; None if one of them is not set."""
    rank, count = _number(variables, "RANK"), _number(variables, "WORLD_SIZE", least=1)
    local, here = _number(variables, "LOCAL_RANK"), _number(variables, "LOCAL_WORLD_SIZE", least=1)
    if rank and count is None:
        raise ValueError(f"RANK is {rank}, but WORLD_SIZE, the number of processes, is not set")
    if rank is None or count is None:
        return None
    _require_below("RANK", rank, "WORLD_SIZE", count)
    if here is not None:
        if here > count:
            raise ValueError(f"LOCAL_WORLD_SIZE must be at most WORLD_SIZE, which is {count}, got {here}")
        if local is not None:
            _require_below("LOCAL_RANK", local, "LOCAL_WORLD_SIZE", here)
    if count == 1:
        return Launch(launcher="variables")
    address, port = _meeting_point(variables)
    if not address or not port:
        name = "MASTER_PORT" if address else "MASTER_ADDR"
        raise ValueError(f"WORLD_SIZE is {count}, but {name}, where the process of rank 0 is reached, is not set")
    launcher: Launcher = "torchrun" if "TORCHELASTIC_RUN_ID" in variables else "variables"
    return Launch(launcher=launcher, rank=rank, processes=count, address=address, port=port)


def _srun(variables: Mapping[str, str]) -> Launch | None:
    """Read the variables of a task of Slurm; None outside of one."""
    name = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in variables else "SLURM_NTASKS"
    count = _number(variables, name, least=1)
    if count is None or (name == "SLURM_NTASKS" and variables.get("SLURM_JOB_NAME") in _INTERACTIVE):
        return None  # A shell in an allocation of several tasks is one process.
    if count == 1:
        return Launch(launcher="srun")
    rank = _number(variables, "SLURM_PROCID")
    # A batch script runs once, on the first node, and has the allocation's number of tasks.
    if rank is None or (name == "SLURM_NTASKS" and "SLURMD_NODENAME" in variables):
        raise ValueError(
            f"{name} is {count}, but srun has not started this process: put srun before the command, or unset {name} "
            "for a single process"
        )
    _require_below("SLURM_PROCID", rank, name, count)
    address, port = _meeting_point(variables)
    if not address:
        from lightning_fabric.plugins.environments.slurm import SLURMEnvironment

        names = ("SLURM_STEP_NODELIST", "SLURM_NODELIST", "SLURM_JOB_NODELIST")
        nodes = next((variables[name] for name in names if variables.get(name)), "127.0.0.1")
        address = SLURMEnvironment.resolve_root_node_address(nodes)
    if not port:
        # Every task derives the same port from the job; jobs and steps that share a node derive different ports.
        job = (_number(variables, "SLURM_JOB_ID") or 0) + (_number(variables, "SLURM_STEP_ID") or 0)
        port = 15000 + job % 10000
    return Launch(launcher="srun", rank=rank, processes=count, address=address, port=port)


def _mpi(variables: Mapping[str, str]) -> list[Launch]:
    """Read the variables of mpirun or mpiexec."""
    launches = []
    for size_name, rank_name in _MPI:
        count = _number(variables, size_name, least=1) or 1
        if count == 1:
            continue
        rank = _number(variables, rank_name)
        if rank is None:
            raise ValueError(f"{size_name} is {count}, but {rank_name} is not set; unset {size_name} for one process")
        _require_below(rank_name, rank, size_name, count)
        address, port = _meeting_point(variables)
        launches.append(Launch(launcher="mpirun", rank=rank, processes=count, address=address, port=port))
    return launches


def _require_agreement(launches: list[Launch], variables: Mapping[str, str]) -> None:
    """Raise ValueError unless all launchers state one rank and one number of processes, and an address is known."""
    used, world_size, rank = launches[0], _number(variables, "WORLD_SIZE"), _number(variables, "RANK")
    for other in launches[1:]:
        for what, one, two in (("processes", used.processes, other.processes), ("rank", used.rank, other.rank)):
            if one != two:
                raise ValueError(
                    f"the variables of {_NAMES[used.launcher]} and of {_NAMES[other.launcher]} contradict one another "
                    f"in the {_WHAT[what]}: {one} and {two}; unset those of one of them"
                )
    for name, value, stated in (("WORLD_SIZE", world_size, used.processes), ("RANK", rank, used.rank)):
        if value is not None and value != stated:
            raise ValueError(
                f"{name} is {value}, but {stated} by {_NAMES[used.launcher]}: unset {name}, or start as many processes"
            )
    if not used.address or not used.port:
        name = "MASTER_PORT" if used.address else "MASTER_ADDR"
        raise ValueError(
            f"{name}, where the process of rank 0 is reached, is not set, and mpirun does not set it: set MASTER_ADDR "
            "and MASTER_PORT alike for all processes (mpirun -x MASTER_ADDR=HOST -x MASTER_PORT=29500), or use torchrun"
        )


_WHAT = {"processes": "number of processes", "rank": "rank"}
_NAMES: dict[Launcher, str] = {
    "variables": "RANK and WORLD_SIZE",
    "srun": "Slurm (SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_NTASKS)",
    "mpirun": "mpirun",
}


def _meeting_point(variables: Mapping[str, str]) -> tuple[str, int]:
    """Return MASTER_ADDR and MASTER_PORT; empty and 0 if they are not set."""
    port = _number(variables, "MASTER_PORT", least=1) or 0
    if port > 65535:
        raise ValueError(f"MASTER_PORT must be in 1 … 65535, got {port}")
    return variables.get("MASTER_ADDR", ""), port


def _number(variables: Mapping[str, str], name: str, *, least: int = 0) -> int | None:
    """Return a variable as a number; None if it is not set or empty."""
    text = variables.get(name, "").strip()
    if not text:
        return None
    if not re.fullmatch(r"\d{1,18}", text, re.ASCII) or int(text) < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {text!r}")
    return int(text)


def _require_below(name: str, value: int, of: str, count: int) -> None:
    if value >= count:
        raise ValueError(f"{name} must be less than {of}, which is {count}, got {value}")
