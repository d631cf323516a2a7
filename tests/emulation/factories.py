"""Ops without operands, such as `torch.empty(device="cuda")`, as kernels of PyTorch's key for CUDA."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor

from tests.emulation import graphs, rules, streams
from tests.emulation.generators import call_with_default, device_generator
from tests.emulation.tensor import DeviceTensor

_UNINITIALISED = {"aten::empty", "aten::empty_strided", "aten::empty_permuted"}


@cache
def _factory_ops() -> list[Any]:
    """Return the ops that take a device and no tensor."""
    found = []
    for schema in torch._C._jit_get_all_schemas():
        full = schema.name + (f".{schema.overload_name}" if schema.overload_name else "")
        names = [argument.name for argument in schema.arguments]
        if not schema.name.startswith("aten::") or "device" not in names:
            continue
        if any("Tensor" in str(argument.type) for argument in schema.arguments):
            continue
        # Some schemas belong to TorchScript alone.
        if not torch._C._dispatch_has_kernel(full):
            continue
        op = getattr(getattr(torch.ops.aten, schema.name.removeprefix("aten::")), schema.overload_name or "default")
        if not op.has_kernel_for_dispatch_key(torch._C.DispatchKey.BackendSelect):
            continue
        if not op.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
            found.append(op)
    return found


def _kernel(op: Any) -> Callable[..., Tensor]:
    name = op._schema.name
    is_random = torch.Tag.nondeterministic_seeded in op.tags

    def make(*args: Any, **kwargs: Any) -> Tensor:
        rules.check_index(kwargs.get("device"))
        kwargs = {**kwargs, "device": torch.device("cpu"), "pin_memory": False}
        if is_random and "generator" in kwargs:
            kwargs["generator"] = device_generator(kwargs["generator"], name)

        def call() -> Tensor:
            made: Tensor = (
                call_with_default(op, args, kwargs)
                if is_random and kwargs.get("generator") is None
                else op(*args, **kwargs)
            )
            if name in _UNINITIALISED:
                streams.poison(made)
            return made

        inner = call()
        made = DeviceTensor(inner)
        if (capture := graphs.capturing()) is not None:
            capture.add(call, inner, (), (), [made.memory])
        else:
            streams.launch(name, (), [made.memory])
        return made

    return make


@contextmanager
def factories_on_the_device() -> Iterator[None]:
    """Let ops without operands make tensors of the emulated device."""
    library = torch.library.Library("aten", "IMPL")
    try:
        for op in _factory_ops():
            library.impl(op._schema.name.removeprefix("aten::") + _overload(op), _kernel(op), "CUDA")
        yield
    finally:
        library._destroy()


def _overload(op: Any) -> str:
    return "" if op._overloadname == "default" else f".{op._overloadname}"
