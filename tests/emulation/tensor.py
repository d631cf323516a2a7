"""Tensors of the emulated device: a device cuda:0 for the program, a tensor of the CPU inside."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

from tests.emulation import graphs, rules, streams
from tests.emulation.generators import call_with_default, device_generator
from tests.emulation.host_memory import is_pinned, mark_pinned
from tests.emulation.kernels import kernel_of, loaded
from tests.emulation.streams import Memory
from tests.emulation.waits import host_waits, stop_capture


class DeviceTensor(Tensor):
    """A tensor on cuda:0 whose values are those of `inner`, a tensor of the CPU."""

    inner: Tensor
    memory: Memory
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner: Tensor, memory: Memory | None = None) -> DeviceTensor:
        made: DeviceTensor = torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device="cuda:0",
        )
        made.inner = inner
        made.memory = Memory(None if graphs.capturing() else streams.current()) if memory is None else memory
        return made

    def __init__(self, inner: Tensor, memory: Memory | None = None) -> None: ...

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return execute(func, args, kwargs or {})

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], meta: None, size: Any, stride: Any) -> DeviceTensor:
        return DeviceTensor(inner["inner"])

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"{self.inner!r}"[:-1] + ", device='cuda:0')"

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            if not self.is_leaf:
                raise RuntimeError(
                    "Only Tensors created explicitly by the user (graph leaves) support the deepcopy protocol"
                )
            with torch.no_grad():
                copied = self.clone().requires_grad_(self.requires_grad)
            if getattr(self, "_is_param", False):
                copied._is_param = True
            copied.grad = None if self.grad is None else self.grad.__deepcopy__(memo)
            memo[id(self)] = copied
        return memo[id(self)]

    def __reduce_ex__(self, protocol: Any) -> Any:
        parameter = getattr(self, "_is_param", False)
        data = (self.detach().cpu(), self.dtype, "cuda:0", self.requires_grad and not parameter)
        if not parameter:
            return torch._utils._rebuild_device_tensor_from_cpu_tensor, data
        rebuilt = torch._utils._rebuild_parameter
        return rebuilt, (_Plain(data), self.requires_grad, {})

    @property
    def data(self) -> Tensor:
        # Not `detach`, which shares the version counter.
        return torch._C.TensorBase.data.__get__(self)

    @data.setter
    def data(self, value: Tensor) -> None:
        if not isinstance(value, DeviceTensor):
            raise RuntimeError("Attempted to call `variable.set_data(tensor)`, but the tensors are on other devices")
        torch._C.TensorBase.data.__set__(self, value)
        self.inner, self.memory = value.inner, value.memory

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def tolist(self) -> Any:
        return self.detach().cpu().tolist()

    def numpy(self, *, force: bool = False) -> Any:
        if force:
            return self.detach().cpu().numpy()
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory "
            "first."
        )

    def __array__(self, dtype: Any = None, **kwargs: Any) -> Any:
        return self.numpy()

    def __dlpack__(self, **kwargs: Any) -> Any:
        raise BufferError("the emulated device has no memory that another library could read")

    def record_stream(self, stream: Any) -> None:
        self.memory.kept_for.add(stream.stream_id)


class _Plain:
    """A tensor within a parameter, in the form in which `torch.save` stores it."""

    def __init__(self, data: Any) -> None:
        self._data = data

    def __reduce_ex__(self, protocol: Any) -> Any:
        return torch._utils._rebuild_device_tensor_from_cpu_tensor, self._data


class _Traits(NamedTuple):
    """Properties of an op, from its schema and tags.

    Attributes:
        names: Names of the arguments.
        written: Positions of the arguments that the op writes.
        aliases: Whether a result shares memory with an argument.
        random: Whether the op draws random numbers.
        uninitialised: Whether the op returns memory that it has not written.
    """

    names: tuple[str, ...]
    written: frozenset[int]
    aliases: bool
    random: bool
    uninitialised: bool


_READS_NOTHING = {
    f"aten::{name}"
    for name in ("empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "randint_like")
} | {f"aten::new_{name}" for name in ("empty", "empty_strided", "zeros", "ones", "full")}
_UNINITIALISED = {"aten::empty_like", "aten::new_empty", "aten::new_empty_strided", "aten::empty"}


@cache
def _traits(func: Any) -> _Traits:
    schema = func._schema
    written = [k for k, a in enumerate(schema.arguments) if a.alias_info is not None and a.alias_info.is_write]
    return _Traits(
        names=tuple(a.name for a in schema.arguments),
        written=frozenset(written),
        aliases=any(r.alias_info is not None for r in schema.returns) or func._schema.name == "aten::_reshape_alias",
        random=torch.Tag.nondeterministic_seeded in func.tags,
        uninitialised=schema.name in _UNINITIALISED,
    )


def _is_abstract(tensor: Tensor) -> bool:
    return type(tensor) is not Tensor


def _inner(value: Any) -> Any:
    return value.inner if isinstance(value, DeviceTensor) else value


def _inner_of_tracing(value: Any) -> Any:
    """Return the tensor of the CPU inside; a tracer makes scalars that are abstract tensors of the device."""
    if isinstance(value, Tensor) and not isinstance(value, DeviceTensor) and value.is_cuda:
        return value.to("cpu")
    return _inner(value)


def _same_memory(out: Tensor, inputs: list[DeviceTensor]) -> Memory | None:
    storage = out.untyped_storage()._cdata
    return next((x.memory for x in inputs if x.inner.untyped_storage()._cdata == storage), None)


def execute(func: Any, args: Any, kwargs: Any) -> Any:
    """Run an op with an operand on the device: check it as a GPU would, and compute it on the CPU."""
    leaves = tree_leaves((args, kwargs))
    on_device = [x for x in leaves if isinstance(x, DeviceTensor)]
    target = kwargs.get("device")
    stays = target is None or torch.device(target).type == "cuda"
    plain_args, plain_kwargs = tree_map(_inner, (args, kwargs))
    if target is not None:
        rules.check_index(target)
        plain_kwargs["device"] = torch.device("cpu")
    if any(_is_abstract(x.inner) for x in on_device):
        kernel = kernel_of(func) if func.namespace == "fastood" else func
        traced_args, traced_kwargs = tree_map(_inner_of_tracing, (args, plain_kwargs))
        return _finish(func, args, kwargs, kernel(*traced_args, **traced_kwargs), stays, on_device)

    name, traits = func._schema.name, _traits(func)
    rules.refuse(func, args, [x for x in leaves if isinstance(x, Tensor) and not isinstance(x, DeviceTensor)])
    if traits.random:
        generator = device_generator(kwargs.get("generator"), name)
        if "generator" in kwargs:
            plain_kwargs["generator"] = generator
    written = _written(traits, args, kwargs)
    reads = [] if traits.aliases or name in _READS_NOTHING else [x.memory for x in on_device]
    writes = [x.memory for x in written]
    is_late = not stays and bool(kwargs.get("non_blocking"))
    capture = graphs.capturing()
    if capture is None:
        streams.launch(name, reads, writes)
    elif is_late:
        stop_capture("a copy to new pinned memory: copy to pinned memory from before the capture")
    if (cause := rules.wait_of(func, args, kwargs)) is not None:
        host_waits(cause, name)
    if capture is not None:
        capture.keep([x.inner for x in written])
    call = _call(func, args, plain_args, plain_kwargs, traits.random)
    out = _run(func, call, traits)
    if capture is not None:
        capture.add(call, out, plain_args, reads, writes)
    if is_late:
        value, out = out, mark_pinned(torch.empty_like(out))
        streams.copy_late(out, value)
    return _finish(func, args, kwargs, out, stays, on_device)


def _written(traits: _Traits, args: Any, kwargs: Any) -> list[DeviceTensor]:
    """Return the tensors of the device that an op writes."""
    values = [value for k, value in enumerate(args) if k in traits.written]
    values += [v for name, v in kwargs.items() if name in traits.names and traits.names.index(name) in traits.written]
    return [x for x in tree_leaves(values) if isinstance(x, DeviceTensor)]


def _call(func: Any, args: Any, plain_args: Any, plain_kwargs: Any, is_random: bool) -> Callable[[], Any]:
    """Return a function that runs the op on tensors of the CPU, for now and for every replay of a graph."""
    kernel = kernel_of(func) if func.namespace == "fastood" else func

    def call() -> Any:
        if is_random and plain_kwargs.get("generator") is None:
            return call_with_default(kernel, plain_args, plain_kwargs)
        return kernel(*plain_args, **plain_kwargs)

    def copy() -> Any:
        target, source = args[0], args[1]
        if not isinstance(target, DeviceTensor) and is_pinned(target):
            streams.copy_late(target, plain_args[1])
            return target
        if not isinstance(source, DeviceTensor):
            if is_pinned(source):
                streams.check_late(source)
            elif graphs.capturing() is not None:
                stop_capture("a copy from pageable memory: Tensor.pin_memory")
        return call()

    is_copy = func is torch.ops.aten.copy_.default
    non_blocking = is_copy and bool(args[2] if len(args) > 2 else plain_kwargs.get("non_blocking", False))
    return copy if non_blocking else call


def _run(func: Any, call: Callable[[], Any], traits: _Traits) -> Any:
    """Run an op, and count the waits inside of its kernel."""
    kernels = loaded() if func.namespace == "fastood" else None
    before = 0 if kernels is None else kernels.num_host_waits()
    out = call()
    if kernels is not None:
        for _ in range(kernels.num_host_waits() - before):
            host_waits("wait inside of the op", func._schema.name)
    if traits.uninitialised:
        streams.poison(out)
    return out


def _finish(func: Any, args: Any, kwargs: Any, out: Any, stays: bool, inputs: list[DeviceTensor]) -> Any:
    """Return the results of an op on the CPU as tensors of the device, with the aliases that the schema states."""
    if not stays or out is None:
        return out
    name = func._schema.name
    if name == "aten::copy_" and not isinstance(args[0], DeviceTensor):
        return args[0]
    aliases = _traits(func).aliases

    def wrap(value: Any) -> Any:
        return (
            DeviceTensor(value, _same_memory(value, inputs) if aliases else None)
            if isinstance(value, Tensor)
            else value
        )

    wrapped = tree_map(wrap, out)
    if not aliases:
        return wrapped
    result = return_and_correct_aliasing(func, args, kwargs, wrapped)
    for tensor in tree_leaves(result):
        if not isinstance(tensor, DeviceTensor) or _is_abstract(tensor.inner):
            continue
        if tensor.shape != tensor.inner.shape:
            raise NotImplementedError(f"{name} changes the shape of a tensor of the emulated device in place")
    return result
