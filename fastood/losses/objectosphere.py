"""Objectosphere: the entropic open-set loss on the logits, and magnitudes of the features."""

from __future__ import annotations

from torch import Tensor, nn

from fastood.losses.outlier_exposure import OutlierExposureLoss
from fastood.ops._rows import Numbers, as_sample_weight, check_dense_logits
from fastood.ops._validation import LOGIT_DTYPES, Reduction, check_number, check_tensor
from fastood.ops.outlier_loss import LossKind, LossSettings
from fastood.ops.outlier_terms import reduced_loss


class EntropicOpenSetLoss(OutlierExposureLoss):
    r"""Cross-entropy on in-distribution rows, KL(uniform ‖ predicted) on background rows, both in full.

        in-distribution   -log f_y                                     background   KL(uniform ‖ f)

    Dhamija et al. 2018, eq. 1: `OutlierExposureLoss` with a weight of 1. The paper and pytorch-ood's loss of this name
    have `+ log K` in the background term, and one mean over all rows.

    Args:
        reduction: As in `MixedBatchLoss`, where shapes and errors are, too.
        check_finite: As in `MixedBatchLoss`.

    Example:
        >>> import torch
        >>> from fastood.losses import EntropicOpenSetLoss
        >>> EntropicOpenSetLoss(reduction="none")(torch.zeros(2, 4), torch.tensor([0, -1]))  # log 4, and no divergence
        tensor([1.3863, 0.0000])
    """

    def __init__(self, reduction: Reduction = "weighted_mean", *, check_finite: bool = False) -> None:
        super().__init__(1.0, reduction, check_finite=check_finite)


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
        - Where μ is 0 the features count nothing, also where they are infinite.

    Args:
        min_magnitude: ξ > 0, the length beyond which the features of an in-distribution row cost nothing. It depends on
            the network; there is no default.
        magnitude_weight: μ >= 0, of both magnitude terms; depends on the network as well, no default either.
        weight: λ >= 0, of the whole background mean; 1 in the paper.
        reduction: As in `MixedBatchLoss`, where most shapes and errors are, too.
        alpha: `magnitude_weight` under pytorch-ood's name; one of the two. There it is the first of the arguments
            without a name.
        xi: `min_magnitude` under pytorch-ood's name; one of the two.
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
        """Return the loss; shapes as in the class."""
        return self.with_per_sample(logits, features, targets, sample_weight)[0]

    def with_per_sample(
        self, logits: Tensor, features: Tensor, targets: Numbers, sample_weight: Numbers | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the loss and, `[N]` and detached, the loss of each row as above, before λ and any weight."""
        _check_features(features, logits)
        flat, rows = self.entropic._rows(logits, targets, sample_weight)
        entropic, of_logits = self.entropic._with_per_sample(logits, flat, rows)
        factor = self.magnitude_weight
        if factor == 0:
            return entropic, of_logits
        settings = LossSettings(
            LossKind.MAGNITUDE,
            self.entropic.weight,
            self.min_magnitude,
            by_weight=self.entropic.reduction == "weighted_mean",
        )
        if rows.weight is not None:
            # In the dtype that features are computed in, which need not be that of the logits.
            rows = rows._replace(weight=as_sample_weight(rows.weight, features, rows.targets, settings.by_weight))
        magnitude, of_features = reduced_loss(features, rows, settings, self.entropic.reduction)
        return entropic.add(magnitude, alpha=factor), of_logits.add(of_features, alpha=factor)


def _one_of(name: str, value: float | None, alias: str, other: float | None) -> tuple[str, float]:
    """Return which of two names of one setting was given, and its value."""
    if (value is None) == (other is None):
        raise TypeError(f"{name} or {alias} must be given, got {'neither' if value is None else 'both'}")
    return (name, value) if value is not None else (alias, other)  # type: ignore[return-value]


def _check_features(features: Tensor, logits: Tensor) -> None:
    check_tensor("features", features, LOGIT_DTYPES)
    check_dense_logits(logits)
    if logits.dim() != 2:
        raise ValueError(f"logits must be [N, K] beside features [N, d], got shape {tuple(logits.shape)}")
    if features.dim() != 2 or features.shape[0] != logits.shape[0] or features.shape[1] < 1:
        raise ValueError(
            f"features must be [N, d] with N = {logits.shape[0]} like the rows of logits and d >= 1, "
            f"got shape {tuple(features.shape)}"
        )
    if features.device != logits.device:
        raise ValueError(f"features must be on {logits.device} like logits, got {features.device}")
