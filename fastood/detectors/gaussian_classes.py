"""What a Mahalanobis detector scores with: means and Cholesky factors, computed once after fitting."""

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
    """`Σ |x - mean|⁴`, which "ledoit_wolf" takes beside the statistics."""

    within: Tensor
    """float64 `[K]`, about the means of the classes."""
    marginal: Tensor
    """float64 `[K]`, about the mean of all rows."""


@dataclass(frozen=True, kw_only=True)
class GaussianClasses:
    """Gaussians of the classes that have rows, and the one of all rows where distances are relative to it."""

    index: Tensor
    """int64 `[C]`, the classes that have rows, ascending."""
    means: Tensor
    """float64 `[C, d]`."""
    factors: Tensor
    """float64 `[d, d]` for a shared covariance, `[C, d, d]` for one each."""
    marginal: tuple[Tensor, Tensor] | None
    """Mean `[d]` and factor `[d, d]` of all rows whatever their class."""

    @classmethod
    def fit(
        cls,
        statistics: GaussianStatistics,
        *,
        shrinkage: Shrinkage,
        relative: bool,
        fourth: FourthMoments | None = None,
    ) -> GaussianClasses:
        """Factorise; errors as in `GaussianStatistics.cholesky`, naming the class where each has its own."""
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
        """Squared Mahalanobis distances `[N, C]` of float64 features, with `log det` where covariances differ.

        Relative to the Gaussian of all rows where there is one. Differentiable.
        """
        if self.factors.dim() == 2:
            found = -mahalanobis_logits(features, self.means, self.factors)
        else:
            pairs = zip(self.means, self.factors, strict=True)
            found = torch.cat([_deviance(features, mean, factor) for mean, factor in pairs], 1)
        if self.marginal is None:
            return found
        mean, factor = self.marginal
        if self.factors.dim() == 2:
            return found + mahalanobis_logits(features, mean[None], factor)
        return found - _deviance(features, mean, factor)


def _class_factor(
    statistics: GaussianStatistics, index: int, shrinkage: Shrinkage, fourth: FourthMoments | None
) -> Tensor:
    covariance = statistics.class_covariance(
        index, shrinkage, fourth_moment=fourth.within[index] if fourth is not None else None
    )
    return statistics.factor_of(covariance, name=f"the covariance of class {index}", shrinkage=shrinkage)


def _deviance(features: Tensor, mean: Tensor, factor: Tensor) -> Tensor:
    """-2 log density of one Gaussian, `[N, 1]`, up to `d log 2π`."""
    return -mahalanobis_logits(features, mean[None], factor) + 2 * factor.diagonal().log().sum()
