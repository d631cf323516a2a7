"""Negative squared Mahalanobis distances to class means under one covariance, with fused forward and backward.

    h_ni = -(z_n - m_i)ᵀ (L Lᵀ)⁻¹ (z_n - m_i)          Wu et al. 2023, eq. 0.11; for fixed m and L, Lee et al. 2018
                                                       (https://arxiv.org/abs/1807.03888)

Squared distances are not divided by two. `csrc/mahalanobis/cpu.h` has the algorithm and the gradients.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastood.ops._transforms import is_transformed
from fastood.ops._validation import LOGIT_DTYPES, check_tensor, compute_dtype, require_same_device, widened
from fastood.ops.reference import mahalanobis as reference

_forward = torch.ops.fastood.mahalanobis_logits.default
_backward = torch.ops.fastood._mahalanobis_logits_backward.default


def _forward_fake(features: Tensor, means: Tensor, scale_tril: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    require_same_device(features, means, scale_tril)
    rows = features.shape[0]
    return (
        features.new_empty((rows, means.shape[0])),
        features.new_empty((rows, features.shape[1])),
        features.new_empty(means.shape),
        features.new_empty((rows,), dtype=torch.int64),
    )


def _backward_fake(
    grad: Tensor, residual: Tensor, whitened_means: Tensor, nearest: Tensor, scale_tril: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    require_same_device(residual, grad, whitened_means, nearest, scale_tril)
    return (
        residual.new_empty(residual.shape),
        residual.new_empty(whitened_means.shape),
        residual.new_empty(scale_tril.shape),
    )


torch.library.register_fake("fastood::mahalanobis_logits", _forward_fake)
torch.library.register_fake("fastood::_mahalanobis_logits_backward", _backward_fake)


class _MahalanobisLogits(torch.autograd.Function):
    """Autograd of the op, outside the op: registering it there costs three times the overhead at small batches."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, means: Tensor, scale_tril: Tensor) -> tuple[Tensor, Tensor]:
        logits, residual, whitened_means, nearest = _forward(features, means, scale_tril)
        # Features and means are needed for second derivatives; saved tensors are not copied.
        ctx.save_for_backward(residual, whitened_means, nearest, scale_tril, features, means)
        ctx.mark_non_differentiable(nearest)
        ctx.set_materialize_grads(False)
        return logits, nearest

    @staticmethod
    def backward(
        ctx: Any, grad: Tensor | None, _grad_nearest: None
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        if grad is None:
            return None, None, None
        residual, whitened_means, nearest, scale_tril, features, means = ctx.saved_tensors
        if torch.is_grad_enabled():
            of_features, of_means, of_scale = _differentiable_backward(grad, features, means, scale_tril, nearest)
        else:
            of_features, of_means, of_scale = _backward(grad, residual, whitened_means, nearest, scale_tril)
        needs_features, needs_means, needs_scale = ctx.needs_input_grad
        return (
            of_features if needs_features else None,
            of_means if needs_means else None,
            of_scale if needs_scale else None,
        )


def _differentiable_backward(
    grad: Tensor, features: Tensor, means: Tensor, scale_tril: Tensor, nearest: Tensor
) -> tuple[Tensor, ...]:
    """Compute the gradients under create_graph=True by the reference, which differentiates to any order."""
    z, m, scale = features.double(), means.double(), scale_tril.double()

    def whiten(rows: Tensor) -> Tensor:
        if scale.ndim == 1:
            return rows / scale
        solved: Tensor = torch.linalg.solve_triangular(scale.tril(), rows.T, upper=False)
        return solved.T

    # The result does not depend on mu, the mean of the means: detached, it is not differentiated.
    residual, whitened_means = whiten(z - m[nearest]), whiten(m - m.detach().mean(0))
    gradients = reference.mahalanobis_logits_backward(grad, residual, whitened_means, nearest, scale)
    return tuple(x.to(features.dtype) for x in gradients)


def mahalanobis_logits(features: Tensor, means: Tensor, scale_tril: Tensor) -> Tensor:
    r"""Compute the negative squared Mahalanobis distance of every feature to every class mean.

    Differentiable in all three arguments; beyond the first order, under torch.func and in forward mode by plain PyTorch
    in float64, slower.

    Precision: the vectors are whitened in float64 for any dtype, around the mean of the means. A pair whose
    distance is small relative to the vectors, and the nearest class always, is computed from the difference of the
    whitened vectors; `max(1)` is therefore as accurate as a float64 computation rounded to the dtype, even for a
    feature at distance 10⁻⁴ from a mean of norm 10³, and never positive. Other pairs are accurate to a few units in the
    last place. The gradient is as accurate for the nearest class; for other classes its error is a unit in the last
    place of |c_i|, the norm of the whitened and centred mean. float32 matrix products ignore
    `torch.set_float32_matmul_precision`.

    Args:
        features: z `[N, d]`, N >= 0, d >= 1. float64, float32, bfloat16 or float16; the last two are computed in
            float32, also under autocast.
        means: m `[K, d]`, K >= 1, float32, or float64 for float64 features; bfloat16 and float16 are computed in
            float32, with a gradient in their own dtype.
        scale_tril: L, in the dtype that `means` are computed in, or in 16 bits with float32 means: `[d, d]`
            lower-triangular with a diagonal above 0, of which the strict upper triangle is not read and has gradient 0;
            or `[d]`, the diagonal of a diagonal L.

    Returns:
        logits h `[N, K]`, at most 0, in the dtype that `means` are computed in. A NaN feature makes its row NaN; an
        infinite feature makes it NaN or, for L `[d]`, -inf. A NaN or infinite mean makes all logits NaN.

    Raises:
        TypeError: If an argument is not a tensor of these dtypes.
        ValueError: If an argument has the wrong shape or device. On the CPU also if the diagonal of L is not finite and
            above 0; on a CUDA device, where a check would synchronise, the logits are NaN instead.

    Example:
        >>> import torch
        >>> means = torch.tensor([[0.0, 0.0], [4.0, 0.0]])
        >>> scale_tril = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
        >>> logits = mahalanobis_logits(torch.tensor([[1.0, 0.0]]), means, scale_tril)
        >>> logits
        tensor([[-0.2500, -2.2500]])
        >>> torch.distributions.MultivariateNormal(means[0], scale_tril=scale_tril).log_prob(means[0] + 1) - (
        ...     0.5 * mahalanobis_logits(means[:1] + 1, means, scale_tril)[0, 0]
        ... )  # a constant: h is twice the exponent of the density
        tensor(-2.5310)
    """
    return mahalanobis_logits_and_nearest(features, means, scale_tril)[0]


def mahalanobis_logits_and_nearest(features: Tensor, means: Tensor, scale_tril: Tensor) -> tuple[Tensor, Tensor]:
    """Compute `mahalanobis_logits` and the nearest class of every row, int64 `[N]`: the first of the largest logits.

    Example:
        >>> import torch
        >>> logits, nearest = mahalanobis_logits_and_nearest(torch.ones(1, 2), torch.eye(3, 2), torch.ones(2))
        >>> logits, nearest
        (tensor([[-1., -1., -2.]]), tensor([0]))
    """
    _check(features, means, scale_tril)
    means, scale_tril = widened(means), widened(scale_tril)
    if is_transformed():
        return _by_reference(features.to(means.dtype), means, scale_tril)
    try:
        logits, nearest = _MahalanobisLogits.apply(features.to(means.dtype), means, scale_tril)
    except RuntimeError as error:
        raise _refused(error) from error
    return logits, nearest


def _by_reference(features: Tensor, means: Tensor, scale_tril: Tensor) -> tuple[Tensor, Tensor]:
    """Return the results of plain PyTorch in float64, for transforms of torch.func."""
    logits = reference.mahalanobis_logits(features, means, scale_tril)
    return logits.to(means.dtype), logits.detach().argmax(1)


def _check(features: Tensor, means: Tensor, scale_tril: Tensor) -> None:
    for name, tensor in (("features", features), ("means", means), ("scale_tril", scale_tril)):
        check_tensor(name, tensor, LOGIT_DTYPES)
    wanted = torch.float64 if features.dtype == torch.float64 else torch.float32
    computed = compute_dtype(means.dtype)
    if computed != torch.float64 and computed != wanted:
        raise TypeError(f"means must be {wanted} with features of {features.dtype}, got {means.dtype}")
    if compute_dtype(scale_tril.dtype) != computed:
        raise TypeError(f"scale_tril must be {computed} like means, got {scale_tril.dtype}")
    if means.dim() != 2 or means.shape[0] < 1 or means.shape[1] < 1:
        raise ValueError(f"means must be [K, d] with K, d >= 1, got shape {tuple(means.shape)}")
    dim = means.shape[1]
    if features.dim() != 2 or features.shape[1] != dim:
        raise ValueError(f"features must be [N, {dim}] with means of that width, got shape {tuple(features.shape)}")
    if tuple(scale_tril.shape) not in ((dim,), (dim, dim)):
        raise ValueError(f"scale_tril must be [{dim}, {dim}] or [{dim}], got shape {tuple(scale_tril.shape)}")
    for name, tensor in (("means", means), ("scale_tril", scale_tril)):
        if tensor.device != features.device:
            raise ValueError(f"{name} must be on {features.device} like features, got {tensor.device}")


def _refused(error: RuntimeError) -> Exception:
    """Return the error of the op's check of the diagonal as a ValueError, without the C++ source location."""
    _, wanted, rest = str(error).partition("scale_tril must have a finite diagonal")
    return ValueError(wanted + rest.partition("\n")[0]) if wanted else error
