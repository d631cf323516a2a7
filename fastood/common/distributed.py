"""Agreement of processes before a reduction: a difference raises on every process, so that none waits forever."""

from __future__ import annotations

from contextlib import nullcontext
from typing import TypeVar

import torch
import torch.distributed as dist

__all__ = ["check_alike", "check_in_group", "exchange", "raise_on_every_process"]

T = TypeVar("T")


def exchange(value: T, group: dist.ProcessGroup | None = None, *, device: torch.device | None = None) -> list[T]:
    """Return the values of all processes of `group`, in the order of their ranks.

    Args:
        value: Any object that can be pickled.
        group: Process group; None for the default group.
        device: Device of the data of this process; NCCL communicates through it instead of the current device.

    Raises:
        RuntimeError: If there is no process group.
        ValueError: If this process is not in `group`.
    """
    check_in_group(group)
    every: list[T | None] = [None] * dist.get_world_size(group)
    with torch.cuda.device(device) if device is not None and device.type == "cuda" else nullcontext():
        dist.all_gather_object(every, value, group=group)
    return every  # type: ignore[return-value]


def raise_on_every_process(
    call: str, error: Exception | None, group: dist.ProcessGroup | None = None, *, device: torch.device | None = None
) -> None:
    """Raise on every process of `group` if there is an error on one; all processes must call it.

    Args:
        call: Name of the call that failed, for the error on the other processes.
        error: Error of this process; None if there is none.
        group: Process group; None for the default group.
        device: Device of the data of this process, for NCCL.

    Raises:
        Exception: `error` on the process that it is from.
        ValueError: On the other processes, with rank and message of the first error.
    """
    every = exchange(None if error is None else f"{type(error).__name__}: {error}", group, device=device)
    if error is not None:
        raise error
    for rank, message in enumerate(every):
        if message is not None:
            raise ValueError(f"{call} failed on rank {rank}: {message}")


def check_in_group(group: dist.ProcessGroup | None) -> None:
    """Raise unless this process is in `group`; collectives silently do nothing on processes outside the group.

    Raises:
        RuntimeError: If there is no process group.
        ValueError: If this process is not in `group`.
    """
    if not dist.is_initialized():
        raise RuntimeError("no process group has been set up: call torch.distributed.init_process_group first")
    if dist.get_rank(group) < 0:
        raise ValueError(f"group must hold this process, which is rank {dist.get_rank()} of all")


def check_alike(name: str, every: list[T], ending: str = "") -> None:
    """Raise ValueError, on every process, unless the values of all processes are equal.

    Args:
        name: Name of the value, for the error.
        every: Values of all processes, as `exchange` returns them.
        ending: Text after the error's message.

    Example:
        >>> check_alike("bits", [20, 20])
        >>> check_alike("bits", [20, 10, 20])
        Traceback (most recent call last):
            ...
        ValueError: bits must be the same on every process, got 20 on rank 0 and 10 on rank 1
    """
    for rank, value in enumerate(every):
        if value != every[0]:
            raise ValueError(
                f"{name} must be the same on every process, got {every[0]} on rank 0 and {value} on rank {rank}{ending}"
            )
