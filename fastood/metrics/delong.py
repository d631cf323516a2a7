"""Variance of an AUROC, and of the difference of two AUROCs, in closed form (DeLong et al. 1988)."""

from dataclasses import dataclass
from math import copysign, erfc, inf, sqrt

import torch
from torch import Tensor

from fastood.metrics.inputs import Values, as_scores
from fastood.metrics.ranking import ranked
from fastood.metrics.validation import checked_pair

__all__ = ["DelongEstimate", "DelongTest", "checked_pairs", "delong_estimate", "delong_test"]


@dataclass(frozen=True, kw_only=True)
class DelongEstimate:
    """An AUROC and its standard error."""

    auroc: float
    std: float


@dataclass(frozen=True, kw_only=True)
class DelongTest:
    """Test of the difference between the AUROCs of two detectors on the same images."""

    difference: float
    """AUROC of the first detector minus that of the second."""
    std: float
    """Standard error of the difference."""
    p_value: float
    """Two-sided p-value by the normal approximation; 1 for detectors with equal rankings."""


def delong_estimate(id_scores: Values, ood_scores: Values) -> DelongEstimate:
    """Compute the AUROC and its standard error (DeLong et al. 1988).

    The placement of a score is the fraction of the other set that it is ranked correctly against, ties counting ½. The
    AUROC is the mean placement of either set, and its variance var(ID placements) / N + var(OOD placements) / M.
    Placements come from sorted scores in O(n log n), as in Sun & Xu 2014.

    Args:
        id_scores: `[N]` in-distribution scores, higher = more OOD, N ≥ 2; bool, integer or floating point.
        ood_scores: `[M]` OOD scores, M ≥ 2, same dtype and device.

    Raises:
        TypeError: If scores are not numeric, are complex or differ in dtype.
        ValueError: If a class has fewer than two scores, or scores are not 1-D, hold NaN or are on different devices.

    Example:
        >>> estimate = delong_estimate(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([1.5, 3.0]))
        >>> round(estimate.auroc, 4), round(estimate.std, 4)
        (0.8333, 0.2357)
    """
    placements = _placements(*checked_pair(id_scores, ood_scores))
    # var divides by n - 1, as DeLong's estimator does.
    *variances, auroc = torch.stack([*(part.var() for part in placements), placements[1].mean()]).tolist()
    variance = sum(of_part / len(part) for of_part, part in zip(variances, placements, strict=True))
    return DelongEstimate(auroc=auroc, std=sqrt(variance))


def delong_test(id_scores: Values, ood_scores: Values, other_id_scores: Values, other_ood_scores: Values) -> DelongTest:
    """Test whether two detectors have the same AUROC on the same images.

    Args:
        id_scores: `[N]` in-distribution scores of the first detector, N ≥ 2.
        ood_scores: `[M]` OOD scores of the first detector, M ≥ 2.
        other_id_scores: `[N]` scores of the second detector, of the same images in the same order.
        other_ood_scores: `[M]` scores of the second detector, of the same OOD images in the same order.

    Raises:
        TypeError: If `delong_estimate` raises it for either detector.
        ValueError: If `delong_estimate` raises it for either detector, or the detectors differ in the counts of images.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> images = torch.randn(2, 1000, generator=g)
        >>> scores = images + torch.tensor([[0.0], [1.0]])
        >>> noisy = scores + torch.randn(2, 1000, generator=g)
        >>> delong_test(*scores, *noisy).p_value < 1e-6
        True
    """
    pair, other = checked_pairs(id_scores, ood_scores, other_id_scores, other_ood_scores)
    first, second = _placements(*pair), _placements(*other)
    difference = float(first[1].mean() - second[1].mean())
    # Placements of both detectors are subtracted image by image, which contains the covariance of the two AUROCs.
    std = sqrt(sum(float((one - two).var()) / len(one) for one, two in zip(first, second, strict=True)))
    # With a standard error of 0 the statistic is 0 / 0 or x / 0: no difference, or a certain one.
    z = difference / std if std else copysign(inf, difference) if difference else 0.0
    return DelongTest(difference=difference, std=std, p_value=erfc(abs(z) / sqrt(2)))


def checked_pairs(
    id_scores: Values, ood_scores: Values, other_id_scores: Values, other_ood_scores: Values
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the scores of two detectors as tensors of the same images.

    Raises:
        TypeError: If `checked_pair` raises it for either detector.
        ValueError: If `checked_pair` raises it for either detector, or the shapes of the detectors differ.
    """
    for name, values, other_values in (
        ("id_scores", id_scores, other_id_scores),
        ("ood_scores", ood_scores, other_ood_scores),
    ):
        one, two = as_scores(name, values), as_scores(f"other_{name}", other_values)
        if one.shape != two.shape:
            raise ValueError(
                f"other_{name} must be of the same images, shape {tuple(one.shape)}, got {tuple(two.shape)}"
            )
    return (
        checked_pair(id_scores, ood_scores),
        checked_pair(other_id_scores, other_ood_scores, names=("other_id_scores", "other_ood_scores")),
    )


def _placements(id_scores: Tensor, ood_scores: Tensor) -> tuple[Tensor, Tensor]:
    """Return the fractions of OOD scores above each ID score `[N]` and of ID scores below each OOD score `[M]`."""
    pair = ranked(id_scores, ood_scores)
    for name, scores in (("id_scores", id_scores), ("ood_scores", ood_scores)):
        if len(scores) < 2:
            raise ValueError(f"{name} must hold at least 2 scores for a variance, got {len(scores)}")
    return 1 - _share_below(pair.id_scores, pair.ood_scores), _share_below(pair.ood_scores, pair.id_scores)


def _share_below(scores: Tensor, others: Tensor) -> Tensor:
    ascending, scores = others.sort().values, scores.contiguous()
    # The mean of both counts gives ties a weight of ½.
    below, at_most = (torch.searchsorted(ascending, scores, right=right) for right in (False, True))
    return (below + at_most).double() / (2 * len(others))
