"""Resampled statistics: what is drawn, how often, and that each replicate is that of the set it stands for."""

import pytest
import torch
from scipy import stats
from torch import Tensor

from fastood.ops import detection_metrics as ops
from fastood.ops import resampling
from fastood.ops.detection_metrics import RankingStatistics, Scheme, resampling_counts
from fastood.ops.reference import detection_metrics as reference
from tests.support.detection_metrics_samples import PairSample

SCHEMES: list[tuple[Scheme, float | None]] = [("multinomial", None), ("poisson", None), ("subset", 0.2)]
schemes = pytest.mark.parametrize(("scheme", "share"), SCHEMES, ids=[scheme for scheme, _ in SCHEMES])
RATES = (0.5, 0.95)


def size_of(share: float | None, count: int) -> int | None:
    return None if share is None else round(share * count)


def keys_of(pair: PairSample) -> tuple[Tensor, Tensor]:
    id_scores, ood_scores = pair.make()
    return ops.sort_scores(id_scores), ops.sort_scores(ood_scores)


def assert_close(got: RankingStatistics, want: RankingStatistics, tolerance: float = 1e-13) -> None:
    for name, a, b in zip(got._fields, got, want, strict=True):
        torch.testing.assert_close(
            a, b, rtol=tolerance, atol=tolerance, equal_nan=True, msg=lambda text, name=name: f"{name}: {text}"
        )


@schemes
@pytest.mark.parametrize("count", [0, 1, 2, 37, 1023, 1024, 1025, 5001])
def test_counts_are_those_of_the_reference(scheme: Scheme, share: float | None, count: int) -> None:
    for seed, stream in ((0, 0), (-1, 1), (2**62 + 12345, 2**32 - 1)):
        settings = {"seed": seed, "stream": stream, "replicates": 3, "scheme": scheme, "size": size_of(share, count)}
        got = resampling_counts(count, **settings)
        assert got.dtype == torch.int32
        assert torch.equal(got.long(), reference.resampling_counts(count, **settings))


@pytest.mark.parametrize("size", [0, 1, 2, 500, 999, 1000])
def test_subsets_of_any_size(size: int) -> None:
    settings = {"seed": 1, "stream": 0, "replicates": 5, "scheme": "subset", "size": size}
    got = resampling_counts(1000, **settings)
    assert got.sum(1).tolist() == [size] * 5
    assert torch.equal(got.long(), reference.resampling_counts(1000, **settings))


@schemes
def test_samples_are_drawn_alike(scheme: Scheme, share: float | None) -> None:
    """Means, variances and the chi-square of the totals of each sample, over replicates."""
    count, replicates = 200, 4000
    drawn = resampling_counts(
        count, seed=5, stream=0, replicates=replicates, scheme=scheme, size=size_of(share, count)
    ).double()
    mean = 1.0 if share is None else share
    variance = {"multinomial": 1 - 1 / count, "poisson": 1.0, "subset": mean * (1 - mean)}[scheme]
    totals = drawn.sum(0)
    chi_square = float(((totals - mean * replicates) ** 2 / (variance * replicates)).sum())
    degrees = count if scheme == "poisson" else count - 1
    # With a fixed total the deviations are correlated, which widens each of them by count / (count - 1).
    assert 1e-3 < stats.chi2.sf(chi_square * degrees / count, degrees) < 1 - 1e-3
    assert abs(float(drawn.var()) / variance - 1) < 0.01
    pairs = torch.corrcoef(drawn.T)
    pairs.fill_diagonal_(0)
    expected = 0.0 if scheme == "poisson" else -1 / (count - 1)
    assert abs(float(pairs.sum() / (count * (count - 1))) - expected) < 1e-3
    assert float(pairs.abs().max()) < 6 / replicates**0.5


def test_counts_have_the_right_distribution() -> None:
    for scheme, distribution in (("multinomial", stats.binom(300, 1 / 300)), ("poisson", stats.poisson(1))):
        drawn = resampling_counts(300, seed=0, stream=0, replicates=2000, scheme=scheme).flatten()
        seen = torch.bincount(drawn, minlength=8)
        expected = torch.tensor([distribution.pmf(k) for k in range(7)] + [distribution.sf(6)]) * len(drawn)
        seen = torch.cat((seen[:7], seen[7:].sum()[None]))
        # The 300 counts of a multinomial replicate are not quite independent: a wide margin.
        assert stats.chi2.sf(float(((seen - expected) ** 2 / expected).sum()), 7) > 1e-3


@schemes
@pytest.mark.parametrize("kind", ["random", "tied", "constant", "infinities"])
def test_statistics_are_those_of_the_reference(scheme: Scheme, share: float | None, kind: str) -> None:
    for num_id, num_ood in ((1, 1), (5, 300), (700, 400), (2100, 50)):
        id_keys, ood_keys = keys_of(PairSample(kind, num_id, num_ood))
        generator = torch.Generator().manual_seed(0)
        indices = {
            "id_index": torch.randperm(num_id, generator=generator),
            "ood_index": torch.randperm(num_ood, generator=generator),
        }
        sizes = {} if share is None else {"ood_size": max(1, round(share * num_ood))}
        for index in ({}, indices):
            settings = {"seed": 11, "replicates": 4, "scheme": scheme, "tpr": RATES, **sizes, **index}
            settings |= {"id_repeats": 3} if num_id > num_ood else {"ood_repeats": 2}
            got = ops.resampled_statistics(id_keys, ood_keys, **settings)
            assert_close(got, reference.resampled_statistics(id_keys, ood_keys, **settings))


def test_whole_numbers_for_weights_repeat_scores() -> None:
    """A weighted row is the row with its scores repeated; rounding differs in the average precisions alone."""
    id_keys, ood_keys = keys_of(PairSample("tied", 3000, 2500))
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randint(0, 4, (1, len(k)), generator=generator, dtype=torch.int32) for k in (id_keys, ood_keys)]
    got = torch.ops.fastood.weighted_ranking_statistics(id_keys[None], ood_keys[None], *weights, [*RATES])
    repeated = (k.repeat_interleave(w[0]) for k, w in zip((id_keys, ood_keys), weights, strict=True))
    want = torch.ops.fastood.ranking_statistics(*(k[None] for k in repeated), None, None, None, [*RATES])
    torch.testing.assert_close(got, want, rtol=1e-14, atol=0)
    exact = [0, 3, *range(4, got.shape[1])]
    assert torch.equal(got[:, exact], want[:, exact])


def test_li_2020_protocol_keeps_id_whole() -> None:
    """Five OOD subsets of a fifth of ID, without replacement."""
    id_keys, ood_keys = keys_of(PairSample("random", 2000, 3000))
    got = ops.resampled_statistics(id_keys, ood_keys, seed=2, replicates=5, scheme="subset", ood_size=400)
    kept = resampling_counts(3000, seed=2, stream=1, replicates=5, scheme="subset", size=400).bool()
    for r in range(5):
        want = ops.ranking_statistics(id_keys[None], ood_keys[kept[r]][None])
        assert_close(RankingStatistics(*(field[r : r + 1] for field in got)), want)


def test_paired_detectors_meet_the_same_samples() -> None:
    """A detector and its negation, each sorted its own way: the AUROCs of each replicate add up to 1."""
    id_scores, ood_scores = PairSample("random", 500, 300).make()
    found = []
    for sign in (1, -1):
        a, b = sign * id_scores, sign * ood_scores
        index = {"id_index": a.argsort(), "ood_index": b.argsort()}
        found.append(ops.resampled_statistics(ops.sort_scores(a), ops.sort_scores(b), seed=0, replicates=50, **index))
    torch.testing.assert_close(found[0].auroc + found[1].auroc, torch.ones(50, dtype=torch.float64), rtol=1e-14, atol=0)


def test_bootstrap_spread_is_that_of_delong() -> None:
    id_scores, ood_scores = PairSample("random", 800, 500).make(torch.float64)
    id_keys, ood_keys = ops.sort_scores(id_scores), ops.sort_scores(ood_scores)
    below = torch.searchsorted(id_keys, ood_keys) / 800
    above = 1 - torch.searchsorted(ood_keys, id_keys) / 500
    delong = float(below.var() / 500 + above.var() / 800) ** 0.5
    for scheme in ("multinomial", "poisson"):
        found = ops.resampled_statistics(id_keys, ood_keys, seed=1, replicates=4000, scheme=scheme)
        assert abs(float(found.auroc.std()) / delong - 1) < 0.05
        assert abs(float(found.auroc.mean() - below.mean())) < 4 * delong / 4000**0.5 + 1e-4


@schemes
def test_chunks_and_threads_change_no_bit(scheme: Scheme, share: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    id_keys, ood_keys = keys_of(PairSample("tied", 900, 1200))
    settings = {"seed": 9, "scheme": scheme, **({} if share is None else {"id_size": 100, "ood_size": 300})}
    want = ops.resampled_statistics(id_keys, ood_keys, replicates=150, **settings)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        monkeypatch.setattr(resampling, "_THREAD_CHUNK_BYTES", 10 * 4 * 2100)
        got = ops.resampled_statistics(id_keys, ood_keys, replicates=150, **settings)
    finally:
        torch.set_num_threads(threads)
    fewer = ops.resampled_statistics(id_keys, ood_keys, replicates=7, **settings)
    for a, b, c in zip(want, got, fewer, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a[:7], c)


def test_seeds_and_streams_differ() -> None:
    drawn = [
        resampling_counts(50, seed=seed, stream=stream, replicates=2, scheme="poisson")
        for seed in (0, 1, 2**32)
        for stream in (0, 1)
    ]
    rows = torch.cat(drawn)
    assert len(torch.unique(rows, dim=0)) == len(rows)


def test_classes_without_weight_have_no_statistics() -> None:
    id_keys, ood_keys = keys_of(PairSample("random", 1, 1))
    found = ops.resampled_statistics(id_keys, ood_keys, seed=0, replicates=200, scheme="poisson")
    empty = found.auroc.isnan()
    assert 0 < int(empty.sum()) < 200
    assert all(torch.equal(field.isnan().flatten(), empty) for field in found)


KEYS = ops.sort_scores(torch.arange(10.0))
WEIGHT = torch.ones(2, 10, dtype=torch.int32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scheme": "jackknife"}, "scheme must be one of multinomial, poisson, subset, got 'jackknife'"),
        ({"scheme": "subset"}, "id_size or ood_size must be given"),
        ({"scheme": "subset", "id_size": 11}, r"id_size must be in \[0, 10\], the number of samples, got 11"),
        ({"ood_size": 3}, 'ood_size must be None unless scheme is "subset"'),
        ({"replicates": 0}, "replicates must be at least 1"),
        ({"seed": 2**63}, "seed must be an int64"),
        ({"id_index": torch.arange(9)}, r"id_index must have shape \(10,\)"),
        ({"ood_index": torch.arange(10) + 1}, r"ood_index must be in \[0, 9\], got 10"),
        ({"tpr": (1.5,)}, "tpr must .* got 1.5"),
        ({"tpr": ()}, r"tpr must hold at least one rate, got \(\)"),
        ({"id_repeats": 0}, r"id_repeats must be in \[1, 67108863\] for 10 scores, got 0"),
        ({"ood_repeats": 2**26}, r"ood_repeats must be in \[1, 67108863\] for 10 scores, got 67108864"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ops.resampled_statistics(KEYS, KEYS, **{"seed": 0, "replicates": 2, **arguments})


@pytest.mark.parametrize(
    ("id_weight", "message"),
    [
        (-WEIGHT, "id_weight must not be negative"),
        (WEIGHT * 2**30, "id_weight must sum to at most 2147483647 per replicate, got 10737418240"),
        (WEIGHT[:, :9].contiguous(), r"id_weight must be \[2, 10\], got \[2, 9\]"),
        (WEIGHT.long(), "id_weight must be Int, got Long"),
        (None, "id_weight or ood_weight must be given"),
    ],
)
def test_bad_weights_are_named(id_weight: Tensor | None, message: str) -> None:
    with pytest.raises(RuntimeError, match=message):
        torch.ops.fastood.weighted_ranking_statistics(KEYS[None], KEYS[None], id_weight, None, [0.95])
