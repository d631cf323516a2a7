"""Reference of the detection statistics in plain float64 PyTorch, one set at a time, one threshold per distinct score.

The signatures are those of `fastood.ops.detection_metrics`. Higher scores are more OOD.

    P, N        scores of the positive and of the other class
    TP, FP      flagged at a threshold: scores >= it with OOD positive, <= it with ID positive
    AUROC       (Σ over ID of the OOD scores above + ½ of those equal) / (id · ood); equal for either positive class
    AUPR        Σ (TPₙ - TPₙ₋₁) / P · TPₙ / (TPₙ + FPₙ), strictest threshold first (average precision)
    FPR         FP / N at the strictest threshold where TP >= ⌈tpr · P⌉
    error       min over thresholds of (FP / N + 1 - TP / P) / 2, where nothing flagged counts as one more
"""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from math import ceil

import numpy as np
import torch
from torch import Tensor

from fastood.ops.ranking_statistics import RankingStatistics, RocCounts
from fastood.ops.resampling import Scheme


def sort_scores(scores: Tensor) -> Tensor:
    """Return order-preserving integer keys `[..., N]`, each row ascending: int64 for float64, int32 for other scores.

    Example:
        >>> keys = sort_scores(torch.tensor([0.5, -float("inf"), -0.0, 0.0]))
        >>> keys_to_scores(keys).tolist()
        [-inf, 0.0, 0.0, 0.5]
    """
    if scores.isnan().any():
        raise ValueError("scores must not hold NaN")
    scores = scores.detach() if scores.dtype == torch.float64 else scores.detach().float()
    key_dtype, magnitude = _bits_of(scores.dtype)
    bits = torch.where(scores == 0, 0.0, scores).contiguous().view(key_dtype)
    return torch.where(bits < 0, bits ^ magnitude, bits).sort(-1).values


def keys_to_scores(keys: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return the scores of keys, float64 for int64 and float32 for int32 keys, converted to `dtype`."""
    magnitude = torch.iinfo(keys.dtype).max
    bits = torch.where(keys < 0, keys ^ magnitude, keys)
    scores = bits.contiguous().view(torch.float64 if keys.dtype == torch.int64 else torch.float32)
    return scores if dtype is None else scores.to(dtype)


def roc_counts(id_keys: Tensor, ood_keys: Tensor) -> RocCounts:
    """Count `[N]` ID and `[M]` OOD keys at every distinct key."""
    keys = torch.unique(torch.cat((id_keys, ood_keys))).flip(0)
    ood, ind = (len(ascending) - torch.searchsorted(ascending, keys) for ascending in (ood_keys, id_keys))
    return RocCounts(keys=keys, ood=ood, id=ind)


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

    Args:
        id_keys: `[A, N]` of `sort_scores`.
        ood_keys: `[B, M]` of `sort_scores`.
        id_row: int64 `[B]`, the ID row of each OOD row; by default the row of the same number, or the only one.
        id_count: int64 `[A]`, number of leading keys of each ID row that count; all by default.
        ood_count: int64 `[B]`, number of leading keys of each OOD row that count; all by default.
        tpr: T true-positive rates in (0, 1].

    Example:
        >>> id_keys, ood_keys = (sort_scores(torch.tensor([row])) for row in ([0.1, 0.2, 0.3, 0.7], [0.6, 0.9]))
        >>> statistics = ranking_statistics(id_keys, ood_keys)
        >>> statistics.auroc.item(), statistics.fpr_ood.item(), round(statistics.aupr_ood.item(), 4)
        (0.875, 0.25, 0.8333)
    """
    results = []
    for b, row in enumerate(ood_keys):
        a = int(id_row[b]) if id_row is not None else (b if len(id_keys) == len(ood_keys) else 0)
        ind = id_keys[a] if id_count is None else id_keys[a, : int(id_count[a])]
        ood = row if ood_count is None else row[: int(ood_count[b])]
        results.append(_statistics_of(ind, ood, tpr))
    return RankingStatistics(*(torch.stack(values) for values in zip(*results, strict=True)))


def resampled_statistics(
    id_keys: Tensor,
    ood_keys: Tensor,
    *,
    seed: int,
    replicates: int,
    scheme: Scheme = "multinomial",
    id_size: int | None = None,
    ood_size: int | None = None,
    id_index: Tensor | None = None,
    ood_index: Tensor | None = None,
    id_repeats: int = 1,
    ood_repeats: int = 1,
    tpr: Sequence[float] = (0.95,),
) -> RankingStatistics:
    """Compute statistics `[R]` (`[R, T]`) of resampled sets; `resampling_counts` gives how often each score counts.

    Args:
        id_keys: `[N]` of `sort_scores`.
        ood_keys: `[M]` of `sort_scores`.
        seed: Any int64. Both classes are resampled independently.
        replicates: Number of replicates R.
        scheme: See `resampling_counts`.
        id_size: Number of ID scores that "subset" keeps; all (no draw) by default.
        ood_size: Number of OOD scores that "subset" keeps; all (no draw) by default.
        id_index: int64 `[N]`, the sample of each sorted ID key. Samples are drawn, not scores, so that detectors of the
            same images get the same replicates. By default samples are numbered in sorted order.
        ood_index: int64 `[M]`, the sample of each sorted OOD key.
        id_repeats: Factor of the counts of ID scores.
        ood_repeats: Factor of the counts of OOD scores.
        tpr: T true-positive rates in (0, 1].

    A replicate that draws nothing of a class ("poisson", few scores) has NaN for all its statistics.
    """
    drawn = []
    classes = ((id_keys, id_index, id_size, id_repeats), (ood_keys, ood_index, ood_size, ood_repeats))
    for stream, (keys, index, size, repeats) in enumerate(classes):
        counts = resampling_counts(len(keys), seed=seed, stream=stream, replicates=replicates, scheme=scheme, size=size)
        drawn.append(repeats * (counts if index is None else counts[:, index]))
    results = [
        _statistics_of(id_keys.repeat_interleave(id_counts), ood_keys.repeat_interleave(ood_counts), tpr)
        for id_counts, ood_counts in zip(*drawn, strict=True)
    ]
    return RankingStatistics(*(torch.stack(values) for values in zip(*results, strict=True)))


def resampling_counts(
    count: int, *, seed: int, stream: int, replicates: int, scheme: Scheme, size: int | None = None
) -> Tensor:
    """Count how often each of `count` samples is drawn, int64 `[R, count]`.

    With `u(j)` the j-th 64 random bits of the replicate:

        multinomial  `count` draws with replacement; draw j takes sample ⌊u(j) · count / 2⁶⁴⌋
        poisson      sample j counts k times where the Poisson(1) distribution reaches u(j) / 2⁶⁴ at k
        subset       the `size` samples j of smallest (u(j), j) count once; all of them without `size`

    Args:
        count: Number of samples.
        seed: Any int64.
        stream: 0 for ID, 1 for OOD samples.
        replicates: Number of replicates R.
        scheme: One of the schemes above.
        size: Number of samples that "subset" keeps.
    """
    counts = torch.zeros(replicates, count, dtype=torch.int64)
    for replicate in range(replicates):
        bits = _random_bits(count, seed, stream, replicate)
        if scheme == "multinomial":
            drawn = [int(u) * count >> 64 for u in bits]
            counts[replicate] = torch.from_numpy(np.bincount(drawn, minlength=count))
        elif scheme == "poisson":
            counts[replicate] = torch.from_numpy(np.searchsorted(_POISSON, bits, side="right"))
        elif size is None:
            counts[replicate] = 1
        else:
            counts[replicate, torch.from_numpy(np.argsort(bits, kind="stable")[:size])] = 1
    return counts


def _poisson_thresholds() -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """Return ⌊2⁶⁴ Σ_{i<=k} 1 / (e i!)⌋ for k = 0 … 19, after which less than 2⁻⁶⁴ is left: in exact arithmetic."""
    factorial, e_series = 1, Fraction(0)
    for i in range(40):
        factorial = factorial * i if i else 1
        e_series += Fraction(1, factorial)
    factorial, partial, thresholds = 1, Fraction(0), []
    for i in range(20):
        factorial = factorial * i if i else 1
        partial += Fraction(1, factorial)
        thresholds.append(int(2**64 * partial / e_series))
    return np.array(thresholds, dtype=np.uint64)


_POISSON = _poisson_thresholds()


def _random_bits(count: int, seed: int, stream: int, replicate: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """Return uint64 `[count]` of Philox4x32-10 (Salmon et al. 2011), two numbers of a block.

    The key is the seed, low word first; the counter (block, block >> 32, replicate, stream).
    """
    block = np.arange((count + 1) // 2, dtype=np.uint64)
    word, low = np.uint64(32), np.uint64(0xFFFFFFFF)
    c0, c1 = block & low, block >> word
    c2, c3 = np.full_like(block, replicate), np.full_like(block, stream)
    k0, k1 = np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32 & 0xFFFFFFFF)
    for _ in range(10):
        m0, m1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = (m1 >> word) ^ c1 ^ k0, m1 & low, (m0 >> word) ^ c3 ^ k1, m0 & low
        k0, k1 = (k0 + np.uint64(0x9E3779B9)) & low, (k1 + np.uint64(0xBB67AE85)) & low
    return np.stack((c1 << word | c0, c3 << word | c2), axis=1).reshape(-1)[:count]


def _bits_of(dtype: torch.dtype) -> tuple[torch.dtype, int]:
    """Return the integer dtype of the size of a float dtype, and the mask of all bits but the sign."""
    key_dtype = torch.int64 if dtype == torch.float64 else torch.int32
    return key_dtype, torch.iinfo(key_dtype).max


def _statistics_of(id_keys: Tensor, ood_keys: Tensor, tpr: Sequence[float]) -> list[Tensor]:
    """Return the fields of `RankingStatistics` for one pair of sorted sets: `[]`, or `[T]` for those per TPR."""
    id_count, ood_count = len(id_keys), len(ood_keys)
    if id_count == 0 or ood_count == 0:
        nan, per_rate = torch.tensor(torch.nan, dtype=torch.float64), torch.full((len(tpr),), torch.nan).double()
        return [nan, nan, nan, per_rate, per_rate, per_rate, per_rate, nan]
    keys, ood_above, id_above = roc_counts(id_keys, ood_keys)
    # With ID positive scores <= a threshold are flagged: all but those above it, smallest threshold first.
    ood_below = (ood_count - torch.cat((ood_above.new_zeros(1), ood_above[:-1]))).flip(0)
    id_below = (id_count - torch.cat((id_above.new_zeros(1), id_above[:-1]))).flip(0)
    fpr_ood, threshold_ood = _fpr_at(ood_above, id_above, keys, tpr)
    fpr_id, threshold_id = _fpr_at(id_below, ood_below, keys.flip(0), tpr)
    pairs_above = (2 * ood_above.double() - _gains(ood_above)) * _gains(id_above) / 2
    error = (id_above.double() / id_count + 1 - ood_above.double() / ood_count) / 2
    return [
        pairs_above.sum() / (id_count * ood_count),
        _average_precision(ood_above, id_above),
        _average_precision(id_below, ood_below),
        fpr_ood,
        fpr_id,
        threshold_ood,
        threshold_id,
        error.min().clamp(max=0.5),
    ]


def _gains(cumulative: Tensor) -> Tensor:
    return cumulative.diff(prepend=cumulative.new_zeros(1))


def _average_precision(true_positives: Tensor, false_positives: Tensor) -> Tensor:
    precision = true_positives.double() / (true_positives + false_positives)
    return (_gains(true_positives) * precision).sum() / true_positives[-1]


def _fpr_at(
    true_positives: Tensor, false_positives: Tensor, keys: Tensor, tpr: Sequence[float]
) -> tuple[Tensor, Tensor]:
    # Rates as decimals: 0.95 is 19/20, not its binary neighbour.
    required = [ceil(Fraction(repr(float(rate))) * int(true_positives[-1])) for rate in tpr]
    first = [int((true_positives >= count).nonzero()[0]) for count in required]
    fpr = false_positives[first].double() / false_positives[-1]
    return fpr, keys_to_scores(keys[first], torch.float64)
