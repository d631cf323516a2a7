"""Copies of tensors from the host to a device that the host does not wait for."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["to_device"]


def to_device(tensor: Tensor, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Return a tensor on a device, contiguous, without waiting for the device.

    Args:
        tensor: The tensor, on the host or on a device.
        device: Device of the result.
        dtype: dtype of the result; None for that of `tensor`.

    Example:
        >>> to_device(torch.tensor([1, 2]), torch.device("cpu"), torch.float64)
        tensor([1., 2.], dtype=torch.float64)
    """
    if tensor.device == device or not tensor.is_cpu:
        return tensor.to(device, dtype).contiguous()
    # The driver has read pageable memory when the call returns; pinned memory it reads later, when the caller may have
    # overwritten it.
    host = tensor.clone() if tensor.is_pinned() else tensor
    return host.contiguous().to(device, dtype, non_blocking=True)
