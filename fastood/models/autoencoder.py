"""Convolutional autoencoder for small images."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastood.models.classifier import initialize

__all__ = ["Autoencoder"]


class Autoencoder(nn.Module):
    """Encoder of two strided 3×3 convolutions and a linear layer, and a decoder that mirrors it.

    Every image size of at least 8 works: odd sizes are halved upwards, and the decoder restores the sizes of the
    encoder. The last layer is linear, so that images may be normalised in any way.

    Args:
        in_channels: Image channels C, at least 1.
        image_size: Height and width S, at least 8 pixels.
        latent_dim: Width of the latent vector, at least 1.
        widths: Channels of the two convolutions.
        generator: Source of the initial weights, on the CPU; None for PyTorch's global generator.

    Shape:
        - images: float32 `[N, C, S, S]` with S = `image_size`.
        - latent: `[N, latent_dim]`.
        - reconstruction: `[N, C, S, S]`.

    Raises:
        ValueError: If a size is out of range.

    Example:
        >>> autoencoder = Autoencoder(in_channels=1, image_size=15, latent_dim=8)
        >>> images = torch.zeros(2, 1, 15, 15)
        >>> latent, reconstruction = autoencoder(images)
        >>> latent.shape, reconstruction.shape
        (torch.Size([2, 8]), torch.Size([2, 1, 15, 15]))
        >>> (reconstruction - images).square().mean().backward()
    """

    def __init__(
        self,
        *,
        in_channels: int,
        image_size: int,
        latent_dim: int,
        widths: tuple[int, int] = (16, 32),
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        for name, value, low in (
            ("in_channels", in_channels, 1),
            ("image_size", image_size, 8),
            ("latent_dim", latent_dim, 1),
        ):
            if value < low:
                raise ValueError(f"{name} must be at least {low}, got {value}")
        # Layers draw initial weights from the global generator in their constructors: keep its state.
        with torch.random.fork_rng(devices=[], enabled=generator is not None):
            self._build(in_channels, image_size, latent_dim, widths)
            initialize(self, generator)

    def _build(self, in_channels: int, image_size: int, latent_dim: int, widths: tuple[int, int]) -> None:
        first, second = widths
        self.sizes = (image_size, math.ceil(image_size / 2), math.ceil(image_size / 4))
        self.encode_convolutions = nn.Sequential(
            *_block(in_channels, first, stride=2),
            *_block(first, second, stride=2),
        )
        self.to_latent = nn.Linear(second * self.sizes[2] ** 2, latent_dim)
        self.from_latent = nn.Linear(latent_dim, second * self.sizes[2] ** 2)
        self.decode_first = nn.Sequential(*_block(second, first, stride=1))
        self.decode_second = nn.Sequential(
            *_block(first, first, stride=1), nn.Conv2d(first, in_channels, kernel_size=3, padding=1)
        )

    def encode(self, images: Tensor) -> Tensor:
        """Return the latent vectors `[N, latent_dim]` of images `[N, C, S, S]`."""
        latent: Tensor = self.to_latent(self.encode_convolutions(images).flatten(1))
        return latent

    def decode(self, latent: Tensor) -> Tensor:
        """Return the images `[N, C, S, S]` of latent vectors `[N, latent_dim]`."""
        maps = F.relu(self.from_latent(latent)).view(len(latent), -1, self.sizes[2], self.sizes[2])
        maps = self.decode_first(F.interpolate(maps, size=self.sizes[1]))
        images: Tensor = self.decode_second(F.interpolate(maps, size=self.sizes[0]))
        return images

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the latent vectors `[N, latent_dim]` and the reconstructions `[N, C, S, S]`."""
        latent = self.encode(images)
        return latent, self.decode(latent)


def _block(channels: int, width: int, *, stride: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, width, kernel_size=3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(inplace=True),
    ]
