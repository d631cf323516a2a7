"""Outlier exposure: cross-entropy on in-distribution rows, uniformity on background rows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastood.ops._validation import check_finite_values, check_logits, check_weight, compute_dtype
from fastood.ops.weighted_uniformity import Reduction, weighted_uniformity


def check_targets(targets: Tensor, logits: Tensor) -> None:
    """Raise unless `targets` is an int64 `[N]` tensor on the device of `logits`. Their values stay on the device."""
    if not isinstance(targets, Tensor):
        raise TypeError(f"targets must be a torch.Tensor, got {type(targets).__name__}")
    if targets.dtype != torch.int64:
        raise TypeError(f"targets must be int64, got {targets.dtype}")
    if targets.shape != logits.shape[:1]:
        raise ValueError(
            f"targets must have shape ({logits.shape[0]},) like the rows of logits, got {tuple(targets.shape)}"
        )
    if targets.device != logits.device:
        raise ValueError(f"targets must be on {logits.device} like logits, got {targets.device}")


class OutlierExposureLoss(nn.Module):
    r"""Mean cross-entropy over in-distribution rows + `weight` · mean uniformity loss over background rows.

    Li & Vasconcelos 2020, eq. 1-5 (with importance weights: eq. 14 and supplementary eq. 10); Hendrycks et al. 2019.
    Rows with a target below zero are background. The two means are taken apart, each over its own rows: one mean over
    both would let the mix of the batch decide the trade-off.

    Args:
        weight: α, the factor of the background term; finite and >= 0. Both papers use 0.5.
        reduction: What a weighted sum over rows is divided by: `"weighted_mean"`, the sum of their weights (eq. 14), or
            `"mean"`, their number, which keeps importance weights such as `BackgroundPool.sample` returns unbiased
            (supplementary eq. 10). Without `sample_weight` the two are the same.
        check_finite: Raise `ValueError` on NaN or infinite logits, naming the first row. Waits for the device.

    Shape:
        - logits: `[N, K]`, float64, float32, bfloat16 or float16.
        - targets: `[N]`, int64, a class in `0 … K - 1`, or below zero for background: -1 as well as PyTorch's -100,
          which does not mean "ignore" here.
        - sample_weight: `[N]`, floating-point, >= 0, or None for all ones.
        - output: `[]`, float64 for float64 logits, float32 for all others. A batch without in-distribution (or without
          background) rows has a zero in the place of that term.

    Raises:
        TypeError: An argument is not a tensor of the dtypes above.
        ValueError: An argument has the wrong shape or device, or `weight` or `reduction` is out of range. On the CPU
            also when a target is not below K; on a CUDA device that would wait for the GPU, and ends in a device-side
            assert.

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
        self, weight: float = 0.5, reduction: Reduction = "weighted_mean", *, check_finite: bool = False
    ) -> None:
        super().__init__()
        if not 0 <= weight < float("inf"):
            raise ValueError(f"weight must be finite and >= 0, got {weight}")
        if reduction not in ("weighted_mean", "mean"):
            raise ValueError(f'reduction must be "weighted_mean" or "mean", got {reduction!r}')
        self.weight = float(weight)
        self.reduction: Reduction = reduction
        self.check_finite = check_finite

    def extra_repr(self) -> str:
        """Return the settings, for `print(model)`."""
        return f"weight={self.weight}, reduction={self.reduction!r}"

    def forward(self, logits: Tensor, targets: Tensor, sample_weight: Tensor | None = None) -> Tensor:
        """Return the scalar loss; shapes as in the class."""
        return self.with_per_sample(logits, targets, sample_weight)[0]

    def with_per_sample(
        self, logits: Tensor, targets: Tensor, sample_weight: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return the scalar loss and, `[N]` and detached, what each row's loss is before any weight.

        Cross-entropy on in-distribution rows, the uniformity loss of eq. 5 on background rows.
        """
        check_logits(logits)
        check_targets(targets, logits)
        if sample_weight is not None:
            check_weight(sample_weight, logits, "sample_weight")
        if self.check_finite:
            check_finite_values(logits, "logits")
        rows = logits.shape[0]
        background = targets < 0
        num_background = background.sum()
        dtype = compute_dtype(logits.dtype)
        id_per_sample = _cross_entropy(logits.to(dtype), targets, background)
        if sample_weight is None:
            id_sum, id_divisor = id_per_sample.sum(), rows - num_background
            background_weight = background.to(dtype)
        else:
            weight = sample_weight.to(dtype)
            id_weight = weight.masked_fill(background, 0.0)
            background_weight = weight.masked_fill(~background, 0.0)
            # A masked sum: an infinite loss of a row without weight would turn a product into NaN.
            id_sum = torch.where(id_weight == 0, 0.0, id_weight * id_per_sample).sum()
            id_divisor = id_weight.sum() if self.reduction == "weighted_mean" else rows - num_background
        background_loss, uniformity = weighted_uniformity(logits, background_weight, reduction=self.reduction)
        if self.reduction == "mean":
            background_loss = background_loss * (rows / _nonzero(num_background))
        loss = id_sum / _nonzero(id_divisor) + self.weight * background_loss
        return loss, torch.where(background, uniformity, id_per_sample.detach())


def _cross_entropy(logits: Tensor, targets: Tensor, background: Tensor) -> Tensor:
    """Cross-entropy of in-distribution rows; background rows add nothing to it, whatever they hold."""
    # Masked logits, since a row that cross_entropy ignores still sends 0 · inf = NaN backward.
    id_logits = logits.masked_fill(background.unsqueeze(1), 0.0)
    try:
        return F.cross_entropy(
            id_logits, targets.masked_fill(background, _IGNORED), ignore_index=_IGNORED, reduction="none"
        )
    except IndexError as error:
        raise ValueError(
            f"targets must be below K = {logits.shape[1]} (or negative: background), got {int(targets.max())}"
        ) from error


_IGNORED = -100


def _nonzero(divisor: Tensor) -> Tensor:
    """A zero divisor becomes one: the sum over it is zero as well."""
    return divisor + (divisor == 0)
