"""Warnings for logits or features that violate the assumptions of a detector, and so make its score meaningless."""

from __future__ import annotations

import warnings
from typing import Literal

from torch import Tensor

__all__ = [
    "ENOUGH_ROWS",
    "FEW_ROWS",
    "NEGATIVE_SHARE",
    "Reading",
    "warn",
    "warn_if_sign_is_wrong",
    "warn_unless_logits",
    "warn_unless_non_negative",
]

FEW_ROWS = 2
"""Minimum number of rows for the check of logits."""
ENOUGH_ROWS = 100
"""Minimum number of rows for the check of the sign of logits."""
NEGATIVE_SHARE = 0.01
"""Largest fraction of the absolute sum of features that may be negative; leaky ReLUs stay below it."""

Reading = Literal["softmax", "energy", "largest"]
"""Quantity of the logits that a detector scores: the softmax, the logsumexp or the largest logit."""


def warn(detector: str, seen: str, remedy: str) -> None:
    """Warn that a detector has seen unsuitable rows, and name a remedy."""
    warnings.warn(f"{detector}: {seen}. {remedy}", stacklevel=3)


def warn_unless_logits(detector: str, logits: Tensor, reading: Reading) -> bool:
    """Warn if rows `[n, K]` are not logits.

    Args:
        detector: Name of the detector.
        logits: Rows to score, float64 `[n, K]`.
        reading: Quantity that the detector scores.

    Returns:
        Whether the check is done; False if there are too few rows, so that the next batch has to be checked.
    """
    if logits.shape[1] == 1 and reading == "softmax":
        remedy = "Pass the two logits (0, v) of a network with one output v, or use MaxLogit"
        warn(detector, "there is one logit, and the softmax of one class is always 1", remedy)
        return True
    if logits.shape[1] == 1:
        return True
    if len(logits) < FEW_ROWS:
        return False
    rows = logits[logits.isfinite().all(1)]
    if len(rows) < FEW_ROWS:
        return False
    if bool((rows >= 0).all()) and bool(((rows.sum(1) - 1).abs() < 1e-3).all()):
        remedy = "Pass the network without its softmax, or the logarithm of its output"
        warn(detector, "the logits are at least 0 and add up to 1 in each row, as probabilities do", remedy)
    elif reading == "energy" and bool((rows.logsumexp(1).abs() < 0.02).all()):
        remedy = "Pass the network without its log-softmax, or use MaxSoftmax, Entropy or GEN"
        warn(detector, "the logits are log-probabilities, whose energy is 0 in each row", remedy)
    return True


def warn_if_sign_is_wrong(detector: str, logits: Tensor, labels: Tensor) -> None:
    """Warn if the smallest logit of most rows `[n, K]` is that of its label, as with distances passed as logits."""
    inside = labels < logits.shape[1]
    if logits.shape[1] < 2 or int(inside.sum()) < ENOUGH_ROWS:
        return
    rows, classes = logits[inside], labels[inside]
    least, largest = ((index == classes).double().mean() for index in (rows.argmin(1), rows.argmax(1)))
    # Thresholds that neither chance nor a poor classifier reaches.
    if least > 2 / 3 and largest < least / 2:
        warn(
            detector,
            f"the smallest logit is the label's in {least:.0%} of the training rows, the largest in {largest:.0%}: "
            "logits have the wrong sign, which reverses the ranking of scores",
            "Pass the negative: distances are logits with a minus sign",
        )


def warn_unless_non_negative(detector: str, features: Tensor) -> None:
    """Warn if features `[n, d]` that should be non-negative, as after a ReLU, are not."""
    negative, size = features.clamp_max(0).abs().sum(), features.abs().sum()
    if negative > NEGATIVE_SHARE * size:
        warn(
            detector,
            f"features must be at least 0, as after a ReLU, got {(features < 0).double().mean():.0%} below 0, the "
            f"least {float(features.min()):.3g}: the score divides sums of features that may be near 0 or negative",
            "Pass features after the last ReLU, or use a detector without this assumption: EnergyBased, ViM, KNN",
        )
