"""Metrics of open-set recognition, where it matters too whether an accepted image is classified correctly."""

from math import nan

import torch
from torch import Tensor

from fastood.metrics.detection import detection_metrics
from fastood.metrics.validation import check_comparable, check_correct, check_scores


def oscr(id_scores: Tensor, ood_scores: Tensor, *, correct: Tensor) -> float:
    """Area under the open-set classification rate curve (Dhamija et al. 2018).

    The curve is the share of ID images accepted and classified correctly against the share of OOD images accepted,
    over all thresholds. Its area is P(an ID image is correct and scores below an OOD image) + ½ P(correct and equal):
    the accuracy times the AUROC of the correct ones. 1 is perfect; scores that say nothing get half the accuracy.

    Args:
        id_scores: [N] in-distribution scores, higher = more OOD; bool, integer or floating point, ±inf allowed.
        ood_scores: [M] OOD scores, same dtype and device.
        correct: bool [N], whether each ID image was classified correctly.

    Returns:
        The area, in [0, accuracy].

    Raises:
        TypeError: Scores that are no tensors, are complex, or differ in dtype; `correct` not bool.
        ValueError: Scores that are empty, not 1-D, hold NaN or lie on different devices; another shape of `correct`.

    Example:
        >>> oscr(torch.tensor([0.1, 0.2]), torch.tensor([0.3]), correct=torch.tensor([True, False]))
        0.5
    """
    _check_pair(id_scores, ood_scores)
    check_correct(correct, id_scores)
    right = id_scores[correct]
    if not len(right):
        return 0.0
    return float(detection_metrics(right, ood_scores).auroc) * (len(right) / len(id_scores))


def autc(id_scores: Tensor, ood_scores: Tensor) -> float:
    """Area under the threshold curve (Humblot-Renaux et al. 2023): lower is better.

    Scores of both sets are scaled together to [0, 1]; the mean of FPR and FNR is then integrated over thresholds,
    which is (mean ID score + 1 - mean OOD score) / 2. Unlike every other metric here it depends on the scale of the
    scores: a monotone map changes it.

    Args:
        id_scores: [N] in-distribution scores, higher = more OOD; bool, integer or floating point.
        ood_scores: [M] OOD scores, same dtype and device.

    Returns:
        The area, in [0, 1]; NaN where scores are all equal or infinite, which cannot be scaled.

    Raises:
        TypeError: Scores that are no tensors, are complex, or differ in dtype.
        ValueError: Scores that are empty, not 1-D, hold NaN or lie on different devices.

    Example:
        >>> autc(torch.tensor([0.0, 1.0]), torch.tensor([3.0, 4.0]))
        0.125
    """
    _check_pair(id_scores, ood_scores)
    low = min(float(id_scores.min()), float(ood_scores.min()))
    width = max(float(id_scores.max()), float(ood_scores.max())) - low
    if not 0 < width < torch.inf:
        return nan
    id_mean, ood_mean = (float((scores.double() - low).mean()) / width for scores in (id_scores, ood_scores))
    return (id_mean + 1 - ood_mean) / 2


def _check_pair(id_scores: Tensor, ood_scores: Tensor) -> None:
    check_scores("id_scores", id_scores)
    check_scores("ood_scores", ood_scores)
    check_comparable("id_scores", id_scores, "ood_scores", ood_scores)
