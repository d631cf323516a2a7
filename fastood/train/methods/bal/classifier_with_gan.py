"""A frozen classifier with the GAN that BAL trains on its features."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastood.detectors.bal import BoundarySettings
from fastood.detectors.bal.build import build_gan
from fastood.models import Classifier


class BoundaryAwareNetwork(nn.Module):
    """A frozen classifier, and the GAN that BAL trains on its features.

    A call returns the classifier's output; its parameters take no gradient.

    Args:
        classifier: Trained classifier; its parameters are frozen.
        num_classes: Number K of its logits.
        settings: Shape of the GAN.
        generator: RNG of the GAN's initial weights; None uses PyTorch's global one.
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
        # Registered last, so that a search for the model's last linear layer finds the classifier's head.
        self.classifier = classifier.requires_grad_(False)

    @property
    def head(self) -> nn.Module:
        """Last layer of the classifier."""
        return self.classifier.head

    def features(self, images: Tensor) -> Tensor:
        """Return the penultimate features `[N, d]` of the classifier."""
        return self.classifier.features(images)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits `[N, K]` of the classifier."""
        logits: Tensor = self.classifier(images)
        return logits

    def forward_outputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits and features of the classifier, from one forward pass."""
        return self.classifier.forward_outputs(images)
