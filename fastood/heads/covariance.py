"""Covariances from sums of squares: shrinkage towards a multiple of the identity, Cholesky factors, conditioning."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

Shrinkage: TypeAlias = float | Literal["oas", "ledoit_wolf"] | None
"""How much of the covariance is replaced by `tr(Σ)/d · I`: a share in [0, 1], or the estimator that chooses it."""

# A feature of which the ones before it leave less than this share of its variance unexplained is, to float64, a linear
# combination of them: rounding leaves up to d · 2e-16 of a share that is truly zero.
MIN_UNEXPLAINED = 1e-12
# Only the blocks of X^T X on and below the diagonal are computed: at 2048 features 1.4 times as fast as all of them, at
# 512 1.2 times, where blocks of half the width gain less.
BLOCK_COLUMNS = 256


def check_shrinkage(shrinkage: Shrinkage) -> None:
    """Raise unless `shrinkage` is None, "oas", "ledoit_wolf" or a number in [0, 1]."""
    if shrinkage is None or shrinkage in ("oas", "ledoit_wolf"):
        return
    if isinstance(shrinkage, str) or not 0 <= shrinkage <= 1:
        raise ValueError(f'shrinkage must be None, "oas", "ledoit_wolf" or a share in [0, 1], got {shrinkage!r}')


def shrinkage_share(
    covariance: Tensor, count: int, shrinkage: Shrinkage, fourth_moment: Tensor | float | None = None
) -> float:
    """The share α of `(1 - α) Σ + α tr(Σ)/d I`.

    Args:
        covariance: Σ, float64 `[d, d]`, of `count` rows about a known centre, divided by their number.
        count: Rows n behind it.
        shrinkage: None is 0; a number is itself. "oas": Chen et al. 2010, eq. 23, with 2/d left out as scikit-learn
            does. "ledoit_wolf": Ledoit & Wolf 2004, lemma 3.2 to 3.4.
        fourth_moment: `Σ_n |x_n - centre|⁴`, for "ledoit_wolf" alone.

    Returns:
        α in [0, 1], that of `sklearn.covariance.OAS` or `LedoitWolf` with `assume_centered=True`.

    Raises:
        ValueError: `shrinkage` is none of these, or "ledoit_wolf" lacks the fourth moment.
    """
    check_shrinkage(shrinkage)
    if shrinkage is None or not isinstance(shrinkage, str):
        return float(shrinkage or 0.0)
    d = covariance.shape[0]
    square = float(covariance.square().sum())
    scale = float(covariance.diagonal().sum()) / d
    # Squared distance of Σ to its target, per feature; zero where Σ is a multiple of I, always so for one feature.
    distance = square / d - scale**2
    if d == 1 or distance <= 0:
        return 0.0 if shrinkage == "ledoit_wolf" or d == 1 else 1.0
    if shrinkage == "oas":
        return min(1.0, (square / d**2 + scale**2) / ((count + 1) * distance / d))
    if fourth_moment is None:
        raise ValueError(
            'shrinkage="ledoit_wolf" needs fourth_moment, the sum of |x - mean|⁴, which takes a second pass over the'
            ' rows: GaussianStatistics.fourth_moment. "oas" needs none'
        )
    noise = (float(fourth_moment) / count - square) / (d * count)
    return max(0.0, min(noise, distance)) / distance


def shrink(covariance: Tensor, share: float) -> Tensor:
    """`(1 - share) Σ + share · tr(Σ)/d · I` for `covariance` Σ `[d, d]`, a new tensor."""
    shrunk = covariance * (1 - share)
    shrunk.diagonal().add_(share * covariance.diagonal().mean())
    return shrunk


def cholesky_factor(covariance: Tensor, *, name: str = "covariance") -> Tensor:
    """The lower-triangular L with `L L^T = Σ`, or an error that says which features are in the way.

    Whether Σ is singular does not depend on the features' units here: it is scaled to unit variances first.

    Args:
        covariance: Σ, float64 `[d, d]`, symmetric.
        name: What Σ is called in an error.

    Returns:
        L, float64 `[d, d]`.

    Raises:
        ValueError: Σ is not positive definite to float64 precision: a feature is constant, or a linear combination of
            those before it, as when d exceeds the number of rows less the number of classes.

    Example:
        >>> import torch
        >>> cholesky_factor(torch.tensor([[4.0, 2.0], [2.0, 5.0]], dtype=torch.float64))
        tensor([[2., 0.],
                [1., 2.]], dtype=torch.float64)
    """
    variance = covariance.diagonal()
    constant = (~(variance > 0)).nonzero().flatten().tolist()
    if constant:
        raise ValueError(f"{name} is singular: {_named(constant)} constant within the classes. {_REMEDY}")
    deviation = variance.sqrt()
    factor: Tensor
    factor, info = torch.linalg.cholesky_ex(covariance / deviation / deviation[:, None])
    unexplained = factor.diagonal().square()
    dependent = (~(unexplained > MIN_UNEXPLAINED)).nonzero().flatten().tolist()
    if int(info) > 0 or dependent:
        # Where the factorisation stopped, nothing is known of the features that follow.
        first = int(info) - 1 if int(info) > 0 else dependent[0]
        raise ValueError(
            f"{name} is singular: feature {first} is a linear combination of those before it, to float64 precision "
            f"(as when there are more features than rows less classes). {_REMEDY}"
        )
    return factor * deviation[:, None]


_REMEDY = 'Pass shrinkage="oas", or a small share such as shrinkage=1e-6'


def _named(features: list[int]) -> str:
    """A few of them by number."""
    if len(features) == 1:
        return f"feature {features[0]} is"
    more = f" and {len(features) - 5} more" if len(features) > 5 else ""
    return f"features {', '.join(str(f) for f in features[:5])}{more} are"


def add_lower_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add `left^T right` `[d, d]`, known to be symmetric, to the lower triangle of `total`.

    What ends up above the diagonal does not count.
    """
    for first in range(0, total.shape[0], BLOCK_COLUMNS):
        columns = slice(first, first + BLOCK_COLUMNS)
        total[first:, columns] += left[:, first:].mT @ right[:, columns]


def ridge_for_condition(covariance: Tensor, maximum: float) -> float:
    """The least ε >= 0 for which `Σ + ε I` has a condition number of at most `maximum`.

    From the extreme eigenvalues: `(λ_max + ε) / (λ_min + ε) = maximum`.

    Args:
        covariance: Σ, float64 `[d, d]`, symmetric and positive semi-definite up to rounding.
        maximum: Above 1.

    Returns:
        ε in the units of Σ.

    Raises:
        ValueError: `maximum` is not above 1.

    Example:
        >>> import torch
        >>> ridge_for_condition(torch.diag(torch.tensor([10.0, 1.0], dtype=torch.float64)), 4.0)
        2.0
    """
    if not maximum > 1:
        raise ValueError(f"maximum must be above 1, got {maximum}")
    eigenvalues = torch.linalg.eigvalsh(covariance)
    low, high = float(eigenvalues[0]), float(eigenvalues[-1])
    return max(0.0, (high - maximum * low) / (maximum - 1))
