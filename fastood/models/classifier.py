"""The one shape every network here has: features, then a linear head."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fastood.common.initialization import initialize as initialize

MAX_DEPTH = 2000
"""Layers of the deepest network that is built; the deepest published residual network has 1,202."""


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


@contextmanager
def layers_drawn_from(generator: torch.Generator | None) -> Iterator[None]:
    """Within it, layers draw the initial weights that they draw of themselves from this generator.

    For networks whose published weights began as their library has them. PyTorch's layers take no generator when they
    are made; so the global one is seeded from this one, and put back afterwards.

    Args:
        generator: Source of the seed, on the CPU, moved on by one draw; None leaves the global one as it is.

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
        # torch.manual_seed would seed every GPU, too.
        torch.default_generator.manual_seed(int(seed))
        yield
