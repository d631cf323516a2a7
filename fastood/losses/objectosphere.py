"""Objectosphere: the entropic open-set loss on the logits, and magnitudes of the features."""

from __future__ import annotations

import math

from torch import Tensor, nn

from fastood.losses.mixed_batch import check_trade_off
from fastood.losses.outlier_exposure import OutlierExposureLoss
from fastood.ops._validation import LOGIT_DTYPES, compute_dtype
from fastood.ops.outlier_loss import LossKind, LossSettings, RowArguments, outlier_loss
from fastood.ops.weighted_uniformity import Reduction


class ObjectosphereLoss(nn.Module):
    r"""Entropic open-set loss, and features that are long for in-distribution rows and short for background rows.

    With f = softmax(v) and features z,

        in-distribution   -log f_y + μ · max(ξ - ‖z‖, 0)²              background   KL(uniform ‖ f) + μ · ‖z‖²

    Dhamija et al. 2018, eq. 1 (entropic open-set, `magnitude_weight=0`) and eq. 2. Ambiguities and what is done here:
        - The background term of eq. 1 is -1/K Σ log f_k, that is KL(uniform ‖ f) + log K; the constant is left out,
          as in `OutlierExposureLoss`.
        - The paper averages over all rows of a batch; here each kind has a mean of its own, like every loss of this
          library, so that the trade-off does not depend on the mix.
        - ‖z‖ has no slope at zero; it is taken as zero there.

    Args:
        min_magnitude: ξ > 0, the length beyond which the features of an in-distribution row cost nothing. It depends on
            the network; there is no default.
        magnitude_weight: μ >= 0, of both magnitude terms; depends on the network as well.
        weight: λ >= 0, of the whole background mean; 1 in the paper.
        reduction: As in `MixedBatchLoss`, where most shapes and errors are, too.
        check_finite: As in `MixedBatchLoss`.

    Shape:
        - logits: `[N, K]`, targets: `[N]`, sample_weight: `[N]` or None, output: `[]`, as in `MixedBatchLoss`.
        - features: `[N, d]`, of one of the dtypes that logits may have, on their device; what the logits were computed
          from.

    Example:
        >>> import torch
        >>> from fastood.losses import ObjectosphereLoss
        >>> features, head = torch.nn.Linear(4, 2), torch.nn.Linear(2, 3)
        >>> optimizer = torch.optim.SGD([*features.parameters(), *head.parameters()], lr=0.1)
        >>> criterion = ObjectosphereLoss(min_magnitude=5, magnitude_weight=0.01)
        >>> generator = torch.Generator().manual_seed(0)
        >>> for _ in range(3):
        ...     z = features(torch.randn(8, 4, generator=generator))
        ...     y = torch.tensor([0, 1, 2, 0, -1, -1, -1, -1])  # the last four are background
        ...     loss = criterion(head(z), z, y)
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     optimizer.step()
    """

    def __init__(
        self,
        min_magnitude: float,
        magnitude_weight: float,
        weight: float = 1.0,
        reduction: Reduction = "weighted_mean",
        *,
        check_finite: bool = False,
    ) -> None:
        super().__init__()
        if not 0 < min_magnitude < math.inf:
            raise ValueError(f"min_magnitude must be finite and > 0, got {min_magnitude}")
        self.min_magnitude = float(min_magnitude)
        self.magnitude_weight = check_trade_off(magnitude_weight, "magnitude_weight")
        self.entropic = OutlierExposureLoss(weight, reduction, check_finite=check_finite)

    def extra_repr(self) -> str:
        """Return the settings, for `print(model)`."""
        return f"min_magnitude={self.min_magnitude}, magnitude_weight={self.magnitude_weight}"

    def forward(self, logits: Tensor, features: Tensor, targets: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the scalar loss; shapes as in the class."""
        (entropic, _), (magnitude, _) = self._parts(logits, features, targets, sample_weight)
        return entropic.add(magnitude, alpha=self.magnitude_weight)

    def with_per_sample(
        self, logits: Tensor, features: Tensor, targets: Tensor, sample_weight: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the scalar loss and, `[N]` and detached, the loss of each row as above, before λ and any weight."""
        (entropic, of_logits), (magnitude, of_features) = self._parts(logits, features, targets, sample_weight)
        return (
            entropic.add(magnitude, alpha=self.magnitude_weight),
            of_logits.add(of_features, alpha=self.magnitude_weight),
        )

    def _parts(
        self, logits: Tensor, features: Tensor, targets: Tensor, sample_weight: Tensor | None
    ) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Loss and losses of the rows, on the logits and on the features."""
        _check_features(features, logits)
        on_logits = self.entropic.with_per_sample(logits, targets, sample_weight)
        dtype = compute_dtype(features.dtype)
        weight = None if sample_weight is None else sample_weight.to(dtype).contiguous()
        settings = LossSettings(
            LossKind.MAGNITUDE,
            self.entropic.weight,
            self.min_magnitude,
            by_weight=self.entropic.reduction == "weighted_mean",
        )
        return on_logits, outlier_loss(features, RowArguments(targets.contiguous(), weight), settings)


def _check_features(features: Tensor, logits: Tensor) -> None:
    if not isinstance(features, Tensor):
        raise TypeError(f"features must be a torch.Tensor, got {type(features).__name__}")
    if features.dtype not in LOGIT_DTYPES:
        raise TypeError(f"features must be float64, float32, bfloat16 or float16, got {features.dtype}")
    if not isinstance(logits, Tensor) or logits.dim() == 0:
        return  # the check of logits says so
    if features.dim() != 2 or features.shape[0] != logits.shape[0] or features.shape[1] < 1:
        raise ValueError(
            f"features must be [N, d] with N = {logits.shape[0]} like the rows of logits and d >= 1, "
            f"got shape {tuple(features.shape)}"
        )
    if features.device != logits.device:
        raise ValueError(f"features must be on {logits.device} like logits, got {features.device}")
