"""Thresholds for deployment: held-out images guarantee the rate at which in-distribution images are flagged."""

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
    """Return the strictest threshold that reaches a true-positive rate.

    Args:
        scores: `[N]` scores of the positive class, higher = more OOD; bool, integer or floating point.
        tpr: Fraction of these scores to accept or flag, in (0, 1].
        positive: "id": scores ≤ the threshold are accepted as in-distribution, for held-out ID scores. "ood": scores ≥
            it are flagged, for OOD scores.

    Returns:
        The ⌈tpr · N⌉-th smallest ("id") or largest ("ood") score, equal to `threshold` of
        `detection_metrics`. It describes these N images; for a guarantee about new images see `ScoreCalibration`.

    Raises:
        TypeError: If scores are not numeric or complex, or `tpr` is not a number.
        ValueError: If scores are empty, not 1-D or hold NaN, or `tpr` or `positive` is out of range.

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
    """Calibration by held-out in-distribution scores (conformal outlier detection).

    If a new ID image and the N held-out ones are exchangeable – drawn alike, none of them trained on – then the p-value
    of the new one is at most α with a probability of at most α, for every N and every detector (Vovk et al. 2005; Bates
    et al. 2023). The guarantee holds on average over held-out sets; `threshold` with `confidence` gives a guarantee for
    the given set.

    Example:
        >>> calibration = ScoreCalibration(torch.arange(99))
        >>> calibration.p_values(torch.tensor([50, 1000])).tolist()
        [0.5, 0.01]
        >>> calibration.threshold(0.05)
        94.0
    """

    id_scores: Tensor
    """`[N]` held-out ID scores, higher = more OOD: a tensor, an array or a list; kept sorted, as a float64 tensor."""

    def __post_init__(self) -> None:
        scores = checked_scores("id_scores", self.id_scores)
        object.__setattr__(self, "id_scores", scores.double().sort().values)

    def p_values(self, scores: Values) -> Tensor:
        """Return p-values: small for OOD images, uniform or larger for ID images.

        The p-value of a score is (1 + number of held-out scores ≥ score) / (N + 1).

        Args:
            scores: Scores of any shape, on the device of the held-out ones; arrays and lists are moved there.

        Returns:
            float64 of the same shape, in [1 / (N + 1), 1]. On a CUDA device, where a check would wait, NaN for a score
            that is NaN.

        Raises:
            TypeError: If scores are not numeric, or complex.
            ValueError: If a score is NaN, on the CPU, or the scores are on another device.
        """
        values = as_scores("scores", scores)
        if isinstance(scores, Tensor) and values.device != self.id_scores.device:
            raise ValueError(f"scores must be on {self.id_scores.device} like id_scores, got {values.device}")
        values = values.to(self.id_scores.device)
        if values.device.type == "cpu" and values.is_floating_point() and values.isnan().any():
            raise ValueError("scores must not hold NaN: it has no p-value")
        # Held-out scores equal to the score count as ≥ it, the conservative side.
        below = torch.searchsorted(self.id_scores, values.double().contiguous())
        count = len(self.id_scores)
        of_each = (1 + count - below).double() / (count + 1)
        return of_each.masked_fill(values.isnan(), torch.nan) if values.is_floating_point() else of_each

    def threshold(self, fpr: float, *, confidence: float | None = None) -> float:
        """Return the threshold above which at most a given fraction of ID images is flagged.

        Args:
            fpr: Fraction of ID images that may be flagged, in (0, 1).
            confidence: With None, `fpr` holds on average over held-out sets: images with a p-value ≤ `fpr` are flagged.
                A number in (0, 1), such as 0.95, gives a larger threshold, at which `fpr` holds for this held-out set
                with that probability (Wilks 1941).

        Returns:
            A held-out score; images that score above it are flagged. +inf, at which no image is flagged, if there are
            too few held-out scores for the guarantee.

        Raises:
            TypeError: If an argument is not a number.
            ValueError: If an argument is out of range.
        """
        fpr = checked_between("fpr", fpr)
        count = len(self.id_scores)
        if confidence is None:
            rank = floor(decimal_fraction(fpr) * (count + 1))
        else:
            rank = _tolerance_rank(count, fpr, checked_between("confidence", confidence))
        return inf if rank == 0 else float(self.id_scores[count - rank])

    def save(self, path: Path | str) -> None:
        """Write the scores to a file, readable by `load`."""
        torch.save({"format": _FORMAT, "id_scores": self.id_scores.cpu()}, path)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a file written by `save`; the scores are on the CPU.

        Raises:
            OSError: If there is no such file, or it cannot be read.
            ValueError: If the file is damaged, or was not written by `ScoreCalibration.save`.
        """
        wrong = f"{path} was not written by ScoreCalibration.save, or is damaged"
        try:
            content = torch.load(path, weights_only=True)
        except OSError:
            raise
        except Exception as error:  # torch.load raises various types for a damaged file
            raise ValueError(wrong) from error
        if not (isinstance(content, dict) and content.get("format") == _FORMAT and "id_scores" in content):
            raise ValueError(wrong)
        return cls(content["id_scores"])


def _tolerance_rank(count: int, fpr: float, confidence: float) -> int:
    """Return the largest k for which the k-th largest of `count` scores is exceeded by at most `fpr` of the ID scores.

    This fails, with a probability of at most 1 - `confidence`, if fewer than k of them are among the highest `fpr` of
    all ID scores: P(Binomial(count, fpr) < k) ≤ 1 - confidence.
    """
    tail = 0.0
    for k in range(count + 1):
        # In logarithms: binomial coefficients of 10⁴ scores overflow float64.
        choose = lgamma(count + 1) - lgamma(k + 1) - lgamma(count - k + 1)
        tail += exp(choose + k * log(fpr) + (count - k) * log1p(-fpr))
        if tail > 1 - confidence:
            return k
    return count
