"""Class means and covariances of features in one pass over them."""

from __future__ import annotations

import torch
from torch import Tensor

from fastood.heads.class_sums import CHUNK_ROWS, ClassSums
from fastood.heads.covariance import Shrinkage, check_no_dust, cholesky_factor, shrink, shrinkage_share
from fastood.heads.statistics_checks import check_class_index, fourth_moment_sum

__all__ = ["GaussianStatistics"]


class GaussianStatistics(ClassSums):
    r"""Means of K classes and the covariance they share, or one for each, from rows seen once.

    Sums of squares are kept about the means, never about zero (Welford 1962, by chunks of n_b rows x with mean m_b),

        m' = m + n_b/(n + n_b) (m_b - m),    S' = S + Σ_x (x - m) (x - m')^T,

    in float64, where a class's first rows have their own mean for m. So features with a large common offset lose no
    digits, and the order and size of the batches does not matter beyond the rounding of float64.

    Rows with a label below zero (background) are skipped. A class without rows has a count of 0 and a mean of zeros;
    whoever uses the means leaves it out. Covariances are divided by the number of rows (maximum likelihood), the shared
    one and the marginal one alike, so that distances by either are on one scale.

    A feature that within the classes deviates by less than its own rounding (1.2e-7 of its mean where features came in
    float32 or less, 1e-13 in float64) is constant: its covariances are 0. One that deviates by less than this share of
    what all do is refused by `cholesky`.

    Args:
        num_features: Width d.
        num_classes: K; labels must be below it. None starts without classes and grows with the labels, to 65,536 (4,096
            where `per_class`) or the number of rows, whichever is more: a stray label must not take all memory.
        per_class: Keep a sum of squares for each class, d² numbers each, rather than for all together.
        device: Where the sums are kept and computed.

    Attributes:
        counts: int64 `[K]`, rows of each class.
        means: float64 `[K, d]`.
        resolution: Share of a feature's mean, or of the deviation of all features, below which a deviation is
            rounding, by the dtypes of the rows so far: 1.2e-7 or 1e-13.

    Raises:
        TypeError: A number is no integer, or `per_class` no bool.
        ValueError: A number is out of range.
        MemoryError: There is not enough for the sums.

    Example:
        >>> import torch
        >>> statistics = GaussianStatistics(num_features=2)
        >>> statistics.partial_fit(torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([0, 0])).means
        tensor([[1., 0.]], dtype=torch.float64)
        >>> statistics.partial_fit(torch.tensor([[5.0, 4.0], [5.0, 8.0]]), torch.tensor([1, 1])).covariance()
        tensor([[0.5000, 0.0000],
                [0.0000, 2.0000]], dtype=torch.float64)
    """

    def covariance(self, shrinkage: Shrinkage = None, *, fourth_moment: Tensor | float | None = None) -> Tensor:
        """The covariance within classes, Σ = 1/N Σ_n (x_n - m_y)(x_n - m_y)^T, shrunk if asked for.

        Args:
            shrinkage: None; "oas" (Chen et al. 2010); "ledoit_wolf" (2004), which needs `fourth_moment`; or the share
                of `tr(Σ)/d · I` in the result, in [0, 1]. As `sklearn.covariance` on centred rows.
            fourth_moment: What `fourth_moment` returns, summed over all rows.

        Returns:
            float64 `[d, d]`.

        Raises:
            ValueError: There are no rows, or `shrinkage` does not fit.
        """
        return self._shrunk(self._scatter.sum(0), self.count, shrinkage, fourth_moment)

    def class_covariance(
        self, index: int, shrinkage: Shrinkage = None, *, fourth_moment: Tensor | float | None = None
    ) -> Tensor:
        """The covariance of one class, where they are kept (`per_class`); arguments as in `covariance`.

        Raises:
            ValueError: They are not kept, `index` is not one of 0…K-1, or the class has no rows.
        """
        if not self.per_class:
            raise ValueError("there are no covariances of single classes: per_class is False")
        index = check_class_index(index, self.num_classes)
        return self._shrunk(self._scatter[index], int(self.counts[index]), shrinkage, fourth_moment, f"class {index}")

    @property
    def marginal_mean(self) -> Tensor:
        """Mean of all rows whatever their class, float64 `[d]`; zeros where there are none."""
        anchor, between = self._between()
        return anchor + between

    def marginal_covariance(
        self, shrinkage: Shrinkage = None, *, fourth_moment: Tensor | float | None = None
    ) -> Tensor:
        """The covariance of all rows whatever their class: that within classes and that of the class means.

        What relative Mahalanobis distances (Ren et al. 2021) call the background; needs no sums of its own.
        """
        anchor, mean = self._between()
        between = (self.means - anchor - mean) * self.counts.double().sqrt()[:, None]
        scatter = self._scatter.sum(0) + between.mT @ between
        return self._shrunk(scatter, self.count, shrinkage, fourth_moment)

    def _between(self) -> tuple[Tensor, Tensor]:
        """The mean of the largest class, and what the mean of all rows is beyond it: a common offset is gone there."""
        if self.num_classes == 0:
            return self.means.new_zeros(self.num_features), self.means.new_zeros(self.num_features)
        anchor = self.means[self.counts.argmax()]
        return anchor, ((self.means - anchor) * self.counts[:, None]).sum(0) / max(1, self.count)

    def fourth_moment(self, features: Tensor, labels: Tensor, *, marginal: bool = False) -> Tensor:
        """`Σ_n |x_n - m|⁴` of these rows about the means as they are now, for "ledoit_wolf".

        It takes a second pass over the rows, when the means are known: moving a sum of fourth powers from one mean to
        another would take every class's own second and third moments. Values of batches and processes add up.

        Args:
            features: As in `partial_fit`.
            labels: As in `partial_fit`.
            marginal: About the mean of all rows rather than of the row's class.

        Returns:
            float64 `[K]`, for each class; their sum is what the shared covariance takes.
        """
        features, labels = self._checked(features, labels)
        sums = torch.zeros(self.num_classes, dtype=torch.float64, device=self.means.device)
        for rows, classes in zip(torch.split(features, CHUNK_ROWS), torch.split(labels, CHUNK_ROWS), strict=True):
            classes = classes.to(sums.device)
            centre = self.marginal_mean if marginal else self.means[classes]
            sums.index_add_(0, classes, (rows.to(sums) - centre).square_().sum(1).square_())
        return sums

    def cholesky(self, shrinkage: Shrinkage = None, *, fourth_moment: Tensor | float | None = None) -> Tensor:
        """L with L L^T = `covariance(shrinkage)`, float64 `[d, d]`.

        Raises:
            ValueError: The covariance is singular: a feature is constant but for rounding, or there are more features
                than rows less classes. The error names the features; shrinkage is the remedy.
        """
        return self.factor_of(self.covariance(shrinkage, fourth_moment=fourth_moment), shrinkage=shrinkage)

    def factor_of(self, covariance: Tensor, *, name: str = "covariance", shrinkage: Shrinkage = None) -> Tensor:
        """L with L L^T = Σ for a covariance of these features; errors as in `cholesky`, which call Σ by its name."""
        check_no_dust(covariance, resolution=self.resolution, name=name, shrinkage=shrinkage)
        return cholesky_factor(covariance, name=name, shrinkage=shrinkage)

    def _shrunk(
        self,
        scatter: Tensor,
        count: int,
        shrinkage: Shrinkage,
        fourth_moment: Tensor | float | None,
        whose: str = "the statistics",
    ) -> Tensor:
        if count == 0:
            raise ValueError(f"{whose} must have seen at least one row, got none")
        covariance = (scatter.tril() + scatter.tril(-1).mT) / count
        constant = covariance.diagonal() <= (self.resolution * self.means.abs().amax(0)).square()
        covariance[constant] = 0
        covariance[:, constant] = 0
        fourth = None if fourth_moment is None else fourth_moment_sum(fourth_moment, self.num_classes)
        return shrink(covariance, shrinkage_share(covariance, count, shrinkage, fourth))
