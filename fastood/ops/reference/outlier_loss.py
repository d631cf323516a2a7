"""The ops in plain PyTorch and float64: what the tests hold the kernels to, and the place to read the formulas."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def _shifted(logits: Tensor) -> Tensor:
    """Logits less a constant of their row, which changes neither term below.

    The mean, which leaves of float64 what lasts to spreads of 1e-5; where a masked logit has carried the mean far away
    from the others, the largest, which leaves them their digits.
    """
    mean, largest = logits.detach().mean(1, keepdim=True), logits.detach().amax(1, keepdim=True)
    return logits - torch.where(largest - mean <= 60, mean, largest)


def uniformity(logits: Tensor) -> Tensor:
    """KL(U || f) of each row, f = softmax(v): Li & Vasconcelos 2020, eq. 5. `[N, K]` to `[N]`."""
    shifted = _shifted(logits)
    return torch.logsumexp(shifted, 1) - shifted.mean(1) - math.log(logits.shape[1])


def negative_entropy(logits: Tensor) -> Tensor:
    """KL(f || U) = Σ f log f + log K of each row: Li & Vasconcelos 2020, section 5.4. `[N, K]` to `[N]`."""
    log_f = torch.log_softmax(_shifted(logits), 1)
    # 0 log 0 = 0 at a masked logit.
    return (log_f.exp() * log_f.clamp_min(-1e4)).sum(1) + math.log(logits.shape[1])


def pseudo_labels(logits: Tensor, num_reject: int, uniform01: Tensor) -> Tensor:
    """Mohseni 2020, Algorithm 1: the largest logit's class if it is a reject class, else a random reject class."""
    num_known = logits.shape[1] - num_reject
    largest = logits.argmax(1)
    drawn = num_known + (uniform01 * num_reject).long().clamp(0, num_reject - 1)
    return torch.where(largest >= num_known, largest, drawn)


ICE_CLAMP = -(2.0**-24)


def ice(logits: Tensor) -> Tensor:
    """-log(1 - exp(max v)) of each row: Wu 2023, eq. 0.13. Above `ICE_CLAMP`, value and slope stay as there."""
    largest = logits.max(1).values
    clamped = largest + (largest.clamp(max=ICE_CLAMP) - largest).detach()
    # The form without cancellation on either side of -log 2; the other side's argument is kept harmless.
    near, far = clamped.clamp(min=-math.log(2)), clamped.clamp(max=-math.log(2))
    return torch.where(clamped > -math.log(2), -torch.log(-torch.expm1(near)), -torch.log1p(-far.exp()))


def _id_losses(logits: Tensor, targets: Tensor, kind: int, weight: float, margin: float) -> Tensor:
    if kind == 6:
        # The slope of the norm at zero is taken as zero.
        norm = logits.square().sum(1)
        norm = torch.where(norm > 0, norm, 1.0).sqrt() * (norm > 0)
        return F.relu(margin - norm).square()
    known = targets.clamp(min=0)
    cross_entropy = F.cross_entropy(logits, known, reduction="none")
    energy = -torch.logsumexp(logits, 1)
    if kind == 2:
        return cross_entropy + weight * F.relu(energy - margin).square()
    if kind == 3:
        return cross_entropy + weight * energy
    if kind in (5, 8):
        own = logits.gather(1, known[:, None]).squeeze(1)
        return cross_entropy - weight * (own if kind == 5 else F.logsigmoid(own))
    return cross_entropy


def _background_losses(logits: Tensor, kind: int, margin: float, num_reject: int, uniform01: Tensor | None) -> Tensor:
    if kind == 0:
        return uniformity(logits)
    if kind == 1:
        return negative_entropy(logits)
    if kind == 2:
        return F.relu(margin + torch.logsumexp(logits, 1)).square()
    if kind == 3:
        return torch.logsumexp(logits, 1)
    if kind == 4:
        assert uniform01 is not None
        return F.cross_entropy(logits, pseudo_labels(logits, num_reject, uniform01), reduction="none")
    if kind in (5, 7):
        return ice(logits)
    return -F.logsigmoid(-logits.max(1).values) if kind == 8 else logits.square().sum(1)


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
    """Every loss of the family, as the table of csrc/outlier_loss/losses.h states them.

    Args:
        logits: `[N, K]`, any floating-point dtype.
        targets: `[N]`, below zero for background, or None for background throughout.
        weight: `[N]` or None for all ones.
        uniform01: `[N]` uniform draws in [0, 1), for the reject-class loss.
        kind: `LossKind`.
        background_weight: λ.
        margin_id: m_in, or the least magnitude.
        margin_background: m_out.
        num_reject: The last so many logits are reject classes.
        by_weight: Divide a mean by its sum of weights, or else by its number of rows.

    Returns:
        loss `[]` and per_sample `[N]`, float64, differentiable to any order, but for rows that the loss does not count:
        those have no gradient, whatever they hold.

    Example:
        >>> loss, per_sample = outlier_loss(torch.zeros(2, 10), torch.tensor([3, -1]), None, None, 0)
        >>> [round(float(x), 4) for x in per_sample]
        [2.3026, 0.0]
    """
    v = logits.double()
    w = torch.ones(v.shape[0], dtype=v.dtype, device=v.device) if weight is None else weight.double()
    background = torch.ones_like(w, dtype=torch.bool) if targets is None else targets < 0
    known = torch.full_like(w, -1, dtype=torch.int64) if targets is None else targets
    # By torch.where rather than by an index, so that torch.func.vmap can take it. Rows that do not count are held
    # fixed: a NaN of theirs would make NaN of their zero gradient.
    counts = (w != 0) & ~background if background_weight == 0 else w != 0
    v = torch.where(counts[:, None], v, v.detach())
    id_losses = _id_losses(v, known, kind, background_weight, margin_id)
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
    """Return what each row adds to a sum: its loss times its weight, and λ for background; arguments of `outlier_loss`.

    Returns:
        terms `[N]` and per_sample `[N]`, float64, differentiable to any order.

    Example:
        >>> terms, per_sample = outlier_terms(
        ...     torch.zeros(2, 10), torch.tensor([3, 4]), torch.tensor([2.0, 0.0]), None, 0
        ... )
        >>> [round(float(x), 4) for x in terms]
        [4.6052, 0.0]
    """
    _, per_sample = outlier_loss(logits, targets, weight, uniform01, kind, background_weight, *settings)
    factor = row_factors(logits, targets, weight, background_weight, per_sample.dtype)
    return torch.where((factor != 0) | per_sample.isfinite(), per_sample, 0.0) * factor, per_sample


def row_factors(
    logits: Tensor, targets: Tensor | None, weight: Tensor | None, background_weight: float, dtype: torch.dtype
) -> Tensor:
    """Return what each row's loss is multiplied by in a sum: its weight, and λ for background. `[N]` of `dtype`.

    Example:
        >>> row_factors(torch.zeros(2, 3), torch.tensor([1, -1]), None, 0.5, torch.float32)
        tensor([1.0000, 0.5000])
    """
    # Through float64: a λ beyond float32 is infinite there, not an error.
    of_kind = torch.full((logits.shape[0],), background_weight, dtype=torch.float64, device=logits.device).to(dtype)
    if targets is not None:
        of_kind = torch.where(targets < 0, of_kind, 1.0)
    # Without λ a background row adds nothing, also where its weight is infinite.
    return of_kind if weight is None else torch.where(of_kind == 0, 0.0, of_kind * weight.to(dtype))


def weighted_uniformity(
    logits: Tensor, weight: Tensor | None = None, *, reduction: str = "weighted_mean"
) -> tuple[Tensor, Tensor]:
    """Li & Vasconcelos 2020, eq. 5 and 14 (`"weighted_mean"`) or supplementary eq. 10 (`"mean"`).

    Returns:
        loss `[]` and per_sample `[N]`, float64, differentiable to any order.

    Example:
        >>> loss, per_sample = weighted_uniformity(torch.zeros(2, 10))
        >>> float(loss)
        0.0
    """
    return outlier_loss(logits, None, weight, None, 0, by_weight=reduction == "weighted_mean")


def logit_scores(
    logits: Tensor, *, num_reject: int = 0, gen_gamma: float = 0.1, gen_top: int | None = None
) -> dict[str, Tensor]:
    """Every score of `fastood.ops.logit_scores`, which has the formulas; for rows without NaN or +inf.

    Returns:
        Name to `[N]`, float64.

    Example:
        >>> round(float(logit_scores(torch.zeros(1, 4))["entropy"].exp()), 6)
        4.0
    """
    num_classes = logits.shape[1] - num_reject
    v, reject = logits.double().tensor_split([num_classes], 1)
    log_sum = torch.logsumexp(v, 1)
    log_f = v - log_sum[:, None]
    largest = v.argmax(1, keepdim=True)
    log_sum_others = torch.logsumexp(v.scatter(1, largest, -math.inf), 1)
    # log(1 - f), of the largest by the others, as 1 - f leaves it no digit.
    log_rest = torch.log1p(-log_f.exp()).scatter(1, largest, (log_sum_others - log_sum)[:, None])
    gen_terms = (gen_gamma * (log_f + log_rest)).exp()
    scores = {
        "msp": log_sum_others - v.gather(1, largest).squeeze(1),
        "max_logit": -v.max(1).values,
        "energy": -log_sum,
        # 0 log 0 = 0 at a masked logit.
        "entropy": -(log_f.exp() * log_f.clamp_min(-1e4)).sum(1),
        "kl_uniform": -uniformity(v),
        "gen": gen_terms.gather(1, log_f.topk(min(gen_top or num_classes, num_classes), 1).indices).sum(1),
    }
    if num_reject > 0:
        scores["reject"] = torch.logsumexp(reject, 1) - log_sum
    return scores
