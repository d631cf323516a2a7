"""Selective classification: error among accepted images as a function of the fraction accepted."""

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
    """Fractions of accepted images and of errors among them at every threshold, strictest first."""

    coverage: Tensor
    """float64 `[T]`, fraction of the ID images accepted, non-decreasing to 1."""
    risk: Tensor
    """float64 `[T]`, fraction of all accepted images that are wrong: misclassified ID images, and OOD images."""
    ood_accepted: Tensor
    """float64 `[T]`, fraction of the OOD images accepted, non-decreasing; 0 where there are none. It is one minus the
    TPR of OOD detection."""
    thresholds: Tensor
    """float64 `[T]`, ascending: an image is accepted when its score is at most the threshold."""

    @property
    def aurc(self) -> float:
        """Area under risk over coverage: the mean risk over ID images, each at the strictest threshold that accepts it.

        Without OOD images it is the AURC of Geifman et al. 2019. Lower is better; images of equal score are accepted
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
    """Compute risk and coverage of a classifier that rejects images with a score above a threshold.

    With OOD images mixed in, this is figure 2 of Mohseni et al. 2020
    (https://ojs.aaai.org/index.php/AAAI/article/view/5966), with as many OOD as ID images in total and equal numbers
    from each OOD set (`ood_per_id=1`); without OOD images it is figure 3.

    Args:
        id_scores: `[N]` in-distribution scores, higher = more OOD; bool, integer or floating point, ±inf allowed.
        correct: bool `[N]`, whether each ID image was classified correctly.
        ood_scores: OOD sets mixed in, each `[M]`, same dtype and device.
        ood_per_id: OOD images per ID image for which the risk is stated; each set has the same total weight regardless
            of its size. By default each image counts once.

    Returns:
        A point for each distinct score, float64, on the device of the scores.

    Raises:
        TypeError: If scores are not numeric, are complex or differ in dtype, `correct` is not bool, or `ood_scores` is
            not a list or tuple of sets.
        ValueError: If scores are empty, not 1-D, hold NaN or are on different devices, `correct` has another shape, or
            `ood_per_id` is not finite and above 0 or is passed without OOD scores.

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
        # Every set gets the same total weight, so one image of a small set weighs more.
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
    """Return scores in a dtype that can be sorted: int64 for signed integers, else float64."""
    # float64 would tie different integers beyond 2^53.
    return scores.long() if scores.dtype.is_signed and not scores.is_floating_point() else scores.double()


def _count_up_to(scores: Tensor, thresholds: Tensor) -> Tensor:
    """Return the number of scores at or below each threshold, float64 `[T]`."""
    return torch.searchsorted(scores.sort().values, thresholds, right=True).double()
