"""Noise images, with the parameters of Li & Vasconcelos.

Their code (as Hendrycks's before) draws noise in the space the network sees, normalised with mean 0.5 and standard
deviation 0.25: Gaussian of standard deviation 0.5 clamped to ±1, and uniform on ±1. That is done here too, and the
result is carried back to pixel intensities, x = 0.5 + 0.25·z in 0.25…0.75: it is then stored, resampled and
normalised like every other image.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from fastood.data.batches import MEAN, STD


def gaussian_noise(shape: tuple[int, ...], *, generator: torch.Generator) -> Tensor:
    """Gaussian noise, N(0, 0.5²) clamped to ±1 in normalised space.

    Args:
        shape: Any shape.
        generator: Source of all randomness.

    Returns:
        float32 intensities 0.25…0.75 of that shape.

    Example:
        >>> noise = gaussian_noise((100, 1, 8, 8), generator=torch.Generator().manual_seed(0))
        >>> noise.min().item(), noise.max().item()
        (0.25, 0.75)
    """
    return MEAN + STD * (0.5 * torch.randn(shape, generator=generator)).clamp(-1, 1)


def uniform_noise(shape: tuple[int, ...], *, generator: torch.Generator) -> Tensor:
    """Uniform noise on ±1 in normalised space.

    Args:
        shape: Any shape.
        generator: Source of all randomness.

    Returns:
        float32 intensities 0.25…0.75 of that shape.

    Example:
        >>> noise = uniform_noise((100, 1, 8, 8), generator=torch.Generator().manual_seed(0))
        >>> bool(noise.min() >= 0.25), bool(noise.max() <= 0.75)
        (True, True)
    """
    return MEAN + STD * (2 * torch.rand(shape, generator=generator) - 1)


NOISES: dict[str, Callable[..., Tensor]] = {"gaussian": gaussian_noise, "uniform": uniform_noise}
