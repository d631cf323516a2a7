"""Device "cuda:0" without a GPU: tensors hold CPU tensors, aten and fastood ops run on the CPU, host waits are counted.

A host wait is a call at which PyTorch waits for the GPU: a value read by Python, a blocking copy between host and
device, an op whose result size depends on values, or the wait for an event that has not been reached.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

__all__ = ["CountedDevice", "Event", "counted_device", "one_process"]

_READS_VALUES = (
    "_local_scalar_dense",
    "_unique2",
    "bincount",
    "equal",
    "is_nonzero",
    "item",
    "masked_select",
    "nonzero",
    "repeat_interleave",
    "unique_consecutive",
    "unique_dim",
)
"""aten ops that read values of the device: their result is a Python number, or its size depends on the values."""


class DeviceTensor(Tensor):
    """Tensor on "cuda:0" that holds a tensor on the CPU."""

    inner: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor) -> DeviceTensor:
        return Tensor._make_wrapper_subclass(  # type: ignore[attr-defined, no-any-return]
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device="cuda:0",
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def __repr__(self) -> str:  # type: ignore[override]
        return f"DeviceTensor({self.inner})"

    def __reduce_ex__(self, protocol: object) -> tuple[Any, ...]:
        return DeviceTensor, (self.inner,)

    def tolist(self) -> Any:
        _wait("tolist")
        return self.inner.tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


class Event:
    """Stand-in for `torch.cuda.Event`: reached after `_device.lag` queries, or when it has been waited for."""

    def __init__(self, **options: bool) -> None:
        self._queries = 0
        self._waited = False

    def record(self, stream: object = None) -> None:
        self._queries, self._waited = 0, False

    def query(self) -> bool:
        self._queries += 1
        return self._waited or self._queries > _device.lag

    def synchronize(self) -> None:
        if not self.query():
            _device.waits["event"] += 1
        self._waited = True


class CountedDevice:
    """State of the device.

    Attributes:
        waits: Host waits by op.
        capturing: Whether a graph is being captured; a host wait is then an error, as on CUDA.
        lag: Queries of an event that find it not reached yet.
    """

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        self.capturing = False
        self.lag = 0

    @contextmanager
    def counting(self) -> Iterator[Counter[str]]:
        """Count the waits of the block alone."""
        outer, self.waits = self.waits, Counter()
        try:
            yield self.waits
        finally:
            self.waits = outer

    def generator(self, seed: int = 0) -> torch.Generator:
        """Return a generator whose device is "cuda"."""
        return _Generator().manual_seed(seed)


_device = CountedDevice()
_tensor = torch.tensor


def _tensor_of(data: Any, *, device: Any = None, **options: Any) -> Tensor:
    """Stand-in for `torch.tensor`, which makes the tensor on the host and copies it."""
    made = _tensor(data, **options)
    return made if device is None or torch.device(device).type != "cuda" else made.to("cuda:0")


class _Generator(torch.Generator):
    device = torch.device("cuda")  # type: ignore[assignment]


def _wait(name: str) -> None:
    _device.waits[name] += 1
    if _device.capturing:
        raise RuntimeError(f"{name} waits for the device while a graph is being captured")


def _on_device(value: object) -> bool:
    return isinstance(value, DeviceTensor)


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    leaves = tree_leaves((args, kwargs))
    from_device = any(map(_on_device, leaves))
    name = func.overloadpacket.__name__
    wanted = kwargs.get("device")
    target = None if wanted is None else torch.device(wanted).type
    is_copy = name in ("_to_copy", "copy_")
    if from_device and name in _READS_VALUES:
        _wait(name)
    if from_device and name in ("index", "index_put", "index_put_"):
        masks = [x for x in tree_leaves(args[1]) if isinstance(x, Tensor) and x.dtype in (torch.bool, torch.uint8)]
        for _ in masks if name == "index" else ():
            _wait("index by a mask")
    if is_copy:
        source = args[-1] if name == "copy_" else args[0]
        sink = _on_device(args[0]) if name == "copy_" else (_on_device(source) if target is None else target == "cuda")
        blocking = not (kwargs.get("non_blocking") or (name == "copy_" and len(args) > 2 and args[2]))
        source = args[1] if name == "copy_" else source
        if _on_device(source) != sink and blocking:
            _wait("copy to the host" if _on_device(source) else "copy from the host")
    elif from_device and func.namespace != "prim":
        mixed = [x for x in leaves if isinstance(x, Tensor) and not _on_device(x) and x.dim() > 0]
        if mixed and not (name == "index" and all(x is not args[0] for x in mixed)):
            raise RuntimeError(f"{func}: expected all tensors to be on cuda:0, but found one on cpu")
    inner_args, inner_kwargs = tree_map(lambda x: x.inner if _on_device(x) else x, (args, kwargs))
    if wanted is not None:
        inner_kwargs["device"] = "cpu"
    inner_kwargs.pop("pin_memory", None)
    out = _pool_importance(*inner_args) if name == "background_pool_importance" else func(*inner_args, **inner_kwargs)
    lands = target == "cuda" if target is not None else from_device
    if not lands:
        return out
    out = tree_map(lambda x: DeviceTensor(x) if isinstance(x, Tensor) and not _on_device(x) else x, out)
    return return_and_correct_aliasing(func, args, kwargs, out)


def _pool_importance(omega: Tensor, stats: Tensor, index: Tensor, epsilon: float) -> Tensor:
    """Return NaN for an index out of range, as the CUDA op, where the CPU op raises."""
    outside = (index < 0) | (index >= len(omega))
    inside = index.masked_fill(outside, 0)
    return torch.ops.fastood.background_pool_importance(omega, stats, inside, epsilon).masked_fill(outside, torch.nan)


class _Factories(TorchDispatchMode):
    """Mode for calls without a tensor of the device, such as `torch.empty(3, device="cuda")`."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


def one_process() -> ExitStack:
    """Return a context with a process group of this process alone, whose collectives do not wait."""

    def all_gather(parts: list[Tensor], own: Tensor, group: object = None) -> None:
        parts[0].copy_(own)

    def all_gather_object(parts: list[object], own: object, group: object = None) -> None:
        parts[0] = own

    stack = ExitStack()
    for name, value in (
        ("is_initialized", lambda: True),
        ("get_rank", lambda group=None: 0),
        ("get_world_size", lambda group=None: 1),
        ("all_reduce", lambda tensor, group=None: None),
        ("all_gather", all_gather),
        ("all_gather_object", all_gather_object),
    ):
        stack.enter_context(mock.patch.object(torch.distributed, name, value))
    return stack


@contextmanager
def counted_device() -> Iterator[CountedDevice]:
    """Turn the device on."""
    _device.__init__()  # type: ignore[misc]
    torch._C._ensureCUDADeviceGuardSet()
    with ExitStack() as stack:
        for name, value in (
            ("is_available", lambda: True),
            ("_lazy_init", lambda: None),
            ("is_current_stream_capturing", lambda: _device.capturing),
            ("current_stream", lambda device=None: None),
            ("current_device", lambda: 0),
            ("Event", Event),
            ("device", lambda device: nullcontext()),
        ):
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(torch, "tensor", _tensor_of))
        # A module's parameters become tensors of the device, instead of having their data replaced.
        overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, overwrites)
        stack.enter_context(_Factories())
        yield _device
