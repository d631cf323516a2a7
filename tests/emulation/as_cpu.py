"""The emulated CUDA kernels in place of the kernels of the CPU: tensors of the CPU then run on them."""

from __future__ import annotations

import warnings

import torch

from tests.emulation.kernels import kernel_of

_library: torch.library.Library | None = None


def install() -> None:
    """Register every emulated kernel under the key of the CPU, for the rest of the process.

    Raises:
        RuntimeError: If an op of `fastood` has no emulated kernel.
    """
    global _library
    import fastood  # noqa: F401

    if _library is not None:
        return
    _library = torch.library.Library("fastood", "IMPL")
    with warnings.catch_warnings():
        # That a kernel is replaced is meant.
        warnings.simplefilter("ignore", UserWarning)
        for schema in torch._C._jit_get_all_schemas():
            if schema.name.startswith("fastood::"):
                name = schema.name.removeprefix("fastood::")
                kernel = kernel_of(getattr(torch.ops.fastood, name).default)
                _library.impl(name, kernel, "CPU", allow_override=True)
