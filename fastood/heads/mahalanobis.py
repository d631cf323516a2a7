"""A head of Gaussian classes in the place of a linear layer (Wu et al. 2023)."""

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


class CholeskyMahalanobisHead(nn.Module):
    r"""Logits of classes that share a learnt Gaussian: `h_i(z) = -(z - m_i)^T (L L^T)^-1 (z - m_i)`.

    Wu et al. 2023, eq. 0.11, with trained means m_i and a trained lower-triangular L with positive diagonal, whose
    parameters are in `fastood.heads.parametrization`. Where logits of a linear layer grow without bound along their
    weight vectors, these are at most 0, and `exp(max_i h_i)` is a confidence: 1 on a class mean, 0 far from all.
    The squared distance is not halved, so that exp(h) is the square of a density ratio.

    Initial values: in d dimensions squared distances are of the order of d, where exp(h) is 0 in float32 (d > 100) and
    neither confidence nor `ICELoss` has a gradient. So means are drawn with the spread of the features,
    N(0, feature_scale²), and `L = sqrt(2 d) · feature_scale · I`, which makes h about -1 for features of mean 0 and
    standard deviation `feature_scale`. For a trained network use `from_features` or `from_linear` instead.

    Conditioning: the diagonal of L is above `min_scale` at any time; `condition_number` measures Σ = L L^T, and
    `limit_condition_`, called now and then after a step (it takes eigenvalues, O(d³)), adds the least multiple of I
    that keeps it below a limit.

    Weight decay: give it to `covariance.correlation` or `.loadings` at most, where it shrinks towards independent
    features. On `means` it would pull the classes to wherever the origin of the features is, on `covariance.log_scale`
    all scales to 1 in whatever unit they have: `no_weight_decay()` names these two.

    Args:
        in_features: Width d.
        num_classes: K.
        covariance: "full"; "diagonal", L = diag(l), d numbers and no solve; or "low_rank", Σ = diag(l)(I + W W^T)
            diag(l) with W `[d, rank]`, whose Cholesky factor is taken at every call: d³/3 multiply-adds, a few times
            that in the backward pass.
        rank: Columns of W, from 1 to d; for "low_rank" alone.
        feature_scale: Standard deviation of a feature for the initial values, above 0.
        min_scale: Floor of l, in the units of the features, at least 0.
        generator: Source of the initial values, on the CPU; None takes PyTorch's global one.
        device: Of the parameters.
        dtype: Of the parameters, float32 or float64.

    Attributes:
        means: `[K, d]`.
        covariance: Σ, a `LearntCovariance` with the parameters `log_scale` and, by kind, `correlation` or `loadings`.

    Shape:
        - features: `[N, d]`, in the dtype of the parameters; bfloat16 and float16 as well, autocast or not.
        - output: `[N, K]`, at most 0, in the dtype of the parameters; float32 where those are bfloat16 or float16, as
          after `model.bfloat16()`: all is computed in float32 then, for 16 bits are too few for exp(h).

    Raises:
        ValueError: A setting is out of range.
        TypeError: `dtype` is another.

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
        """Width d."""
        return self.means.shape[1]

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.means.shape[0]

    @property
    def scale_tril(self) -> Tensor:
        """L, `[d, d]` lower-triangular, or its diagonal `[d]` where it has no more; differentiable."""
        return self.covariance.scale_tril

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Draw the initial values anew, on the CPU."""
        self.covariance.reset_parameters(generator)
        self._draw_means(generator)

    def forward(self, features: Tensor) -> Tensor:
        """Logits `[N, K]` of features `[N, d]`."""
        return mahalanobis_logits(features, self.means, self.covariance.scale_tril)

    def confidence(self, features: Tensor | None = None, *, logits: Tensor | None = None) -> Tensor:
        """`exp(max_i h_i)`, in (0, 1]: 1 on a class mean; 0 in float32 where max h is below -103.

        Args:
            features: `[N, d]`; or else
            logits: `[N, K]`, what `forward` returned.

        Returns:
            `[N]`, differentiable.

        Raises:
            TypeError: `logits` are not floating-point.
            ValueError: Both are given, or neither, or `logits` are no `[N, K]`.
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
        """The logarithm of det Σ, a scalar; differentiable."""
        return self.covariance.log_det()

    def condition_number(self) -> float:
        """Ratio of the largest to the smallest eigenvalue of Σ. Takes O(d³), and waits for the device."""
        return self.covariance.condition_number()

    def limit_condition_(self, maximum: float = 1e6) -> float:
        """Add the least ε I to Σ that makes its condition number at most `maximum`; nothing where it is.

        Args:
            maximum: Above 1. L in float32 has about 7 digits, and what a distance loses of them grows with the square
                root of this number.

        Returns:
            ε in the units of Σ, 0 where nothing changed.

        Raises:
            ValueError: `maximum` is not above 1.
        """
        return self.covariance.limit_condition_(maximum)

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that weight decay does harm to, as timm's networks name theirs."""
        return {"means", "covariance.log_scale"}

    def extra_repr(self) -> str:
        """Return the sizes, for `print(model)`."""
        return f"{self.in_features}, {self.num_classes}"

    @torch.no_grad()
    def _draw_means(self, generator: torch.Generator | None) -> None:
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
        """A head with the means and the shared covariance of features, to be trained further.

        Args:
            statistics: Of the features in training, with rows of every class.
            covariance: As in the class. "diagonal" takes the variances, "low_rank" the principal axes of the
                correlations (probabilistic PCA).
            rank: As in the class.
            shrinkage: As in `GaussianStatistics.covariance`.
            fourth_moment: As in `GaussianStatistics.covariance`, for "ledoit_wolf".
            mean_distance: What -h of the own class shall be on average. By the fitted covariance it is d, where exp(h)
                is 0 for every feature there is; so Σ is enlarged by `d / mean_distance`. None leaves Σ as it is, which
                makes h twice the log-density of Gaussian discriminant analysis, up to a constant.
            min_scale: As in the class; None for 1 % of the least scale of Σ.
            device: As in the class.
            dtype: As in the class.

        Raises:
            ValueError: A class has no rows, Σ is singular but for rounding (the error names features; shrinkage is the
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
        matrix = statistics.covariance(shrinkage, fourth_moment=fourth_moment).cpu()
        # Here the error knows what the shrinkage was.
        statistics.factor_of(matrix if covariance == "full" else matrix.diagonal().diag(), shrinkage=shrinkage)
        matrix = matrix * (1.0 if mean_distance is None else d / mean_distance)
        shared = LearntCovariance.of_matrix(
            matrix, kind=covariance, rank=rank, min_scale=min_scale, device=device, dtype=_checked_dtype(dtype)
        )
        return cls._of(shared, statistics.means)

    @classmethod
    def from_features(cls, features: Tensor, labels: Tensor, **settings: Any) -> CholeskyMahalanobisHead:
        """As `from_statistics`, of features `[N, d]` and int64 labels `[N]`; rows with a label below 0 are skipped."""
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
        """A head whose softmax is that of a trained linear layer: `m_i = Σ w_i / 2 + s`.

        The factor 1/2 is there because eq. 0.11 is not halved. The shift s, which all classes share, takes up the
        biases: exactly where the differences of the weight vectors are linearly independent (K <= d + 1 in general
        position), in the sense of least squares beyond; see `fastood.heads.linear_equivalent`. What a linear layer
        leaves open, how far a feature is from all classes, `scale_tril` and `center` decide.

        Args:
            linear: With or without bias.
            scale_tril: L, `[d, d]` lower-triangular, say `statistics.cholesky()` times a factor; None for `l I` with
                the l that puts features of this `feature_scale` nearest to the means.
            center: `[d]`, where the mean of the means should be, say `statistics.marginal_mean`; None for 0.
            covariance: As in the class; what it cannot hold of Σ is left out before the means are chosen.
            rank: As in the class.
            feature_scale: Root mean square of a feature; for `scale_tril=None` alone.
            min_scale: As in `from_statistics`.
            device: As in the class.
            dtype: As in the class.

        Raises:
            TypeError: `linear` is no `nn.Linear`, or a tensor is not floating-point.
            ValueError: A shape does not fit, a number is not finite, `feature_scale` is not above 0, or `scale_tril`
                has a diagonal that is not.
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
        return cls._of(shared, means_of_linear(weight, bias, shared.scale_tril_in_double().cpu(), center))

    @classmethod
    def _of(cls, covariance: LearntCovariance, means: Tensor) -> CholeskyMahalanobisHead:
        """A head of these two; means float64 `[K, d]`."""
        kind, rank = covariance.kind, covariance.rank
        like = covariance.log_scale
        made = cls(
            means.shape[1],
            len(means),
            covariance=kind,
            rank=rank,
            generator=torch.Generator(),  # every value is replaced: no draw of the caller's
            device=like.device,
            dtype=like.dtype,
        )
        made.covariance = covariance
        made.means.copy_(means)
        return made


def _checked_dtype(dtype: torch.dtype | None) -> torch.dtype:
    dtype = torch.get_default_dtype() if dtype is None else dtype
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
    return dtype
