"""Thresholds for deployment: how many in-distribution images a detector may flag, promised from held-out ones."""

from dataclasses import dataclass
from math import ceil, exp, floor, inf, lgamma, log, log1p
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from fastood.metrics.inputs import Values, as_scores
from fastood.metrics.validation import Positive, check_choice, checked_between, checked_scores, checked_tpr
from fastood.ops._arguments import decimal_fraction

__all__ = ["ScoreCalibration", "threshold_at_tpr"]

_FORMAT = 1


def threshold_at_tpr(scores: Values, *, tpr: float = 0.95, positive: Positive = "id") -> float:
    """The strictest threshold at which a share of one class's scores is on its side.

    Args:
        scores: [N] scores of the positive class, higher = more OOD; bool, integer or floating point.
        tpr: Share of them, in (0, 1].
        positive: "id": scores ≤ the threshold are accepted as in-distribution, for held-out ID scores. "ood": scores ≥
            it are flagged, for OOD scores.

    Returns:
        The ⌈tpr · N⌉-th smallest ("id") or largest ("ood") score, as `detection_metrics` has it in `threshold`. It is
        that of these N images; for a promise about others see `ScoreCalibration`.

    Raises:
        TypeError: Scores that are no numbers, or complex; `tpr` that is no number.
        ValueError: Scores that are empty, not 1-D or hold NaN; `tpr` or `positive` out of range.

    Example:
        >>> threshold_at_tpr(torch.arange(100))
        94.0
    """
    scores = checked_scores("scores", scores)
    tpr = checked_tpr(tpr)
    check_choice("positive", positive, Positive)
    count = ceil(decimal_fraction(tpr) * len(scores))
    return float(scores.sort().values[count - 1 if positive == "id" else len(scores) - count])


@dataclass(frozen=True, eq=False)
class ScoreCalibration:
    """Held-out in-distribution scores, against which others are judged (conformal outlier detection).

    If a new ID image and the N held-out ones are exchangeable – drawn alike, none of them trained on – then the p-value
    of the new one is at most α with a probability of at most α, for every N and every detector (Vovk et al. 2005; Bates
    et al. 2023). That is on average over held-out sets; one set may mislead, for which `threshold` has `confidence`.

    Example:
        >>> calibration = ScoreCalibration(torch.arange(99))
        >>> calibration.p_values(torch.tensor([50, 1000])).tolist()
        [0.5, 0.01]
        >>> calibration.threshold(0.05)
        94.0
    """

    id_scores: Tensor
    """[N] held-out ID scores, higher = more OOD: a tensor, an array or a list; kept sorted, as a float64 tensor."""

    def __post_init__(self) -> None:
        scores = checked_scores("id_scores", self.id_scores)
        object.__setattr__(self, "id_scores", scores.double().sort().values)

    def p_values(self, scores: Values) -> Tensor:
        """(1 + held-out scores ≥ score) / (N + 1): small for OOD images, and uniform or larger for ID images.

        Args:
            scores: Scores of any shape, on the device of the held-out ones; arrays and lists are moved there.

        Returns:
            float64 of the same shape, in [1 / (N + 1), 1].

        Raises:
            TypeError: Scores that are no numbers, or complex.
            ValueError: A score is NaN, or the scores are on another device.
        """
        found = as_scores("scores", scores)
        if isinstance(scores, Tensor) and found.device != self.id_scores.device:
            raise ValueError(f"scores must be on {self.id_scores.device} like id_scores, got {found.device}")
        if found.is_floating_point() and found.isnan().any():
            raise ValueError("scores must not hold NaN: it has no p-value")
        below = torch.searchsorted(self.id_scores, found.to(self.id_scores.device).double().contiguous())
        count = len(self.id_scores)
        return (1 + count - below).double() / (count + 1)

    def threshold(self, fpr: float, *, confidence: float | None = None) -> float:
        """The threshold above which images are flagged so that at most a share of ID images is.

        Args:
            fpr: Share of ID images that may be flagged, in (0, 1).
            confidence: None promises `fpr` on average over held-out sets: flagged is what has a p-value ≤ `fpr`. A
                number in (0, 1), such as 0.95, promises it for this held-out set with that probability (Wilks 1941):
                a larger threshold.

        Returns:
            A held-out score; images that score above it are flagged. +inf, where nothing is, if there are too few
            held-out scores for the promise.

        Raises:
            TypeError: An argument is no number.
            ValueError: An argument out of range.
        """
        fpr = checked_between("fpr", fpr)
        count = len(self.id_scores)
        if confidence is None:
            rank = floor(decimal_fraction(fpr) * (count + 1))
        else:
            rank = _tolerance_rank(count, fpr, checked_between("confidence", confidence))
        return inf if rank == 0 else float(self.id_scores[count - rank])

    def save(self, path: Path | str) -> None:
        """Write the scores to a file."""
        torch.save({"format": _FORMAT, "id_scores": self.id_scores.cpu()}, path)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read what `save` wrote; the scores are on the CPU.

        Raises:
            OSError: There is no such file, or it cannot be read.
            ValueError: The file is damaged, or holds something else.
        """
        wrong = f"{path} is no file of ScoreCalibration.save"
        try:
            content = torch.load(path, weights_only=True)
        except OSError:
            raise
        except Exception as error:  # a damaged file is answered by whatever its first wrong byte leads to
            raise ValueError(wrong) from error
        if not (isinstance(content, dict) and content.get("format") == _FORMAT and "id_scores" in content):
            raise ValueError(wrong)
        return cls(content["id_scores"])


def _tolerance_rank(count: int, fpr: float, confidence: float) -> int:
    """The largest k for which the k-th largest of `count` scores exceeds all but `fpr` of ID scores with `confidence`.

    It does not where fewer than k of them are among the highest `fpr`: P(Binomial(count, fpr) < k) ≤ 1 - confidence.
    """
    tail = 0.0
    for k in range(count + 1):
        choose = lgamma(count + 1) - lgamma(k + 1) - lgamma(count - k + 1)
        tail += exp(choose + k * log(fpr) + (count - k) * log1p(-fpr))
        if tail > 1 - confidence:
            return k
    return count
