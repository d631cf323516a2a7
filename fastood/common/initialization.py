"""Initial weights of the networks; needs PyTorch alone."""

import torch
from torch import nn

__all__ = ["initialize"]


def initialize(model: nn.Module, generator: torch.Generator | None) -> None:
    """Draw all weights: He for convolutions (He et al. 2015, fan-out), Xavier for linear layers; set biases to 0.

    Args:
        model: Changed in place.
        generator: Source of the draws, on the CPU; None for PyTorch's global generator.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
