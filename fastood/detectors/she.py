"""Simplified Hopfield energy (Zhang et al. 2023)."""

from __future__ import annotations

from torch import Tensor

from fastood.detectors.assumptions import warn
from fastood.detectors.function_head import FunctionHeadDetector
from fastood.detectors.pytorch_ood_names import takes_pytorch_ood
from fastood.detectors.row_detector import Batches, State

__all__ = ["SHE"]


class SHE(FunctionHeadDetector):
    """Simplified Hopfield energy, `-z · S_k` of features z predicted as class k (Zhang et al. 2023, eq. 6).

    `S_k` is the mean feature of the training rows of class k that the head classifies correctly. A class without such a
    row has the pattern 0, and rows predicted as that class the score 0, which is the highest possible score of
    non-negative features. Fitting warns if features are negative.

    Args:
        model: The network, or a function from inputs to features; None for `fit_features` and `predict_features` only.
        feature_layer: Name of the layer whose output is the features; None for the input of the head.
        head: An `nn.Linear`, another module or a function from features to logits `[N, K]`; None for the last
            `nn.Linear` of `model`.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> head = nn.Linear(2, 2, bias=False)
        >>> _ = head.weight.data.copy_(torch.eye(2))
        >>> features = torch.tensor([[2.0, 0.0], [4.0, 0.0], [9.0, 1.0]])
        >>> detector = SHE(head=head).fit_features(features, torch.tensor([0, 0, 1]))  # the last is misclassified
        >>> detector.predict_features(torch.tensor([[2.0, 1.0]]))
        tensor([-6.], dtype=torch.float64)
    """

    needs_fit = True

    __init__ = takes_pytorch_ood("head")(FunctionHeadDetector.__init__)

    def _fitted(self, batches: Batches) -> State:
        total: Tensor | None = None
        for rows, labels in batches():
            logits = self._logits(rows)
            if total is None:
                total = rows.new_zeros(logits.shape[1], rows.shape[1])
                counts = rows.new_zeros(len(total))
            predicted = logits.argmax(1)
            right = predicted == labels
            total.index_add_(0, predicted[right], rows[right])
            counts.index_add_(0, predicted[right], right[right].double())
        assert total is not None
        if not bool(counts.any()):
            raise ValueError("there must be at least one row that the head classifies correctly to fit to, got none")
        if bool((counts == 0).any()) and bool((total < 0).any()):
            empty = int((counts == 0).sum())
            seen = f"{empty} of {len(counts)} classes have no correctly classified row, and features are negative"
            remedy = "Pass correctly classified rows of every class, or features after a ReLU"
            warn("SHE", seen + ": the score 0 of rows predicted as those classes need not be high", remedy)
        # The clamp avoids 0 / 0 of a class without correct rows, which has the pattern 0.
        return {"patterns": total / counts.clamp_min(1)[:, None]}

    def _score(self, rows: Tensor) -> Tensor:
        return -(rows * self._state["patterns"][self._logits(rows).argmax(1)]).sum(1)
