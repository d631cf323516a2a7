"""AUROC, AUPR and FPR at a TPR of one pair of score sets, or of many at once."""

from dataclasses import dataclass
from math import prod

import numpy as np
import torch
from torch import Tensor

from fastood.metrics.inputs import Values
from fastood.metrics.ranking import RankedPair, ranked
from fastood.metrics.rules import AuprKind, FprRule, area_under_pr, operating_point
from fastood.metrics.threshold_counts import count_at_thresholds
from fastood.metrics.validation import Positive, check_choice, checked_pair, checked_tpr
from fastood.ops.detection_metrics import RankingStatistics, ranking_statistics, sort_scores

__all__ = ["DetectionMetrics", "auroc", "average_precision", "detection_metrics", "fpr_at_tpr"]

_CLASSES: tuple[Positive, Positive] = ("ood", "id")


@dataclass(frozen=True, kw_only=True)
class DetectionMetrics:
    """Detection metrics as fractions in [0, 1], with the settings that they depend on.

    Each metric is a float for one pair of sets, and a float64 tensor of the leading shape for many pairs.
    """

    auroc: float | Tensor
    """Area under the ROC curve: P(OOD score > ID score) + ½ P(equal). It does not depend on the positive class."""
    aupr_in: float | Tensor
    """AUPR with ID as the positive class. It rises with the fraction of ID images."""
    aupr_out: float | Tensor
    """AUPR with OOD as the positive class. It rises with the fraction of OOD images."""
    fpr_at_tpr: float | Tensor
    """FPR at the TPR `tpr` of the positive class, by the rule `rule`."""
    threshold: float | Tensor
    """The score at which the FPR is read: scores ≥ it are flagged with OOD positive, ≤ it with ID positive (> and < for
    the rule "floor"); NaN for the rule "odin", a mean over several."""
    detection_error: float | Tensor
    """Smallest (FPR + FNR) / 2 over all thresholds (Liang et al. 2018, https://arxiv.org/abs/1706.02690). It does not
    depend on the positive class."""
    tpr: float
    positive: Positive
    rule: FprRule
    aupr_kind: AuprKind
    id_count: int
    """In-distribution scores of each set."""
    ood_count: int
    """OOD scores of each set."""

    @property
    def aupr(self) -> float | Tensor:
        """AUPR of the positive class."""
        return self.aupr_out if self.positive == "ood" else self.aupr_in

    @property
    def fpr95(self) -> float | Tensor:
        """FPR at a TPR of 0.95.

        Raises:
            AttributeError: If the metrics are at another TPR, which `fpr_at_tpr` holds.
        """
        if self.tpr != 0.95:
            raise AttributeError(f"fpr95 of metrics at tpr {self.tpr}: read fpr_at_tpr")
        return self.fpr_at_tpr


def detection_metrics(
    id_scores: Values,
    ood_scores: Values,
    *,
    tpr: float = 0.95,
    positive: Positive = "ood",
    rule: FprRule = "first",
    aupr_kind: AuprKind = "average_precision",
) -> DetectionMetrics:
    """Compute AUROC, AUPR and FPR at a TPR of out-of-distribution scores.

    All images with the same score are flagged together (tie groups). AUROC is the mid-rank (Mann–Whitney) statistic,
    AUPR the average precision Σ (Rₙ − Rₙ₋₁) Pₙ, and FPR95 the false-positive rate at the strictest threshold with TP ≥
    ⌈tpr · P⌉. Counts are integers and divided once at the end, so that results depend on the ranking alone, not on the
    scale of the scores or on rounding.

    Args:
        id_scores: `[..., N]` in-distribution scores, higher = more OOD; bool, integer or floating point, ±inf allowed;
            a tensor, an array or a list. Leading dimensions broadcast against those of `ood_scores`; ID scores shared
            by many OOD sets are sorted once.
        ood_scores: `[..., M]` OOD scores, same dtype and device.
        tpr: True-positive rate for `fpr_at_tpr`, in (0, 1].
        positive: The positive class. "ood": Li & Vasconcelos 2020, Hendrycks 2019, OpenOOD v1.5.
            "id": ODIN, Mahalanobis, energy. The same scores can give very different FPR95 and AUPR.
        rule: Where the FPR is read, see `FprRule`. All but "first" evaluate the sets one by one.
        aupr_kind: Definition of the AUPR, see `AuprKind`. All but "average_precision" evaluate the sets one by one.

    Returns:
        The metrics as fractions: floats for two 1-D sets, else float64 tensors on the device of the scores.

    Raises:
        TypeError: If scores are not numeric, are complex or differ in dtype, or `tpr` is not a number.
        ValueError: If scores are empty, do not broadcast, hold NaN or are on different devices, `tpr`, `positive`,
            `rule` or `aupr_kind` is out of range, or no threshold satisfies the rule.

    Example:
        >>> id_scores = torch.tensor([0.1, 0.2, 0.3, 0.7])
        >>> metrics = detection_metrics(id_scores, torch.tensor([0.6, 0.9]))
        >>> metrics.auroc, metrics.fpr95, round(metrics.aupr, 4)
        (0.875, 0.25, 0.8333)
        >>> detection_metrics(id_scores, torch.tensor([[0.6, 0.9], [0.0, 0.5]])).auroc
        tensor([0.8750, 0.3750], dtype=torch.float64)
    """
    tpr = checked_tpr(tpr)
    check_choice("positive", positive, Positive)
    check_choice("rule", rule, FprRule)
    check_choice("aupr_kind", aupr_kind, AuprKind)
    id_scores, ood_scores = checked_pair(id_scores, ood_scores, batched=True)
    pair = ranked(id_scores, ood_scores)
    shape = _common_shape(id_scores, ood_scores)
    ranking = _ranking(pair, shape, tpr)
    fpr = ranking.fpr_ood if positive == "ood" else ranking.fpr_id
    threshold = ranking.threshold_ood if positive == "ood" else ranking.threshold_id
    values = {
        "auroc": ranking.auroc,
        "aupr_in": ranking.aupr_id,
        "aupr_out": ranking.aupr_ood,
        "fpr_at_tpr": fpr[:, 0],
        "threshold": pair.thresholds(threshold[:, 0]),
        "detection_error": ranking.detection_error,
    }
    id_rows, ood_rows = (scores.expand(*(shape or (1,)), -1).flatten(0, -2) for scores in (id_scores, ood_scores))
    if rule != "first":
        values |= _points(id_rows, ood_rows, tpr=tpr, positive=positive, rule=rule)
    if aupr_kind != "average_precision":
        values |= _areas(id_rows, ood_rows, aupr_kind)

    # One read for all numbers: a device is waited for once.
    numbers = [value.view(shape) for value in values.values()] if shape else torch.cat(list(values.values())).tolist()
    return DetectionMetrics(
        **dict(zip(values, numbers, strict=True)),
        tpr=tpr,
        positive=positive,
        rule=rule,
        aupr_kind=aupr_kind,
        id_count=id_scores.shape[-1],
        ood_count=ood_scores.shape[-1],
    )


def auroc(id_scores: Values, ood_scores: Values) -> float | Tensor:
    """Compute the AUROC, P(OOD score > ID score) + ½ P(equal); see `detection_metrics` for arguments and errors.

    Example:
        >>> auroc(torch.tensor([0, 1, 2]), torch.tensor([2, 3]))
        0.9166666666666666
    """
    return detection_metrics(id_scores, ood_scores).auroc


def average_precision(id_scores: Values, ood_scores: Values, *, positive: Positive = "ood") -> float | Tensor:
    """Compute Σ (Rₙ − Rₙ₋₁) Pₙ of the positive class; see `detection_metrics` for arguments and errors.

    Example:
        >>> average_precision(torch.tensor([0, 1, 2]), torch.tensor([2, 3]))
        0.8333333333333333
    """
    return detection_metrics(id_scores, ood_scores, positive=positive).aupr


def fpr_at_tpr(
    id_scores: Values,
    ood_scores: Values,
    *,
    tpr: float = 0.95,
    positive: Positive = "ood",
    rule: FprRule = "first",
) -> float | Tensor:
    """Compute the FPR at a TPR; see `detection_metrics` for arguments and errors.

    Example:
        >>> fpr_at_tpr(torch.tensor([0, 1, 2]), torch.tensor([2, 3]))
        0.3333333333333333
    """
    return detection_metrics(id_scores, ood_scores, tpr=tpr, positive=positive, rule=rule).fpr_at_tpr


def _common_shape(id_scores: Tensor, ood_scores: Tensor) -> tuple[int, ...]:
    try:
        return np.broadcast_shapes(id_scores.shape[:-1], ood_scores.shape[:-1])
    except ValueError:
        raise ValueError(
            "id_scores and ood_scores must have leading dimensions that broadcast, got shapes "
            f"{tuple(id_scores.shape)} and {tuple(ood_scores.shape)}"
        ) from None


def _ranking(pair: RankedPair, shape: tuple[int, ...], tpr: float) -> RankingStatistics:
    """Return the statistics of every pair, `[prod(shape)]`; each set is sorted once, however many pairs it is in."""
    id_scores, ood_scores, _ = pair
    id_keys = sort_scores(id_scores.reshape(-1, id_scores.shape[-1]))
    ood_keys = sort_scores(ood_scores.reshape(-1, ood_scores.shape[-1]))
    device = id_scores.device
    id_row, ood_row = (
        torch.arange(prod(leading), device=device).view(leading).expand(shape).reshape(-1)
        for leading in (id_scores.shape[:-1], ood_scores.shape[:-1])
    )
    # OOD rows are copied only if they broadcast; ID rows are addressed by `id_row`.
    if len(ood_keys) != len(ood_row):
        ood_keys = ood_keys[ood_row]
    return ranking_statistics(id_keys, ood_keys, id_row=id_row, tpr=(tpr,))


def _points(
    id_scores: Tensor, ood_scores: Tensor, *, tpr: float, positive: Positive, rule: FprRule
) -> dict[str, Tensor]:
    """Return FPR and threshold `[B]` by a rule, for `[B, N]` and `[B, M]` scores."""
    points = []
    for id_row, ood_row in zip(id_scores, ood_scores, strict=True):
        # Set by set: the number of distinct scores, and so the length of the counts, differs between sets.
        counts = count_at_thresholds(id_row, ood_row, positive=positive)
        ascending = (ood_row if positive == "ood" else id_row).sort().values
        points.append(operating_point(counts, tpr, rule, ascending))
    fpr, threshold = torch.tensor(points, dtype=torch.float64, device=id_scores.device).unbind(1)
    return {"fpr_at_tpr": fpr, "threshold": threshold}


def _areas(id_scores: Tensor, ood_scores: Tensor, aupr_kind: AuprKind) -> dict[str, Tensor]:
    """Return both AUPRs `[B]` for `[B, N]` and `[B, M]` scores."""
    areas = [
        [area_under_pr(count_at_thresholds(id_row, ood_row, positive=positive), aupr_kind) for positive in _CLASSES]
        for id_row, ood_row in zip(id_scores, ood_scores, strict=True)
    ]
    aupr_out, aupr_in = torch.tensor(areas, dtype=torch.float64, device=id_scores.device).unbind(1)
    return {"aupr_in": aupr_in, "aupr_out": aupr_out}
