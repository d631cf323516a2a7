"""Metrics of open-set recognition, which also count whether accepted images are classified correctly."""

from math import isfinite, nan
from warnings import warn

import torch

from fastood.metrics.detection import detection_metrics
from fastood.metrics.inputs import Values
from fastood.metrics.validation import checked_correct, checked_pair

__all__ = ["autc", "oscr"]

_WIDE = 1e290


def oscr(id_scores: Values, ood_scores: Values, *, correct: Values) -> float:
    """Compute the area under the open-set classification rate curve, OSCR.

    The curve of Dhamija et al. 2018 (https://arxiv.org/abs/1811.04110) is the fraction of ID images that are accepted
    and classified correctly over the fraction of OOD images accepted, for all thresholds. Its area is P(an ID image is
    correct and scores below an OOD image) + ½ P(correct and equal): the accuracy times the AUROC of the correctly
    classified images. The best value is 1; random scores give half the accuracy.

    Args:
        id_scores: `[N]` in-distribution scores, higher = more OOD; bool, integer or floating point, ±inf allowed.
        ood_scores: `[M]` OOD scores, same dtype and device.
        correct: bool `[N]`, whether each ID image was classified correctly.

    Returns:
        The area, in [0, accuracy].

    Raises:
        TypeError: If scores are not numeric, are complex or differ in dtype, or `correct` is not bool.
        ValueError: If scores are empty, not 1-D, hold NaN or are on different devices, or `correct` has another shape.

    Example:
        >>> import torch
        >>> oscr(torch.tensor([0.1, 0.2]), torch.tensor([0.3]), correct=torch.tensor([True, False]))
        0.5
    """
    id_scores, ood_scores = checked_pair(id_scores, ood_scores)
    right = id_scores[checked_correct(correct, id_scores)]
    if not len(right):
        return 0.0
    return float(detection_metrics(right, ood_scores).auroc) * (len(right) / len(id_scores))


def autc(id_scores: Values, ood_scores: Values) -> float:
    """Compute the area under the threshold curve, AUTC (Humblot-Renaux et al. 2023); lower is better.

    Scores of both sets are scaled together to [0, 1]; the mean of FPR and FNR is then integrated over thresholds,
    which is (mean ID score + 1 - mean OOD score) / 2. Unlike all other metrics of this package it depends on the
    scale of the scores: monotone transformations change it.

    Args:
        id_scores: `[N]` in-distribution scores, higher = more OOD; bool, integer or floating point.
        ood_scores: `[M]` OOD scores, same dtype and device.

    Returns:
        The area, in [0, 1]; NaN, with a warning, if all scores are equal or one is infinite: such scores cannot be
        scaled.

    Raises:
        TypeError: If scores are not numeric, are complex or differ in dtype.
        ValueError: If scores are empty, not 1-D, hold NaN or are on different devices.

    Example:
        >>> import torch
        >>> autc(torch.tensor([0.0, 1.0]), torch.tensor([3.0, 4.0]))
        0.125
    """
    id_scores, ood_scores = (scores.double() for scores in checked_pair(id_scores, ood_scores))
    extremes = torch.stack([*id_scores.aminmax(), *ood_scores.aminmax()]).tolist()
    low, high = min(extremes), max(extremes)
    if not (isfinite(low) and isfinite(high)):
        warn("autc is NaN: an infinite score cannot be scaled to [0, 1]", stacklevel=2)
        return nan
    if low == high:
        warn("autc is NaN: all scores are equal and cannot be scaled to [0, 1]", stacklevel=2)
        return nan
    if high - low < _WIDE:
        means = torch.stack([(scores - low).mean() for scores in (id_scores, ood_scores)]).tolist()
        id_mean, ood_mean = (mean / (high - low) for mean in means)
    else:
        # The range or a sum of finite scores may overflow, so everything is halved first.
        width = high / 2 - low / 2
        halved = [((scores / 2 - low / 2) / width).mean() for scores in (id_scores, ood_scores)]
        id_mean, ood_mean = torch.stack(halved).tolist()
    return float(id_mean + 1 - ood_mean) / 2
