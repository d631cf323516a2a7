"""The losses of one-class classification by a sphere (Ruff et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class DeepSVDDLoss(nn.Module):
    r"""A small sphere around the features of one class, with or without some of them outside.

        hard boundary   mean_n d_n (eq. 4)              soft   R² + 1/ν · mean_n max(0, d_n - R²) (eq. 3)

    of squared distances d_n to a fixed centre, `HypersphereHead`'s for example. Weight decay is the optimiser's. The
    radius R has no gradient: for the soft boundary set it now and then to `radius_of`, which minimises the loss in R.

    Args:
        nu: ν in (0, 1], share of the images that may lie outside, for the soft boundary; None for the hard one.

    Shape:
        - distances: `[N]`, at least 0, N >= 1.
        - radius: `[]`, at least 0.
        - output: `[]`.

    Raises:
        ValueError: ν is out of range, or the distances are no `[N]`.

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
        if nu is not None and not 0 < nu <= 1:
            raise ValueError(f"nu (ν) must be in (0, 1], or None, got {nu}")
        self.nu = nu

    def extra_repr(self) -> str:
        """Return the settings, for `print(model)`."""
        return f"nu={self.nu}"

    def forward(self, distances: Tensor, radius: Tensor | None = None) -> Tensor:
        """Return the scalar loss; shapes as in the class."""
        return self.with_per_sample(distances, radius)[0]

    def with_per_sample(self, distances: Tensor, radius: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the scalar loss and, `[N]` and detached, what each image adds to the mean, before 1/ν."""
        if distances.dim() != 1 or len(distances) == 0:
            raise ValueError(f"distances must be [N] with N >= 1, got shape {tuple(distances.shape)}")
        if self.nu is None:
            return distances.mean(), distances.detach()
        if radius is None:
            raise ValueError("radius must be given for the soft boundary, got none")
        outside = (distances - radius.square()).clamp_min(0)
        return radius.square() + outside.mean() / self.nu, outside.detach()

    @torch.no_grad()
    def radius_of(self, distances: Tensor) -> Tensor:
        """The radius that leaves a share ν of the images outside, at most: the least that minimises the soft loss.

        Raises:
            ValueError: The boundary is hard.
        """
        if self.nu is None:
            raise ValueError("radius_of needs a soft boundary, nu is None")
        inside = len(distances) - int(self.nu * len(distances))
        return distances.sort().values[inside - 1].sqrt() if inside > 0 else distances.new_zeros(())
