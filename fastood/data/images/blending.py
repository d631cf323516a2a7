"""Blending of background images with in-distribution images."""

from collections.abc import Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from fastood.data.images.image_set import ImageSet

_BLENDED_AT_ONCE = 1024


def blend_images(background: ImageSet, id_images: ImageSet, *, alpha: float, generator: torch.Generator) -> ImageSet:
    """Synthesise outliers `(1 - α) · background + α · in-distribution`.

    "Synthesized OOD" of Mohseni et al. 2020 (https://ojs.aaai.org/index.php/AAAI/article/view/5966).

    The paper improves ImageNet as a source of outliers for CIFAR "with α = 0.1 image blending". It does not say which
    of the two images has weight α. Here it is the in-distribution image: at 0.9 it would hardly be an outlier. Every
    background image is blended once, with a partner drawn with replacement.

    Args:
        background: N images, in memory.
        id_images: In-distribution images of the same size and channels, at least one.
        alpha: Weight α of the in-distribution image, in (0, 1).
        generator: RNG that draws the partners.

    Returns:
        The N blends, with the labels and sources of the background.

    Raises:
        ValueError: If `alpha` is out of range, `id_images` is empty, shapes differ, or the background is still encoded.

    Example:
        >>> def images(value: int, **names: tuple[str, ...]) -> ImageSet:
        ...     zero = torch.zeros(2, dtype=torch.int64)
        ...     label = zero if "class_names" in names else zero - 1
        ...     pixels = torch.full((2, 1, 8, 8), value, dtype=torch.uint8)
        ...     return ImageSet(name="", images=pixels, labels=label, source=zero, source_names=("",), **names)
        >>> generator = torch.Generator().manual_seed(0)
        >>> blends = blend_images(images(100), images(255, class_names=("a",)), alpha=0.1, generator=generator)
        >>> blends.images[0, 0, 0, 0].item()  # 0.9 · 100 + 0.1 · 255 = 115.5
        116
    """
    pixels = _pixels_to_blend(background, id_images, alpha)
    partners = torch.randint(len(id_images), (len(background),), generator=generator)
    blends = torch.empty_like(pixels)
    # In parts: two float64 copies of a whole pool would take 16 times its memory.
    for index in torch.split(torch.arange(len(background)), _BLENDED_AT_ONCE):
        blends[index] = blend_pixels(pixels[index], id_images.pixels(partners[index]), alpha)
    return blended_set(background, blends)


def _pixels_to_blend(background: ImageSet, id_images: ImageSet, alpha: float) -> Tensor:
    """Return the pixels of the background, after the checks of `blend_images`."""
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must be in (0, 1), got {alpha}")
    if not isinstance(background.images, Tensor):
        raise ValueError(f"background must be in memory to be blended, {background.name} is still encoded")
    if len(id_images) == 0:
        raise ValueError("id_images must hold at least one image, got none")
    if tuple(background.images.shape[1:]) != tuple(id_images.images.shape[1:]):
        raise ValueError(
            f"background must have images of {list(id_images.images.shape[1:])} as id_images has, "
            f"got {list(background.images.shape[1:])}"
        )
    return background.images


def blended_chunks(
    chunks: Iterable[Tensor], background: ImageSet, id_images: ImageSet, *, alpha: float, generator: torch.Generator
) -> Iterator[Tensor]:
    """Blend images that come in chunks; the blends equal those of `blend_images`.

    Args:
        chunks: Pixels of the background in order, uint8 `[n, C, H, W]` each.
        background: The background, of which no pixel is read.
        id_images: In-distribution images of the same size and channels, at least one.
        alpha: Weight α of the in-distribution image, in (0, 1).
        generator: RNG that draws the partners.

    Yields:
        uint8 `[n, C, H, W]`.

    Raises:
        ValueError: If `alpha` is out of range, `id_images` is empty, shapes differ, or the background is still encoded.
    """
    _pixels_to_blend(background, id_images, alpha)
    partners = torch.randint(len(id_images), (len(background),), generator=generator)
    place = 0
    for chunk in chunks:
        for part in torch.split(chunk, _BLENDED_AT_ONCE):
            yield blend_pixels(part, id_images.pixels(partners[place : place + len(part)]), alpha)
            place += len(part)


def blend_pixels(background: Tensor, id_pixels: Tensor, alpha: float) -> Tensor:
    """Return `(1 - α) · background + α · in-distribution` of two uint8 tensors of one shape, rounded."""
    # In float64: ties such as 115.5 then round up on every platform.
    pixels = torch.lerp(background.double(), id_pixels.double(), alpha)
    return pixels.add_(0.5).floor_().to(torch.uint8)


def blended_set(background: ImageSet, blends: Tensor) -> ImageSet:
    """Return the background with blended images, which no file identifies any more."""
    name = f"{background.name}, blended"
    return replace(background, name=name, images=blends, digest=None, digest_covers_rows=False)
