"""fastood: train classifiers that know what they do not know.

The drop-in layer needs no trainer: `fastood.losses`, `fastood.samplers`, `fastood.metrics`, and the typed ops under
them in `fastood.ops`. `python -m fastood.train` runs a whole method; `python -m fastood.evaluate` judges what it left.
"""

from __future__ import annotations

import importlib as _importlib
import sys as _sys
from importlib import metadata as _metadata
from types import ModuleType as _ModuleType

from fastood.common import extras as _extras
from fastood.common import openmp as _openmp
from fastood.common import startup as _startup

# Before torch, which takes seconds and loads OpenMP.
_startup.report_interrupts()
_openmp.wait_quietly()
# First, for it takes no second: torch takes several.
_extras.require_command()
try:
    from fastood.ops._extension import build_info
except ImportError as _error:
    if _extras.running_command() in _extras.COMMANDS:
        _sys.exit(f"error: {_error}")
    raise

try:
    __version__ = _metadata.version("fastood")
except _metadata.PackageNotFoundError:  # imported from a source tree that was built in place
    __version__ = build_info()["version"]

__all__ = [
    "__version__",
    "build_info",
    "detectors",
    "heads",
    "losses",
    "metrics",
    "ops",
    "samplers",
    "scores",
]


def __getattr__(name: str) -> _ModuleType:
    """Import a subpackage when it is first asked for, so that `import fastood` takes no time for it."""
    if name in __all__:
        return _importlib.import_module(f"fastood.{name}")
    raise AttributeError(f"module 'fastood' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__doc__", "__file__", "__name__", "__path__"]
