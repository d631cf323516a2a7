"""fastood: out-of-distribution detection for PyTorch, with C++ and CUDA kernels.

The drop-in packages need no trainer: `fastood.losses`, `fastood.samplers`, `fastood.heads`, `fastood.metrics`,
`fastood.detectors` and `fastood.scores`, on top of the ops in `fastood.ops`. `python -m fastood.train` trains and
evaluates complete methods, and `python -m fastood.evaluate` evaluates trained networks.
"""

from __future__ import annotations

import importlib as _importlib
import sys as _sys
from importlib import metadata as _metadata
from types import ModuleType as _ModuleType

from fastood.common import extras as _extras
from fastood.common import openmp as _openmp
from fastood.common import startup as _startup

# Before the import of torch, which takes seconds and loads OpenMP.
_startup.report_interrupts()
_openmp.wait_quietly()
# Before the import of torch, so that the error for missing packages comes at once.
_extras.require_command()
try:
    from fastood.ops._extension import build_info
except ImportError as _error:
    if _extras.running_command() in _extras.COMMANDS:
        _sys.exit(f"error: {_error}")
    raise

try:
    __version__ = _metadata.version("fastood")
except _metadata.PackageNotFoundError:  # a source tree that was built in place
    __version__ = build_info()["version"]

__all__ = [
    "__version__",
    "build_info",
    "data",
    "detectors",
    "heads",
    "losses",
    "metrics",
    "models",
    "ops",
    "samplers",
    "scores",
]


def __getattr__(name: str) -> _ModuleType:
    """Import a subpackage on first use, which keeps `import fastood` fast (PEP 562)."""
    if name in __all__:
        return _importlib.import_module(f"fastood.{name}")
    raise AttributeError(f"module 'fastood' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__doc__", "__file__", "__name__", "__path__"]
