"""Import of the compiled extension, with errors that state the remedy."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TypedDict

from fastood.ops._cuda_status import KernelStatus, kernel_status, read_status

__all__ = ["BuildInfo", "build_info"]

_FOLDER = Path(__file__).parents[1]

try:
    import torch  # loads the libraries that the extension is linked against: keep it before _C
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    activate = _FOLDER.parent / ".venv/bin/activate"
    remedy = f". {activate}" if activate.exists() else f"{sys.executable} -m pip install 'torch>=2.11'"
    raise ImportError(f"fastood needs torch, which is not installed for {sys.executable}: {remedy}") from error


class CompiledInfo(TypedDict):
    """Return type of the compiled part's `build_info`."""

    version: str
    cuda: bool
    cuda_architectures: str
    cuda_compiler: str
    cuda_driver: str
    cuda_reason: str
    compiler: str
    target_torch: str
    cpu_capability: str


class BuildInfo(CompiledInfo):
    """Return type of `build_info`."""

    kernels: dict[str, KernelStatus]


try:
    from fastood import _C
except ImportError as error:
    if not list(_FOLDER.glob("_C.*.so")) and (_FOLDER.parent / "CMakeLists.txt").exists():
        raise ImportError(
            f"{_FOLDER} is fastood's source, not built in place; it hides an installed fastood while you are in "
            f"{_FOLDER.parent}. Change to another folder, or build in place: `make build`, `pip install -e .`"
        ) from error
    raise ImportError(
        f"fastood's compiled part could not be loaded under torch {torch.__version__}: {error}. Likely causes: torch "
        "is older than 2.11, or the extension was built for another Python version: `pip install --force-reinstall .`"
    ) from error


def build_info() -> BuildInfo:
    """Return a description of the compiled extension.

    Returns:
        - `version`: Version of the package.
        - `cuda`: Whether the build has CUDA kernels.
        - `cuda_architectures`, `cuda_compiler`: Targets and compiler of the kernels; empty without them.
        - `cuda_driver`: Oldest NVIDIA driver that runs the kernels, such as "580"; empty without them.
        - `cuda_reason`: Reason why the kernels are included or not.
        - `compiler`: Compiler of the host code.
        - `target_torch`: Oldest version of torch with a compatible stable ABI.
        - `cpu_capability`: Instruction set used on this machine: "baseline", "avx2" or "avx512".
        - `kernels`: Evidence for each CUDA kernel, by name: its `file`, and in words the compiler of this build
          (`compiled`), the variants of the emulation that ran it (`emulated`) and the GPUs that ran it (`proven`). An
          empty string means that there is none.

    Example:
        >>> import fastood
        >>> fastood.build_info()["target_torch"]
        '2.11'
    """
    info = _C.build_info()
    kernels = kernel_status(read_status())
    # This build, instead of the build that the evidence is from.
    compiled = f"{info['cuda_compiler']}: {info['cuda_architectures']}" if info["cuda"] else ""
    return BuildInfo(**info, kernels={name: {**kernel, "compiled": compiled} for name, kernel in kernels.items()})
