"""Detectors that shape the penultimate features and take the energy of the logits that then result."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, Literal, Self, get_args

import torch
from torch import Tensor

from fastood.detectors.assumptions import warn, warn_unless_non_negative
from fastood.detectors.function_head import FunctionHeadDetector
from fastood.detectors.logits import check_share
from fastood.detectors.model_calls import Model
from fastood.detectors.pytorch_ood_names import takes_pytorch_ood
from fastood.detectors.quantile import float32_quantile
from fastood.detectors.row_detector import Batches, State
from fastood.ops._arguments import as_real

__all__ = ["ASH", "SCALE", "Head", "ReAct", "ShapedFeatures", "Variant"]

Head = Callable[[Tensor], Tensor]
"""An `nn.Linear`, or another function from features to logits `[N, K]`."""
Variant = Literal["s", "p", "b", "ash-s", "ash-p", "ash-b"]


class ShapedFeatures(FunctionHeadDetector):
    """`-logsumexp(W s(z) + b)` for a shape s of the features z.

    Args:
        model: As `FunctionHeadDetector` takes it, with `feature_layer` and `head`.
        feature_layer: See there.
        head: See there.
        detector: Scores `[N]` of the logits `[N, K]` of s(z), in place of their energy; see `EnergyBased.score`.
    """

    def __init__(
        self, model: Model | None, feature_layer: str | None, head: Head | None, detector: Head | None
    ) -> None:
        super().__init__(model, feature_layer, head=head)
        self._detector = detector

    def predict_feature_maps(self, feature_maps: Tensor) -> Tensor:
        """`predict_features`, as pytorch-ood calls it."""
        return self.predict_features(feature_maps)

    def fit_feature_maps(self, feature_maps: Tensor, y: Tensor) -> Self:
        """`fit_features`, as pytorch-ood calls it."""
        return self.fit_features(feature_maps, y)

    non_negative: ClassVar[bool] = False
    """Flag of scores that need features of at least 0."""
    _inputs_checked = False

    def _score(self, rows: Tensor) -> Tensor:
        if self.non_negative and not self._inputs_checked and len(rows) > 0:
            self._inputs_checked = True
            warn_unless_non_negative(type(self).__name__, rows)
        return self._of_logits(self._logits(self._shaped(rows)))

    @abstractmethod
    def _shaped(self, rows: Tensor) -> Tensor:
        """s(z), float64 `[n, d]`."""


class ReAct(ShapedFeatures):
    """Energy of features clipped from above, `s(z) = min(z, c)` (Sun et al. 2021, eq. 2).

    c is a quantile of all features of all training rows, found exactly in two passes over the data that keep counts
    alone; pytorch-ood keeps every feature. Where the passes differ, by random augmentation, say, c is within 1 %.

    Args:
        model: As `FunctionHeadDetector` takes it, with `feature_layer` and `head`.
        feature_layer: See there.
        head: See there.
        percentile: Which quantile c is, at least 0 and below 1; the paper's is 0.9.
        threshold: c itself, so that nothing has to be fitted, until `fit` finds another; None for the quantile.
        detector: Scores `[N]` of the logits `[N, K]` of clipped features; None for their energy.

    Raises:
        ValueError: A setting is out of range.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> head = nn.Linear(2, 1, bias=False)
        >>> _ = head.weight.data.fill_(1)
        >>> features, labels = torch.tensor([[1.0, 2.0], [3.0, 5.0]]), torch.tensor([0, 0])
        >>> detector = ReAct(head=head, percentile=0.5).fit_features(features, labels)
        >>> detector.predict_features(torch.tensor([[1.0, 100.0]]))  # clipped at 2.5
        tensor([-3.5000], dtype=torch.float64)
    """

    needs_fit = True
    two_passes = True
    settings = ("percentile",)

    @takes_pytorch_ood("head", "threshold", "percentile", "detector")
    def __init__(
        self,
        model: Model | None = None,
        feature_layer: str | None = None,
        *,
        head: Head | None = None,
        percentile: float = 0.9,
        threshold: float | None = None,
        detector: Head | None = None,
    ) -> None:
        super().__init__(model, feature_layer, head, detector)
        self.percentile = check_share("percentile", percentile)
        if threshold is not None:
            threshold = as_real("threshold", threshold)
            if math.isnan(threshold):
                raise ValueError("threshold must be a number, got nan")
            self._state = {"threshold": torch.tensor(threshold, dtype=torch.float64)}

    def _fitted(self, batches: Batches) -> State:
        threshold = float32_quantile(lambda: (rows for rows, _ in batches()), self.percentile)
        if threshold <= 0:
            zeros = self._zeros(batches)
            seen = f"features are clipped at {threshold:.3g}, as {zeros:.1%} are 0 or below: nothing is left of most"
            warn("ReAct", seen, f"Set percentile above {zeros:.3f}, now {self.percentile}")
        return {"threshold": torch.tensor(threshold, dtype=torch.float64)}

    def _shaped(self, rows: Tensor) -> Tensor:
        return rows.minimum(self._state["threshold"].to(rows.device))

    def _zeros(self, batches: Batches) -> float:
        """The share of training features at 0 or below."""
        counts = [(int((rows <= 0).sum()), rows.numel()) for rows, _ in batches()]
        return sum(zeros for zeros, _ in counts) / sum(count for _, count in counts)


class ASH(ShapedFeatures):
    """Energy of features of which only the largest are kept (Djurisic et al. 2023, section 3).

    Of each row the smallest share `percentile` of the features becomes 0; with `s1` the sum of all and `s2` of the k
    kept ones,

        "s"  those kept times exp(s1 / s2)
        "p"  those kept as they are
        "b"  those kept become s1 / k

    Features must be non-negative, as after a ReLU: where they are not, s1 / s2 is anything. The first score warns.

    Args:
        model: As `FunctionHeadDetector` takes it, with `feature_layer` and `head`.
        feature_layer: See there.
        head: See there.
        variant: "s", "p" or "b"; also "ash-s", "ash-p", "ash-b", as pytorch-ood calls them.
        percentile: Share that becomes 0, at least 0 and below 1; the paper's for "s" on ImageNet is 0.9, of 2048
            features. pytorch-ood's default is 0.65.
        detector: Scores `[N]` of the logits `[N, K]` of shaped features; None for their energy.

    Raises:
        ValueError: A setting is out of range.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> head = nn.Linear(4, 1, bias=False)
        >>> _ = head.weight.data.fill_(1)
        >>> features = torch.tensor([[0.0, 1, 2, 5]])
        >>> [round(ASH(head=head, variant=v, percentile=0.5).predict_features(features).item(), 3) for v in "spb"]
        [-21.95, -7.0, -8.0]
    """

    settings = ("variant", "percentile")
    non_negative = True

    @takes_pytorch_ood("head", "variant", "percentile", "detector")
    def __init__(
        self,
        model: Model | None = None,
        feature_layer: str | None = None,
        *,
        head: Head | None = None,
        variant: Variant = "s",
        percentile: float = 0.9,
        detector: Head | None = None,
    ) -> None:
        super().__init__(model, feature_layer, head, detector)
        if variant not in get_args(Variant):
            raise ValueError(f'variant must be "s", "p" or "b", got {variant!r}')
        self.variant = variant.removeprefix("ash-")
        self.percentile = check_share("percentile", percentile)

    def _shaped(self, rows: Tensor) -> Tensor:
        kept, index = _largest(rows, self.percentile)
        if self.variant == "s":
            kept = kept * _ratio(rows, kept).exp()
        elif self.variant == "b":
            kept = (rows.sum(1, keepdim=True) / kept.shape[1]).expand_as(kept)
        return torch.zeros_like(rows).scatter(1, index, kept)


class SCALE(ShapedFeatures):
    """Energy of features times `exp(s1 / s2)`, s1 the sum of all, s2 of the largest (Xu et al. 2024, eq. 6-7).

    Like ASH-S without setting anything to 0. Features must be non-negative, as after a ReLU: where they are not,
    s1 / s2 is anything. The first score warns.

    Args:
        model: As `FunctionHeadDetector` takes it, with `feature_layer` and `head`.
        feature_layer: See there.
        head: See there.
        percentile: Share of each row's features that s2 leaves out, at least 0 and below 1; the paper's for ResNet-50
            on ImageNet is 0.85. pytorch-ood's default is 0.65.
        detector: Scores `[N]` of the logits `[N, K]` of scaled features; None for their energy.

    Raises:
        ValueError: `percentile` is out of range.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> head = nn.Linear(4, 1, bias=False)
        >>> _ = head.weight.data.fill_(1)
        >>> round(SCALE(head=head, percentile=0.5).predict_features(torch.tensor([[0.0, 1, 2, 5]])).item(), 3)
        -25.086
    """

    settings = ("percentile",)
    non_negative = True

    @takes_pytorch_ood("head", "percentile", "detector")
    def __init__(
        self,
        model: Model | None = None,
        feature_layer: str | None = None,
        *,
        head: Head | None = None,
        percentile: float = 0.85,
        detector: Head | None = None,
    ) -> None:
        super().__init__(model, feature_layer, head, detector)
        self.percentile = check_share("percentile", percentile)

    def _shaped(self, rows: Tensor) -> Tensor:
        kept, _ = _largest(rows, self.percentile)
        return rows * _ratio(rows, kept).exp()


def _largest(rows: Tensor, percentile: float) -> tuple[Tensor, Tensor]:
    """Values and indices `[n, k]` of each row's largest features; at least one."""
    width = rows.shape[1]
    values, index = rows.topk(max(1, width - round(width * percentile)), dim=1)
    return values, index


def _ratio(rows: Tensor, kept: Tensor) -> Tensor:
    """s1 / s2 of each row `[n, 1]`; 0 for a row of zeros, which no factor changes."""
    total, of_kept = rows.sum(1, keepdim=True), kept.sum(1, keepdim=True)
    return torch.where(of_kept == 0, 0.0, total / of_kept)
