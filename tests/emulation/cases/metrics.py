"""Calls of the ops of the detection metrics: keys, statistics of pairs and of replicates, resampling."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from tests.emulation.cases.case import Case, Ops, refusal
from tests.support.detection_metrics_samples import DTYPES, KINDS, RATES, PairSample

METRICS = "detection_metrics"
MANY_RATES = tuple((k + 1) / 100 for k in range(100))


def _keys(scores: Tensor, counts: Tensor | None = None) -> Tensor:
    return torch.ops.fastood.sort_scores(scores, counts)


def _pair(sample: PairSample, dtype: torch.dtype = torch.float32, second_turn: bool = False) -> Case:
    scores = [x[None] for x in sample.make(dtype)]
    keys = [_keys(x) for x in scores]

    def run(ops: Ops) -> Iterator[Tensor]:
        yield from (ops.sort_scores(x, None) for x in scores)
        yield ops.ranking_statistics(*keys, None, None, None, list(RATES))

    return Case(METRICS, f"{sample}-{dtype}", run, second_turn=second_turn)


def _rows() -> Iterator[Case]:
    generator = torch.Generator().manual_seed(1)
    id_scores, ood_scores = torch.randn(3, 700, generator=generator), torch.randn(5, 90, generator=generator)
    id_keys, ood_keys = _keys(id_scores), _keys(ood_scores)
    id_row = torch.tensor([2, 0, 0, 1, 2])
    id_count, ood_count = torch.tensor([700, 1, 333]), torch.tensor([90, 0, 1, 45, 89])
    outside = torch.tensor([2, -1, 3, 1, 2])
    counts_outside = torch.tensor([700, 701, -1])

    def by_row(name: str, *numbers: Tensor | None, rates: tuple[float, ...] = RATES) -> Case:
        return Case(
            METRICS,
            name,
            lambda ops: [ops.ranking_statistics(id_keys, ood_keys, *numbers, list(rates))],
            second_turn=True,
        )

    yield by_row("rows by number and counts", id_row, id_count, ood_count)
    yield by_row("a hundred rates", id_row, id_count, ood_count, rates=MANY_RATES)
    yield by_row("no rates", id_row, id_count, ood_count, rates=())
    for name, one_row in (("one ID row", id_keys[:1].contiguous()), ("rows of the same number", None)):
        first = id_keys.repeat(2, 1)[:5].contiguous() if one_row is None else one_row
        yield Case(
            METRICS,
            name,
            lambda ops, first=first: [ops.ranking_statistics(first, ood_keys, None, None, None, [0.95])],
            second_turn=True,
        )
    for name, numbers in (("rows", (outside, None, None)), ("counts", (id_row, counts_outside, ood_count))):
        yield _outside(name, id_keys, ood_keys, numbers, id_row)
    counts = torch.tensor([1, 17, 700])
    yield Case(METRICS, "keys of leading scores", lambda ops: [ops.sort_scores(id_scores, counts)], second_turn=True)
    no_pairs, no_columns = ood_keys[:0].contiguous(), ood_keys[:, :0].contiguous()
    for name, empty in (("no pairs", no_pairs), ("empty rows", no_columns)):
        yield Case(
            METRICS,
            name,
            lambda ops, empty=empty: [ops.ranking_statistics(id_keys[:1], empty, None, None, None, [0.95])],
        )
    # One ulp above a third, of which the product with 3 is 1: the quotient is compared.
    long_rows = _keys(torch.randn(5, 3000, generator=generator))
    yield Case(
        METRICS,
        "rows of two tiles",
        lambda ops: [ops.ranking_statistics(id_keys[:1], long_rows, None, None, None, [0.95])],
        second_turn=True,
    )
    # 131 tiles of 2,048 scores: more than a block has threads, each of which adds up every 128th.
    many = _keys((torch.arange(267_000) * 7919 % 5003)[None].float())
    yield Case(
        METRICS,
        "more tiles than threads",
        lambda ops: [ops.ranking_statistics(many[:, ::9001].contiguous(), many, None, None, None, [0.95])],
        large=True,
    )
    three = id_keys[:, :3].contiguous()
    rates = [math.nextafter(k / 3, 1) for k in (1, 2)]
    yield Case(
        METRICS,
        "rates above a quotient",
        lambda ops: [ops.ranking_statistics(three, three, None, None, None, rates)],
    )
    yield Case(METRICS, "no scores", lambda ops: [ops.sort_scores(id_scores[:0], None)])
    with_nan = id_scores[:2].clone()
    with_nan[0, 5] = torch.nan
    yield Case(
        METRICS,
        "NaN scores",
        lambda ops: [
            ops.sort_scores(with_nan, None),
            ops.ranking_statistics(_keys(with_nan), ood_keys[:2], None, None, None, [0.95]),
        ],
    )
    yield refusal(
        METRICS, "a rate of 0", lambda ops: ops.ranking_statistics(id_keys[:1], ood_keys, None, None, None, [0.0])
    )


def _outside(
    name: str, id_keys: Tensor, ood_keys: Tensor, numbers: tuple[Tensor | None, ...], valid_row: Tensor
) -> Case:
    """Return the case of rows or counts that are out of range: NaN on CUDA, refused by the CPU op."""
    id_row, id_count, ood_count = numbers
    assert id_row is not None
    size = id_keys.shape[1]
    bad = (id_row < 0) | (id_row >= len(id_keys))
    row = torch.where(bad, valid_row, id_row)
    if id_count is not None:
        bad |= ((id_count < 0) | (id_count > size))[row]
        id_count_valid = id_count.clamp(0, size)
    else:
        id_count_valid = None

    def run(ops: Ops) -> list[Tensor]:
        if ops is not torch.ops.fastood:
            return [ops.ranking_statistics(id_keys, ood_keys, *numbers, [0.95])]
        found = ops.ranking_statistics(id_keys, ood_keys, row, id_count_valid, ood_count, [0.95])
        found[bad] = torch.nan
        return [found]

    return Case(METRICS, f"{name} out of range", run)


def _replicates() -> Iterator[Case]:
    generator = torch.Generator().manual_seed(2)
    # Three tiles; and one weight after a chunk of 2,048.
    for num_ood in (5001, 2049):
        long_id, long_ood = (_keys(x[None]) for x in PairSample("tied", 70, num_ood).make())
        weight = torch.randint(0, 3, (5, num_ood), dtype=torch.int32, generator=generator)
        yield Case(
            METRICS,
            f"weights of {num_ood} scores",
            lambda ops, args=(long_id, long_ood, None, weight): [ops.weighted_ranking_statistics(*args, [0.95])],
            second_turn=True,
        )
    id_scores, ood_scores = PairSample("tied", 70, 2301).make()
    for dtype in (torch.float32, torch.float64):
        id_keys, ood_keys = _keys(id_scores[None].to(dtype)), _keys(ood_scores[None].to(dtype))
        id_weight = torch.randint(0, 4, (4, 70), dtype=torch.int32, generator=generator)
        ood_weight = torch.randint(0, 3, (4, 2301), dtype=torch.int32, generator=generator)
        id_weight[1] = 0
        for name, weights in (
            ("both", (id_weight, ood_weight)),
            ("ID", (id_weight, None)),
            ("OOD", (None, ood_weight)),
            ("no replicates", (id_weight[:0], None)),
        ):
            yield Case(
                METRICS,
                f"weights of {name}, {dtype}",
                lambda ops, keys=(id_keys, ood_keys), weights=weights: [
                    ops.weighted_ranking_statistics(*keys, *weights, list(RATES))
                ],
                second_turn=True,
            )
    id_keys, ood_keys = _keys(id_scores[None]), _keys(ood_scores[None])
    bad = torch.ones(2, 70, dtype=torch.int32)
    bad[0, 43] = -1  # seen by a thread other than the first
    bad[1] = 2**31 - 1

    def negative(ops: Ops) -> list[Tensor]:
        if ops is not torch.ops.fastood:
            return [ops.weighted_ranking_statistics(id_keys, ood_keys, bad, None, [0.95])]
        return [torch.full((2, 8), torch.nan, dtype=torch.float64)]  # refused by the CPU op

    yield Case(METRICS, "negative and too large weights", negative)
    empty = ood_keys[:, :0].contiguous()
    yield Case(
        METRICS,
        "weights of no scores",
        lambda ops: [
            ops.weighted_ranking_statistics(id_keys, empty, torch.ones(2, 70, dtype=torch.int32), None, [0.95]),
            ops.weighted_ranking_statistics(empty, empty, torch.ones(2, 0, dtype=torch.int32), None, []),
        ],
    )


def _counts(name: str, scheme: int, replicates: int, count: int, size: int) -> Case:
    def run(ops: Ops) -> list[Tensor]:
        counts = torch.full((replicates, count), -7, dtype=torch.int32)
        ops.resampling_counts(counts, -3, 1, 2, scheme, size)
        return [counts]

    return Case(METRICS, f"{name} counts {replicates}x{count} of {size}", run, second_turn=count > 100)


def _all_counts() -> Iterator[Case]:
    for scheme, name in ((0, "multinomial"), (1, "poisson"), (2, "subset")):
        for replicates, count in ((3, 1), (5, 999), (0, 4), (3, 0)):
            # A third, all, and none of the samples.
            for size in sorted({count // 3, count, 0}) if scheme == 2 else [count]:
                yield _counts(name, scheme, replicates, count, size)
    # All but the largest number, which is in the last bin with others.
    yield _counts("subset", 2, 5, 4099, 4098)


def metrics_cases() -> list[Case]:
    """Return the cases of the detection metrics."""
    samples = [
        *(PairSample(kind, num_id, num_ood) for kind in KINDS for num_id, num_ood in ((1, 2), (127, 129))),
        *(PairSample(kind, 1000, 1300) for kind in ("random", "tied", "two values", "constant", "touching")),
        PairSample("tied", 2048, 2048),
        PairSample("two values", 2048, 2048),
        PairSample("random", 2047, 2),
    ]
    return [
        *(_pair(sample) for sample in samples),
        *(_pair(PairSample("tied", 127, 129), dtype) for dtype in DTYPES if dtype != torch.float32),
        _pair(PairSample("tied", 2500, 3000), second_turn=True),
        _pair(PairSample("constant", 2500, 3000), second_turn=True),
        _pair(PairSample("random", 2500, 3000), torch.float64, second_turn=True),
        *_rows(),
        *_replicates(),
        *_all_counts(),
    ]
