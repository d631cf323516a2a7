"""Loads the compiled part, once, and says what to do when that fails."""

from __future__ import annotations

from typing import TypedDict

import torch  # registers the libraries that the extension is linked against: keep it before _C


class BuildInfo(TypedDict):
    """What `build_info` returns."""

    version: str
    cuda: bool
    cuda_architectures: str
    cuda_compiler: str
    compiler: str
    target_torch: str
    cpu_capability: str


try:
    from fastood import _C
except ImportError as error:
    raise ImportError(
        f"fastood's compiled part could not be loaded under torch {torch.__version__}: {error}. Likely causes: "
        "(1) it was never built: run `pip install .`, or `python setup.py build_ext --inplace` in the source tree; "
        "(2) torch is older than 2.11; (3) the extension was built for another Python version."
    ) from error


def build_info() -> BuildInfo:
    """What this build holds.

    Returns:
        `version` of the package; `cuda`, whether the CUDA kernels are in; `cuda_architectures` and `cuda_compiler` they
        were built for and with (empty without them); `compiler` of the host code; `target_torch`, the oldest torch
        whose stable ABI it runs under; `cpu_capability`, the instruction set chosen on this machine (default, avx2,
        avx512).

    Example:
        >>> import fastood
        >>> fastood.build_info()["target_torch"]
        '2.11'
    """
    return _C.build_info()
