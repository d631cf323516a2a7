"""Residual networks of basic blocks (He et al. 2016), torchvision's, with a stem for small or for large images."""

import torch
from torch import Tensor, nn

from fastood.models.classifier import Classifier, initialize

BLOCKS = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}
"""Basic blocks in each of the four groups, by depth."""


class ResNet(Classifier):
    """ResNet-18 or -34: four groups of basic blocks with 64, 128, 256 and 512 channels, then a mean over the image.

    The stem for small images, a 3×3 convolution, is the one that the field trains on CIFAR; the blocks then see the
    whole image. ImageNet's own, a 7×7 convolution of stride 2 and a max-pool of stride 2, leaves them a sixteenth of
    the pixels, and so about a sixteenth of the multiplications.

    Args:
        depth: 18 or 34.
        num_classes: Number of classes K.
        in_channels: Image channels C.
        imagenet_stem: Take ImageNet's stem.
        dropout: Probability of dropping a feature before the head, in [0, 1).
        generator: Source of the initial weights; None takes PyTorch's global one.

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
        """Spatial mean of the last activation, `[N, 512]`, after dropout."""
        pooled: Tensor = self.dropout(self.body(images))
        return pooled


def check_depth(depth: int) -> None:
    """Refuse a depth that no residual network of basic blocks has.

    Raises:
        ValueError: If none has it.
    """
    if depth not in BLOCKS:
        raise ValueError(f"depth must be one of {', '.join(map(str, BLOCKS))}, got {depth}")
