"""Learnt weights of a background pool: by source, and the images of the largest and the smallest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fastood.data.images.image_set import ImageSet


@dataclass(frozen=True, kw_only=True, eq=False)
class LearntWeights:
    """Weights that a run has learnt for its background pool."""

    weights: Tensor
    """Weights `[N]`."""
    images: ImageSet
    """The N images of the pool."""
    effective_sample_sizes: Tensor | None = None
    """Effective sample size of the pool after each step, `[T]`; the report draws no figure of fewer than two."""


@dataclass(frozen=True, kw_only=True)
class SourceWeights:
    """Weights of the images of one source, relative to the mean weight of the pool."""

    name: str
    weights: Tensor
    """float64 `[n]`, ascending; their mean over the whole pool is 1."""

    @property
    def mean(self) -> float:
        """Mean relative weight; above 1, training raised the weights of the source."""
        return float(self.weights.mean())


def relative_weights(weights: Tensor) -> Tensor:
    """Divide pool weights by their mean.

    Args:
        weights: Pool weights `[N]`, finite, at least 0, not all 0.

    Returns:
        float64 `[N]` with mean 1, on the CPU.

    Raises:
        ValueError: If the weights are not 1-D, empty, negative, not finite, or all 0.

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
    """Group the weights of a pool by the source of its images.

    Args:
        weights: Pool weights `[N]`.
        background: The N images of the pool.

    Returns:
        One entry for each source that has images, by descending mean weight.

    Raises:
        ValueError: If `relative_weights` refuses the weights, or their number is not that of the images.
    """
    if len(weights) != len(background):
        raise ValueError(f"the pool has {len(weights)} weights for {len(background)} background images")
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
    """Return the indices of the images with the largest and with the smallest weights.

    Images of equal weight come in a random order, which is the same in every call: images that were never drawn share
    the smallest weight, and the first of them in the pool would all be of one source.

    Args:
        weights: Pool weights `[N]`.
        count: Number of images at either end; N if the pool is smaller.

    Returns:
        int64 `[min(count, N)]` of the largest weights, descending, and int64 `[min(count, N)]` of the smallest weights,
        ascending.

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
    """Return a relative weight with three digits.

    Example:
        >>> weight_label(1.0), weight_label(0.98765), weight_label(150.69), weight_label(12_345.6)
        ('× 1.00', '× 0.988', '× 151', '× 12,346')
    """
    return f"× {weight:,.0f}" if weight >= 100 else f"× {weight:#.3g}"
