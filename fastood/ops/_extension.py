"""Loads the compiled part, once, and says what to do when that fails."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TypedDict

_FOLDER = Path(__file__).parents[1]

try:
    import torch  # registers the libraries that the extension is linked against: keep it before _C
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    activate = _FOLDER.parent / ".venv/bin/activate"
    remedy = f". {activate}" if activate.exists() else f"{sys.executable} -m pip install 'torch>=2.11'"
    raise ImportError(f"fastood needs torch, which {sys.executable} has not: {remedy}") from error


class BuildInfo(TypedDict):
    """What `build_info` returns."""

    version: str
    cuda: bool
    cuda_architectures: str
    cuda_compiler: str
    cuda_reason: str
    compiler: str
    target_torch: str
    cpu_capability: str


try:
    from fastood import _C
except ImportError as error:
    if not list(_FOLDER.glob("_C.*.so")) and (_FOLDER.parent / "CMakeLists.txt").exists():
        raise ImportError(
            f"{_FOLDER} is fastood's source, not built in place; it hides an installed fastood while you are in "
            f"{_FOLDER.parent}. Change the folder, or build here: `make build`, `pip install -e .`"
        ) from error
    raise ImportError(
        f"fastood's compiled part could not be loaded under torch {torch.__version__}: {error}. Likely causes: torch "
        "is older than 2.11, or the extension was built for another Python version: `pip install --force-reinstall .`"
    ) from error


def build_info() -> BuildInfo:
    """What this build holds.

    Returns:
        `version` of the package; `cuda`, whether the CUDA kernels are in; `cuda_architectures` and `cuda_compiler` they
        were built for and with (empty without them);
        `cuda_reason`, why they are in or not; `compiler` of the host code; `target_torch`, the oldest torch
        whose stable ABI it runs under; `cpu_capability`, the instruction set chosen on this machine (default, avx2,
        avx512).

    Example:
        >>> import fastood
        >>> fastood.build_info()["target_torch"]
        '2.11'
    """
    return _C.build_info()
