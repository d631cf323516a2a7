"""The losses as a careful PyTorch user writes them today: what the fused ones are measured against.

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
    """The in-distribution rows and the background rows, as views with one gradient."""
    id_rows, background = rows.split(rows.shape[0] // 2)
    return id_rows, background


def exposure_log_softmax(logits: Tensor, labels: Tensor) -> Tensor:
    """Outlier exposure by `log_softmax`: the usual form."""
    id_logits, background = halves(logits)
    uniformity = -F.log_softmax(background, 1).mean() - math.log(logits.shape[1])
    return F.cross_entropy(id_logits, labels) + OUTLIER_EXPOSURE_WEIGHT * uniformity


def exposure_logsumexp(logits: Tensor, labels: Tensor) -> Tensor:
    """Outlier exposure by logsumexp - mean, as the code of Hendrycks et al. has it."""
    id_logits, background = halves(logits)
    uniformity = torch.logsumexp(background, 1).mean() - background.mean() - math.log(logits.shape[1])
    return F.cross_entropy(id_logits, labels) + OUTLIER_EXPOSURE_WEIGHT * uniformity


def exposure_boolean_index(logits: Tensor, targets: Tensor) -> Tensor:
    """Outlier exposure of rows in any order: each kind is copied out, and its gradient back."""
    background = targets < 0
    known = ~background
    uniformity = -F.log_softmax(logits[background], 1).mean() - math.log(logits.shape[1])
    return F.cross_entropy(logits[known], targets[known]) + OUTLIER_EXPOSURE_WEIGHT * uniformity


def exposure_masked_mean(logits: Tensor, targets: Tensor) -> Tensor:
    """The same without copies: one `log_softmax` of all rows, and means that leave rows out."""
    background = (targets < 0).to(logits.dtype)
    log_f = F.log_softmax(logits, 1)
    uniformity = -log_f.mean(1).dot(background) / background.sum() - math.log(logits.shape[1])
    return F.nll_loss(log_f, targets, ignore_index=-1) + OUTLIER_EXPOSURE_WEIGHT * uniformity


def uniformity_log_softmax(logits: Tensor, weight: Tensor) -> Tensor:
    """Weighted mean of KL(uniform | f) over background rows alone, by `log_softmax`."""
    per_sample = -F.log_softmax(logits, 1).mean(1) - math.log(logits.shape[1])
    return per_sample.dot(weight) / weight.sum()


def uniformity_logsumexp(logits: Tensor, weight: Tensor) -> Tensor:
    """The same by logsumexp - mean."""
    per_sample = torch.logsumexp(logits, 1) - logits.mean(1) - math.log(logits.shape[1])
    return per_sample.dot(weight) / weight.sum()


def entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Entropy maximisation: one `log_softmax` serves both halves."""
    log_f, background = halves(F.log_softmax(logits, 1))
    negative_entropy = (background.exp() * background).sum() / background.shape[0] + math.log(logits.shape[1])
    return F.nll_loss(log_f, labels) + OUTLIER_EXPOSURE_WEIGHT * negative_entropy


def margins(id_lse: Tensor, background_lse: Tensor) -> Tensor:
    """The two squared hinges, E = -lse."""
    id_hinge = F.relu(-MARGIN_ID - id_lse).square().mean()
    return id_hinge + F.relu(background_lse + MARGIN_BACKGROUND).square().mean()


def energy_margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy and a logsumexp of all rows: as the code of Liu et al. has it."""
    cross_entropy = F.cross_entropy(halves(logits)[0], labels)
    return cross_entropy + ENERGY_WEIGHT * margins(*halves(torch.logsumexp(logits, 1)))


def energy_margin_by_cross_entropy(logits: Tensor, known: Tensor) -> Tensor:
    """With the logsumexp taken from a cross-entropy to any class, which PyTorch has a faster kernel for on the CPU."""
    cross_entropy, lse = cross_entropy_and_logsumexp(logits, known)
    id_lse, background_lse = halves(lse)
    return halves(cross_entropy)[0].mean() + ENERGY_WEIGHT * margins(id_lse, background_lse)


def energy(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy and plain energies by a logsumexp of all rows."""
    id_lse, background_lse = halves(torch.logsumexp(logits, 1))
    cross_entropy = F.cross_entropy(halves(logits)[0], labels)
    return cross_entropy + ENERGY_WEIGHT * (background_lse.mean() - id_lse.mean())


def energy_by_cross_entropy(logits: Tensor, known: Tensor) -> Tensor:
    """The same by cross-entropies."""
    cross_entropy, lse = cross_entropy_and_logsumexp(logits, known)
    id_lse, background_lse = halves(lse)
    return halves(cross_entropy)[0].mean() + ENERGY_WEIGHT * (background_lse.mean() - id_lse.mean())


def cross_entropy_and_logsumexp(logits: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
    """Both of every row from one softmax: logsumexp(v) = -log f_y + v_y whatever y is; `known` has 0 for background."""
    cross_entropy = F.cross_entropy(logits, known, reduction="none")
    return cross_entropy, cross_entropy + logits.gather(1, known[:, None]).squeeze(1)


def reject_class(logits: Tensor, labels: Tensor, drawn: Tensor) -> Tensor:
    """Cross-entropy to labels and pseudo-labels; `drawn` holds a random reject class for each background row."""
    id_logits, background = halves(logits)
    largest = background.detach().argmax(1)
    pseudo_labels = torch.where(largest >= logits.shape[1] - NUM_REJECT, largest, drawn)
    return F.cross_entropy(id_logits, labels) + REJECT_WEIGHT * F.cross_entropy(background, pseudo_labels)


def ice(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy and likelihoods; one form of log(1 - exp(h)), accurate where h is near zero."""
    id_logits, background = halves(logits)
    nearest = background.max(1).values.clamp(max=-(2.0**-24))
    likelihood = F.nll_loss(id_logits, labels)  # -mean of h_y
    incompatible = -torch.log(-torch.expm1(nearest)).mean()
    return F.cross_entropy(id_logits, labels) + ICE_WEIGHT * (likelihood + incompatible)


def objectosphere(logits: Tensor, features: Tensor, labels: Tensor) -> Tensor:
    """Outlier exposure on logits, and one norm of all features for both magnitude terms."""
    id_logits, background = halves(logits)
    uniformity = -F.log_softmax(background, 1).mean() - math.log(logits.shape[1])
    id_norm, background_norm = halves(torch.linalg.vector_norm(features, dim=1))
    magnitude = F.relu(MIN_MAGNITUDE - id_norm).square().mean() + background_norm.square().mean()
    return F.cross_entropy(id_logits, labels) + uniformity + MAGNITUDE_WEIGHT * magnitude
