"""Several processes that take one step together: each its share of the batch, all the same weights.

Every process draws the same batches from the same generators and takes a contiguous share of each. Losses are means, so
that the mean of the shares' gradients, which DistributedDataParallel forms, is the gradient of the whole batch; shares
are of one size for this. BatchNorm that learns its statistics sees the whole batch, too.
"""

import os
from typing import Any, Literal, cast

import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce


def launched_processes() -> int:
    """How many processes torchrun has launched for this run; 1 without it."""
    return int(os.environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1


def open_fabric(accelerator: Literal["cpu", "cuda"], *, precision: Any) -> Fabric:
    """Device, precision and, under torchrun, the group of processes; waits until all are there."""
    processes = launched_processes()
    if processes == 1:
        fabric = Fabric(accelerator=accelerator, devices=1, precision=precision)
    else:
        here = int(os.environ["LOCAL_WORLD_SIZE"])
        fabric = Fabric(
            accelerator=accelerator, devices=here, num_nodes=processes // here, strategy="ddp", precision=precision
        )
    fabric.launch()
    return fabric


def without_group(fabric: Fabric, *, precision: Any) -> Fabric:
    """For what a process does on its own, on the same device: nothing in it waits for the others."""
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
    def like(cls, layer: nn.modules.batchnorm._BatchNorm) -> "CPUSyncBatchNorm":
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
        mean: Tensor = all_reduce(inputs.sum(axes)) / count  # type: ignore[no-untyped-call]
        centred = inputs - mean.view(shape)
        variance: Tensor = all_reduce(centred.square().sum(axes)) / count  # type: ignore[no-untyped-call]
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
