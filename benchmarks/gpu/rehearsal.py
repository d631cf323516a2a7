"""A module on the emulated device, for a rehearsal: `python -m benchmarks.gpu.rehearsal --emulated SO -m MODULE …`.

It adds the functions by which benchmarks measure and profile to the emulated device of the tests. Every time is exactly
one millisecond, so that no number of a rehearsal looks measured.
"""

from __future__ import annotations

import argparse
import runpy
import sys
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

MILLISECONDS = 1.0


def _uncompiled(model: Any = None, **options: Any) -> Any:
    """Return the function as it is; the stand-in for `torch.compile`, which would need a GPU's compiler."""
    return (lambda model: model) if model is None else model


def main() -> None:
    """Run the module."""
    from tests.emulation import kernels, streams
    from tests.emulation.device import emulated_cuda

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--emulated", type=Path, required=True)
    parser.add_argument("-m", dest="module", nargs=argparse.REMAINDER, required=True)
    options = parser.parse_args()
    module, *arguments = options.module
    kernels.load(options.emulated)
    profiler = SimpleNamespace(cudaProfilerStart=lambda: None, cudaProfilerStop=lambda: None)
    with ExitStack() as stack:
        stack.enter_context(emulated_cuda())
        stack.enter_context(mock.patch.object(streams.Event, "elapsed_time", return_value=MILLISECONDS))
        stack.enter_context(mock.patch.object(torch.cuda, "cudart", return_value=profiler))
        stack.enter_context(mock.patch.object(torch, "compile", _uncompiled))
        # DALI asks the driver itself.
        stack.enter_context(mock.patch("fastood.data.loaders.choice.dali_installed", return_value=False))
        stack.enter_context(mock.patch.object(sys, "argv", [module, *arguments]))
        runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()
