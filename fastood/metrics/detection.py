"""AUROC, AUPR and FPR at a TPR of one pair of score sets, from integer counts."""

from dataclasses import dataclass
from math import ceil, isfinite

import torch
from torch import Tensor

from fastood.metrics.thresholds import Positive, ThresholdCounts, count_at_thresholds, decimal_fraction


@dataclass(frozen=True, kw_only=True)
class DetectionMetrics:
    """The field's three numbers as fractions in [0, 1], with what they depend on."""

    auroc: float
    """Area under the ROC curve: P(OOD score > ID score) + ½ P(equal). The same for either positive class."""
    aupr: float
    """Average precision of the positive class (sklearn's step rule). It rises with the positives' share."""
    fpr95: float
    """FPR at the first threshold whose TPR reaches `tpr`."""
    tpr: float
    """The TPR at which `fpr95` is read, 0.95 unless asked otherwise."""
    positive: Positive
    """The positive class, "ood" or "id"."""
    id_count: int
    """In-distribution scores."""
    ood_count: int
    """OOD scores."""


def detection_metrics(
    id_scores: Tensor, ood_scores: Tensor, *, tpr: float = 0.95, positive: Positive = "ood"
) -> DetectionMetrics:
    """Measures how well scores tell OOD from in-distribution images.

    Ties are groups: all images with one score are flagged together. AUROC is the mid-rank (Mann–Whitney)
    statistic, AUPR the average precision Σ (Rₙ − Rₙ₋₁) Pₙ, and FPR95 the false-positive rate at the
    strictest threshold with TP ≥ ⌈tpr · P⌉. Counts are integers and divisions happen once, so no score
    scale or rounding can move a result.

    Args:
        id_scores: [N] in-distribution scores, higher = more OOD; bool, integer or floating point, ±inf
            allowed.
        ood_scores: [M] OOD scores, same dtype and device.
        tpr: True-positive rate for `fpr95`, in (0, 1].
        positive: The positive class. "ood": Li & Vasconcelos 2020, Hendrycks 2019, OpenOOD v1.5.
            "id": ODIN, Mahalanobis, energy. The same scores can give very different FPR95 and AUPR.

    Returns:
        The metrics as fractions (float64).

    Raises:
        TypeError: Scores that are no tensors, are complex, or differ in dtype.
        ValueError: Scores that are empty, not 1-D, hold NaN or lie on different devices; `tpr` or
            `positive` out of range.

    Example:
        >>> id_scores = torch.tensor([0.1, 0.2, 0.3, 0.7])
        >>> metrics = detection_metrics(id_scores, torch.tensor([0.6, 0.9]))
        >>> metrics.auroc, metrics.fpr95, round(metrics.aupr, 4)
        (0.875, 0.25, 0.8333)
    """
    if not (isfinite(tpr) and 0 < tpr <= 1):
        raise ValueError(f"tpr must lie in (0, 1], got {tpr}")
    counts = count_at_thresholds(id_scores, ood_scores, positive=positive)
    return DetectionMetrics(
        auroc=_auroc(counts),
        aupr=_average_precision(counts),
        fpr95=_fpr_at_tpr(counts, tpr),
        tpr=tpr,
        positive=positive,
        id_count=len(id_scores),
        ood_count=len(ood_scores),
    )


def _gains(cumulative: Tensor) -> Tensor:
    """[T] counts within each tie group, from the counts up to it."""
    return cumulative.diff(prepend=cumulative.new_zeros(1))


def _auroc(counts: ThresholdCounts) -> float:
    # Twice the Mann–Whitney statistic is an integer: a negative counts 2 for each positive ranked stricter,
    # 1 for a tie.
    group_positives = _gains(counts.true_positives)
    twice_stricter = 2 * counts.true_positives - group_positives
    twice_u = int((_gains(counts.false_positives) * twice_stricter).sum())
    return twice_u / (2 * counts.positives * counts.negatives)


def _average_precision(counts: ThresholdCounts) -> float:
    flagged = counts.true_positives + counts.false_positives
    precision = counts.true_positives.to(torch.float64) / flagged
    return float((_gains(counts.true_positives) * precision).sum()) / counts.positives


def _fpr_at_tpr(counts: ThresholdCounts, tpr: float) -> float:
    required = ceil(decimal_fraction(tpr) * counts.positives)
    first = int(torch.searchsorted(counts.true_positives, required))
    return int(counts.false_positives[first]) / counts.negatives
