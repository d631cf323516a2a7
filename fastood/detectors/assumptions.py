"""Warnings where a score means nothing: features or logits that are not what a detector takes them for."""

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
"""Rows needed to say anything of logits."""
ENOUGH_ROWS = 100
"""Rows needed to say that logits have the wrong sign."""
NEGATIVE_SHARE = 0.01
"""Share of the features' sizes that may be below 0 where they are to be non-negative: leaky ReLUs leave less."""

Reading = Literal["softmax", "energy", "largest"]
"""Quantity that a detector of logits takes of them: the softmax, the logsumexp or the largest."""


def warn(detector: str, seen: str, remedy: str) -> None:
    """Warn of what a detector has seen, and say what helps."""
    warnings.warn(f"{detector}: {seen}. {remedy}", stacklevel=3)


def warn_unless_logits(detector: str, logits: Tensor, reading: Reading) -> bool:
    """Warn where rows `[n, K]` are no logits, or say nothing; False where there are too few rows to tell.

    Args:
        detector: Its name.
        logits: Float64 rows that it is to score.
        reading: What it takes of them.
    """
    if logits.shape[1] == 1 and reading == "softmax":
        remedy = "Give the two logits (0, v) of a network with one output v, or take MaxLogit"
        warn(detector, "there is one logit, and the softmax of one class is 1 whatever it is", remedy)
        return True
    if logits.shape[1] == 1:
        return True
    if len(logits) < FEW_ROWS:
        return False
    rows = logits[logits.isfinite().all(1)]
    if len(rows) < FEW_ROWS:
        return False
    if bool((rows >= 0).all()) and bool(((rows.sum(1) - 1).abs() < 1e-3).all()):
        remedy = "Give the network without its softmax, or the logarithm of what it puts out"
        warn(detector, "the logits are at least 0 and add up to 1 in each row, as probabilities do", remedy)
    elif reading == "energy" and bool((rows.logsumexp(1).abs() < 0.02).all()):
        remedy = "Give the network without its log-softmax, or take MaxSoftmax, Entropy or GEN"
        warn(detector, "the logits are log-probabilities, of which the energy is 0 in each row", remedy)
    return True


def warn_if_sign_is_wrong(detector: str, logits: Tensor, labels: Tensor) -> None:
    """Warn where the least logits of rows `[n, K]` are those of their classes, as of distances taken for logits."""
    inside = labels < logits.shape[1]
    if logits.shape[1] < 2 or int(inside.sum()) < ENOUGH_ROWS:
        return
    known, wanted = logits[inside], labels[inside]
    least, largest = ((found == wanted).double().mean() for found in (known.argmin(1), known.argmax(1)))
    if least > 2 / 3 and largest < least / 2:
        warn(
            detector,
            f"the least logit is that of the label in {least:.0%} of the training rows, the largest in {largest:.0%}: "
            "logits have the wrong sign, and scores would rank the wrong way round",
            "Give their negative: distances are logits with a minus sign",
        )


def warn_unless_non_negative(detector: str, features: Tensor) -> None:
    """Warn where features `[n, d]` that are taken for those after a ReLU are not."""
    negative, size = features.clamp_max(0).abs().sum(), features.abs().sum()
    if negative > NEGATIVE_SHARE * size:
        warn(
            detector,
            f"features must be at least 0, as after a ReLU, got {(features < 0).double().mean():.0%} below it, the "
            f"least {float(features.min()):.3g}: the sums that it divides may be near 0 or negative, and the score of "
            "any size",
            "Give features after the last ReLU, or take a detector without this assumption: EnergyBased, ViM, KNN",
        )
