"""LeNets for one-class classification, without biases (Ruff et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastood.heads.hypersphere import HypersphereHead
from fastood.models.classifier import layers_drawn_from

__all__ = ["OneClassLeNet"]


class OneClassLeNet(nn.Module):
    """Conv 5×5, BatchNorm, leaky ReLU and max-pooling per block, a linear layer, and a `HypersphereHead`.

    No layer has a bias, and BatchNorm has no parameters, so that the network cannot represent a constant function
    (Ruff et al. 2018, https://proceedings.mlr.press/v80/ruff18a.html). It is not a `Classifier`: there are no classes,
    and the output is one distance per image.

    Args:
        in_channels: Image channels C.
        image_size: Height and width S of the images, at least `2 ** len(widths)`: each block halves them.
        widths: Channels of the convolutions.
        feature_dim: Width d of the features.
        generator: Source of the initial weights, which follow PyTorch's defaults as in the authors' code, on the CPU;
            None for PyTorch's global generator.

    Attributes:
        head: `HypersphereHead`, to be fitted before the training.

    Raises:
        ValueError: If the images are too small.

    Example:
        >>> network = OneClassLeNet(in_channels=1, image_size=28)
        >>> images = torch.randn(4, 1, 28, 28)
        >>> _ = network.head.fit(network.eval().features(images))
        >>> network(images).shape
        torch.Size([4])
    """

    def __init__(
        self,
        *,
        in_channels: int,
        image_size: int,
        widths: tuple[int, ...] = (8, 4),
        feature_dim: int = 32,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        rest = image_size >> len(widths)
        if rest < 1:
            raise ValueError(f"image_size must be at least {2 ** len(widths)} pixels, got {image_size}")
        layers: list[nn.Module] = []
        with layers_drawn_from(generator):
            channels = in_channels
            for width in widths:
                layers += [
                    nn.Conv2d(channels, width, kernel_size=5, padding=2, bias=False),
                    nn.BatchNorm2d(width, eps=1e-4, affine=False),
                    nn.LeakyReLU(),
                    nn.MaxPool2d(2),
                ]
                channels = width
            self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(channels * rest**2, feature_dim, bias=False))
        self.head = HypersphereHead(feature_dim)

    def features(self, images: Tensor) -> Tensor:
        """Return the features `[N, feature_dim]` of float images `[N, C, S, S]`."""
        features: Tensor = self.body(images)
        return features

    def forward(self, images: Tensor) -> Tensor:
        """Return the squared distances `[N]` of images `[N, C, S, S]` to the centre."""
        distances: Tensor = self.head(self.features(images))
        return distances
