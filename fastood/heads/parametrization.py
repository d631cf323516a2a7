"""Unconstrained parameters of a positive definite covariance, and their inverse.

All three kinds separate scales from correlations, so that the units of a feature affect its own scale alone:

    l = min_scale + exp(log_scale)                       > min_scale
    diagonal    Σ = diag(l)²
    full        Σ = L L^T,  L = diag(l) (I + N)          N strictly lower-triangular
    low_rank    Σ = diag(l) (I + W W^T) diag(l)          W [d, r]

Why an exponential: a step then changes a scale by a factor, and `dh_i / dlog l_j = 2 ((z - m_i)_j / l_j)²` (diagonal
L) has no units, so that rescaling a feature together with its mean and scale leaves all other steps unchanged. A
softplus is linear above 1, and the effect of a step would depend on the units. The floor keeps the diagonal of L from
0, where outliers push it (Wu et al. 2023, eq. 0.13 is unbounded in L^-1); it is added, not a clamp, so that the
gradient never vanishes. I + W W^T has eigenvalues of at least 1, so that its Cholesky factor always exists.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from fastood.heads.covariance import cholesky_factor

__all__ = ["COVARIANCES", "MIN_UNIQUE", "Covariance", "parameters_of", "scale_tril_of"]

Covariance: TypeAlias = Literal["full", "diagonal", "low_rank"]
COVARIANCES = ("full", "diagonal", "low_rank")


def scale_tril_of(covariance: Covariance, min_scale: float | Tensor, log_scale: Tensor, off: Tensor | None) -> Tensor:
    """Return L, `[d, d]` lower-triangular with a positive diagonal, or its diagonal `[d]` for "diagonal".

    Args:
        covariance: Kind of the covariance.
        min_scale: Floor of l, at least 0.
        log_scale: `[d]`.
        off: N `[d, d]` for "full", of which only elements below the diagonal count; W `[d, r]` for "low_rank"; else
            None.
    """
    scale = min_scale + log_scale.exp()
    if off is None:
        return scale
    if covariance == "full":
        return off.tril(-1) * scale[:, None] + scale.diag()
    # cholesky_ex without its check, which synchronises with the device: only NaN can make it fail, and NaN reaches the
    # logits.
    gram = off @ off.mT + torch.eye(off.shape[0], dtype=off.dtype, device=off.device)
    factor: Tensor = torch.linalg.cholesky_ex(gram).L
    return factor * scale[:, None]


def parameters_of(
    covariance: Covariance, min_scale: float, matrix: Tensor, rank: int | None
) -> tuple[Tensor, Tensor | None]:
    """Return `log_scale` and `off` for which `scale_tril_of` is a factor of `matrix`, as closely as the kind allows.

    "diagonal" keeps the variances alone. "low_rank" keeps the leading r principal axes of the correlation matrix, minus
    the mean of the other eigenvalues (probabilistic PCA, Tipping & Bishop 1999), and the variances.

    Args:
        covariance: Kind of the covariance.
        min_scale: Floor of l, at least 0.
        matrix: Σ, float64 `[d, d]`.
        rank: r, for "low_rank".

    Returns:
        log_scale: float64 `[d]`.
        off: float64 `[d, d]` for "full", `[d, r]` for "low_rank", else None.

    Raises:
        ValueError: If Σ is singular, or has a scale that is not above `min_scale`.
    """
    if covariance == "diagonal":
        factor = cholesky_factor(matrix.diagonal().diag())
        return _log_scale(factor.diagonal(), min_scale), None
    if covariance == "full":
        factor = cholesky_factor(matrix)
        scale = factor.diagonal()
        return _log_scale(scale, min_scale), (factor / scale[:, None]).tril(-1)
    assert rank is not None
    # On correlations rather than covariances: the leading axes must not depend on the units of the features.
    deviation = cholesky_factor(matrix.diagonal().diag()).diagonal()
    eigenvalues, axes = torch.linalg.eigh(matrix / deviation / deviation[:, None])
    noise = eigenvalues[: len(deviation) - rank].mean() if rank < len(deviation) else eigenvalues[0]
    loadings = axes[:, -rank:] * (eigenvalues[-rank:] - noise).clamp_min(0).sqrt()
    # Fraction of the variance that the axes leave to the feature; at 0 the feature would be a function of the others.
    scale = deviation * (1 - loadings.square().sum(1)).clamp_min(MIN_UNIQUE).sqrt()
    return _log_scale(scale, min_scale), loadings * (deviation / scale)[:, None]


MIN_UNIQUE = 1e-3
"""Least fraction of its variance that "low_rank" leaves to a feature alone."""


def _log_scale(scale: Tensor, min_scale: float) -> Tensor:
    least = float(scale.min())
    if not least > min_scale:
        raise ValueError(
            f"min_scale must be below the least scale of the covariance, {least:.3g} in feature {int(scale.argmin())}, "
            f"got {min_scale}"
        )
    return (scale - min_scale).log()
