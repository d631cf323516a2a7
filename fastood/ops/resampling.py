"""Resampled detection statistics: error bars and repeated subsampling from scores that are sorted once.

A replicate counts each sample an integer number of times, possibly 0. Its statistics are those of the sorted rows with
these counts as weights: one weighted pass, without another sort.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from fastood.ops._arguments import allocating, as_device, as_integer, shown
from fastood.ops._validation import require_same_device
from fastood.ops.ranking_statistics import RankingStatistics, checked_rates, statistics_shape, unpack
from fastood.ops.score_keys import MAX_COUNT, check_both_keys, check_per_row, check_range

Scheme = Literal["multinomial", "poisson", "subset"]
"""How sets are resampled; see `resampling_counts`."""

_SCHEMES = {"multinomial": 0, "poisson": 1, "subset": 2}  # Resampling of csrc/detection_metrics/random.h
# Bytes of the counts of a chunk of replicates. On the CPU, per thread, few enough for the C library to reuse memory:
# larger allocations are mapped for each chunk, with a fault for every page. On CUDA enough to hide the launches.
_THREAD_CHUNK_BYTES = 2 << 20
_CUDA_CHUNK_BYTES = 16 << 20

_weighted_ranking_statistics = torch.ops.fastood.weighted_ranking_statistics.default
_resampling_counts = torch.ops.fastood.resampling_counts.default


def _weighted_fake(
    id_keys: Tensor, ood_keys: Tensor, id_weight: Tensor | None, ood_weight: Tensor | None, tpr: Sequence[float]
) -> Tensor:
    require_same_device(id_keys, ood_keys, id_weight, ood_weight)
    weight = ood_weight if id_weight is None else id_weight
    assert weight is not None
    return id_keys.new_empty(statistics_shape(len(weight), tpr), dtype=torch.float64)


def _counts_fake(counts: Tensor, seed: int, stream: int, first_replicate: int, scheme: int, size: int) -> None:
    return None


torch.library.register_fake("fastood::weighted_ranking_statistics", _weighted_fake)
torch.library.register_fake("fastood::resampling_counts", _counts_fake)


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
    """Compute the statistics of R resampled pairs; `resampling_counts` gives how often each score counts.

    The rows stay sorted: a replicate costs its draws and one weighted pass. Both classes are resampled independently.
    "subset" with all ID scores (no `id_size`) and a fifth as many OOD scores is the protocol of Hendrycks et al.
    2019 and Li & Vasconcelos 2020.

    Args:
        id_keys: `[N]` of `sort_scores`, without padding.
        ood_keys: `[M]` of `sort_scores`, same dtype and device.
        seed: Any int64, for example from `torch.randint` with a generator.
        replicates: R. The first replicates are the same for any R.
        scheme: See `resampling_counts`.
        id_size: Number of ID scores that "subset" keeps; all (no draw) by default.
        ood_size: Number of OOD scores that "subset" keeps; all (no draw) by default.
        id_index: int64 `[N]`, the sample of each sorted ID key: `torch.argsort` of the scores. Samples are drawn, not
            scores, so that detectors of the same images get the same replicates. By default samples are numbered in
            sorted order.
        ood_index: int64 `[M]`, the sample of each sorted OOD key.
        id_repeats: Factor of the counts of ID scores; with `ood_repeats` it sets the ratio of the classes, on which
            average precision depends. Counts times repeats stay below 2^31.
        ood_repeats: Factor of the counts of OOD scores.
        tpr: T true-positive rates in (0, 1].

    Returns:
        Statistics `[R]` and `[R, T]`. A replicate without a sample of a class ("poisson", few scores) has NaN for all
        of them.

    Raises:
        TypeError: If keys are not int32 or int64 tensors or differ in dtype, or a number is not an integer.
        ValueError: If an argument has the wrong shape, device or range.
        RuntimeError: On the CPU, if a row of keys does not ascend.

    Example:
        >>> from fastood.ops.detection_metrics import sort_scores
        >>> scores = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0))
        >>> id_keys, ood_keys = sort_scores(scores[0]), sort_scores(scores[1] + 1)
        >>> statistics = resampled_statistics(id_keys, ood_keys, seed=0, replicates=200)
        >>> auroc = statistics.auroc
        >>> bool((auroc.mean() - 0.76).abs() < 0.02), bool((auroc.std() - 0.01).abs() < 0.002)
        (True, True)
    """
    check_both_keys(id_keys, ood_keys, dim=1)
    rates = checked_rates(tpr)
    _check_scheme(scheme)
    if scheme == "subset" and id_size is None and ood_size is None:
        raise ValueError('id_size or ood_size must be given with scheme "subset": by default no sample is left out')
    id_size = _checked_size(scheme, id_size, len(id_keys), "id_size")
    ood_size = _checked_size(scheme, ood_size, len(ood_keys), "ood_size")
    id_repeats = _checked_repeats(id_repeats, len(id_keys), "id_repeats")
    ood_repeats = _checked_repeats(ood_repeats, len(ood_keys), "ood_repeats")
    samples = (
        _Samples(0, len(id_keys), scheme, id_size, id_index, "id_index", id_repeats),
        _Samples(1, len(ood_keys), scheme, ood_size, ood_index, "ood_index", ood_repeats),
    )
    for of_class in samples:
        of_class.check(id_keys.device)
    seed = _checked_seed(seed)
    replicates, _ = _checked_replicates(replicates, 0)
    chunk = _replicates_at_once(4 * (len(id_keys) + len(ood_keys)), id_keys.device)
    chunks = [
        _weighted_ranking_statistics(
            id_keys[None].contiguous(),
            ood_keys[None].contiguous(),
            *(of_class.draw(seed, first, min(chunk, replicates - first), id_keys.device) for of_class in samples),
            rates,
        )
        for first in range(0, replicates, chunk)
    ]
    return unpack(chunks[0] if len(chunks) == 1 else torch.cat(chunks), len(rates))


def resampling_counts(
    count: int,
    *,
    seed: int,
    stream: int,
    replicates: int,
    scheme: Scheme,
    size: int | None = None,
    first_replicate: int = 0,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Count how often each of `count` samples is drawn.

    The j-th 64 random bits `u(j)` of a replicate are those of Philox4x32-10 (Salmon et al. 2011) with key `seed` and
    counter (j // 2, replicate, stream): the same on every device, for any number of threads.

        multinomial  `count` draws with replacement; draw j takes sample ⌊u(j) · count / 2⁶⁴⌋
        poisson      sample j counts k times where the Poisson(1) distribution reaches u(j) / 2⁶⁴ at k
        subset       the `size` samples j of smallest (u(j), j) count once; all of them without `size`

    Args:
        count: Number of samples, below 2^31.
        seed: Any int64.
        stream: Number of the independent stream of a seed, in [0, 2^32): 0 for ID, 1 for OOD samples.
        replicates: Number of replicates R.
        scheme: One of the schemes above.
        size: Number of samples that "subset" keeps.
        first_replicate: Number of the first replicate, to compute replicates in chunks.
        device: Device of the counts.

    Returns:
        int32 `[R, count]`.

    Raises:
        TypeError: If a number is not an integer; NumPy integers and tensors of one element are accepted.
        ValueError: If an argument is out of range.

    Example:
        >>> resampling_counts(6, seed=0, stream=0, replicates=2, scheme="multinomial").sum(1)
        tensor([6, 6])
        >>> resampling_counts(6, seed=0, stream=0, replicates=2, scheme="subset", size=4).sum(1)
        tensor([4, 4])
    """
    count = as_integer("count", count, 0, MAX_COUNT, wanted="an int in [0, 2^31)")
    seed = _checked_seed(seed)
    replicates, first_replicate = _checked_replicates(replicates, first_replicate)
    stream = as_integer("stream", stream, 0, 2**32 - 1, wanted="an int in [0, 2^32)")
    _check_scheme(scheme)
    size = _checked_size(scheme, size, count, "size")
    device = as_device("device", device)
    with allocating(f"replicates {replicates} of count {count}"):
        counts = torch.empty(replicates, count, dtype=torch.int32, device=device)
    kept = count if size is None else size
    _resampling_counts(counts, seed, stream, first_replicate, _SCHEMES[scheme], kept)
    return counts


@dataclass(frozen=True)
class _Samples:
    """How the samples of one class are resampled."""

    stream: int
    count: int
    scheme: Scheme
    size: int | None
    index: Tensor | None
    index_name: str
    repeats: int

    def check(self, device: torch.device) -> None:
        check_per_row(self.index, self.index_name, (self.count,), device)
        if self.index is not None:
            check_range(self.index, self.index_name, self.count - 1)

    def draw(self, seed: int, first: int, replicates: int, device: torch.device) -> Tensor | None:
        """Return the weights `[R, count]` of the sorted keys; None if each counts once."""
        # Every count is 1: null weights save the op a pass over them.
        if self.scheme == "subset" and self.size is None and self.repeats == 1:
            return None
        counts = resampling_counts(
            self.count,
            seed=seed,
            stream=self.stream,
            replicates=replicates,
            scheme=self.scheme,
            size=self.size,
            first_replicate=first,
            device=device,
        )
        if self.repeats > 1:
            counts *= self.repeats
        if self.index is None:
            return counts
        # gather: index_select along rows takes 2.5 times as long on the CPU.
        return counts.gather(1, self.index.expand(replicates, -1))


def _replicates_at_once(replicate_bytes: int, device: torch.device) -> int:
    threads = torch.get_num_threads()
    if device.type == "cpu":
        return threads * max(1, _THREAD_CHUNK_BYTES // max(1, replicate_bytes))
    return max(1, _CUDA_CHUNK_BYTES // max(1, replicate_bytes))


def _checked_seed(seed: int) -> int:
    return as_integer("seed", seed, -(2**63), 2**63 - 1, wanted="an int64")


def _checked_replicates(replicates: int, first: int) -> tuple[int, int]:
    replicates = as_integer("replicates", replicates, 1, wanted="at least 1 and an int")
    first = as_integer("first_replicate", first, 0)
    if first + replicates > 2**32:
        raise ValueError(
            f"replicates must be numbered below 2^32, got {shown(replicates)} from first_replicate {shown(first)} on"
        )
    return replicates, first


def most_repeats(count: int) -> int:
    """Return the largest factor for which totals and counts of `count` scores stay below 2^31."""
    return MAX_COUNT // max(count, 32)  # no Poisson count reaches 32


def _checked_repeats(repeats: int, count: int, name: str) -> int:
    most = most_repeats(count)
    return as_integer(name, repeats, 1, most, wanted=f"in [1, {most}] for {count} scores")


def _check_scheme(scheme: Scheme) -> None:
    if not isinstance(scheme, str) or scheme not in _SCHEMES:
        raise ValueError(f"scheme must be one of {', '.join(_SCHEMES)}, got {shown(scheme)}")


def _checked_size(scheme: Scheme, size: int | None, count: int, name: str) -> int | None:
    if size is None:
        return None
    if scheme != "subset":
        raise ValueError(f'{name} must be None unless scheme is "subset", got {shown(size)} with {scheme!r}')
    return as_integer(name, size, 0, count, wanted=f"in [0, {count}], the number of samples")
