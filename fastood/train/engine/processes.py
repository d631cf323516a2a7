"""Distributed training: processes that take each step together, each with a part of the batch and the same weights.

Every process draws the same batches from the same generators and trains on a part of each: an equal contiguous share,
or the images of its slice if the processes divide the background (`StageBatches`). DistributedDataParallel averages the
gradients of the processes. Losses are means over the images of a process, weighted by count where the counts differ:
the average is then the gradient of the whole batch. BatchNorm that learns its statistics uses the whole batch, too
(`sync_batch_norm`).
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from fastood.common.distributed import check_alike, exchange, raise_on_every_process
from fastood.train.engine.group import outcome_of_first
from fastood.train.engine.launch import launcher_local_rank

if TYPE_CHECKING:
    from lightning_fabric import Fabric

T = TypeVar("T")


def attempt_on_all(call: str, attempt: Callable[[], T]) -> T:
    """Return the result of a function that every process calls before it opens a device.

    Args:
        call: Name of the call, for the error on processes whose own function has succeeded.
        attempt: The function; it must not communicate.

    Raises:
        Exception: If the function raises one on any process: its error there, and a ValueError on the others.
    """
    result, error = None, None
    try:
        result = attempt()
    except Exception as raised:  # of any type, because the other processes wait for the exchange below
        error = raised
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        raise_on_every_process(call, error)
    if error is not None:
        raise error
    return cast(T, result)


def open_fabric(accelerator: Literal["cpu", "cuda"], *, precision: Any) -> Fabric:
    """Open the device of this process, with the process group if one is set up (`Group.join`).

    A process that sees a single GPU uses it: its launcher has then assigned a GPU to each process. Otherwise the
    process uses the GPU whose number is its rank on the node.

    Raises:
        ValueError: If the node has fewer GPUs than processes, or the processes have different devices; on every
            process.
    """
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        fabric = _single(accelerator, 1, precision)
        fabric.launch()
        return fabric
    from lightning_fabric import Fabric
    from lightning_fabric.strategies.ddp import DDPStrategy

    from fastood.train.engine.fabric_environment import ProcessGroupEnvironment

    check_alike("device", exchange(accelerator), ": choose one that all machines have, such as --device cpu")
    local_rank, here = _place_on_node()

    def choose() -> torch.device:
        if accelerator == "cpu":
            return torch.device("cpu")
        gpus = torch.cuda.device_count()
        if 1 < gpus <= local_rank:
            raise ValueError(
                f"process {dist.get_rank()} is number {local_rank} on {socket.gethostname()}, which has {gpus} GPUs: "
                "launch at most as many processes per node as it has GPUs"
            )
        return torch.device("cuda", local_rank if gpus > 1 else 0)

    device = attempt_on_all("the choice of a GPU", choose)
    # An entry per process of the node, of which Fabric takes that of this process.
    strategy = DDPStrategy(parallel_devices=[device] * here, cluster_environment=ProcessGroupEnvironment(local_rank))
    fabric = Fabric(strategy=strategy, precision=precision)
    fabric.launch()
    return fabric


def _place_on_node() -> tuple[int, int]:
    """Return the rank of this process on its node, and the number of processes there."""
    mine = (socket.gethostname(), launcher_local_rank())
    every: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(every, mine)
    here = [rank for rank, (host, _) in enumerate(every) if host == mine[0]]
    stated = [every[rank][1] for rank in here]
    # Processes that one task of a launcher has started all have the variables of that task.
    if None in stated or len(set(stated)) < len(stated):
        return here.index(dist.get_rank()), len(here)
    return stated[here.index(dist.get_rank())], max(stated) + 1


def _single(accelerator: str, devices: int | list[int], precision: Any) -> Fabric:
    """Return a Fabric instance of one process, which ignores the variables of launchers and waits for no process."""
    from lightning_fabric import Fabric
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment

    return Fabric(accelerator=accelerator, devices=devices, precision=precision, plugins=[LightningEnvironment()])


def without_group(fabric: Fabric, *, precision: Any) -> Fabric:
    """Return a Fabric instance of this process alone, on the same device: no call waits for other processes."""
    if fabric.world_size == 1:
        return fabric
    return _single(fabric.device.type, 1 if fabric.device.type == "cpu" else [fabric.device.index], precision)


def share_of(values: Tensor, fabric: Fabric) -> Tensor:
    """Return this process's equal share of the values `[B, ...]` of a whole batch, `[B / R, ...]`, in rank order."""
    size = len(values) // fabric.world_size
    return values[fabric.global_rank * size : (fabric.global_rank + 1) * size]


def require_equal_shares(name: str, batch_size: int, processes: int) -> None:
    """Check that a batch can be divided into equal shares of the processes.

    Raises:
        ValueError: If its size is not a multiple of the number of processes.
    """
    if batch_size % processes:
        raise ValueError(f"{name} must be a multiple of the {processes} processes, got {batch_size}")


def any_process(flag: bool, fabric: Fabric) -> bool:
    """Return on every process whether a flag is set on any."""
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
