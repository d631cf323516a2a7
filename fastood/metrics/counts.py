"""What every detection metric is read from: integer counts at each distinct score."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Literal, get_args

import torch
from torch import Tensor

Positive = Literal["ood", "id"]
"""The class whose detection is measured: most papers take OOD, some (energy, ODIN, Mahalanobis) take ID."""


@dataclass(frozen=True, kw_only=True)
class ThresholdCounts:
    """Confusion counts at the T distinct scores, strictest threshold first: counts never fall along T.

    With OOD positive, an image is flagged when its score is ≥ the threshold and thresholds descend; with ID
    positive, when its score is ≤ the threshold and thresholds ascend. Equal scores share one threshold:
    ties are never split.
    """

    thresholds: Tensor
    """[T], the dtype of the scores (bool as uint8, halves as float64)."""
    true_positives: Tensor
    """int64 [T], flagged images of the positive class."""
    false_positives: Tensor
    """int64 [T], flagged images of the other class."""
    positives: int
    """Images of the positive class, P."""
    negatives: int
    """Images of the other class, N."""


def count_at_thresholds(id_scores: Tensor, ood_scores: Tensor, *, positive: Positive = "ood") -> ThresholdCounts:
    """Counts true and false positives at every distinct score.

    Args:
        id_scores: [N] in-distribution scores, higher = more OOD; bool, integer or floating point. ±inf is a
            score like any other.
        ood_scores: [M] OOD scores, same dtype and device.
        positive: The positive class, "ood" or "id".

    Returns:
        The counts, on the device of the scores.

    Raises:
        TypeError: Scores that are no tensors, are complex, or differ in dtype.
        ValueError: Scores that are empty, not 1-D, hold NaN or lie on different devices; an unknown
            `positive`.

    Example:
        >>> counts = count_at_thresholds(torch.tensor([0.1, 0.4]), torch.tensor([0.4, 0.9]))
        >>> counts.true_positives.tolist(), counts.false_positives.tolist()
        ([1, 2, 2], [0, 1, 2])
    """
    if positive not in get_args(Positive):
        raise ValueError(f'positive must be "ood" or "id", got {positive!r}')
    check_scores("id_scores", id_scores)
    check_scores("ood_scores", ood_scores)
    check_comparable("id_scores", id_scores, "ood_scores", ood_scores)
    id_keys = _sort_keys(id_scores)
    ood_keys = _sort_keys(ood_scores)
    ascending = torch.cat((id_keys, ood_keys)).sort().values
    is_first = torch.ones_like(ascending, dtype=torch.bool)
    is_first[1:] = ascending[1:] != ascending[:-1]
    thresholds = ascending[is_first]
    if positive == "ood":
        thresholds = thresholds.flip(0)
        ood_flagged, id_flagged = (len(keys) - torch.searchsorted(keys, thresholds) for keys in (ood_keys, id_keys))
        true_positives, false_positives = ood_flagged, id_flagged
    else:
        ood_flagged, id_flagged = (torch.searchsorted(keys, thresholds, right=True) for keys in (ood_keys, id_keys))
        true_positives, false_positives = id_flagged, ood_flagged
    return ThresholdCounts(
        thresholds=thresholds,
        true_positives=true_positives,
        false_positives=false_positives,
        positives=len(ood_keys) if positive == "ood" else len(id_keys),
        negatives=len(id_keys) if positive == "ood" else len(ood_keys),
    )


def check_scores(name: str, scores: Tensor) -> None:
    """Refuses what cannot be ranked.

    Args:
        name: The argument's name, for the error message.
        scores: [N] bool, integer or floating-point scores, N ≥ 1, no NaN.

    Raises:
        TypeError: Not a tensor, or complex.
        ValueError: Empty, not 1-D, or holding NaN.
    """
    if not isinstance(scores, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(scores).__name__}")
    if scores.is_complex():
        raise TypeError(f"{name} must be real, got {scores.dtype}")
    if scores.ndim != 1:
        raise ValueError(f"{name} must be 1-D [N], got shape {tuple(scores.shape)}")
    if not len(scores):
        raise ValueError(f"{name} is empty; a metric needs at least one score of each class")
    nan_count = int(scores.isnan().sum())
    if nan_count:
        raise ValueError(f"{name} holds {nan_count} NaN among its {len(scores)} scores; NaN has no rank")


def check_comparable(name: str, scores: Tensor, other_name: str, other: Tensor) -> None:
    """Refuses two sets of scores between which ties are not exact, or which lie on different devices.

    Raises:
        TypeError: Different dtypes; one number rounded to two precisions would no longer tie.
        ValueError: Different devices.
    """
    if scores.dtype != other.dtype:
        raise TypeError(f"{name} and {other_name} must share one dtype, got {scores.dtype} and {other.dtype}")
    if scores.device != other.device:
        raise ValueError(f"{name} and {other_name} must share one device, got {scores.device} and {other.device}")


def _sort_keys(scores: Tensor) -> Tensor:
    """[N] sorted: floats as float64 (exact), bool as uint8, other integers as they are."""
    if scores.dtype == torch.bool:
        scores = scores.to(torch.uint8)
    elif scores.is_floating_point():
        scores = scores.to(torch.float64)
    return scores.detach().sort().values


def decimal_fraction(value: float) -> Fraction:
    """The number that was typed: 0.1 becomes 1/10, not its binary neighbour, so that 0.1 · 100 is 10.

    Example:
        >>> decimal_fraction(0.95)
        Fraction(19, 20)
    """
    return Fraction(repr(float(value)))
