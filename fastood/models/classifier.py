"""Base class of the networks: features, then a head."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fastood.common.initialization import initialize as initialize

__all__ = ["MAX_DEPTH", "Classifier", "initialize", "layers_drawn_from"]

MAX_DEPTH = 2000
"""Largest depth of a network; the deepest published residual network has 1,202 layers."""


class Classifier(nn.Module, ABC):
    """A network split into `features` and `head`, so that a method can replace either.

    Args:
        feature_dim: Width d of the penultimate features.
        num_classes: Number of classes K, at least 2.

    Attributes:
        feature_dim: Width d of the penultimate features.
        head: Classification layer from d features to K logits.

    Raises:
        ValueError: If `num_classes` is below 2.
    """

    def __init__(self, feature_dim: int, num_classes: int) -> None:
        super().__init__()
        if num_classes < 2:
            raise ValueError(f"num_classes must be at least 2, got {num_classes}")
        self.feature_dim = feature_dim
        self.head: nn.Module = nn.Linear(feature_dim, num_classes)

    @abstractmethod
    def features(self, images: Tensor) -> Tensor:
        """Return the penultimate features `[N, d]` of float images `[N, C, H, W]`."""

    def forward_outputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits `[N, K]` and features `[N, d]` of float images `[N, C, H, W]`, in one pass."""
        features = self.features(images)
        return self.head(features), features

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `[N, K]` of float images `[N, C, H, W]`."""
        return self.forward_outputs(images)[0]


@contextmanager
def layers_drawn_from(generator: torch.Generator | None) -> Iterator[None]:
    """Make layers draw PyTorch's default initial weights from this generator within the context.

    For networks that were published with PyTorch's default initialisation. The constructors of layers take no
    generator; so the global generator is seeded from this one, and its state is restored afterwards.

    Args:
        generator: Source of the seed, on the CPU, advanced by one draw; None leaves the global generator unchanged.

    Example:
        >>> import torch
        >>> def weight(seed):
        ...     with layers_drawn_from(torch.Generator().manual_seed(seed)):
        ...         return torch.nn.Linear(3, 2).weight
        >>> torch.equal(weight(0), weight(0)), torch.equal(weight(0), weight(1))
        (True, False)
    """
    if generator is None:
        yield
        return
    seed = torch.randint(2**63 - 1, (), generator=generator, device="cpu")
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which also seeds every GPU.
        torch.default_generator.manual_seed(int(seed))
        yield
