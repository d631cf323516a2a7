"""Densely connected networks (Huang et al. 2017) for small images.

torchvision's blocks do not fit: all its layers have a bottleneck and all its transitions halve the channels, unlike
DenseNet-40-12, and dropout follows every second convolution, where the paper has it after each one.
"""

import torch
from torch import Tensor, nn

from fastood.models.classifier import MAX_DEPTH, Classifier, initialize
from fastood.ops._arguments import shown

__all__ = ["DenseLayer", "DenseNet", "check_dense_shape"]


class DenseLayer(nn.Module):
    """BN-ReLU-conv 3×3 that appends `growth` channels to its input, with BN-ReLU-conv 1×1 in front as a bottleneck."""

    def __init__(self, in_channels: int, growth: int, *, bottleneck: bool, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        if bottleneck:
            layers += _norm_relu_conv(channels, 4 * growth, kernel=1, dropout=dropout)
            channels = 4 * growth
        layers += _norm_relu_conv(channels, growth, kernel=3, dropout=dropout)
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Return the feature maps `[N, C + growth, H, W]` of `[N, C, H, W]`."""
        return torch.cat([x, self.layers(x)], dim=1)


class DenseNet(Classifier):
    """DenseNet-depth-growth or DenseNet-BC-depth-growth: three dense blocks, then a mean over the image.

    B stands for the bottleneck of 4 · growth channels before each 3×3 convolution, C for the compression by transitions
    that halve the channels. The paper trains with dropout 0.2 without augmentation, and without dropout otherwise.

    Args:
        depth: Number of layers with weights on the main path: 3n + 4, or 6n + 4 with bottleneck, with n >= 1.
        growth: Number of channels k that each layer adds, at least 1.
        bottleneck: Build DenseNet-BC.
        num_classes: Number of classes K, at least 2.
        in_channels: Image channels C.
        dropout: Probability of dropping an activation after each convolution but the first, in [0, 1).
        generator: Source of the initial weights, on the CPU; None for PyTorch's global generator.

    Raises:
        ValueError: If no network has this depth or growth.

    Example:
        >>> import torch
        >>> model = DenseNet(10, 4, bottleneck=True, num_classes=10, in_channels=3)
        >>> model.features(torch.zeros(2, 3, 32, 32)).shape
        torch.Size([2, 9])
    """

    def __init__(
        self,
        depth: int,
        growth: int,
        *,
        bottleneck: bool,
        num_classes: int,
        in_channels: int,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        check_dense_shape(depth, growth, bottleneck=bottleneck)
        channels = 2 * growth if bottleneck else 16
        body: list[nn.Module] = [nn.Conv2d(in_channels, channels, 3, padding=1, bias=False)]
        for block in range(3):
            if block > 0:
                narrowed = channels // 2 if bottleneck else channels
                body += [*_norm_relu_conv(channels, narrowed, kernel=1, dropout=dropout), nn.AvgPool2d(2)]
                channels = narrowed
            for _ in range((depth - 4) // _depth_step(bottleneck=bottleneck)):
                body.append(DenseLayer(channels, growth, bottleneck=bottleneck, dropout=dropout))
                channels += growth
        super().__init__(channels, num_classes)
        self.body = nn.Sequential(*body, nn.BatchNorm2d(channels), nn.ReLU(inplace=True))
        initialize(self, generator)

    def features(self, images: Tensor) -> Tensor:
        """Return the spatial mean of the last activation, `[N, d]`."""
        activated: Tensor = self.body(images)
        return activated.mean(dim=(2, 3))


def check_dense_shape(depth: int, growth: int, *, bottleneck: bool) -> None:
    """Raise unless a densely connected network has this depth and growth.

    Raises:
        ValueError: If `depth` or `growth` is out of range.
    """
    step = _depth_step(bottleneck=bottleneck)
    if depth > MAX_DEPTH:
        raise ValueError(f"depth must be at most {MAX_DEPTH}, got {shown(depth)}")
    if depth < step + 4 or (depth - 4) % step != 0:
        raise ValueError(f"depth must be {step}n + 4 with n >= 1 ({step + 4}, {2 * step + 4}, …), got {depth}")
    if growth < 1:
        raise ValueError(f"growth must be at least 1, got {growth}")


def _depth_step(*, bottleneck: bool) -> int:
    """Return the number of convolutions that one more layer in each of the three blocks adds."""
    return 6 if bottleneck else 3


def _norm_relu_conv(in_channels: int, out_channels: int, *, kernel: int, dropout: float) -> list[nn.Module]:
    return [
        nn.BatchNorm2d(in_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False),
        nn.Dropout(dropout),
    ]
