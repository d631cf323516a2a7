"""Error bars of detection metrics: bootstrap intervals, and differences of two detectors on the same images."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastood.metrics.delong import checked_pairs
from fastood.metrics.inputs import Values
from fastood.metrics.intervals import (
    AnyInterval,
    BootstrapResult,
    Difference,
    Interval,
    IntervalMethod,
    Resampling,
    difference_of,
    interval_of,
)
from fastood.metrics.jackknife import (
    LeftOut,
    acceleration,
    auroc_without,
    average_precision_without,
    detection_error_without,
    fpr_without,
)
from fastood.metrics.ranking import RankedPair, ranked
from fastood.metrics.threshold_counts import ThresholdCounts, count_at_thresholds
from fastood.metrics.validation import (
    Positive,
    check_choice,
    checked_between,
    checked_pair,
    checked_positive,
    checked_tpr,
)
from fastood.ops._arguments import as_integer, check_generator, decimal_fraction
from fastood.ops.detection_metrics import RankingStatistics, resampled_statistics, sort_scores
from fastood.ops.resampling import most_repeats

__all__ = ["bootstrap_differences", "bootstrap_metrics"]


def bootstrap_metrics(
    id_scores: Values,
    ood_scores: Values,
    *,
    generator: torch.Generator,
    replicates: int = 1000,
    level: float = 0.95,
    method: IntervalMethod = "percentile",
    resampling: Resampling = "multinomial",
    tpr: float = 0.95,
    positive: Positive = "ood",
    ood_per_id: float | None = None,
) -> BootstrapResult[Interval]:
    """Compute bootstrap intervals for the metrics of one detector.

    ID and OOD images are resampled separately, as counts over the scores, which are sorted once. The intervals describe
    the variation over test images. They do not include the variation over trainings: train with several seeds for that.

    "bca" (Efron 1987) corrects the quantiles for bias, the fraction of replicates below the estimate, and for
    acceleration, estimated by an exact jackknife of both classes in one pass. It is the default of
    `scipy.stats.bootstrap`; percentiles do not correct for the skew of metrics near 0 or 1. The acceleration of an FPR,
    which is read at a quantile, is not a consistent estimate: use "percentile" for FPRs.

    Args:
        id_scores: `[N]` in-distribution scores, higher = more OOD; bool, integer or floating point, ±inf allowed.
        ood_scores: `[M]` OOD scores, same dtype and device.
        generator: Source of the replicates, on any device; the same state gives the same replicates on every device.
        replicates: Number of resamplings, at least 2.
        level: Confidence, in (0, 1).
        method: Kind of interval; "bca" needs two scores of each class.
        resampling: Resampling scheme of the images.
        tpr: True-positive rate for `fpr_at_tpr`, in (0, 1].
        positive: The positive class of `fpr_at_tpr`.
        ood_per_id: OOD images per ID image for which AUPR is stated, as in `pr_curve`, to within 0.1 %; by default the
            ratio M / N of the scores. Must be None for "bca".

    Returns:
        Fractions, float64. If a metric has one value in all replicates, as for perfectly separated scores, its interval
        is a single point, although other images may have errors.

    Raises:
        TypeError: If scores are not numeric, are complex or differ in dtype, or `generator` is not a `torch.Generator`.
        ValueError: If scores are empty, not 1-D, hold NaN or are on different devices, another argument is out of
            range, or a Poisson replicate has no image of a class.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> id_scores, ood_scores = torch.randn(500, generator=g), 1 + torch.randn(200, generator=g)
        >>> interval = bootstrap_metrics(id_scores, ood_scores, generator=g).auroc
        >>> round(interval.estimate, 2), round(interval.low, 2), round(interval.high, 2)
        (0.77, 0.73, 0.81)
    """
    replicates, level, tpr = _checked_settings(replicates, level, method, resampling, tpr, positive)
    check_generator(generator)
    id_scores, ood_scores = checked_pair(id_scores, ood_scores)
    if method == "bca" and min(len(id_scores), len(ood_scores)) < 2:
        raise ValueError(
            f'method "bca" leaves each score out once and needs 2 of each class, got {len(id_scores)} ID and '
            f"{len(ood_scores)} OOD"
        )
    pair = ranked(id_scores, ood_scores)
    repeats = _repeats(ood_per_id, len(id_scores), len(ood_scores))
    if method == "bca" and ood_per_id is not None:
        raise ValueError(f'ood_per_id must be None for method "bca", got {ood_per_id}')
    resample = _Resample(_seed_from(generator), replicates, resampling, tpr, positive, repeats)
    observed, drawn = resample(pair)
    accelerations = _accelerations(id_scores, ood_scores, tpr, positive) if method == "bca" else {}
    intervals = {
        name: interval_of(observed[name], values, level, accelerations.get(name)) for name, values in drawn.items()
    }
    return resample.result(intervals, level, method, len(id_scores), len(ood_scores))


def bootstrap_differences(
    id_scores: Values,
    ood_scores: Values,
    other_id_scores: Values,
    other_ood_scores: Values,
    *,
    generator: torch.Generator,
    replicates: int = 1000,
    level: float = 0.95,
    resampling: Resampling = "multinomial",
    tpr: float = 0.95,
    positive: Positive = "ood",
    ood_per_id: float | None = None,
) -> BootstrapResult[Difference]:
    """Compute percentile intervals and p-values for the differences between two detectors on the same images.

    Every replicate evaluates both detectors on the same resampled images. Effects of the images on both cancel, so a
    difference can be significant although the intervals of the two detectors overlap.

    Args:
        id_scores: `[N]` in-distribution scores of the first detector.
        ood_scores: `[M]` OOD scores of the first detector.
        other_id_scores: `[N]` scores of the second detector, of the same images in the same order; any dtype.
        other_ood_scores: `[M]` scores of the second detector, of the same OOD images in the same order.
        generator: Source of the replicates, on any device; the same state gives the same replicates on every device.
        replicates: Number of resamplings, at least 2; a p-value is at least 2 / (replicates + 1).
        level: Confidence, in (0, 1).
        resampling: Resampling scheme of the images.
        tpr: True-positive rate for `fpr_at_tpr`, in (0, 1].
        positive: The positive class of `fpr_at_tpr`.
        ood_per_id: OOD images per ID image for which AUPR is stated, to within 0.1 %; by default the ratio M / N.

    Raises:
        TypeError: If `bootstrap_metrics` raises it for either detector.
        ValueError: If `bootstrap_metrics` raises it for either detector, or the detectors differ in the counts of
            images.

    Example:
        >>> g = torch.Generator().manual_seed(0)
        >>> id_images, ood_images = torch.randn(500, generator=g), 1 + torch.randn(200, generator=g)
        >>> noisy = [scores + torch.randn(len(scores), generator=g) for scores in (id_images, ood_images)]
        >>> difference = bootstrap_differences(id_images, ood_images, *noisy, generator=g).auroc
        >>> difference.low > 0, round(difference.p_value, 3)
        (True, 0.002)
    """
    replicates, level, tpr = _checked_settings(replicates, level, "percentile", resampling, tpr, positive)
    check_generator(generator)
    first_scores, second_scores = checked_pairs(id_scores, ood_scores, other_id_scores, other_ood_scores)
    pairs = ranked(*first_scores), ranked(*second_scores)
    id_count, ood_count = (len(scores) for scores in first_scores)
    repeats = _repeats(ood_per_id, id_count, ood_count)
    # All checks come first, so that a failed call leaves the generator's state unchanged.
    resample = _Resample(_seed_from(generator), replicates, resampling, tpr, positive, repeats)
    (first, first_drawn), (second, second_drawn) = map(resample, pairs)
    differences = {
        name: difference_of(first[name] - second[name], first_drawn[name] - second_drawn[name], level) for name in first
    }
    return resample.result(differences, level, "percentile", id_count, ood_count)


@dataclass(frozen=True)
class _Resample:
    """Metrics of a detector and of its replicates; every detector is evaluated on the same drawn images."""

    seed: int
    replicates: int
    resampling: Resampling
    tpr: float
    positive: Positive
    repeats: tuple[int, int] = (1, 1)
    """Weight of each ID and of each OOD image."""

    def __call__(self, pair: RankedPair) -> tuple[dict[str, float], dict[str, Tensor]]:
        id_keys, ood_keys = sort_scores(pair.id_scores), sort_scores(pair.ood_scores)
        id_repeats, ood_repeats = self.repeats
        observed = resampled_statistics(
            id_keys,
            ood_keys,
            seed=0,
            replicates=1,
            scheme="subset",  # a subset of all images is the observed sample
            id_size=len(id_keys),
            id_repeats=id_repeats,
            ood_repeats=ood_repeats,
            tpr=(self.tpr,),
        )
        drawn = resampled_statistics(
            id_keys,
            ood_keys,
            seed=self.seed,
            replicates=self.replicates,
            scheme=self.resampling,
            # Replicates draw images, not ranks: through these, two detectors get the same images.
            id_index=pair.id_scores.argsort(),
            ood_index=pair.ood_scores.argsort(),
            id_repeats=id_repeats,
            ood_repeats=ood_repeats,
            tpr=(self.tpr,),
        )
        # NaN marks replicates without an image of a class.
        empty = int(drawn.auroc.isnan().sum())
        if empty:
            raise ValueError(
                f'resampling "poisson" drew no image of a class in {empty} of {self.replicates} replicates: '
                f"{len(id_keys)} ID and {len(ood_keys)} OOD images are too few for it"
            )
        return {name: float(value) for name, value in self._named(observed).items()}, self._named(drawn)

    def result(
        self, intervals: dict[str, AnyInterval], level: float, method: IntervalMethod, id_count: int, ood_count: int
    ) -> BootstrapResult[AnyInterval]:
        """Return the intervals with the settings that they depend on."""
        return BootstrapResult(
            auroc=intervals["auroc"],
            aupr_in=intervals["aupr_in"],
            aupr_out=intervals["aupr_out"],
            fpr_at_tpr=intervals["fpr_at_tpr"],
            detection_error=intervals["detection_error"],
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


def _accelerations(id_scores: Tensor, ood_scores: Tensor, tpr: float, positive: Positive) -> dict[str, float]:
    ood = count_at_thresholds(id_scores, ood_scores, positive="ood")
    ind = count_at_thresholds(id_scores, ood_scores, positive="id")
    of_class = ood if positive == "ood" else ind
    left_out: dict[str, tuple[Callable[[ThresholdCounts], LeftOut], ThresholdCounts]] = {
        "auroc": (auroc_without, ood),
        "aupr_in": (average_precision_without, ind),
        "aupr_out": (average_precision_without, ood),
        "fpr_at_tpr": (lambda counts: fpr_without(counts, tpr), of_class),
        "detection_error": (detection_error_without, ood),
    }
    # Each metric from the counts with its own positive class; AUROC and detection error do not depend on it.
    return {name: acceleration(without(counts), counts) for name, (without, counts) in left_out.items()}


def _repeats(ood_per_id: float | None, id_count: int, ood_count: int) -> tuple[int, int]:
    """Return the weights of ID and OOD images for `ood_per_id` OOD images per ID image; (1, 1) for None."""
    if ood_per_id is None:
        return 1, 1
    ood_per_id = checked_positive("ood_per_id", ood_per_id, otherwise=", or None")
    ratio = decimal_fraction(ood_per_id) * id_count / ood_count
    # The ratio is taken as a number of at least 1: rounding it to a denominator of 1,000 changes it by less than 0.1 %.
    if ratio >= 1:
        ood_repeats, id_repeats = ratio.limit_denominator(1000).as_integer_ratio()
    else:
        id_repeats, ood_repeats = (1 / ratio).limit_denominator(1000).as_integer_ratio()
    if id_repeats > most_repeats(id_count) or ood_repeats > most_repeats(ood_count):
        raise ValueError(
            f"ood_per_id must be nearer to the ratio of the {ood_count} OOD images and {id_count} ID images, "
            f"got {ood_per_id:g}: weighted counts of either class must stay below 2^31"
        )
    return id_repeats, ood_repeats


def _seed_from(generator: torch.Generator) -> int:
    # A seed, not the generator: a replicate is a function of seed and number, the same on every device.
    return int(torch.randint(2**63 - 1, (), generator=generator, device=generator.device))


def _checked_settings(
    replicates: int, level: float, method: IntervalMethod, resampling: Resampling, tpr: float, positive: Positive
) -> tuple[int, float, float]:
    """Check the settings and return replicates, level and TPR as plain numbers."""
    # Two checks, so that the error states the limit that is violated.
    replicates = as_integer("replicates", replicates, 2, wanted="at least 2")
    replicates = as_integer("replicates", replicates, 2, 2**32 - 1, wanted="below 2^32")
    level = checked_between("level", level)
    check_choice("method", method, IntervalMethod)
    check_choice("resampling", resampling, Resampling)
    check_choice("positive", positive, Positive)
    return replicates, level, checked_tpr(tpr)
