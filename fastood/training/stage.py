"""What a method is made of: stages that train, arms that are judged, and a score."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from fastood.losses import MixedBatchLoss
from fastood.models import Classifier
from fastood.samplers import BackgroundPool
from fastood.training.background import Background

NormMode = Literal["eval", "train"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """SGD for one stage, without Nesterov momentum.

    Example:
        >>> schedule = Schedule(epochs=100, learning_rate=0.1, decay_every=30)
        >>> [round(schedule.learning_rate_at(epoch), 6) for epoch in (0, 29, 30, 99)]
        [0.1, 0.1, 0.01, 0.0001]
    """

    epochs: int
    """Passes over the in-distribution training set."""
    learning_rate: float
    """Step size at the start."""
    decay_every: int | None = 30
    """Epochs after which the step size falls by `decay_factor`; None keeps it constant."""
    decay_factor: float = 0.1
    """Factor of each fall."""
    momentum: float = 0.9
    """Share of the last update kept in the next, in [0, 1)."""
    weight_decay: float = 5e-4
    """Pull of every parameter towards 0."""

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {self.epochs}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be finite and above 0, got {self.learning_rate}")
        if self.decay_every is not None and self.decay_every < 1:
            raise ValueError(f"decay_every must be at least 1 epoch, or None, got {self.decay_every}")
        if not 0 < self.decay_factor <= 1:
            raise ValueError(f"decay_factor must be in (0, 1], got {self.decay_factor}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {self.momentum}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be finite and at least 0, got {self.weight_decay}")

    def learning_rate_at(self, epoch: int) -> float:
        """Step size of an epoch, counted from 0."""
        falls = 0 if self.decay_every is None else epoch // self.decay_every
        return self.learning_rate * self.decay_factor**falls

    def optimizer(self, model: torch.nn.Module) -> torch.optim.SGD:
        """SGD over all parameters of a network."""
        return torch.optim.SGD(
            model.parameters(),
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One call of the training loop: weights to begin with, data, loss and schedule."""

    name: str
    """Name in checkpoints, progress bars and TensorBoard."""
    draws: str
    """Name of the random draws; stages that share it see the same in-distribution batches."""
    schedule: Schedule
    """Length and optimiser."""
    loss: MixedBatchLoss
    """Loss of logits, labels and importance; gives per-sample losses too."""
    batch_size: int
    """In-distribution images in a batch."""
    start_from: str | None = None
    """Earlier stage whose final weights this one begins with; None begins with fresh ones."""
    background: Callable[[], Background] | None = None
    """Makes the source of background images when the stage begins; None trains on in-distribution alone."""
    batch_norm: NormMode = "train"
    """Whether BatchNorm learns its statistics ("train") or keeps and uses them ("eval")."""
    dropout: bool = True
    """Whether dropout is active."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One row of the results: the network at the end of a stage."""

    name: str
    """Name in files."""
    label: str
    """Name in tables and figures."""
    stage: str
    """Stage whose final weights are judged."""


class Method(Protocol):
    """A way of training and scoring; the loop, the checkpoints and the evaluation are the same for all."""

    name: str
    """Name in metrics.json."""
    stages: tuple[Stage, ...]
    """In the order in which they run."""
    arms: tuple[Arm, ...]
    """In table order."""
    pool: BackgroundPool
    """Background weights, final once every stage has run."""
    pool_arm: str
    """Arm that trains on what the pool selects."""

    @property
    def effective_sample_sizes(self) -> Tensor:
        """Of the pool after each step that moved it, float64 `[T]`; empty before the first."""
        ...

    def build_model(self) -> Classifier:
        """A network with the initial weights, the same at each call."""
        ...

    def score(self, logits: Tensor) -> Tensor:
        """Detection scores `[N]` of logits `[N, K]`; higher means more out-of-distribution."""
        ...

    def background_index(self, arm: str) -> Tensor:
        """Background images that an arm trains on, int64 `[n]`; the same at each call after the stages."""
        ...
