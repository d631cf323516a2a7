"""Rules by which papers and libraries compute an FPR and an AUPR from the counts at every threshold."""

from fractions import Fraction
from math import ceil, floor, nan
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from fastood.metrics.threshold_counts import ThresholdCounts, gains
from fastood.ops._arguments import decimal_fraction

__all__ = ["AuprKind", "FprRule", "OperatingPoint", "area_under_pr", "operating_point"]

FprRule = Literal["first", "corner", "nearest", "quantile", "floor", "odin"]
"""Rule by which the FPR is read. `TPR` is TP / P at a threshold, `tpr` the requested rate:

    first     the strictest threshold with TPR ≥ tpr (pytorch-ood; sklearn's curve with all its points)
    corner    the strictest corner of the ROC curve with TPR ≥ tpr (OpenOOD v1.5: sklearn's curve without the points on
              straight runs, its default; differs from "first" where a tie group holds both classes)
    nearest   the threshold whose TPR is nearest to tpr, the larger TPR and then the larger FPR among equals (Hendrycks
              2019, energy; their float arithmetic may choose the other one of two equally near thresholds)
    quantile  the interpolated (1 - tpr) quantile of the positive scores (code of Li & Vasconcelos 2020); not invariant
              under monotone maps of the scores
    floor     the ⌊tpr · P⌋-th strictest positive score, which is not flagged itself (OpenOOD before v1.5)
    odin      the mean over thresholds with |TPR - tpr| ≤ 0.0005 (Liang 2018 with a grid of 100,000 softmax values as
              thresholds; here the distinct scores)
"""

AuprKind = Literal["average_precision", "trapezoid", "balanced"]
"""Definition of the area under the precision–recall curve:

    average_precision  Σ (Rₙ - Rₙ₋₁) Pₙ, sklearn's step rule (Hendrycks 2019, Li & Vasconcelos 2020, energy)
    trapezoid          Σ (Rₙ - Rₙ₋₁) (Pₙ + Pₙ₋₁) / 2 from precision 1 at recall 0 (OpenOOD, pytorch-ood)
    balanced           Σ (Rₙ₊₁ - Rₙ) Pₙ with precision TPR / (TPR + FPR), as for classes of equal size (Liang 2018)
"""


class OperatingPoint(NamedTuple):
    """One threshold and its FPR."""

    fpr: float
    threshold: float
    """NaN where the FPR is a mean over thresholds."""


def operating_point(counts: ThresholdCounts, tpr: float, rule: FprRule, positive_scores: Tensor) -> OperatingPoint:
    """Read the FPR at a TPR by a rule.

    Args:
        counts: Counts at every distinct score.
        tpr: True-positive rate, in (0, 1].
        rule: One of `FprRule`.
        positive_scores: [P] scores of the positive class, ascending; read by the rules "quantile" and "floor".

    Raises:
        ValueError: If no threshold has a TPR within 0.0005 of `tpr` ("odin"), or ⌊tpr · P⌋ is 0 ("floor").
    """
    rate = decimal_fraction(tpr)
    if rule == "first":
        return _at(counts, _first(counts.true_positives, rate, counts.positives))
    if rule == "corner":
        kept = _corners(counts)
        return _at(counts, int(kept[_first(counts.true_positives[kept], rate, counts.positives)]))
    if rule == "nearest":
        return _at(counts, _nearest(counts, rate))
    if rule == "odin":
        return _mean_near(counts, rate)
    ood_positive = counts.positive == "ood"
    strictest_first = positive_scores.double().flip(0) if ood_positive else positive_scores.double()
    if rule == "quantile":
        threshold = _interpolated(strictest_first, rate)
        flagged = counts.thresholds >= threshold if ood_positive else counts.thresholds <= threshold
        return _flagging(counts, int(flagged.sum()), threshold)
    position = floor(rate * counts.positives)
    if position < 1:
        raise ValueError(f'rule "floor" needs at least {ceil(1 / rate)} positive scores, got {counts.positives}')
    threshold = float(strictest_first[position - 1])
    flagged = counts.thresholds > threshold if ood_positive else counts.thresholds < threshold
    return _flagging(counts, int(flagged.sum()), threshold)


def area_under_pr(counts: ThresholdCounts, kind: AuprKind) -> float:
    """Compute the area under the precision–recall curve by one of `AuprKind`."""
    true_positives = counts.true_positives.double()
    if kind == "balanced":
        recall = true_positives / counts.positives
        precision = recall / (recall + counts.false_positives.double() / counts.negatives)
        # The first step uses the precision at its threshold, each later step the precision at its stricter end.
        return float(recall[0] * precision[0] + (recall.diff() * precision[:-1]).sum())
    precision = true_positives / (counts.true_positives + counts.false_positives)
    if kind == "trapezoid":
        precision = (precision + torch.cat((precision.new_ones(1), precision[:-1]))) / 2
    return float((gains(counts.true_positives) * precision).sum()) / counts.positives


def _at(counts: ThresholdCounts, position: int) -> OperatingPoint:
    fpr = int(counts.false_positives[position]) / counts.negatives
    return OperatingPoint(fpr, float(counts.thresholds[position]))


def _flagging(counts: ThresholdCounts, strictest: int, threshold: float) -> OperatingPoint:
    """Return the point that flags the first `strictest` tie groups."""
    flagged = int(counts.false_positives[strictest - 1]) if strictest else 0
    return OperatingPoint(flagged / counts.negatives, threshold)


def _first(true_positives: Tensor, rate: Fraction, positives: int) -> int:
    return int(torch.searchsorted(true_positives, ceil(rate * positives)))


def _corners(counts: ThresholdCounts) -> Tensor:
    """Return the positions that sklearn's `roc_curve` keeps by default: both ends and all changes of slope."""
    true_gains, false_gains = gains(counts.true_positives), gains(counts.false_positives)
    bends = (true_gains.diff() != 0) | (false_gains.diff() != 0)
    # sklearn looks at second differences without the point (0, 0), so the first point is always kept.
    return torch.cat((bends.new_ones(1), bends[1:], bends.new_ones(1)))[: len(true_gains)].nonzero().squeeze(1)


def _nearest(counts: ThresholdCounts, rate: Fraction) -> int:
    # |TP / P - a / b| in integer units of 1 / (b P), so that equal distances compare equal.
    distance = (counts.true_positives * rate.denominator - rate.numerator * counts.positives).abs()
    nearest = counts.true_positives[distance == distance.min()].max()
    if int(nearest) == counts.positives:  # their curve ends at the threshold that flags all positives
        return int(torch.searchsorted(counts.true_positives, nearest))
    return int(torch.searchsorted(counts.true_positives, nearest, right=True)) - 1


def _mean_near(counts: ThresholdCounts, rate: Fraction) -> OperatingPoint:
    low, high = rate - Fraction(1, 2000), rate + Fraction(1, 2000)
    within = (counts.true_positives >= ceil(low * counts.positives)) & (
        counts.true_positives <= floor(high * counts.positives)
    )
    if not within.any():
        raise ValueError(
            f'rule "odin" needs a threshold with a TPR in [{float(low):g}, {float(high):g}], got none among '
            f'{len(counts.thresholds)} thresholds of {counts.positives} positive scores; use rule="first"'
        )
    return OperatingPoint(float(counts.false_positives[within].double().mean()) / counts.negatives, nan)


def _interpolated(strictest_first: Tensor, rate: Fraction) -> float:
    """Return the linear `np.quantile` of the scores at position (P - 1) · rate from the strictest."""
    position = rate * (len(strictest_first) - 1)
    below = floor(position)
    share = float(position - below)
    low = float(strictest_first[below])
    return low if share == 0 else low + share * (float(strictest_first[below + 1]) - low)
