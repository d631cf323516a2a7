"""Distributed training: processes that take each step together, each with a part of the batch and the same weights.

Every process draws the same batches from the same generators and takes a contiguous part of each. Losses are means, so
that the mean of the shares' gradients, which DistributedDataParallel forms, is the gradient of the whole batch; shares
are of one size for this. BatchNorm that learns its statistics uses the whole batch, too (`sync_batch_norm`).
"""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from lightning_fabric import Fabric

T = TypeVar("T")
_LAUNCHERS = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
"""Environment variables that launchers other than torchrun set to the number of processes."""


def launched_processes() -> int:
    """Return the number of processes that torchrun has launched for this run; 1 without torchrun."""
    return int(os.environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1


def require_known_launcher() -> None:
    """Check that no launcher except torchrun has started several processes: each would train the whole run.

    Raises:
        ValueError: If a launcher such as srun or mpirun has started several processes and torchrun has not.
    """
    if dist.is_torchelastic_launched():
        return
    # An interactive shell with several tasks is one process.
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    for name in _LAUNCHERS:
        count = os.environ.get(name, "1")
        if name.startswith("SLURM") and (interactive or (name == "SLURM_NTASKS" and _LAUNCHERS[1] in os.environ)):
            continue
        if count.isdecimal() and int(count) > 1:
            raise ValueError(
                f"{name} is {count}: several processes must be launched by torchrun, or each trains the whole run; "
                f"torchrun --nproc-per-node {count} -m fastood.train METHOD --name NAME (under Slurm as one task per "
                f"node), or unset {name} for a single process"
            )


def open_fabric(accelerator: Literal["cpu", "cuda"], *, precision: Any) -> Fabric:
    """Open the device and, under torchrun, the group of processes; wait until all processes have joined.

    Raises:
        ConnectionRefusedError: If torchrun has ended meanwhile, so that no other process would join.
    """
    from lightning_fabric import Fabric

    processes = launched_processes()
    if processes > 1:
        require_launcher()
    if processes == 1:
        fabric = Fabric(accelerator=accelerator, devices=1, precision=precision)
    else:
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        fabric = Fabric(
            accelerator=accelerator, devices=here, num_nodes=processes // here, strategy="ddp", precision=precision
        )
    fabric.launch()
    return fabric


def require_launcher() -> None:
    """Check that torchrun still runs: PyTorch would try for half an hour to reach one that was killed.

    Raises:
        ConnectionRefusedError: If the store that torchrun opens before it launches anything is gone.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return
    try:
        socket.create_connection((os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])), timeout=60).close()
    except ConnectionRefusedError as error:
        raise ConnectionRefusedError(error.errno, "torchrun, which launched this process, has ended") from None
    except OSError:
        return  # PyTorch tries again, and reports the error if it persists.


def close_group() -> None:
    """End the group of processes, if there is one.

    Must be called on every exit path: threads of the group that run when the interpreter ends abort the process.
    """
    if dist.is_available() and dist.is_initialized():
        gc.collect()  # Networks wrapped for the group hold references to it.
        dist.destroy_process_group()


def without_group(fabric: Fabric, *, precision: Any) -> Fabric:
    """Return a Fabric instance of this process alone, on the same device: no call waits for other processes."""
    from lightning_fabric import Fabric

    if fabric.world_size == 1:
        return fabric
    devices = 1 if fabric.device.type == "cpu" else [fabric.local_rank]
    return Fabric(accelerator=fabric.device.type, devices=devices, precision=precision)


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


def of_whole_batch(share: Tensor, fabric: Fabric) -> Tensor:
    """Gather a value per image of the whole batch, `[B]` on every process, from those of each share."""
    if fabric.world_size == 1:
        return share
    whole = share.new_empty(len(share) * fabric.world_size)
    dist.all_gather_into_tensor(whole, share.detach().contiguous())
    return whole


def mean_of_processes(value: Tensor, fabric: Fabric) -> float:
    """Return the mean of a scalar over all processes, on every process."""
    return float(value if fabric.world_size == 1 else cast(Tensor, fabric.all_reduce(value.clone(), reduce_op="mean")))


def sum_of_processes(count: int, fabric: Fabric) -> int:
    """Return the sum of a count over all processes, on every process."""
    if fabric.world_size == 1:
        return count
    total = fabric.all_reduce(torch.tensor(count, dtype=torch.int64, device=fabric.device), reduce_op="sum")
    return int(cast(Tensor, total))


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
    if fabric.world_size == 1:
        return make()
    outcome: list[Any] = [None, None]
    if fabric.is_global_zero:
        try:
            outcome[0] = make()
        except (OSError, ValueError) as error:
            outcome[1] = error
    dist.broadcast_object_list(outcome, src=0)
    if outcome[1] is not None:
        raise outcome[1]
    return cast(T, outcome[0])
