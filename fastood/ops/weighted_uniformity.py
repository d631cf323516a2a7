"""The weighted uniformity loss, forward and backward fused (Li & Vasconcelos 2020, eq. 5 and 14).

For background logits `v_i` with softmax `f_i` and weights `w_i >= 0`,

    l_i = -1/K Σ_k log f_ik - log K = logsumexp(v_i) - mean(v_i) - log K = KL(uniform || f_i)        (eq. 5)
    L = Σ_i w_i l_i / Σ_i w_i                                                                        (eq. 14)
    ∂L/∂v_ik = w_i (f_ik - 1/K) / Σ_j w_j,      ∂L/∂w_i = (l_i - L) / Σ_j w_j

Trained networks sit where `l_i` is near zero, where a difference of `logsumexp` and `mean` keeps no digit in float32.
The kernels use an identity without cancellation (csrc/outlier_loss/math.h): relative error below 1e-5 down to a spread
of 1e-4, also where the logits lie 100 away from zero.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from fastood.ops import reference
from fastood.ops._validation import check_finite_values, check_logits, check_weight, compute_dtype

Reduction = Literal["weighted_mean", "mean"]

_ROW_STATS = 4  # kRowStats of csrc/outlier_loss/math.h

_forward = torch.ops.fastood.weighted_uniformity.default
_backward = torch.ops.fastood._weighted_uniformity_backward.default
_value_and_grad = torch.ops.fastood.weighted_uniformity_value_and_grad.default


def _forward_fake(logits: Tensor, weight: Tensor | None, by_weight: bool) -> tuple[Tensor, Tensor, Tensor]:
    dtype = compute_dtype(logits.dtype)
    rows = logits.shape[0]
    return (
        logits.new_empty((), dtype=dtype),
        logits.new_empty((rows,), dtype=dtype),
        logits.new_empty((rows, _ROW_STATS), dtype=dtype),
    )


def _backward_fake(grad_loss: Tensor, logits: Tensor, row_stats: Tensor) -> Tensor:
    return logits.new_empty(logits.shape)


def _value_and_grad_fake(logits: Tensor, weight: Tensor | None, by_weight: bool) -> tuple[Tensor, Tensor, Tensor]:
    dtype = compute_dtype(logits.dtype)
    return (
        logits.new_empty((), dtype=dtype),
        logits.new_empty((logits.shape[0],), dtype=dtype),
        logits.new_empty(logits.shape),
    )


torch.library.register_fake("fastood::weighted_uniformity", _forward_fake)
torch.library.register_fake("fastood::_weighted_uniformity_backward", _backward_fake)
torch.library.register_fake("fastood::weighted_uniformity_value_and_grad", _value_and_grad_fake)


class _WeightedUniformity(torch.autograd.Function):
    """Outside the op rather than registered on it: a third of the overhead at small batches."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, weight: Tensor | None, by_weight: bool) -> tuple[Tensor, Tensor]:
        loss, per_sample, row_stats = _forward(logits, weight, by_weight)
        ctx.save_for_backward(logits, row_stats, weight, *((loss, per_sample) if ctx.needs_input_grad[1] else ()))
        ctx.by_weight = by_weight
        ctx.mark_non_differentiable(per_sample)
        ctx.set_materialize_grads(False)
        return loss, per_sample

    @staticmethod
    def backward(
        ctx: Any, grad_loss: Tensor | None, _grad_per_sample: None
    ) -> tuple[Tensor | None, Tensor | None, None]:
        if grad_loss is None:
            return None, None, None
        logits, row_stats, weight, *rest = ctx.saved_tensors
        if torch.is_grad_enabled():
            return *_differentiable_backward(ctx, grad_loss, logits, weight), None
        grad_logits = _backward(grad_loss, logits, row_stats) if ctx.needs_input_grad[0] else None
        grad_weight = _weight_gradient(ctx, grad_loss, weight, *rest) if ctx.needs_input_grad[1] else None
        return grad_logits, grad_weight, None


def _weight_gradient(ctx: Any, grad_loss: Tensor, weight: Tensor, loss: Tensor, per_sample: Tensor) -> Tensor:
    if not ctx.by_weight:
        return grad_loss * per_sample / len(per_sample)
    total = weight.double().sum()
    return torch.where(total > 0, grad_loss * (per_sample - loss) / total, 0.0).to(per_sample.dtype)


def _differentiable_backward(
    ctx: Any, grad_loss: Tensor, logits: Tensor, weight: Tensor | None
) -> tuple[Tensor | None, Tensor | None]:
    """The backward pass under create_graph=True: by the reference, which differentiates to any order."""
    reduction = "weighted_mean" if ctx.by_weight else "mean"
    # Views without history: where the weights depend on the logits, that path belongs to the caller's graph alone.
    logits = logits.view_as(logits)
    weight = None if weight is None else weight.view_as(weight)
    loss, _ = reference.weighted_uniformity(logits, weight, reduction=reduction)
    wanted = [x for x, needed in zip((logits, weight), ctx.needs_input_grad, strict=False) if needed and x is not None]
    found = torch.autograd.grad(
        loss, wanted, grad_loss.double(), create_graph=True, allow_unused=True, materialize_grads=True
    )
    gradients = iter(found)
    grad_logits, grad_weight = (next(gradients) if needed else None for needed in ctx.needs_input_grad[:2])
    return grad_logits, grad_weight


def _prepare(logits: Tensor, weight: Tensor | None, reduction: str, check_finite: bool) -> tuple[Tensor | None, bool]:
    check_logits(logits)
    if reduction not in ("weighted_mean", "mean"):
        raise ValueError(f'reduction must be "weighted_mean" or "mean", got {reduction!r}')
    if weight is not None:
        check_weight(weight, logits)
        dtype = compute_dtype(logits.dtype)
        if weight.dtype != dtype or not weight.is_contiguous():
            weight = weight.to(dtype).contiguous()
    if check_finite:
        check_finite_values(logits, "logits")
        if weight is not None:
            check_finite_values(weight, "weight")
            if bool((weight < 0).any()):
                raise ValueError(f"weight must be >= 0, got a minimum of {weight.min().item():g}")
    return weight, reduction == "weighted_mean"


def weighted_uniformity(
    logits: Tensor,
    weight: Tensor | None = None,
    *,
    reduction: Reduction = "weighted_mean",
    check_finite: bool = False,
) -> tuple[Tensor, Tensor]:
    """Weighted mean of the divergence between the uniform and the predicted distribution of background rows.

    Args:
        logits: `[N, K]`, float64, float32, bfloat16 or float16, on the CPU or a CUDA device. Rows may be strided (a
            slice of a bigger batch). A logit of -inf makes its row's loss +inf; NaN or +inf makes it NaN.
        weight: `[N]`, floating-point, >= 0; None for all ones. Rows of weight zero add nothing, whatever they hold.
        reduction: `"weighted_mean"` divides by the sum of weights (Li & Vasconcelos 2020, eq. 14); `"mean"` divides by
            N, which is what the importance weights of a background pool want (supplementary eq. 10 and 12).
        check_finite: Raise `ValueError` on a NaN or infinite logit or weight and on a negative weight. Waits for the
            device.

    Returns:
        loss: `[]`, differentiable with respect to `logits` and `weight` (beyond the first order by plain PyTorch,
            slower). Zero when N is 0 or all weights are.
        per_sample: `[N]`, the unweighted `l_i >= 0` of eq. 5 in nats, detached: what `BackgroundPool.ascend` takes.
        Both are float64 for float64 logits and float32 for all others.

    Raises:
        TypeError: An argument is not a tensor of the dtypes above.
        ValueError: An argument has the wrong shape, device or value.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[0.0, 0.0, 0.0], [4.0, 0.0, 0.0]], requires_grad=True)
        >>> loss, per_sample = weighted_uniformity(logits, torch.tensor([1.0, 3.0]))
        >>> per_sample
        tensor([0.0000, 1.6040])
        >>> loss.backward()
        >>> logits.grad[1]
        tensor([ 0.4735, -0.2367, -0.2367])
    """
    weight, by_weight = _prepare(logits, weight, reduction, check_finite)
    loss, per_sample = _WeightedUniformity.apply(logits, weight, by_weight)
    return loss, per_sample


def weighted_uniformity_value_and_grad(
    logits: Tensor,
    weight: Tensor | None = None,
    *,
    reduction: Reduction = "weighted_mean",
    check_finite: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """`weighted_uniformity` and its gradient in one pass, for loops that call `logits.backward(gradient)` themselves.

    At small batches the autograd engine costs more than the loss; on the CPU this reads the logits once.

    Args:
        logits: As for `weighted_uniformity`; not differentiated through.
        weight: As for `weighted_uniformity`.
        reduction: As for `weighted_uniformity`.
        check_finite: As for `weighted_uniformity`.

    Returns:
        loss `[]`, per_sample `[N]` and the gradient of the loss, `[N, K]` in the dtype of `logits`.

    Raises:
        TypeError: An argument is not a tensor of the dtypes above.
        ValueError: An argument has the wrong shape, device or value.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[4.0, 0.0, 0.0]])
        >>> loss, per_sample, gradient = weighted_uniformity_value_and_grad(logits)
        >>> gradient
        tensor([[ 0.6313, -0.3157, -0.3157]])
    """
    weight, by_weight = _prepare(logits, weight, reduction, check_finite)
    # Detached rather than under no_grad, which costs a fifth of the call at small batches.
    loss, per_sample, gradient = _value_and_grad(
        logits.detach(), None if weight is None else weight.detach(), by_weight
    )
    return loss, per_sample, gradient
