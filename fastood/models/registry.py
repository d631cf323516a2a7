"""Networks by name: table of model families, configuration and construction."""

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch

from fastood.models.classifier import Classifier
from fastood.models.densenet import DenseNet, check_dense_shape
from fastood.models.mnist_cnns import LeNet5, OutlierExposureCNN
from fastood.models.resnet import ResNet, check_depth
from fastood.models.small_cnn import SmallCNN
from fastood.models.torchvision_classifier import TorchvisionClassifier, check_torchvision_name
from fastood.models.wide_resnet import WideResNet, check_shape

__all__ = ["MODEL_FAMILIES", "MODEL_NAMES", "ModelConfig", "ModelFamily", "build_model"]


@dataclass(frozen=True, kw_only=True)
class ModelFamily:
    """Networks with names that differ in a few parts, such as the depth."""

    name: str
    """Name for users; words in capitals are placeholders for the parts."""
    example: str
    """Name of one network of the family."""
    what: str
    """Description, one line."""
    build: Callable[..., Classifier]
    """Function that builds a network from the parts of its name and the keywords of `build_model`."""
    check: Callable[..., None] | None = None
    """Function that raises ValueError for parts of a name that no network has; None for no check."""
    min_image_size: int = 8
    """Least height and width of the images, in pixels."""
    in_channels: int | None = None
    """Required number of image channels; None for any."""
    dropout: float = 0.0
    """Default probability of dropping an activation."""

    def parts(self, name: str) -> tuple[int | str, ...] | None:
        """Return the parts of the name of a network of the family; None for any other name.

        Example:
            >>> wide = ModelFamily(name="wrn-DEPTH-WIDEN", example="wrn-40-4", what="", build=WideResNet)
            >>> wide.parts("wrn-40-4"), wide.parts("wrn-40")
            ((40, 4), None)
        """
        pattern = re.sub("DEPTH|WIDEN|GROWTH", r"(\\d+)", self.name).replace("NAME", "(.*)")
        match = re.fullmatch(pattern, name, re.ASCII)
        return None if match is None else tuple(map(str if "NAME" in self.name else int, match.groups()))


MODEL_FAMILIES = (
    ModelFamily(
        name="small-cnn",
        example="small-cnn",
        what="three batch-normalised convolutions: minutes of training on two CPU cores",
        build=lambda *, image_size, **options: SmallCNN(**options),
    ),
    ModelFamily(
        name="lenet-5",
        example="lenet-5",
        what="LeCun et al. 1998, with ReLU and max-pooling, for MNIST",
        min_image_size=12,
        build=LeNet5,
    ),
    ModelFamily(
        name="oe-cnn",
        example="oe-cnn",
        what="two convolutions, from the code of Hendrycks et al. 2019 for MNIST",
        min_image_size=16,
        dropout=0.5,
        build=OutlierExposureCNN,
    ),
    ModelFamily(
        name="wrn-DEPTH-WIDEN",
        example="wrn-40-4",
        what="wide residual networks (Zagoruyko & Komodakis 2016)",
        check=check_shape,
        dropout=0.3,
        build=lambda depth, widen, *, image_size, **options: WideResNet(depth, widen, **options),
    ),
    ModelFamily(
        name="resnet-DEPTH",
        example="resnet-18",
        what="residual networks (He et al. 2016), 18 or 34 deep, with the 3×3 stem for CIFAR",
        check=check_depth,
        build=lambda depth, *, image_size, **options: ResNet(depth, **options),
    ),
    ModelFamily(
        name="resnet-DEPTH-imagenet-stem",
        example="resnet-18-imagenet-stem",
        what="residual networks with ImageNet's stem, which leaves a sixteenth of the pixels",
        check=check_depth,
        min_image_size=17,  # the stem and the groups halve it five times
        build=lambda depth, *, image_size, **options: ResNet(depth, imagenet_stem=True, **options),
    ),
    ModelFamily(
        name="densenet-DEPTH-GROWTH",
        example="densenet-40-12",
        what="densely connected networks (Huang et al. 2017)",
        check=lambda depth, growth: check_dense_shape(depth, growth, bottleneck=False),
        build=lambda depth, growth, *, image_size, **options: DenseNet(depth, growth, bottleneck=False, **options),
    ),
    ModelFamily(
        name="densenet-bc-DEPTH-GROWTH",
        example="densenet-bc-100-12",
        what="densely connected networks with bottlenecks and compression",
        check=lambda depth, growth: check_dense_shape(depth, growth, bottleneck=True),
        build=lambda depth, growth, *, image_size, **options: DenseNet(depth, growth, bottleneck=True, **options),
    ),
    ModelFamily(
        name="torchvision:NAME",
        example="torchvision:resnet50",
        what="a classification network of torchvision, untrained, for large colour images",
        check=check_torchvision_name,
        min_image_size=1,  # TorchvisionClassifier checks the size for each network
        in_channels=3,
        build=lambda name, *, in_channels, **options: TorchvisionClassifier(name, **options),
    ),
)
"""Families of all networks that `build_model` builds."""

MODEL_NAMES = tuple(family.name for family in MODEL_FAMILIES)
"""Names that `build_model` accepts; words in capitals are placeholders for numbers or a torchvision name."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network."""

    name: str = "wrn-40-4"
    """For small images, of any number of channels:
    small-cnn (three convolutions, minutes of training on two CPU cores);
    lenet-5, oe-cnn (for MNIST; the second is that of Hendrycks et al. 2019);
    wrn-DEPTH-WIDEN, such as wrn-40-4 (wide residual networks; depth 6n + 4);
    resnet-DEPTH (18 or 34, with the 3×3 stem for CIFAR);
    resnet-DEPTH-imagenet-stem (with ImageNet's: blocks see a sixteenth of the pixels, several times faster);
    densenet-DEPTH-GROWTH, such as densenet-40-12 (depth 3n + 4);
    densenet-bc-DEPTH-GROWTH, such as densenet-bc-100-12 (depth 6n + 4).
    For large colour images: torchvision:NAME, such as torchvision:resnet50 (untrained).
    Li & Vasconcelos 2020 train wrn-40-4 with dropout 0.3."""
    dropout: float | None = None
    """Probability of dropping an activation in training, in [0, 1): inside the blocks of wrn-* and densenet-*; of a
    whole channel in oe-cnn; of a feature before the head in the others.
    By default 0.3 for wrn-*, 0.5 for oe-cnn (as its authors) and 0 for the others."""

    def __post_init__(self) -> None:
        try:
            _find(self.name)
        except ValueError as error:
            raise ValueError(f"model.name: {error}") from None
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout must be in [0, 1), got {self.dropout}")

    @property
    def dropout_rate(self) -> float:
        """Probability of dropping an activation, by default that of the family.

        Example:
            >>> ModelConfig().dropout_rate, ModelConfig(name="resnet-18").dropout_rate
            (0.3, 0.0)
        """
        return _find(self.name)[0].dropout if self.dropout is None else self.dropout


def build_model(
    name: str,
    *,
    num_classes: int,
    in_channels: int,
    image_size: int,
    dropout: float = 0.0,
    generator: torch.Generator | None = None,
) -> Classifier:
    """Build a freshly initialised network.

    Args:
        name: One of `MODEL_NAMES`, with numbers instead of the words in capitals; `MODEL_FAMILIES` describes them.
        num_classes: Number of classes K, at least 2.
        in_channels: Image channels C, at least 1; 3 for torchvision networks.
        image_size: Height and width of the images, at least the `min_image_size` of the family.
        dropout: Dropout probability, in [0, 1).
        generator: Source of the initial weights, on the CPU; None for PyTorch's global generator.

    Returns:
        A network with `features(images)` and `head`.

    Raises:
        ValueError: If an argument is out of range, or no network has this name.

    Example:
        >>> build_model("wrn-40-4", num_classes=10, in_channels=3, image_size=32, dropout=0.3).feature_dim
        256
    """
    family, parts = _find(name)
    if in_channels < 1:
        raise ValueError(f"in_channels must be at least 1, got {in_channels}")
    if family.in_channels is not None and in_channels != family.in_channels:
        raise ValueError(f"in_channels must be {family.in_channels} for {name}, got {in_channels}")
    if image_size < family.min_image_size:
        raise ValueError(f"image_size must be at least {family.min_image_size} pixels for {name}, got {image_size}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")
    # Layers draw initial weights from the global generator in their constructors: keep its state.
    with torch.random.fork_rng(devices=[], enabled=generator is not None):
        return family.build(
            *parts,
            num_classes=num_classes,
            in_channels=in_channels,
            image_size=image_size,
            dropout=dropout,
            generator=generator,
        )


def _find(name: str) -> tuple[ModelFamily, tuple[int | str, ...]]:
    """Return the family of a network and the parts of its name.

    Raises:
        ValueError: If no network has this name.
    """
    for family in MODEL_FAMILIES:
        parts = family.parts(name)
        if parts is not None:
            if family.check is not None:
                family.check(*parts)
            return family, parts
    raise ValueError(f"no model is named {name!r}; known: {', '.join(MODEL_NAMES)}")
