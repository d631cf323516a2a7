"""Reference of the background pool in plain float64 PyTorch: Li & Vasconcelos 2020, supplementary material."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def weights_of(omega: Tensor) -> Tensor:
    """Return `w = softplus(ω)` float64 `[N]` (supplementary section C); 0 where ω is -inf. Differentiable.

    Example:
        >>> weights_of(torch.tensor([-float("inf"), 50.0])).tolist()
        [0.0, 50.0]
    """
    return F.softplus(omega.double(), threshold=700)


def masses_of(omega: Tensor, epsilon: float) -> Tensor:
    """Return `p = w^ε` float64 `[N]`, the terms of Z in supplementary eq. 11; 0 where ω is -inf."""
    return torch.where(omega == -torch.inf, 0.0, weights_of(omega).pow(epsilon))


def importance_of(omega: Tensor, index: Tensor, epsilon: float) -> Tensor:
    """Return `r_i = (Σ p / Σ w) w_i^(1-ε)` float64 `[B]` (supplementary eq. 12). Differentiable in every ω."""
    w = weights_of(omega)
    return masses_of(omega, epsilon).sum() / w.sum() * w[index].pow(1 - epsilon)


def batch_loss(omega: Tensor, index: Tensor, per_sample_loss: Tensor, epsilon: float) -> Tensor:
    """Return `L = 1/B Σ_b r_{i_b} l_b`, of which a step ascends the gradient in ω."""
    return (importance_of(omega, index, epsilon) * per_sample_loss.double()).mean()


def gradient_of(omega: Tensor, index: Tensor, per_sample_loss: Tensor, epsilon: float) -> Tensor:
    """Return the gradient of `batch_loss` in every ω, float64 `[N]`, by autograd.

    Example:
        >>> omega = torch.zeros(2)
        >>> g = gradient_of(omega, torch.tensor([0]), torch.tensor([1.0]), 0.5)
        >>> round(abs(float(g.sum())), 12)  # equal weights: the gain of one equals the loss of the other
        0.0
    """
    leaf = omega.detach().double().requires_grad_()
    (gradient,) = torch.autograd.grad(batch_loss(leaf, index, per_sample_loss, epsilon), leaf)
    return gradient
