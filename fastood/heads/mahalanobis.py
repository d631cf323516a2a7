"""Head with Gaussian classes that replaces a linear layer (Wu et al. 2023)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fastood.heads.covariance import Shrinkage
from fastood.heads.gaussian_statistics import GaussianStatistics
from fastood.heads.learnt_covariance import LearntCovariance
from fastood.heads.linear_equivalent import checked_linear, checked_scale, means_of_linear
from fastood.heads.parametrization import Covariance
from fastood.ops._arguments import as_real
from fastood.ops._features import check_size, check_width
from fastood.ops._validation import check_logits
from fastood.ops.mahalanobis_logits import mahalanobis_logits

__all__ = ["CholeskyMahalanobisHead"]


class CholeskyMahalanobisHead(nn.Module):
    r"""Logits of Gaussian classes with a shared learnt covariance: `h_i(z) = -(z - m_i)^T (L L^T)^-1 (z - m_i)`.

    Wu et al. 2023, eq. 0.11, with learnt means m_i and a learnt lower-triangular L with positive diagonal; see
    `fastood.heads.parametrization` for its parameters. Unlike the logits of a linear layer, which are unbounded along
    the weight vectors, these are at most 0, and `exp(max_i h_i)` is a confidence: 1 on a class mean, 0 far from all.
    The squared distance is not halved, so that exp(h) is the square of a density ratio.

    Initial values: in d dimensions squared distances are of the order of d, where exp(h) underflows in float32
    (d > 100) and neither the confidence nor `ICELoss` has a gradient. Means are therefore drawn with the standard
    deviation of the features, N(0, feature_scale²), and `L = sqrt(2 d) · feature_scale · I`, which makes h about -1 for
    features of mean 0 and standard deviation `feature_scale`. For a trained network use `from_features` or
    `from_linear`.

    Conditioning: the diagonal of L always stays above `min_scale`. `condition_number` measures Σ = L L^T, and
    `limit_condition_` adds the least multiple of I that keeps it below a limit. It computes eigenvalues, O(d³): call it
    once per epoch, for example, not after every step.

    Weight decay: apply it at most to `covariance.correlation` or `covariance.loadings`, where it shrinks towards
    independent features. On `means` it would pull the classes towards the origin of the features, and on
    `covariance.log_scale` all scales towards `1 + min_scale`, regardless of the units of the features:
    `no_weight_decay()` names these two.

    Args:
        in_features: Width d of the features.
        num_classes: Number of classes K.
        covariance: "full"; "diagonal", L = diag(l), with d numbers and no triangular solve; or "low_rank",
            Σ = diag(l)(I + W W^T) diag(l) with W `[d, rank]`. Its Cholesky factor is computed in every call: d³/3
            multiply-adds, and a few times as many in the backward pass.
        rank: Number of columns of W, from 1 to d; for "low_rank" alone.
        feature_scale: Standard deviation of a feature, for the initial values; above 0.
        min_scale: Floor of l, in the units of the features, at least 0.
        generator: Source of the initial values, on the CPU; None for PyTorch's global generator.
        device: Device of the parameters.
        dtype: dtype of the parameters, float32 or float64; None for PyTorch's default dtype.

    Attributes:
        means: Class means, `[K, d]`.
        covariance: Σ, a `LearntCovariance` with the parameters `log_scale` and, by kind, `correlation` or `loadings`.

    Shape:
        - features: `[N, d]`, in the dtype of the parameters, bfloat16 or float16, with or without autocast.
        - output: `[N, K]`, at most 0, in the dtype of the parameters. If the parameters are bfloat16 or float16, as
          after `model.bfloat16()`, computation and output are float32: exp(h) needs more than 16 bits.

    Raises:
        TypeError: If `dtype` is not float32 or float64, or a setting is of another type.
        ValueError: If a setting is out of range.

    Example:
        >>> import torch
        >>> from fastood.losses import ICELoss
        >>> generator = torch.Generator().manual_seed(0)
        >>> head = CholeskyMahalanobisHead(8, 3, generator=generator)
        >>> features, targets = torch.randn(4, 8, generator=generator), torch.tensor([0, 2, -1, -1])
        >>> ICELoss(weight=0.1)(head(features), targets).backward()
        >>> head.confidence(features).shape
        torch.Size([4])
    """

    def __init__(
        self,
        in_features: int,
        num_classes: int,
        *,
        covariance: Covariance = "full",
        rank: int | None = None,
        feature_scale: float = 1.0,
        min_scale: float = 1e-3,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        num_classes, in_features = check_size("num_classes", num_classes), check_size("in_features", in_features)
        feature_scale = checked_scale(feature_scale)
        self.covariance = LearntCovariance(
            in_features,
            kind=covariance,
            rank=rank,
            scale=math.sqrt(2 * in_features) * feature_scale,
            min_scale=min_scale,
            generator=generator,
            device=device,
            dtype=_checked_dtype(dtype),
        )
        self.feature_scale = feature_scale
        self.means = nn.Parameter(self.covariance.log_scale.new_empty(num_classes, in_features))
        self._draw_means(generator)

    @property
    def in_features(self) -> int:
        """Width d of the features."""
        return self.means.shape[1]

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.means.shape[0]

    @property
    def scale_tril(self) -> Tensor:
        """Factor L, `[d, d]` lower-triangular, or its diagonal `[d]` for "diagonal"; differentiable."""
        return self.covariance.scale_tril

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw new initial values, on the CPU."""
        self.covariance.reset_parameters(generator)
        self._draw_means(generator)

    def forward(self, features: Tensor) -> Tensor:
        """Return the logits `[N, K]` of features `[N, d]`."""
        return mahalanobis_logits(features, self.means, self.covariance.scale_tril)

    def confidence(self, features: Tensor | None = None, *, logits: Tensor | None = None) -> Tensor:
        """Return the confidence `exp(max_i h_i)` in [0, 1]: 1 on a class mean, 0 in float32 if max h is below -103.

        Args:
            features: `[N, d]`. Pass either this or `logits`.
            logits: `[N, K]`, as `forward` returns them.

        Returns:
            `[N]`, differentiable.

        Raises:
            TypeError: If `logits` are not floating-point.
            ValueError: If not exactly one of `features` and `logits` is passed, or `logits` are not `[N, K]`.
        """
        if features is not None and logits is None:
            logits = self(features)
        elif logits is None or features is not None:
            raise ValueError("confidence takes either features or logits, got both or neither")
        check_logits(logits)
        if logits.shape[1] != self.num_classes:
            raise ValueError(f"logits must be [N, {self.num_classes}], got shape {tuple(logits.shape)}")
        return logits.amax(1).exp()

    def log_det(self) -> Tensor:
        """Return log det Σ, `[]`, differentiable."""
        return self.covariance.log_det()

    def condition_number(self) -> float:
        """Return the ratio of the largest to the smallest eigenvalue of Σ. O(d³); synchronises with the device."""
        return self.covariance.condition_number()

    def limit_condition_(self, maximum: float = 1e6) -> float:
        """Add the least ε I to Σ for which its condition number is at most `maximum`.

        Args:
            maximum: Limit above 1. float32 has about 7 digits, and the digits that a distance loses grow with the
                square root of the condition number.

        Returns:
            ε in the units of Σ; 0 if Σ is within the limit, and unchanged.

        Raises:
            ValueError: If `maximum` is not above 1.
        """
        return self.covariance.limit_condition_(maximum)

    def no_weight_decay(self) -> set[str]:
        """Return the names of the parameters to exclude from weight decay, after the convention of timm."""
        return {"means", "covariance.log_scale"}

    def extra_repr(self) -> str:
        """Return the sizes, for `print(model)`."""
        return f"{self.in_features}, {self.num_classes}"

    @torch.no_grad()
    def _draw_means(self, generator: torch.Generator | None) -> None:
        # Drawn on the CPU, so that a seed gives equal values on every device.
        means = torch.randn(self.means.shape, generator=generator, dtype=self.means.dtype)
        self.means.copy_(means * self.feature_scale)

    @classmethod
    @torch.no_grad()
    def from_statistics(
        cls,
        statistics: GaussianStatistics,
        *,
        covariance: Covariance = "full",
        rank: int | None = None,
        shrinkage: Shrinkage = None,
        fourth_moment: Tensor | float | None = None,
        mean_distance: float | None = 1.0,
        min_scale: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> CholeskyMahalanobisHead:
        """Return a head with the class means and the shared covariance of features, to be trained further.

        Args:
            statistics: Statistics of the training features, with rows of every class.
            covariance: Kind of the covariance; see the class. "diagonal" keeps the variances, "low_rank" the principal
                axes of the correlations (probabilistic PCA).
            rank: Number of columns of W, for "low_rank" alone.
            shrinkage: See `GaussianStatistics.covariance`.
            fourth_moment: See `GaussianStatistics.covariance`; for "ledoit_wolf" alone.
            mean_distance: Mean of -h of the target class over the training features. With the fitted covariance it is
                d, where exp(h) underflows for every feature; Σ is therefore multiplied by `d / mean_distance`. None
                leaves Σ unchanged: h is then twice the log-density of Gaussian discriminant analysis, up to a constant.
            min_scale: Floor of l; None for 1 % of the least scale of Σ.
            device: Device of the parameters.
            dtype: dtype of the parameters, float32 or float64; None for PyTorch's default dtype.

        Raises:
            ValueError: If a class has no rows, Σ is singular up to rounding (the error names features; shrinkage is the
                remedy), or a setting is out of range.

        Example:
            >>> import torch
            >>> generator = torch.Generator().manual_seed(0)
            >>> features, labels = torch.randn(300, 4, generator=generator), torch.arange(300) % 3
            >>> head = CholeskyMahalanobisHead.from_features(features, labels)
            >>> round(-head(features).gather(1, labels[:, None]).mean().item(), 3)
            1.0
        """
        empty = (statistics.counts == 0).nonzero().flatten().tolist()
        if empty or statistics.num_classes == 0:
            raise ValueError(f"statistics must have rows of every class, got none of {empty or 'any'}")
        mean_distance = None if mean_distance is None else as_real("mean_distance", mean_distance)
        if mean_distance is not None and not 0 < mean_distance < math.inf:
            raise ValueError(f"mean_distance must be above 0 and finite, or None, got {mean_distance}")
        d = statistics.num_features
        # Factorised on the CPU, so that the parameters do not depend on the solver of a device.
        matrix = statistics.covariance(shrinkage, fourth_moment=fourth_moment).cpu()
        # Fails here rather than in of_matrix, because this error takes the shrinkage into account.
        statistics.factor_of(matrix if covariance == "full" else matrix.diagonal().diag(), shrinkage=shrinkage)
        # Over the training features the mean of -h is tr(Σ^-1 Σ) = d.
        matrix = matrix * (1.0 if mean_distance is None else d / mean_distance)
        shared = LearntCovariance.of_matrix(
            matrix, kind=covariance, rank=rank, min_scale=min_scale, device=device, dtype=_checked_dtype(dtype)
        )
        return cls._of(shared, statistics.means)

    @classmethod
    def from_features(cls, features: Tensor, labels: Tensor, **settings: Any) -> CholeskyMahalanobisHead:
        """Return a head with the class means and the shared covariance of features; see `from_statistics`.

        Args:
            features: `[N, d]`, floating-point.
            labels: int64 `[N]`; rows with a label below 0 are skipped.
            **settings: Keyword arguments of `from_statistics`.

        Raises:
            TypeError: If a tensor has another dtype.
            ValueError: If a shape or label does not fit, or for the reasons listed in `from_statistics`.
        """
        statistics = GaussianStatistics(check_width(features), device=features.device).partial_fit(features, labels)
        if settings.get("shrinkage") == "ledoit_wolf":
            settings.setdefault("fourth_moment", statistics.fourth_moment(features, labels))
        return cls.from_statistics(statistics, **settings)

    @classmethod
    @torch.no_grad()
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        scale_tril: Tensor | None = None,
        center: Tensor | None = None,
        covariance: Covariance = "full",
        rank: int | None = None,
        feature_scale: float = 1.0,
        min_scale: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> CholeskyMahalanobisHead:
        """Return a head with the same softmax as a trained linear layer: `m_i = Σ w_i / 2 + s`.

        The factor 1/2 is due to eq. 0.11, which does not halve distances. The shift s, common to all classes,
        compensates the biases: exactly if the differences of the weight vectors are linearly independent (K <= d + 1 in
        general position), else in the sense of least squares; see `fastood.heads.linear_equivalent`. A linear layer
        does not determine the distance of a feature from all classes; `scale_tril` and `center` do.

        Args:
            linear: Layer with or without bias.
            scale_tril: L, `[d, d]` lower-triangular, such as `statistics.cholesky()` times a factor; None for `l I`
                with the l for which features of this `feature_scale` are closest to the means.
            center: Mean of the class means, `[d]`, such as `statistics.marginal_mean`; None for zeros.
            covariance: Kind of the covariance; see the class. Σ is reduced to this kind before the means are computed.
            rank: Number of columns of W, for "low_rank" alone.
            feature_scale: Root mean square of a feature; for `scale_tril=None` alone.
            min_scale: Floor of l; None for 1 % of the least scale of Σ.
            device: Device of the parameters.
            dtype: dtype of the parameters, float32 or float64; None for PyTorch's default dtype.

        Raises:
            TypeError: If `linear` is not an `nn.Linear`, or a tensor is not floating-point.
            ValueError: If a shape does not fit, a number is not finite, `feature_scale` is not above 0, or the diagonal
                of `scale_tril` is not positive.
        """
        weight, bias, factor, center = checked_linear(linear, scale_tril, center, feature_scale)
        shared = LearntCovariance.of_matrix(
            factor @ factor.mT,
            kind=covariance,
            rank=rank,
            min_scale=min_scale,
            device=device,
            dtype=_checked_dtype(dtype),
        )
        # Means for the Σ of `shared`: a kind other than "full" has reduced the one passed, which would change the
        # softmax.
        return cls._of(shared, means_of_linear(weight, bias, shared.scale_tril_in_double().cpu(), center))

    @classmethod
    def _of(cls, covariance: LearntCovariance, means: Tensor) -> CholeskyMahalanobisHead:
        """Return a head with this covariance and these means, float64 `[K, d]`."""
        kind, rank = covariance.kind, covariance.rank
        like = covariance.log_scale
        head = cls(
            means.shape[1],
            len(means),
            covariance=kind,
            rank=rank,
            generator=torch.Generator(),  # every value is replaced: leave the global generator alone
            device=like.device,
            dtype=like.dtype,
        )
        head.covariance = covariance
        head.means.copy_(means)
        return head


def _checked_dtype(dtype: torch.dtype | None) -> torch.dtype:
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    return dtype
