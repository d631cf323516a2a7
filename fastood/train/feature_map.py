"""Points of two figures: a network's features in a plane, and their log-odds under two probabilities."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureMap:
    """Coordinates of test images and synthetic features; every tensor is float32 `[n, 2]`, on the CPU."""

    id_plane: Tensor
    """In-distribution test images in the plane of their first two principal components."""
    ood_plane: Mapping[str, Tensor]
    """Images of each OOD set in that plane."""
    synthetic_plane: Mapping[str, Tensor]
    """Each kind of synthetic features in that plane."""
    id_odds: Tensor
    """Log-odds of p₂ and of p₁ for in-distribution test images: the probabilities that an image is in-distribution, and
    that its class is the most likely one."""
    ood_odds: Mapping[str, Tensor]
    """Log-odds of p₂ and of p₁ for each OOD set."""
