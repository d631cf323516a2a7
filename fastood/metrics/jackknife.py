"""Exact jackknife of every metric in one pass, for the acceleration of BCa intervals.

All scores of one class in one tie group give the same leave-one-out value, so there is one value per class and distinct
score. Leaving out a score lowers the counts of its own threshold and of all looser thresholds by one. A sum over
thresholds is then a prefix of the old terms plus a suffix of the changed terms, a minimum is the smaller of the two
minima, and an FPR is read at one of two thresholds.
"""

from math import ceil
from typing import NamedTuple

import torch
from torch import Tensor

from fastood.metrics.threshold_counts import ThresholdCounts, gains
from fastood.ops._arguments import decimal_fraction

__all__ = [
    "LeftOut",
    "acceleration",
    "auroc_without",
    "average_precision_without",
    "detection_error_without",
    "fpr_without",
]


class LeftOut(NamedTuple):
    """Metric without one score of the class at each threshold, float64 `[T]`."""

    positive: Tensor
    negative: Tensor


def acceleration(values: LeftOut, counts: ThresholdCounts) -> float:
    """Compute the acceleration of BCa for two samples.

    Σ Σ U³ / nₖ³ / (6 (Σ Σ U² / nₖ²)^{3/2}) with U = (nₖ - 1) (mean - value): Efron & Tibshirani 1993, eq. 14.15,
    generalised to several samples as in `scipy.stats.bootstrap`. It is 0 if no score influences the metric.
    """
    cubes = squares = 0.0
    for value, weights, count in (
        (values.positive, gains(counts.true_positives), counts.positives),
        (values.negative, gains(counts.false_positives), counts.negatives),
    ):
        # Tie groups without a score of this class have no leave-one-out value.
        present = weights > 0
        value, weights = value[present], weights[present].double()
        influence = (count - 1) / count * ((value * weights).sum() / count - value)
        cubes += float((influence**3 * weights).sum())
        squares += float((influence**2 * weights).sum())
    return cubes / (6 * squares**1.5) if squares > 0 else 0.0


def auroc_without(counts: ThresholdCounts) -> LeftOut:
    """Compute the AUROC without each score."""
    true_positives, false_positives, true_gains, false_gains = _floats(counts)
    # Positives that are stricter than the negatives of each tie group; ties count ½.
    stricter = true_positives - true_gains / 2
    pairs = (false_gains * stricter).sum()
    # Negatives that are looser than the positives of each tie group; ties count ½.
    looser = counts.negatives - false_positives + false_gains / 2
    return LeftOut(
        positive=(pairs - looser) / ((counts.positives - 1) * counts.negatives),
        negative=(pairs - stricter) / (counts.positives * (counts.negatives - 1)),
    )


def average_precision_without(counts: ThresholdCounts) -> LeftOut:
    """Compute the average precision without each score."""
    true_positives, false_positives, true_gains, _ = _floats(counts)
    flagged = true_positives + false_positives
    # The clamp avoids 0 / 0: if no other score is flagged, the numerators are 0.
    others = (flagged - 1).clamp(min=1)
    before = _before(true_gains * true_positives / flagged)
    precision_without_positive = (true_positives - 1).clamp(min=0) / others
    return LeftOut(
        positive=(before + _from(true_gains * precision_without_positive) - precision_without_positive)
        / (counts.positives - 1),
        negative=(before + _from(true_gains * true_positives / others)) / counts.positives,
    )


def fpr_without(counts: ThresholdCounts, tpr: float) -> LeftOut:
    """Compute the FPR at the first threshold that reaches a TPR, without each score."""
    true_positives, false_positives = counts.true_positives, counts.false_positives
    rate = decimal_fraction(tpr)
    position = torch.arange(len(true_positives), device=true_positives.device)
    first = int(torch.searchsorted(true_positives, ceil(rate * counts.positives)))
    needed = ceil(rate * (counts.positives - 1))
    # Leaving out a positive that is flagged lowers the count, so that `needed + 1` of all positives have to be flagged.
    beyond, within = (int(torch.searchsorted(true_positives, count)) for count in (needed, needed + 1))
    negative = (false_positives[first] - (position <= first).long()).double() / (counts.negatives - 1)
    positive = torch.where(position > beyond, false_positives[beyond], false_positives[within]).double()
    return LeftOut(positive=positive / counts.negatives, negative=negative)


def detection_error_without(counts: ThresholdCounts) -> LeftOut:
    """Compute the smallest (FPR + FNR) / 2 without each score."""
    true_positives, false_positives, _, _ = _floats(counts)
    fpr, tpr = false_positives / counts.negatives, true_positives / counts.positives
    fewer_negatives, fewer_positives = counts.negatives - 1, counts.positives - 1

    def smallest(stricter: Tensor, from_own: Tensor) -> Tensor:
        # Flagging nothing is a threshold, too: FPR 0 and FNR 1.
        nothing_flagged = stricter.new_full((1,), 1.0)
        before = torch.cat((nothing_flagged, stricter[:-1])).cummin(0).values
        return torch.minimum(before, from_own.flip(0).cummin(0).values.flip(0)) / 2

    tpr_before, tpr_after = true_positives / fewer_positives, (true_positives - 1) / fewer_positives
    fpr_before, fpr_after = false_positives / fewer_negatives, (false_positives - 1) / fewer_negatives
    return LeftOut(
        positive=smallest(fpr + 1 - tpr_before, fpr + 1 - tpr_after),
        negative=smallest(fpr_before + 1 - tpr, fpr_after + 1 - tpr),
    )


def _floats(counts: ThresholdCounts) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    cumulative = (counts.true_positives, counts.false_positives)
    true_positives, false_positives = (count.double() for count in cumulative)
    true_gains, false_gains = (gains(count).double() for count in cumulative)
    return true_positives, false_positives, true_gains, false_gains


def _before(terms: Tensor) -> Tensor:
    return terms.cumsum(0) - terms


def _from(terms: Tensor) -> Tensor:
    return terms.flip(0).cumsum(0).flip(0)
