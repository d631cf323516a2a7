"""Autograd for tensors on a device that the driver does not have.

The engine asks the CUDA hooks whether a device has a context, and the hooks of a CUDA build of PyTorch refuse a device
that the driver does not know. PyTorch has no switch for that, so the method is replaced in the table of virtual
methods of the one object that holds the hooks, and put back afterwards.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch

# Before the device is known, so that the engine starts no thread for it: a process with such threads may not fork.
torch.ones((), requires_grad=True).backward()
torch._C._ensureCUDADeviceGuardSet()

_SLOTS = 96
_DESTRUCTORS = 2
_BEFORE_HAS_PRIMARY_CONTEXT = _DESTRUCTORS + 2  # isBuilt, isAvailable: ATen/detail/AcceleratorHooksInterface.h
_WORD = ctypes.sizeof(ctypes.c_void_p)

_has_primary_context = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_byte)(lambda hooks, index: True)


@contextmanager
def _context_is_there() -> Iterator[None]:
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib/libtorch_cpu.so"))
    get_hooks = library["_ZN2at6detail12getCUDAHooksEv"]
    get_hooks.restype = ctypes.c_void_p
    table_of_object = ctypes.c_void_p.from_address(get_hooks())
    before = table_of_object.value
    assert before is not None
    # Two words in front belong to the table: the offset to the top and the type.
    words = ctypes.string_at(before - 2 * _WORD, (_SLOTS + 2) * _WORD)
    table = (ctypes.c_void_p * (_SLOTS + 2)).from_buffer_copy(words)
    table[2 + _BEFORE_HAS_PRIMARY_CONTEXT] = ctypes.cast(_has_primary_context, ctypes.c_void_p).value
    table_of_object.value = ctypes.addressof(table) + 2 * _WORD
    try:
        yield
    finally:
        table_of_object.value = before


def _in_this_thread(run_backward: Any) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        with torch.autograd.set_multithreading_enabled(False):
            return run_backward(*args, **kwargs)

    return run


@contextmanager
def autograd_knows_the_device() -> Iterator[None]:
    """Make `backward` work for tensors of the emulated device, in the thread that calls it."""
    run = _in_this_thread(torch.autograd.graph._engine_run_backward)
    with (
        _context_is_there(),
        mock.patch.object(torch.autograd, "_engine_run_backward", run),
        mock.patch.object(torch.autograd.graph, "_engine_run_backward", run),
    ):
        yield
