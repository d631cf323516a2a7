"""Length of a stage, and its optimiser and learning rate."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from torch import nn

from fastood.common.config_checks import require_at_least_one, require_choice, require_positive, require_weight

Optimizer = Literal["sgd", "adam"]
Decay = Literal["step", "milestones", "cosine"]


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """Epochs, optimiser and learning rate of one stage.

    Example:
        >>> schedule = Schedule(epochs=100, learning_rate=0.1, decay_every=30)
        >>> [round(schedule.learning_rate_at(epoch), 6) for epoch in (0, 29.9, 30, 99)]
        [0.1, 0.1, 0.01, 0.0001]
        >>> schedule = Schedule(epochs=10, learning_rate=0.01, decay="cosine")
        >>> [round(schedule.learning_rate_at(epoch), 6) for epoch in (0, 5, 10)]
        [0.01, 0.005001, 1e-06]
        >>> schedule = Schedule(epochs=100, learning_rate=0.1, decay="milestones", milestones=(0.5, 0.75))
        >>> [round(schedule.learning_rate_at(epoch), 6) for epoch in (49, 50, 75)]
        [0.1, 0.01, 0.001]
    """

    epochs: int
    """Passes over the in-distribution training set."""
    learning_rate: float
    """Learning rate at the start."""
    optimizer: Optimizer = "sgd"
    """sgd: with momentum; adam: with PyTorch's β of 0.9 and 0.999."""
    decay: Decay = "step"
    """How the learning rate decays: "step", by a factor every `decay_every` epochs; "milestones", by that factor at
    fractions of the training; "cosine", at every step, along half a period down to `final_learning_rate`."""
    decay_every: int | None = 30
    """For "step": epochs between two decays by `decay_factor`; None keeps the learning rate constant."""
    decay_factor: float = 0.1
    """For "step" and "milestones": factor of each decay, in (0, 1]."""
    milestones: tuple[float, ...] = (0.5, 0.75, 0.9)
    """For "milestones": fractions of the epochs after which the learning rate decays, ascending, in (0, 1)."""
    final_learning_rate: float = 1e-6
    """For "cosine": learning rate at the end; the value of Hendrycks et al. 2019, which others have adopted."""
    momentum: float = 0.9
    """For sgd: momentum, in [0, 1)."""
    nesterov: bool = False
    """For sgd: whether to use Nesterov momentum."""
    weight_decay: float = 5e-4
    """Weight decay (L2 penalty), at least 0."""

    def __post_init__(self) -> None:
        require_at_least_one(self, "epochs")
        require_positive(self, "learning_rate")
        require_weight(self, "final_learning_rate", "weight_decay")
        require_choice(self, optimizer=Optimizer, decay=Decay)
        ascending = all(a < b for a, b in pairwise((0, *self.milestones, 1)))
        if not ascending:
            raise ValueError(f"milestones must ascend and be in (0, 1), got {self.milestones}")
        if self.nesterov and (self.optimizer != "sgd" or self.momentum == 0):
            raise ValueError(f"nesterov needs sgd with momentum, got {self.optimizer} with {self.momentum}")
        if self.decay_every is not None and self.decay_every < 1:
            raise ValueError(f"decay_every must be at least 1 epoch, or None, got {self.decay_every}")
        if not 0 < self.decay_factor <= 1:
            raise ValueError(f"decay_factor must be in (0, 1], got {self.decay_factor}")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {self.momentum}")

    def learning_rate_at(self, epoch: float) -> float:
        """Return the learning rate after a number of epochs, fractions included."""
        if self.decay == "cosine":
            height = (1 + math.cos(math.pi * epoch / self.epochs)) / 2
            return self.final_learning_rate + (self.learning_rate - self.final_learning_rate) * height
        if self.decay == "milestones":
            falls = sum(epoch >= share * self.epochs for share in self.milestones)
        else:
            falls = 0 if self.decay_every is None else math.floor(epoch / self.decay_every)
        return self.learning_rate * self.decay_factor**falls

    def build_optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """Build the optimiser of all parameters; those that a module names by `no_weight_decay()` do not decay."""
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
        filled = [group for group in groups if group["params"]]
        if self.optimizer == "adam":
            return torch.optim.Adam(filled, lr=self.learning_rate)
        return torch.optim.SGD(filled, lr=self.learning_rate, momentum=self.momentum, nesterov=self.nesterov)
