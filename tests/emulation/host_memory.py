"""Pinned memory of the host, for which a copy from or to the device need not wait."""

from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

_pinned: dict[int, StorageWeakRef] = {}
_clone = torch._C.TensorBase.clone


def mark_pinned(tensor: Tensor) -> Tensor:
    """Mark the memory of a tensor of the CPU as pinned."""
    if tensor.numel() > 0:
        storage = tensor.untyped_storage()
        _pinned[storage.data_ptr()] = StorageWeakRef(storage)
    return tensor


def is_pinned(tensor: Tensor, device: Any = None) -> bool:
    """Return whether a tensor is in pinned memory; the stand-in for `Tensor.is_pinned`."""
    if tensor.device.type != "cpu" or tensor.numel() == 0:
        return False
    address = tensor.untyped_storage().data_ptr()
    found = _pinned.get(address)
    if found is not None and found.expired():
        del _pinned[address]
        return False
    return found is not None


def pin_memory(tensor: Tensor, device: Any = None) -> Tensor:
    """Return a tensor in pinned memory; the stand-in for `Tensor.pin_memory`."""
    if tensor.device.type != "cpu":
        raise RuntimeError(f"cannot pin '{tensor.type()}' only dense CPU tensors can be pinned")
    return tensor if is_pinned(tensor) else mark_pinned(_clone(tensor))
