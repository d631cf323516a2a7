"""Wide residual networks (Zagoruyko & Komodakis 2016) for small images."""

import torch
from torch import Tensor, nn

from fastood.models.classifier import MAX_DEPTH, Classifier, initialize
from fastood.ops._arguments import shown

__all__ = ["WideBlock", "WideResNet", "check_shape"]


class WideBlock(nn.Module):
    """Pre-activation block B(3, 3): BN-ReLU-conv, dropout, BN-ReLU-conv, plus the shortcut."""

    def __init__(self, in_channels: int, out_channels: int, *, stride: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature maps `[N, C', H / stride, W / stride]` of `[N, C, H, W]`."""
        activated = self.relu(self.norm1(x))
        # A shortcut that changes the shape reads the activated input, an identity the raw one (He et al. 2016).
        skipped = self.shortcut(activated if isinstance(self.shortcut, nn.Conv2d) else x)
        inner = self.dropout(self.conv1(activated))
        residual = self.conv2(self.relu(self.norm2(inner)))
        out: Tensor = residual + skipped
        return out


class WideResNet(Classifier):
    """WRN-depth-widen: three groups of blocks with 16 k, 32 k and 64 k channels, then a mean over the image.

    Li & Vasconcelos 2020 train WRN-40-4 with dropout 0.3.

    Args:
        depth: Number of convolutions on the main path, 6n + 4 with n >= 1.
        widen: Width factor k, at least 1.
        num_classes: Number of classes K, at least 2.
        in_channels: Image channels C.
        dropout: Probability of dropping an activation inside a block, in [0, 1).
        generator: Source of the initial weights, on the CPU; None for PyTorch's global generator.

    Raises:
        ValueError: If `depth` is not 6n + 4 with n >= 1, or `widen` is below 1.

    Example:
        >>> import torch
        >>> model = WideResNet(10, 1, num_classes=10, in_channels=3)
        >>> model.features(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 64])
    """

    def __init__(
        self,
        depth: int,
        widen: int,
        *,
        num_classes: int,
        in_channels: int,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        check_shape(depth, widen)
        super().__init__(64 * widen, num_classes)
        self.stem = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        blocks: list[nn.Module] = []
        channels = 16
        for group, width in enumerate((16 * widen, 32 * widen, 64 * widen)):
            for block in range((depth - 4) // 6):
                stride = 2 if group > 0 and block == 0 else 1
                blocks.append(WideBlock(channels, width, stride=stride, dropout=dropout))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(channels)
        initialize(self, generator)

    def features(self, images: Tensor) -> Tensor:
        """Return the spatial mean of the last activation, `[N, 64 · widen]`."""
        activated = torch.relu(self.norm(self.blocks(self.stem(images))))
        return activated.mean(dim=(2, 3))


def check_shape(depth: int, widen: int) -> None:
    """Raise unless a wide residual network has this depth and width factor.

    Raises:
        ValueError: If `depth` or `widen` is out of range.
    """
    if depth > MAX_DEPTH:
        raise ValueError(f"depth must be at most {MAX_DEPTH}, got {shown(depth)}")
    if depth < 10 or (depth - 4) % 6 != 0:
        raise ValueError(f"depth must be 6n + 4 with n >= 1 (10, 16, 22, 28, 34, 40, …), got {depth}")
    if widen < 1:
        raise ValueError(f"widen must be at least 1, got {widen}")
