"""Class means and covariances of features, computed in one pass over them."""

from __future__ import annotations

import torch
from torch import Tensor

from fastood.heads.class_sums import CHUNK_ROWS, ClassSums
from fastood.heads.covariance import Shrinkage, check_no_dust, cholesky_factor, shrink, shrinkage_share
from fastood.heads.statistics_checks import check_class_index, fourth_moment_sum

__all__ = ["GaussianStatistics"]


class GaussianStatistics(ClassSums):
    r"""Means of K classes, and their shared covariance or one covariance per class, from one pass over the rows.

    Sums of squares are taken about the means, never about zero (Welford 1962), in chunks of n_b rows x with mean m_b,

        m' = m + n_b/(n + n_b) (m_b - m),    S' = S + Σ_x (x - m) (x - m')^T,

    in float64; for the first rows of a class m is their own mean. Features with a large common offset lose no digits,
    and the order and size of batches make no difference beyond float64 rounding.

    Rows with a label below zero (background) are skipped. A class without rows has a count of 0, and its mean of zeros
    has no meaning. Shared and marginal covariances are both divided by the number of rows (maximum likelihood), so that
    distances by either are on the same scale.

    A feature that deviates within the classes by less than its rounding error (1.2e-7 of its mean for features in
    float32 or less, 1e-13 in float64) is treated as constant: its covariances are 0. `cholesky` refuses a feature that
    deviates by less than this fraction of the root mean square deviation of all features.

    Args:
        num_features: Width d of the features.
        num_classes: Number of classes K; labels must be below it. None starts without classes and grows with the
            labels, up to 65,536 classes (4,096 with `per_class`) or the number of rows if that is larger, so that one
            invalid label cannot exhaust the memory.
        per_class: Whether to keep one sum of squares, d² numbers, for each class instead of one for all classes.
        device: Device of the sums and of the computation.

    Attributes:
        counts: Number of rows of each class, int64 `[K]`.
        means: Class means, float64 `[K, d]`.
        resolution: Fraction of a feature's mean, or of the root mean square deviation of all features, below which a
            deviation is rounding: 1.2e-7 or 1e-13, by the coarsest dtype of the rows so far.

    Raises:
        TypeError: If a number is not an integer, or `per_class` not a bool.
        ValueError: If a number is out of range.
        MemoryError: If the sums do not fit into memory.

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
        """Return the shared covariance within classes, Σ = 1/N Σ_n (x_n - m_y)(x_n - m_y)^T, with shrinkage.

        Args:
            shrinkage: None; "oas" (Chen et al. 2010); "ledoit_wolf" (Ledoit & Wolf 2004), which needs `fourth_moment`;
                or the fraction of `tr(Σ)/d · I` in the result, in [0, 1]. Equal to `sklearn.covariance` on centred
                rows.
            fourth_moment: Result of the method `fourth_moment`, `[K]`, or its sum; added over batches and processes.

        Returns:
            float64 `[d, d]`.

        Raises:
            ValueError: If there are no rows, `shrinkage` is out of range, or `fourth_moment` is missing or impossible.
        """
        return self._shrunk(self._scatter.sum(0), self.count, shrinkage, fourth_moment)

    def class_covariance(
        self, index: int, shrinkage: Shrinkage = None, *, fourth_moment: Tensor | float | None = None
    ) -> Tensor:
        """Return the covariance of one class, float64 `[d, d]`, for statistics with `per_class=True`.

        Args:
            index: Class, in `0 … K - 1`.
            shrinkage: See `covariance`.
            fourth_moment: Fourth moment of the rows of this class; see `covariance`.

        Raises:
            ValueError: If `per_class` is False, `index` is out of range, the class has no rows, or for the reasons
                listed in `covariance`.
        """
        if not self.per_class:
            raise ValueError("there are no covariances of single classes: per_class is False")
        index = check_class_index(index, self.num_classes)
        return self._shrunk(self._scatter[index], int(self.counts[index]), shrinkage, fourth_moment, f"class {index}")

    @property
    def marginal_mean(self) -> Tensor:
        """Mean of all rows of all classes, float64 `[d]`; zeros without rows."""
        anchor, between = self._between()
        return anchor + between

    def marginal_covariance(
        self, shrinkage: Shrinkage = None, *, fourth_moment: Tensor | float | None = None
    ) -> Tensor:
        """Return the covariance of all rows about their common mean, float64 `[d, d]`.

        It is the covariance within classes plus the covariance of the class means, the background Gaussian of relative
        Mahalanobis distances (Ren et al. 2021, https://arxiv.org/abs/2106.09022).

        Args:
            shrinkage: See `covariance`.
            fourth_moment: Result of the method `fourth_moment` with `marginal=True`; see `covariance`.

        Raises:
            ValueError: For the reasons listed in `covariance`.
        """
        anchor, mean = self._between()
        # S_total = S_within + Σ_k n_k (m_k - m)(m_k - m)^T, with all means relative to the anchor.
        between = (self.means - anchor - mean) * self.counts.double().sqrt()[:, None]
        scatter = self._scatter.sum(0) + between.mT @ between
        return self._shrunk(scatter, self.count, shrinkage, fourth_moment)

    def _between(self) -> tuple[Tensor, Tensor]:
        """Return the mean of the largest class and the mean of all rows relative to it, both `[d]`."""
        if self.num_classes == 0:
            return self.means.new_zeros(self.num_features), self.means.new_zeros(self.num_features)
        # Relative to one of the means, because a large common offset would cost digits in the weighted sum.
        anchor = self.means[self.counts.argmax()]
        return anchor, ((self.means - anchor) * self.counts[:, None]).sum(0) / max(1, self.count)

    def fourth_moment(self, features: Tensor, labels: Tensor, *, marginal: bool = False) -> Tensor:
        """Return `Σ_n |x_n - m|⁴` of these rows about the current means, for the shrinkage "ledoit_wolf".

        Call it in a second pass over the rows, when the means are complete: to move a sum of fourth powers to another
        mean would require the second and third moments of every class. Add the results of batches and processes.

        Args:
            features: `[N, d]`, as for `partial_fit`.
            labels: int64 `[N]`, as for `partial_fit`; below zero for rows to skip.
            marginal: Whether m is the mean of all rows instead of the mean of the row's class.

        Returns:
            Sums of the classes, float64 `[K]`. `covariance` also accepts their sum.

        Raises:
            TypeError: If a tensor has another dtype.
            ValueError: If a shape, device or label does not fit, or a feature is NaN or infinite.
        """
        features, labels, _ = self._checked(features, labels)
        sums = torch.zeros(self.num_classes, dtype=torch.float64, device=self.means.device)
        for rows, classes in zip(torch.split(features, CHUNK_ROWS), torch.split(labels, CHUNK_ROWS), strict=True):
            classes = classes.to(sums.device)
            centre = self.marginal_mean if marginal else self.means[classes]
            sums.index_add_(0, classes, (rows.to(sums) - centre).square_().sum(1).square_())
        return sums

    def cholesky(self, shrinkage: Shrinkage = None, *, fourth_moment: Tensor | float | None = None) -> Tensor:
        """Return L with L L^T = `covariance(shrinkage)`, float64 `[d, d]`, lower-triangular.

        Args:
            shrinkage: See `covariance`.
            fourth_moment: See `covariance`.

        Raises:
            ValueError: If the covariance is singular: a feature is constant up to rounding, or there are more features
                than rows minus classes. The error names the features; shrinkage is the remedy.
        """
        return self.factor_of(self.covariance(shrinkage, fourth_moment=fourth_moment), shrinkage=shrinkage)

    def factor_of(self, covariance: Tensor, *, name: str = "covariance", shrinkage: Shrinkage = None) -> Tensor:
        """Return L with L L^T = Σ for any covariance of these features, float64 `[d, d]`.

        Args:
            covariance: Σ, float64 `[d, d]`.
            name: Name of Σ in errors.
            shrinkage: Shrinkage that Σ has undergone, so that an error advises another one.

        Raises:
            ValueError: If Σ is singular, as in `cholesky`.
        """
        check_no_dust(covariance, resolution=self.resolution, name=name, shrinkage=shrinkage)
        return cholesky_factor(covariance, name=name, shrinkage=shrinkage)

    def _shrunk(
        self,
        scatter: Tensor,
        count: int,
        shrinkage: Shrinkage,
        fourth_moment: Tensor | float | None,
        name: str = "the statistics",
    ) -> Tensor:
        """Return the shrunk covariance of a sum of squares over `count` rows, `[d, d]`."""
        if count == 0:
            raise ValueError(f"{name} must contain at least one row, got none")
        covariance = (scatter.tril() + scatter.tril(-1).mT) / count
        # Zero the rounding noise of constant features exactly, so that errors call them constant.
        constant = covariance.diagonal() <= (self.resolution * self.means.abs().amax(0)).square()
        covariance[constant] = 0
        covariance[:, constant] = 0
        fourth = None if fourth_moment is None else fourth_moment_sum(fourth_moment, self.num_classes)
        return shrink(covariance, shrinkage_share(covariance, count, shrinkage, fourth))
