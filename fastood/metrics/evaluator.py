"""Detection metrics of a test set that is evaluated in batches, possibly on several processes."""

from collections.abc import Sequence
from typing import Literal, Self

import torch
import torch.distributed as dist
from torch import Tensor

from fastood.common.distributed import exchange
from fastood.common.gathering import gather_rows
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
"""Kind of metrics: of all values together, or the mean over images of the metrics of each image."""

_TPR = 0.95


class DetectionEvaluator:
    """Exact detection metrics of scores and labels that are added batch by batch.

    `update(scores, y)`, `compute()` and `reset()` have the signatures of `pytorch_ood.metrics.OODMetrics` (before
    pytorch-ood 0.4: `pytorch_ood.utils.OODMetrics`), which this class can replace. Differences:

        - AUROC and FPR agree up to rounding.
        - AUPR-IN and AUPR-OUT are average precision; `aupr_kind="trapezoid"` gives pytorch-ood's trapezoids, usually
          some tenths of a per cent higher.
        - AUTC depends on the scale of the scores, the other metrics do not. `MaxSoftmax` returns log-odds here and a
          probability in pytorch-ood: compare AUTC within one library only.
        - ACC is over all ID rows, and OSCR is reported with it.
        - Scores keep their dtype; labels may be floats; arrays and lists are accepted.

    Args:
        device: Device that stores the scores; None for the device of the first batch, as in pytorch-ood 0.4.
        mode: "classification": every value of any shape is one example. "segmentation", as in pytorch-ood before 0.4:
            batches are `[B, H, W]`, and `compute` returns the mean over images of the metrics of each image. Use
            "classification" for the metrics of all pixels together.
        void_label: Label of rows to leave out, such as the unlabelled pixels of a segmentation.
        tpr: True-positive rate at which the FPR is read, in (0, 1].
        positive: The positive class of the FPR.
        rule: Where the FPR is read.
        aupr_kind: Definition of the AUPR.
        fpr_at: Name of `tpr` in pytorch-ood; pass only one of both.

    Raises:
        TypeError: If `tpr` is not a number, or `void_label` not an integer.
        ValueError: If an argument is out of range.

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
        """Add a batch of tensors, arrays, lists or single numbers.

        Args:
            scores: Scores of any shape, higher = more OOD; bool, integer or floating point, the same dtype every time.
                A list takes the dtype of earlier scores, or float64 in the first batch.
            y: Labels of the same shape, integers or whole numbers; below 0 is OOD.
            predictions: Predicted classes of the same shape; passed with every batch or with none. With them `compute`
                returns accuracy and OSCR. Must be None with mode "segmentation".
            labels: Name of `y` in pytorch-ood; pass only one of both.

        Raises:
            TypeError: If scores are complex or of another dtype than before, labels or predictions are not numeric, or
                not exactly one of `y` and `labels` is passed.
            ValueError: If the shapes differ, a score is NaN, labels or predictions are not whole numbers, predictions
                are passed with some batches only, or, with mode "segmentation", an image lacks one class. The evaluator
                is then unchanged.
        """
        if (y is None) == (labels is None):
            raise TypeError("y or labels, its name in pytorch-ood, must be passed, and not both")
        if predictions is not None and self.mode == "segmentation":
            raise ValueError('predictions must be None with mode "segmentation": pixels have no accuracy here')
        batch = as_scores("scores", scores)
        if self._dtype is not None and not has_dtype(scores) and batch.numel():
            batch = in_dtype("scores", batch, self._dtype)
        label_name, given_labels = ("labels", labels) if y is None else ("y", y)
        targets = as_labels(label_name, given_labels).to(batch.device)  # type: ignore[arg-type]
        predicted = None if predictions is None else as_labels("predictions", predictions).to(batch.device)
        for name, values in ((label_name, targets), ("predictions", predicted)):
            if values is not None and values.shape != batch.shape:
                raise ValueError(f"{name} must have shape {tuple(batch.shape)} as scores, got {tuple(values.shape)}")
        if batch.numel() == 0:
            return self  # an empty batch fixes neither the dtype nor whether there are predictions
        self._check_like_before(batch.dtype, predicted is not None)
        if self.mode != "segmentation":
            # First, so that everything after it that depends on values does not wait for a device.
            device = self.device or (self._id_scores[0].device if self._id_scores else batch.device)
            batch, targets = batch.to(device), targets.to(device)
            predicted = None if predicted is None else predicted.to(device)
        check_no_nan({"scores": batch})
        if self.mode == "segmentation":
            self._images.extend(metrics_of_images(batch, targets, self._of_image))
            self._dtype = batch.dtype
            return self

        is_ood, is_id = targets < 0, targets >= 0
        if self.void_label is not None:
            kept = targets != self.void_label
            is_ood, is_id = is_ood & kept, is_id & kept
        # Everything is allocated before anything is added: a batch that does not fit must not leave half of it.
        id_scores, ood_scores = batch[is_id], batch[is_ood]
        correct = None if predicted is None else (predicted == targets)[is_id]
        self._dtype = batch.dtype
        self._id_scores.append(id_scores)
        self._ood_scores.append(ood_scores)
        if correct is not None:
            self._correct.append(correct)
        return self

    def merge(self, other: "DetectionEvaluator") -> Self:
        """Add the scores of another evaluator; metrics do not depend on the order of merges.

        Merging an evaluator without a batch has no effect. An evaluator merged with itself has every score twice.

        Raises:
            TypeError: If `other` is not a DetectionEvaluator, or its scores have another dtype.
            ValueError: If only one of the evaluators has predictions, or the modes differ. The evaluator is then
                unchanged.
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
            # The list is complete before `own` grows: `other` may be this evaluator.
            own.extend([part.to(device) for part in parts])
        return self

    def gather(self, group: dist.ProcessGroup | None = None) -> Self:
        """Exchange scores, after which every process has the scores of all processes in the order of their ranks.

        A process without a batch only receives the scores of the others. Call it once, after the last batch of every
        process: a second call would count every score again.

        Args:
            group: The process group; None for all processes. Without an initialised group the call does nothing.

        Raises:
            TypeError: If the processes' scores differ in dtype. Every process raises, and keeps its own scores.
            ValueError: If only some processes have predictions, the modes differ, or this process is not in `group`.
        """
        if not dist.is_initialized():
            return self
        device = self.device or (self._id_scores[0].device if self._id_scores else None)
        # Summaries first, so that every process raises the same error before scores are exchanged.
        names = tuple(self._images[0]) if self._images else ()
        own = ShardSummary(self._dtype, bool(self._correct), self.mode, names)
        common = check_shards(exchange(own, group, device=device))
        parts = {"id_scores": self._id_scores, "ood_scores": self._ood_scores, "correct": self._correct}
        # A process without a batch sends None and takes the dtype of the others.
        sent = {name: torch.cat(tensors) if tensors else None for name, tensors in parts.items()}
        values = [[image[name] for name in common.names] for image in self._images]
        found = gather_rows({**sent, "images": torch.tensor(values, dtype=torch.float64) if values else None}, group)
        self._dtype = common.dtype
        if self.mode == "segmentation":
            self._images = [dict(zip(common.names, image, strict=True)) for image in found["images"].tolist()]
        elif common.dtype is not None:
            for name, tensors in parts.items():
                rows = found[name] if device is None else found[name].to(device)
                tensors[:] = [rows] if name != "correct" or common.has_predictions else []
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
        """Return all metrics with the settings that they depend on.

        Raises:
            ValueError: If the mode is "segmentation", there is no score of one class so far, or no threshold satisfies
                the rule.
        """
        if self.mode == "segmentation":
            raise ValueError('metrics must not be called with mode "segmentation", which keeps no pixels: call compute')
        for name, label, parts in (("ID", ">= 0", self._id_scores), ("OOD", "< 0", self._ood_scores)):
            if not sum(map(len, parts)):
                total = sum(map(len, self._id_scores + self._ood_scores))
                raise ValueError(
                    f"no {name} score (label {label}) among the {total} given; a metric needs some of each class"
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
            AUROC, AUTC, AUPR-IN, AUPR-OUT and FPR95TPR (with the percentage of `tpr`); with predictions also ACC and
            OSCR.

        Raises:
            ValueError: If there is no score of one class or no image so far, or no threshold satisfies the rule.
        """
        if self.mode == "segmentation":
            return mean_over_images(self._images)
        metrics = self.metrics()
        values = {
            "AUROC": float(metrics.auroc),
            "AUTC": autc(self.id_scores, self.ood_scores),
            "AUPR-IN": float(metrics.aupr_in),
            "AUPR-OUT": float(metrics.aupr_out),
            f"FPR{100 * self.tpr:g}TPR": float(metrics.fpr_at_tpr),
        }
        if self._correct:
            correct = torch.cat(self._correct)
            values["ACC"] = float(correct.double().mean())
            values["OSCR"] = oscr(self.id_scores, self.ood_scores, correct=correct)
        return values

    def reset(self) -> Self:
        """Remove all scores."""
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
