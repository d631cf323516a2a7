"""The variance of an AUROC, and of the difference of two, in closed form (DeLong et al. 1988)."""

from dataclasses import dataclass
from math import copysign, erfc, inf, sqrt

import torch
from torch import Tensor

from fastood.metrics.validation import ranked_pair


@dataclass(frozen=True, kw_only=True)
class DelongEstimate:
    """An AUROC and its standard error."""

    auroc: float
    std: float


@dataclass(frozen=True, kw_only=True)
class DelongTest:
    """Difference of the AUROCs of two detectors of the same images."""

    difference: float
    """First less second."""
    std: float
    """Its standard error."""
    p_value: float
    """Two-sided, of the normal approximation; 1 for detectors that rank alike."""


def delong_estimate(id_scores: Tensor, ood_scores: Tensor) -> DelongEstimate:
    """Standard error of the AUROC from the placements of each score in the other set.

    A placement is the share of the other set that a score is on the right side of, ties as ½; the AUROC is the mean of
    either set's placements, its variance var(ID placements) / N + var(OOD placements) / M. O(n log n), Sun & Xu 2014.

    Args:
        id_scores: [N] in-distribution scores, higher = more OOD, N ≥ 2; bool, integer or floating point.
        ood_scores: [M] OOD scores, M ≥ 2, same dtype and device.

    Raises:
        TypeError: Scores that are no tensors, are complex, or differ in dtype.
        ValueError: Fewer than two scores of a class; scores not 1-D, with NaN, or on different devices.

    Example:
        >>> estimate = delong_estimate(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.5, 3.0]))
        >>> round(estimate.auroc, 4), round(estimate.std, 4)
        (0.8333, 0.2357)
    """
    placements = _placements(id_scores, ood_scores)
    variance = sum(float(part.var()) / len(part) for part in placements)
    return DelongEstimate(auroc=float(placements[1].mean()), std=sqrt(variance))


def delong_test(id_scores: Tensor, ood_scores: Tensor, other_id_scores: Tensor, other_ood_scores: Tensor) -> DelongTest:
    """Tests whether two detectors of the same images have the same AUROC.

    Args:
        id_scores: [N] in-distribution scores of the first detector, N ≥ 2.
        ood_scores: [M] OOD scores of the first detector, M ≥ 2.
        other_id_scores: [N] scores of the second detector, of the same images in the same order.
        other_ood_scores: [M] likewise.

    Raises:
        TypeError: As `delong_estimate`.
        ValueError: As `delong_estimate`, or other counts of images.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> images = torch.randn(2, 1000, generator=g)
        >>> scores = images + torch.tensor([[0.0], [1.0]])
        >>> noisy = scores + torch.randn(2, 1000, generator=g)
        >>> delong_test(*scores, *noisy).p_value < 1e-6
        True
    """
    check_same_images(id_scores, ood_scores, other_id_scores, other_ood_scores)
    first = _placements(id_scores, ood_scores)
    second = _placements(other_id_scores, other_ood_scores)
    difference = float(first[1].mean() - second[1].mean())
    std = sqrt(sum(float((one - two).var()) / len(one) for one, two in zip(first, second, strict=True)))
    # Without any spread a difference is either nothing or certain.
    z = difference / std if std else copysign(inf, difference) if difference else 0.0
    return DelongTest(difference=difference, std=std, p_value=erfc(abs(z) / sqrt(2)))


def check_same_images(id_scores: Tensor, ood_scores: Tensor, other_id_scores: Tensor, other_ood_scores: Tensor) -> None:
    """Refuses scores of two detectors that cannot be of the same images.

    Raises:
        ValueError: Different shapes.
    """
    for name, one, two in (
        ("other_id_scores", id_scores, other_id_scores),
        ("other_ood_scores", ood_scores, other_ood_scores),
    ):
        if one.shape != two.shape:
            raise ValueError(f"{name} must be of the same images, shape {tuple(one.shape)}, got {tuple(two.shape)}")


def _placements(id_scores: Tensor, ood_scores: Tensor) -> tuple[Tensor, Tensor]:
    """Float64 [N] and [M]: the share of OOD scores above each ID score, and of ID scores below each OOD score."""
    pair = ranked_pair(id_scores, ood_scores)
    for name, scores in (("id_scores", id_scores), ("ood_scores", ood_scores)):
        if len(scores) < 2:
            raise ValueError(f"{name} must hold at least 2 scores for a variance, got {len(scores)}")
    return 1 - _share_below(pair.id_scores, pair.ood_scores), _share_below(pair.ood_scores, pair.id_scores)


def _share_below(scores: Tensor, others: Tensor) -> Tensor:
    ascending = others.sort().values
    below, at_most = (torch.searchsorted(ascending, scores, right=right) for right in (False, True))
    return (below + at_most).double() / (2 * len(others))
