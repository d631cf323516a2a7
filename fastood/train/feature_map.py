"""Two pictures' worth of points: a network's features in a plane, and how sure it is of them in two ways."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, kw_only=True, eq=False)
class FeatureMap:
    """Of some test images and synthetic features; every tensor is float32 `[n, 2]`, on the CPU."""

    id_plane: Tensor
    """In-distribution test images in the plane in which they spread the most."""
    ood_plane: Mapping[str, Tensor]
    """Each OOD set in it."""
    synthetic_plane: Mapping[str, Tensor]
    """Each kind of synthetic features in it."""
    id_odds: Tensor
    """Log-odds of p₂ and of p₁: that an image is in-distribution, and that its class is the likeliest one."""
    ood_odds: Mapping[str, Tensor]
    """The same of each OOD set."""
