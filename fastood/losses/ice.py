"""In-distribution compatible outlier exposure: likelihoods of Gaussian classes instead of logits."""

from __future__ import annotations

from fastood.losses.mixed_batch import MixedBatchLoss
from fastood.ops._arguments import as_flag
from fastood.ops._validation import Reduction
from fastood.ops.outlier_loss import LossKind, LossSettings


class ICELoss(MixedBatchLoss):
    r"""Cross-entropy and likelihood of the own class, against the likelihood of the nearest class for background.

    For logits h <= 0 whose exponential is a likelihood (negative Mahalanobis distances, eq. 0.11),

        in-distribution   -log softmax(h)_y - λ · h_y                  background   -log(1 - exp(max_i h_i))

    Wu et al. 2023, eq. 0.12-0.15. Ambiguities and what is done here:
        - The background term has no value at max h = 0, a feature exactly on a class mean. Above -2⁻²⁴ (also for logits
          that are positive, which no distance is) its value and slope stay what they are at -2⁻²⁴: 16.6 and 1.7·10⁷.
          Between -10⁻⁷ and -10⁴ both are accurate to a few units in the last place of float32.
        - Of several largest logits the first one gets the gradient.
        - Squared distances are not divided by two (eq. 0.11), so that exp(h) is no Gaussian's density ratio but its
          square. Nothing here depends on it.

    A logit of -inf is a class infinitely far away.

    Args:
        weight: λ, of both likelihood terms. The paper names it as its only setting and states no value; see
            `fastood.train.methods.ICEConfig` for how the default was found.
        reduction: As in `MixedBatchLoss`, where shapes and errors are, too.
        id_likelihood: Whether in-distribution rows have their likelihood term. Without it this is ICE⁻ of table 3, the
            ablation that leaves out one half of eq. 0.15.
        check_finite: As in `MixedBatchLoss`.

    Example:
        >>> import torch
        >>> from fastood.losses import ICELoss
        >>> features = torch.nn.Linear(4, 2)
        >>> means = torch.nn.Parameter(torch.eye(3, 2))
        >>> optimizer = torch.optim.SGD([*features.parameters(), means], lr=0.1)
        >>> criterion = ICELoss(weight=0.1)
        >>> generator = torch.Generator().manual_seed(0)
        >>> for _ in range(3):
        ...     x = torch.randn(8, 4, generator=generator)
        ...     y = torch.tensor([0, 1, 2, 0, -1, -1, -1, -1])  # the last four are background
        ...     loss = criterion(-torch.cdist(features(x), means).square(), y)
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step()
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
        """Return what the kernel needs to know."""
        kind = LossKind.ICE if self.id_likelihood else LossKind.ICE_MINUS
        return LossSettings(kind, self.weight, by_weight=self.reduction == "weighted_mean")


class SigmoidLikelihoodLoss(MixedBatchLoss):
    r"""What `ICELoss` is without Gaussian classes: the sigmoid of any logit in the place of the likelihood.

    With s the sigmoid and f = softmax(v),

        in-distribution   -log f_y - λ · log s(v_y)                    background   -log(1 - s(max_i v_i))

    The row "BCE" of Wu et al. 2023, table 3: "sigmoid binary cross-entropy" on a linear head. The paper has no formula
    for it; this is eq. 0.13-0.15 with exp(h) read as s(v), so that the two differ in the likelihood alone.

    Args:
        weight: λ, of both likelihood terms.
        reduction: As in `MixedBatchLoss`, where shapes and errors are, too.
        check_finite: As in `MixedBatchLoss`.

    Example:
        >>> import torch
        >>> from fastood.losses import SigmoidLikelihoodLoss
        >>> criterion = SigmoidLikelihoodLoss(weight=0.5)
        >>> round(criterion(torch.zeros(2, 4), torch.tensor([0, -1])).item(), 4)  # log 4 + log 2
        2.0794
    """

    def __init__(
        self, weight: float = 0.3, reduction: Reduction = "weighted_mean", *, check_finite: bool = False
    ) -> None:
        super().__init__(weight, reduction, check_finite=check_finite)

    def settings(self) -> LossSettings:
        """Return what the kernel needs to know."""
        return LossSettings(LossKind.SIGMOID, self.weight, by_weight=self.reduction == "weighted_mean")
