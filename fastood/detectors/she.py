"""Simplified Hopfield energy (Zhang et al. 2023)."""

from __future__ import annotations

from torch import Tensor

from fastood.detectors.assumptions import warn
from fastood.detectors.function_head import FunctionHeadDetector
from fastood.detectors.pytorch_ood_names import takes_pytorch_ood
from fastood.detectors.row_detector import Batches, State

__all__ = ["SHE"]


class SHE(FunctionHeadDetector):
    """`-z · S_k` of features z that the head takes for class k (Zhang et al. 2023, eq. 6).

    `S_k` is the mean feature of the training rows of class k that the head takes for it, too. A class without such a
    row stores nothing: its pattern is 0, and so is the score of what is taken for it, more than any that features which
    are not negative can have otherwise; fitting warns where they are negative.

    Args:
        model: As `FunctionHeadDetector` takes it, with `feature_layer` and `head`.
        feature_layer: See there.
        head: See there.

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
            taken_for = logits.argmax(1)
            right = taken_for == labels
            total.index_add_(0, taken_for[right], rows[right])
            counts.index_add_(0, taken_for[right], right[right].double())
        assert total is not None
        if not bool(counts.any()):
            raise ValueError("there must be at least one row that the head classifies correctly to fit to, got none")
        if bool((counts == 0).any()) and bool((total < 0).any()):
            empty = int((counts == 0).sum())
            seen = (
                f"{empty} of {len(counts)} classes have no row that the head takes for them, and features are negative"
            )
            remedy = "Give rows of every class that the head classifies correctly, or features after a ReLU"
            warn("SHE", seen + ": a score of 0 for what is taken for those classes need not be a high one", remedy)
        return {"patterns": total / counts.clamp_min(1)[:, None]}

    def _score(self, rows: Tensor) -> Tensor:
        return -(rows * self._state["patterns"][self._logits(rows).argmax(1)]).sum(1)
