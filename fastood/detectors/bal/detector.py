"""BAL as a detector on a frozen model of anybody's (Pei et al. 2022)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from fastood.detectors.bal.build import build_discriminator, build_gan
from fastood.detectors.bal.feature_bank import FeatureBank
from fastood.detectors.bal.gan import ConditionalDiscriminator
from fastood.detectors.bal.score import boundary_score
from fastood.detectors.bal.settings import BoundarySettings
from fastood.detectors.bal.trainer import BoundaryTraining
from fastood.detectors.head_detector import HeadDetector
from fastood.detectors.model_calls import Model
from fastood.detectors.row_detector import Batches, State

__all__ = ["BoundaryAwareDetector"]


class BoundaryAwareDetector(HeadDetector):
    """`-log(p₁ p₂)`: softmax confidence times the discriminator of a GAN that fitting trains on features.

    The model is only read: it runs in evaluation mode, without gradient, and no weight or statistic of it moves.
    Features of the training images are kept in memory while fitting, as float32, and let go afterwards.

    Args:
        model: As `HeadDetector` takes it, with `feature_layer` and `head`.
        feature_layer: See there.
        head: See there; its K logits are the classes of the discriminator. With K = 1 there is no softmax to speak of
            (p₁ = 1), and no label to mismatch: the discriminator decides alone.
        boundary: Settings of the GAN; a mapping has the fields of `BoundarySettings` that differ from its defaults.
        seed: Of initial weights and draws; a fit is the same at each call.

    Raises:
        TypeError: As `HeadDetector` does.
        ValueError: As `HeadDetector` does, or a setting is out of range.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> head = nn.Linear(2, 2, bias=False)
        >>> _ = head.weight.data.copy_(torch.eye(2))
        >>> labels = torch.arange(256) % 2
        >>> features = 8 * nn.functional.one_hot(labels).float()
        >>> features += torch.randn(256, 2, generator=torch.Generator().manual_seed(0))
        >>> detector = BoundaryAwareDetector(head=head, boundary={"steps": 60, "hidden": 32, "learning_rate": 1e-3})
        >>> inside, outside = detector.fit_features(features, labels).predict_features(
        ...     torch.tensor([[8.0, 0.0], [4.0, 7.0]])
        ... )
        >>> bool(inside < outside)
        True
    """

    needs_fit = True
    settings = ("boundary", "seed")

    def __init__(
        self,
        model: Model | None = None,
        feature_layer: str | None = None,
        *,
        head: nn.Linear | None = None,
        boundary: BoundarySettings | Mapping[str, Any] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(model, feature_layer, head=head)
        made = boundary if isinstance(boundary, BoundarySettings) else BoundarySettings(**(boundary or {}))
        self.boundary = asdict(made)
        self.seed = seed

    def _fitted(self, batches: Batches) -> State:
        bank = FeatureBank.collect(batches()).to(self.head.weight.device)
        with torch.enable_grad(), _full_precision(bank.features.device):
            return self._trained(bank)

    def _trained(self, bank: FeatureBank) -> State:
        settings = BoundarySettings(**self.boundary)
        rng = torch.Generator().manual_seed(self.seed)
        discriminator, generator_network = build_gan(
            self.head.in_features, self.head.out_features, settings, generator=rng
        )
        training = BoundaryTraining(
            bank,
            discriminator=discriminator.to(bank.features.device),
            generator_network=generator_network.to(bank.features.device),
            settings=settings,
            generator=rng,
        )
        while training.steps < training.total_steps:
            training.step()
        return discriminator.state_dict()

    def _score(self, rows: Tensor) -> Tensor:
        logits = self._logits(rows)
        with _full_precision(rows.device):
            return boundary_score(logits, self._discriminator()(rows.float(), logits.argmax(1)))

    def _discriminator(self) -> ConditionalDiscriminator:
        settings = BoundarySettings(**self.boundary)
        with torch.device("meta"):
            made = build_discriminator(self.head.in_features, self.head.out_features, settings)
        made.load_state_dict(self._state, assign=True)
        return made


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Compute in float32, whatever autocast or the default dtype say, which trainers set for a whole test loop."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_default_dtype(default)
