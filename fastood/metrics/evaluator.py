"""Metrics of a test set that comes in batches, possibly on several processes."""

from collections.abc import Sequence
from typing import Literal, Self

import torch
import torch.distributed as dist
from torch import Tensor

from fastood.common.distributed import exchange
from fastood.metrics.detection import DetectionMetrics, detection_metrics
from fastood.metrics.inputs import Values, as_labels, as_scores, checked_void_label, has_dtype, in_dtype
from fastood.metrics.open_set import autc, oscr
from fastood.metrics.per_image import mean_over_images, metrics_of_images
from fastood.metrics.rules import AuprKind, FprRule
from fastood.metrics.shards import ShardSummary, check_shards
from fastood.metrics.validation import Positive, check_choice, check_no_nan, checked_between, checked_tpr
from fastood.ops._arguments import as_device

__all__ = ["DetectionEvaluator", "Mode"]

Mode = Literal["classification", "segmentation"]
"""Kind of metrics: those of all values together, or the mean over images of those of each."""

_TPR = 0.95


class DetectionEvaluator:
    """Metrics of scores and labels that come batch by batch, exact as those of one call with all of them.

    `update(scores, y)`, `compute()` and `reset()` are those of `pytorch_ood.metrics.OODMetrics` (before pytorch-ood
    0.4: `pytorch_ood.utils.OODMetrics`), which this replaces. In its place:

        - AUROC and FPR are equal to the last digits.
        - AUPR-IN and AUPR-OUT are average precision; `aupr_kind="trapezoid"` gives pytorch-ood's trapezoids, mostly
          some tenths of a per cent higher.
        - AUTC is of the scores as they are. fastood's detectors score by log-odds where pytorch-ood has a probability
          (`MaxSoftmax`), and AUTC alone of these metrics depends on the scale: compare it within one library.
        - ACC is over all ID rows, and OSCR comes with it.
        - Scores keep their dtype, and labels may be floats; arrays and lists are taken, too.

    Args:
        device: Where scores are kept; None for the device of the first batch, as pytorch-ood 0.4 has it.
        mode: "classification": every value of any shape is one example. "segmentation", as in pytorch-ood before 0.4:
            batches are [B, H, W], and `compute` gives the mean over images of the metrics of each; for the metrics of
            all pixels together leave it out.
        void_label: Label of rows to leave out, such as the unlabelled pixels of a segmentation.
        tpr: True-positive rate at which the FPR is read, in (0, 1].
        positive: The positive class of the FPR.
        rule: Where the FPR is read.
        aupr_kind: How the AUPR is taken.
        fpr_at: pytorch-ood's name of `tpr`, in its place.

    Raises:
        TypeError: `tpr` is no number, or `void_label` no integer.
        ValueError: An argument out of range.

    Example:
        >>> evaluator = DetectionEvaluator()
        >>> evaluator.update(torch.tensor([0.1, 0.2]), torch.tensor([3, 7])).compute()
        Traceback (most recent call last):
            ...
        ValueError: no OOD score (label < 0) among the 2 given; a metric needs some of each class
        >>> evaluator.update(torch.tensor([0.15, 0.9]), torch.tensor([-1, -1])).compute()["AUROC"]
        0.75
    """

    def __init__(
        self,
        device: torch.device | str | None = "cpu",
        mode: Mode = "classification",
        void_label: int | None = None,
        *,
        tpr: float = _TPR,
        positive: Positive = "ood",
        rule: FprRule = "first",
        aupr_kind: AuprKind = "average_precision",
        fpr_at: float | None = None,
    ) -> None:
        check_choice("mode", mode, Mode)
        tpr = checked_tpr(tpr)
        if fpr_at is not None:
            fpr_at = checked_between("fpr_at", fpr_at, high_allowed=True)
            if tpr not in (_TPR, fpr_at):
                raise ValueError(f"fpr_at is another name of tpr: give one of them, got {fpr_at} and {tpr}")
            tpr = fpr_at
        check_choice("positive", positive, Positive)
        check_choice("rule", rule, FprRule)
        check_choice("aupr_kind", aupr_kind, AuprKind)
        self.mode: Mode = mode
        self.tpr = tpr
        self.positive: Positive = positive
        self.rule: FprRule = rule
        self.aupr_kind: AuprKind = aupr_kind
        self.void_label = checked_void_label(void_label)
        self.device = None if device is None else as_device("device", device)
        self._id_scores: list[Tensor] = []
        self._ood_scores: list[Tensor] = []
        self._correct: list[Tensor] = []
        self._images: list[dict[str, float]] = []
        self._dtype: torch.dtype | None = None

    def update(
        self,
        scores: Values,
        y: Values | None = None,
        predictions: Values | None = None,
        *,
        labels: Values | None = None,
    ) -> Self:
        """Add a batch, of tensors, arrays, lists or single numbers.

        Args:
            scores: Scores of any shape, higher = more OOD; bool, integer or floating point, the same dtype every time.
                A list takes the dtype of the scores before, and is float64 without any.
            y: Labels of the same shape, integers or whole numbers; below 0 is OOD.
            predictions: Predicted classes of the same shape; given every time or never. With them `compute` has the
                accuracy and the OSCR. Not with mode "segmentation".
            labels: pytorch-ood's name of `y`, in its place.

        Raises:
            TypeError: Scores of another dtype than before, or complex; labels or predictions that are no numbers;
                neither or both of `y` and `labels`.
            ValueError: Shapes that differ; NaN; labels or predictions that are no whole numbers; predictions that come
                and go; an image without both classes, with mode "segmentation". Nothing is added then.
        """
        if (y is None) == (labels is None):
            raise TypeError("y must be given, or labels in its place, and not both")
        if predictions is not None and self.mode == "segmentation":
            raise ValueError('predictions must be None with mode "segmentation": pixels have no accuracy here')
        found = as_scores("scores", scores)
        if self._dtype is not None and not has_dtype(scores) and found.numel():
            found = in_dtype("scores", found, self._dtype)
        named, given = ("labels", labels) if y is None else ("y", y)
        of_scores = as_labels(named, given).to(found.device)  # type: ignore[arg-type]
        predicted = None if predictions is None else as_labels("predictions", predictions).to(found.device)
        for name, values in ((named, of_scores), ("predictions", predicted)):
            if values is not None and values.shape != found.shape:
                raise ValueError(f"{name} must have shape {tuple(found.shape)} as scores, got {tuple(values.shape)}")
        if found.numel() == 0:
            return self  # nothing has a dtype, and nothing was predicted or not
        self._check_like_before(found.dtype, predicted is not None)
        check_no_nan("scores", found)
        if self.mode == "segmentation":
            self._images.extend(metrics_of_images(found, of_scores, self._of_image))
            self._dtype = found.dtype
            return self

        device = self.device or (self._id_scores[0].device if self._id_scores else found.device)
        is_ood, is_id = of_scores < 0, of_scores >= 0
        if self.void_label is not None:
            kept = of_scores != self.void_label
            is_ood, is_id = is_ood & kept, is_id & kept
        # All are where they are kept before the first is added: a device may be missing, or full.
        id_scores, ood_scores = found[is_id].to(device), found[is_ood].to(device)
        correct = None if predicted is None else (predicted == of_scores)[is_id].to(device)
        self._dtype = found.dtype
        self._id_scores.append(id_scores)
        self._ood_scores.append(ood_scores)
        if correct is not None:
            self._correct.append(correct)
        return self

    def merge(self, other: "DetectionEvaluator") -> Self:
        """Add what another evaluator collected; shards merged in any order give the metrics of all at once.

        An evaluator without a batch adds nothing; merged with itself, one has every score twice.

        Raises:
            TypeError: `other` is no DetectionEvaluator, or has scores of another dtype.
            ValueError: Only one of both has predictions, or the modes differ. Nothing is added then.
        """
        if not isinstance(other, DetectionEvaluator):
            raise TypeError(f"other must be a DetectionEvaluator, got {type(other).__name__}")
        if other._dtype is None:
            return self
        if other.mode != self.mode:
            raise ValueError(f"other must have the mode {self.mode!r}, got {other.mode!r}")
        self._check_like_before(other._dtype, bool(other._correct))
        self._dtype = other._dtype
        self._images.extend(list(other._images))
        if self.mode == "segmentation":
            return self
        device = self.device or (self._id_scores or other._id_scores)[0].device
        for own, parts in (
            (self._id_scores, other._id_scores),
            (self._ood_scores, other._ood_scores),
            (self._correct, other._correct),
        ):
            # The list is complete before the first of it is added: `other` may be this evaluator, or share its lists.
            own.extend([part.to(device) for part in parts])
        return self

    def gather(self, group: dist.ProcessGroup | None = None) -> Self:
        """Exchange scores between processes, after which every process has those of all, in the order of their ranks.

        A process without a batch adds nothing. Call it once, when every process has seen its share: a second call would
        count every score again.

        Args:
            group: The processes; all of them if not given. Without an initialised process group nothing happens.

        Raises:
            TypeError: Scores of another dtype on another process; said on every one, which keeps its own scores.
            ValueError: Predictions on some processes only, or another mode on some; or this process is not in
                `group`.
        """
        if not dist.is_initialized():
            return self
        device = self.device or (self._id_scores[0].device if self._id_scores else None)
        check_shards(exchange(ShardSummary(self._dtype, bool(self._correct), self.mode), group, device=device))
        on_cpu, total = DetectionEvaluator(mode=self.mode).merge(self), DetectionEvaluator(mode=self.mode)
        for share in exchange(on_cpu, group, device=device):
            total.merge(share)
        self.reset().merge(total)
        if device is not None:
            for parts in (self._id_scores, self._ood_scores, self._correct):
                parts[:] = [part.to(device) for part in parts]
        return self

    @property
    def id_scores(self) -> Tensor:
        """In-distribution scores so far, `[N]`."""
        return self._joined(self._id_scores)

    @property
    def ood_scores(self) -> Tensor:
        """OOD scores so far, `[M]`."""
        return self._joined(self._ood_scores)

    def metrics(self) -> DetectionMetrics:
        """Return all metrics with what they depend on.

        Raises:
            ValueError: The mode is "segmentation"; no score of one class so far; no threshold for the rule.
        """
        if self.mode == "segmentation":
            raise ValueError('metrics of all pixels are not kept with mode "segmentation": take compute')
        for name, label, parts in (("ID", ">= 0", self._id_scores), ("OOD", "< 0", self._ood_scores)):
            if not sum(map(len, parts)):
                given = sum(map(len, self._id_scores + self._ood_scores))
                raise ValueError(
                    f"no {name} score (label {label}) among the {given} given; a metric needs some of each class"
                )
        return detection_metrics(
            self.id_scores,
            self.ood_scores,
            tpr=self.tpr,
            positive=self.positive,
            rule=self.rule,
            aupr_kind=self.aupr_kind,
        )

    def compute(self) -> dict[str, float]:
        """Return the metrics under pytorch-ood's names, as fractions.

        Returns:
            AUROC, AUTC, AUPR-IN, AUPR-OUT and FPR95TPR (another number at another `tpr`); with predictions also ACC
            and OSCR.

        Raises:
            ValueError: No score of one class, or no image, so far; no threshold for the rule.
        """
        if self.mode == "segmentation":
            return mean_over_images(self._images)
        metrics = self.metrics()
        found = {
            "AUROC": float(metrics.auroc),
            "AUTC": autc(self.id_scores, self.ood_scores),
            "AUPR-IN": float(metrics.aupr_in),
            "AUPR-OUT": float(metrics.aupr_out),
            f"FPR{100 * self.tpr:g}TPR": float(metrics.fpr_at_tpr),
        }
        if self._correct:
            correct = torch.cat(self._correct)
            found["ACC"] = float(correct.double().mean())
            found["OSCR"] = oscr(self.id_scores, self.ood_scores, correct=correct)
        return found

    def reset(self) -> Self:
        """Forget all scores."""
        self._id_scores, self._ood_scores, self._correct, self._images, self._dtype = [], [], [], [], None
        return self

    def _of_image(self, scores: Tensor, labels: Tensor) -> dict[str, float]:
        one = DetectionEvaluator(
            None,
            void_label=self.void_label,
            tpr=self.tpr,
            positive=self.positive,
            rule=self.rule,
            aupr_kind=self.aupr_kind,
        )
        return one.update(scores, labels).compute()

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts)) if parts else torch.empty(0, device=self.device)

    def _check_like_before(self, dtype: torch.dtype, has_predictions: bool) -> None:
        if self._dtype is None:
            return
        if dtype != self._dtype:
            raise TypeError(f"scores must have the dtype {self._dtype} of those before, got {dtype}")
        if has_predictions != bool(self._correct):
            raise ValueError("predictions must be given with every batch or with none")
