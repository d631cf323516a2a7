"""Sorted keys and detection statistics against sklearn, the reference, and what they promise."""

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve
from torch import Tensor

from fastood.ops import detection_metrics as ops
from fastood.ops.detection_metrics import RankingStatistics
from fastood.ops.reference import detection_metrics as reference
from tests.support.detection_metrics_samples import DTYPES, INF, PAIR_SAMPLES, RATES, PairSample

pairs = pytest.mark.parametrize("pair", PAIR_SAMPLES, ids=str)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def statistics(id_scores: Tensor, ood_scores: Tensor, tpr: tuple[float, ...] = RATES) -> RankingStatistics:
    return ops.ranking_statistics(ops.sort_scores(id_scores)[None], ops.sort_scores(ood_scores)[None], tpr=tpr)


def assert_equal(got: RankingStatistics, want: RankingStatistics) -> None:
    for name, a, b in zip(got._fields, got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=lambda text, name=name: f"{name}: {text}")


def sklearn_statistics(id_scores: Tensor, ood_scores: Tensor) -> dict[str, float | list[float]]:
    # Infinities to numbers just beyond all others: sklearn refuses them, and only the order counts.
    both = torch.cat((id_scores, ood_scores)).double()
    finite = both[both.isfinite()]
    largest = float(finite.abs().max()) * 2 + 1 if len(finite) else 1.0
    scores = both.clamp(-largest, largest).numpy()
    is_ood = np.repeat([0, 1], [len(id_scores), len(ood_scores)])
    found: dict[str, float | list[float]] = {"auroc": float(roc_auc_score(is_ood, scores))}
    found["aupr_ood"] = float(average_precision_score(is_ood, scores))
    found["aupr_id"] = float(average_precision_score(1 - is_ood, -scores))
    for name, labels, signed in (("ood", is_ood, scores), ("id", 1 - is_ood, -scores)):
        fpr, tpr, _ = roc_curve(labels, signed, drop_intermediate=False)
        found[f"fpr_{name}"] = [float(fpr[np.argmax(tpr >= rate)]) for rate in RATES]
    fpr, tpr, _ = roc_curve(is_ood, scores, drop_intermediate=False)
    found["detection_error"] = float(((fpr + 1 - tpr) / 2).min())
    return found


def assert_as_sklearn(id_scores: Tensor, ood_scores: Tensor) -> None:
    got = statistics(id_scores, ood_scores)
    for name, want in sklearn_statistics(id_scores, ood_scores).items():
        value = getattr(got, name)[0]
        if name.startswith("fpr"):
            assert value.tolist() == want, name
        else:
            assert math.isclose(value.item(), want, rel_tol=1e-12, abs_tol=1e-15), name


@pairs
@dtypes
def test_keys_are_those_of_the_reference(pair: PairSample, dtype: torch.dtype) -> None:
    for scores in pair.make(dtype):
        keys = ops.sort_scores(scores)
        assert torch.equal(keys, reference.sort_scores(scores))
        assert torch.equal(ops.keys_to_scores(keys, dtype), scores.sort().values)


@pairs
def test_statistics_are_those_of_sklearn(pair: PairSample) -> None:
    assert_as_sklearn(*pair.make())


# The reference compares every key with every threshold.
@pytest.mark.parametrize("pair", [pair for pair in PAIR_SAMPLES if pair.num_id * pair.num_ood < 10**7], ids=str)
@dtypes
def test_statistics_are_those_of_the_reference(pair: PairSample, dtype: torch.dtype) -> None:
    id_keys, ood_keys = (ops.sort_scores(scores)[None] for scores in pair.make(dtype))
    got = ops.ranking_statistics(id_keys, ood_keys, tpr=RATES)
    want = reference.ranking_statistics(id_keys, ood_keys, tpr=RATES)
    for name, a, b in zip(got._fields, got, want, strict=True):
        tolerance = 0 if name.startswith(("fpr", "threshold")) else 1e-13
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance, msg=lambda text, name=name: f"{name}: {text}")


numbers = st.one_of(st.integers(-3, 3).map(float), st.floats(allow_nan=False, width=32))


@settings(max_examples=300, deadline=None)
@given(st.lists(numbers, min_size=1, max_size=40), st.lists(numbers, min_size=1, max_size=40))
def test_any_scores_rank_as_in_sklearn(id_scores: list[float], ood_scores: list[float]) -> None:
    # Ranks for scores: exact in any format, and sklearn takes them as they are.
    scores = torch.tensor(id_scores + ood_scores)
    ranks = torch.unique(scores, return_inverse=True)[1].double()
    assert_as_sklearn(ranks[: len(id_scores)], ranks[len(id_scores) :])
    of_scores = statistics(scores[: len(id_scores)], scores[len(id_scores) :])
    of_ranks = statistics(ranks[: len(id_scores)], ranks[len(id_scores) :])
    for name, a, b in zip(of_scores._fields, of_scores, of_ranks, strict=True):
        assert name.startswith("threshold") or torch.equal(a, b), name


def test_monotone_maps_move_thresholds_alone() -> None:
    pair = PairSample("random", 3000, 2000).make(torch.float64)
    plain, mapped = (statistics(*scores) for scores in (pair, tuple(torch.exp(3 * s) - 50 for s in pair)))
    for name, a, b in zip(plain._fields, plain, mapped, strict=True):
        if name.startswith("threshold"):
            torch.testing.assert_close(torch.exp(3 * a) - 50, b)
        else:
            assert torch.equal(a, b), name


def test_swapping_the_classes_swaps_the_statistics() -> None:
    id_scores, ood_scores = PairSample("tied", 3000, 2000).make()
    plain, swapped = statistics(id_scores, ood_scores), statistics(-ood_scores, -id_scores)
    for a, b in (("fpr_ood", "fpr_id"), ("detection_error", "detection_error")):
        assert torch.equal(getattr(plain, a), getattr(swapped, b))
        assert torch.equal(getattr(plain, b), getattr(swapped, a))
    assert torch.equal(plain.threshold_ood, -swapped.threshold_id)
    torch.testing.assert_close(plain.auroc, swapped.auroc, rtol=1e-15, atol=0)
    torch.testing.assert_close(plain.aupr_ood, swapped.aupr_id, rtol=1e-14, atol=0)


def test_known_values() -> None:
    found = statistics(torch.tensor([0.1, 0.2, 0.3, 0.7]), torch.tensor([0.6, 0.9]), tpr=(0.5, 0.95))
    assert found.auroc.tolist() == [0.875]
    assert found.aupr_ood.tolist() == [(1 + 2 / 3) / 2]
    assert found.aupr_id.tolist() == [(3 + 4 / 5) / 4]
    assert found.fpr_ood.tolist() == [[0.0, 0.25]]
    assert found.fpr_id.tolist() == [[0.0, 0.5]]
    assert found.threshold_ood.float().tolist() == torch.tensor([[0.9, 0.6]]).tolist()
    assert found.threshold_id.float().tolist() == torch.tensor([[0.2, 0.7]]).tolist()
    assert found.detection_error.tolist() == [0.125]


@pytest.mark.parametrize("count", [20, 40, 100, 1000, 2940, 10_000])
def test_rates_are_meant_in_decimal(count: int) -> None:
    """19 of 20 is 0.95 although 0.95 is not 19/20 in binary; 0.55 * 100 rounds above 55, and still 55 are enough."""
    scores = torch.arange(float(count))
    for percent in range(1, 101):
        found = statistics(scores, scores, tpr=(percent / 100,))
        assert found.threshold_ood.item() == count - -(-percent * count // 100)
        assert found.threshold_id.item() == -(-percent * count // 100) - 1


def test_batches_are_their_pairs() -> None:
    generator = torch.Generator().manual_seed(0)
    id_scores, ood_scores = torch.randn(3, 700, generator=generator), torch.randn(5, 900, generator=generator)
    id_row = torch.tensor([2, 0, 0, 1, 2])
    id_count, ood_count = torch.tensor([700, 1, 333]), torch.tensor([900, 0, 1, 450, 899])
    id_keys, ood_keys = ops.sort_scores(id_scores, id_count), ops.sort_scores(ood_scores, ood_count)
    got = ops.ranking_statistics(id_keys, ood_keys, id_row=id_row, id_count=id_count, ood_count=ood_count, tpr=RATES)
    for b, a in enumerate(id_row.tolist()):
        want = statistics(id_scores[a, : id_count[a]], ood_scores[b, : ood_count[b]])
        assert_equal(RankingStatistics(*(field[b : b + 1] for field in got)), want)
    shared = ops.ranking_statistics(id_keys[:1], ood_keys[:1].expand(4, -1), tpr=RATES)
    want = statistics(id_scores[0], ood_scores[0])
    assert_equal(RankingStatistics(*(field[3:] for field in shared)), want)


def test_padding_may_hold_anything() -> None:
    scores = torch.tensor([[3.0, 1.0, math.nan, -INF], [math.nan] * 4])
    keys = ops.sort_scores(scores, torch.tensor([2, 0]))
    assert ops.keys_to_scores(keys[0, :2]).tolist() == [1.0, 3.0]
    assert (keys[0, 2:] == 2**31 - 1).all()
    assert (keys[1] == 2**31 - 1).all()


@pytest.mark.parametrize(("num_id", "num_ood"), [(0, 5), (5, 0), (0, 0)])
def test_a_missing_class_has_no_statistics(num_id: int, num_ood: int) -> None:
    found = statistics(torch.randn(num_id), torch.randn(num_ood))
    assert all(field.isnan().all() for field in found)


def test_threads_change_no_bit() -> None:
    scores = PairSample("tied", 300_000, 250_000).make()
    batch = torch.randn(2, 8, 20_000, generator=torch.Generator().manual_seed(0))
    found = {}
    threads = torch.get_num_threads()
    try:
        for torch_threads in (1, 2, 3):
            torch.set_num_threads(torch_threads)
            keys = [ops.sort_scores(s) for s in scores]
            of_batch = ops.ranking_statistics(ops.sort_scores(batch[0]), ops.sort_scores(batch[1]))
            found[torch_threads] = [*keys, *statistics(*scores), *of_batch]
    finally:
        torch.set_num_threads(threads)
    for other in (2, 3):
        assert all(torch.equal(a, b) for a, b in zip(found[1], found[other], strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("count", [1000, 300_000])
@pytest.mark.parametrize(("offset", "spread"), [(0, 1), (1, 0.1), (1, 1e-5), (-5, 1e-3), (0, 1e30), (2, 0)])
def test_keys_that_share_high_bits_are_sorted(offset: float, spread: float, count: int, dtype: torch.dtype) -> None:
    scores = offset + spread * torch.randn(count, generator=torch.Generator().manual_seed(0), dtype=dtype)
    assert torch.equal(ops.keys_to_scores(ops.sort_scores(scores)), scores.sort().values)


CAPABILITY_SCRIPT = """
import sys, torch, fastood
from tests.support.detection_metrics_samples import PAIR_SAMPLES, RATES
from fastood.ops import detection_metrics as ops
found = []
for pair in PAIR_SAMPLES:
    id_keys, ood_keys = (ops.sort_scores(scores) for scores in pair.make())
    found += ops.ranking_statistics(id_keys[None], ood_keys[None], tpr=RATES)
    for scheme in ("multinomial", "poisson", "subset"):
        size = {"id_size": (pair.num_id + 1) // 2} if scheme == "subset" else {}
        found += ops.resampled_statistics(id_keys, ood_keys, seed=3, replicates=4, scheme=scheme, **size)
torch.save((fastood.build_info()["cpu_capability"], found), sys.argv[1])
"""


def test_instruction_sets_change_no_bit(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parents[2]
    results = []
    for capability in ("baseline", "avx2", "avx512"):
        path = tmp_path / f"{capability}.pt"
        environment = {**os.environ, "FASTOOD_CPU_CAPABILITY": capability, "PYTHONPATH": str(root)}
        done = subprocess.run(
            [sys.executable, "-c", CAPABILITY_SCRIPT, str(path)], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        used, found = torch.load(path)
        assert used in ("baseline", capability) or capability == "avx512"
        results.append(found)
    for found in results[1:]:
        for a, b in zip(results[0], found, strict=True):
            assert torch.equal(a.nan_to_num(nan=-1), b.nan_to_num(nan=-1))


def test_curves_count_every_threshold() -> None:
    id_scores, ood_scores = PairSample("tied", 500, 300).make()
    got = ops.roc_counts(ops.sort_scores(id_scores), ops.sort_scores(ood_scores))
    want = reference.roc_counts(ops.sort_scores(id_scores), ops.sort_scores(ood_scores))
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


SCORES = torch.tensor([[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]])
KEYS = ops.sort_scores(SCORES)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.sort_scores([1.0]), TypeError, "scores must be a torch.Tensor, got list"),
        (lambda: ops.sort_scores(SCORES.int()), TypeError, "scores must be float64.*got torch.int32"),
        (lambda: ops.sort_scores(torch.tensor(1.0)), ValueError, r"scores must be \[..., N\]"),
        (lambda: ops.sort_scores(SCORES.where(SCORES != 3, math.nan)), ValueError, "must not be NaN.* row 1 of 3"),
        (lambda: ops.sort_scores(SCORES, torch.tensor([1, 2])), ValueError, r"counts must have shape \(3,\)"),
        (lambda: ops.sort_scores(SCORES, torch.tensor([1, 2, 3])), ValueError, r"counts must be in \[0, 2\], got 3"),
        (lambda: ops.sort_scores(SCORES, torch.ones(3)), TypeError, "counts must be int64, got torch.float32"),
        (lambda: ops.keys_to_scores(SCORES), TypeError, "keys must be int32 or int64"),
        (lambda: ops.ranking_statistics(SCORES, KEYS), TypeError, "id_keys must be int32 or int64"),
        (lambda: ops.ranking_statistics(KEYS, KEYS.long()), TypeError, "ood_keys must be torch.int32"),
        (lambda: ops.ranking_statistics(KEYS[0], KEYS), ValueError, "id_keys must be 2-D"),
        (lambda: ops.ranking_statistics(KEYS[:2], KEYS), ValueError, "id_keys must have 1 or 3 rows"),
        (lambda: ops.ranking_statistics(KEYS, KEYS.to("meta")), ValueError, "ood_keys must be on cpu"),
        (
            lambda: ops.ranking_statistics(KEYS, KEYS, id_row=torch.tensor([0, 1, 3])),
            ValueError,
            r"id_row must be in \[0, 2\], got 3",
        ),
        (
            lambda: ops.ranking_statistics(KEYS, KEYS, ood_count=torch.tensor([0, -1, 2])),
            ValueError,
            r"ood_count must be in \[0, 2\], got -1",
        ),
        (lambda: ops.ranking_statistics(KEYS, KEYS, tpr=(0.5, 0.0)), ValueError, "tpr must .* got 0.0"),
        (lambda: ops.ranking_statistics(KEYS, KEYS, tpr=(math.nan,)), ValueError, "tpr must .* got nan"),
        (lambda: ops.ranking_statistics(KEYS.flip(1), KEYS), RuntimeError, "id_keys must ascend in each row, row 0"),
        (lambda: ops.roc_counts(KEYS, KEYS), ValueError, "id_keys must be 1-D"),
    ],
)
def test_bad_arguments_are_named(call: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


def test_no_gradient_and_any_layout() -> None:
    scores = torch.randn(4, 6, generator=torch.Generator().manual_seed(0), requires_grad=True)
    keys = ops.sort_scores(scores.T)
    assert not keys.requires_grad
    assert torch.equal(keys, ops.sort_scores(scores.T.contiguous()))
    cube = ops.sort_scores(scores.reshape(2, 2, 6), torch.tensor([[6, 5], [4, 0]]))
    assert torch.equal(cube.reshape(4, 6), ops.sort_scores(scores, torch.tensor([6, 5, 4, 0])))
