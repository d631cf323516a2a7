"""The emulated CUDA kernels in place of the kernels of the CPU: tensors of the CPU then run on them."""

from __future__ import annotations

import warnings

import torch

from tests.emulation.kernels import kernel_of, op_names

_library: torch.library.Library | None = None


def install() -> None:
    """Register every emulated kernel under the key of the CPU, for the rest of the process.

    Raises:
        RuntimeError: If an op of `fastood` has no emulated kernel.
    """
    global _library
    if _library is not None:
        return
    _library = torch.library.Library("fastood", "IMPL")
    with warnings.catch_warnings():
        # PyTorch warns that a kernel is replaced, which is the purpose here.
        warnings.simplefilter("ignore", UserWarning)
        for name in op_names():
            kernel = kernel_of(getattr(torch.ops.fastood, name).default)
            _library.impl(name, kernel, "CPU", allow_override=True)
