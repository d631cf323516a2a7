"""Tests in several processes that exchange by gloo."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# The processes are forked from one that has imported the slow modules: each launch would import them four times.
multiprocessing.set_forkserver_preload(
    ["torch", "torch.distributed.tensor", "scipy.stats", "pytest", "fastood.samplers"]
)

Body = Callable[[int, int, dist.ProcessGroup, Path], None]
"""Function of rank, number of processes, group and a folder that all processes share."""


def run_in_groups(bodies: Sequence[Body], folder: Path, sizes: Sequence[int] = (2, 3, 4)) -> None:
    """Run each body in groups of the given sizes, in one launch of as many processes as the largest group has."""
    run = partial(_run, tuple(bodies), str(folder), tuple(sizes))
    mp.start_processes(run, nprocs=max(sizes), start_method="forkserver")


def _run(bodies: tuple[Body, ...], folder: str, sizes: tuple[int, ...], rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=max(sizes))
    try:
        groups = {size: dist.new_group(list(range(size))) for size in sizes}
        for body in bodies:
            for size, group in groups.items():
                if rank < size:
                    shared = Path(folder) / f"{body.__name__}-{size}"
                    shared.mkdir(exist_ok=True)
                    try:
                        body(rank, size, group, shared)
                    except BaseException:
                        # The error that is reported may be another one: that of a process that lost its connection.
                        traceback.print_exc()
                        raise
        dist.barrier()
    finally:
        dist.destroy_process_group()


def gather(values: Any, group: dist.ProcessGroup) -> list[Any]:
    """Return the values of all processes, in the order of the ranks."""
    parts: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(parts, values, group=group)
    return parts
