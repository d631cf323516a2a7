"""The coordinates in which BAL works: those in which features of the training images are about as wide everywhere."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from fastood.detectors.bal.feature_bank import FeatureBank
from fastood.ops._validation import widened

__all__ = ["NARROWEST", "Axes", "FeatureFrame"]

Axes = Literal["principal", "features"]

NARROWEST = 1e-4
"""Least variance of an axis, as a share of the mean one: what a narrower one holds is rounding."""


class FeatureFrame(nn.Module):
    """Features to standardised coordinates, and back.

    Of the 512 features of a ResNet-18, 17 directions hold 95 per cent of the variance, and each of the features has a
    share in those. Along the features, therefore, a box is nearly everywhere far from the data, and the narrow
    directions, in which out-of-distribution images stand out, cannot be seen. Along the principal axes of the
    covariance within classes they have the same width as the wide ones.

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
        """Take mean, axes and widths of a bank's features.

        Args:
            bank: As wide as this frame.
            axes: "principal": of the covariance within classes. "features": the features themselves.

        Raises:
            ValueError: The axes are unknown.
        """
        if axes not in get_args(Axes):
            raise ValueError(f"axes must be one of {', '.join(get_args(Axes))}, got {axes!r}")
        statistics = bank.statistics
        chosen = torch.eye(len(self.mean), dtype=torch.float64, device=bank.features.device)
        if axes == "principal":
            chosen = torch.linalg.eigh(statistics.covariance())[1]
        variance = (chosen * (statistics.marginal_covariance() @ chosen)).sum(0)
        least = NARROWEST * variance.mean()
        self.mean.copy_(statistics.marginal_mean)
        self.axes.copy_(chosen)
        self.scale.copy_(variance.clamp_min(least).sqrt() if least > 0 else torch.ones_like(variance))

    def enter(self, features: Tensor) -> Tensor:
        """Features `[N, d]` in this frame: mean 0 and standard deviation 1 along each axis, over the bank."""
        # Under autocast the narrow axes, which are to be seen, would drown in the rounding of the wide ones.
        with torch.autocast(self.axes.device.type, enabled=False):
            inside = (widened(features) - widened(self.mean)) @ widened(self.axes) / widened(self.scale)
            return inside.to(self.mean.dtype)

    def leave(self, coordinates: Tensor) -> Tensor:
        """The features `[N, d]` that have these coordinates."""
        with torch.autocast(self.axes.device.type, enabled=False):
            outside = (widened(coordinates) * widened(self.scale)) @ widened(self.axes).mT + widened(self.mean)
            return outside.to(self.mean.dtype)
