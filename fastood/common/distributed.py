"""Agreement of processes before they add up: a difference is an error on every one, and nobody waits for it."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TypeVar

import torch
import torch.distributed as dist

Told = TypeVar("Told")


def exchange(told: Told, group: dist.ProcessGroup | None = None, *, device: torch.device | None = None) -> list[Told]:
    """Return what every process of `group` tells, in the order of their ranks.

    Args:
        told: Anything that can be pickled.
        group: The processes; None for all.
        device: Where this process keeps what is added up: NCCL sends by way of it, whatever the current one is.

    Raises:
        RuntimeError: No process group has been set up.
        ValueError: This process is not in `group`.
    """
    check_in_group(group)
    every: list[Told | None] = [None] * dist.get_world_size(group)
    with torch.cuda.device(device) if device is not None and device.type == "cuda" else nullcontext():
        dist.all_gather_object(every, told, group=group)
    return every  # type: ignore[return-value]


def check_in_group(group: dist.ProcessGroup | None) -> None:
    """Raise unless this process is in `group`; collectives of others return without having done anything.

    Raises:
        RuntimeError: No process group has been set up.
        ValueError: This process is not in `group`.
    """
    if not dist.is_initialized():
        raise RuntimeError("no process group has been set up: call torch.distributed.init_process_group first")
    if dist.get_rank(group) < 0:
        raise ValueError(f"group must hold this process, which is rank {dist.get_rank()} of all")


def check_alike(what: str, every: list[Told]) -> None:
    """Raise ValueError, on every process alike, unless all tell the same.

    Args:
        what: Name of what is told, for the error.
        every: As `exchange` returns it.

    Example:
        >>> check_alike("bits", [20, 20])
        >>> check_alike("bits", [20, 10, 20])
        Traceback (most recent call last):
            ...
        ValueError: bits must be the same on every process, got 20 on rank 0 and 10 on rank 1
    """
    for rank, told in enumerate(every):
        if told != every[0]:
            raise ValueError(
                f"{what} must be the same on every process, got {every[0]} on rank 0 and {told} on rank {rank}"
            )
