"""Options that change the speed of training and not its result: memory layout and compilation."""

import shutil
from typing import Literal

import torch
from torch import nn

from fastood.models import Classifier

CompileMode = Literal["none", "default", "reduce-overhead"]


def require_compiler(mode: CompileMode) -> None:
    """Check that a C++ compiler is there, as compilation would fail only at the first step.

    Raises:
        ValueError: If there is no C++ compiler, which TorchInductor needs on a GPU as well.
    """
    if mode != "none" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise ValueError(f"compile must be none if there is no C++ compiler on the PATH, got {mode}")


def compile_in_place(model: nn.Module, mode: CompileMode) -> None:
    """Compile a network by `torch.compile` at its first step; names of parameters stay.

    Of a `Classifier` only `features` is compiled: nearly all of the work, and shared by `forward` and
    `forward_outputs`. Its head, which methods replace, and the loss, with the kernels of this library, are not.

    Args:
        model: Changed in place.
        mode: "none" changes nothing; "default" fuses; "reduce-overhead" also records CUDA graphs on a GPU.
    """
    if mode == "none":
        return
    if isinstance(model, Classifier):
        # An instance attribute shadows the method, and is not a module, so that the state_dict does not change.
        model.features = torch.compile(model.features, mode=mode)  # type: ignore[method-assign]
    else:
        model.compile(mode=mode)


def memory_format(channels_last: bool) -> torch.memory_format:
    """Return the memory format of weights; channels_last is faster for convolutions, on CPUs and tensor cores."""
    return torch.channels_last if channels_last else torch.contiguous_format
