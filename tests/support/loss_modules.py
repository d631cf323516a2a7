"""One table of the loss modules: how each is made, called, and what its paper says, row by row in plain PyTorch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastood.losses import (
    EnergyLoss,
    EnergyRegularizedLoss,
    EntropyMaximizationLoss,
    ICELoss,
    ObjectosphereLoss,
    OutlierExposureLoss,
    RejectClassLoss,
    SigmoidLikelihoodLoss,
)

REJECT, KNOWN, FEATURES = 3, 7, 5


@dataclass(frozen=True)
class Batch:
    """A mixed batch with all that any of the losses takes."""

    logits: Tensor
    features: Tensor
    targets: Tensor
    weight: Tensor
    uniform01: Tensor

    def to(self, *args: object) -> Batch:
        """Floating-point tensors to a device or dtype."""
        moved = (x.to(*args) for x in (self.logits, self.features, self.weight, self.uniform01))
        logits, features, weight, uniform01 = moved
        return Batch(logits, features, self.targets.to(logits.device), weight, uniform01)


def mixed_batch(seed: int = 0, rows: int = 40, dtype: torch.dtype = torch.float64) -> Batch:
    generator = torch.Generator().manual_seed(seed)

    def randn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    targets = torch.randint(0, KNOWN - REJECT, (rows,), generator=generator)
    targets[torch.rand(rows, generator=generator) < 0.6] = -1
    if rows > 4:
        targets[3], targets[4] = -7, -100  # any negative label is background
    uniform = torch.rand(2, rows, generator=generator, dtype=torch.float64)
    # All logits below zero, as distances are: every loss can take them.
    return Batch(-randn(rows, KNOWN).square() - 1e-3, randn(rows, FEATURES), targets, uniform[0] + 0.1, uniform[1]).to(
        dtype
    )


@dataclass(frozen=True)
class LossModule:
    """`id_row` and `background_row` are the paper's formulas of one row, as functions of (batch, i)."""

    make: Callable[..., nn.Module]
    id_row: Callable[[Batch, int], Tensor]
    background_row: Callable[[Batch, int], Tensor]
    weight: float = 0.7

    def __str__(self) -> str:
        return self.make().__class__.__name__

    def call(
        self, criterion: nn.Module, batch: Batch, weighted: bool = False, method: str = "__call__"
    ) -> Tensor | tuple[Tensor, ...]:
        """Call the module as its docstring says."""
        weight = batch.weight if weighted else None
        bound = criterion if method == "__call__" else getattr(criterion, method)
        if isinstance(criterion, ObjectosphereLoss):
            return bound(batch.logits, batch.features, batch.targets, weight)
        if isinstance(criterion, RejectClassLoss):
            return bound(batch.logits, batch.targets, weight, uniform01=batch.uniform01)
        return bound(batch.logits, batch.targets, weight)


def _cross_entropy(batch: Batch, i: int) -> Tensor:
    return -torch.log_softmax(batch.logits[i], 0)[batch.targets[i]]


def _uniformity(batch: Batch, i: int) -> Tensor:
    return -torch.log_softmax(batch.logits[i], 0).mean() - math.log(KNOWN)


def _energy(batch: Batch, i: int) -> Tensor:
    return -torch.logsumexp(batch.logits[i], 0)


def _negative_entropy(batch: Batch, i: int) -> Tensor:
    log_f = torch.log_softmax(batch.logits[i], 0)
    return (log_f.exp() * log_f).sum() + math.log(KNOWN)


def _pseudo_label(batch: Batch, i: int) -> Tensor:
    label = int(batch.logits[i].argmax())
    if label < KNOWN - REJECT:
        label = KNOWN - REJECT + int(batch.uniform01[i] * REJECT)
    return -torch.log_softmax(batch.logits[i], 0)[label]


LOSS_MODULES = [
    LossModule(lambda **k: OutlierExposureLoss(0.7, **k), _cross_entropy, _uniformity),
    LossModule(lambda **k: EntropyMaximizationLoss(0.7, **k), _cross_entropy, _negative_entropy),
    LossModule(
        lambda **k: EnergyRegularizedLoss(0.7, -1.5, -1.0, **k),
        lambda b, i: _cross_entropy(b, i) + 0.7 * F.relu(_energy(b, i) + 1.5).square(),
        lambda b, i: F.relu(-1.0 - _energy(b, i)).square(),
    ),
    LossModule(
        lambda **k: EnergyLoss(0.7, **k),
        lambda b, i: _cross_entropy(b, i) + 0.7 * _energy(b, i),
        lambda b, i: -_energy(b, i),
    ),
    LossModule(lambda **k: RejectClassLoss(REJECT, 0.7, **k), _cross_entropy, _pseudo_label),
    LossModule(
        lambda **k: ICELoss(0.7, **k),
        lambda b, i: _cross_entropy(b, i) - 0.7 * b.logits[i, b.targets[i]],
        lambda b, i: -torch.log(1 - b.logits[i].max().exp()),
    ),
    LossModule(
        lambda **k: ICELoss(0.7, id_likelihood=False, **k),
        _cross_entropy,
        lambda b, i: -torch.log(1 - b.logits[i].max().exp()),
    ),
    LossModule(
        lambda **k: SigmoidLikelihoodLoss(0.7, **k),
        lambda b, i: _cross_entropy(b, i) - 0.7 * torch.log(torch.sigmoid(b.logits[i, b.targets[i]])),
        lambda b, i: -torch.log(1 - torch.sigmoid(b.logits[i].max())),
    ),
    LossModule(
        lambda **k: ObjectosphereLoss(2.0, 0.3, 0.7, **k),
        lambda b, i: _cross_entropy(b, i) + 0.3 * F.relu(2.0 - b.features[i].norm()).square(),
        lambda b, i: _uniformity(b, i) + 0.3 * b.features[i].square().sum(),
    ),
]


def by_the_paper(module: LossModule, batch: Batch, weighted: bool, reduction: str) -> tuple[Tensor, Tensor]:
    """Mean over in-distribution rows + weight · mean over background rows, and the losses of the rows."""
    rows = range(len(batch.targets))
    per_sample = torch.stack(
        [(module.background_row if batch.targets[i] < 0 else module.id_row)(batch, i) for i in rows]
    )
    w = batch.weight if weighted else torch.ones_like(batch.weight)
    loss = per_sample.sum() * 0
    for kind, factor in ((batch.targets >= 0, 1.0), (batch.targets < 0, module.weight)):
        if kind.any():
            divisor = w[kind].sum() if reduction == "weighted_mean" else kind.sum()
            loss = loss + factor * (w[kind] * per_sample[kind]).sum() / divisor
    return loss, per_sample
