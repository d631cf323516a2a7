"""A network of two linear layers for tests of detectors, and rows for it."""

from collections import OrderedDict

import torch
from torch import Tensor, nn


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(one=nn.Linear(8, 16), relu=nn.ReLU(), two=nn.Linear(16, 4))).eval()


def rows(n: int = 60) -> Tensor:
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(1))


def batches() -> list[tuple[Tensor, Tensor]]:
    return [(rows(), torch.arange(60) % 4)]
