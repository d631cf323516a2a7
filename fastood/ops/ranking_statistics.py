"""Exact detection statistics of sorted scores, for many pairs of sets in one call.

In-distribution (ID) and out-of-distribution (OOD) scores are each sorted once, as integer keys of the same order; every
statistic is then a count over the two sorted rows. A higher score is more OOD. With P scores of the positive class and
N of the other, TP and FP of them at a threshold (scores >= it with OOD positive, <= it with ID positive):

    auroc             (Σ over ID of the OOD scores above + ½ of those equal) / (P N), the same for either class
    aupr              Σ (TPₙ - TPₙ₋₁) / P · TPₙ / (TPₙ + FPₙ), strictest threshold first: average precision
    fpr               FP / N at the strictest threshold with TP / P >= tpr
    detection_error   min over thresholds of (FPR + 1 - TPR) / 2 (Liang et al. 2018)

Equal scores share a threshold. All counts are 64-bit integers; the two average precisions are float64 sums in an order
that depends on the keys alone. Results therefore have the same bits for any number of threads and any instruction set.
csrc/detection_metrics/math.h has the formulas, `fastood.ops.reference.detection_metrics` the plain PyTorch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastood.ops._arguments import as_real, shown
from fastood.ops._validation import require_same_device
from fastood.ops.score_keys import check_both_keys, check_per_row, check_range

_AREAS = 4  # kRates of csrc/detection_metrics/math.h

_ranking_statistics = torch.ops.fastood.ranking_statistics.default


class RankingStatistics(NamedTuple):
    """float64 statistics of B pairs of score sets (or B replicates of one), at T true-positive rates.

    NaN in all fields where a set is empty.
    """

    auroc: Tensor
    """`[B]` area under the ROC curve."""
    aupr_ood: Tensor
    """`[B]` average precision, OOD positive."""
    aupr_id: Tensor
    """`[B]` average precision, ID positive."""
    fpr_ood: Tensor
    """`[B, T]` FPR with OOD positive."""
    fpr_id: Tensor
    """`[B, T]` FPR with ID positive."""
    threshold_ood: Tensor
    """`[B, T]` the score at which `fpr_ood` is read: scores >= it are flagged as OOD."""
    threshold_id: Tensor
    """`[B, T]` the score at which `fpr_id` is read: scores <= it are accepted as ID."""
    detection_error: Tensor
    """`[B]` smallest mean of FPR and FNR over all thresholds."""


class RocCounts(NamedTuple):
    """Counts at the T distinct scores of both sets, descending."""

    keys: Tensor
    """`[T]` the distinct keys, largest first."""
    ood: Tensor
    """int64 `[T]` OOD scores >= the threshold."""
    id: Tensor
    """int64 `[T]` ID scores >= the threshold."""


def statistics_shape(rows: int, tpr: Sequence[float]) -> tuple[int, int]:
    """Return the shape of the ops' results; the columns are Statistic of csrc/detection_metrics/math.h."""
    return rows, _AREAS + 4 * len(tpr)


def _ranking_fake(
    id_keys: Tensor,
    ood_keys: Tensor,
    id_row: Tensor | None,
    id_count: Tensor | None,
    ood_count: Tensor | None,
    tpr: Sequence[float],
) -> Tensor:
    require_same_device(id_keys, ood_keys, id_row, id_count, ood_count)
    return id_keys.new_empty(statistics_shape(len(ood_keys), tpr), dtype=torch.float64)


torch.library.register_fake("fastood::ranking_statistics", _ranking_fake)


def ranking_statistics(
    id_keys: Tensor,
    ood_keys: Tensor,
    *,
    id_row: Tensor | None = None,
    id_count: Tensor | None = None,
    ood_count: Tensor | None = None,
    tpr: Sequence[float] = (0.95,),
) -> RankingStatistics:
    """Compute the statistics of B OOD sets, each against one of A ID sets.

    One merge of two sorted rows per pair; an ID row that serves many OOD rows is sorted once.

    Args:
        id_keys: `[A, N]` of `sort_scores`.
        ood_keys: `[B, M]` of `sort_scores`, same dtype and device.
        id_row: int64 `[B]`, the ID row of each OOD row; by default the row of the same number, or the only one.
        id_count: int64 `[A]`, number of leading keys of each ID row that count; all by default.
        ood_count: int64 `[B]`, number of leading keys of each OOD row that count; all by default.
        tpr: T true-positive rates in (0, 1]. TP / P >= tpr is compared in float64, as in sklearn: 0.95 of 20 is 19.

    Returns:
        Statistics `[B]` and `[B, T]` on the same device. On CUDA the call does not synchronise: a NaN score, or an
        `id_row` or count out of range, makes the statistics of its pairs NaN.

    Raises:
        TypeError: If keys are not int32 or int64 tensors, or differ in dtype.
        ValueError: If an argument has the wrong shape, device or range.
        RuntimeError: On the CPU, if a row of keys does not ascend.

    Example:
        >>> from fastood.ops.detection_metrics import sort_scores
        >>> id_keys, ood_keys = (sort_scores(torch.tensor([row])) for row in ([0.1, 0.2, 0.3, 0.7], [0.6, 0.9]))
        >>> statistics = ranking_statistics(id_keys, ood_keys)
        >>> statistics.auroc.item(), statistics.fpr_ood.item(), round(statistics.aupr_ood.item(), 4)
        (0.875, 0.25, 0.8333)
    """
    check_both_keys(id_keys, ood_keys, dim=2)
    num_id_rows, num_pairs = len(id_keys), len(ood_keys)
    if id_row is None and num_id_rows not in (1, num_pairs):
        raise ValueError(f"id_keys must have 1 or {num_pairs} rows, or id_row say which, got {num_id_rows}")
    for numbers, name, rows, limit in (
        (id_row, "id_row", num_pairs, num_id_rows - 1),
        (id_count, "id_count", num_id_rows, id_keys.shape[1]),
        (ood_count, "ood_count", num_pairs, ood_keys.shape[1]),
    ):
        check_per_row(numbers, name, (rows,), id_keys.device)
        if numbers is not None:
            check_range(numbers, name, limit)
    rates = checked_rates(tpr)
    numbers_per_row = (_contiguous(id_row), _contiguous(id_count), _contiguous(ood_count))
    return unpack(_ranking_statistics(id_keys.contiguous(), ood_keys.contiguous(), *numbers_per_row, rates), len(rates))


def roc_counts(id_keys: Tensor, ood_keys: Tensor) -> RocCounts:
    """Count ID and OOD scores at every distinct score, for curves.

    Args:
        id_keys: `[N]` of `sort_scores`, without padding.
        ood_keys: `[M]` of `sort_scores`, same dtype and device.

    Raises:
        TypeError: If keys are not int32 or int64 tensors, or differ in dtype.
        ValueError: If keys have the wrong shape or are on different devices.

    Example:
        >>> from fastood.ops.detection_metrics import keys_to_scores, sort_scores
        >>> counts = roc_counts(sort_scores(torch.tensor([0.0, 1.0, 1.0])), sort_scores(torch.tensor([1.0, 2.0])))
        >>> keys_to_scores(counts.keys).tolist(), counts.ood.tolist(), counts.id.tolist()
        ([2.0, 1.0, 0.0], [1, 2, 2], [0, 2, 3])
    """
    check_both_keys(id_keys, ood_keys, dim=1)
    keys = torch.unique(torch.cat((id_keys, ood_keys))).flip(0)
    below_ood, below_id = (torch.searchsorted(sorted_keys.contiguous(), keys) for sorted_keys in (ood_keys, id_keys))
    return RocCounts(keys=keys, ood=len(ood_keys) - below_ood, id=len(id_keys) - below_id)


def unpack(statistics: Tensor, num_rates: int) -> RankingStatistics:
    """Return the columns of the ops' results by name."""
    auroc, aupr_ood, aupr_id, detection_error = statistics[:, :_AREAS].unbind(1)
    fpr_ood, fpr_id, threshold_ood, threshold_id = torch.split(statistics[:, _AREAS:], num_rates, 1)
    return RankingStatistics(auroc, aupr_ood, aupr_id, fpr_ood, fpr_id, threshold_ood, threshold_id, detection_error)


def _contiguous(tensor: Tensor | None) -> Tensor | None:
    return None if tensor is None else tensor.contiguous()


def checked_rates(tpr: Sequence[float]) -> list[float]:
    """Return the rates as a list, or raise unless all are in (0, 1]."""
    try:
        values = list(tpr)
    except TypeError:
        raise TypeError(f"tpr must be a sequence of rates, such as (0.95,), got {shown(tpr)}") from None
    rates = [as_real("tpr", rate, wanted="a sequence of rates") for rate in values]
    if not rates:
        raise ValueError(f"tpr must hold at least one rate, got {shown(tpr)}")
    wrong = [rate for rate in rates if not 0 < rate <= 1]
    if wrong:
        raise ValueError(f"tpr must hold rates above 0 and at most 1, got {wrong[0]}")
    return rates
