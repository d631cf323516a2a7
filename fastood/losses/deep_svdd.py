"""The losses of one-class classification by a sphere (Ruff et al. 2018)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastood.ops._arguments import decimal_fraction
from fastood.ops._transforms import is_transformed
from fastood.ops._validation import LOGIT_DTYPES, check_number, check_tensor, widened


class DeepSVDDLoss(nn.Module):
    r"""A small sphere around the features of one class, with or without some of them outside.

        hard boundary   mean_n d_n (eq. 4)              soft   R² + 1/ν · mean_n max(0, d_n - R²) (eq. 3)

    of squared distances d_n to a fixed centre, `HypersphereHead`'s for example. Weight decay is the optimiser's. The
    radius R has no gradient: for the soft boundary set it now and then to `radius_of`, which minimises the loss in R.

    Args:
        nu: ν in (0, 1], share of the images that may lie outside, for the soft boundary; None for the hard one.

    Shape:
        - distances: `[N]`, squared, at least 0, N >= 1; float64, float32, bfloat16 or float16.
        - radius: `[]` or a number, at least 0.
        - output: `[]`, float64 for float64 distances, float32 for all others.

    pytorch-ood's loss of this name takes features and holds the centre; here `HypersphereHead` does.

    Raises:
        TypeError: An argument is no tensor of these dtypes, or ν no number.
        ValueError: ν is out of range, an argument has the wrong shape or device or, on the CPU, is negative; another
            device could not say so without waiting.

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
        """Return the scalar loss; shapes as in the class."""
        return self.with_per_sample(distances, radius)[0]

    def with_per_sample(self, distances: Tensor, radius: Tensor | float | None = None) -> tuple[Tensor, Tensor]:
        """Return the scalar loss and, `[N]` and detached, what each image adds to the mean, before 1/ν."""
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
        """Return the radius that leaves a share ν of the images outside, at most.

        It is the least that minimises the soft loss.

        Raises:
            TypeError: As in the class.
            ValueError: The boundary is hard, or as in the class.
        """
        if self.nu is None:
            raise ValueError("radius_of needs a soft boundary, nu is None")
        _check_distances(distances)
        inside = len(distances) - math.floor(decimal_fraction(self.nu) * len(distances))
        return widened(distances).sort().values[inside - 1].sqrt() if inside > 0 else widened(distances).new_zeros(())


def _check_distances(distances: Tensor) -> None:
    check_tensor("distances", distances, LOGIT_DTYPES)
    if distances.dim() != 1 or len(distances) == 0:
        raise ValueError(
            f"distances must be [N] with N >= 1, squared distances of features to the centre as HypersphereHead gives "
            f"them, got shape {tuple(distances.shape)}"
        )
    _check_not_negative("distances", distances)


def _checked_radius(radius: Tensor | float, distances: Tensor) -> Tensor:
    if not isinstance(radius, Tensor):
        return distances.new_tensor(check_number("radius", radius, 0))
    check_tensor("radius", radius, LOGIT_DTYPES)
    if radius.dim() != 0:
        raise ValueError(f"radius must be a number or of shape (), got shape {tuple(radius.shape)}")
    if radius.device != distances.device:
        raise ValueError(f"radius must be on {distances.device} like distances, got {radius.device}")
    _check_not_negative("radius", radius)
    return radius.to(distances.dtype)


def _check_not_negative(name: str, values: Tensor) -> None:
    # Looking would wait for another device, and break the graph of a compiled function. NaN makes a loss of NaN.
    looks = values.device.type == "cpu" and not (torch.compiler.is_compiling() or is_transformed())
    if looks and bool((values < 0).any()):
        raise ValueError(f"{name} must be >= 0, got {float(values.min()):g}")
