"""Detectors that modify the penultimate features and score the energy of the resulting logits."""

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
"""An `nn.Linear` or another function from features to logits `[N, K]`."""
Variant = Literal["s", "p", "b", "ash-s", "ash-p", "ash-b"]


class ShapedFeatures(FunctionHeadDetector):
    """`-logsumexp(W s(z) + b)` for a shape s of the features z.

    Args:
        model: The network, or a function from inputs to features; None for `fit_features` and `predict_features` only.
        feature_layer: Name of the layer whose output is the features; None for the input of the head.
        head: An `nn.Linear`, another module or a function from features to logits `[N, K]`; None for the last
            `nn.Linear` of `model`.
        detector: Function from the logits `[N, K]` of s(z) to scores `[N]`; None for their energy.
    """

    def __init__(
        self, model: Model | None, feature_layer: str | None, head: Head | None, detector: Head | None
    ) -> None:
        super().__init__(model, feature_layer, head=head)
        self._detector = detector

    def predict_feature_maps(self, feature_maps: Tensor) -> Tensor:
        """Return `predict_features(feature_maps)`, under pytorch-ood's name."""
        return self.predict_features(feature_maps)

    def fit_feature_maps(self, feature_maps: Tensor, y: Tensor) -> Self:
        """Call `fit_features(feature_maps, y)`, under pytorch-ood's name."""
        return self.fit_features(feature_maps, y)

    non_negative: ClassVar[bool] = False
    """Whether the score assumes features of at least 0."""
    _inputs_checked = False

    def _score(self, rows: Tensor) -> Tensor:
        # Checked for the first rows only: the check reads values, which synchronises with a GPU.
        if self.non_negative and not self._inputs_checked and len(rows) > 0:
            self._inputs_checked = True
            warn_unless_non_negative(type(self).__name__, rows)
        return self._of_logits(self._logits(self._shaped(rows)))

    @abstractmethod
    def _shaped(self, rows: Tensor) -> Tensor:
        """Return s(z), float64 `[n, d]`."""


class ReAct(ShapedFeatures):
    """Energy of features clipped from above, `s(z) = min(z, c)` (ReAct, Sun et al. 2021, eq. 2).

    https://arxiv.org/abs/2111.12797. c is a quantile of all features of all training rows. It is computed exactly, in
    two passes over the data that store counts only; pytorch-ood stores every feature. If the passes differ, for example
    by random augmentation, c is within 1 % of the quantile of the first pass.

    Args:
        model: The network, or a function from inputs to features; None for `fit_features` and `predict_features` only.
        feature_layer: Name of the layer whose output is the features; None for the input of the head.
        head: An `nn.Linear`, another module or a function from features to logits `[N, K]`; None for the last
            `nn.Linear` of `model`.
        percentile: Level of the quantile c, at least 0 and below 1; 0.9 in the paper.
        threshold: Value of c, with which `fit` is not needed; None for the quantile.
        detector: Function from the logits `[N, K]` of clipped features to scores `[N]`; None for their energy.

    Raises:
        ValueError: If a setting is out of range.

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
            seen = f"features are clipped at {threshold:.3g}, because {zeros:.1%} of them are 0 or below"
            warn("ReAct", seen, f"Set percentile above {zeros:.3f}, got {self.percentile}")
        return {"threshold": torch.tensor(threshold, dtype=torch.float64)}

    def _shaped(self, rows: Tensor) -> Tensor:
        # The threshold is on the CPU: a number needs no copy, for which the host would wait.
        return rows.clamp(max=float(self._state["threshold"]))

    def _zeros(self, batches: Batches) -> float:
        """Return the fraction of training features at 0 or below."""
        counts = [(int((rows <= 0).sum()), rows.numel()) for rows, _ in batches()]
        return sum(zeros for zeros, _ in counts) / sum(count for _, count in counts)


class ASH(ShapedFeatures):
    """Energy of the largest features of each row, with the others set to 0 (ASH, Djurisic et al. 2023, section 3).

    https://arxiv.org/abs/2209.09858. In each row the fraction `percentile` of smallest features is set to 0. With `s1`
    the sum of all features and `s2` the sum of the k kept ones, the variants are

        "s"  kept features times exp(s1 / s2)
        "p"  kept features unchanged
        "b"  kept features replaced by s1 / k

    Features must be non-negative, as after a ReLU; otherwise s1 / s2 is unbounded, and the first score warns.

    Args:
        model: The network, or a function from inputs to features; None for `fit_features` and `predict_features` only.
        feature_layer: Name of the layer whose output is the features; None for the input of the head.
        head: An `nn.Linear`, another module or a function from features to logits `[N, K]`; None for the last
            `nn.Linear` of `model`.
        variant: "s", "p" or "b", or pytorch-ood's names "ash-s", "ash-p", "ash-b".
        percentile: Fraction of features set to 0, at least 0 and below 1; 0.9 in the paper for "s" on ImageNet with
            2048 features. pytorch-ood's default is 0.65.
        detector: Function from the logits `[N, K]` of s(z) to scores `[N]`; None for their energy.

    Raises:
        ValueError: If a setting is out of range.

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
    """Energy of features times `exp(s1 / s2)`, s1 the sum of all, s2 of the largest (SCALE, Xu et al. 2024, eq. 6-7).

    https://arxiv.org/abs/2310.00227. Unlike ASH-S it sets no feature to 0. Features must be non-negative, as after a
    ReLU; otherwise s1 / s2 is unbounded, and the first score warns.

    Args:
        model: The network, or a function from inputs to features; None for `fit_features` and `predict_features` only.
        feature_layer: Name of the layer whose output is the features; None for the input of the head.
        head: An `nn.Linear`, another module or a function from features to logits `[N, K]`; None for the last
            `nn.Linear` of `model`.
        percentile: Fraction of each row's features that s2 omits, at least 0 and below 1; 0.85 in the paper for
            ResNet-50 on ImageNet. pytorch-ood's default is 0.65.
        detector: Function from the logits `[N, K]` of scaled features to scores `[N]`; None for their energy.

    Raises:
        ValueError: If `percentile` is out of range.

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
    """Return values and indices `[n, k]` of each row's largest features, at least one."""
    width = rows.shape[1]
    # At least one feature, so that s2 and k are not 0 at high percentiles.
    values, index = rows.topk(max(1, width - round(width * percentile)), dim=1)
    return values, index


def _ratio(rows: Tensor, kept: Tensor) -> Tensor:
    """Return s1 / s2 of each row `[n, 1]`."""
    total, of_kept = rows.sum(1, keepdim=True), kept.sum(1, keepdim=True)
    # A row of zeros gives 0 / 0. Any finite ratio is correct there, because it scales zeros.
    return torch.where(of_kept == 0, 0.0, total / of_kept)
