"""Reference of the weighted uniformity loss in plain float64 PyTorch.

Li & Vasconcelos 2020
(https://openaccess.thecvf.com/content_CVPR_2020/html/Li_Background_Data_Resampling_for_Outlier-Aware_Classification_CVPR_2020_paper.html).
"""

from __future__ import annotations

from torch import Tensor

from fastood.ops.loss_kind import LossKind
from fastood.ops.reference.outlier_loss import outlier_loss


def weighted_uniformity(
    logits: Tensor, weight: Tensor | None = None, *, reduction: str = "weighted_mean"
) -> tuple[Tensor, Tensor]:
    """Compute the weighted uniformity loss: eq. 5 and 14 for `"weighted_mean"`, supplementary eq. 10 for `"mean"`.

    Args:
        logits: `[N, K]`, any floating-point dtype.
        weight: `[N]`, or None for all ones.
        reduction: `"weighted_mean"` or `"mean"`.

    Returns:
        loss `[]` and per_sample `[N]`, float64, differentiable to any order.

    Example:
        >>> import torch
        >>> loss, per_sample = weighted_uniformity(torch.zeros(2, 10))
        >>> float(loss)
        0.0
    """
    return outlier_loss(logits, None, weight, None, LossKind.UNIFORMITY, by_weight=reduction == "weighted_mean")
