"""Resizing, cropping and colour conversion of images to one size and number of channels."""

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

FITTED_TOGETHER = 1 << 18
"""Largest number of elements of an image that is fitted in a batch; larger images are fitted one at a time."""


def fit_images(images: Tensor, *, size: int, channels: int) -> Tensor:
    """Resize the shorter edge, crop the centre, and convert between grey and RGB.

    Li & Vasconcelos 2020, supplementary C, resize in the same way but crop at random. Here images are stored once, at
    one size, so that only the centre square of an oblong image is used. Interpolation is bilinear with
    antialiasing; everything is computed in floating point and rounded once.

    Args:
        images: uint8 `[N, 1 or 3, H, W]`.
        size: Rows and columns of the results.
        channels: 1 (ITU-R BT.601 luma) or 3 (grey repeated).

    Returns:
        uint8 `[N, channels, size, size]`.

    Raises:
        ValueError: If `channels` or the channels of `images` are neither 1 nor 3.

    Example:
        >>> fit_images(torch.zeros(2, 3, 40, 60, dtype=torch.uint8), size=32, channels=1).shape
        torch.Size([2, 1, 32, 32])
    """
    for field, count in (("channels", channels), ("channels of images", images.shape[1])):
        if count not in (1, 3):
            raise ValueError(f"{field} must be 1 or 3, got {count}")
    fitted = images
    if images.shape[1] == 3 and channels == 1:
        luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
        fitted = (images.float() * luma).sum(1, keepdim=True)
    if images.shape[-2:] != (size, size):
        from torchvision.transforms.v2 import functional as transforms

        fitted = transforms.resize(fitted.float(), [size], antialias=True)
        fitted = transforms.center_crop(fitted, [size, size])
    # Rounded once, after all steps: rounding between them would depend on their order.
    if fitted.is_floating_point():
        fitted = fitted.round().clamp(0, 255).to(torch.uint8)
    return fitted.expand(-1, channels, -1, -1).contiguous()


def fit_in_turn(images: Iterable[Tensor], *, size: int, channels: int) -> Iterator[Tensor]:
    """Fit images of any shapes as `fit_images` does; consecutive small images of one shape are fitted together.

    Args:
        images: uint8 `[1 or 3, H, W]` each; consumed lazily, so that large images are not held together.
        size: Rows and columns of the results.
        channels: 1 (ITU-R BT.601 luma) or 3 (grey repeated).

    Yields:
        uint8 `[channels, size, size]`, in the same order.

    Example:
        >>> shapes = [(3, 40, 60), (3, 40, 60), (1, 32, 32), (3, 600, 400)]
        >>> fitted = fit_in_turn((torch.zeros(shape, dtype=torch.uint8) for shape in shapes), size=32, channels=1)
        >>> [tuple(image.shape) for image in fitted]
        [(1, 32, 32), (1, 32, 32), (1, 32, 32), (1, 32, 32)]
    """
    waiting: list[Tensor] = []
    for image in images:
        if waiting and (image.shape != waiting[0].shape or image.numel() > FITTED_TOGETHER):
            yield from fit_images(torch.stack(waiting), size=size, channels=channels)
            waiting = []
        waiting.append(image)
        if image.numel() > FITTED_TOGETHER:
            yield from fit_images(image[None], size=size, channels=channels)
            waiting = []
    if waiting:
        yield from fit_images(torch.stack(waiting), size=size, channels=channels)
