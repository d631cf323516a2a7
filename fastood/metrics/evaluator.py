"""Metrics of a test set that comes in batches, possibly on several processes."""

from collections.abc import Sequence
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor

from fastood.metrics.detection import DetectionMetrics, detection_metrics
from fastood.metrics.open_set import autc, oscr
from fastood.metrics.rules import AuprKind, FprRule
from fastood.metrics.validation import Positive, check_choice, check_tpr


class DetectionEvaluator:
    """Collects scores and labels batch by batch; every metric is exact, as of one call with all of them.

    `update(scores, y)`, `compute()` and `reset()` are those of `pytorch_ood.utils.OODMetrics`, which this replaces
    without its sigmoid. AUPR is average precision; `aupr_kind="trapezoid"` gives the area that pytorch-ood gives.

    Args:
        tpr: True-positive rate at which the FPR is read, in (0, 1].
        positive: The positive class of the FPR.
        rule: Where the FPR is read.
        aupr_kind: How the AUPR is taken.
        void_label: Label of rows to leave out, such as the unlabelled pixels of a segmentation.
        device: Where scores are kept.

    Raises:
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
        *,
        tpr: float = 0.95,
        positive: Positive = "ood",
        rule: FprRule = "first",
        aupr_kind: AuprKind = "average_precision",
        void_label: int | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        check_tpr(tpr)
        check_choice("positive", positive, Positive)
        check_choice("rule", rule, FprRule)
        check_choice("aupr_kind", aupr_kind, AuprKind)
        self.tpr = tpr
        self.positive: Positive = positive
        self.rule: FprRule = rule
        self.aupr_kind: AuprKind = aupr_kind
        self.void_label = void_label
        self.device = torch.device(device)
        self._id_scores: list[Tensor] = []
        self._ood_scores: list[Tensor] = []
        self._correct: list[Tensor] = []
        self._dtype: torch.dtype | None = None

    def update(self, scores: Tensor, y: Tensor, predictions: Tensor | None = None) -> Self:
        """Adds a batch.

        Args:
            scores: Scores of any shape, higher = more OOD; bool, integer or floating point, the same dtype every time.
            y: Integer labels of the same shape; below 0 is OOD.
            predictions: Predicted classes of the same shape; given every time or never. With them `compute` has the
                accuracy and the OSCR.

        Raises:
            TypeError: Scores of another dtype than before, or complex; labels that are no integers.
            ValueError: Shapes that differ; NaN; predictions that come and go. Nothing is added then.
        """
        self._check_batch(scores, y, predictions)
        self._dtype = scores.dtype
        kept = torch.ones_like(y, dtype=torch.bool) if self.void_label is None else y != self.void_label
        is_ood = (y < 0) & kept
        is_id = (y >= 0) & kept
        self._id_scores.append(scores.detach()[is_id].to(self.device))
        self._ood_scores.append(scores.detach()[is_ood].to(self.device))
        if predictions is not None:
            self._correct.append((predictions == y)[is_id].to(self.device))
        return self

    def merge(self, other: "DetectionEvaluator") -> Self:
        """Adds what another evaluator collected; shards merged in any order give the metrics of all at once.

        Raises:
            TypeError: Scores of another dtype.
            ValueError: Only one of both has predictions.
        """
        if other._dtype is not None:
            self._check_like_before(other._dtype, bool(other._correct))
            self._dtype = other._dtype
        self._id_scores.extend(scores.to(self.device) for scores in other._id_scores)
        self._ood_scores.extend(scores.to(self.device) for scores in other._ood_scores)
        self._correct.extend(correct.to(self.device) for correct in other._correct)
        return self

    def gather(self, group: dist.ProcessGroup | None = None) -> Self:
        """Exchanges scores between processes, after which every process has those of all, in the order of their ranks.

        Args:
            group: The processes; all of them if not given. Without an initialised process group nothing happens.
        """
        if not dist.is_initialized():
            return self
        shares = [DetectionEvaluator()] * dist.get_world_size(group)
        dist.all_gather_object(shares, DetectionEvaluator().merge(self), group=group)  # merged to the CPU
        total = DetectionEvaluator()
        for share in shares:
            total.merge(share)
        return self.reset().merge(total)

    @property
    def id_scores(self) -> Tensor:
        """[N] in-distribution scores so far."""
        return self._joined(self._id_scores)

    @property
    def ood_scores(self) -> Tensor:
        """[M] OOD scores so far."""
        return self._joined(self._ood_scores)

    def metrics(self) -> DetectionMetrics:
        """All metrics with what they depend on.

        Raises:
            ValueError: No score of one class so far; no threshold for the rule.
        """
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
        """The metrics under pytorch-ood's names, as fractions.

        Returns:
            AUROC, AUTC, AUPR-IN, AUPR-OUT and FPR95TPR (another number at another `tpr`); with predictions also ACC
            and OSCR.

        Raises:
            ValueError: No score of one class so far; no threshold for the rule.
        """
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
        """Forgets all scores."""
        self._id_scores, self._ood_scores, self._correct, self._dtype = [], [], [], None
        return self

    def _joined(self, parts: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(parts)) if parts else torch.empty(0, device=self.device)

    def _check_batch(self, scores: Tensor, y: Tensor, predictions: Tensor | None) -> None:
        if scores.is_complex():
            raise TypeError(f"scores must be real, got {scores.dtype}")
        if y.is_floating_point() or y.is_complex():
            raise TypeError(f"y must hold integer labels, got {y.dtype}")
        for name, values in (("y", y), ("predictions", predictions)):
            if values is not None and values.shape != scores.shape:
                raise ValueError(f"{name} must have shape {tuple(scores.shape)} as scores, got {tuple(values.shape)}")
        self._check_like_before(scores.dtype, predictions is not None)
        if scores.is_floating_point() and scores.isnan().any():
            raise ValueError(
                f"scores holds {int(scores.isnan().sum())} NaN among its {scores.numel()}; NaN has no rank"
            )

    def _check_like_before(self, dtype: torch.dtype, has_predictions: bool) -> None:
        if self._dtype is None:
            return
        if dtype != self._dtype:
            raise TypeError(f"scores must have the dtype {self._dtype} of those before, got {dtype}")
        if has_predictions != bool(self._correct):
            raise ValueError("predictions must be given with every batch or with none")
