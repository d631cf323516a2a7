"""What the bootstrap returns: intervals from replicates."""

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
"""Quantiles of the replicates; or those corrected for bias and acceleration (Efron 1987), from an exact jackknife."""

Resampling = Literal["multinomial", "poisson"]
"""As many images as there are, with replacement; or each image a Poisson(1) number of times."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A metric with its error bar."""

    estimate: float
    """The metric of all images."""
    low: float
    high: float
    std: float
    """Standard deviation of the replicates: the standard error."""


@dataclass(frozen=True, kw_only=True)
class Difference(Interval):
    """A metric's difference between two detectors, first less second."""

    p_value: float
    """Two-sided: twice the smaller share of replicates, the observed one among them, on either side of 0; at most 1."""


AnyInterval = TypeVar("AnyInterval", bound=Interval)


@dataclass(frozen=True, kw_only=True)
class BootstrapResult(Generic[AnyInterval]):
    """Intervals (or differences) of the metrics of `detection_metrics`, with what they depend on."""

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
    """The interval of an estimate from its replicates [R]: percentiles, or BCa with an acceleration."""
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64, device=drawn.device)
    if acceleration is not None:
        below = float((drawn < estimate).double().mean() + (drawn == estimate).double().mean() / 2)
        # An estimate outside of its replicates would be infinitely biased; the share is kept within what R can tell.
        smallest = 1 / (len(drawn) + 1)
        bias = torch.special.ndtri(tails.new_tensor(min(max(below, smallest), 1 - smallest)))
        shifted = bias + torch.special.ndtri(tails)
        tails = torch.special.ndtr(bias + shifted / (1 - acceleration * shifted))
    low, high = drawn.quantile(tails).tolist()
    return Interval(estimate=estimate, low=low, high=high, std=float(drawn.std()))


def difference_of(estimate: float, drawn: Tensor, level: float) -> Difference:
    """The interval and the p-value of a difference from its replicates [R]."""
    interval = interval_of(estimate, drawn, level, None)
    rarer = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    p_value = min(1.0, 2 * (1 + rarer) / (len(drawn) + 1))
    return Difference(estimate=estimate, low=interval.low, high=interval.high, std=interval.std, p_value=p_value)
