"""torchvision's residual networks of basic blocks (He et al. 2016), with a stem for small or for large images."""

import torch
from torch import Tensor, nn

from fastood.models.classifier import Classifier, initialize

__all__ = ["BLOCKS", "ResNet", "check_depth"]

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
"""Number of basic blocks in each of the four groups, by depth."""


class ResNet(Classifier):
    """ResNet-18 or -34: four groups of basic blocks with 64, 128, 256 and 512 channels, then a mean over the image.

    The stem for small images is a 3×3 convolution of stride 1, as usual for CIFAR. The ImageNet stem, a 7×7 convolution
    of stride 2 and a max-pool of stride 2, leaves the blocks a sixteenth of the pixels and of the multiplications.

    Args:
        depth: 18 or 34.
        num_classes: Number of classes K, at least 2.
        in_channels: Image channels C.
        imagenet_stem: Use the ImageNet stem.
        dropout: Probability of dropping a feature before the head, in [0, 1).
        generator: Source of the initial weights, on the CPU; None for PyTorch's global generator.

    Raises:
        ValueError: If no network has this depth.

    Example:
        >>> import torch
        >>> model = ResNet(18, num_classes=10, in_channels=1, imagenet_stem=True)
        >>> model.features(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 512])
    """

    def __init__(
        self,
        depth: int,
        *,
        num_classes: int,
        in_channels: int,
        imagenet_stem: bool = False,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        check_depth(depth)
        super().__init__(512, num_classes)
        from torchvision.models import resnet

        self.body = resnet.ResNet(resnet.BasicBlock, list(BLOCKS[depth]))
        self.body.fc = nn.Identity()
        if imagenet_stem:
            self.body.conv1 = nn.Conv2d(in_channels, 64, 7, stride=2, padding=3, bias=False)
        else:
            self.body.conv1 = nn.Conv2d(in_channels, 64, 3, padding=1, bias=False)
            self.body.maxpool = nn.Identity()
        self.dropout = nn.Dropout(dropout)
        initialize(self, generator)

    def features(self, images: Tensor) -> Tensor:
        """Return the spatial mean of the last activation, `[N, 512]`, after dropout."""
        pooled: Tensor = self.dropout(self.body(images))
        return pooled


def check_depth(depth: int) -> None:
    """Raise unless a residual network of basic blocks has this depth.

    Raises:
        ValueError: If `depth` is not 18 or 34.
    """
    if depth not in BLOCKS:
        raise ValueError(f"depth must be one of {', '.join(map(str, BLOCKS))}, got {depth}")
