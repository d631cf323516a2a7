"""In-distribution compatible outlier exposure: likelihoods of Gaussian classes instead of logits."""

from __future__ import annotations

from fastood.losses.mixed_batch import MixedBatchLoss
from fastood.ops.outlier_loss import LossKind, LossSettings
from fastood.ops.weighted_uniformity import Reduction


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
        weight: λ, of both likelihood terms. The paper names it as its only setting and states no value.
        reduction: As in `MixedBatchLoss`, where shapes and errors are, too.
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
        self, weight: float = 1.0, reduction: Reduction = "weighted_mean", *, check_finite: bool = False
    ) -> None:
        super().__init__(weight, reduction, check_finite=check_finite)

    def settings(self) -> LossSettings:
        """Return what the kernel needs to know."""
        return LossSettings(LossKind.ICE, self.weight, by_weight=self.reduction == "weighted_mean")
