"""The weighted uniformity loss, forward and backward fused (Li & Vasconcelos 2020, eq. 5 and 14).

For background logits `v_i` with softmax `f_i` and weights `w_i >= 0`,

    l_i = -1/K Σ_k log f_ik - log K = logsumexp(v_i) - mean(v_i) - log K = KL(uniform || f_i)        (eq. 5)
    L = Σ_i w_i l_i / Σ_i w_i                                                                        (eq. 14)
    ∂L/∂v_ik = w_i (f_ik - 1/K) / Σ_j w_j,      ∂L/∂w_i = (l_i - L) / Σ_j w_j

Trained networks have `l_i` near zero, where the difference of `logsumexp` and `mean` loses all digits in float32. The
kernels use an identity without cancellation (csrc/common/uniformity.h): relative error below 1e-5 down to a spread of
1e-4, even for logits near 100 or -100.
"""

from __future__ import annotations

from torch import Tensor

from fastood.ops._arguments import as_flag
from fastood.ops._rows import Numbers, as_sample_weight
from fastood.ops._validation import (
    REDUCTIONS,
    Reduction,
    check_finite_values,
    check_logits,
    check_reduction,
)
from fastood.ops.loss_kind import LossKind
from fastood.ops.outlier_loss import LossSettings, RowArguments
from fastood.ops.outlier_terms import reduced_loss, reduced_value_and_grad

_SETTINGS = {name: LossSettings(LossKind.UNIFORMITY, by_weight=name == "weighted_mean") for name in REDUCTIONS}


def _prepare(logits: Tensor, weight: Numbers | None, reduction: Reduction, check_finite: bool) -> RowArguments:
    check_logits(logits)
    if as_flag("check_finite", check_finite):
        check_finite_values(logits, "logits")
    if weight is None:
        return RowArguments()
    by_weight = reduction == "weighted_mean"
    return RowArguments(
        weight=as_sample_weight(weight, logits, None, by_weight, check_finite=check_finite, name="weight")
    )


def weighted_uniformity(
    logits: Tensor,
    weight: Numbers | None = None,
    *,
    reduction: Reduction = "weighted_mean",
    check_finite: bool = False,
) -> tuple[Tensor, Tensor]:
    """Compute the weighted mean of KL(uniform || softmax) over background rows.

    Args:
        logits: `[N, K]`, float64, float32, bfloat16 or float16, on the CPU or a CUDA device. Rows may be strided (a
            slice of a bigger batch). A logit of -inf makes its row's loss +inf; NaN or +inf makes it NaN.
        weight: `[N]` numbers >= 0, as a tensor, an array or a list; None for all ones. Rows of weight zero do not
            contribute, even if they hold NaN. For `"weighted_mean"` float64 weights, arrays and lists may have any
            scale, because only their ratios matter.
        reduction: `"weighted_mean"` divides by the sum of weights (Li & Vasconcelos 2020, eq. 14); `"mean"` divides by
            N, as the importance weights of a background pool require (supplementary eq. 10 and 12); `"sum"` does not
            divide, and `"none"` returns the terms.
        check_finite: Raise `ValueError` on a NaN or infinite logit or weight and on a negative weight. Synchronises
            with a CUDA device.

    Returns:
        loss: `[]`, or `[N]`, the `w_i l_i`, for `"none"`; differentiable with respect to `logits` and `weight` (beyond
            the first order and under torch.func by plain PyTorch, slower). Zero when N is 0 or all weights are.
        per_sample: `[N]`, the unweighted `l_i >= 0` of eq. 5 in nats, detached: the input of `BackgroundPool.ascend`.
        Both are float64 for float64 logits and float32 for all others.

    Raises:
        TypeError: If an argument is not a tensor of the dtypes above.
        ValueError: If an argument has the wrong shape, device or value.

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
    reduction = check_reduction(reduction)
    rows = _prepare(logits, weight, reduction, check_finite)
    return reduced_loss(logits, rows, _SETTINGS[reduction], reduction)


def weighted_uniformity_value_and_grad(
    logits: Tensor,
    weight: Numbers | None = None,
    *,
    reduction: Reduction = "weighted_mean",
    check_finite: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `weighted_uniformity` and its gradient in one pass, for loops that call `logits.backward(gradient)`.

    At small batches the autograd engine costs more than the loss; on the CPU this reads the logits once.

    Args:
        logits: `[N, K]`, float64, float32, bfloat16 or float16; not differentiated through.
        weight: `[N]` numbers >= 0; None for all ones.
        reduction: `"weighted_mean"`, `"mean"` or `"sum"`; `"none"` has no scalar loss to differentiate.
        check_finite: Raise `ValueError` on a NaN or infinite logit or weight and on a negative weight. Synchronises
            with a CUDA device.

    Returns:
        loss `[]`, per_sample `[N]` and the gradient of the loss, `[N, K]` in the dtype of `logits`.

    Raises:
        TypeError: If an argument is not a tensor of the dtypes above.
        ValueError: If an argument has the wrong shape, device or value.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[4.0, 0.0, 0.0]])
        >>> loss, per_sample, gradient = weighted_uniformity_value_and_grad(logits)
        >>> gradient
        tensor([[ 0.6313, -0.3157, -0.3157]])
    """
    reduction = check_reduction(reduction)
    rows = _prepare(logits, weight, reduction, check_finite)
    return reduced_value_and_grad(logits, rows, _SETTINGS[reduction], reduction)
