"""DICE: directed sparsification of the head (Sun & Li 2022, https://arxiv.org/abs/2111.09805)."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastood.detectors.assumptions import warn
from fastood.detectors.head_detector import HeadDetector
from fastood.detectors.linear_head import head_logits
from fastood.detectors.logits import check_share
from fastood.detectors.model_calls import Model
from fastood.detectors.pytorch_ood_names import takes_pytorch_ood
from fastood.detectors.row_detector import Batches, State

__all__ = ["DICE"]


class DICE(HeadDetector):
    """Energy of a head that keeps only the weights that contribute most on training data (Sun & Li 2022, eq. 4-5).

    The contribution of weight `W_kc` is `W_kc E[z_c]`. Weights with a contribution at or below the quantile `sparsity`
    of all contributions become 0; the bias is unchanged.

    Args:
        model: The network, or a function from inputs to features; None for `fit_features` and `predict_features` only.
        feature_layer: Name of the layer whose output is the features; None for the input of the head.
        head: The `nn.Linear` from features to logits; None for the last one of `model`.
        sparsity: Fraction p of the weights that become 0, at least 0 and below 1; in the paper 0.9 for CIFAR and 0.7
            for ImageNet.
        detector: Function from the logits `[N, K]` of the sparse head to scores `[N]`; None for their energy.

    Raises:
        ValueError: If `sparsity` is out of range.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> head = nn.Linear(3, 1, bias=False)
        >>> _ = head.weight.data.copy_(torch.tensor([[1.0, 1.0, -1.0]]))
        >>> detector = DICE(head=head, sparsity=0.5).fit_features(torch.tensor([[1.0, 2, 3]]), torch.tensor([0]))
        >>> detector.predict_features(torch.tensor([[7.0, 4.0, 1.0]]))  # keeps the second weight
        tensor([-4.], dtype=torch.float64)
    """

    needs_fit = True
    settings = ("sparsity",)

    @takes_pytorch_ood("w", "b", "p", "detector", p="sparsity")
    def __init__(
        self,
        model: Model | None = None,
        feature_layer: str | None = None,
        *,
        head: nn.Linear | None = None,
        sparsity: float = 0.9,
        detector: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(model, feature_layer, head=head)
        self._detector = detector
        self.sparsity = check_share("sparsity", sparsity)

    def _fitted(self, batches: Batches) -> State:
        weight = self.head.weight.detach().double()
        total, count = weight.new_zeros(weight.shape[1]), 0
        for rows, _ in batches():
            total += rows.sum(0)
            count += len(rows)
        contribution = weight * (total / count)
        # kthvalue and not torch.quantile, which refuses large tensors. No contribution is between the interpolated
        # quantile and the order statistic below it, so that both keep the same weights.
        rank = math.floor(self.sparsity * (weight.numel() - 1)) + 1
        threshold = contribution.flatten().kthvalue(rank).values
        kept = contribution > threshold
        if not bool(kept.any()):
            seen = f"no weight contributes more than the quantile {self.sparsity}, {float(threshold):.3g}"
            warn("DICE", seen + ": all weights become 0 and all scores are equal", "Set a lower sparsity")
        return {"weight": torch.where(kept, weight, 0.0)}

    def _score(self, rows: Tensor) -> Tensor:
        return self._of_logits(head_logits(self.head, rows, self._state["weight"]))
