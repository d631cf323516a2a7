"""Distributed training: processes that take each step together, each with a part of the batch and the same weights.

Every process draws the same batches from the same generators and takes a contiguous part of each. Losses are means, so
that the mean of the shares' gradients, which DistributedDataParallel forms, is the gradient of the whole batch; shares
are of one size for this. BatchNorm that learns its statistics uses the whole batch, too (`sync_batch_norm`).
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from fastood.train.engine.group import outcome_of_first
from fastood.train.engine.launch import told_local_rank

if TYPE_CHECKING:
    from lightning_fabric import Fabric

T = TypeVar("T")


def open_fabric(accelerator: Literal["cpu", "cuda"], *, precision: Any) -> Fabric:
    """Open the device of this process, with the process group if one is set up (`Group.join`).

    A process that sees one GPU takes it, since its launcher has then given each process its own; otherwise the GPU of
    its number on the node.

    Raises:
        ValueError: If the node has fewer GPUs than processes.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        fabric = _single(accelerator, 1, precision)
        fabric.launch()
        return fabric
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy

    from fastood.train.engine.fabric_environment import ProcessGroupEnvironment

    local_rank, here = _place_on_node()
    device = torch.device(accelerator)
    if accelerator == "cuda":
        gpus = torch.cuda.device_count()
        if 1 < gpus <= local_rank:
            raise ValueError(
                f"process {dist.get_rank()} is number {local_rank} on {socket.gethostname()}, which has {gpus} GPUs: "
                "launch at most as many processes per node as it has GPUs"
            )
        device = torch.device("cuda", local_rank if gpus > 1 else 0)
    # An entry per process of the node, of which Fabric takes that of this process.
    strategy = DDPStrategy(parallel_devices=[device] * here, cluster_environment=ProcessGroupEnvironment(local_rank))
    fabric = Fabric(strategy=strategy, precision=precision)
    fabric.launch()
    return fabric


def _place_on_node() -> tuple[int, int]:
    """Return the number of this process on its node, and the number of processes there."""
    mine = (socket.gethostname(), told_local_rank())
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, mine)
    here = [rank for rank, (host, _) in enumerate(every) if host == mine[0]]
    told = [every[rank][1] for rank in here]
    # A group that its owner has set up within one task of a launcher repeats that task's number.
    if None in told or len(set(told)) < len(told):
        return here.index(dist.get_rank()), len(here)
    return told[here.index(dist.get_rank())], max(told) + 1


def _single(accelerator: str, devices: int | list[int], precision: Any) -> Fabric:
    """Return a Fabric instance of one process; no launcher's variables make Fabric wait for others."""
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment

    return Fabric(accelerator=accelerator, devices=devices, precision=precision, plugins=[LightningEnvironment()])


def without_group(fabric: Fabric, *, precision: Any) -> Fabric:
    """Return a Fabric instance of this process alone, on the same device: no call waits for other processes."""
    if fabric.world_size == 1:
        return fabric
    return _single(fabric.device.type, 1 if fabric.device.type == "cpu" else [fabric.device.index], precision)


def share_of(values: Tensor, fabric: Fabric) -> Tensor:
    """Return this process's part of the values of the whole batch, along the first axis."""
    size = len(values) // fabric.world_size
    return values[fabric.global_rank * size : (fabric.global_rank + 1) * size]


def require_equal_shares(name: str, batch_size: int, processes: int) -> None:
    """Check that a batch can be divided among the processes.

    Raises:
        ValueError: If its size is not a multiple of the number of processes.
    """
    if batch_size % processes:
        raise ValueError(f"{name} must be a multiple of the {processes} processes, got {batch_size}")


def any_process(flag: bool, fabric: Fabric) -> bool:
    """Return whether a flag is set on any process, so that all act alike."""
    if fabric.world_size == 1:
        return flag
    count = fabric.all_reduce(torch.tensor(float(flag), device=fabric.device), reduce_op="sum")
    return float(cast(Tensor, count)) > 0


def of_every_process(value: Any, fabric: Fabric) -> list[Any]:
    """Gather a picklable object of each process, by rank, on every process."""
    values = [value] * fabric.world_size
    if fabric.world_size > 1:
        dist.all_gather_object(values, value)
    return values


def from_first_process(make: Callable[[], T], fabric: Fabric) -> T:
    """Return on every process the result of the first one, which alone reads and writes the run's folder.

    Args:
        make: Called in the first process.
        fabric: The group.

    Raises:
        OSError: If the first process raised one; then on every process.
        ValueError: If the first process raised one; then on every process.
    """
    return make() if fabric.world_size == 1 else outcome_of_first(make)
