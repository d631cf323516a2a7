"""Processes of a sharded pool: the slices that they own, exchanges of tensors, and agreement on arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from fastood.common.distributed import check_alike, check_in_group, exchange, raise_on_every_process
from fastood.common.division import processes_with_rows, slice_rows
from fastood.samplers.digests import digest

__all__ = ["Processes", "slice_bounds"]

_LABELS = {"generator": "the state of generator"}
"""Names of exchanged values in errors, if they differ from the name of the argument."""


def slice_bounds(num_examples: int, rank: int, world_size: int) -> tuple[int, int]:
    """Return begin and end of the slice of a rank, as `slice_rows` divides the examples.

    Raises:
        ValueError: If a rank would have no example. Every rank raises.

    Example:
        >>> [slice_bounds(10, rank, 4) for rank in range(4)]
        [(0, 3), (3, 6), (6, 9), (9, 10)]
    """
    rows, used = slice_rows(num_examples, rank, world_size), processes_with_rows(num_examples, world_size)
    if used < world_size:
        size = len(slice_rows(num_examples, 0, world_size))
        raise ValueError(
            f"num_examples must give each of {world_size} processes an example, got {num_examples}: at "
            f"ceil({num_examples} / {world_size}) = {size} examples each, {used} processes have all of them; start at "
            f"most {used} processes"
        )
    return rows.start, rows.stop


class Processes:
    """Process group of a sharded pool.

    Args:
        group: Process group; None for the default group.
        device: Device of the tensors that are exchanged.

    Attributes:
        rank: Rank of this process in the group.
        size: Number of processes.
        group: Process group, or None for the default group.
        device: Device of the tensors that are exchanged.

    Raises:
        RuntimeError: If there is no process group.
        ValueError: If this process is not in `group`.
    """

    def __init__(self, group: dist.ProcessGroup | None, device: torch.device) -> None:
        check_in_group(group)
        self.group = group
        self.device = device
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)

    def gather(self, own: Tensor) -> Tensor:
        """Return the tensors of all processes, `[R, *shape]`. Does not wait for a CUDA device.

        Args:
            own: Contiguous tensor, of the same shape on every process.
        """
        # Flat: gloo accepts no stacked output.
        every = own.new_empty(self.size * own.numel())
        dist.all_gather_into_tensor(every, own.view(-1), group=self.group)
        return every.view(self.size, *own.shape)

    def add(self, own: Tensor) -> Tensor:
        """Return the sum over all processes, added in the order of the ranks: the same bits on every process."""
        return self.gather(own).sum(0)

    def largest(self, own: Tensor) -> Tensor:
        """Return the maximum over all processes, element by element."""
        return self.gather(own).amax(0)

    def raise_together(self, call: str, error: Exception | None) -> None:
        """Raise on every process if there is an error on one; see `raise_on_every_process`."""
        raise_on_every_process(call, error, self.group, device=self.device)

    def attempt(self, call: str, act: Callable[[], object] | None) -> None:
        """Run a function on the processes that have one; an error on one process raises on every process.

        Args:
            call: Name of the call, for errors on other processes.
            act: Function to run; None for a process that only waits for the others.
        """
        error = None
        try:
            if act is not None:
                act()
        except Exception as wrong:  # of any type, because the other processes wait for the exchange below
            error = wrong
        self.raise_together(call, error)

    @contextmanager
    def agreeing(self, call: str) -> Iterator[dict[str, object]]:
        """Check arguments on all processes: an error on one, or a difference, raises on every process.

        Args:
            call: Name of the call, for errors on other processes.

        Yields:
            A dict for the caller to fill with the values that must be equal on every process, by name.
        """
        alike: dict[str, object] = {}
        trouble = None
        try:
            yield alike
        except Exception as error:  # of any type, because the other processes wait for the exchange below
            trouble = error
        # Usually only a digest is exchanged, one integer; the values follow only if digests differ.
        number = -1 if trouble is not None else digest(repr((call, alike)).encode())
        numbers = self.gather(torch.full((1,), number, device=self.device))
        if number >= 0 and len(set(numbers.flatten().tolist())) == 1:
            return
        self.raise_together(call, trouble)
        made = exchange((call, alike), self.group, device=self.device)
        for rank, (other, _) in enumerate(made):
            if other != made[0][0]:
                raise ValueError(
                    f"every process must make the same call, got {made[0][0]} on rank 0 and {other} on rank {rank}"
                )
        every = [values for _, values in made]
        for name in dict.fromkeys(name for values in every for name in values):
            check_alike(_LABELS.get(name, name), [values.get(name) for values in every])
        raise ValueError(f"the arguments of {call} must be of the same types on every process, got {every}")
