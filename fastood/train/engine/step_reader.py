"""Losses that stay on the device until they are read together, with counts and stop requests of all processes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from collections.abc import Mapping

    from lightning_fabric import Fabric

READ_EVERY = 10
"""Steps between two reads on a device, where a read waits for all steps before it."""


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Values of the steps since the last read, the same on every process."""

    losses: tuple[float, ...]
    """Mean loss of the processes at each step."""
    stopping: bool
    """Whether a process was asked to stop."""
    correct: int
    """Correctly classified in-distribution images, of all processes."""
    total: int
    """In-distribution images that were classified, of all processes."""
    scalars: Mapping[str, float]
    """Numbers of this process."""


class StepReader:
    """Losses of the steps since the last read.

    A read is one all-reduce over the processes and one copy to the host. On the CPU, where the host computes the steps
    itself, every step is read.

    Args:
        fabric: Device and group of processes.
    """

    def __init__(self, fabric: Fabric) -> None:
        self._fabric = fabric
        self._losses: list[Tensor] = []
        self.every = 1 if fabric.device.type == "cpu" else READ_EVERY

    def add(self, loss: Tensor) -> None:
        """Add the loss of this process at a step, floating-point `[]`."""
        self._losses.append(loss)

    def read(self, *, stop: bool, accuracy_counts: Tensor, scalars: Mapping[str, Tensor]) -> Reading:
        """Read all steps since the last read; every process must call it after the same step.

        Args:
            stop: Whether this process was asked to stop.
            accuracy_counts: Correct and all images of this process, `[2]`, below 2^53.
            scalars: Numbers of this process, `[]` each.
        """
        device, count = self._fabric.device, len(self._losses)
        # A fill and copies on the device: a copy from pageable memory of the host would wait for the device.
        shared = torch.full((count + 3,), float(stop), dtype=torch.float64, device=device)
        if count:
            shared[:count] = torch.stack(self._losses)
        shared[count : count + 2] = accuracy_counts
        if self._fabric.world_size > 1:
            dist.all_reduce(shared)
        own = [value.double().to(device) for value in scalars.values()]
        values = (torch.cat([shared, torch.stack(own)]) if own else shared).tolist()
        self._losses.clear()
        correct, total, stopping = values[count : count + 3]
        return Reading(
            losses=tuple(value / self._fabric.world_size for value in values[:count]),
            stopping=stopping > 0,
            correct=int(correct),
            total=int(total),
            scalars=dict(zip(scalars, values[count + 3 :], strict=True)),
        )
