"""Unconstrained parameters of a positive definite covariance, and back.

All three kinds keep scales apart from correlations, so that the units of a feature are in its own scale alone:

    l = min_scale + exp(log_scale)                       > min_scale
    diagonal    Σ = diag(l)²
    full        Σ = L L^T,  L = diag(l) (I + N)          N strictly lower-triangular
    low_rank    Σ = diag(l) (I + W W^T) diag(l)          W [d, r]

Why the exponential: a step changes a scale by a factor, and `dh_i / dlog l_j = 2 ((z - m_i)_j / l_j)²` (diagonal L) has
no units, so that rescaling a feature with its mean and scale changes no other step. With a softplus, scales above 1
would move by amounts: what a step does would depend on the units. The floor keeps L's diagonal from 0, where outliers
pull it (Wu et al. 2023, eq. 0.13 grows without bound in L^-1), and is added, not clamped to, so that there is always a
gradient. I + W W^T has eigenvalues of at least 1, so that its Cholesky factor always exists.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from fastood.heads.covariance import cholesky_factor

Covariance: TypeAlias = Literal["full", "diagonal", "low_rank"]
COVARIANCES = ("full", "diagonal", "low_rank")


def scale_tril_of(covariance: Covariance, min_scale: float | Tensor, log_scale: Tensor, off: Tensor | None) -> Tensor:
    """L, `[d, d]` lower-triangular with a positive diagonal, or `[d]` for "diagonal".

    Args:
        covariance: The kind.
        min_scale: Floor of l, at least 0.
        log_scale: `[d]`.
        off: N `[d, d]` (only what is below the diagonal counts) for "full", W `[d, r]` for "low_rank", else None.
    """
    scale = min_scale + log_scale.exp()
    if off is None:
        return scale
    if covariance == "full":
        return off.tril(-1) * scale[:, None] + scale.diag()
    # Without a check, which would wait for the device: only NaN can make it fail, and NaN then spreads to the logits.
    gram = off @ off.mT + torch.eye(off.shape[0], dtype=off.dtype, device=off.device)
    factor: Tensor = torch.linalg.cholesky_ex(gram).L
    return factor * scale[:, None]


def parameters_of(
    covariance: Covariance, min_scale: float, matrix: Tensor, rank: int | None
) -> tuple[Tensor, Tensor | None]:
    """`log_scale` and `off` for which `scale_tril_of` gives a factor of `matrix`, as near as the kind can.

    "diagonal" takes the variances alone. "low_rank" takes the leading r principal axes of the correlation matrix less
    the mean of the other eigenvalues (probabilistic PCA, Tipping & Bishop 1999), and leaves the variances as they are.

    Args:
        covariance: The kind.
        min_scale: Floor of l, at least 0.
        matrix: Σ, float64 `[d, d]`.
        rank: r, for "low_rank".

    Returns:
        float64 `[d]`, and `[d, d]` or `[d, r]` or None.

    Raises:
        ValueError: Σ is singular, or has a scale that is not above `min_scale`.
    """
    if covariance == "diagonal":
        factor = cholesky_factor(matrix.diagonal().diag())
        return _log_scale(factor.diagonal(), min_scale), None
    if covariance == "full":
        factor = cholesky_factor(matrix)
        scale = factor.diagonal()
        return _log_scale(scale, min_scale), (factor / scale[:, None]).tril(-1)
    assert rank is not None
    deviation = cholesky_factor(matrix.diagonal().diag()).diagonal()
    eigenvalues, axes = torch.linalg.eigh(matrix / deviation / deviation[:, None])
    noise = eigenvalues[: len(deviation) - rank].mean() if rank < len(deviation) else eigenvalues[0]
    loadings = axes[:, -rank:] * (eigenvalues[-rank:] - noise).clamp_min(0).sqrt()
    # What the axes leave of a feature's variance; never nothing, or the feature would be a function of the others.
    scale = deviation * (1 - loadings.square().sum(1)).clamp_min(MIN_UNIQUE).sqrt()
    return _log_scale(scale, min_scale), loadings * (deviation / scale)[:, None]


MIN_UNIQUE = 1e-3
"""Share of a feature's variance that "low_rank" leaves to the feature alone, at least."""


def _log_scale(scale: Tensor, min_scale: float) -> Tensor:
    least = float(scale.min())
    if not least > min_scale:
        raise ValueError(
            f"min_scale must be below the least scale of the covariance, {least:.3g} in feature {int(scale.argmin())}, "
            f"got {min_scale}"
        )
    return (scale - min_scale).log()
