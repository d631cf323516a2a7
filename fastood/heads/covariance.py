"""Covariance matrices: shrinkage towards a multiple of the identity, Cholesky factors, conditioning."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from fastood.ops._arguments import as_real, shown

__all__ = [
    "CONSTANT_SPREAD",
    "DUST",
    "Shrinkage",
    "add_lower_product",
    "check_no_dust",
    "check_shrinkage",
    "cholesky_factor",
    "resolution_of",
    "ridge_for_condition",
    "shrink",
    "shrinkage_share",
]

Shrinkage: TypeAlias = float | Literal["oas", "ledoit_wolf"] | None
"""Fraction of the covariance to replace by `tr(Σ)/d · I`, in [0, 1], or the estimator that chooses it; None for 0."""

# Below this unexplained fraction of its variance a feature is, in float64, a linear combination of the features before
# it: for an exact combination rounding leaves a fraction of up to d · 2e-16.
MIN_UNEXPLAINED = 1e-12
# A feature computed in 32 bits or less that deviates by less than this fraction of its own mean, or of the root mean
# square deviation of all features, is a constant plus float32 rounding: a network computes all features together.
DUST = torch.finfo(torch.float32).eps
# A float64 feature that deviates by less than this fraction of its mean is constant up to the rounding of the mean.
CONSTANT_SPREAD = 1e-13
# Width of the blocks of X^T X; only blocks on and below the diagonal are computed. This is 1.4 times as fast as the
# whole product at 2048 features and 1.2 times at 512; blocks of half the width gain less.
BLOCK_COLUMNS = 256


def resolution_of(dtype: torch.dtype) -> float:
    """Return the ratio of deviation to mean below which a feature of this dtype is constant up to rounding."""
    return CONSTANT_SPREAD if dtype == torch.float64 else DUST


def check_shrinkage(shrinkage: Shrinkage) -> Shrinkage:
    """Return `shrinkage`, with a share as a float, or raise unless it is None, "oas", "ledoit_wolf" or in [0, 1]."""
    wanted = 'None, "oas", "ledoit_wolf" or a share in [0, 1]'
    if shrinkage is None or (isinstance(shrinkage, str) and shrinkage in ("oas", "ledoit_wolf")):
        return shrinkage
    share = math.nan if isinstance(shrinkage, str) else as_real("shrinkage", shrinkage, wanted=wanted)
    if not 0 <= share <= 1:
        raise ValueError(f"shrinkage must be {wanted}, got {shown(shrinkage)}")
    return share


def shrinkage_share(
    covariance: Tensor, count: int, shrinkage: Shrinkage, fourth_moment: Tensor | float | None = None
) -> float:
    """Return the share α of the identity in the shrunk covariance `(1 - α) Σ + α tr(Σ)/d I`.

    Args:
        covariance: Σ, float64 `[d, d]`: mean of the outer products of `count` centred rows.
        count: Number of rows n.
        shrinkage: None for 0, or a share, which is returned. "oas": Chen et al. 2010, eq. 23, without the terms in 2/d,
            like scikit-learn. "ledoit_wolf": Ledoit & Wolf 2004, lemma 3.2 to 3.4.
        fourth_moment: `Σ_n |x_n - centre|⁴`, for "ledoit_wolf" alone.

    Returns:
        α in [0, 1], equal to `sklearn.covariance.OAS` or `LedoitWolf` with `assume_centered=True`.

    Raises:
        TypeError: If `shrinkage` is not a number, name or None.
        ValueError: If `shrinkage` is not one of the above, or `fourth_moment` is missing for "ledoit_wolf", not finite
            or smaller than the covariance allows.
    """
    shrinkage = check_shrinkage(shrinkage)
    if shrinkage is None or not isinstance(shrinkage, str):
        return float(shrinkage or 0.0)
    d = covariance.shape[0]
    square = float(covariance.square().sum())
    scale = float(covariance.diagonal().sum()) / d
    # |Σ - tr(Σ)/d I|² / d. Zero if Σ is a multiple of I, as it always is for d = 1: no share changes Σ then, and the
    # quotients below would be 0/0. The returned constants are those of scikit-learn.
    distance = square / d - scale**2
    if d == 1 or distance <= 0:
        return 0.0 if shrinkage == "ledoit_wolf" or d == 1 else 1.0
    if shrinkage == "oas":
        return min(1.0, (square / d**2 + scale**2) / ((count + 1) * distance / d))
    if fourth_moment is None:
        raise ValueError(
            'shrinkage="ledoit_wolf" needs fourth_moment, the sum of |x - mean|⁴: compute it in a second pass over the'
            ' rows by GaussianStatistics.fourth_moment, or use "oas", which needs none'
        )
    fourth = float(fourth_moment) / count
    # By Jensen mean(|x|⁴) >= mean(|x|²)² = tr(Σ)² >= |Σ|². Less than |Σ|², up to rounding, is the moment of other rows.
    if not square * (1 - 1e-6) <= fourth < math.inf:
        raise ValueError(
            f"fourth_moment must be finite and at least {square * count:.6g}, as the covariance of its {count} rows "
            f"implies, got {fourth * count:.6g}"
        )
    # Clamped to the distance: sampling noise above it means that the target alone is the best estimate, α = 1.
    noise = (fourth - square) / (d * count)
    return max(0.0, min(noise, distance)) / distance


def shrink(covariance: Tensor, share: float) -> Tensor:
    """Return `(1 - share) Σ + share · tr(Σ)/d · I` as a new tensor, `[d, d]`."""
    shrunk = covariance * (1 - share)
    shrunk.diagonal().add_(share * covariance.diagonal().mean())
    return shrunk


def cholesky_factor(covariance: Tensor, *, name: str = "covariance", shrinkage: Shrinkage = None) -> Tensor:
    """Return the lower-triangular L with `L L^T = Σ`, or raise an error that names the features that make Σ singular.

    Σ is scaled to unit variances first, so that the test for singularity does not depend on the units of the features.

    Args:
        covariance: Σ, float64 `[d, d]`, symmetric.
        name: Name of Σ in an error.
        shrinkage: Shrinkage that Σ has undergone, so that an error advises another one.

    Returns:
        L, float64 `[d, d]`.

    Raises:
        ValueError: If Σ is not positive definite in float64: a feature is constant, or a linear combination of the
            features before it, as when d exceeds the number of rows minus the number of classes.

    Example:
        >>> import torch
        >>> cholesky_factor(torch.tensor([[4.0, 2.0], [2.0, 5.0]], dtype=torch.float64))
        tensor([[2., 0.],
                [1., 2.]], dtype=torch.float64)
    """
    variance = covariance.diagonal()
    constant = (~(variance > 0)).nonzero().flatten().tolist()
    if constant:
        raise ValueError(f"{name} is singular: {_named(constant)} constant within the classes. {_remedy(shrinkage)}")
    deviation = variance.sqrt()
    factor: Tensor
    # cholesky_ex: the position of a failure names the feature, which the exception of cholesky does not.
    factor, info = torch.linalg.cholesky_ex(covariance / deviation / deviation[:, None])
    # With unit variances L_jj² is the fraction of the variance of feature j that the features before it do not explain.
    unexplained = factor.diagonal().square()
    dependent = (~(unexplained > MIN_UNEXPLAINED)).nonzero().flatten().tolist()
    if int(info) > 0 or dependent:
        # The rows of L after the position of a failure are undefined.
        first = int(info) - 1 if int(info) > 0 else dependent[0]
        raise ValueError(
            f"{name} is singular: feature {first} is a linear combination of those before it, to float64 precision "
            f"(as when there are more features than rows minus classes). {_remedy(shrinkage)}"
        )
    return factor * deviation[:, None]


def check_no_dust(
    covariance: Tensor, *, resolution: float = DUST, name: str = "covariance", shrinkage: Shrinkage = None
) -> None:
    """Raise if features deviate by so little, compared to the others, that the deviation is rounding.

    An example is the outputs of dead units, which differ by 1e-33: whitened to a variance of 1, their rounding noise
    would count as much as any other feature. Features with other units can look like this; divide them by their
    standard deviations first.

    Args:
        covariance: Σ, float64 `[d, d]`.
        resolution: Fraction of the root mean square deviation below which a deviation is rounding.
        name: Name of Σ in an error.
        shrinkage: Shrinkage that Σ has undergone, so that the error advises another one.

    Raises:
        ValueError: If a standard deviation is above 0 and below this share.

    Example:
        >>> import torch
        >>> variances = torch.tensor([1.0, 1.0, 1e-17], dtype=torch.float64)
        >>> check_no_dust(variances.diag())  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: covariance is nearly singular: feature 2 is nearly constant within the classes, with ...
    """
    variance = covariance.diagonal()
    typical = float(variance.mean())
    dust = ((variance > 0) & (variance < resolution**2 * typical)).nonzero().flatten().tolist()
    if dust:
        raise ValueError(
            f"{name} is nearly singular: {_named(dust)} nearly constant within the classes, with a deviation below "
            f"{resolution:.2g} of the root mean square of all, {math.sqrt(typical):.3g}: rounding, which would count "
            f"as much as any feature. {_remedy(shrinkage)}, or leave such features out; divide features in other units "
            "by their standard deviations first"
        )


def _remedy(shrinkage: Shrinkage) -> str:
    """Return the advice for a singular covariance, which depends on the shrinkage it has undergone."""
    if shrinkage is None or shrinkage == 0:
        return 'Pass shrinkage="oas", or a small share such as shrinkage=1e-6'
    if isinstance(shrinkage, str):
        return (
            f"shrinkage={shrinkage!r} does not help, because it estimates a share of 0, or no feature varies: pass a "
            "share such as shrinkage=1e-3, or fit to more rows of each class"
        )
    return (
        f"shrinkage={shrinkage!r} does not help, because the share is too small, or no feature varies: pass a larger "
        "one, or fit to more rows of each class"
    )


def _named(features: list[int]) -> str:
    """Return the subject of an error about features: the first five by number, and the verb."""
    if len(features) == 1:
        return f"feature {features[0]} is"
    more = f" and {len(features) - 5} more" if len(features) > 5 else ""
    return f"features {', '.join(str(f) for f in features[:5])}{more} are"


def add_lower_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """Add the lower triangle of `left^T right` `[d, d]`, which must be symmetric, to `total` in place.

    Elements of `total` above the diagonal become undefined.
    """
    for first in range(0, total.shape[0], BLOCK_COLUMNS):
        columns = slice(first, first + BLOCK_COLUMNS)
        total[first:, columns] += left[:, first:].mT @ right[:, columns]


def ridge_for_condition(covariance: Tensor, maximum: float) -> float:
    """Return the least ε >= 0 for which `Σ + ε I` has a condition number of at most `maximum`.

    It solves `(λ_max + ε) / (λ_min + ε) = maximum` for the extreme eigenvalues of Σ.

    Args:
        covariance: Σ, float64 `[d, d]`, symmetric and positive semi-definite up to rounding.
        maximum: Largest condition number, above 1.

    Returns:
        ε in the units of Σ.

    Raises:
        ValueError: If `maximum` is not above 1.

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
