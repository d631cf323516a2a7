"""Error bars of detection metrics: bootstrap intervals, and differences of two detectors on the same images."""

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite
from typing import Generic, Literal, TypeVar

import torch
from torch import Tensor

from fastood.metrics import jackknife
from fastood.metrics.counts import ThresholdCounts, count_at_thresholds
from fastood.metrics.delong import check_same_images
from fastood.metrics.validation import Positive, RankedPair, check_choice, check_tpr, ranked_pair
from fastood.ops.detection_metrics import RankingStatistics, ranking_statistics, resampled_statistics, sort_scores

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


def bootstrap_metrics(
    id_scores: Tensor,
    ood_scores: Tensor,
    *,
    generator: torch.Generator,
    replicates: int = 1000,
    level: float = 0.95,
    method: IntervalMethod = "percentile",
    resampling: Resampling = "multinomial",
    tpr: float = 0.95,
    positive: Positive = "ood",
) -> BootstrapResult[Interval]:
    """Intervals for the metrics of one detector: what other test images would have given.

    ID and OOD images are resampled apart, as counts over the scores, which are sorted once. The spread is that of the
    test images; it says nothing of training, which takes other seeds.

    "bca" shifts the quantiles for bias, the share of replicates below the estimate, and for acceleration, from the
    jackknife of both classes, whose values are exact and cost one pass. The acceleration of an FPR, read at a quantile,
    is no consistent estimate; its percentile interval is.

    Args:
        id_scores: [N] in-distribution scores, higher = more OOD; bool, integer or floating point, ±inf allowed.
        ood_scores: [M] OOD scores, same dtype and device.
        generator: Source of the replicates, on any device; the same state gives the same replicates on every device.
        replicates: Number of resamplings, at least 2.
        level: Confidence, in (0, 1).
        method: Kind of interval; "bca" needs two scores of each class.
        resampling: How images are drawn.
        tpr: True-positive rate for `fpr_at_tpr`, in (0, 1].
        positive: The positive class of `fpr_at_tpr`.

    Returns:
        Fractions, float64. The interval of a metric is one point where the metric cannot vary, such as of separated
        scores: 1,000 images without an error are not known to be without.

    Raises:
        TypeError: Scores that are no tensors, are complex, or differ in dtype.
        ValueError: Scores that are empty, not 1-D, hold NaN or lie on different devices; another argument out of range;
            a Poisson replicate without any image of a class.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> id_scores, ood_scores = torch.randn(500, generator=g), 1 + torch.randn(200, generator=g)
        >>> found = bootstrap_metrics(id_scores, ood_scores, generator=g).auroc
        >>> round(found.estimate, 2), round(found.low, 2), round(found.high, 2)
        (0.77, 0.73, 0.81)
    """
    _check_settings(replicates, level, method, resampling, tpr, positive)
    if method == "bca" and min(len(id_scores), len(ood_scores)) < 2:
        raise ValueError(
            f'method "bca" leaves each score out once and needs 2 of each class, got {len(id_scores)} ID and '
            f"{len(ood_scores)} OOD"
        )
    pair = ranked_pair(id_scores, ood_scores)
    resample = _Resample(_seed_from(generator), replicates, resampling, tpr, positive)
    observed, drawn = resample(pair)
    accelerations = _accelerations(id_scores, ood_scores, tpr, positive) if method == "bca" else {}
    intervals = {
        name: _interval(observed[name], values, level, accelerations.get(name)) for name, values in drawn.items()
    }
    return resample.result(intervals, level, method, len(id_scores), len(ood_scores))


def bootstrap_differences(
    id_scores: Tensor,
    ood_scores: Tensor,
    other_id_scores: Tensor,
    other_ood_scores: Tensor,
    *,
    generator: torch.Generator,
    replicates: int = 1000,
    level: float = 0.95,
    resampling: Resampling = "multinomial",
    tpr: float = 0.95,
    positive: Positive = "ood",
) -> BootstrapResult[Difference]:
    """Percentile intervals and p-values for the differences between two detectors of the same images.

    Every replicate draws images, and both detectors are measured on these: what the images have in common cancels, so
    that a difference can be certain between detectors whose own intervals overlap.

    Args:
        id_scores: [N] in-distribution scores of the first detector.
        ood_scores: [M] OOD scores of the first detector.
        other_id_scores: [N] scores of the second detector, of the same images in the same order; any dtype.
        other_ood_scores: [M] likewise.
        generator: As in `bootstrap_metrics`, like all that follow.
        replicates: Number of resamplings, at least 2; a p-value is at least 2 / (replicates + 1).
        level: Confidence, in (0, 1).
        resampling: How images are drawn.
        tpr: True-positive rate for `fpr_at_tpr`, in (0, 1].
        positive: The positive class of `fpr_at_tpr`.

    Raises:
        TypeError: As `bootstrap_metrics`.
        ValueError: As `bootstrap_metrics`, or other counts of images.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> id_images, ood_images = torch.randn(500, generator=g), 1 + torch.randn(200, generator=g)
        >>> noisy = [scores + torch.randn(len(scores), generator=g) for scores in (id_images, ood_images)]
        >>> found = bootstrap_differences(id_images, ood_images, *noisy, generator=g).auroc
        >>> found.low > 0, round(found.p_value, 3)
        (True, 0.002)
    """
    _check_settings(replicates, level, "percentile", resampling, tpr, positive)
    check_same_images(id_scores, ood_scores, other_id_scores, other_ood_scores)
    pairs = ranked_pair(id_scores, ood_scores), ranked_pair(other_id_scores, other_ood_scores)
    # Bad arguments have raised by now: the generator moves only for a call that draws.
    resample = _Resample(_seed_from(generator), replicates, resampling, tpr, positive)
    (first, first_drawn), (second, second_drawn) = map(resample, pairs)
    differences = {
        name: _difference(first[name] - second[name], first_drawn[name] - second_drawn[name], level) for name in first
    }
    return resample.result(differences, level, "percentile", len(id_scores), len(ood_scores))


@dataclass(frozen=True)
class _Resample:
    """The metrics of a detector and of its replicates; images are what is drawn, the same for every detector."""

    seed: int
    replicates: int
    resampling: Resampling
    tpr: float
    positive: Positive

    def __call__(self, pair: RankedPair) -> tuple[dict[str, float], dict[str, Tensor]]:
        id_keys, ood_keys = sort_scores(pair.id_scores), sort_scores(pair.ood_scores)
        observed = ranking_statistics(id_keys[None], ood_keys[None], tpr=(self.tpr,))
        drawn = resampled_statistics(
            id_keys,
            ood_keys,
            seed=self.seed,
            replicates=self.replicates,
            scheme=self.resampling,
            id_index=pair.id_scores.argsort(),
            ood_index=pair.ood_scores.argsort(),
            tpr=(self.tpr,),
        )
        empty = int(drawn.auroc.isnan().sum())
        if empty:
            raise ValueError(
                f'resampling "poisson" drew no image of a class in {empty} of {self.replicates} replicates: '
                f"{len(id_keys)} ID and {len(ood_keys)} OOD images are too few for it"
            )
        return {name: float(value) for name, value in self._named(observed).items()}, self._named(drawn)

    def result(
        self, found: dict[str, AnyInterval], level: float, method: IntervalMethod, id_count: int, ood_count: int
    ) -> BootstrapResult[AnyInterval]:
        """What was found, with what it depends on."""
        return BootstrapResult(
            auroc=found["auroc"],
            aupr_in=found["aupr_in"],
            aupr_out=found["aupr_out"],
            fpr_at_tpr=found["fpr_at_tpr"],
            detection_error=found["detection_error"],
            level=level,
            method=method,
            resampling=self.resampling,
            replicates=self.replicates,
            tpr=self.tpr,
            positive=self.positive,
            id_count=id_count,
            ood_count=ood_count,
        )

    def _named(self, statistics: RankingStatistics) -> dict[str, Tensor]:
        fpr = statistics.fpr_ood if self.positive == "ood" else statistics.fpr_id
        return {
            "auroc": statistics.auroc,
            "aupr_in": statistics.aupr_id,
            "aupr_out": statistics.aupr_ood,
            "fpr_at_tpr": fpr[:, 0],
            "detection_error": statistics.detection_error,
        }


def _interval(estimate: float, drawn: Tensor, level: float, acceleration: float | None) -> Interval:
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


def _difference(estimate: float, drawn: Tensor, level: float) -> Difference:
    interval = _interval(estimate, drawn, level, None)
    rarer = min(int((drawn <= 0).sum()), int((drawn >= 0).sum()))
    p_value = min(1.0, 2 * (1 + rarer) / (len(drawn) + 1))
    return Difference(estimate=estimate, low=interval.low, high=interval.high, std=interval.std, p_value=p_value)


def _accelerations(id_scores: Tensor, ood_scores: Tensor, tpr: float, positive: Positive) -> dict[str, float]:
    ood = count_at_thresholds(id_scores, ood_scores, positive="ood")
    ind = count_at_thresholds(id_scores, ood_scores, positive="id")
    of_class = ood if positive == "ood" else ind
    left_out: dict[str, tuple[Callable[[ThresholdCounts], jackknife.LeftOut], ThresholdCounts]] = {
        "auroc": (jackknife.auroc_without, ood),
        "aupr_in": (jackknife.average_precision_without, ind),
        "aupr_out": (jackknife.average_precision_without, ood),
        "fpr_at_tpr": (lambda counts: jackknife.fpr_without(counts, tpr), of_class),
        "detection_error": (jackknife.detection_error_without, ood),
    }
    return {name: jackknife.acceleration(without(counts), counts) for name, (without, counts) in left_out.items()}


def _seed_from(generator: torch.Generator) -> int:
    return int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))


def _check_settings(
    replicates: int, level: float, method: IntervalMethod, resampling: Resampling, tpr: float, positive: Positive
) -> None:
    if replicates < 2:
        raise ValueError(f"replicates must be at least 2, got {replicates}")
    if not (isfinite(level) and 0 < level < 1):
        raise ValueError(f"level must lie in (0, 1), got {level}")
    check_choice("method", method, IntervalMethod)
    check_choice("resampling", resampling, Resampling)
    check_tpr(tpr)
    check_choice("positive", positive, Positive)
