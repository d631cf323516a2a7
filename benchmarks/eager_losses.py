"""Peers of the fused losses, as a careful PyTorch user writes them.

Every form is given what makes it fast: the first half of the rows is in-distribution, so that nothing has to be
selected; `labels` holds those rows' classes alone, so that targets need no slicing; `split` rather than two slices,
whose gradients would each be padded to the whole batch and added; a mean over rows and classes at once where one will
do; constants that need no tensor. Where two forms win at different shapes, both are here.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

OUTLIER_EXPOSURE_WEIGHT = 0.5
ENERGY_WEIGHT = 0.1
MARGIN_ID, MARGIN_BACKGROUND = -23.0, -5.0
NUM_REJECT, REJECT_WEIGHT = 5, 5.0
ICE_WEIGHT = 0.1
MIN_MAGNITUDE, MAGNITUDE_WEIGHT = 25.0, 0.01


def halves(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Split rows into the in-distribution and the background half, as views with one gradient."""
    id_rows, background = rows.split(rows.shape[0] // 2)
    return id_rows, background


def exposure_log_softmax(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute outlier exposure by `log_softmax`, the usual form."""
    id_logits, background = halves(logits)
    uniformity = -F.log_softmax(background, 1).mean() - math.log(logits.shape[1])
    return F.cross_entropy(id_logits, labels) + OUTLIER_EXPOSURE_WEIGHT * uniformity


def exposure_logsumexp(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute outlier exposure by logsumexp - mean, as in the code of Hendrycks et al. 2019."""
    id_logits, background = halves(logits)
    uniformity = torch.logsumexp(background, 1).mean() - background.mean() - math.log(logits.shape[1])
    return F.cross_entropy(id_logits, labels) + OUTLIER_EXPOSURE_WEIGHT * uniformity


def exposure_boolean_index(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute outlier exposure of rows in any order by boolean indexing, which copies rows and their gradient."""
    background = targets < 0
    known = ~background
    uniformity = -F.log_softmax(logits[background], 1).mean() - math.log(logits.shape[1])
    return F.cross_entropy(logits[known], targets[known]) + OUTLIER_EXPOSURE_WEIGHT * uniformity


def exposure_masked_mean(logits: Tensor, targets: Tensor) -> Tensor:
    """Compute outlier exposure of rows in any order without copies: one `log_softmax`, and masked means."""
    background = (targets < 0).to(logits.dtype)
    log_f = F.log_softmax(logits, 1)
    uniformity = -log_f.mean(1).dot(background) / background.sum() - math.log(logits.shape[1])
    return F.nll_loss(log_f, targets, ignore_index=-1) + OUTLIER_EXPOSURE_WEIGHT * uniformity


def uniformity_log_softmax(logits: Tensor, weight: Tensor) -> Tensor:
    """Compute the weighted mean of KL(uniform | f) over background rows, by `log_softmax`."""
    per_sample = -F.log_softmax(logits, 1).mean(1) - math.log(logits.shape[1])
    return per_sample.dot(weight) / weight.sum()


def uniformity_logsumexp(logits: Tensor, weight: Tensor) -> Tensor:
    """Compute the weighted mean of KL(uniform | f) over background rows, by logsumexp - mean."""
    per_sample = torch.logsumexp(logits, 1) - logits.mean(1) - math.log(logits.shape[1])
    return per_sample.dot(weight) / weight.sum()


def entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute entropy maximisation, with one `log_softmax` for both halves."""
    log_f, background = halves(F.log_softmax(logits, 1))
    negative_entropy = (background.exp() * background).sum() / background.shape[0] + math.log(logits.shape[1])
    return F.nll_loss(log_f, labels) + OUTLIER_EXPOSURE_WEIGHT * negative_entropy


def margins(id_lse: Tensor, background_lse: Tensor) -> Tensor:
    """Compute the two squared hinges of the energies E = -logsumexp."""
    id_hinge = F.relu(-MARGIN_ID - id_lse).square().mean()
    return id_hinge + F.relu(background_lse + MARGIN_BACKGROUND).square().mean()


def energy_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute cross-entropy and energy margins by a logsumexp of all rows, as in the code of Liu et al. 2020."""
    cross_entropy = F.cross_entropy(halves(logits)[0], labels)
    return cross_entropy + ENERGY_WEIGHT * margins(*halves(torch.logsumexp(logits, 1)))


def energy_margin_by_cross_entropy(logits: Tensor, known: Tensor) -> Tensor:
    """Compute energy margins with the logsumexp from a cross-entropy, for which PyTorch has a faster CPU kernel."""
    cross_entropy, lse = cross_entropy_and_logsumexp(logits, known)
    id_lse, background_lse = halves(lse)
    return halves(cross_entropy)[0].mean() + ENERGY_WEIGHT * margins(id_lse, background_lse)


def energy(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute cross-entropy and plain energies by a logsumexp of all rows."""
    id_lse, background_lse = halves(torch.logsumexp(logits, 1))
    cross_entropy = F.cross_entropy(halves(logits)[0], labels)
    return cross_entropy + ENERGY_WEIGHT * (background_lse.mean() - id_lse.mean())


def energy_by_cross_entropy(logits: Tensor, known: Tensor) -> Tensor:
    """Compute cross-entropy and plain energies by cross-entropies."""
    cross_entropy, lse = cross_entropy_and_logsumexp(logits, known)
    id_lse, background_lse = halves(lse)
    return halves(cross_entropy)[0].mean() + ENERGY_WEIGHT * (background_lse.mean() - id_lse.mean())


def cross_entropy_and_logsumexp(logits: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Compute both of every row from one softmax: logsumexp(v) = -log f_y + v_y; `known` is 0 for background rows."""
    cross_entropy = F.cross_entropy(logits, known, reduction="none")
    return cross_entropy, cross_entropy + logits.gather(1, known[:, None]).squeeze(1)


def reject_class(logits: Tensor, labels: Tensor, drawn: Tensor) -> Tensor:
    """Compute cross-entropy to labels and pseudo-labels; `drawn` is a random reject class for each background row."""
    id_logits, background = halves(logits)
    largest = background.detach().argmax(1)
    pseudo_labels = torch.where(largest >= logits.shape[1] - NUM_REJECT, largest, drawn)
    return F.cross_entropy(id_logits, labels) + REJECT_WEIGHT * F.cross_entropy(background, pseudo_labels)


def ice(logits: Tensor, labels: Tensor) -> Tensor:
    """Compute cross-entropy and likelihoods, with a form of log(1 - exp(h)) that is accurate for h near zero."""
    id_logits, background = halves(logits)
    nearest = background.max(1).values.clamp(max=-(2.0**-24))
    likelihood = F.nll_loss(id_logits, labels)  # -mean of h_y
    incompatible = -torch.log(-torch.expm1(nearest)).mean()
    return F.cross_entropy(id_logits, labels) + ICE_WEIGHT * (likelihood + incompatible)


def objectosphere(logits: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """Compute the entropic loss on logits, and one norm of all features for both magnitude terms."""
    id_logits, background = halves(logits)
    uniformity = -F.log_softmax(background, 1).mean() - math.log(logits.shape[1])
    id_norm, background_norm = halves(torch.linalg.vector_norm(features, dim=1))
    magnitude = F.relu(MIN_MAGNITUDE - id_norm).square().mean() + background_norm.square().mean()
    return F.cross_entropy(id_logits, labels) + uniformity + MAGNITUDE_WEIGHT * magnitude
