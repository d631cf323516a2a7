"""Outlier exposure: background rows are pulled towards the uniform distribution, or away from low entropy."""

from __future__ import annotations

from fastood.losses.mixed_batch import MixedBatchLoss
from fastood.ops._validation import Reduction, check_number
from fastood.ops.outlier_loss import LossKind, LossSettings


class OutlierExposureLoss(MixedBatchLoss):
    r"""Cross-entropy on in-distribution rows, KL(uniform ‖ predicted) on background rows.

    With f = softmax(v) over K classes,

        in-distribution   -log f_y                                     background   logsumexp(v) - mean(v) - log K

    Hendrycks et al. 2019; Li & Vasconcelos 2020, eq. 1-5 (with importance weights: eq. 14 and supplementary eq. 10).
    The paper of 2019 leaves out `- log K`, a constant. The background term keeps five digits where a trained network
    puts its background rows, near the uniform point, where `log_softmax` in float32 has none
    (`fastood.ops.weighted_uniformity`).
    A logit of -inf makes the loss of a background row +inf.

    pytorch-ood's loss of this name keeps `+ log K`, and its `"mean"` is one over all rows, which lets the mix of the
    batch decide the trade-off; the gradient is that of `OutlierExposureLoss(reduction="sum")` over the number of rows.

    Args:
        weight: α, the factor of the background term. Both papers use 0.5.
        reduction: As in `MixedBatchLoss`, where shapes and errors are, too.
        alpha: `weight` under pytorch-ood's name; one of the two.
        check_finite: As in `MixedBatchLoss`.

    Example:
        A plain loop on mixed batches:

        >>> import torch
        >>> from fastood.losses import OutlierExposureLoss
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
        """Return what the kernel needs to know."""
        return LossSettings(LossKind.UNIFORMITY, self.weight, by_weight=self.reduction == "weighted_mean")


class EntropyMaximizationLoss(MixedBatchLoss):
    r"""Cross-entropy on in-distribution rows, negative entropy on background rows.

    With f = softmax(v) over K classes,

        in-distribution   -log f_y                                     background   Σ_k f_k log f_k + log K

    Li & Vasconcelos 2020, section 5.4, where it is compared with `OutlierExposureLoss`. The paper has no `+ log K`, its
    code has; with it the term is KL(predicted ‖ uniform) >= 0, which is what a background pool's weights need. It is
    computed without cancellation near the uniform point, as the other is. A logit of -inf counts as f = 0.

    Args:
        weight: α, the factor of the background term; the paper uses 0.5.
        reduction: As in `MixedBatchLoss`, where shapes and errors are, too.
        check_finite: As in `MixedBatchLoss`.

    Example:
        >>> import torch
        >>> from fastood.losses import EntropyMaximizationLoss
        >>> model = torch.nn.Linear(4, 3)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> criterion = EntropyMaximizationLoss(weight=0.5)
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
        self, weight: float = 0.5, reduction: Reduction = "weighted_mean", *, check_finite: bool = False
    ) -> None:
        super().__init__(weight, reduction, check_finite=check_finite)

    def settings(self) -> LossSettings:
        """Return what the kernel needs to know."""
        return LossSettings(LossKind.ENTROPY, self.weight, by_weight=self.reduction == "weighted_mean")
