"""ROC and precision–recall curves with one point per distinct score, without thinning or interpolation."""

from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor

from fastood.metrics.inputs import Values
from fastood.metrics.threshold_counts import count_at_thresholds
from fastood.metrics.validation import Positive, checked_positive

__all__ = ["PrCurve", "RocCurve", "pr_curve", "roc_curve"]


@dataclass(frozen=True, kw_only=True)
class RocCurve:
    """Rates at every threshold, strictest first, from (0, 0) to (1, 1)."""

    fpr: Tensor
    """float64 `[T + 1]`, false-positive rate, non-decreasing."""
    tpr: Tensor
    """float64 `[T + 1]`, true-positive rate, non-decreasing."""
    thresholds: Tensor
    """float64 `[T + 1]`; first +inf (OOD positive) or −inf (ID positive), where nothing is flagged."""


@dataclass(frozen=True, kw_only=True)
class PrCurve:
    """Precision and recall at every threshold, strictest first; Σ (Rₙ − Rₙ₋₁) Pₙ is the average precision."""

    precision: Tensor
    """float64 `[T + 1]`; first 1 by convention, where nothing is flagged."""
    recall: Tensor
    """float64 `[T + 1]`, non-decreasing from 0 to 1."""
    thresholds: Tensor
    """float64 `[T + 1]`; first +inf (OOD positive) or −inf (ID positive)."""


def roc_curve(id_scores: Values, ood_scores: Values, *, positive: Positive = "ood") -> RocCurve:
    """Compute the ROC curve.

    Args:
        id_scores: `[N]` in-distribution scores, higher = more OOD; bool, integer or floating point, ±inf
            allowed.
        ood_scores: `[M]` OOD scores, same dtype and device.
        positive: The positive class, "ood" (flagged when score ≥ threshold) or "id" (score ≤ threshold).

    Returns:
        T + 1 points for T distinct scores, float64, on the device of the scores. Integer scores beyond 2^53
        are ranked exactly, but their thresholds are rounded.

    Raises:
        TypeError: If scores are not numeric, are complex or differ in dtype.
        ValueError: If scores are empty, not 1-D, hold NaN or are on different devices, or `positive` is unknown.

    Example:
        >>> curve = roc_curve(torch.tensor([0.1, 0.4]), torch.tensor([0.4, 0.9]))
        >>> curve.fpr.tolist(), curve.tpr.tolist()
        ([0.0, 0.0, 0.5, 1.0], [0.0, 0.5, 1.0, 1.0])
    """
    counts = count_at_thresholds(id_scores, ood_scores, positive=positive)
    return RocCurve(
        fpr=_with_first(0.0, counts.false_positives) / counts.negatives,
        tpr=_with_first(0.0, counts.true_positives) / counts.positives,
        thresholds=_with_first(inf if positive == "ood" else -inf, counts.thresholds),
    )


def pr_curve(
    id_scores: Values, ood_scores: Values, *, positive: Positive = "ood", ood_per_id: float | None = None
) -> PrCurve:
    """Compute the precision–recall curve.

    Args:
        id_scores: `[N]` in-distribution scores, higher = more OOD; bool, integer or floating point, ±inf
            allowed.
        ood_scores: `[M]` OOD scores, same dtype and device.
        positive: The positive class, "ood" (flagged when score ≥ threshold) or "id" (score ≤ threshold).
        ood_per_id: OOD images per ID image for which precision is stated, e.g. 0.2 for the 1 : 5 of Li &
            Vasconcelos 2020; by default the ratio M / N of the scores. Makes curves of OOD sets of different size
            comparable.

    Returns:
        T + 1 points for T distinct scores, float64, on the device of the scores.

    Raises:
        TypeError: If scores are not numeric, are complex or differ in dtype.
        ValueError: If scores are empty, not 1-D, hold NaN or are on different devices, or `positive` or `ood_per_id` is
            out of range.

    Example:
        >>> curve = pr_curve(torch.tensor([0.1, 0.4]), torch.tensor([0.4, 0.9]))
        >>> curve.recall.tolist(), curve.precision[1:].tolist()
        ([0.0, 0.5, 1.0, 1.0], [1.0, 0.6666666666666666, 0.5])
    """
    if ood_per_id is not None:
        ood_per_id = checked_positive("ood_per_id", ood_per_id)
    counts = count_at_thresholds(id_scores, ood_scores, positive=positive)
    true_positives = counts.true_positives.to(torch.float64)
    false_positives = counts.false_positives.to(torch.float64)
    if ood_per_id is not None:
        # False positives are reweighted, so that the classes have the requested ratio without resampling.
        positive_per_negative = ood_per_id if positive == "ood" else 1 / ood_per_id
        false_positives *= counts.positives / (positive_per_negative * counts.negatives)
    return PrCurve(
        precision=_with_first(1.0, true_positives / (true_positives + false_positives)),
        recall=_with_first(0.0, true_positives) / counts.positives,
        thresholds=_with_first(inf if positive == "ood" else -inf, counts.thresholds),
    )


def _with_first(value: float, points: Tensor) -> Tensor:
    """Return float64 `[T + 1]`: the value where nothing is flagged, then the values of the T points."""
    return torch.cat((points.new_full((1,), value, dtype=torch.float64), points.to(torch.float64)))
