"""The op behind every loss of `fastood.losses`: fake kernels, autograd and second derivatives.

`csrc/outlier_loss/losses.h` has the table of formulas. Prefer the modules of `fastood.losses`, which check and convert
their arguments; the functions here expect them in the dtypes and layouts of the op.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastood.ops._transforms import is_transformed
from fastood.ops._validation import compute_dtype, require_same_device
from fastood.ops.loss_kind import LossKind
from fastood.ops.reference import outlier_loss as reference

__all__ = ["LossKind", "LossSettings", "RowArguments", "outlier_loss", "outlier_loss_value_and_grad"]

# kRowStats, kNumFactors and two of StatsColumn in csrc/outlier_loss/losses.h, compared by tests/ops/test_constants.py.
ROW_STATS, FACTORS = 5, 4
SCALE, EXTRA = 2, 3

forward = torch.ops.fastood.outlier_loss.default
backward = torch.ops.fastood._outlier_loss_backward.default
_value_and_grad = torch.ops.fastood.outlier_loss_value_and_grad.default


class LossSettings(NamedTuple):
    """Settings of a loss, in the order of the op's arguments."""

    kind: int
    """A `LossKind`."""
    weight: float = 1.0
    """λ of the background mean, and of the term that the loss adds to the cross-entropy."""
    margin_id: float = 0.0
    """m_in of `ENERGY_MARGIN`; the least magnitude of `MAGNITUDE`."""
    margin_background: float = 0.0
    """m_out of `ENERGY_MARGIN`."""
    num_reject: int = 0
    """Number of reject classes, the last columns; `REJECT_CLASS` only."""
    by_weight: bool = True
    """Whether a mean divides by its sum of weights; otherwise by its number of rows."""


class RowArguments(NamedTuple):
    """Arguments per row besides the logits: contiguous tensors `[N]` in the dtypes of the op."""

    targets: Tensor | None = None
    """int64, below 0 for background; None if all rows are background."""
    weight: Tensor | None = None
    """float64 for float64 logits, else float32; None for all ones."""
    uniform01: Tensor | None = None
    """Uniform draws in [0, 1) for `REJECT_CLASS`, in the dtype of `weight`."""


def _forward_fake(
    logits: Tensor, targets: Tensor | None, weight: Tensor | None, uniform01: Tensor | None, *settings: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    require_same_device(logits, targets, weight, uniform01)
    dtype = compute_dtype(logits.dtype)
    rows = logits.shape[0]
    return (
        logits.new_empty((), dtype=dtype),
        logits.new_empty((rows,), dtype=dtype),
        logits.new_empty((rows, ROW_STATS), dtype=dtype),
        logits.new_empty((FACTORS,), dtype=torch.float64),
    )


def _backward_fake(grad_loss: Tensor, logits: Tensor, row_stats: Tensor, factors: Tensor, loss: int) -> Tensor:
    require_same_device(logits, grad_loss, row_stats, factors)
    return logits.new_empty(logits.shape)


def _value_and_grad_fake(
    logits: Tensor, targets: Tensor | None, weight: Tensor | None, uniform01: Tensor | None, *settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    require_same_device(logits, targets, weight, uniform01)
    dtype = compute_dtype(logits.dtype)
    return (
        logits.new_empty((), dtype=dtype),
        logits.new_empty((logits.shape[0],), dtype=dtype),
        logits.new_empty(logits.shape),
    )


torch.library.register_fake("fastood::outlier_loss", _forward_fake)
torch.library.register_fake("fastood::_outlier_loss_backward", _backward_fake)
torch.library.register_fake("fastood::outlier_loss_value_and_grad", _value_and_grad_fake)


class _OutlierLoss(torch.autograd.Function):
    """Autograd of the op, outside the op: registering it there costs three times the overhead at small batches."""

    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor | None,
        weight: Tensor | None,
        uniform01: Tensor | None,
        settings: LossSettings,
    ) -> tuple[Tensor, Tensor]:
        loss, per_sample, row_stats, factors = forward(logits, targets, weight, uniform01, *settings)
        # The last four are needed for the gradient of the weights and for second derivatives; saved tensors are not
        # copied.
        ctx.save_for_backward(logits, row_stats, factors, targets, weight, uniform01, per_sample)
        ctx.settings = settings
        ctx.mark_non_differentiable(per_sample)
        ctx.set_materialize_grads(False)
        return loss, per_sample

    @staticmethod
    def backward(
        ctx: Any, grad_loss: Tensor | None, _grad_per_sample: None
    ) -> tuple[Tensor | None, None, Tensor | None, None, None]:
        if grad_loss is None:
            return None, None, None, None, None
        logits, row_stats, factors, targets, weight, uniform01, per_sample = ctx.saved_tensors
        needs_logits, _, needs_weight, *_ = ctx.needs_input_grad
        if torch.is_grad_enabled():
            rows = RowArguments(targets, weight, uniform01)
            grad_logits, grad_weight = differentiable_backward(
                reference.outlier_loss, grad_loss, logits, rows, ctx.settings, needs_logits, needs_weight
            )
            return grad_logits, None, grad_weight, None, None
        grad_logits = backward(grad_loss, logits, row_stats, factors, ctx.settings.kind) if needs_logits else None
        grad_weight = _weight_gradient(grad_loss, targets, per_sample, factors, ctx.settings) if needs_weight else None
        return grad_logits, None, grad_weight, None, None


def _weight_gradient(
    grad_loss: Tensor, targets: Tensor | None, per_sample: Tensor, factors: Tensor, settings: LossSettings
) -> Tensor:
    """Return `factor (l_i - mean)` of each row's kind, or `factor l_i` if means divide by the number of rows."""
    factor_id, factor_background, mean_id, mean_background = factors.unbind()
    if targets is None:
        factor, mean = factor_background, mean_background
    else:
        background = targets < 0
        factor = torch.where(background, factor_background, factor_id)
        mean = torch.where(background, mean_background, mean_id)
    deviation = per_sample - mean if settings.by_weight else per_sample.double()
    # Both are zero if no row of the kind has weight; a zero factor with a NaN mean is due to an infinite weight.
    nothing = (factor == 0) & (mean == 0)
    return (grad_loss * torch.where(nothing, 0.0, factor * deviation)).to(per_sample.dtype)


def differentiable_backward(
    function: Callable[..., tuple[Tensor, Tensor]],
    grad: Tensor,
    logits: Tensor,
    rows: RowArguments,
    settings: LossSettings,
    needs_logits: bool,
    needs_weight: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients under create_graph=True, by differentiating the reference `function`."""
    # Views cut the history: if the weights depend on the logits, that path is already part of the caller's graph.
    logits = logits.view_as(logits)
    weight = None if rows.weight is None else rows.weight.view_as(rows.weight)
    value, _ = function(logits, rows.targets, weight, rows.uniform01, *settings)
    inputs = [x for x, needed in ((logits, needs_logits), (weight, needs_weight)) if needed and x is not None]
    gradients = iter(
        torch.autograd.grad(value, inputs, grad.double(), create_graph=True, allow_unused=True, materialize_grads=True)
    )
    return next(gradients) if needs_logits else None, next(gradients) if needs_weight else None


def by_reference(
    function: Callable[..., tuple[Tensor, Tensor]], logits: Tensor, rows: RowArguments, settings: LossSettings
) -> tuple[Tensor, Tensor]:
    """Return the results of the reference `function` in the dtypes of the op, for transforms of torch.func."""
    dtype = compute_dtype(logits.dtype)
    value, per_sample = function(logits, *rows, *settings)
    return value.to(dtype), per_sample.detach().to(dtype)


def outlier_loss(logits: Tensor, rows: RowArguments, settings: LossSettings) -> tuple[Tensor, Tensor]:
    """Return the loss `[]`, differentiable in the logits and weights, and the detached losses of the rows `[N]`.

    Args:
        logits: `[N, K]`, float64, float32, bfloat16 or float16; rows may be strided.
        rows: Targets, weights and draws of the rows.
        settings: Kind of the loss, and its settings.

    Raises:
        RuntimeError: If an argument has the wrong dtype, shape or device; arguments are not converted.

    Example:
        >>> rows = RowArguments(torch.tensor([3, -1]))
        >>> loss, per_sample = outlier_loss(torch.zeros(2, 10), rows, LossSettings(LossKind.UNIFORMITY))
        >>> loss, per_sample
        (tensor(2.3026), tensor([2.3026, 0.0000]))
    """
    if is_transformed():
        return by_reference(reference.outlier_loss, logits, rows, settings)
    loss, per_sample = _OutlierLoss.apply(logits, rows.targets, rows.weight, rows.uniform01, settings)
    return loss, per_sample


def outlier_loss_value_and_grad(
    logits: Tensor, rows: RowArguments, settings: LossSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss `[]`, the losses of the rows `[N]` and the gradient of the logits, in one pass without autograd.

    Args:
        logits: `[N, K]`, float64, float32, bfloat16 or float16; rows may be strided.
        rows: Targets, weights and draws of the rows.
        settings: Kind of the loss, and its settings.

    Raises:
        RuntimeError: If an argument has the wrong dtype, shape or device; arguments are not converted.
    """
    # detach() instead of no_grad(), which costs a fifth of the call at small batches.
    weight = None if rows.weight is None else rows.weight.detach()
    loss, per_sample, gradient = _value_and_grad(logits.detach(), rows.targets, weight, rows.uniform01, *settings)
    return loss, per_sample, gradient
