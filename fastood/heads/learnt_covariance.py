"""Learnt covariance, shared by the classes of a head, as a module."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastood.heads.covariance import ridge_for_condition
from fastood.heads.parametrization import COVARIANCES, Covariance, parameters_of, scale_tril_of
from fastood.ops._arguments import as_integer, as_real
from fastood.ops._features import check_size
from fastood.ops._validation import widened

# Initial squared length of each column of W, in units of the scales. Not zero, where the gradient of W vanishes.
INITIAL_LOADING = 0.1


__all__ = ["LearntCovariance", "check_kind"]


class LearntCovariance(nn.Module):
    r"""Covariance Σ = L L^T with learnt parameters, which `fastood.heads.parametrization` defines.

    Args:
        num_features: Width d of the features.
        kind: "full", "diagonal" or "low_rank".
        rank: Number of columns of W, from 1 to d; for "low_rank" alone.
        scale: Initial diagonal of L, above `min_scale`.
        min_scale: Floor of l, in the units of the features, at least 0.
        generator: Source of the initial W, on the CPU; None for PyTorch's global generator.
        device: Device of the parameters.
        dtype: dtype of the parameters, float32 or float64.

    Attributes:
        log_scale: `log(l - min_scale)`, `[d]`.
        correlation: N, `[d, d]`, of which only elements below the diagonal count, for "full"; else None.
        loadings: W, `[d, rank]`, for "low_rank"; else None.
        min_scale: Floor of l, `[]`, a buffer.

    Raises:
        TypeError: If a setting is of another type.
        ValueError: If a setting is out of range.

    Example:
        >>> covariance = LearntCovariance(3, kind="diagonal", scale=2.0)
        >>> covariance.scale_tril
        tensor([2., 2., 2.], grad_fn=<AddBackward0>)
    """

    correlation: nn.Parameter | None
    loadings: nn.Parameter | None
    min_scale: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        kind: Covariance = "full",
        rank: int | None = None,
        scale: float = 1.0,
        min_scale: float = 0.0,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        num_features, rank = check_kind(num_features, kind, rank)
        scale, min_scale = as_real("scale", scale), as_real("min_scale", min_scale)
        if not 0 <= min_scale < scale < math.inf:
            raise ValueError(f"min_scale must be at least 0 and below the first scale, {scale:.3g}, got {min_scale}")
        self.kind: Covariance = kind
        self.rank, self.scale = rank, scale
        # A buffer, so that checkpoints hold it: the parameters have no meaning without it.
        self.register_buffer("min_scale", torch.tensor(min_scale, device=device, dtype=dtype))

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, device=device, dtype=dtype))

        self.log_scale = empty(num_features)
        self.register_parameter("correlation", empty(num_features, num_features) if kind == "full" else None)
        self.register_parameter("loadings", None if rank is None else empty(num_features, rank))
        self.reset_parameters(generator)

    @torch.no_grad()
    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        """Reset to the initial values, with draws on the CPU."""
        self.log_scale.copy_((self.scale - self.min_scale).log().expand_as(self.log_scale))
        if self.correlation is not None:
            self.correlation.zero_()
        if self.loadings is not None:
            # Drawn on the CPU, so that a seed gives equal values on every device.
            std = math.sqrt(INITIAL_LOADING / len(self.log_scale))
            self.loadings.copy_(torch.randn(self.loadings.shape, generator=generator, dtype=self.loadings.dtype) * std)

    @property
    def scale_tril(self) -> Tensor:
        """Factor L, `[d, d]` lower-triangular, or its diagonal `[d]` for "diagonal"; differentiable.

        In the dtype of the parameters; float32 if they are bfloat16 or float16.
        """
        off = self.loadings if self.correlation is None else self.correlation
        wide = None if off is None else widened(off)
        with torch.autocast(self.log_scale.device.type, enabled=False):
            # autocast would compute W W^T in 16 bits.
            return scale_tril_of(self.kind, widened(self.min_scale), widened(self.log_scale), wide)

    @property
    def matrix(self) -> Tensor:
        """Covariance Σ = L L^T, `[d, d]`; differentiable."""
        return _product(self.scale_tril)

    @torch.no_grad()
    def scale_tril_in_double(self) -> Tensor:
        """Return L, `[d, d]` or `[d]`, computed in float64 for parameters of any dtype."""
        off = self.loadings if self.correlation is None else self.correlation
        wide = None if off is None else off.double()
        return scale_tril_of(self.kind, self.min_scale.double(), self.log_scale.double(), wide)

    def log_det(self) -> Tensor:
        """Return log det Σ = 2 Σ_j log L_jj, `[]`, differentiable."""
        factor = self.scale_tril
        return 2 * (factor if factor.dim() == 1 else factor.diagonal()).log().sum()

    @torch.no_grad()
    def condition_number(self) -> float:
        """Return the ratio of the largest to the smallest eigenvalue of Σ. O(d³); synchronises with the device."""
        factor = self.scale_tril_in_double()
        # Singular values of L rather than eigenvalues of Σ: half as many digits are lost.
        values = factor if factor.dim() == 1 else torch.linalg.svdvals(factor)
        return float((values.max() / values.min()).square())

    @torch.no_grad()
    def limit_condition_(self, maximum: float) -> float:
        """Add the least ε I to Σ for which its condition number is at most `maximum`.

        Directions of large variance hardly change, those of the smallest variance grow. For "low_rank" the product
        `diag(l) W` is kept.

        Args:
            maximum: Limit above 1.

        Returns:
            ε in the units of Σ; 0 if Σ is within the limit, and unchanged.

        Raises:
            ValueError: If `maximum` is not above 1.
        """
        matrix = _product(self.scale_tril_in_double())
        ridge = ridge_for_condition(matrix, maximum)
        if ridge > 0 and self.loadings is not None:
            # Σ = diag(l)² + V V^T with V = diag(l) W: with V kept, ε I is added to diag(l)² exactly.
            scale = self.min_scale + self.log_scale.double().exp()
            grown = (scale.square() + ridge).sqrt()
            self.log_scale.copy_((grown - self.min_scale.double()).log())
            self.loadings.mul_((scale / grown)[:, None])
        elif ridge > 0:
            matrix.diagonal().add_(ridge)
            self.set_matrix_(matrix)
        return ridge

    @torch.no_grad()
    def set_matrix_(self, matrix: Tensor) -> None:
        """Set the parameters to Σ, float64 `[d, d]`, as closely as the kind allows; see `parameters_of`.

        Raises:
            ValueError: If Σ is singular, or has a scale that is not above `min_scale`.
        """
        log_scale, off = parameters_of(self.kind, float(self.min_scale), matrix, self.rank)
        self.log_scale.copy_(log_scale)
        if self.correlation is not None and off is not None:
            self.correlation.copy_(off)
        if self.loadings is not None and off is not None:
            self.loadings.copy_(off)

    @classmethod
    def of_matrix(
        cls,
        matrix: Tensor,
        *,
        kind: Covariance = "full",
        rank: int | None = None,
        min_scale: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> LearntCovariance:
        """Return a module with the covariance Σ, as closely as `kind` allows; see `parameters_of`.

        Args:
            matrix: Σ, float64 `[d, d]`.
            kind: "full", "diagonal" or "low_rank".
            rank: Number of columns of W, for "low_rank" alone.
            min_scale: Floor of l; None for 1 % of the least scale of Σ.
            device: Device of the parameters.
            dtype: dtype of the parameters, float32 or float64.

        Raises:
            ValueError: If Σ is singular, or a setting is out of range.
        """
        _, rank = check_kind(len(matrix), kind, rank)
        scales = parameters_of(kind, 0.0, matrix, rank)[0].exp()
        min_scale = 0.01 * float(scales.min()) if min_scale is None else min_scale
        covariance = cls(
            len(matrix),
            kind=kind,
            rank=rank,
            # Any scale that passes the check of the constructor; set_matrix_ replaces it.
            scale=float(scales.min()),
            min_scale=min_scale,
            generator=torch.Generator(),  # every value is replaced: leave the global generator alone
            device=device,
            dtype=dtype,
        )
        covariance.set_matrix_(matrix)
        return covariance

    def extra_repr(self) -> str:
        """Return the sizes, for `print(model)`."""
        rank = "" if self.rank is None else f", rank={self.rank}"
        return f"{len(self.log_scale)}, kind={self.kind!r}{rank}"


def _product(factor: Tensor) -> Tensor:
    return factor.square().diag() if factor.dim() == 1 else factor @ factor.mT


def check_kind(num_features: int, kind: str, rank: int | None) -> tuple[int, int | None]:
    """Return the width and the rank as ints, or raise unless they fit the kind of covariance.

    Raises:
        TypeError: If a number is not an integer.
        ValueError: If `kind` is unknown, `rank` is out of range for "low_rank", or passed for another kind.
    """
    num_features = check_size("in_features", num_features)
    rank = None if rank is None else as_integer("rank", rank)
    if kind not in COVARIANCES:
        raise ValueError(f"covariance must be one of {', '.join(COVARIANCES)}, got {kind!r}")
    if kind == "low_rank" and (rank is None or not 1 <= rank <= num_features):
        raise ValueError(f'rank must be between 1 and {num_features}, the width, for covariance="low_rank", got {rank}')
    if kind != "low_rank" and rank is not None:
        raise ValueError(f'rank must be None unless covariance="low_rank", got {rank} with {kind!r}')
    return num_features, rank
