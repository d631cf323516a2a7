"""Noise images, with the parameters of the papers, in the space in which their code draws them.

Everything is drawn in the space that the network sees, normalised with mean 0.5 and standard deviation 0.25, as
Li & Vasconcelos (2020) do and Hendrycks et al. (2019, for CIFAR) before them: values z in ±1. The result is carried
back to pixel intensities, x = 0.5 + 0.25·z in 0.25…0.75: it is then stored, resampled and normalised like every other
image. Other code draws in pixel space, over the whole of 0…1: for MNIST, Hendrycks et al. take N(0.5, 0.5²) clipped and
Bernoulli noise. Figures for noise compare only with tables of the same space.
"""

from collections.abc import Callable

import torch
from scipy.ndimage import gaussian_filter
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


def rademacher_noise(shape: tuple[int, ...], *, generator: torch.Generator) -> Tensor:
    """Rademacher noise: -1 or 1 with equal probability in normalised space, for every pixel and channel alone.

    Hendrycks et al., "Deep Anomaly Detection with Outlier Exposure" (ICLR 2019), CIFAR/test.py.

    Args:
        shape: Any shape.
        generator: Source of all randomness.

    Returns:
        float32 intensities 0.25 or 0.75 of that shape.

    Example:
        >>> rademacher_noise((100, 1, 8, 8), generator=torch.Generator().manual_seed(0)).unique().tolist()
        [0.25, 0.75]
    """
    return MEAN + STD * (2.0 * torch.randint(2, shape, generator=generator) - 1)


def blob_noise(shape: tuple[int, ...], *, generator: torch.Generator) -> Tensor:
    """Blobs: Bernoulli(0.7) pixels blurred with σ = 1.5, then 0 wherever the result is below 0.75; z = 2·blob - 1.

    Hendrycks et al., as `rademacher_noise`. Their blur (skimage's ``gaussian`` with ``multichannel=False``) runs over
    rows, columns and channels alike, edges repeated; that is kept, as it decides how grey the blobs are.

    Args:
        shape: [N, C, H, W].
        generator: Source of all randomness.

    Returns:
        float32 intensities 0.25 (no blob) or 0.625…0.75 (blob) of that shape.

    Raises:
        ValueError: `shape` has not four dimensions.

    Example:
        >>> blobs = blob_noise((10, 3, 32, 32), generator=torch.Generator().manual_seed(0))
        >>> bool(((blobs == 0.25) | (blobs >= 0.625)).all())
        True
    """
    if len(shape) != 4:
        raise ValueError(f"shape must be [N, C, H, W], got {list(shape)}")
    pixels = (torch.rand(shape, generator=generator) < 0.7).float()
    blurred = torch.from_numpy(gaussian_filter(pixels.numpy(), sigma=(0, 1.5, 1.5, 1.5), mode="nearest"))
    return MEAN + STD * (2 * torch.where(blurred < 0.75, 0.0, blurred) - 1)


NOISES: dict[str, Callable[..., Tensor]] = {
    "gaussian": gaussian_noise,
    "uniform": uniform_noise,
    "rademacher": rademacher_noise,
    "blobs": blob_noise,
}
"""Noise by the name that options give it."""
