"""Reference of the losses of mixed batches in plain float64 PyTorch: the formulas that the tests compare kernels with.

The table of csrc/outlier_loss/losses.h names the source of each loss.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fastood.ops.loss_kind import LossKind


def _shifted(logits: Tensor) -> Tensor:
    """Return the logits minus a constant of their row, which changes neither term below.

    The constant is the mean, which keeps enough digits of float64 for spreads down to 1e-5. Where a masked logit moves
    the mean far from the others, it is the largest logit, so that the others keep their digits.
    """
    mean, largest = logits.detach().mean(1, keepdim=True), logits.detach().amax(1, keepdim=True)
    return logits - torch.where(largest - mean <= 60, mean, largest)


def uniformity(logits: Tensor) -> Tensor:
    """Compute KL(U || f) of each row, f = softmax(v): Li & Vasconcelos 2020, eq. 5. `[N, K]` to `[N]`."""
    shifted = _shifted(logits)
    return torch.logsumexp(shifted, 1) - shifted.mean(1) - math.log(logits.shape[1])


def negative_entropy(logits: Tensor) -> Tensor:
    """Compute KL(f || U) = Σ f log f + log K of each row: Li & Vasconcelos 2020, section 5.4. `[N, K]` to `[N]`."""
    log_f = torch.log_softmax(_shifted(logits), 1)
    # 0 log 0 = 0 at a masked logit.
    return (log_f.exp() * log_f.clamp_min(-1e4)).sum(1) + math.log(logits.shape[1])


def pseudo_labels(logits: Tensor, num_reject: int, uniform01: Tensor) -> Tensor:
    """Return the class of the largest logit if it is a reject class, else a random one: Mohseni 2020, Algorithm 1."""
    num_known = logits.shape[1] - num_reject
    largest = logits.argmax(1)
    drawn = num_known + (uniform01 * num_reject).long().clamp(0, num_reject - 1)
    return torch.where(largest >= num_known, largest, drawn)


ICE_CLAMP = -(2.0**-24)


def ice(logits: Tensor) -> Tensor:
    """Compute -log(1 - exp(max v)) of each row, constant in value and slope above `ICE_CLAMP`: Wu 2023, eq. 0.13."""
    largest = logits.max(1).values
    clamped = largest + (largest.clamp(max=ICE_CLAMP) - largest).detach()
    # Each side of -log 2 has a form without cancellation; clamping keeps the unused form finite.
    near, far = clamped.clamp(min=-math.log(2)), clamped.clamp(max=-math.log(2))
    return torch.where(clamped > -math.log(2), -torch.log(-torch.expm1(near)), -torch.log1p(-far.exp()))


def _id_losses(logits: Tensor, targets: Tensor, kind: int, weight: float, margin: float) -> Tensor:
    """Return the loss `[N]` of each row as an in-distribution row; `targets` below zero are read as class 0."""
    if kind == LossKind.MAGNITUDE:
        # The slope of the norm at zero is taken as zero.
        norm = logits.square().sum(1)
        norm = torch.where(norm > 0, norm, 1.0).sqrt() * (norm > 0)
        return F.relu(margin - norm).square()
    classes = targets.clamp(min=0)
    cross_entropy = F.cross_entropy(logits, classes, reduction="none")
    energy = -torch.logsumexp(logits, 1)
    own_logit = logits.gather(1, classes[:, None]).squeeze(1)
    if kind == LossKind.ENERGY_MARGIN:
        return cross_entropy + weight * F.relu(energy - margin).square()
    if kind == LossKind.ENERGY:
        return cross_entropy + weight * energy
    if kind == LossKind.ICE:
        return cross_entropy - weight * own_logit
    if kind == LossKind.SIGMOID:
        return cross_entropy - weight * F.logsigmoid(own_logit)
    return cross_entropy


def _background_losses(logits: Tensor, kind: int, margin: float, num_reject: int, uniform01: Tensor | None) -> Tensor:
    """Return the loss `[N]` of each row as a background row."""
    if kind == LossKind.UNIFORMITY:
        return uniformity(logits)
    if kind == LossKind.ENTROPY:
        return negative_entropy(logits)
    if kind == LossKind.ENERGY_MARGIN:
        return F.relu(margin + torch.logsumexp(logits, 1)).square()
    if kind == LossKind.ENERGY:
        return torch.logsumexp(logits, 1)
    if kind == LossKind.REJECT_CLASS:
        assert uniform01 is not None
        return F.cross_entropy(logits, pseudo_labels(logits, num_reject, uniform01), reduction="none")
    if kind in (LossKind.ICE, LossKind.ICE_MINUS):
        return ice(logits)
    if kind == LossKind.SIGMOID:
        return -F.logsigmoid(-logits.max(1).values)
    if kind == LossKind.MAGNITUDE:
        return logits.square().sum(1)
    raise ValueError(f"kind must be a LossKind, got {kind}")


def outlier_loss(
    logits: Tensor,
    targets: Tensor | None,
    weight: Tensor | None,
    uniform01: Tensor | None,
    kind: int,
    background_weight: float = 1.0,
    margin_id: float = 0.0,
    margin_background: float = 0.0,
    num_reject: int = 0,
    by_weight: bool = True,
) -> tuple[Tensor, Tensor]:
    """Compute a loss of the family as the table of csrc/outlier_loss/losses.h states it.

    Args:
        logits: `[N, K]`, any floating-point dtype.
        targets: `[N]`, below zero for background, or None for background throughout.
        weight: `[N]` or None for all ones.
        uniform01: `[N]` uniform draws in [0, 1), for the reject-class loss.
        kind: Which loss.
        background_weight: λ.
        margin_id: m_in, or the least magnitude.
        margin_background: m_out.
        num_reject: Number of reject classes, the last columns.
        by_weight: Whether a mean divides by its sum of weights; otherwise by its number of rows.

    Returns:
        loss `[]` and per_sample `[N]`, float64, differentiable to any order. Rows that the loss does not count have no
        gradient, even where they hold NaN.

    Example:
        >>> targets = torch.tensor([3, -1])
        >>> loss, per_sample = outlier_loss(torch.zeros(2, 10), targets, None, None, LossKind.UNIFORMITY)
        >>> [round(float(x), 4) for x in per_sample]
        [2.3026, 0.0]
    """
    v = logits.double()
    w = torch.ones(v.shape[0], dtype=v.dtype, device=v.device) if weight is None else weight.double()
    background = torch.ones_like(w, dtype=torch.bool) if targets is None else targets < 0
    labels = torch.full_like(w, -1, dtype=torch.int64) if targets is None else targets
    # torch.where instead of an index works under torch.func.vmap. Rows that do not count are detached: a NaN in them
    # would turn their zero gradient into NaN.
    counts = (w != 0) & ~background if background_weight == 0 else w != 0
    v = torch.where(counts[:, None], v, v.detach())
    id_losses = _id_losses(v, labels, kind, background_weight, margin_id)
    background_losses = _background_losses(v, kind, margin_background, num_reject, uniform01)
    per_sample = torch.where(background, background_losses, id_losses)
    loss = v[:0].sum()  # zero, and in the graph
    for rows, factor in ((~background, 1.0), (background, background_weight)):
        if factor == 0:
            continue
        own = torch.where(rows, w, 0.0)
        divisor = own.sum() if by_weight else rows.sum().double()
        total = (own * torch.where(rows & (counts | per_sample.isfinite()), per_sample, 0.0)).sum()
        empty = divisor == 0
        loss = loss + factor * torch.where(empty, 0.0, total / torch.where(empty, 1.0, divisor))
    return loss, per_sample


def outlier_terms(
    logits: Tensor,
    targets: Tensor | None,
    weight: Tensor | None,
    uniform01: Tensor | None,
    kind: int,
    background_weight: float = 1.0,
    *settings: Any,
) -> tuple[Tensor, Tensor]:
    """Return the term of each row in a sum: its loss times its weight, and times λ for background.

    Takes the arguments of `outlier_loss`.

    Returns:
        terms `[N]` and per_sample `[N]`, float64, differentiable to any order.

    Example:
        >>> targets, weight = torch.tensor([3, 4]), torch.tensor([2.0, 0.0])
        >>> terms, per_sample = outlier_terms(torch.zeros(2, 10), targets, weight, None, LossKind.UNIFORMITY)
        >>> [round(float(x), 4) for x in terms]
        [4.6052, 0.0]
    """
    _, per_sample = outlier_loss(logits, targets, weight, uniform01, kind, background_weight, *settings)
    factor = row_factors(logits, targets, weight, background_weight, per_sample.dtype)
    return torch.where((factor != 0) | per_sample.isfinite(), per_sample, 0.0) * factor, per_sample


def row_factors(
    logits: Tensor, targets: Tensor | None, weight: Tensor | None, background_weight: float, dtype: torch.dtype
) -> Tensor:
    """Return the factor `[N]` of each row's loss in a sum, in `dtype`: its weight, times λ for background.

    Example:
        >>> row_factors(torch.zeros(2, 3), torch.tensor([1, -1]), None, 0.5, torch.float32)
        tensor([1.0000, 0.5000])
    """
    # Via float64, so that a λ beyond the range of `dtype` becomes infinity rather than an error.
    of_kind = torch.full((logits.shape[0],), background_weight, dtype=torch.float64, device=logits.device).to(dtype)
    if targets is not None:
        of_kind = torch.where(targets < 0, of_kind, 1.0)
    # Avoid 0 * inf: with λ = 0 a background row does not contribute, even with an infinite weight.
    return of_kind if weight is None else torch.where(of_kind == 0, 0.0, of_kind * weight.to(dtype))
