"""Construction of the GAN from its settings."""

from __future__ import annotations

import torch

from fastood.detectors.bal.gan import ConditionalDiscriminator, ConditionalGenerator
from fastood.detectors.bal.settings import BoundarySettings

__all__ = ["build_discriminator", "build_gan"]


def build_discriminator(
    num_features: int, num_classes: int, settings: BoundarySettings, *, generator: torch.Generator | None = None
) -> ConditionalDiscriminator:
    """Build and initialise the discriminator."""
    return ConditionalDiscriminator(
        num_features,
        num_classes,
        hidden=settings.hidden,
        embedding=settings.embedding,
        conditioning=settings.conditioning,
        generator=generator,
    )


def build_gan(
    num_features: int, num_classes: int, settings: BoundarySettings, *, generator: torch.Generator | None = None
) -> tuple[ConditionalDiscriminator, ConditionalGenerator]:
    """Build and initialise the discriminator and the generator network."""
    discriminator = build_discriminator(num_features, num_classes, settings, generator=generator)
    generator_network = ConditionalGenerator(
        num_features, num_classes, noise_dim=settings.noise_dim, hidden=settings.hidden, generator=generator
    )
    return discriminator, generator_network
