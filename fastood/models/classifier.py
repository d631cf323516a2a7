"""The one shape every network here has: features, then a linear head."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn


class Classifier(nn.Module, ABC):
    """A network split into `features` and `head`, so that a method can replace either.

    Args:
        feature_dim: Width d of the penultimate features.
        num_classes: Number of classes K.

    Attributes:
        head: The classification layer, d to K.
    """

    def __init__(self, feature_dim: int, num_classes: int) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        self.feature_dim = feature_dim
        self.head: nn.Module = nn.Linear(feature_dim, num_classes)

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Penultimate features `[N, d]` of float images `[N, C, H, W]`."""

    def forward_outputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `[N, K]` and features `[N, d]` of float images `[N, C, H, W]`, in one pass."""
        features = self.features(images)
        return self.head(features), features

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, K]` of float images `[N, C, H, W]`."""
        return self.forward_outputs(images)[0]

    def forward_outputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `[N, K]` and the features `[N, d]` that they were computed from, in one pass."""
        features = self.features(images)
        return self.head(features), features


def initialize(model: nn.Module, generator: torch.Generator | None) -> None:
    """Draw every weight: He for convolutions (He et al. 2015, fan-out), Xavier for linear layers.

    Args:
        model: Changed in place.
        generator: Source of every draw, on the CPU; None takes PyTorch's global one.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
