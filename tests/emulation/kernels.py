"""The shared object of `csrc/emulation`: every CUDA op of the library, compiled for the host."""

import ctypes
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

BUILD = "cmake -S csrc/emulation -B build/emulated/plain && cmake --build build/emulated/plain"
DEFAULT = Path(__file__).parents[2] / "build/emulated/plain/fastood_emulated.so"


def op_names() -> list[str]:
    """Return the names of the ops of `fastood`."""
    import fastood  # noqa: F401

    schemas = torch._C._jit_get_all_schemas()
    return [s.name.removeprefix("fastood::") for s in schemas if s.name.startswith("fastood::")]


def _shapes_of(name: str) -> Callable[..., Any]:
    """Return the shape function of an op of `fastood`, for tracers that see the emulated kernel."""
    return lambda *args, **kwargs: getattr(torch.ops.fastood, name).default(*args, **kwargs)


class EmulatedKernels:
    """The loaded shared object.

    Attributes:
        path: Path of the shared object.
    """

    def __init__(self, path: Path) -> None:
        if not path.exists():
            raise FileNotFoundError(f"there is no emulated build at {path}: {BUILD}")
        self.path = path
        torch.ops.load_library(str(path))
        self._library = ctypes.CDLL(str(path))
        self._abstract = torch.library.Library("fastood_emulated", "FRAGMENT")
        for name in op_names():
            torch.library.register_fake(f"fastood_emulated::{name}", _shapes_of(name), lib=self._abstract)

    def _function(self, name: str, *argtypes: Any, result: Any = None) -> Callable[..., Any] | None:
        function = getattr(self._library, name, None)
        if function is not None:
            function.argtypes, function.restype = argtypes, result
        return function

    def set_seed(self, seed: int) -> None:
        """Set the order of threads and blocks: 0 is in order, every other number another shuffled order."""
        if (function := self._function("emu_set_seed", ctypes.c_long)) is not None:
            function(seed)

    def set_max_blocks(self, blocks: int) -> None:
        """Cap every grid, so that grid-stride loops take a second turn; 0 is no cap."""
        function = self._function("emu_set_max_blocks", ctypes.c_long)
        if function is None:
            raise RuntimeError(f"{self.path} cannot cap grids: it has no emu_set_max_blocks. Build it again: {BUILD}")
        function(blocks)

    def num_launches(self) -> int:
        """Return the number of kernels launched since the shared object was loaded."""
        function = self._function("emu_num_launches", result=ctypes.c_long)
        return 0 if function is None else int(function())

    def num_host_waits(self) -> int:
        """Return how often an op has waited for the device since the shared object was loaded."""
        function = self._function("emu_num_host_waits", result=ctypes.c_long)
        return 0 if function is None else int(function())


_loaded: EmulatedKernels | None = None


def load(path: Path) -> EmulatedKernels:
    """Load the shared object; a process can hold one.

    Raises:
        FileNotFoundError: If there is no file at `path`.
        RuntimeError: If another one is loaded already.
    """
    global _loaded
    path = path.resolve()
    if _loaded is None:
        _loaded = EmulatedKernels(path)
    if _loaded.path != path:
        raise RuntimeError(f"this process has loaded {_loaded.path}, and cannot load {path} too: start another process")
    return _loaded


def loaded() -> EmulatedKernels | None:
    """Return the loaded shared object, or None."""
    return _loaded


def kernel_of(func: torch._ops.OpOverload) -> torch._ops.OpOverload:
    """Return the emulated CUDA kernel of an op of `fastood`, or the op itself where no shared object is loaded."""
    if _loaded is None:
        return func
    emulated: torch._ops.OpOverload = getattr(torch.ops.fastood_emulated, func._schema.name.split("::")[1]).default
    return emulated
