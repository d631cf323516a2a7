"""Small batch-normalised CNN for small images, which trains within minutes on two CPU cores."""

import torch
from torch import Tensor, nn

from fastood.models.classifier import Classifier, initialize

__all__ = ["SmallCNN"]


class SmallCNN(Classifier):
    """Three 3×3 convolutions with 16, 32 and 64 channels, max-pooling between them, then a mean over the image.

    Args:
        num_classes: Number of classes K, at least 2.
        in_channels: Image channels C.
        dropout: Probability of dropping a feature before the head, in [0, 1).
        generator: Source of the initial weights, on the CPU; None for PyTorch's global generator.

    Example:
        >>> import torch
        >>> model = SmallCNN(num_classes=6, in_channels=1)
        >>> images = torch.zeros(2, 1, 16, 16)
        >>> model(images).shape, model.features(images).shape
        (torch.Size([2, 6]), torch.Size([2, 64]))
    """

    widths = (16, 32, 64)

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(self.widths[-1], num_classes)
        layers: list[nn.Module] = []
        channels = in_channels
        for block, width in enumerate(self.widths):
            if block > 0:
                layers.append(nn.MaxPool2d(2))
            layers += [
                nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            channels = width
        self.body = nn.Sequential(*layers)
        self.dropout = nn.Dropout(dropout)
        initialize(self, generator)

    def features(self, images: Tensor) -> Tensor:
        """Return the spatial mean of the last convolution, `[N, 64]`, after dropout."""
        pooled: Tensor = self.dropout(self.body(images).mean(dim=(2, 3)))
        return pooled
