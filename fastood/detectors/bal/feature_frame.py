"""Coordinates of BAL, in which the features of the training images have unit variance along every axis."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from fastood.detectors.bal.feature_bank import FeatureBank
from fastood.ops._validation import widened

__all__ = ["NARROWEST", "Axes", "FeatureFrame"]

Axes = Literal["principal", "features"]

NARROWEST = 1e-4
"""Least variance of an axis, as a fraction of the mean variance; narrower axes hold rounding errors."""


class FeatureFrame(nn.Module):
    """Transformation between features and standardised coordinates.

    In the 512-dimensional features of a ResNet-18, 17 directions hold 95 per cent of the variance, and every feature is
    a mixture of them. A box along the features is therefore almost everywhere far from the data, and the narrow
    directions, along which out-of-distribution images differ, are negligible in it. Along the principal axes of the
    covariance within classes, narrow and wide directions have the same width.

    Args:
        num_features: Width d of the features, at least 1.

    Attributes:
        mean: float32 `[d]`.
        axes: float32 `[d, d]`, orthonormal; a column for each axis.
        scale: float32 `[d]`, standard deviation along each axis.

    Example:
        >>> import torch
        >>> draws = torch.Generator().manual_seed(0)
        >>> wide = torch.randn(1000, 1, generator=draws)
        >>> features = torch.cat([wide, wide + 0.1 * torch.randn(1000, 1, generator=draws)], dim=1)
        >>> frame = FeatureFrame(2)
        >>> frame.fit(FeatureBank(features, torch.zeros(1000, dtype=torch.int64)))
        >>> inside = frame.enter(features)
        >>> torch.allclose(inside.std(0), torch.ones(2), atol=0.01)
        True
        >>> torch.allclose(frame.leave(inside), features, atol=1e-5)
        True
    """

    mean: Tensor
    axes: Tensor
    scale: Tensor

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(num_features))
        self.register_buffer("axes", torch.eye(num_features))
        self.register_buffer("scale", torch.ones(num_features))

    @torch.no_grad()
    def fit(self, bank: FeatureBank, axes: Axes = "principal") -> None:
        """Set mean, axes and scales from the features of a bank.

        Args:
            bank: Bank of features of this frame's width.
            axes: "principal": eigenvectors of the covariance within classes. "features": the features themselves.

        Raises:
            ValueError: If the axes are unknown.
        """
        if axes not in get_args(Axes):
            raise ValueError(f"axes must be one of {', '.join(get_args(Axes))}, got {axes!r}")
        statistics = bank.statistics
        chosen = torch.eye(len(self.mean), dtype=torch.float64, device=bank.features.device)
        if axes == "principal":
            chosen = torch.linalg.eigh(statistics.covariance())[1]
        # diag(A^T Σ A). The axes are those within classes; the scale is that of all rows, which the box encloses.
        variance = (chosen * (statistics.marginal_covariance() @ chosen)).sum(0)
        # A floor instead of a division by rounding errors; the scale of constant features is 1.
        least = NARROWEST * variance.mean()
        self.mean.copy_(statistics.marginal_mean)
        self.axes.copy_(chosen)
        self.scale.copy_(variance.clamp_min(least).sqrt() if least > 0 else torch.ones_like(variance))

    def enter(self, features: Tensor) -> Tensor:
        """Return the coordinates `[N, d]` of features, with mean 0 and deviation 1 along each axis over the bank."""
        # In 16 bits the rounding of the wide axes would exceed the width of the narrow ones.
        with torch.autocast(self.axes.device.type, enabled=False):
            inside = (widened(features) - widened(self.mean)) @ widened(self.axes) / widened(self.scale)
            return inside.to(self.mean.dtype)

    def leave(self, coordinates: Tensor) -> Tensor:
        """Return the features `[N, d]` at these coordinates."""
        with torch.autocast(self.axes.device.type, enabled=False):
            outside = (widened(coordinates) * widened(self.scale)) @ widened(self.axes).mT + widened(self.mean)
            return outside.to(self.mean.dtype)
