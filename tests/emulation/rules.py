"""Operands that a GPU refuses, and ops for which the host waits, op by op.

The causes are those of `torch.cuda.set_sync_debug_mode`, and the copies to pageable memory, which it does not see.
"""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tests.emulation.host_memory import is_pinned

_COUNT_DECIDES_SHAPE = "the shape of the result depends on the values"
COPY_TO_HOST = "copy to the host"
COPY_FROM_HOST = "blocking copy from the host"
ELEMENT = "element read by the host"
VALUE_CHECK = "check of the values by the host"

_ALWAYS_WAIT = {
    "aten::_local_scalar_dense": ELEMENT,
    "aten::equal": ELEMENT,
    "aten::is_nonzero": ELEMENT,
    "aten::allclose": ELEMENT,
    "aten::nonzero": _COUNT_DECIDES_SHAPE,
    "aten::nonzero_numpy": _COUNT_DECIDES_SHAPE,
    "aten::argwhere": _COUNT_DECIDES_SHAPE,
    "aten::masked_select": _COUNT_DECIDES_SHAPE,
    "aten::_unique": _COUNT_DECIDES_SHAPE,
    "aten::_unique2": _COUNT_DECIDES_SHAPE,
    "aten::unique_dim": _COUNT_DECIDES_SHAPE,
    "aten::unique_consecutive": _COUNT_DECIDES_SHAPE,
    "aten::unique_dim_consecutive": _COUNT_DECIDES_SHAPE,
    "aten::bincount": _COUNT_DECIDES_SHAPE,
    "aten::_linalg_check_errors": VALUE_CHECK,
    "aten::_linalg_svd": VALUE_CHECK,
    "aten::linalg_lstsq": VALUE_CHECK,
    "aten::multinomial": VALUE_CHECK,
}

# Kernels that PyTorch has for the CPU alone, of those that code here could reach for; `test_device.py` holds
# them against PyTorch's own list.
NOT_ON_CUDA = frozenset(
    {
        "aten::histogram.bin_ct",
        "aten::histogram.bins_tensor",
        "aten::_histogramdd_bin_edges",
        "aten::_histogramdd_from_bin_cts",
        "aten::_histogramdd_from_bin_tensors",
        "aten::from_file",
    }
)

# cuBLAS multiplies no integers.
_FLOATING_POINT_ONLY = {
    *("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::baddbmm", "aten::baddbmm_"),
    *("aten::addmv", "aten::addmv_", "aten::mv", "aten::dot", "aten::vdot", "aten::addbmm"),
}

_TAKES_CPU_OPERANDS = {
    "aten::copy_",
    "aten::_to_copy",
    "aten::index",
    "aten::index_put",
    "aten::index_put_",
    "aten::_index_put_impl_",
    "aten::_unsafe_index",
    "aten::set_",
}
_TAKES_CPU_SCALARS = {
    "aten::fill_",
    "aten::fill",
    "aten::full_like",
    "aten::masked_fill",
    "aten::masked_fill_",
    "aten::index_fill_",
    "aten::index_fill",
    "aten::where",
    "aten::_foreach_mul_",
    "aten::_foreach_mul",
    "aten::_foreach_add_",
    "aten::_foreach_div_",
}


@cache
def takes_cpu_scalars(func: Any) -> bool:
    """Return whether an op takes 0-dimensional tensors of the CPU together with tensors of the device."""
    return torch.Tag.pointwise in func.tags or func._schema.name in _TAKES_CPU_SCALARS


def check_index(device: Any) -> None:
    """Raise CUDA's error for a device that is not there.

    Args:
        device: A device, its name or its index; None for the current one.
    """
    index = torch.device(device).index if isinstance(device, str | torch.device) else device
    if index not in (None, 0, -1):
        raise RuntimeError("CUDA error: invalid device ordinal")


def refuse(func: Any, args: Any, on_cpu: Iterable[Tensor]) -> None:
    """Raise an error for operands that a GPU refuses.

    Raises:
        NotImplementedError: If the op has no CUDA kernel, or none for integers.
        RuntimeError: If operands are on different devices.
    """
    name = func._schema.name
    if f"{name}.{func._overloadname}" in NOT_ON_CUDA or name in NOT_ON_CUDA:
        raise NotImplementedError(f"Could not run '{name}' with arguments from the 'CUDA' backend.")
    if name in _FLOATING_POINT_ONLY and not (args[0].is_floating_point() or args[0].is_complex()):
        raise NotImplementedError(f"\"{name.split('::')[1]}_cuda\" not implemented for '{args[0].dtype}'")
    if name in ("aten::index", "aten::_unsafe_index") and not _is_device(args[0]):
        raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
    if name in ("aten::index_put", "aten::index_put_", "aten::_index_put_impl_"):
        if not _is_device(args[0]) or not (_is_device(args[2]) or args[2].dim() == 0):
            raise _different_devices(name)
        return
    if name in _TAKES_CPU_OPERANDS:
        return
    for tensor in on_cpu:
        if tensor.dim() > 0 or not takes_cpu_scalars(func):
            raise _different_devices(name)
    outputs = [args[k] for k in _written(func) if k < len(args)]
    if any(isinstance(x, Tensor) and not _is_device(x) for x in outputs):
        raise _different_devices(name)


@cache
def _written(func: Any) -> list[int]:
    arguments = func._schema.arguments
    return [k for k, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write]


def _is_device(tensor: Any) -> bool:
    return getattr(tensor, "is_cuda", False) is True


def _different_devices(name: str) -> RuntimeError:
    return RuntimeError(
        "Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! "
        f"(when checking argument in method wrapper_CUDA_{name.split('::')[1]})"
    )


def _copy_waits(target_is_device: bool, source: Tensor, target: Tensor | None, non_blocking: bool) -> str | None:
    if source.numel() == 0 or _is_device(source) == target_is_device:
        return None
    if target_is_device:
        return None if non_blocking else COPY_FROM_HOST
    # A result of `to("cpu", non_blocking=True)` is pinned. To pageable memory the copy returns when it is done.
    return None if non_blocking and (target is None or is_pinned(target)) else COPY_TO_HOST


def _copy(args: Any, kwargs: Any) -> str | None:
    non_blocking = bool(args[2]) if len(args) > 2 else bool(kwargs.get("non_blocking", False))
    return _copy_waits(_is_device(args[0]), args[1], args[0], non_blocking)


def _to_copy(args: Any, kwargs: Any) -> str | None:
    device = kwargs.get("device")
    on_device = _is_device(args[0]) if device is None else torch.device(device).type == "cuda"
    return _copy_waits(on_device, args[0], None, bool(kwargs.get("non_blocking", False)))


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


def _index(args: Any, kwargs: Any) -> str | None:
    if any(_is_mask(index) for index in args[1]):
        return _COUNT_DECIDES_SHAPE
    return COPY_FROM_HOST if any(isinstance(i, Tensor) and not _is_device(i) for i in args[1]) else None


def _index_put(args: Any, kwargs: Any) -> str | None:
    given = [index for index in args[1] if index is not None]
    if args[2].numel() == 1 and len(given) == 1 and _is_mask(given[0]) and _is_device(given[0]):
        return None  # becomes a masked_fill
    return _index(args, kwargs)


def _repeat_interleave(args: Any, kwargs: Any) -> str | None:
    return None if kwargs.get("output_size") is not None else _COUNT_DECIDES_SHAPE


_SOMETIMES_WAIT: dict[str, Callable[[Any, Any], str | None]] = {
    "aten::copy_": _copy,
    "aten::_to_copy": _to_copy,
    "aten::index": _index,
    "aten::_unsafe_index": _index,
    "aten::index_put": _index_put,
    "aten::index_put_": _index_put,
    "aten::_index_put_impl_": _index_put,
    "aten::repeat_interleave": _repeat_interleave,
}


def wait_of(func: Any, args: Any, kwargs: Any) -> str | None:
    """Return the cause for which the host waits in an op, or None if it does not wait."""
    name = func._schema.name
    if (rule := _SOMETIMES_WAIT.get(name)) is not None:
        return rule(args, kwargs)
    return _ALWAYS_WAIT.get(name)
