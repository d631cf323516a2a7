"""Outlier exposure: background predictions are pulled towards the uniform distribution, or towards high entropy."""

from __future__ import annotations

from fastood.losses.mixed_batch import MixedBatchLoss
from fastood.ops._validation import Reduction, check_number
from fastood.ops.outlier_loss import LossKind, LossSettings

__all__ = ["EntropyMaximizationLoss", "OutlierExposureLoss"]


class OutlierExposureLoss(MixedBatchLoss):
    r"""Cross-entropy on in-distribution rows, KL(uniform ‖ predicted) on background rows.

    With f = softmax(v) over K classes,

        in-distribution   -log f_y                                     background   logsumexp(v) - mean(v) - log K

    Hendrycks et al. 2019 (https://arxiv.org/abs/1812.04606), who leave out the constant `- log K`; Li & Vasconcelos
    2020, eq. 1-5, with importance weights eq. 14 and supplementary eq. 10
    (https://openaccess.thecvf.com/content_CVPR_2020/html/Li_Background_Data_Resampling_for_Outlier-Aware_Classification_CVPR_2020_paper.html).

    The background term is accurate to five digits near uniform predictions, where training moves background rows and
    where `log_softmax` in float32 loses all digits (`fastood.ops.weighted_uniformity`). A logit of -inf makes the loss
    of a background row +inf.

    pytorch-ood's loss of the same name keeps `+ log K`, and its `"mean"` is one mean over all rows, with a trade-off
    that depends on the mix of the batch; its gradient equals that of `OutlierExposureLoss(reduction="sum")` divided by
    the number of rows.

    Args:
        weight: α >= 0, the factor of the background term. Both papers use 0.5.
        reduction: How row losses are combined; see `MixedBatchLoss`.
        alpha: pytorch-ood's name of `weight`; pass one of the two.
        check_finite: Raise on NaN or infinite inputs; see `MixedBatchLoss`.

    Shape:
        See `MixedBatchLoss`.

    Raises:
        TypeError: If a setting is of another type.
        ValueError: If a setting is out of range.

    Example:
        A training loop on mixed batches:

        >>> import torch
        >>> model = torch.nn.Linear(4, 3)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> criterion = OutlierExposureLoss(weight=0.5)
        >>> generator = torch.Generator().manual_seed(0)
        >>> for _ in range(3):
        ...     x = torch.randn(8, 4, generator=generator)
        ...     y = torch.tensor([0, 1, 2, 0, -1, -1, -1, -1])  # the last four are background
        ...     loss = criterion(model(x), y)
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step()
    """

    def __init__(
        self,
        weight: float = 0.5,
        reduction: Reduction = "weighted_mean",
        *,
        alpha: float | None = None,
        check_finite: bool = False,
    ) -> None:
        if alpha is not None and weight != 0.5:
            raise TypeError(f"weight and alpha are one setting, got both: {weight} and {alpha}")
        if alpha is not None:
            weight = check_number("alpha", alpha, 0)
        super().__init__(weight, reduction, check_finite=check_finite)

    def settings(self) -> LossSettings:
        """Return the settings of the kernel."""
        return LossSettings(LossKind.UNIFORMITY, self.weight, by_weight=self.reduction == "weighted_mean")


class EntropyMaximizationLoss(MixedBatchLoss):
    r"""Cross-entropy on in-distribution rows, negative entropy of the prediction on background rows.

    With f = softmax(v) over K classes,

        in-distribution   -log f_y                                     background   Σ_k f_k log f_k + log K

    Li & Vasconcelos 2020, section 5.4, where it is compared with `OutlierExposureLoss`. Ambiguity: the paper omits
    `+ log K`, its code includes it. With the constant the term is KL(predicted ‖ uniform) >= 0; `BackgroundPool.ascend`
    requires losses of at least 0. It is computed without cancellation near uniform predictions. A logit of -inf counts
    as f = 0.

    Args:
        weight: α >= 0, the factor of the background term; the paper uses 0.5.
        reduction: How row losses are combined; see `MixedBatchLoss`.
        check_finite: Raise on NaN or infinite inputs; see `MixedBatchLoss`.

    Shape:
        See `MixedBatchLoss`.

    Raises:
        TypeError: If a setting is of another type.
        ValueError: If a setting is out of range.

    Example:
        The background term ranges from 0, for equal logits, to log K, for a one-hot prediction:

        >>> import torch
        >>> criterion = EntropyMaximizationLoss(weight=1.0)
        >>> criterion(torch.zeros(1, 4), torch.tensor([-1])), criterion(torch.tensor([[99.0, 0, 0, 0]]), [-1])
        (tensor(0.), tensor(1.3863))
    """

    def __init__(
        self, weight: float = 0.5, reduction: Reduction = "weighted_mean", *, check_finite: bool = False
    ) -> None:
        super().__init__(weight, reduction, check_finite=check_finite)

    def settings(self) -> LossSettings:
        """Return the settings of the kernel."""
        return LossSettings(LossKind.ENTROPY, self.weight, by_weight=self.reduction == "weighted_mean")
