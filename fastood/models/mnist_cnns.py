"""Two common small CNNs for MNIST: two 5×5 convolutions, each pooled by 2, then linear layers."""

import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d

from fastood.models.classifier import Classifier, layers_drawn_from

__all__ = ["LeNet5", "OutlierExposureCNN"]


class LeNet5(Classifier):
    """LeNet-5 (LeCun et al. 1998) with ReLU and max-pooling, as usual today: 6, 16 channels, 120, 84 units.

    The first convolution pads by 2, so that images of 28 pixels correspond to the paper's 32.

    Args:
        num_classes: Number of classes K, at least 2.
        in_channels: Image channels C.
        image_size: Height and width of the images, at least 12 pixels.
        dropout: Probability of dropping a feature before the head, in [0, 1).
        generator: Source of the initial weights, which follow PyTorch's defaults, on the CPU; None for PyTorch's global
            generator.

    Example:
        >>> import torch
        >>> model = LeNet5(num_classes=10, in_channels=1, image_size=28)
        >>> model.features(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 84])
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        image_size: int,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        with layers_drawn_from(generator):
            super().__init__(84, num_classes)
            self.body = nn.Sequential(
                nn.Conv2d(in_channels, 6, 5, padding=2),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2),
                nn.Conv2d(6, 16, 5),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2),
                nn.Flatten(),
                nn.Linear(16 * ((image_size // 2 - 4) // 2) ** 2, 120),
                nn.ReLU(inplace=True),
                nn.Linear(120, 84),
                nn.ReLU(inplace=True),
                nn.Dropout(dropout),
            )

    def features(self, images: Tensor) -> Tensor:
        """Return the activations of the second linear layer, `[N, 84]`, after dropout."""
        features: Tensor = self.body(images)
        return features


class OutlierExposureCNN(Classifier):
    """MNIST network from the code of Hendrycks et al. 2019: 10 and 20 channels, 50 units.

    Outlier exposure, https://arxiv.org/abs/1812.04606. The authors drop channels of the second convolution with
    probability 0.5, and approximate GELU by x · sigmoid(1.702 x).

    Args:
        num_classes: Number of classes K, at least 2.
        in_channels: Image channels C.
        image_size: Height and width of the images, at least 16 pixels.
        dropout: Probability of dropping a channel of the second convolution, in [0, 1).
        generator: Source of the initial weights, which follow PyTorch's defaults, on the CPU; None for PyTorch's global
            generator.

    Example:
        >>> import torch
        >>> model = OutlierExposureCNN(num_classes=10, in_channels=1, image_size=28, dropout=0.5)
        >>> model.features(torch.zeros(2, 1, 28, 28)).shape
        torch.Size([2, 50])
    """

    def __init__(
        self,
        *,
        num_classes: int,
        in_channels: int,
        image_size: int,
        dropout: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        with layers_drawn_from(generator):
            super().__init__(50, num_classes)
            self.conv1 = nn.Conv2d(in_channels, 10, 5)
            self.conv2 = nn.Conv2d(10, 20, 5)
            self.dropout = nn.Dropout2d(dropout)
            self.linear = nn.Linear(20 * (((image_size - 4) // 2 - 4) // 2) ** 2, 50)

    def features(self, images: Tensor) -> Tensor:
        """Return the activations of the linear layer, `[N, 50]`."""
        x = _sigmoid_gelu(max_pool2d(self.conv1(images), 2))
        x = _sigmoid_gelu(max_pool2d(self.dropout(self.conv2(x)), 2))
        return _sigmoid_gelu(self.linear(x.flatten(1)))


def _sigmoid_gelu(x: Tensor) -> Tensor:
    return x * torch.sigmoid(1.702 * x)
