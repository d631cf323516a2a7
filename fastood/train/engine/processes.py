"""Several processes that take one step together: each its share of the batch, all the same weights.

Every process draws the same batches from the same generators and takes a contiguous share of each. Losses are means, so
that the mean of the shares' gradients, which DistributedDataParallel forms, is the gradient of the whole batch; shares
are of one size for this. BatchNorm that learns its statistics sees the whole batch, too.
"""

from __future__ import annotations

import gc
import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from lightning.fabric import Fabric

T = TypeVar("T")
_LAUNCHERS = ("WORLD_SIZE", "SLURM_STEP_NUM_TASKS", "SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE")
"""Variables in which launchers other than torchrun say how many processes they have begun."""


def launched_processes() -> int:
    """How many processes torchrun has launched for this run; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1


def require_known_launcher() -> None:
    """Refuse to be one of several processes that know nothing of each other: each would train the whole run.

    Raises:
        ValueError: If srun, mpirun or the like has begun several processes and torchrun has not.
    """
    if dist.is_torchelastic_launched():
        return
    # A shell that was given several tasks is one process.
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")
    for name in _LAUNCHERS:
        count = os.environ.get(name, "1")
        if name.startswith("SLURM") and (interactive or (name == "SLURM_NTASKS" and _LAUNCHERS[1] in os.environ)):
            continue
        if count.isdecimal() and int(count) > 1:
            raise ValueError(
                f"{name} is {count}: several processes must be launched by torchrun, or each trains a run of its own; "
                f"torchrun --nproc-per-node {count} -m fastood.train METHOD --name NAME (under Slurm as one task per "
                f"node), or unset {name} for a single process"
            )


def open_fabric(accelerator: Literal["cpu", "cuda"], *, precision: Any) -> Fabric:
    """Device, precision and, under torchrun, the group of processes; waits until all are there.

    Raises:
        ConnectionRefusedError: If torchrun has ended meanwhile: nobody else would come.
    """
    from lightning.fabric import Fabric

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
    """Refuse to wait for a torchrun that was killed: PyTorch tries for half an hour to reach it.

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
        return  # PyTorch tries again, and says what it meets.


def close_group() -> None:
    """End the group of processes, if there is one.

    Threads of the group that still run when the interpreter ends abort the process: to be called on every way out.
    """
    if dist.is_available() and dist.is_initialized():
        gc.collect()  # Networks that were shared hold on to the group.
        dist.destroy_process_group()


def without_group(fabric: Fabric, *, precision: Any) -> Fabric:
    """For what a process does on its own, on the same device: nothing in it waits for the others."""
    from lightning.fabric import Fabric

    if fabric.world_size == 1:
        return fabric
    devices = 1 if fabric.device.type == "cpu" else [fabric.local_rank]
    return Fabric(accelerator=fabric.device.type, devices=devices, precision=precision)


def share_of(values: Tensor, fabric: Fabric) -> Tensor:
    """This process's part of what belongs to the whole batch, along the first axis."""
    size = len(values) // fabric.world_size
    return values[fabric.global_rank * size : (fabric.global_rank + 1) * size]


def require_equal_shares(name: str, batch_size: int, processes: int) -> None:
    """Refuse a batch that cannot be shared out.

    Raises:
        ValueError: If its size is no multiple of the number of processes.
    """
    if batch_size % processes:
        raise ValueError(f"{name} must be a multiple of the {processes} processes, got {batch_size}")


def of_whole_batch(share: Tensor, fabric: Fabric) -> Tensor:
    """One value per image of the whole batch, on every process, from those of its share."""
    if fabric.world_size == 1:
        return share
    whole = share.new_empty(len(share) * fabric.world_size)
    dist.all_gather_into_tensor(whole, share.detach().contiguous())
    return whole


def mean_of_processes(value: Tensor, fabric: Fabric) -> float:
    """The mean of a scalar, the same on every process."""
    return float(value if fabric.world_size == 1 else cast(Tensor, fabric.all_reduce(value.clone(), reduce_op="mean")))


def sum_of_processes(count: int, fabric: Fabric) -> int:
    """Return the sum of a count over all processes, on every process."""
    if fabric.world_size == 1:
        return count
    total = fabric.all_reduce(torch.tensor(count, dtype=torch.int64, device=fabric.device), reduce_op="sum")
    return int(cast(Tensor, total))


def any_process(flag: bool, fabric: Fabric) -> bool:
    """Whether a flag is set on any process, so that all do the same."""
    if fabric.world_size == 1:
        return flag
    count = fabric.all_reduce(torch.tensor(float(flag), device=fabric.device), reduce_op="sum")
    return float(cast(Tensor, count)) > 0


def of_every_process(value: Any, fabric: Fabric) -> list[Any]:
    """A picklable object of each process, by rank, on every process."""
    values = [value] * fabric.world_size
    if fabric.world_size > 1:
        dist.all_gather_object(values, value)
    return values


def from_first_process(make: Callable[[], T], fabric: Fabric) -> T:
    """Return on every process what the first one makes, which alone reads and writes the run's folder.

    Args:
        make: Called in the first process.
        fabric: The group.

    Raises:
        OSError: If the first process met one, on every process.
        ValueError: If the first process met one, on every process.
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


class _AllReduce(torch.autograd.Function):
    """Sum of every process's tensor, on every process; gradients are summed over the processes, too."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return all_reduce(gradient)


def all_reduce(tensor: Tensor) -> Tensor:
    """Return the sum of every process's tensor, through which gradients flow back to all of them."""
    return cast(Tensor, _AllReduce.apply(tensor))


def synchronize_batch_norm(model: nn.Module, fabric: Fabric) -> nn.Module:
    """A network whose BatchNorm layers take their statistics over the batches of all processes."""
    if fabric.world_size == 1:
        return model
    if fabric.device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted
    for name, child in model.named_children():
        setattr(model, name, synchronize_batch_norm(child, fabric))
    return CPUSyncBatchNorm.like(model) if isinstance(model, nn.modules.batchnorm._BatchNorm) else model


class CPUSyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """What `torch.nn.SyncBatchNorm` computes, by its definition; that one refuses tensors on the CPU.

    Raises:
        ValueError: If the layer has no scale and shift, no running statistics, or no momentum for them.
    """

    @classmethod
    def like(cls, layer: nn.modules.batchnorm._BatchNorm) -> CPUSyncBatchNorm:
        """With the parameters and statistics of a BatchNorm layer."""
        if not layer.affine or not layer.track_running_stats or layer.momentum is None:
            raise ValueError(f"BatchNorm on several processes must be affine, with running statistics, got {layer}")
        new = cls(layer.num_features, eps=layer.eps, momentum=layer.momentum)
        new.load_state_dict(layer.state_dict())
        return new

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalised by mean and variance of the whole batch in training, by the running ones otherwise."""
        if not self.training:
            return super().forward(inputs)
        axes = [axis for axis in range(inputs.ndim) if axis != 1]
        shape = [1, -1] + [1] * (inputs.ndim - 2)
        count = inputs.numel() // inputs.shape[1] * dist.get_world_size()
        mean = all_reduce(inputs.sum(axes)) / count
        centred = inputs - mean.view(shape)
        variance = all_reduce(centred.square().sum(axes)) / count
        self._observe(mean.detach(), variance.detach() * count / (count - 1))
        scale = self.weight * (variance + self.eps).rsqrt()
        return centred * scale.view(shape) + self.bias.view(shape)

    def _check_input_dim(self, input: Tensor) -> None:
        """Images and features alike."""

    def _observe(self, mean: Tensor, variance: Tensor) -> None:
        """Move the running statistics."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        self.num_batches_tracked.add_(1)
