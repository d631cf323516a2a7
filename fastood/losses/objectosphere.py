"""Entropic open-set loss on the logits, and objectosphere loss on logits and feature magnitudes.

Both are from Dhamija et al. 2018 (https://arxiv.org/abs/1811.04110).
"""

from __future__ import annotations

from torch import Tensor, nn

from fastood.losses.outlier_exposure import OutlierExposureLoss
from fastood.ops._rows import Numbers, as_sample_weight, check_dense_logits
from fastood.ops._validation import LOGIT_DTYPES, Reduction, check_number, check_tensor
from fastood.ops.outlier_loss import LossKind, LossSettings
from fastood.ops.outlier_terms import reduced_loss

__all__ = ["EntropicOpenSetLoss", "ObjectosphereLoss"]


class EntropicOpenSetLoss(OutlierExposureLoss):
    r"""Cross-entropy on in-distribution rows, KL(uniform ‖ predicted) on background rows, with equal weights.

        in-distribution   -log f_y                                     background   KL(uniform ‖ f)

    Dhamija et al. 2018, eq. 1 (https://arxiv.org/abs/1811.04110): `OutlierExposureLoss` with a weight of 1. The paper
    and pytorch-ood's loss of the same name add the constant log K to the background term and take one mean over all
    rows.

    Args:
        reduction: Reduction over rows; see `MixedBatchLoss`.
        check_finite: Raise on NaN or infinite inputs; see `MixedBatchLoss`.

    Shape:
        See `MixedBatchLoss`.

    Raises:
        TypeError: If a setting is of another type.
        ValueError: If a setting is out of range.

    Example:
        Equal logits predict the uniform distribution: the loss is log 4 in-distribution and 0 for background:

        >>> import torch
        >>> EntropicOpenSetLoss(reduction="none")(torch.zeros(2, 4), torch.tensor([0, -1]))
        tensor([1.3863, 0.0000])
    """

    def __init__(self, reduction: Reduction = "weighted_mean", *, check_finite: bool = False) -> None:
        super().__init__(1.0, reduction, check_finite=check_finite)


class ObjectosphereLoss(nn.Module):
    r"""Entropic open-set loss plus penalties on short in-distribution features and on long background features.

    With f = softmax(v) and features z,

        in-distribution   -log f_y + μ · max(ξ - ‖z‖, 0)²              background   KL(uniform ‖ f) + μ · ‖z‖²

    Dhamija et al. 2018, eq. 1 and 2 (https://arxiv.org/abs/1811.04110); `magnitude_weight=0` leaves eq. 1. Ambiguities
    and how they are resolved:
        - The background term of eq. 1 is -1/K Σ log f_k, that is KL(uniform ‖ f) + log K; the constant is left out, as
          in `OutlierExposureLoss`.
        - The paper averages over all rows of a batch; here each kind of row has its own mean, as in every loss of this
          library, so that the trade-off does not depend on the mix of the batch.
        - ‖z‖ is not differentiable at zero; its gradient there is taken as zero.
        - With μ = 0 the features have no influence, even infinite ones.

    Args:
        min_magnitude: ξ > 0, the norm above which in-distribution features are not penalised. It depends on the network
            and has no default.
        magnitude_weight: μ >= 0, the factor of both magnitude terms. It depends on the network and has no default.
        weight: λ >= 0, the factor of the background mean; 1 in the paper.
        reduction: How row losses are combined; see `MixedBatchLoss`.
        alpha: pytorch-ood's name of `magnitude_weight`; pass one of the two. In pytorch-ood it is the first positional
            argument.
        xi: pytorch-ood's name of `min_magnitude`; pass one of the two.
        check_finite: Raise on NaN or infinite inputs; see `MixedBatchLoss`.

    Shape:
        - logits: `[N, K]`; dtypes as in `MixedBatchLoss`.
        - features: `[N, d]`, the features that the logits were computed from; float64, float32, bfloat16 or float16, on
          the device of the logits.
        - targets: `[N]`, a class in `0 … K - 1`, or below zero for background.
        - sample_weight: `[N]` numbers >= 0, or None for all ones.
        - output: `[]`, or `[N]` for `reduction="none"`.

    Raises:
        TypeError: If an argument has another type or dtype, or not exactly one name of a setting is passed.
        ValueError: If an argument has the wrong shape or device, or a setting is out of range.

    Example:
        Unlike the other losses it takes the features as well as the logits:

        >>> import torch
        >>> criterion = ObjectosphereLoss(min_magnitude=5, magnitude_weight=0.01, reduction="none")
        >>> logits, features = torch.zeros(2, 2), torch.tensor([[3.0, 0.0], [3.0, 0.0]])
        >>> criterion(logits, features, torch.tensor([0, -1]))  # log 2 + 0.01 · (5 - 3)², and 0.01 · 3²
        tensor([0.7331, 0.0900])
    """

    def __init__(
        self,
        min_magnitude: float | None = None,
        magnitude_weight: float | None = None,
        weight: float = 1.0,
        reduction: Reduction = "weighted_mean",
        *,
        alpha: float | None = None,
        xi: float | None = None,
        check_finite: bool = False,
    ) -> None:
        super().__init__()
        name, least = _one_of("min_magnitude", min_magnitude, "xi", xi)
        self.min_magnitude = check_number(name, least, 0, above_low=True)
        name, factor = _one_of("magnitude_weight", magnitude_weight, "alpha", alpha)
        self.magnitude_weight = check_number(name, factor, 0)
        self.entropic = OutlierExposureLoss(weight, reduction, check_finite=check_finite)

    def extra_repr(self) -> str:
        """Return the settings, for `print(model)`."""
        return f"min_magnitude={self.min_magnitude}, magnitude_weight={self.magnitude_weight}"

    def forward(
        self, logits: Tensor, features: Tensor, targets: Numbers, sample_weight: Numbers | None = None
    ) -> Tensor:
        """Return the loss; see the class for shapes."""
        return self.with_per_sample(logits, features, targets, sample_weight)[0]

    def with_per_sample(
        self, logits: Tensor, features: Tensor, targets: Numbers, sample_weight: Numbers | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the loss and the detached losses of the rows, `[N]`, before λ and any sample weight."""
        _check_features(features, logits)
        flat, rows = self.entropic._rows(logits, targets, sample_weight)
        entropic, of_logits = self.entropic._with_per_sample(logits, flat, rows)
        factor = self.magnitude_weight
        # Not a product with 0, which would be NaN for infinite features.
        if factor == 0:
            return entropic, of_logits
        settings = LossSettings(
            LossKind.MAGNITUDE,
            self.entropic.weight,
            self.min_magnitude,
            by_weight=self.entropic.reduction == "weighted_mean",
        )
        if rows.weight is not None:
            # The kernel requires weights in the compute dtype of its rows, which may differ between features and
            # logits.
            rows = rows._replace(weight=as_sample_weight(rows.weight, features, rows.targets, settings.by_weight))
        magnitude, of_features = reduced_loss(features, rows, settings, self.entropic.reduction)
        return entropic.add(magnitude, alpha=factor), of_logits.add(of_features, alpha=factor)


def _one_of(name: str, value: float | None, alias: str, other: float | None) -> tuple[str, float]:
    """Return the name and value of a setting that has two names, or raise unless exactly one of them is passed."""
    if (value is None) == (other is None):
        raise TypeError(f"{name} or {alias} must be given, got {'neither' if value is None else 'both'}")
    return (name, value) if value is not None else (alias, other)  # type: ignore[return-value]


def _check_features(features: Tensor, logits: Tensor) -> None:
    check_tensor("features", features, LOGIT_DTYPES)
    check_dense_logits(logits)
    if logits.dim() != 2:
        raise ValueError(f"logits must be [N, K] alongside features [N, d], got shape {tuple(logits.shape)}")
    if features.dim() != 2 or features.shape[0] != logits.shape[0] or features.shape[1] < 1:
        raise ValueError(
            f"features must be [N, d] with N = {logits.shape[0]} like the rows of logits and d >= 1, "
            f"got shape {tuple(features.shape)}"
        )
    if features.device != logits.device:
        raise ValueError(f"features must be on {logits.device} like logits, got {features.device}")
