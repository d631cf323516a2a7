"""Peers for AUROC, both AUPRs and FPR95, each with its own kind of input, prepared beforehand.

pytorch-ood 0.4 or later and torcheval are left out where they are not installed: `pip install pytorch-ood torcheval`.
OpenOOD's and the batched composition are written anew, the first from what `openood/evaluators/metrics.py` does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Areas = list[Tensor]
"""AUROC, AUPR with OOD and with ID positive and, where a peer has it, FPR95; `[B]` each."""
Peer = Callable[["Sets"], Callable[[], Areas]]
TPR = 0.95


@dataclass(frozen=True)
class Sets:
    """B pairs of score sets in [0, 1], OOD scores higher; outside this range torchmetrics ranks the sigmoid."""

    id_scores: Tensor
    """Scores of ID images, `[B, N]`."""
    ood_scores: Tensor
    """Scores of OOD images, `[B, M]`."""

    @property
    def scores(self) -> Tensor:
        """Scores of all images, `[B, N + M]`."""
        return torch.cat((self.id_scores, self.ood_scores), 1)

    @property
    def is_ood(self) -> Tensor:
        """Labels, int64 `[B, N + M]`."""
        return torch.cat((torch.zeros_like(self.id_scores), torch.ones_like(self.ood_scores)), 1).long()


def each(evaluate: Callable[..., tuple[object, ...]], *inputs: list[NDArray[np.floating]] | list[Tensor]) -> Areas:
    """Evaluate set by set, since the libraries have no batched call, and return `[B]` of each metric."""
    rows = [evaluate(*row) for row in zip(*inputs, strict=True)]
    return [
        torch.stack([torch.as_tensor(number, dtype=torch.float64) for number in numbers])
        for numbers in zip(*rows, strict=True)
    ]


def first_fpr(fpr: NDArray[np.floating], tpr: NDArray[np.floating]) -> float:
    return float(fpr[np.argmax(tpr >= TPR)])


def scikit_learn(sets: Sets) -> Callable[[], Areas]:
    """Use one function of scikit-learn per metric; labels and scores for ID positive are prepared beforehand."""
    import sklearn.metrics as sk

    def evaluate(labels: NDArray[np.int64], scores: NDArray, flipped: NDArray[np.int64], negated: NDArray) -> tuple:
        fpr, tpr, _ = sk.roc_curve(labels, scores, drop_intermediate=False)
        return (
            sk.roc_auc_score(labels, scores),
            sk.average_precision_score(labels, scores),
            sk.average_precision_score(flipped, negated),
            first_fpr(fpr, tpr),
        )

    labels, scores = sets.is_ood, sets.scores
    inputs = [list(rows.numpy()) for rows in (labels, scores, 1 - labels, -scores)]
    return lambda: each(evaluate, *inputs)


def openood(sets: Sets) -> Callable[[], Areas]:
    """Use one ROC curve and two precision-recall curves, with trapezoids below all three, as OpenOOD does."""
    import sklearn.metrics as sk

    def evaluate(labels: NDArray[np.int64], scores: NDArray) -> tuple:
        fpr, tpr, _ = sk.roc_curve(labels, scores)
        precision_out, recall_out, _ = sk.precision_recall_curve(labels, scores)
        precision_in, recall_in, _ = sk.precision_recall_curve(1 - labels, -scores)
        areas = (sk.auc(fpr, tpr), sk.auc(recall_out, precision_out), sk.auc(recall_in, precision_in))
        return *areas, first_fpr(fpr, tpr)

    inputs = list(sets.is_ood.numpy()), list(sets.scores.numpy())
    return lambda: each(evaluate, *inputs)


def torchmetrics(sets: Sets) -> Callable[[], Areas]:
    from torchmetrics.functional.classification import binary_auroc, binary_average_precision, binary_roc

    def evaluate(labels: Tensor, scores: Tensor, flipped: Tensor, negated: Tensor) -> tuple[Tensor, ...]:
        fpr, tpr, _ = binary_roc(scores, labels)
        return (
            binary_auroc(scores, labels),
            binary_average_precision(scores, labels),
            binary_average_precision(negated, flipped),
            fpr[(tpr >= TPR).int().argmax()],
        )

    labels, scores = sets.is_ood, sets.scores
    inputs = [list(rows) for rows in (labels, scores, 1 - labels, 1 - scores)]
    return lambda: each(evaluate, *inputs)


def pytorch_ood(sets: Sets) -> Callable[[], Areas]:
    """Use `OODMetrics` of pytorch-ood, whose AUPRs are trapezoids."""
    from pytorch_ood.metrics import OODMetrics

    def evaluate(labels: Tensor, scores: Tensor) -> tuple[object, ...]:
        metrics = OODMetrics()
        metrics.update(scores, labels)
        found = metrics.compute()
        return found["AUROC"], found["AUPR-OUT"], found["AUPR-IN"], found["FPR95TPR"]

    inputs = list(-sets.is_ood), list(sets.scores)
    return lambda: each(evaluate, *inputs)


def torcheval(sets: Sets) -> Callable[[], Areas]:
    """Use one call of torcheval for all sets; it has no FPR at a TPR."""
    from torcheval.metrics.functional import binary_auprc, binary_auroc

    tasks = len(sets.scores)
    labels, scores = (rows[0] if tasks == 1 else rows for rows in (sets.is_ood, sets.scores))
    flipped, negated = 1 - labels, -scores
    return lambda: [
        binary_auroc(scores, labels, num_tasks=tasks),
        binary_auprc(scores, labels, num_tasks=tasks),
        binary_auprc(negated, flipped, num_tasks=tasks),
    ]


def batched_torch(sets: Sets) -> Callable[[], Areas]:
    """Use batched PyTorch as a careful user writes it: one sort of all sets, running counts, ties as groups."""
    labels, scores = sets.is_ood, sets.scores
    num_id, num_ood = sets.id_scores.shape[1], sets.ood_scores.shape[1]
    all_scores = num_id + num_ood
    place = torch.arange(1, all_scores + 1, device=scores.device)

    def run() -> Areas:
        ordered, order = scores.sort(1, descending=True)
        is_ood = labels.gather(1, order)
        ends = torch.ones_like(ordered, dtype=torch.bool)
        torch.ne(ordered[:, 1:], ordered[:, :-1], out=ends[:, :-1])
        flagged = is_ood.cumsum(1)
        # For the group of ties of each score: how many scores are flagged together with it, and how many before.
        at_end = torch.where(ends, place, all_scores).flip(1).cummin(1).values.flip(1)
        before = torch.where(ends, place, 0).roll(1, 1)
        before[:, 0] = 0
        before = before.cummax(1).values
        ood_at_end = flagged.gather(1, at_end - 1)
        ood_before = torch.where(before > 0, flagged.gather(1, (before - 1).clamp(min=0)), 0)
        precision_out = ood_at_end.double() / at_end
        id_left = num_id - (before - ood_before)
        precision_in = id_left.double() / (all_scores - before)
        twice_above = (ood_at_end + ood_before) * (1 - is_ood)
        first = (ood_at_end.double() / num_ood >= TPR).int().argmax(1, keepdim=True)
        return [
            twice_above.sum(1).double() / (2 * num_id * num_ood),
            (precision_out * is_ood).sum(1) / num_ood,
            (precision_in * (1 - is_ood)).sum(1) / num_id,
            ((at_end - ood_at_end).gather(1, first).double() / num_id).squeeze(1),
        ]

    return run


def peers(device: str = "cpu") -> dict[str, Peer]:
    """Return the function that prepares the call of each installed peer that computes on the device, by name."""
    made: dict[str, Peer] = {"batched torch": batched_torch}
    if is_installed("torchmetrics", (1,)):
        made["torchmetrics"] = torchmetrics
    if device == "cpu":
        made["scikit-learn"] = scikit_learn
        made["OpenOOD"] = openood
        if is_installed("pytorch-ood", (0, 4)):
            made["pytorch-ood"] = pytorch_ood
    if is_installed("torcheval", (0,)):
        made["torcheval, no FPR95"] = torcheval
    return made


def is_installed(package: str, at_least: tuple[int, ...]) -> bool:
    """Return whether a package is installed in at least this version, and print a line if it is not."""
    try:
        found = version(package)
    except PackageNotFoundError:
        found = "no version"
    if found != "no version" and tuple(int(part) for part in found.split(".")[: len(at_least)]) >= at_least:
        return True
    print(f"{package} is left out: {found} is installed", file=sys.stderr)
    return False
