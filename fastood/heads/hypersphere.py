"""A sphere around the features of one class in the place of a classification head (Ruff et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastood.ops._features import check_features, check_size
from fastood.ops._validation import widened

MIN_COORDINATE = 0.1
"""No coordinate of the centre is nearer to 0, the authors' code: weights of 0 would put every image there."""


class HypersphereHead(nn.Module):
    """Squared distances to a centre that is fixed before the training, and the radius of a sphere around it.

    Nothing here is trained. A network that shall learn to come near to the centre must not be able to be constant, or
    it will be (Ruff et al. 2018, section 3.3): it has no bias, in BatchNorm neither, no bounded activation, and a
    centre other than zero.

    Args:
        in_features: Width d.

    Attributes:
        center: c, float32 `[d]`; zeros until `fit`.
        radius: R, float32 `[]`; 0 until `DeepSVDDLoss` or somebody else sets it.

    Shape:
        - features: `[N, d]`, floating-point.
        - output: `[N]`, float64 for float64 features, else float32, in which 16-bit features and centres are computed.

    Raises:
        ValueError: `in_features` is out of range.

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
        """Put the centre at the mean of features `[N, d]`, coordinates near 0 moved away from it; the radius at 0.

        Returns:
            Itself.

        Raises:
            TypeError: `features` is not floating-point.
            ValueError: It has another width, no row, or a mean that is not finite.
        """
        check_features(features, len(self.center))
        mean = features.double().mean(dim=0)
        if len(features) == 0 or not bool(mean.isfinite().all()):
            raise ValueError(f"features must be finite, with one row or more, got {len(features)} of mean {mean}")
        away = torch.where(mean < 0, -MIN_COORDINATE, MIN_COORDINATE)
        self.center.copy_(torch.where(mean.abs() < MIN_COORDINATE, away, mean))
        self.radius.zero_()
        return self

    def forward(self, features: Tensor) -> Tensor:
        """Squared distances `[N]` of features `[N, d]` to the centre.

        Raises:
            TypeError: `features` is not floating-point.
            ValueError: It has another shape or device.
        """
        check_features(features, len(self.center))
        if features.device != self.center.device:
            raise ValueError(f"features must be on {self.center.device} like the centre, got {features.device}")
        distances: Tensor = (widened(features) - widened(self.center)).square().sum(dim=1)
        return distances
