"""Losses of one-class classification by a hypersphere (Deep SVDD, Ruff et al. 2018)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastood.ops._arguments import decimal_fraction
from fastood.ops._transforms import is_transformed
from fastood.ops._validation import LOGIT_DTYPES, check_number, check_tensor, widened

__all__ = ["DeepSVDDLoss"]


class DeepSVDDLoss(nn.Module):
    r"""Deep SVDD loss: enclose the features of one class in a small sphere, with a hard or a soft boundary.

        hard boundary   mean_n d_n (eq. 4)              soft   R² + 1/ν · mean_n max(0, d_n - R²) (eq. 3)

    for squared distances d_n to a fixed centre, such as `HypersphereHead` returns (Ruff et al. 2018,
    https://proceedings.mlr.press/v80/ruff18a.html). The paper's weight decay is left to the optimiser. The radius R
    receives no gradient: for the soft boundary update it periodically with `radius_of`, which minimises the loss over
    R.

    pytorch-ood's loss of the same name takes features and stores the centre; here `HypersphereHead` stores the centre
    and computes the distances.

    Args:
        nu: ν in (0, 1], the largest fraction of images outside the sphere, for the soft boundary; None for the hard
            boundary.

    Shape:
        - distances: `[N]` with N >= 1, squared distances >= 0; float64, float32, bfloat16 or float16.
        - radius: `[]` or a number, >= 0; required for the soft boundary, ignored for the hard one.
        - output: `[]`, float64 for float64 distances, float32 for all others.

    Raises:
        TypeError: If `distances` or `radius` has another type or dtype, or `nu` is not a number.
        ValueError: If `nu` is out of range, an argument has the wrong shape or device, or, on the CPU, a value is
            negative. On other devices negative values are not detected, because a check would synchronise with the
            device.

    Example:
        >>> import torch
        >>> distances = torch.tensor([1.0, 4.0, 9.0, 16.0])
        >>> DeepSVDDLoss()(distances)
        tensor(7.5000)
        >>> soft = DeepSVDDLoss(nu=0.25)
        >>> radius = soft.radius_of(distances)
        >>> radius, soft(distances, radius)  # 9 + 4 · (16 - 9) / 4
        (tensor(3.), tensor(16.))
    """

    def __init__(self, nu: float | None = None) -> None:
        super().__init__()
        self.nu = None if nu is None else check_number("nu", nu, 0, 1, above_low=True)

    def extra_repr(self) -> str:
        """Return the settings, for `print(model)`."""
        return f"nu={self.nu}"

    def forward(self, distances: Tensor, radius: Tensor | float | None = None) -> Tensor:
        """Return the scalar loss; see the class for shapes."""
        return self.with_per_sample(distances, radius)[0]

    def with_per_sample(self, distances: Tensor, radius: Tensor | float | None = None) -> tuple[Tensor, Tensor]:
        """Return the scalar loss and the detached term of each image in the mean, `[N]`, before 1/ν."""
        _check_distances(distances)
        # In 16 bits the square of a radius above 255 is infinite.
        distances = widened(distances)
        if self.nu is None:
            return distances.mean(), distances.detach()
        if radius is None:
            raise ValueError("radius must be given for the soft boundary, got none")
        squared = _checked_radius(radius, distances).square()
        outside = (distances - squared).clamp_min(0)
        return squared + outside.mean() / self.nu, outside.detach()

    @torch.no_grad()
    def radius_of(self, distances: Tensor) -> Tensor:
        """Return the smallest radius for which at most a fraction ν of the images is outside.

        It is the smallest minimiser of the soft loss in R.

        Args:
            distances: `[N]`, squared distances.

        Returns:
            `[]`, float64 for float64 distances, float32 for all others.

        Raises:
            TypeError: If `distances` has another type or dtype.
            ValueError: If the boundary is hard, or `distances` has another shape or, on the CPU, a negative value.
        """
        if self.nu is None:
            raise ValueError("radius_of needs a soft boundary, nu is None")
        _check_distances(distances)
        # In decimal arithmetic: 0.29 of 100 images are 29, but 0.29 * 100 is 28.999… in binary.
        inside = len(distances) - math.floor(decimal_fraction(self.nu) * len(distances))
        return widened(distances).sort().values[inside - 1].sqrt() if inside > 0 else widened(distances).new_zeros(())


def _check_distances(distances: Tensor) -> None:
    check_tensor("distances", distances, LOGIT_DTYPES)
    if distances.dim() != 1 or len(distances) == 0:
        raise ValueError(
            f"distances must be [N] with N >= 1, squared distances of features to the centre as HypersphereHead "
            f"returns them, got shape {tuple(distances.shape)}"
        )
    _check_not_negative("distances", distances)


def _checked_radius(radius: Tensor | float, distances: Tensor) -> Tensor:
    if not isinstance(radius, Tensor):
        return distances.new_full((), check_number("radius", radius, 0))
    check_tensor("radius", radius, LOGIT_DTYPES)
    if radius.dim() != 0:
        raise ValueError(f"radius must be a number or of shape (), got shape {tuple(radius.shape)}")
    if radius.device != distances.device:
        raise ValueError(f"radius must be on {distances.device} like distances, got {radius.device}")
    _check_not_negative("radius", radius)
    return radius.to(distances.dtype)


def _check_not_negative(name: str, values: Tensor) -> None:
    # Reading values would synchronise with a GPU, and break the graph of a compiled function. NaN is not an error here:
    # it makes the loss NaN.
    readable = values.device.type == "cpu" and not (torch.compiler.is_compiling() or is_transformed())
    if readable and bool((values < 0).any()):
        raise ValueError(f"{name} must be >= 0, got {float(values.min()):g}")
