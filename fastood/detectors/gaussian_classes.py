"""Gaussians of a Mahalanobis detector: means and Cholesky factors, computed once after fitting."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastood.heads import GaussianStatistics
from fastood.heads.covariance import Shrinkage
from fastood.ops.mahalanobis_logits import mahalanobis_logits

__all__ = ["FourthMoments", "GaussianClasses"]


@dataclass(frozen=True, kw_only=True)
class FourthMoments:
    """Sums `Σ |x - mean|⁴`, which "ledoit_wolf" needs in addition to the statistics."""

    within: Tensor
    """Moments about the class means, float64 `[K]`."""
    marginal: Tensor
    """Moments about the mean of all rows, float64 `[K]`."""


@dataclass(frozen=True, kw_only=True)
class GaussianClasses:
    """Gaussians of the classes that have rows and, for relative distances, the Gaussian of all rows."""

    index: Tensor
    """Classes that have rows, int64 `[C]`, ascending."""
    means: Tensor
    """Class means, float64 `[C, d]`."""
    factors: Tensor
    """Cholesky factors, float64 `[d, d]` for a shared covariance or `[C, d, d]` for one per class."""
    marginal: tuple[Tensor, Tensor] | None
    """Mean `[d]` and factor `[d, d]` of all rows; None if distances are not relative."""

    @classmethod
    def fit(
        cls,
        statistics: GaussianStatistics,
        *,
        shrinkage: Shrinkage,
        relative: bool,
        fourth: FourthMoments | None = None,
    ) -> GaussianClasses:
        """Factorise the covariances.

        Raises:
            ValueError: If there are no rows, or a covariance is singular; see `GaussianStatistics.cholesky`.
        """
        index = statistics.counts.nonzero().flatten()
        if len(index) == 0:
            raise ValueError("there must be at least one row with a label of 0 or above to fit to, got none")
        if statistics.per_class:
            factors = torch.stack([_class_factor(statistics, int(i), shrinkage, fourth) for i in index])
        else:
            factors = statistics.cholesky(shrinkage, fourth_moment=fourth.within if fourth else None)
        marginal = None
        if relative:
            covariance = statistics.marginal_covariance(shrinkage, fourth_moment=fourth.marginal if fourth else None)
            name = "the covariance of all classes"
            marginal = statistics.marginal_mean, statistics.factor_of(covariance, name=name, shrinkage=shrinkage)
        return cls(index=index, means=statistics.means[index], factors=factors, marginal=marginal)

    def distances(self, features: Tensor) -> Tensor:
        """Compute squared Mahalanobis distances `[N, C]` of float64 features `[N, d]`; differentiable.

        With one covariance per class `log det Σ_k` is added. With a marginal Gaussian the distance to it is subtracted
        (Ren et al. 2021, https://arxiv.org/abs/2106.09022).
        """
        if self.factors.dim() == 2:
            distances = -mahalanobis_logits(features, self.means, self.factors)
        else:
            # Class by class: the whitened rows of all classes at once would be C times as large.
            pairs = zip(self.means, self.factors, strict=True)
            distances = torch.cat([_deviance(features, mean, factor) for mean, factor in pairs], 1)
        if self.marginal is None:
            return distances
        mean, factor = self.marginal
        if self.factors.dim() == 2:
            # With one shared covariance all log determinants are equal and cannot change a ranking: they are left out.
            return distances + mahalanobis_logits(features, mean[None], factor)
        return distances - _deviance(features, mean, factor)


def _class_factor(
    statistics: GaussianStatistics, index: int, shrinkage: Shrinkage, fourth: FourthMoments | None
) -> Tensor:
    covariance = statistics.class_covariance(
        index, shrinkage, fourth_moment=fourth.within[index] if fourth is not None else None
    )
    return statistics.factor_of(covariance, name=f"the covariance of class {index}", shrinkage=shrinkage)


def _deviance(features: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    """Return -2 log density of one Gaussian, `[N, 1]`, without the constant `d log 2π`."""
    return -mahalanobis_logits(features, mean[None], factor) + 2 * factor.diagonal().log().sum()
