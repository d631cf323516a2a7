"""What a method is made of: stages that train, and arms that are judged by a score."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor

from fastood.losses import MixedBatchLoss
from fastood.models import Classifier
from fastood.samplers import BackgroundPool
from fastood.training.background import Background

NormMode = Literal["eval", "train"]
Decay = Literal["step", "cosine"]
Weights = Mapping[str, Tensor]
"""Parameters and statistics of a network by name, as its state_dict has them."""
Embed = Callable[[Classifier, Tensor], Tensor]
"""Features `[N, d]` float32 on the CPU that a network gives uint8 images `[N, C, H, W]` at test time."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """SGD for one stage, without Nesterov momentum.

    Example:
        >>> schedule = Schedule(epochs=100, learning_rate=0.1, decay_every=30)
        >>> [round(schedule.learning_rate_at(epoch), 6) for epoch in (0, 29.9, 30, 99)]
        [0.1, 0.1, 0.01, 0.0001]
        >>> schedule = Schedule(epochs=10, learning_rate=0.01, decay="cosine")
        >>> [round(schedule.learning_rate_at(epoch), 6) for epoch in (0, 5, 10)]
        [0.01, 0.005001, 1e-06]
    """

    epochs: int
    """Passes over the in-distribution training set."""
    learning_rate: float
    """Step size at the start."""
    decay: Decay = "step"
    """How the step size falls: "step", by a factor every so many epochs; "cosine", with every step, along half a period
    down to `final_learning_rate`."""
    decay_every: int | None = 30
    """For "step": epochs after which the step size falls by `decay_factor`; None keeps it constant."""
    decay_factor: float = 0.1
    """For "step": factor of each fall."""
    final_learning_rate: float = 1e-6
    """For "cosine": step size at the end; that of Hendrycks et al. 2019, whose schedule others copy."""
    momentum: float = 0.9
    """Share of the last update kept in the next, in [0, 1)."""
    weight_decay: float = 5e-4
    """Pull of parameters towards 0."""

    def __post_init__(self) -> None:
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1, got {self.epochs}")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be finite and above 0, got {self.learning_rate}")
        if self.decay not in get_args(Decay):
            raise ValueError(f"decay must be one of step, cosine, got {self.decay!r}")
        if not 0 <= self.final_learning_rate < math.inf:
            raise ValueError(f"final_learning_rate must be finite and at least 0, got {self.final_learning_rate}")
        if self.decay_every is not None and self.decay_every < 1:
            raise ValueError(f"decay_every must be at least 1 epoch, or None, got {self.decay_every}")
        if not 0 < self.decay_factor <= 1:
            raise ValueError(f"decay_factor must be in (0, 1], got {self.decay_factor}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {self.momentum}")
        if not 0 <= self.weight_decay < math.inf:
            raise ValueError(f"weight_decay must be finite and at least 0, got {self.weight_decay}")

    def learning_rate_at(self, epoch: float) -> float:
        """Step size after so many epochs, of which a part may be over."""
        if self.decay == "cosine":
            height = (1 + math.cos(math.pi * epoch / self.epochs)) / 2
            return self.final_learning_rate + (self.learning_rate - self.final_learning_rate) * height
        falls = 0 if self.decay_every is None else math.floor(epoch / self.decay_every)
        return self.learning_rate * self.decay_factor**falls

    def optimizer(self, model: torch.nn.Module) -> torch.optim.SGD:
        """SGD over all parameters of a network; those that a module names by `no_weight_decay()` do not decay."""
        kept = {
            f"{prefix}.{name}".lstrip(".")
            for prefix, module in model.named_modules()
            if hasattr(module, "no_weight_decay")
            for name in module.no_weight_decay()
        }
        named = dict(model.named_parameters())
        groups = [
            {"params": [value for name, value in named.items() if name not in kept], "weight_decay": self.weight_decay},
            {"params": [value for name, value in named.items() if name in kept], "weight_decay": 0.0},
        ]
        return torch.optim.SGD(
            [group for group in groups if group["params"]], lr=self.learning_rate, momentum=self.momentum
        )


def load_all(model: Classifier, weights: Weights, embed: Embed) -> None:
    """Begin with an earlier stage's weights as they are."""
    model.load_state_dict(weights)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One call of the training loop: weights to begin with, data, loss and schedule."""

    name: str
    """Name in checkpoints, progress bars and TensorBoard."""
    draws: str
    """Name of the random draws; stages that share it see the same in-distribution batches."""
    schedule: Schedule
    """Length and optimiser."""
    build_model: Callable[[], Classifier]
    """Makes the stage's network with the run's initial weights, the same at each call."""
    loss: MixedBatchLoss
    """Loss of logits, labels and importance; gives per-sample losses too."""
    batch_size: int
    """In-distribution images in a batch."""
    start_from: str | None = None
    """Earlier stage whose final weights this one begins with; None begins with the initial ones."""
    take_over: Callable[[Classifier, Weights, Embed], None] = load_all
    """Puts those weights into the network, which may have another head than they have."""
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
    score: Callable[[Tensor], Tensor]
    """Detection scores `[N]` of logits `[N, K]`; higher means more out-of-distribution."""


@dataclass(frozen=True, kw_only=True, eq=False)
class LearntPool:
    """Background weights that a method learns, and what is told of them."""

    pool: BackgroundPool
    """Final once every stage has run."""
    arm: str
    """Arm that trains on what the pool selects."""
    effective_sample_sizes: Tensor
    """Of the pool after each step that moved it so far, float64 `[T]`."""


class Method(Protocol):
    """A way of training and scoring; the loop, the checkpoints and the evaluation are the same for all."""

    name: str
    """Name in metrics.json."""
    stages: tuple[Stage, ...]
    """In the order in which they run."""
    arms: tuple[Arm, ...]
    """In table order."""
    baseline: str
    """Arm that the others are compared with."""

    @property
    def learnt_pool(self) -> LearntPool | None:
        """Background weights, for a method that learns them."""
        ...

    def background_index(self, arm: str) -> Tensor:
        """Background images that an arm trains on, int64 `[n]`; the same at each call after the stages."""
        ...
