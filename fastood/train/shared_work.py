"""Work that the processes of a run share: each computes a contiguous part, and all have the results."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, cast

import torch
import torch.distributed as dist
from torch import Tensor

from fastood.common.distributed import exchange
from fastood.common.gathering import gather_rows

if TYPE_CHECKING:
    from lightning_fabric import Fabric

_ERRORS: dict[str, type[Exception]] = {error.__name__: error for error in (OSError, TypeError, ValueError)}
"""Types of errors that are raised on the other processes, too; others become a RuntimeError."""


def is_group_open(fabric: Fabric | None) -> bool:
    """Return whether a group of several processes is open, so that each has to take part in every exchange."""
    return fabric is not None and fabric.world_size > 1 and dist.is_initialized()


def part_of(count: int, rank: int, processes: int) -> range:
    """Return the part of `count` items that a process computes: contiguous, of sizes that differ by at most 1.

    Example:
        >>> [list(part_of(5, rank, 3)) for rank in range(3)]
        [[0, 1], [2, 3], [4]]
        >>> [list(part_of(1, rank, 2)) for rank in range(2)]
        [[0], []]
    """
    begin, end = (-(-count * place // processes) for place in (rank, rank + 1))
    return range(begin, end)


def compute_shared(
    count: int, compute: Callable[[range], Sequence[Tensor]], fabric: Fabric | None
) -> tuple[Tensor, ...]:
    """Compute rows for `count` items by all processes, and return all rows on every process.

    Collective, in the same order on all processes. Where `is_group_open` is false, the process computes everything.

    Args:
        count: Number of items, at least 1, equal on all processes.
        compute: Function that returns tensors `[n, ...]` for a range of items, as many for every range; called with
            this process's part alone, and not at all if the part is empty.
        fabric: The processes; None for this process alone.

    Returns:
        The tensors of all items, in the order of the items.

    Raises:
        Exception: If `compute` raises one on any process; on every process, as by `raise_on_all`, before rows are
            exchanged.
    """
    if fabric is None or not is_group_open(fabric):
        return tuple(compute(range(count)))
    part = part_of(count, fabric.global_rank, fabric.world_size)
    rows: Sequence[Tensor] = ()
    error = None
    try:
        if part:
            rows = compute(part)
    except Exception as raised:
        error = raised
    raise_on_all(error, fabric)
    # Processes without a part do not know how many tensors there are.
    number = torch.tensor(len(rows), device=fabric.device)
    dist.all_reduce(number, op=dist.ReduceOp.MAX)
    named = {f"result {i}": rows[i] if part else None for i in range(int(number))}
    return tuple(gather_rows(named).values())


def raise_on_all(error: Exception | None, fabric: Fabric) -> None:
    """Raise the error of the first process that has one, on every process; every process must call it.

    Args:
        error: Error of this process; None if it has succeeded.
        fabric: The processes.

    Raises:
        Exception: `error` itself on the process that it belongs to. The others raise an error with its message: an
            OSError, TypeError or ValueError if the type of `error` is derived from one, otherwise a RuntimeError.
    """
    if not is_group_open(fabric):
        if error is not None:
            raise error
        return
    failed = torch.tensor(int(error is not None), device=fabric.device)
    dist.all_reduce(failed, op=dist.ReduceOp.MAX)
    if not failed:
        return
    every = exchange(None if error is None else (_kind(error), str(error)), device=fabric.device)
    rank, (kind, message) = next((rank, found) for rank, found in enumerate(every) if found is not None)
    if rank == fabric.global_rank:
        raise cast(Exception, error)
    if kind in _ERRORS:
        raise _ERRORS[kind](message)
    raise RuntimeError(f"process {rank} has failed: {kind}: {message}")


def of_any(reasons: Mapping[str, str], fabric: Fabric) -> dict[str, str]:
    """Return the reasons of all processes by name, so that all leave out the same names; all must call it.

    Args:
        reasons: Reasons of this process by name.
        fabric: The processes.

    Returns:
        The reason of the first process that has one, for each name, in the order of the ranks.
    """
    if not is_group_open(fabric):
        return dict(reasons)
    found: dict[str, str] = {}
    for of_process in exchange(dict(reasons), device=fabric.device):
        found = {**of_process, **found}
    return {name: found[name] for name in sorted(found)}


def _kind(error: Exception) -> str:
    """Return the name of the error, or of the type in `_ERRORS` that it is derived from."""
    return next((name for name, kind in _ERRORS.items() if isinstance(error, kind)), type(error).__name__)
