"""What all losses of mixed batches share: arguments, checks, and the three ways to call them."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from fastood.ops._validation import (
    check_finite_values,
    check_logits,
    check_reduction,
    check_weight,
    compute_dtype,
)
from fastood.ops.outlier_loss import LossSettings, RowArguments, outlier_loss, outlier_loss_value_and_grad
from fastood.ops.weighted_uniformity import Reduction


def check_targets(targets: Tensor, logits: Tensor, name: str = "logits") -> None:
    """Raise unless `targets` is an int64 `[N]` tensor on the device of `logits`. Their values stay on the device."""
    if not isinstance(targets, Tensor):
        raise TypeError(f"targets must be a torch.Tensor, got {type(targets).__name__}")
    if targets.dtype != torch.int64:
        raise TypeError(f"targets must be int64, got {targets.dtype}")
    if targets.shape != logits.shape[:1]:
        raise ValueError(
            f"targets must have shape ({logits.shape[0]},) like the rows of {name}, got {tuple(targets.shape)}"
        )
    if targets.device != logits.device:
        raise ValueError(f"targets must be on {logits.device} like {name}, got {targets.device}")


def check_trade_off(weight: float, name: str = "weight") -> float:
    """Return `weight` as a float, or raise unless it is finite and >= 0."""
    if not 0 <= weight < math.inf:
        raise ValueError(f"{name} must be finite and >= 0, got {weight}")
    return float(weight)


def with_per_sample(logits: Tensor, rows: RowArguments, settings: LossSettings) -> tuple[Tensor, Tensor]:
    """Call the op; what its kernel alone could see is a `ValueError` as well."""
    try:
        return outlier_loss(logits, rows, settings)
    except RuntimeError as error:
        raise _refused(error) from error


def value_and_grad(logits: Tensor, rows: RowArguments, settings: LossSettings) -> tuple[Tensor, Tensor, Tensor]:
    """Call the op without autograd, likewise."""
    try:
        return outlier_loss_value_and_grad(logits, rows, settings)
    except RuntimeError as error:
        raise _refused(error) from error


def _refused(error: RuntimeError) -> Exception:
    """The op's check of the target values, without where in the C++ it stands."""
    _, wanted, rest = str(error).partition("targets must be below")
    return ValueError(wanted + rest.partition("\n")[0]) if wanted else error


class MixedBatchLoss(nn.Module, ABC):
    r"""Mean over in-distribution rows + `weight` · mean over background rows, in one kernel each way.

    The base of `OutlierExposureLoss`, `EntropyMaximizationLoss`, `EnergyMarginLoss`, `EnergyLoss`, `RejectClassLoss`,
    `ICELoss` and `SigmoidLikelihoodLoss`, which differ in what a row contributes. Rows with a target below zero are
    background. The two means are taken apart, each over its own rows: one mean over both would let the mix of the batch
    decide the trade-off.

    Args:
        weight: λ, the factor of the background term; finite and >= 0.
        reduction: What a weighted sum over rows is divided by: `"weighted_mean"`, the sum of their weights (Li &
            Vasconcelos 2020, eq. 14), or `"mean"`, their number, which keeps importance weights such as
            `BackgroundPool.sample` returns unbiased (supplementary eq. 10). Without `sample_weight` they are the same.
        check_finite: Raise `ValueError` on NaN or infinite logits, naming the first row. Waits for the device.

    Shape:
        - logits: `[N, K]`, float64, float32, bfloat16 or float16, on the CPU or a CUDA device; rows may be strided (a
          slice of a bigger batch).
        - targets: `[N]`, int64, a class in `0 … K - 1`, or below zero for background: -1 as well as PyTorch's -100,
          which does not mean "ignore" here.
        - sample_weight: `[N]`, floating-point, >= 0, or None for all ones. Rows of weight zero add nothing, whatever
          they hold.
        - output: `[]`, float64 for float64 logits, float32 for all others. A batch without in-distribution (or without
          background) rows has a zero in the place of that term.

    Differentiable with respect to `logits` and `sample_weight`; beyond the first order by plain PyTorch, slower. A
    logit that is NaN or +inf makes its row's loss NaN; -inf is a class that is masked out, and what it does is said of
    each loss where it is not plain.

    Raises:
        TypeError: An argument is not a tensor of the dtypes above.
        ValueError: An argument has the wrong shape or device, or a setting is out of range. On the CPU also when a
            target is not below K; a CUDA device cannot say so without waiting, and makes the loss NaN.
    """

    def __init__(self, weight: float, reduction: Reduction = "weighted_mean", *, check_finite: bool = False) -> None:
        super().__init__()
        check_reduction(reduction)
        self.weight = check_trade_off(weight)
        self.reduction: Reduction = reduction
        self.check_finite = check_finite

    @abstractmethod
    def settings(self) -> LossSettings:
        """Return what the kernel needs to know; read at every call, so that `loss.weight = …` takes effect."""

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

        Cross-entropy (and what the loss adds to it) on in-distribution rows, the background term without λ on
        background rows: what `BackgroundPool.ascend` takes. No second pass.
        """
        return with_per_sample(logits, self._rows(logits, targets, sample_weight), self.settings())

    def value_and_grad(
        self, logits: Tensor, targets: Tensor, sample_weight: Tensor | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return the scalar loss, the rows' losses as above, and the gradient `[N, K]` in the dtype of `logits`.

        Without autograd: for loops that call `logits.backward(gradient)` themselves. At small batches the engine costs
        more than the loss, and on the CPU the logits are read once.
        """
        return value_and_grad(logits, self._rows(logits, targets, sample_weight), self.settings())

    def _rows(self, logits: Tensor, targets: Tensor, sample_weight: Tensor | None) -> RowArguments:
        check_logits(logits)
        check_targets(targets, logits)
        if sample_weight is not None:
            check_weight(sample_weight, logits, "sample_weight")
            dtype = compute_dtype(logits.dtype)
            if sample_weight.dtype != dtype or not sample_weight.is_contiguous():
                sample_weight = sample_weight.to(dtype).contiguous()
        if self.check_finite:
            check_finite_values(logits, "logits")
        return RowArguments(targets if targets.is_contiguous() else targets.contiguous(), sample_weight)
