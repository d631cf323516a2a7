"""What a run learnt about its background pool: weights by source, and the most and least weighted images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fastood.data.images.image_set import ImageSet


@dataclass(frozen=True, kw_only=True)
class SourceWeights:
    """The weights of one source's images, relative to the pool's mean weight."""

    name: str
    weights: Tensor
    """float64 [n], ascending; their mean over the whole pool is 1."""

    @property
    def mean(self) -> float:
        """Mean relative weight; above 1 the source was weighted up."""
        return float(self.weights.mean())


def relative_weights(weights: Tensor) -> Tensor:
    """Weights divided by their mean.

    Args:
        weights: [N] pool weights, finite, at least 0, not all 0.

    Returns:
        float64 [N] with mean 1.

    Raises:
        ValueError: Not 1-D, empty, negative, not finite, or all 0.

    Example:
        >>> relative_weights(torch.tensor([1.0, 3.0])).tolist()
        [0.5, 1.5]
    """
    if weights.ndim != 1 or not len(weights):
        raise ValueError(f"pool weights must be 1-D and not empty, got shape {tuple(weights.shape)}")
    weights = weights.detach().to("cpu", torch.float64)
    if not bool(weights.isfinite().all()) or float(weights.min()) < 0 or float(weights.max()) == 0:
        raise ValueError(
            f"pool weights must be finite, at least 0 and not all 0, got a range of "
            f"[{float(weights.min()):g}, {float(weights.max()):g}]"
        )
    return weights / weights.mean()


def weights_by_source(weights: Tensor, background: ImageSet) -> list[SourceWeights]:
    """Groups a pool's weights by the source of its images.

    Args:
        weights: [N] pool weights.
        background: The pool's N images.

    Returns:
        One entry for each source that has images, by descending mean weight.

    Raises:
        ValueError: Bad weights, or as many weights as the pool has no images.
    """
    if len(weights) != len(background):
        raise ValueError(f"pool_weights has {len(weights)} weights for {len(background)} background images")
    relative = relative_weights(weights)
    order = torch.argsort(background.source, stable=True)
    counts = torch.bincount(background.source, minlength=len(background.source_names))
    groups = torch.split(relative[order], counts.tolist())
    sources = [
        SourceWeights(name=name, weights=group.sort().values)
        for name, group in zip(background.source_names, groups, strict=True)
        if len(group)
    ]
    return sorted(sources, key=lambda source: -source.mean)


def extreme_images(weights: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Indices of the most and the least weighted images, each from the extreme inwards.

    Images of equal weight come in a random order, the same in every call: images that were never drawn share the lowest
    weight, and the first of them in the pool would all be of one source.

    Args:
        weights: [N] pool weights.
        count: Number of images of each kind; N if the pool is smaller.

    Returns:
        int64 [min(count, N)] most weighted, the same of the least weighted.

    Example:
        >>> most, least = extreme_images(torch.tensor([0.5, 2.0, 1.0]), 2)
        >>> most.tolist(), least.tolist()
        ([1, 2], [0, 2])
    """
    order = torch.randperm(len(weights), generator=torch.Generator().manual_seed(0))
    shuffled = weights.detach().cpu()[order]
    most = order[torch.argsort(shuffled, descending=True, stable=True)]
    least = order[torch.argsort(shuffled, stable=True)]
    return most[:count], least[:count]


def weight_label(weight: float) -> str:
    """A relative weight in three digits.

    Example:
        >>> weight_label(1.0), weight_label(0.98765), weight_label(150.69), weight_label(12_345.6)
        ('× 1.00', '× 0.988', '× 151', '× 12,346')
    """
    return f"× {weight:,.0f}" if weight >= 100 else f"× {weight:#.3g}"
