"""Networks by name."""

import re
from dataclasses import dataclass

import torch

from fastood.models.classifier import Classifier
from fastood.models.small_cnn import SmallCNN
from fastood.models.wide_resnet import WideResNet, check_shape

MODEL_NAMES = ("small-cnn", "wrn-16-2", "wrn-16-4", "wrn-28-10", "wrn-40-2", "wrn-40-4")
"""Names that `build_model` takes; any other `wrn-DEPTH-WIDEN` works too."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The network."""

    name: str = "wrn-40-4"
    """small-cnn, wrn-40-4 or any wrn-DEPTH-WIDEN. Li & Vasconcelos 2020 train WRN-40-4 with dropout 0.3."""
    dropout: float = 0.3
    """Probability of dropping an activation, in [0, 1)."""

    def __post_init__(self) -> None:
        if self.name != "small-cnn":
            try:
                _wide_shape(self.name)
            except ValueError as error:
                raise ValueError(f"model.name: {error}") from None
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout must be in [0, 1), got {self.dropout}")


_MIN_IMAGE_SIZE = 8  # both families halve the image twice before averaging over it


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
        name: One of `MODEL_NAMES`, or `wrn-DEPTH-WIDEN`.
        num_classes: Number of classes K, at least 2.
        in_channels: Image channels C, at least 1.
        image_size: Height and width of the images, at least 8 pixels.
        dropout: Dropout probability, in [0, 1).
        generator: Source of the initial weights; None takes PyTorch's global one.

    Returns:
        A network with `features(images)` and `head`.

    Raises:
        ValueError: If an argument is out of range, or no network has this name.

    Example:
        >>> build_model("wrn-40-4", num_classes=10, in_channels=3, image_size=32, dropout=0.3).feature_dim
        256
    """
    if in_channels < 1:
        raise ValueError(f"in_channels must be at least 1, got {in_channels}")
    if image_size < _MIN_IMAGE_SIZE:
        raise ValueError(f"image_size must be at least {_MIN_IMAGE_SIZE} pixels, got {image_size}")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}")
    # PyTorch's layers draw weights of their own when made, from the global generator.
    with torch.random.fork_rng(devices=[], enabled=generator is not None):
        return _build(name, num_classes, in_channels, dropout, generator)


def _build(
    name: str, num_classes: int, in_channels: int, dropout: float, generator: torch.Generator | None
) -> Classifier:
    if name == "small-cnn":
        return SmallCNN(num_classes=num_classes, in_channels=in_channels, dropout=dropout, generator=generator)
    depth, widen = _wide_shape(name)
    return WideResNet(
        depth,
        widen,
        num_classes=num_classes,
        in_channels=in_channels,
        dropout=dropout,
        generator=generator,
    )


def _wide_shape(name: str) -> tuple[int, int]:
    """Depth and width of a `wrn-DEPTH-WIDEN`."""
    wide = re.fullmatch(r"wrn-(\d+)-(\d+)", name)
    if wide is None:
        raise ValueError(f"no model is named {name!r}; known: {', '.join(MODEL_NAMES)}, or any wrn-DEPTH-WIDEN")
    depth, widen = int(wide[1]), int(wide[2])
    check_shape(depth, widen)
    return depth, widen
