"""Options that change how fast a network trains and not what it learns: memory layout and compilation."""

import shutil
from typing import Literal

import torch
from torch import nn

from fastood.models import Classifier

CompileMode = Literal["none", "default", "reduce-overhead"]


def require_compiler(mode: CompileMode) -> None:
    """Refuse a compilation that could only fail at the first step.

    Raises:
        ValueError: If there is no C++ compiler, which TorchInductor needs on a GPU as well.
    """
    if mode != "none" and not any(map(shutil.which, ("g++", "clang++", "c++"))):
        raise ValueError(f"compile must be none where there is no C++ compiler on the PATH, got {mode}")


def compile_in_place(model: nn.Module, mode: CompileMode) -> None:
    """Let `torch.compile` make the network's kernels at its first step; names of parameters stay.

    Of a `Classifier` it is the features: all of the work, shared by whatever is asked of the network. Its head, which
    methods replace, and the loss stay as they are, our own kernels among them.

    Args:
        model: Changed in place.
        mode: "none" changes nothing; "default" fuses; "reduce-overhead" also records CUDA graphs on a GPU.
    """
    if mode == "none":
        return
    if isinstance(model, Classifier):
        # An instance attribute is found before the method, and is no module: the state_dict does not see it.
        model.features = torch.compile(model.features, mode=mode)  # type: ignore[method-assign]
    else:
        model.compile(mode=mode)


def memory_format(channels_last: bool) -> torch.memory_format:
    """Of a network's weights; channels_last convolutions take half the time on a CPU, and use a GPU's tensor cores."""
    return torch.channels_last if channels_last else torch.contiguous_format
