"""Metrics of 10⁸ scores and more, such as pixels, from a histogram, with bounds on the exact metrics."""

from dataclasses import dataclass
from math import ceil
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor

from fastood.common.distributed import check_alike, exchange
from fastood.metrics.inputs import Values, as_labels, as_scores, checked_void_label
from fastood.metrics.threshold_counts import gains
from fastood.metrics.validation import Positive, check_choice, check_no_nan, checked_tpr
from fastood.ops._arguments import as_device, as_integer, decimal_fraction

__all__ = ["Bounded", "HistogramEvaluator", "HistogramMetrics"]

_KEY_BITS = 32


@dataclass(frozen=True, kw_only=True)
class Bounded:
    """Estimate of a metric from binned scores, with a lower and an upper bound of its exact value."""

    estimate: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class HistogramMetrics:
    """Metrics as fractions with bounds, and the settings that they depend on."""

    auroc: Bounded
    """The estimate treats scores of one bin as ties. Its error is at most half of the pairs that share a bin, divided
    by all pairs."""
    aupr_in: Bounded
    aupr_out: Bounded
    fpr_at_tpr: Bounded
    """The estimate is the exact FPR of a threshold between two bins, whose TPR is at least `tpr`."""
    detection_error: Bounded
    tpr: float
    positive: Positive
    id_count: int
    ood_count: int

    @property
    def aupr(self) -> Bounded:
        """AUPR of the positive class."""
        return self.aupr_out if self.positive == "ood" else self.aupr_in


class HistogramEvaluator:
    """Evaluator that counts scores in bins instead of keeping them, for segmentation test sets of 10⁸ pixels.

    A bin holds the float32 numbers that share their leading `bits` bits: the sign, 8 bits of the exponent and `bits` -
    9 of the mantissa. The relative width of a bin is thus 2^(9 - bits), 1/2,048 with 20 bits. There is no range to
    choose, ±inf are valid scores, and float64 scores are rounded to float32. Memory is 16 bytes per bin, 16 MiB with 20
    bits. Every result has exact bounds of the error by binning. Scores that concentrate near a number other than 0,
    such as the largest softmax near 1, should be transformed to the distance from that number or to log-odds.

    Args:
        bits: Leading bits, 10 to 24.
        void_label: Label of pixels to leave out.
        device: Device of the counts.

    Raises:
        ValueError: If `bits` is out of range.

    Example:
        >>> evaluator = HistogramEvaluator()
        >>> g = torch.Generator().manual_seed(0)
        >>> labels = torch.randint(-1, 3, (2, 480, 640), generator=g)
        >>> scores = torch.randn(2, 480, 640, generator=g) + 2 * (labels < 0)
        >>> auroc = evaluator.update(scores, labels).metrics().auroc
        >>> round(auroc.estimate, 3), auroc.high - auroc.low < 2e-4
        (0.922, True)
    """

    def __init__(self, *, bits: int = 20, void_label: int | None = None, device: torch.device | str = "cpu") -> None:
        self.bits = bits = as_integer("bits", bits, 10, 24, wanted="10 to 24")
        self.void_label = checked_void_label(void_label)
        self._counts = torch.zeros(2, 1 << bits, dtype=torch.int64, device=as_device("device", device))

    @property
    def id_counts(self) -> Tensor:
        """Counts of in-distribution scores, int64 `[2^bits]`, lowest scores first."""
        return self._counts[0]

    @property
    def ood_counts(self) -> Tensor:
        """Counts of OOD scores, int64 `[2^bits]`, lowest scores first."""
        return self._counts[1]

    def update(self, scores: Values, y: Values) -> Self:
        """Count the scores of a batch.

        Args:
            scores: Floating-point scores of any shape, higher = more OOD; a tensor, an array or a list.
            y: Labels of the same shape, integers or whole numbers; below 0 is OOD.

        Raises:
            TypeError: If scores are not floating point, or labels are not numeric.
            ValueError: If the shapes differ, a score is NaN, or a label is not a whole number. The counts are then
                unchanged.
        """
        scores, y = as_scores("scores", scores), as_labels("y", y)
        if not scores.is_floating_point():
            raise TypeError(f"scores must be floating point, got {scores.dtype}")
        if y.shape != scores.shape:
            raise ValueError(f"y must have shape {tuple(scores.shape)} as scores, got {tuple(y.shape)}")
        # Moved first: a check of scores on the CPU waits for no device.
        scores, y = scores.to(self._counts.device).reshape(-1), y.to(self._counts.device).reshape(-1)
        check_no_nan({"scores": scores})
        if self.void_label is not None:
            kept = y != self.void_label
            scores, y = scores[kept], y[kept]
        num_bins = 1 << self.bits
        numbers = _bins(scores, self.bits) + (y < 0).long() * num_bins
        # bincount would read the largest number, and so wait for a device.
        self._counts.view(-1).index_add_(0, numbers, torch.ones_like(numbers))
        return self

    def merge(self, other: "HistogramEvaluator") -> Self:
        """Add the counts of another evaluator; an evaluator merged with itself has every score twice.

        Raises:
            TypeError: If `other` is not a HistogramEvaluator.
            ValueError: If `other` has another number of bits.
        """
        if not isinstance(other, HistogramEvaluator):
            raise TypeError(f"other must be a HistogramEvaluator, got {type(other).__name__}")
        if other.bits != self.bits:
            raise ValueError(f"other must have {self.bits} bits, got {other.bits}")
        self._counts += other._counts.to(self._counts.device)
        return self

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> Self:
        """Sum the counts of all processes; does nothing without an initialised process group.

        Call it once, after the last batch of every process: a second call would count every score again.

        Raises:
            ValueError: If the processes differ in `bits`, which every process raises, or this process is not in
                `group`.
        """
        if dist.is_initialized():
            check_alike("bits", exchange(self.bits, group, device=self._counts.device))
            dist.all_reduce(self._counts, group=group)
        return self

    def reset(self) -> Self:
        """Reset all counts to 0."""
        self._counts.zero_()
        return self

    def metrics(self, *, tpr: float = 0.95, positive: Positive = "ood") -> HistogramMetrics:
        """Return the metrics with their bounds; the FPR by the rule "first", the AUPR as average precision.

        Args:
            tpr: True-positive rate for `fpr_at_tpr`, in (0, 1].
            positive: The positive class of `fpr_at_tpr`.

        Raises:
            ValueError: If there is no score of one class so far, or an argument is out of range.
        """
        tpr = checked_tpr(tpr)
        check_choice("positive", positive, Positive)
        id_counts, ood_counts = self._counts[:, self._counts.any(0)]
        id_count, ood_count = int(id_counts.sum()), int(ood_counts.sum())
        if not (id_count and ood_count):
            raise ValueError(f"a metric needs scores of each class, got {id_count} ID and {ood_count} OOD scores")
        ood = _Cumulative(ood_counts.flip(0).cumsum(0), id_counts.flip(0).cumsum(0))
        ind = _Cumulative(id_counts.cumsum(0), ood_counts.cumsum(0))
        return HistogramMetrics(
            auroc=ood.auroc(),
            aupr_in=ind.average_precision(),
            aupr_out=ood.average_precision(),
            fpr_at_tpr=(ood if positive == "ood" else ind).fpr(tpr),
            detection_error=ood.detection_error(),
            tpr=tpr,
            positive=positive,
            id_count=id_count,
            ood_count=ood_count,
        )


class _Cumulative:
    """Cumulative counts over bins, strictest first, and bounds over all orders of scores within the bins."""

    def __init__(self, true_positives: Tensor, false_positives: Tensor) -> None:
        self.counts = true_positives, false_positives
        self.true_positives, self.false_positives = true_positives.double(), false_positives.double()
        self.true_gains, self.false_gains = gains(true_positives).double(), gains(false_positives).double()
        self.positives, self.negatives = int(true_positives[-1]), int(false_positives[-1])

    def auroc(self) -> Bounded:
        pairs = self.positives * self.negatives
        # Positives of stricter bins rank above a negative in any order; those of its own bin may all rank either way.
        least = float((self.false_gains * (self.true_positives - self.true_gains)).sum()) / pairs
        most = float((self.false_gains * self.true_positives).sum()) / pairs
        return Bounded(estimate=(least + most) / 2, low=least, high=most)

    def average_precision(self) -> Bounded:
        true_before = self.true_positives - self.true_gains
        false_before = self.false_positives - self.false_gains
        tied = self.true_gains * self.true_positives / (self.true_positives + self.false_positives)
        # Best case: the positives of a bin share a threshold before its negatives. `clamp` avoids 0 / 0 in bins before
        # any positive, which contribute 0.
        best = self.true_gains * self.true_positives / (self.true_positives + false_before).clamp(min=1)
        # Worst case: positives follow the negatives of their bin one by one,
        # Σ_j (T + j) / (T + j + F) = n - F (ψ(n + a) - ψ(a)), a = T+F+1.
        flagged = true_before + self.false_positives + 1
        worst = self.true_gains - self.false_positives * (
            torch.special.digamma(flagged + self.true_gains) - torch.special.digamma(flagged)
        )
        estimate, low, high = (float(terms.sum()) / self.positives for terms in (tied, worst, best))
        # ψ has a relative error of about 1e-15 at a value of about 20, and is multiplied by F / P.
        slack = 1e-13 * (1 + self.negatives / self.positives)
        return Bounded(estimate=estimate, low=max(0.0, low - slack), high=min(1.0, high + slack))

    def fpr(self, tpr: float) -> Bounded:
        required = ceil(decimal_fraction(tpr) * self.positives)
        position = int(torch.searchsorted(self.counts[0], required))
        at, gain = float(self.false_positives[position]), float(self.false_gains[position])
        return Bounded(estimate=at / self.negatives, low=(at - gain) / self.negatives, high=at / self.negatives)

    def detection_error(self) -> Bounded:
        fnr = 1 - self.true_positives / self.positives
        edges = float((self.false_positives / self.negatives + fnr).min()) / 2
        within = float(((self.false_positives - self.false_gains) / self.negatives + fnr).min()) / 2
        estimate = min(edges, 0.5)
        return Bounded(estimate=estimate, low=min(within, 0.5), high=estimate)


def _bins(scores: Tensor, bits: int) -> Tensor:
    """Return bin numbers from 0, int64 `[N]`, in the order of the scores."""
    scores = scores.float() + 0.0  # turns -0.0 into 0.0, which has other bits but ties with it
    pattern = scores.view(torch.int32)
    # Negative floats descend as integers; flipping their lower bits makes all keys ascend with the scores.
    keys = torch.where(pattern < 0, pattern ^ 0x7FFFFFFF, pattern)
    return (keys >> (_KEY_BITS - bits)).long() + (1 << (bits - 1))
