"""Initial weights of every network here; needs PyTorch alone."""

import torch
from torch import nn


def initialize(model: nn.Module, generator: torch.Generator | None) -> None:
    """Draw every weight: He for convolutions (He et al. 2015, fan-out), Xavier for linear layers; biases become 0.

    Args:
        model: Changed in place.
        generator: Source of every draw, on the CPU; None takes PyTorch's global one.
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
