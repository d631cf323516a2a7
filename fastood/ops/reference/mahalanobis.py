"""Reference of the Mahalanobis logits and their gradients in plain float64 PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor


def mahalanobis_logits(features: Tensor, means: Tensor, scale_tril: Tensor) -> Tensor:
    """Compute h_ni = -(z_n - m_i)ᵀ (L Lᵀ)⁻¹ (z_n - m_i): Wu 2023, eq. 0.11.

    Args:
        features: z `[N, d]`, any floating-point dtype.
        means: m `[K, d]`.
        scale_tril: L `[d, d]`, of which the lower triangle is read, or its diagonal `[d]`.

    Returns:
        `[N, K]` float64, differentiable to any order.

    Example:
        >>> mahalanobis_logits(torch.tensor([[3.0, 4.0]]), torch.zeros(1, 2), torch.ones(2)).item()
        -25.0
    """
    z, m, scale = features.double(), means.double(), scale_tril.double()
    difference = z[:, None, :] - m
    if scale.ndim == 1:
        whitened = difference / scale
    else:
        # One system per row keeps a NaN in its row.
        rows = difference.reshape(-1, z.shape[1], 1)
        whitened = torch.linalg.solve_triangular(scale.tril(), rows, upper=False).reshape(difference.shape)
    return -whitened.square().sum(2)


def mahalanobis_logits_backward(
    grad: Tensor, residual: Tensor, whitened_means: Tensor, nearest: Tensor, scale_tril: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of csrc/mahalanobis/cpu.h: of h as a function of u_n = L⁻¹(z_n - m_r(n)) and c_i.

    Args:
        grad: Upstream gradient `[N, K]`.
        residual: u `[N, d]`.
        whitened_means: c_i = L⁻¹(m_i - mu) `[K, d]`, for any mu.
        nearest: r(n), int64 `[N]`.
        scale_tril: L `[d, d]`, or its diagonal `[d]`.

    Returns:
        The gradients of features `[N, d]`, means `[K, d]` and scale_tril, float64, differentiable.
    """
    grad, u, c, scale = grad.double(), residual.double(), whitened_means.double(), scale_tril.double()
    y = u + c[nearest]
    own = grad.gather(1, nearest[:, None])
    rest = grad.scatter(1, nearest[:, None], 0.0)
    common = -2 * (rest.sum(1, keepdim=True) * y - rest @ c)
    grad_u = common - 2 * own * u
    grad_c = 2 * (rest.T @ y - rest.sum(0)[:, None] * c)
    grad_c = grad_c.index_add(0, nearest, common)
    if scale.ndim == 1:
        grad_z, moved = grad_u / scale, grad_c / scale
        grad_scale = -(grad_z * u).sum(0) - (moved * c).sum(0)
    else:
        lower = scale.tril()
        grad_z, moved = (torch.linalg.solve_triangular(lower.T, rows.T, upper=True).T for rows in (grad_u, grad_c))
        grad_scale = -(grad_z.T @ u + moved.T @ c).tril()
    return grad_z, moved.index_add(0, nearest, -grad_z), grad_scale
