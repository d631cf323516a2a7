"""Head of a one-class classifier: distances to the centre of a hypersphere (Deep SVDD, Ruff et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastood.ops._features import check_features, check_size
from fastood.ops._validation import widened

__all__ = ["HypersphereHead"]

MIN_COORDINATE = 0.1
"""Least magnitude of a coordinate of the centre, from the authors' code: zero weights would map every image to 0."""


class HypersphereHead(nn.Module):
    """Squared distances to a fixed centre, and the radius of a sphere around it.

    The head has no trained parameters: the centre is fixed before the training. The network before the head must not be
    able to output a constant, or training converges to that constant (Ruff et al. 2018, section 3.3,
    https://proceedings.mlr.press/v80/ruff18a.html): use no bias, also in BatchNorm, and no bounded activation. The
    centre must not be zero.

    Args:
        in_features: Width d of the features.

    Attributes:
        center: Centre c, float32 `[d]`; zeros until `fit`.
        radius: Radius R, float32 `[]`; 0 until the training sets it, for example to `DeepSVDDLoss.radius_of`.

    Shape:
        - features: `[N, d]`, floating-point.
        - output: `[N]`, float64 for float64 features, else float32; 16-bit features and centres are computed in
          float32.

    Raises:
        TypeError: If `in_features` is not an integer.
        ValueError: If `in_features` is out of range.

    Example:
        >>> import torch
        >>> head = HypersphereHead(2).fit(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
        >>> head.center
        tensor([2.0000, 0.1000])
        >>> head(torch.tensor([[2.0, 3.1]]))
        tensor([9.])
    """

    def __init__(self, in_features: int) -> None:
        super().__init__()
        in_features = check_size("in_features", in_features)
        self.center: Tensor
        self.radius: Tensor
        self.register_buffer("center", torch.zeros(in_features))
        self.register_buffer("radius", torch.zeros(()))

    @torch.no_grad()
    def fit(self, features: Tensor) -> HypersphereHead:
        """Set the centre to the mean of the features, with magnitudes of at least 0.1, and the radius to 0.

        Args:
            features: `[N, d]` with N >= 1, floating-point.

        Returns:
            This module.

        Raises:
            TypeError: If `features` is not floating-point.
            ValueError: If `features` has another width, no row, or a mean that is not finite.
        """
        check_features(features, len(self.center))
        # float64, because a sum over many rows loses digits in float32.
        mean = features.double().mean(dim=0)
        if len(features) == 0 or not bool(mean.isfinite().all()):
            raise ValueError(f"features must be finite, with one row or more, got {len(features)} of mean {mean}")
        away = torch.where(mean < 0, -MIN_COORDINATE, MIN_COORDINATE)
        self.center.copy_(torch.where(mean.abs() < MIN_COORDINATE, away, mean))
        self.radius.zero_()
        return self

    def forward(self, features: Tensor) -> Tensor:
        """Return the squared distances `[N]` of features `[N, d]` to the centre.

        Raises:
            TypeError: If `features` is not floating-point.
            ValueError: If `features` has another shape or device.
        """
        check_features(features, len(self.center))
        if features.device != self.center.device:
            raise ValueError(f"features must be on {self.center.device} like the centre, got {features.device}")
        # Differences before squares: ‖z‖² - 2 z·c + ‖c‖² cancels for features near the centre.
        distances: Tensor = (widened(features) - widened(self.center)).square().sum(dim=1)
        return distances
