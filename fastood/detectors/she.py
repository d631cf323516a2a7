"""Simplified Hopfield energy (Zhang et al. 2023)."""

from __future__ import annotations

from torch import Tensor, float64

from fastood.detectors.head_detector import HeadDetector
from fastood.detectors.row_detector import Batches, State


class SHE(HeadDetector):
    """`-z · S_k` of features z that the head takes for class k (Zhang et al. 2023, eq. 6).

    `S_k` is the mean feature of the training rows of class k that the head takes for it, too. A class without such a
    row stores nothing: its pattern is 0, and so is the score of what is taken for it, more than any that features which
    are not negative can have otherwise.

    Args:
        model: As `HeadDetector` takes it, with `feature_layer` and `head`.
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

    def _fitted(self, batches: Batches) -> State:
        weight = self.head.weight
        total = weight.new_zeros(weight.shape, dtype=float64)
        counts = total.new_zeros(len(total))
        for rows, labels in batches():
            taken_for = self._logits(rows).argmax(1)
            right = taken_for == labels
            total.index_add_(0, taken_for[right], rows[right])
            counts.index_add_(0, taken_for[right], right[right].double())
        if not bool(counts.any()):
            raise ValueError("there must be at least one row that the head classifies correctly to fit to, got none")
        return {"patterns": total / counts.clamp_min(1)[:, None]}

    def _score(self, rows: Tensor) -> Tensor:
        return -(rows * self._state["patterns"][self._logits(rows).argmax(1)]).sum(1)
