"""Integer confusion counts at each distinct score, from which curves and rules are computed."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastood.metrics.inputs import Values
from fastood.metrics.ranking import ranked_pair
from fastood.metrics.validation import Positive, check_choice
from fastood.ops.detection_metrics import keys_to_scores, roc_counts, sort_scores

__all__ = ["ThresholdCounts", "count_at_thresholds", "gains"]


@dataclass(frozen=True, kw_only=True)
class ThresholdCounts:
    """Confusion counts at the T distinct scores, strictest threshold first; counts are non-decreasing along T.

    With OOD positive, an image is flagged when its score is ≥ the threshold and thresholds descend; with ID
    positive, when its score is ≤ the threshold and thresholds ascend. Equal scores share one threshold:
    ties are never split.
    """

    positive: Positive
    thresholds: Tensor
    """float64 `[T]`."""
    true_positives: Tensor
    """int64 `[T]`, flagged images of the positive class."""
    false_positives: Tensor
    """int64 `[T]`, flagged images of the other class."""
    positives: int
    """Images of the positive class, P."""
    negatives: int
    """Images of the other class, N."""


def count_at_thresholds(id_scores: Values, ood_scores: Values, *, positive: Positive = "ood") -> ThresholdCounts:
    """Count true and false positives at every distinct score.

    Args:
        id_scores: `[N]` in-distribution scores, higher = more OOD; bool, integer or floating point. ±inf is a
            score like any other.
        ood_scores: `[M]` OOD scores, same dtype and device.
        positive: The positive class, "ood" or "id".

    Returns:
        The counts, on the device of the scores.

    Raises:
        TypeError: If scores are not numeric, are complex or differ in dtype.
        ValueError: If scores are empty, not 1-D, hold NaN or are on different devices, or `positive` is unknown.

    Example:
        >>> counts = count_at_thresholds(torch.tensor([0.1, 0.4]), torch.tensor([0.4, 0.9]))
        >>> counts.true_positives.tolist(), counts.false_positives.tolist()
        ([1, 2, 2], [0, 1, 2])
    """
    check_choice("positive", positive, Positive)
    pair = ranked_pair(id_scores, ood_scores)
    id_count, ood_count = len(pair.id_scores), len(pair.ood_scores)
    counts = roc_counts(sort_scores(pair.id_scores), sort_scores(pair.ood_scores))
    thresholds = pair.thresholds(keys_to_scores(counts.keys))
    if positive == "ood":
        return ThresholdCounts(
            positive=positive,
            thresholds=thresholds,
            true_positives=counts.ood,
            false_positives=counts.id,
            positives=ood_count,
            negatives=id_count,
        )
    return ThresholdCounts(
        positive=positive,
        thresholds=thresholds.flip(0),
        true_positives=_at_most(counts.id, id_count),
        false_positives=_at_most(counts.ood, ood_count),
        positives=id_count,
        negatives=ood_count,
    )


def gains(cumulative: Tensor) -> Tensor:
    """Return the counts within each tie group `[T]` from the cumulative counts."""
    return cumulative.diff(prepend=cumulative.new_zeros(1))


def _at_most(at_least: Tensor, total: int) -> Tensor:
    """Return counts ≤ each threshold `[T]`, thresholds ascending, from counts ≥ it, thresholds descending."""
    above = torch.cat((at_least.new_zeros(1), at_least[:-1]))
    return (total - above).flip(0)
