"""The raw op behind every loss of the family, its shapes, autograd and second derivatives.

`csrc/outlier_loss/losses.h` has the table of formulas. `fastood.losses` are the modules to use; they check arguments.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastood.ops._transforms import is_transformed
from fastood.ops._validation import compute_dtype, require_same_device
from fastood.ops.reference import outlier_loss as reference

ROW_STATS, FACTORS = 5, 4  # kRowStats, kNumFactors of csrc/outlier_loss/losses.h
SCALE, EXTRA = 2, 3  # of StatsColumn

forward = torch.ops.fastood.outlier_loss.default
backward = torch.ops.fastood._outlier_loss_backward.default
_value_and_grad = torch.ops.fastood.outlier_loss_value_and_grad.default


class LossKind(IntEnum):
    """`OutlierLoss` of csrc/outlier_loss/losses.h."""

    UNIFORMITY = 0
    ENTROPY = 1
    ENERGY_MARGIN = 2
    ENERGY = 3
    REJECT_CLASS = 4
    ICE = 5
    MAGNITUDE = 6
    ICE_MINUS = 7
    SIGMOID = 8


class LossSettings(NamedTuple):
    """What a loss of the family is made of, in the order in which the op takes it."""

    kind: int
    weight: float = 1.0
    """λ of the background mean, and of what the loss adds to the cross-entropy."""
    margin_id: float = 0.0
    margin_background: float = 0.0
    num_reject: int = 0
    by_weight: bool = True
    """Whether a mean divides by its sum of weights, or else by its number of rows."""


class RowArguments(NamedTuple):
    """What a row has besides its logits: `[N]` each, contiguous, in the dtypes that the op takes."""

    targets: Tensor | None = None
    """int64; None for background throughout."""
    weight: Tensor | None = None
    """In the compute dtype; None for all ones."""
    uniform01: Tensor | None = None
    """Draws for the reject-class loss, in the compute dtype."""


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
    """Outside the op rather than registered on it: a third of the overhead at small batches."""

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
        # What the gradient of the weights and second derivatives need is kept without a copy.
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
    """`factor (l_i - mean)` of the row's kind; the mean has no part where it is divided by the number of rows."""
    factor_id, factor_background, mean_id, mean_background = factors.unbind()
    if targets is None:
        factor, mean = factor_background, mean_background
    else:
        background = targets < 0
        factor = torch.where(background, factor_background, factor_id)
        mean = torch.where(background, mean_background, mean_id)
    deviation = per_sample - mean if settings.by_weight else per_sample.double()
    # Of a kind that counts nothing both are zero; a factor of zero beside a NaN mean is that of an infinite weight.
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
    """Return the gradients under create_graph=True: by the reference `function`, which differentiates to any order."""
    # Views without history: where the weights depend on the logits, that path belongs to the caller's graph alone.
    logits = logits.view_as(logits)
    weight = None if rows.weight is None else rows.weight.view_as(rows.weight)
    value, _ = function(logits, rows.targets, weight, rows.uniform01, *settings)
    wanted = [x for x, needed in ((logits, needs_logits), (weight, needs_weight)) if needed and x is not None]
    found = iter(
        torch.autograd.grad(value, wanted, grad.double(), create_graph=True, allow_unused=True, materialize_grads=True)
    )
    return next(found) if needs_logits else None, next(found) if needs_weight else None


def by_reference(
    function: Callable[..., tuple[Tensor, Tensor]], logits: Tensor, rows: RowArguments, settings: LossSettings
) -> tuple[Tensor, Tensor]:
    """Return what the reference `function` finds, in the dtypes of the op: for transforms that the op does not know."""
    dtype = compute_dtype(logits.dtype)
    value, per_sample = function(logits, *rows, *settings)
    return value.to(dtype), per_sample.detach().to(dtype)


def outlier_loss(logits: Tensor, rows: RowArguments, settings: LossSettings) -> tuple[Tensor, Tensor]:
    """Return the loss `[]`, differentiable in the logits and weights, and `[N]` the detached losses of the rows."""
    if is_transformed():
        return by_reference(reference.outlier_loss, logits, rows, settings)
    loss, per_sample = _OutlierLoss.apply(logits, rows.targets, rows.weight, rows.uniform01, settings)
    return loss, per_sample


def outlier_loss_value_and_grad(
    logits: Tensor, rows: RowArguments, settings: LossSettings
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss, the losses of the rows and the gradient of the logits, without autograd and in one pass."""
    # Detached rather than under no_grad, which costs a fifth of the call at small batches.
    weight = None if rows.weight is None else rows.weight.detach()
    loss, per_sample, gradient = _value_and_grad(logits.detach(), rows.targets, weight, rows.uniform01, *settings)
    return loss, per_sample, gradient
