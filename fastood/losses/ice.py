"""In-distribution compatible outlier exposure (ICE, Wu et al. 2023): likelihoods of Gaussian classes as logits."""

from __future__ import annotations

from fastood.losses.mixed_batch import MixedBatchLoss
from fastood.ops._arguments import as_flag
from fastood.ops._validation import Reduction
from fastood.ops.outlier_loss import LossKind, LossSettings

__all__ = ["ICELoss", "SigmoidLikelihoodLoss"]


class ICELoss(MixedBatchLoss):
    r"""Cross-entropy plus terms that raise the likelihood of the target class and lower it for background rows.

    For logits h <= 0 whose exponential is a likelihood (negative Mahalanobis distances, eq. 0.11),

        in-distribution   -log softmax(h)_y - λ · h_y                  background   -log(1 - exp(max_i h_i))

    Wu et al. 2023, eq. 0.12-0.15. Ambiguities and how they are resolved:
        - The background term is infinite at max h = 0, a feature exactly on a class mean. Above -2⁻²⁴ (and for positive
          logits, which no negative distance is) its value and slope stay constant at 16.6 and 1.7·10⁷. Between -10⁻⁷
          and -10⁴ both are accurate to a few units in the last place of float32.
        - If several logits are the largest, the first one gets the gradient.
        - Eq. 0.11 does not halve squared distances, so that exp(h) is the square of a Gaussian density ratio. The loss
          does not depend on this factor.

    A logit of -inf represents a class at infinite distance.

    Args:
        weight: λ >= 0, the factor of both likelihood terms. The paper calls it the only setting and states no value;
            `fastood.train.methods.ICEConfig` documents the choice of the default.
        reduction: How row losses are combined; see `MixedBatchLoss`.
        id_likelihood: Whether to include the likelihood term -λ · h_y of in-distribution rows. False gives the ablation
            ICE⁻ of table 3, which omits this half of eq. 0.15.
        check_finite: Raise on NaN or infinite inputs; see `MixedBatchLoss`.

    Shape:
        See `MixedBatchLoss`.

    Raises:
        TypeError: If a setting is of another type.
        ValueError: If a setting is out of range.

    Example:
        The logits are negative squared distances; `CholeskyMahalanobisHead` computes them with a learnt covariance:

        >>> import torch
        >>> features = torch.tensor([[0.5, 0.0], [0.0, 1.0]])
        >>> means = torch.tensor([[0.0, 0.0], [4.0, 0.0]], requires_grad=True)
        >>> distances = torch.cdist(features, means).square()
        >>> loss = ICELoss(weight=0.1)(-distances, torch.tensor([0, -1]))  # the second row is background
        >>> loss.backward()
        >>> means.grad.norm() > 0
        tensor(True)
    """

    def __init__(
        self,
        weight: float = 0.3,
        reduction: Reduction = "weighted_mean",
        *,
        id_likelihood: bool = True,
        check_finite: bool = False,
    ) -> None:
        super().__init__(weight, reduction, check_finite=check_finite)
        self.id_likelihood = as_flag("id_likelihood", id_likelihood)

    def extra_repr(self) -> str:
        """Return the settings, for `print(model)`."""
        return f"{super().extra_repr()}, id_likelihood={self.id_likelihood}"

    def settings(self) -> LossSettings:
        """Return the settings of the kernel."""
        kind = LossKind.ICE if self.id_likelihood else LossKind.ICE_MINUS
        return LossSettings(kind, self.weight, by_weight=self.reduction == "weighted_mean")


class SigmoidLikelihoodLoss(MixedBatchLoss):
    r"""`ICELoss` for a linear head: the sigmoid of a logit replaces the likelihood of a Gaussian class.

    With s the sigmoid and f = softmax(v),

        in-distribution   -log f_y - λ · log s(v_y)                    background   -log(1 - s(max_i v_i))

    The row "BCE" of Wu et al. 2023, table 3: "sigmoid binary cross-entropy" on a linear head. The paper has no formula
    for it; here it is eq. 0.13-0.15 with s(v) instead of exp(h), so that only the likelihood differs from `ICELoss`.

    Args:
        weight: λ >= 0, the factor of both likelihood terms.
        reduction: How row losses are combined; see `MixedBatchLoss`.
        check_finite: Raise on NaN or infinite inputs; see `MixedBatchLoss`.

    Shape:
        See `MixedBatchLoss`.

    Raises:
        TypeError: If a setting is of another type.
        ValueError: If a setting is out of range.

    Example:
        >>> import torch
        >>> criterion = SigmoidLikelihoodLoss(weight=0.5)
        >>> round(criterion(torch.zeros(2, 4), torch.tensor([0, -1])).item(), 4)  # log 4 + log 2
        2.0794
    """

    def __init__(
        self, weight: float = 0.3, reduction: Reduction = "weighted_mean", *, check_finite: bool = False
    ) -> None:
        super().__init__(weight, reduction, check_finite=check_finite)

    def settings(self) -> LossSettings:
        """Return the settings of the kernel."""
        return LossSettings(LossKind.SIGMOID, self.weight, by_weight=self.reduction == "weighted_mean")
