"""The background pool in plain float64 PyTorch: what the tests hold the ops to, and the place to read the formulas."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def weights_of(omega: Tensor) -> Tensor:
    """`w = softplus(ω)` float64 `[N]` (supplementary section C); 0 where ω is -inf. Differentiable.

    Example:
        >>> weights_of(torch.tensor([-float("inf"), 50.0])).tolist()
        [0.0, 50.0]
    """
    return F.softplus(omega.double(), threshold=700)


def masses_of(omega: Tensor, epsilon: float) -> Tensor:
    """`p = w^ε` float64 `[N]`, the terms of Z in supplementary eq. 11; 0 where ω is -inf."""
    return torch.where(omega == -torch.inf, 0.0, weights_of(omega).pow(epsilon))


def importance_of(omega: Tensor, index: Tensor, epsilon: float) -> Tensor:
    """`r_i = (Σ p / Σ w) w_i^(1-ε)` float64 `[B]` (supplementary eq. 12). Differentiable in every ω."""
    w = weights_of(omega)
    return masses_of(omega, epsilon).sum() / w.sum() * w[index].pow(1 - epsilon)


def batch_loss(omega: Tensor, index: Tensor, per_sample_loss: Tensor, epsilon: float) -> Tensor:
    """`L = 1/B Σ_b r_{i_b} l_b`, whose gradient in ω a step ascends."""
    return (importance_of(omega, index, epsilon) * per_sample_loss.double()).mean()


def gradient_of(omega: Tensor, index: Tensor, per_sample_loss: Tensor, epsilon: float) -> Tensor:
    """The gradient of `batch_loss` in every ω, float64 `[N]`, by autograd.

    Example:
        >>> omega = torch.zeros(2)
        >>> g = gradient_of(omega, torch.tensor([0]), torch.tensor([1.0]), 0.5)
        >>> round(abs(float(g.sum())), 12)  # equal weights: what one gains in importance the other loses
        0.0
    """
    leaf = omega.detach().double().requires_grad_()
    (gradient,) = torch.autograd.grad(batch_loss(leaf, index, per_sample_loss, epsilon), leaf)
    return gradient
