"""Selective classification: the error among the images that are accepted, against how many are."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fastood.metrics.inputs import Values
from fastood.metrics.validation import check_one_dtype, checked_correct, checked_pair, checked_positive, checked_scores
from fastood.ops._arguments import shown

__all__ = ["RiskCoverageCurve", "risk_coverage_curve"]


@dataclass(frozen=True, kw_only=True)
class RiskCoverageCurve:
    """What is accepted, and how much of it is wrong, at every threshold, strictest first."""

    coverage: Tensor
    """float64 [T], share of the ID images accepted, non-decreasing to 1."""
    risk: Tensor
    """float64 [T], share of all accepted images that are wrong: misclassified ID images, and OOD images."""
    ood_accepted: Tensor
    """float64 [T], share of the OOD images accepted, non-decreasing; 0 where there are none. One minus the TPR of their
    detection."""
    thresholds: Tensor
    """float64 [T], ascending: an image is accepted when its score is at most the threshold."""

    @property
    def aurc(self) -> float:
        """Area under risk over coverage: the mean, over ID images, of the risk where an image is just accepted.

        Without OOD images the AURC of Geifman et al. 2019. Lower is better; images of equal score are accepted
        together.
        """
        gained = self.coverage.diff(prepend=self.coverage.new_zeros(1))
        return float((gained * self.risk).sum())


def risk_coverage_curve(
    id_scores: Values,
    *,
    correct: Values,
    ood_scores: Sequence[Values] = (),
    ood_per_id: float | None = None,
) -> RiskCoverageCurve:
    """Traces risk and coverage of a classifier that rejects what scores above a threshold.

    With OOD images mixed in this is figure 2 of Mohseni et al. 2020, whose mix has as many OOD as ID images and as many
    of each set (`ood_per_id=1`); without, figure 3.

    Args:
        id_scores: [N] in-distribution scores, higher = more OOD; bool, integer or floating point, ±inf allowed.
        correct: bool [N], whether each ID image was classified correctly.
        ood_scores: OOD sets mixed in, each [M], same dtype and device.
        ood_per_id: OOD images per ID image for which the risk is stated, every set counting alike whatever its size; by
            default each image counts once.

    Returns:
        A point for each distinct score, float64, on the device of the scores.

    Raises:
        TypeError: Scores that are no numbers, are complex, or differ in dtype; `correct` not bool; `ood_scores` that is
            no list of sets.
        ValueError: Scores that are empty, not 1-D, hold NaN or lie on different devices; another shape of `correct`; an
            `ood_per_id` that is not finite and above 0, or has no OOD scores to go with.

    Example:
        >>> scores, correct = torch.tensor([0.1, 0.2, 0.9]), torch.tensor([True, False, True])
        >>> curve = risk_coverage_curve(scores, correct=correct, ood_scores=[torch.tensor([0.5])])
        >>> [round(value, 2) for value in curve.coverage.tolist()], [round(value, 2) for value in curve.risk.tolist()]
        ([0.33, 0.67, 0.67, 1.0], [0.0, 0.5, 0.67, 0.5])
        >>> round(curve.aurc, 4)
        0.3333
    """
    of_id = checked_scores("id_scores", id_scores)
    correct = checked_correct(correct, of_id)
    if not isinstance(ood_scores, (list, tuple)):
        raise TypeError(f"ood_scores must be a list of OOD sets, got {type(ood_scores).__name__}")
    sets = []
    for number, values in enumerate(ood_scores):
        of_id, scores = checked_pair(id_scores, values, names=("id_scores", f"ood_scores[{number}]"))
        sets.append(scores)
    check_one_dtype("ood_scores", sets)
    if ood_per_id is not None:
        if not sets:
            raise ValueError(f"ood_per_id must be None without ood_scores, got {shown(ood_per_id)}")
        ood_per_id = checked_positive("ood_per_id", ood_per_id)

    rank = _rankable(of_id)
    ood = [_rankable(scores) for scores in sets]
    thresholds = torch.unique(torch.cat([rank, *ood]))
    accepted = _count_up_to(rank, thresholds)
    wrong = _count_up_to(rank[~correct], thresholds)
    total = torch.zeros_like(thresholds, dtype=torch.float64)
    weight = 0.0
    for scores in ood:
        # What one image of the set counts for.
        each = 1.0 if ood_per_id is None else ood_per_id * len(rank) / (len(ood) * len(scores))
        total += each * _count_up_to(scores, thresholds)
        weight += each * len(scores)
    return RiskCoverageCurve(
        coverage=accepted / len(rank),
        risk=(wrong + total) / (accepted + total),
        ood_accepted=total / weight if ood else total,
        thresholds=thresholds.double(),
    )


def _rankable(scores: Tensor) -> Tensor:
    """As numbers that rank alike and that sorting knows: int64 of signed integers, else float64."""
    return scores.long() if scores.dtype.is_signed and not scores.is_floating_point() else scores.double()


def _count_up_to(scores: Tensor, thresholds: Tensor) -> Tensor:
    """float64 [T], scores that are at most each threshold."""
    return torch.searchsorted(scores.sort().values, thresholds, right=True).double()
