"""BAL as a detector on any frozen model (Pei et al. 2022, https://arxiv.org/abs/2112.11648)."""

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
    """Boundary aware learning, `-log(p₁ p₂)`: softmax confidence times the output of a discriminator of features.

    `fit` trains a conditional GAN on features of the training images (Pei et al. 2022); scores use its discriminator.

    The model runs in evaluation mode without gradients; its weights and statistics do not change. Training features are
    kept in memory as float32 during the fit only.

    Args:
        model: The network, or a function from inputs to features; None for `fit_features` and `predict_features` only.
        feature_layer: Name of the layer whose output is the features; None for the input of the head.
        head: The `nn.Linear` from features to logits; None for the last one of `model`. Its K logits are the classes of
            the discriminator. With K = 1 the softmax is constant (p₁ = 1) and no label can be mismatched: the
            discriminator alone determines the score.
        boundary: Settings of the GAN, or a mapping of the fields of `BoundarySettings` that differ from its defaults.
        seed: Seed of initial weights and draws; every fit to the same data gives the same result.

    Raises:
        TypeError: If `HeadDetector` raises it.
        ValueError: If `HeadDetector` raises it, or a setting is out of range.

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
        chosen = boundary if isinstance(boundary, BoundarySettings) else BoundarySettings(**(boundary or {}))
        self.boundary = asdict(chosen)
        self.seed = seed

    def _fitted(self, batches: Batches) -> State:
        bank = FeatureBank.collect(batches()).to(self.head.weight.device)
        # `fit` disables gradients for the model; the networks of the GAN need them.
        with torch.enable_grad(), _full_precision(bank.features.device):
            return self._trained(bank)

    def _trained(self, bank: FeatureBank) -> State:
        settings = BoundarySettings(**self.boundary)
        # One generator on the CPU for weights and draws, so that a seed gives the same ones on every device.
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
        # The generator network serves the training only; a score needs the discriminator.
        return discriminator.state_dict()

    def _score(self, rows: Tensor) -> Tensor:
        logits = self._logits(rows)
        with _full_precision(rows.device):
            return boundary_score(logits, self._discriminator()(rows.float(), logits.argmax(1)))

    def _discriminator(self) -> ConditionalDiscriminator:
        settings = BoundarySettings(**self.boundary)
        # Built without memory: all tensors are assigned from the state.
        with torch.device("meta"):
            discriminator = build_discriminator(self.head.in_features, self.head.out_features, settings)
        discriminator.load_state_dict(self._state, assign=True)
        return discriminator


@contextmanager
def _full_precision(device: torch.device) -> Iterator[None]:
    """Compute in float32, regardless of autocast and default dtype, which trainers set for whole test loops."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        torch.set_default_dtype(default)
