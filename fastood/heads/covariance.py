"""Covariances from sums of squares: shrinkage towards a multiple of the identity, Cholesky factors, conditioning."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from fastood.ops._arguments import as_real, shown

Shrinkage: TypeAlias = float | Literal["oas", "ledoit_wolf"] | None
"""How much of the covariance is replaced by `tr(Σ)/d · I`: a share in [0, 1], or the estimator that chooses it."""

# A feature of which the ones before it leave less than this share of its variance unexplained is, to float64, a linear
# combination of them: rounding leaves up to d · 2e-16 of a share that is truly zero.
MIN_UNEXPLAINED = 1e-12
# A feature that came in 32 bits or less and deviates by less than this share of its own mean, or of the features' root
# mean square deviation, is what float32 left of a constant: networks compute their features side by side in float32.
DUST = torch.finfo(torch.float32).eps
# A feature that spreads by less than this share of its mean is constant but for the rounding of that mean.
CONSTANT_SPREAD = 1e-13
# Only the blocks of X^T X on and below the diagonal are computed: at 2048 features 1.4 times as fast as all of them, at
# 512 1.2 times, where blocks of half the width gain less.
BLOCK_COLUMNS = 256


def resolution_of(dtype: torch.dtype) -> float:
    """Return the share of its mean below which the deviation of a feature of this dtype is rounding."""
    return CONSTANT_SPREAD if dtype == torch.float64 else DUST


def check_shrinkage(shrinkage: Shrinkage) -> Shrinkage:
    """Return `shrinkage`, a share as a float, or raise unless it is None, "oas", "ledoit_wolf" or in [0, 1]."""
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
        ValueError: `shrinkage` is none of these, or "ledoit_wolf" lacks the fourth moment, or that is not one of these
            rows: not finite, or less than their variances allow.
    """
    shrinkage = check_shrinkage(shrinkage)
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
    fourth = float(fourth_moment) / count
    # The mean of |x|⁴ is at least the square of that of |x|², which is at least the sum of Σ's squares.
    if not square * (1 - 1e-6) <= fourth < math.inf:
        raise ValueError(
            f"fourth_moment must be finite and at least {square * count:.6g}, as the covariance of its {count} rows "
            f"implies, got {fourth * count:.6g}"
        )
    noise = (fourth - square) / (d * count)
    return max(0.0, min(noise, distance)) / distance


def shrink(covariance: Tensor, share: float) -> Tensor:
    """`(1 - share) Σ + share · tr(Σ)/d · I` for `covariance` Σ `[d, d]`, a new tensor."""
    shrunk = covariance * (1 - share)
    shrunk.diagonal().add_(share * covariance.diagonal().mean())
    return shrunk


def cholesky_factor(covariance: Tensor, *, name: str = "covariance", shrinkage: Shrinkage = None) -> Tensor:
    """The lower-triangular L with `L L^T = Σ`, or an error that says which features are in the way.

    Whether Σ is singular does not depend on the features' units here: it is scaled to unit variances first.

    Args:
        covariance: Σ, float64 `[d, d]`, symmetric.
        name: What Σ is called in an error.
        shrinkage: What Σ was shrunk by, which an error does not advise again.

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
        raise ValueError(f"{name} is singular: {_named(constant)} constant within the classes. {_remedy(shrinkage)}")
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
            f"(as when there are more features than rows less classes). {_remedy(shrinkage)}"
        )
    return factor * deviation[:, None]


def check_no_dust(
    covariance: Tensor, *, resolution: float = DUST, name: str = "covariance", shrinkage: Shrinkage = None
) -> None:
    """Raise where features that vary do so by less than is resolved beside the others, naming them.

    Such as the outputs of dead units, which differ by 1e-33: whitened to a variance of 1, what is rounding would have
    as much of a vote as any other feature. Features of other units than those of one network cannot be told apart from
    it: whoever has them divides them by their deviations.

    Args:
        covariance: Σ of features, float64 `[d, d]`.
        resolution: Share of the root mean square deviation below which a deviation is rounding.
        name: What Σ is called in an error.
        shrinkage: What Σ was shrunk by, which the error does not advise again.

    Raises:
        ValueError: A deviation is above 0 and below that.

    Example:
        >>> import torch
        >>> variances = torch.tensor([1.0, 1.0, 1e-17], dtype=torch.float64)
        >>> check_no_dust(variances.diag())  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: covariance is nearly singular: feature 2 is all but constant within the classes, with ...
    """
    variance = covariance.diagonal()
    typical = float(variance.mean())
    dust = ((variance > 0) & (variance < resolution**2 * typical)).nonzero().flatten().tolist()
    if dust:
        raise ValueError(
            f"{name} is nearly singular: {_named(dust)} all but constant within the classes, with a deviation below "
            f"{resolution:.2g} of the root mean square of all, {math.sqrt(typical):.3g}: rounding, which would count "
            f"as much as any feature. {_remedy(shrinkage)}, or leave such features out; features in other units are to "
            "be divided by their deviations"
        )


def _remedy(shrinkage: Shrinkage) -> str:
    """Say what to do about a singular covariance, other than what was done."""
    if shrinkage is None or shrinkage == 0:
        return 'Pass shrinkage="oas", or a small share such as shrinkage=1e-6'
    if isinstance(shrinkage, str):
        return (
            f"shrinkage={shrinkage!r} does not help, as it comes out as a share of 0, or no feature varies: pass a "
            "share such as shrinkage=1e-3, or give more rows of each class"
        )
    return (
        f"shrinkage={shrinkage!r} does not help, as it is too small a share, or no feature varies: pass a larger one, "
        "or give more rows of each class"
    )


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
