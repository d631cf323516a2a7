"""Training of discriminator and generator of BAL: algorithm 1 of Pei et al. 2022 (https://arxiv.org/abs/2112.11648)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fastood.detectors.bal.feature_bank import FeatureBank
from fastood.detectors.bal.gan import ConditionalDiscriminator, ConditionalGenerator
from fastood.detectors.bal.losses import generator_loss, mode_seeking_loss, negative_loss, positive_loss
from fastood.detectors.bal.negatives import LowDensityGaussian, hard_features, mismatched_labels, uniform_in_box
from fastood.detectors.bal.settings import BoundarySettings
from fastood.ops.class_l1_nearest import ClassL1Index

__all__ = ["BoundaryLosses", "BoundaryTraining"]

_BETAS = (0.5, 0.999)


@dataclass(frozen=True, kw_only=True)
class BoundaryLosses:
    """Losses of one training step."""

    discriminator: float
    """Loss of the discriminator, `L_d` of equation 11."""
    generator: float
    """Loss of the generator, `L_g` of equation 12, with its regulariser."""
    nearest: float
    """Mean L1 distance of the generated features to the nearest of their class."""


class BoundaryTraining:
    """Training of both networks on a feature bank, step by step.

    Args:
        bank: Features of the training images, on the device of the networks.
        discriminator: D, with the bank's width and the classifier's number of classes; trained in place, with a frame
            fitted to the bank.
        generator_network: G, with the width and the number of classes of the discriminator; trained in place, with the
            discriminator's frame.
        settings: Hyper-parameters.
        generator: RNG of all draws, on the CPU; the training advances it.

    Attributes:
        steps: Number of steps done.
        total_steps: Number of steps of the whole training.

    Raises:
        ValueError: If a label of the bank is not among the discriminator's classes, or `LowDensityGaussian` raises it.
    """

    def __init__(
        self,
        bank: FeatureBank,
        *,
        discriminator: ConditionalDiscriminator,
        generator_network: ConditionalGenerator,
        settings: BoundarySettings,
        generator: torch.Generator,
    ) -> None:
        if int(bank.classes[-1]) >= discriminator.num_classes:
            raise ValueError(
                f"labels must be below the {discriminator.num_classes} classes of the discriminator, "
                f"got {int(bank.classes[-1])}"
            )
        self.bank, self.settings, self.generator = bank, settings, generator
        self.discriminator, self.generator_network = discriminator, generator_network
        discriminator.frame.fit(bank, settings.axes)
        # One frame for both networks: D reads generated features in the coordinates in which G produced them.
        generator_network.frame.load_state_dict(discriminator.frame.state_dict())
        self._gaussian: LowDensityGaussian | None = None
        if settings.uniform and settings.sampling == "gaussian":
            self._gaussian = LowDensityGaussian(bank.statistics)
        # Keys are sorted by class once, because the bank is constant.
        self._nearest = ClassL1Index(bank.features, bank.labels)
        self._of_discriminator = torch.optim.Adam(discriminator.parameters(), lr=settings.learning_rate, betas=_BETAS)
        self._of_generator = torch.optim.Adam(generator_network.parameters(), lr=settings.learning_rate, betas=_BETAS)
        self.steps = 0
        self.batch_size = min(settings.batch_size, len(bank))
        self.total_steps = settings.steps

    def step(self) -> BoundaryLosses:
        """Train on one batch: update the discriminator, then the generator.

        Raises:
            FloatingPointError: If a loss is NaN or infinite. If it is the discriminator's loss, neither network has
                been updated; if it is the generator's, only the discriminator has.
        """
        index = torch.randint(len(self.bank), (self.batch_size,), generator=self.generator).to(self.bank.labels.device)
        of_discriminator = self.discriminator_loss(self.bank.features[index], self.bank.labels[index])
        value = self._update(self._of_discriminator, of_discriminator, "the discriminator's loss")
        of_generator, nearest = self.generator_loss()
        of_generator_value = self._update(self._of_generator, of_generator, "the generator's loss")
        self.steps += 1
        return BoundaryLosses(discriminator=value, generator=of_generator_value, nearest=float(nearest))

    def discriminator_loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Compute `L_d = L_t + L_s + L_u` of a batch (equations 8 to 11), with the terms that the settings enable."""
        settings, discriminate = self.settings, self.discriminator
        count = len(features)
        # The generator is a constant for this loss.
        with torch.no_grad():
            noise, fake_labels = self._noise(count)
            fake = self.generator_network(noise, fake_labels)
        positive = positive_loss(discriminate(features, labels))
        # Each of L_t, L_s and L_u has its own positive term, which is computed once and added for each.
        loss = positive + negative_loss(discriminate(fake, fake_labels))
        if settings.shuffle and discriminate.num_classes > 1:
            loss = loss + positive + self._negative(discriminate(features, self._mismatched(labels)))
        if settings.uniform:
            trivial, of_trivial = self.trivial_features(features, count)
            hard, of_hard = self.hard_features(count)
            loss = loss + positive
            loss = loss + settings.uniform_weight * self._negative(discriminate(trivial, of_trivial))
            loss = loss + settings.hard_weight * self._negative(discriminate(hard, of_hard))
        return loss

    def generator_loss(self) -> tuple[Tensor, Tensor]:
        """Compute `L_g` of a batch (equation 12) with the mode-seeking term, and the mean nearest distance."""
        settings, frame = self.settings, self.generator_network.frame
        noise, labels = self._noise(self.batch_size)
        generated = self.generator_network(noise, labels)
        nearest = self._nearest.nearest(generated, labels)[0].mean()
        loss = generator_loss(self.discriminator(generated, labels), form=settings.generator_form)
        loss = loss + settings.nearest_weight * nearest
        if settings.mode_seeking_weight > 0:
            other = self._random(*noise.shape)
            coordinates = (frame.enter(generated), frame.enter(self.generator_network(other, labels)))
            loss = loss + settings.mode_seeking_weight * mode_seeking_loss((noise, other), coordinates)
        return loss, nearest.detach()

    def trivial_features(self, features: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Draw trivial features of REM from the box of a batch `[N, d]` or from the Gaussians, with random labels."""
        if self._gaussian is not None:
            labels = self._random_labels(count)
            return self._gaussian.sample(labels, generator=self.generator), labels
        # Of all classes, not only those with features: a trivial feature is a negative under any label.
        labels = torch.randint(self.discriminator.num_classes, (count,), generator=self.generator).to(features.device)
        frame = self.discriminator.frame
        box = uniform_in_box(frame.enter(features), count, generator=self.generator)
        return frame.leave(box), labels

    def hard_features(self, count: int) -> tuple[Tensor, Tensor]:
        """Generate hard features of RSM, moved towards lower D; return them with their labels."""
        noise, labels = self._noise(count)
        # The paper's Gaussian ε is negative in half of the cases, which would raise D; its absolute value is taken.
        epsilon = self._random(count, 1).abs() * self.settings.epsilon
        return hard_features(self.discriminator, self.generator_network, noise, labels, epsilon), labels

    def state_dict(self) -> dict[str, Any]:
        """Return the state from which training resumes exactly, without the weights of the networks."""
        return {
            "steps": self.steps,
            "draws": self.generator.get_state(),
            "of_discriminator": self._of_discriminator.state_dict(),
            "of_generator": self._of_generator.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a `state_dict`; the caller restores bank and network weights of the same step."""
        self.steps = state["steps"]
        self.generator.set_state(state["draws"])
        self._of_discriminator.load_state_dict(state["of_discriminator"])
        self._of_generator.load_state_dict(state["of_generator"])

    def _update(self, optimizer: torch.optim.Optimizer, loss: Tensor, name: str) -> float:
        # Read before the backward pass, so that no parameter becomes NaN; the error leaves the networks usable.
        value = float(loss.detach())
        if not math.isfinite(value):
            raise FloatingPointError(f"{name} is {value}")
        optimizer.zero_grad()
        # The generator's loss also leaves gradients in the discriminator, which its next step clears here.
        torch.autograd.backward(loss)
        optimizer.step()
        return value

    def _negative(self, logits: Tensor) -> Tensor:
        return negative_loss(logits, form=self.settings.negative_form, floor=self.settings.floor)

    def _mismatched(self, labels: Tensor) -> Tensor:
        mismatched = mismatched_labels(labels.cpu(), self.discriminator.num_classes, generator=self.generator)
        return mismatched.to(labels.device)

    def _noise(self, count: int) -> tuple[Tensor, Tensor]:
        return self._random(count, self.generator_network.noise_dim), self._random_labels(count)

    def _random(self, *size: int) -> Tensor:
        return torch.randn(*size, generator=self.generator).to(self.bank.features.device)

    def _random_labels(self, count: int) -> Tensor:
        """Draw labels of the classes that have features; the generator cannot learn others."""
        chosen = torch.randint(len(self.bank.classes), (count,), generator=self.generator)
        labels: Tensor = self.bank.classes[chosen.to(self.bank.classes.device)]
        return labels
