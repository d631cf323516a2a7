"""Functions of PyTorch that know the emulated device while it is on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.utils import _foreach_utils
from torch.utils._pytree import tree_map_only

from tests.emulation import generators, graphs, host_memory, rules, streams
from tests.emulation.tensor import DeviceTensor
from tests.emulation.waits import EXPLICIT, host_waits

NAME = "emulated GPU"
MEMORY = 16 << 30
CAPABILITY = (9, 0)
SYNC_DEBUG_MODE = SimpleNamespace(value=0)
_DEVICE = torch.device("cuda:0")
_MODES = {"default": 0, "warn": 1, "error": 2}


def synchronize(device: Any = None) -> None:
    """Let the host wait for the device; the stand-in for `torch.cuda.synchronize`."""
    host_waits(EXPLICIT, "torch.cuda.synchronize")
    streams.host_waited_for_all()


def _set_sync_debug_mode(mode: int | str) -> None:
    SYNC_DEBUG_MODE.value = _MODES[mode] if isinstance(mode, str) else mode


def _rng_state(device: Any = "cuda") -> Tensor:
    rules.check_index(device)
    return generators.default.get_state()


def _set_rng_state(state: Tensor, device: Any = "cuda") -> None:
    rules.check_index(device)
    generators.default.set_state(state)


def _manual_seed(seed: int) -> None:
    generators.default.manual_seed(int(seed))


def _properties(device: Any = None) -> SimpleNamespace:
    rules.check_index(device)
    major, minor = CAPABILITY
    return SimpleNamespace(
        name=NAME, major=major, minor=minor, total_memory=MEMORY, multi_processor_count=132, warp_size=32
    )


def _returns(value: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: value


class _Device:
    """The stand-in for `torch.cuda.device`, a context in which a device is the current one."""

    def __init__(self, device: Any) -> None:
        rules.check_index(device)
        self.idx = 0

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


_CUDA: dict[str, Any] = {
    "is_available": _returns(True),
    "is_initialized": _returns(True),
    "_is_in_bad_fork": _returns(False),
    "init": _returns(None),
    "_lazy_init": _returns(None),
    "_lazy_call": lambda callable, **kwargs: callable(),
    "device_count": _returns(1),
    "current_device": _returns(0),
    "set_device": rules.check_index,
    "device": _Device,
    "get_device_name": lambda device=None: _properties(device).name,
    "get_device_capability": lambda device=None: CAPABILITY,
    "get_device_properties": _properties,
    "get_arch_list": _returns(["sm_90"]),
    "is_bf16_supported": _returns(True),
    "mem_get_info": lambda device=None: (MEMORY, MEMORY),
    "memory_allocated": _returns(0),
    "max_memory_allocated": _returns(0),
    "memory_reserved": _returns(0),
    "max_memory_reserved": _returns(0),
    "memory_stats": lambda device=None: {},
    "reset_peak_memory_stats": _returns(None),
    "empty_cache": _returns(None),
    "ipc_collect": _returns(None),
    "synchronize": synchronize,
    "current_stream": lambda device=None: streams.current(),
    "default_stream": lambda device=None: streams.default,
    "set_stream": lambda stream: setattr(streams._local, "stream", stream),
    "stream": streams.as_current,
    "Stream": streams.Stream,
    "Event": streams.Event,
    "_sleep": _returns(None),
    "CUDAGraph": graphs.CUDAGraph,
    "graph": graphs.graph,
    "is_current_stream_capturing": graphs.is_current_stream_capturing,
    "get_rng_state": _rng_state,
    "get_rng_state_all": lambda: [_rng_state()],
    "set_rng_state": _set_rng_state,
    "set_rng_state_all": lambda states: _set_rng_state(states[0]),
    "manual_seed": _manual_seed,
    "manual_seed_all": _manual_seed,
    "initial_seed": lambda: generators.default.initial_seed(),
    "seed": lambda: generators.default.seed(),
    "seed_all": lambda: generators.default.seed(),
    "default_generators": (generators.default,),
    "set_sync_debug_mode": _set_sync_debug_mode,
    "get_sync_debug_mode": lambda: SYNC_DEBUG_MODE.value,
}

_ACCELERATOR: dict[str, Any] = {
    "is_available": _returns(True),
    "device_count": _returns(1),
    "current_accelerator": _returns(torch.device("cuda")),
    "current_device_index": _returns(0),
    "set_device_index": rules.check_index,
    "current_stream": lambda device=None: streams.current(),
    "synchronize": lambda device=None: synchronize(device),
    "device_index": lambda device: nullcontext(),
    "empty_cache": _returns(None),
}


def _from_data(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return `torch.tensor` or `torch.as_tensor`, which make a tensor of the CPU first and then copy it."""

    def made(data: Any, *args: Any, device: Any = None, pin_memory: bool = False, **kwargs: Any) -> Tensor:
        requires_grad = kwargs.pop("requires_grad", False)
        if isinstance(data, DeviceTensor) and device is None:
            device = data.device
        if isinstance(data, DeviceTensor):
            copied = data.detach() if make is torch.as_tensor else data.detach().clone()
            result = copied.to(device, *args, **kwargs)
        elif device is None or torch.device(device).type != "cuda":
            result = make(data, *args, device=device, **kwargs)
        else:
            rules.check_index(device)
            result = make(data, *args, **kwargs).to(device)
        result = host_memory.mark_pinned(result) if pin_memory else result
        return result.requires_grad_() if requires_grad else result

    return made


def _new_tensor(tensor: Tensor, data: Any, *, device: Any = None, dtype: Any = None, **kwargs: Any) -> Tensor:
    device = tensor.device if device is None else device
    made: Tensor = torch.tensor(data, dtype=tensor.dtype if dtype is None else dtype, device=device, **kwargs)
    return made


def _load(load: Callable[..., Any]) -> Callable[..., Any]:
    """Return `torch.load`, which moves storages to the map location; the device has none."""

    def loaded(file: Any, map_location: Any = None, **kwargs: Any) -> Any:
        if not isinstance(map_location, str | torch.device) or torch.device(map_location).type != "cuda":
            return load(file, map_location=map_location, **kwargs)
        return tree_map_only(Tensor, lambda x: _moved(x, map_location), load(file, map_location="cpu", **kwargs))

    return loaded


def _moved(tensor: Tensor, device: Any) -> Tensor:
    moved = tensor.detach().to(device)
    is_parameter = isinstance(tensor, torch.nn.Parameter)
    return (
        torch.nn.Parameter(moved, tensor.requires_grad) if is_parameter else moved.requires_grad_(tensor.requires_grad)
    )


@contextmanager
def pytorch_knows_the_device() -> Iterator[None]:
    """Replace the functions of PyTorch that ask the driver."""
    with ExitStack() as stack:

        def replace(owner: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(owner, name, value))

        for name, value in _CUDA.items():
            replace(torch.cuda, name, value)
        for name, value in _ACCELERATOR.items():
            replace(torch.accelerator, name, value)
        tensor, as_tensor = torch.tensor, torch.as_tensor
        replace(torch, "tensor", _from_data(tensor))
        replace(torch, "as_tensor", _from_data(as_tensor))
        replace(torch, "load", _load(torch.load))
        replace(torch, "Generator", generators.Generator)
        replace(Tensor, "pin_memory", host_memory.pin_memory)
        replace(Tensor, "is_pinned", host_memory.is_pinned)
        replace(Tensor, "new_tensor", _new_tensor)
        # cuDNN's batch norm is an op of its own, which no CPU has.
        stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        _foreach_utils._foreach_supported_types.append(DeviceTensor)
        stack.callback(_foreach_utils._foreach_supported_types.remove, DeviceTensor)
        stack.callback(_set_sync_debug_mode, 0)
        yield
