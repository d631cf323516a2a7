"""Noise images with the parameters of the papers.

Papers draw noise in one of two spaces; results on noise are comparable only within one of them.

"normalized", the default: values z in ±1 after normalisation with mean 0.5 and standard deviation 0.25, as in
Li & Vasconcelos 2020
(https://openaccess.thecvf.com/content_CVPR_2020/html/Li_Background_Data_Resampling_for_Outlier-Aware_Classification_CVPR_2020_paper.html)
and, for CIFAR, Hendrycks et al. 2019 (https://arxiv.org/abs/1812.04606). They are mapped to pixel intensities,
x = 0.5 + 0.25·z in 0.25…0.75, so that noise is stored, resampled and normalised like every other image.

"pixel": all intensities 0…1, as Hendrycks et al. do for MNIST and SVHN, whose images they do not normalise:
x = 0.5 + 0.5·z. Gaussian noise is N(0.5, 0.5²), clipped, so that its z is twice as wide.
"""

from collections.abc import Iterator
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from fastood.data.images.augment import MEAN, STD

NoiseSpace = Literal["normalized", "pixel"]
"""Space that noise is drawn in: ±1 of normalised images, or all pixel intensities."""


def intensities(z: Tensor, space: NoiseSpace) -> Tensor:
    """Map noise z in ±1 to pixel intensities: 0.25…0.75 from normalised space, 0…1 from pixel space.

    Raises:
        ValueError: If `space` is unknown.

    Example:
        >>> z = torch.tensor([-1.0, 0.0, 1.0])
        >>> intensities(z, "normalized").tolist(), intensities(z, "pixel").tolist()
        ([0.25, 0.5, 0.75], [0.0, 0.5, 1.0])
    """
    if space not in get_args(NoiseSpace):
        raise ValueError(f"space must be one of {', '.join(get_args(NoiseSpace))}, got {space!r}")
    return MEAN + STD * z if space == "normalized" else 0.5 + 0.5 * z


def gaussian_noise(shape: tuple[int, ...], *, generator: torch.Generator, space: NoiseSpace = "normalized") -> Tensor:
    """Draw Gaussian noise: N(0, 0.5²) clamped to ±1 in normalised space, N(0.5, 0.5²) clamped to 0…1 in pixel space.

    Args:
        shape: Any shape.
        generator: RNG of the noise.
        space: Space that the noise is drawn in.

    Returns:
        float32 intensities of shape `shape`, 0.25…0.75 or 0…1.

    Example:
        >>> noise = gaussian_noise((100, 1, 8, 8), generator=torch.Generator().manual_seed(0))
        >>> noise.min().item(), noise.max().item()
        (0.25, 0.75)
    """
    width = 1.0 if space == "pixel" else 0.5
    return intensities((width * torch.randn(shape, generator=generator)).clamp(-1, 1), space)


def uniform_noise(shape: tuple[int, ...], *, generator: torch.Generator, space: NoiseSpace = "normalized") -> Tensor:
    """Draw uniform noise on ±1 in normalised space, on 0…1 in pixel space.

    Args:
        shape: Any shape.
        generator: RNG of the noise.
        space: Space that the noise is drawn in.

    Returns:
        float32 intensities of shape `shape`, 0.25…0.75 or 0…1.

    Example:
        >>> noise = uniform_noise((100, 1, 8, 8), generator=torch.Generator().manual_seed(0))
        >>> bool(noise.min() >= 0.25), bool(noise.max() <= 0.75)
        (True, True)
    """
    return intensities(2 * torch.rand(shape, generator=generator) - 1, space)


def rademacher_noise(shape: tuple[int, ...], *, generator: torch.Generator, space: NoiseSpace = "normalized") -> Tensor:
    """Draw Rademacher noise: -1 or 1 with equal probability in normalised space, independently per pixel and channel.

    From CIFAR/test.py of Hendrycks et al. 2019.

    Args:
        shape: Any shape.
        generator: RNG of the noise.
        space: Space that the noise is drawn in.

    Returns:
        float32 intensities of shape `shape`, 0.25 or 0.75; in pixel space 0 or 1, Bernoulli noise.

    Example:
        >>> rademacher_noise((100, 1, 8, 8), generator=torch.Generator().manual_seed(0)).unique().tolist()
        [0.25, 0.75]
    """
    return intensities(2.0 * torch.randint(2, shape, generator=generator) - 1, space)


def blob_noise(shape: tuple[int, ...], *, generator: torch.Generator, space: NoiseSpace = "normalized") -> Tensor:
    """Draw blobs: Bernoulli(0.7) pixels blurred with σ = 1.5, then 0 wherever the result is below 0.75; z = 2·blob - 1.

    From CIFAR/test.py of Hendrycks et al. 2019. Their blur (skimage's ``gaussian`` with ``multichannel=False``) runs
    over rows, columns and channels, with repeated edges; this is kept, as it decides how grey the blobs are.

    Args:
        shape: `[N, C, H, W]`.
        generator: RNG of the noise.
        space: Space that the noise is drawn in.

    Returns:
        float32 intensities of shape `shape`: 0.25 (no blob) or 0.625…0.75 (blob); in pixel space 0 or 0.75…1.

    Raises:
        ValueError: If `shape` does not have four dimensions.

    Example:
        >>> blobs = blob_noise((10, 3, 32, 32), generator=torch.Generator().manual_seed(0))
        >>> bool(((blobs == 0.25) | (blobs >= 0.625)).all())
        True
    """
    if len(shape) != 4:
        raise ValueError(f"shape must be [N, C, H, W], got {list(shape)}")
    pixels = (torch.rand(shape, generator=generator) < 0.7).float()
    from scipy.ndimage import gaussian_filter

    blurred = torch.from_numpy(gaussian_filter(pixels.numpy(), sigma=(0, 1.5, 1.5, 1.5), mode="nearest"))
    return intensities(2 * torch.where(blurred < 0.75, 0.0, blurred) - 1, space)


class Noise(Protocol):
    """Function that draws noise of one kind."""

    def __call__(self, shape: tuple[int, ...], *, generator: torch.Generator, space: NoiseSpace = ...) -> Tensor:
        """Return float32 intensities in 0…1 of shape `shape`."""
        ...


NOISES: dict[str, Noise] = {
    "gaussian": gaussian_noise,
    "uniform": uniform_noise,
    "rademacher": rademacher_noise,
    "blobs": blob_noise,
}
"""Noise functions by their names in options."""

# A multiple of 16: PyTorch draws normal numbers in groups of 16, so that chunks equal one draw of all images.
_DRAWN_AT_ONCE = 1024


def noise_chunks(
    kind: str, count: int, shape: tuple[int, int, int], *, generator: torch.Generator, space: NoiseSpace
) -> Iterator[Tensor]:
    """Draw images of noise, a chunk at a time; their pixels equal those of one draw of all images.

    Args:
        kind: A key of `NOISES`.
        count: Number N of images.
        shape: C, H and W, at least 16 pixels.
        generator: RNG of the noise.
        space: Space that the noise is drawn in.

    Yields:
        uint8 `[n, C, H, W]`.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> chunks = noise_chunks("gaussian", 1500, (1, 8, 8), generator=generator, space="normalized")
        >>> [len(chunk) for chunk in chunks]
        [1024, 476]
    """
    for start in range(0, count, _DRAWN_AT_ONCE):
        drawn = min(_DRAWN_AT_ONCE, count - start)
        noise = NOISES[kind]((drawn, *shape), generator=generator, space=space)
        yield (noise * 255).round().to(torch.uint8)
