"""A frozen classifier with the GAN that BAL trains on its features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastood.detectors.bal import BoundarySettings
from fastood.detectors.bal.build import build_gan
from fastood.models import Classifier


class BoundaryAwareNetwork(nn.Module):
    """A classifier as it was, and beside it what BAL trains on its features.

    Calls give what the classifier gives; its parameters take no gradient.

    Args:
        classifier: Frozen.
        num_classes: K of its logits.
        settings: Shape of the GAN.
        generator: Source of the GAN's initial weights; None takes PyTorch's global one.
    """

    def __init__(
        self,
        classifier: Classifier,
        num_classes: int,
        settings: BoundarySettings,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        width = classifier.feature_dim
        self.discriminator, self.generator = build_gan(width, num_classes, settings, generator=generator)
        # Last, so that whoever looks for a model's last linear layer finds its head.
        self.classifier = classifier.requires_grad_(False)

    @property
    def head(self) -> nn.Module:
        """The classifier's last layer."""
        return self.classifier.head

    def features(self, images: Tensor) -> Tensor:
        """Penultimate features `[N, d]` of the classifier."""
        return self.classifier.features(images)

    def forward(self, images: Tensor) -> Tensor:
        """Logits `[N, K]` of the classifier."""
        logits: Tensor = self.classifier(images)
        return logits

    def forward_outputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and features of the classifier, in one pass."""
        return self.classifier.forward_outputs(images)
