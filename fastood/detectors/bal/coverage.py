"""Coverage of the training features by the generator network, which shows mode collapse."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastood.detectors.bal.feature_bank import FeatureBank
from fastood.detectors.bal.gan import ConditionalGenerator

__all__ = ["GeneratorCoverage", "generator_coverage"]


@dataclass(frozen=True, kw_only=True)
class GeneratorCoverage:
    """Coverage and spread of generated features, means over the classes; about 1 for features like the bank's."""

    coverage: float
    """Fraction of training features with a generated feature within the distance to their k-th nearest training feature
    of the class, in [0, 1] (Naeem et al. 2020, eq. 6)."""
    spread: float
    """Mean distance between two generated features, divided by the mean distance between two training features; near 0
    if the output no longer depends on the noise."""


@torch.no_grad()
def generator_coverage(
    generator_network: ConditionalGenerator,
    bank: FeatureBank,
    *,
    generator: torch.Generator,
    per_class: int = 500,
    nearest: int = 5,
) -> GeneratorCoverage:
    """Compare equal numbers of generated and training features of each class, by L1 distance of standardised features.

    Args:
        generator_network: G, of the bank's classes.
        bank: Training features.
        generator: RNG of the noise and of the choice of training features, on the CPU.
        per_class: Largest number of features of a class; classes with fewer than two features are left out.
        nearest: k, at least 1; reduced to one less than the features of a class.

    Raises:
        ValueError: If no class has two features.

    Example:
        >>> import torch
        >>> g = torch.Generator().manual_seed(0)
        >>> bank = FeatureBank(torch.randn(100, 3, generator=g), torch.zeros(100, dtype=torch.int64))
        >>> reached = generator_coverage(ConditionalGenerator(3, 1, generator=g), bank, generator=g)
        >>> 0 <= reached.coverage <= 1, reached.spread > 0
        (True, True)
    """
    covered, spreads = [], []
    with torch.autocast(bank.features.device.type, enabled=False):
        for label in bank.classes.tolist():
            rows = (bank.labels == label).nonzero().flatten()
            rows = rows[torch.randperm(len(rows), generator=generator)[:per_class].to(rows.device)]
            if len(rows) < 2:
                continue
            # Drawn on the CPU, so that the result does not depend on the device.
            noise = torch.randn(len(rows), generator_network.noise_dim, generator=generator).to(rows.device)
            real = bank.standardized(bank.features[rows])
            generated = bank.standardized(generator_network(noise, torch.full_like(rows, label)))
            among = torch.cdist(real, real, p=1)
            # The first of the sorted distances is 0, the distance of a feature to itself; the k-th nearest is at index
            # k.
            radius = among.sort(dim=1).values[:, min(nearest, len(rows) - 1)]
            covered.append((torch.cdist(real, generated, p=1).amin(1) <= radius).double().mean())
            # The zeros of the diagonal are in the sum and not in the count: a mean over pairs of different features.
            spreads.append(_mean_distance(generated) / among.sum().div(len(rows) * (len(rows) - 1)).clamp_min(1e-12))
    if not covered:
        raise ValueError("bank must have a class with at least two features, got none")
    return GeneratorCoverage(coverage=float(torch.stack(covered).mean()), spread=float(torch.stack(spreads).mean()))


def _mean_distance(rows: Tensor) -> Tensor:
    return torch.cdist(rows, rows, p=1).sum() / (len(rows) * (len(rows) - 1))
