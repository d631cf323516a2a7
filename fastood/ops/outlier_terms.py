"""The losses of mixed batches without their means: the term of each row, for `reduction="none"` and `"sum"`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastood.ops._transforms import is_transformed
from fastood.ops._validation import Reduction
from fastood.ops.loss_kind import LossKind
from fastood.ops.outlier_loss import (
    EXTRA,
    FACTORS,
    SCALE,
    LossSettings,
    RowArguments,
    backward,
    by_reference,
    differentiable_backward,
    forward,
    outlier_loss,
    outlier_loss_value_and_grad,
)
from fastood.ops.reference import outlier_loss as reference

_NOT_WEIGHTED = (LossKind.UNIFORMITY, LossKind.ENTROPY)
"""Losses whose `extra` column is not a factor of the gradient of a background row: `has_target_term` of row.h is
false."""


def _forward(logits: Tensor, rows: RowArguments, settings: LossSettings) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return terms `[N]`, per_sample `[N]`, the row statistics and the factor `[N]` of each row's loss."""
    # Without weights: the means of the op are not used, and `factor` applies weights and λ to each row.
    _, per_sample, row_stats, _ = forward(logits, rows.targets, None, rows.uniform01, *settings)
    weight = None if rows.weight is None else rows.weight.detach()
    factor = reference.row_factors(logits, rows.targets, weight, settings.weight, per_sample.dtype)
    return torch.where(factor == 0, 0.0, factor * per_sample), per_sample, row_stats, factor


def _gradient(upstream: Tensor, logits: Tensor, targets: Tensor | None, row_stats: Tensor, kind: int) -> Tensor:
    """Return the gradient of the logits from `upstream` `[N]`, the gradient of each row's loss."""
    row_stats = row_stats.clone()
    # Avoid 0 * inf and 0 * NaN: a row with an upstream gradient of zero must add exactly zero.
    row_stats[:, SCALE] = torch.where(upstream == 0, 0.0, upstream * row_stats[:, SCALE])
    weighted = torch.where(upstream == 0, 0.0, upstream * row_stats[:, EXTRA])
    if kind in _NOT_WEIGHTED:
        background = torch.ones_like(upstream, dtype=torch.bool) if targets is None else targets < 0
        weighted = torch.where(background, row_stats[:, EXTRA], weighted)
    row_stats[:, EXTRA] = weighted
    # Factors of 1, because `upstream` already includes the factors of the rows.
    ones = torch.ones(FACTORS, dtype=torch.float64, device=logits.device)
    gradient: Tensor = backward(row_stats.new_ones(()), logits, row_stats, ones, kind)
    return gradient


class _OutlierTerms(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        targets: Tensor | None,
        weight: Tensor | None,
        uniform01: Tensor | None,
        settings: LossSettings,
    ) -> tuple[Tensor, Tensor]:
        terms, per_sample, row_stats, factor = _forward(logits, RowArguments(targets, weight, uniform01), settings)
        ctx.save_for_backward(logits, row_stats, factor, targets, weight, uniform01, per_sample)
        ctx.settings = settings
        ctx.mark_non_differentiable(per_sample)
        ctx.set_materialize_grads(False)
        return terms, per_sample

    @staticmethod
    def backward(
        ctx: Any, grad_terms: Tensor | None, _grad_per_sample: None
    ) -> tuple[Tensor | None, None, Tensor | None, None, None]:
        if grad_terms is None:
            return None, None, None, None, None
        logits, row_stats, factor, targets, weight, uniform01, per_sample = ctx.saved_tensors
        needs_logits, _, needs_weight, *_ = ctx.needs_input_grad
        settings = ctx.settings
        if torch.is_grad_enabled():
            rows = RowArguments(targets, weight, uniform01)
            grad_logits, grad_weight = differentiable_backward(
                reference.outlier_terms, grad_terms, logits, rows, settings, needs_logits, needs_weight
            )
            return grad_logits, None, grad_weight, None, None
        grad_logits = grad_weight = None
        if needs_logits:
            upstream = torch.where(factor == 0, 0.0, grad_terms * factor)
            grad_logits = _gradient(upstream, logits, targets, row_stats, settings.kind)
        if needs_weight:
            without_weight = reference.row_factors(logits, targets, None, settings.weight, per_sample.dtype)
            grad_weight = torch.where(without_weight == 0, 0.0, grad_terms * without_weight * per_sample)
        return grad_logits, None, grad_weight, None, None


def outlier_terms(logits: Tensor, rows: RowArguments, settings: LossSettings) -> tuple[Tensor, Tensor]:
    """Return the term of each row in a sum and the detached losses of the rows, both `[N]`.

    A term is the loss times its weight, and times λ for background; differentiable in the logits and weights.

    Example:
        >>> rows = RowArguments(torch.tensor([0, -1]), torch.tensor([1.0, 4.0]))
        >>> terms, per_sample = outlier_terms(torch.zeros(2, 2), rows, LossSettings(LossKind.SIGMOID, 0.5))
        >>> terms, per_sample  # log 2 + 0.5 · log 2, and 4 · 0.5 · log 2
        (tensor([1.0397, 1.3863]), tensor([1.0397, 0.6931]))
    """
    settings = settings._replace(by_weight=False)
    if is_transformed():
        return by_reference(reference.outlier_terms, logits, rows, settings)
    terms, per_sample = _OutlierTerms.apply(logits, rows.targets, rows.weight, rows.uniform01, settings)
    return terms, per_sample


def reduced_loss(
    logits: Tensor, rows: RowArguments, settings: LossSettings, reduction: Reduction
) -> tuple[Tensor, Tensor]:
    """Return the loss `[]`, or `[N]` for `"none"`, and the detached losses of the rows `[N]`.

    `settings.by_weight` must match `reduction`: True for `"weighted_mean"`, False for `"mean"`.
    """
    if reduction == "weighted_mean" or reduction == "mean":
        return outlier_loss(logits, rows, settings)
    terms, per_sample = outlier_terms(logits, rows, settings)
    return terms if reduction == "none" else _sum(terms), per_sample


def reduced_value_and_grad(
    logits: Tensor, rows: RowArguments, settings: LossSettings, reduction: Reduction
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the loss `[]`, the losses of the rows `[N]` and the gradient of the logits, without autograd.

    Raises:
        ValueError: If `reduction` is `"none"`, for which there is no scalar loss to differentiate.
    """
    if reduction == "weighted_mean" or reduction == "mean":
        return outlier_loss_value_and_grad(logits, rows, settings)
    if reduction == "none":
        raise ValueError('reduction must be "weighted_mean", "mean" or "sum" for value_and_grad, got "none"')
    logits = logits.detach()
    terms, per_sample, row_stats, factor = _forward(logits, rows, settings._replace(by_weight=False))
    return _sum(terms), per_sample, _gradient(factor, logits, rows.targets, row_stats, settings.kind)


def _sum(terms: Tensor) -> Tensor:
    """Return the sum `[]` of float32 or float64 terms in their dtype, accumulated in float64."""
    return terms.sum(dtype=torch.float64).to(terms.dtype)
