"""Results of the bootstrap: intervals and p-values from replicates."""

from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor

from fastood.metrics.validation import Positive

__all__ = [
    "AnyInterval",
    "BootstrapResult",
    "Difference",
    "Interval",
    "IntervalMethod",
    "Resampling",
    "difference_of",
    "interval_of",
]

IntervalMethod = Literal["percentile", "bca"]
"""Quantiles of the replicates, or quantiles corrected for bias and acceleration (BCa, Efron 1987)."""

Resampling = Literal["multinomial", "poisson"]
"""Resampling scheme: N of N images with replacement, or each image a Poisson(1) number of times."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """Metric with its bootstrap interval."""

    estimate: float
    """Metric of the observed images."""
    low: float
    high: float
    std: float
    """Standard error: the standard deviation of the replicates."""


@dataclass(frozen=True, kw_only=True)
class Difference(Interval):
    """Difference of a metric between two detectors, first minus second."""

    p_value: float
    """Two-sided p-value: twice the smaller fraction of replicates (and the observed one) on a side of 0; at most 1."""


AnyInterval = TypeVar("AnyInterval", bound=Interval)


@dataclass(frozen=True, kw_only=True)
class BootstrapResult(Generic[AnyInterval]):
    """Intervals (or differences) of the metrics of `detection_metrics`, with the settings that they depend on."""

    auroc: AnyInterval
    aupr_in: AnyInterval
    aupr_out: AnyInterval
    fpr_at_tpr: AnyInterval
    """FPR at the first threshold that reaches `tpr`."""
    detection_error: AnyInterval
    level: float
    """Confidence of the intervals."""
    method: IntervalMethod
    resampling: Resampling
    replicates: int
    tpr: float
    positive: Positive
    id_count: int
    ood_count: int

    @property
    def aupr(self) -> AnyInterval:
        """AUPR of the positive class."""
        return self.aupr_out if self.positive == "ood" else self.aupr_in


def interval_of(estimate: float, drawn: Tensor, level: float, acceleration: float | None) -> Interval:
    """Return the interval of an estimate from its replicates `[R]`: percentiles, or BCa if there is an acceleration."""
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64, device=drawn.device)
    if acceleration is not None:
        below = float((drawn < estimate).double().mean() + (drawn == estimate).double().mean() / 2)
        # An estimate outside of its replicates would have an infinite bias: the share is clamped to 1 / (R + 1).
        smallest = 1 / (len(drawn) + 1)
        bias = torch.special.ndtri(tails.new_tensor(min(max(below, smallest), 1 - smallest)))
        shifted = bias + torch.special.ndtri(tails)
        tails = torch.special.ndtr(bias + shifted / (1 - acceleration * shifted))
    low, high = drawn.quantile(tails).tolist()
    return Interval(estimate=estimate, low=low, high=high, std=float(drawn.std()))


def difference_of(estimate: float, drawn: Tensor, level: float) -> Difference:
    """Return the interval and the p-value of a difference from its replicates `[R]`."""
    interval = interval_of(estimate, drawn, level, None)
    rarer = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    # The observed sample counts as one replicate (+ 1), so that the p-value is never 0.
    p_value = min(1.0, 2 * (1 + rarer) / (len(drawn) + 1))
    return Difference(estimate=estimate, low=interval.low, high=interval.high, std=interval.std, p_value=p_value)
