"""BatchNorm over the batches of all processes, on GPUs and on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

if TYPE_CHECKING:
    from lightning_fabric import Fabric


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
    """Convert a network's BatchNorm layers to take their statistics over the batches of all processes."""
    if fabric.world_size == 1:
        return model
    if fabric.device.type == "cuda":
        converted: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)  # type: ignore[no-untyped-call]
        return converted
    for name, child in model.named_children():
        setattr(model, name, synchronize_batch_norm(child, fabric))
    return CPUSyncBatchNorm.like(model) if isinstance(model, nn.modules.batchnorm._BatchNorm) else model


class CPUSyncBatchNorm(nn.modules.batchnorm._BatchNorm):
    """`torch.nn.SyncBatchNorm` for the CPU, where PyTorch's refuses to run.

    Raises:
        ValueError: If the layer has no scale and shift, no running statistics, or no momentum for them.
    """

    @classmethod
    def like(cls, layer: nn.modules.batchnorm._BatchNorm) -> CPUSyncBatchNorm:
        """Return a layer with the parameters and statistics of a BatchNorm layer."""
        if not layer.affine or not layer.track_running_stats or layer.momentum is None:
            raise ValueError(f"BatchNorm on several processes must be affine, with running statistics, got {layer}")
        new = cls(layer.num_features, eps=layer.eps, momentum=layer.momentum)
        new.load_state_dict(layer.state_dict())
        return new

    def forward(self, inputs: Tensor) -> Tensor:
        """Normalize by mean and variance of the whole batch in training, by the running ones otherwise."""
        if not self.training:
            return super().forward(inputs)
        axes = [axis for axis in range(inputs.ndim) if axis != 1]
        shape = [1, -1] + [1] * (inputs.ndim - 2)
        # The processes may have unequal numbers of images: count them together with the sums.
        # At least float32: half precision cannot count.
        dtype = torch.promote_types(inputs.dtype, torch.float32)
        own = inputs.new_full((1,), inputs.numel() // inputs.shape[1], dtype=dtype)
        together = all_reduce(torch.cat([inputs.sum(axes, dtype=dtype), own]))
        sums, count = together[:-1], together[-1:]
        # Two passes, not E[x²] - E[x]², which cancels where the mean is large.
        mean = sums / count
        centred = inputs - mean.view(shape)
        variance = all_reduce(centred.square().sum(axes)) / count
        # Running statistics hold the unbiased variance, as in torch.nn.BatchNorm2d.
        self._observe(mean.detach(), variance.detach() * count / (count - 1))
        scale = self.weight * (variance + self.eps).rsqrt()
        return centred * scale.view(shape) + self.bias.view(shape)

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept images `[N, C, H, W]` and features `[N, d]`."""

    def _observe(self, mean: Tensor, variance: Tensor) -> None:
        """Update the running statistics."""
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance, self.momentum)
        self.num_batches_tracked.add_(1)
