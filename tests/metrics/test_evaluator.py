"""Streaming evaluation: batches, shards, processes and histograms give what one call gives."""

import copy
from math import inf, nan
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from hypothesis import given, settings
from hypothesis import strategies as st

from fastood.metrics import DetectionEvaluator, HistogramEvaluator, autc, detection_metrics, oscr

METRICS = ("auroc", "aupr_in", "aupr_out", "fpr_at_tpr", "detection_error")


def batches(count=6, seed=0):
    """Scores, labels from -2 to 4, and predictions, which are right more often than not."""
    source = torch.Generator().manual_seed(seed)
    found = []
    for size in range(5, 5 + count):
        y = torch.randint(-2, 5, (size,), generator=source)
        scores = (torch.randn(size, generator=source) + (y < 0)).round(decimals=1)
        wrong = torch.rand(size, generator=source) < 0.3
        found.append((scores, y, torch.where(wrong, (y + 1) % 5, y)))
    return found


def whole(parts):
    return tuple(torch.cat(columns) for columns in zip(*parts, strict=True))


def test_batches_give_what_one_call_gives():
    evaluator = DetectionEvaluator(tpr=0.9, positive="id", rule="nearest", aupr_kind="trapezoid")
    for scores, y, _ in batches():
        assert evaluator.update(scores, y) is evaluator
    scores, y, _ = whole(batches())
    expected = detection_metrics(
        scores[y >= 0], scores[y < 0], tpr=0.9, positive="id", rule="nearest", aupr_kind="trapezoid"
    )
    assert evaluator.metrics() == expected
    assert torch.equal(evaluator.id_scores, scores[y >= 0])
    assert torch.equal(evaluator.ood_scores, scores[y < 0])
    assert evaluator.compute() == {
        "AUROC": expected.auroc,
        "AUTC": autc(scores[y >= 0], scores[y < 0]),
        "AUPR-IN": expected.aupr_in,
        "AUPR-OUT": expected.aupr_out,
        "FPR90TPR": expected.fpr_at_tpr,
    }


def test_compute_has_accuracy_and_oscr_with_predictions():
    evaluator = DetectionEvaluator()
    for batch in batches():
        evaluator.update(*batch)
    scores, y, predictions = whole(batches())
    correct = (predictions == y)[y >= 0]
    found = evaluator.compute()
    assert list(found) == ["AUROC", "AUTC", "AUPR-IN", "AUPR-OUT", "FPR95TPR", "ACC", "OSCR"]
    assert found["ACC"] == pytest.approx(float(correct.double().mean()), abs=1e-12)
    assert found["OSCR"] == oscr(scores[y >= 0], scores[y < 0], correct=correct)


def test_shards_merged_in_any_order_give_what_one_call_gives():
    one = DetectionEvaluator()
    for batch in batches():
        one.update(*batch)
    shards = [DetectionEvaluator().update(*batch) for batch in batches()]
    total = DetectionEvaluator()
    for shard in reversed(shards):
        total.merge(shard)
    assert total.merge(DetectionEvaluator()).compute() == one.compute()


def test_images_may_have_any_shape_and_void_labels_are_left_out():
    source = torch.Generator().manual_seed(0)
    scores, y = torch.randn(2, 8, 8, generator=source), torch.randint(-1, 3, (2, 8, 8), generator=source)
    for void_label in (0, 2):  # a void label of 0 is a label, too
        kept = y != void_label
        expected = detection_metrics(scores[kept & (y >= 0)], scores[kept & (y < 0)])
        assert DetectionEvaluator(void_label=void_label).update(scores, y).metrics() == expected


def test_reset_forgets():
    evaluator = DetectionEvaluator().update(*batches()[0])
    evaluator.reset().update(torch.tensor([0.0, 1.0]).double(), torch.tensor([1, -1]))
    assert evaluator.compute()["AUROC"] == 1


@pytest.mark.parametrize(("y", "missing"), [([1, 2], "no OOD score"), ([-1, -1], "no ID score")])
def test_one_class_is_an_error(y, missing):
    with pytest.raises(ValueError, match=missing):
        DetectionEvaluator().update(torch.rand(2), torch.tensor(y)).compute()
    with pytest.raises(ValueError, match="needs scores of each class"):
        HistogramEvaluator(bits=10).update(torch.rand(2), torch.tensor(y)).metrics()


def test_nothing_is_an_error():
    with pytest.raises(ValueError, match="among the 0 given"):
        DetectionEvaluator().compute()


@pytest.mark.parametrize(
    ("arguments", "error", "words"),
    [
        ((torch.tensor([nan, 1.0]), torch.tensor([1, -1])), ValueError, "scores holds 1 NaN among its 2"),
        ((torch.ones(2), torch.ones(3, dtype=torch.long)), ValueError, r"y must have shape \(2,\) as scores"),
        ((torch.ones(2), torch.tensor([1.0, 0.5])), ValueError, r"y must hold whole numbers as labels, got 0.5"),
        ((torch.ones(2).to(torch.complex64), torch.tensor([1, -1])), TypeError, r"scores must be"),
    ],
)
@pytest.mark.parametrize("kind", [DetectionEvaluator, HistogramEvaluator])
def test_bad_batches_are_errors_that_add_nothing(kind, arguments, error, words):
    evaluator = kind().update(torch.tensor([0.0, 1.0]), torch.tensor([1, -1]))
    before = copy.deepcopy(evaluator).metrics()
    with pytest.raises(error, match=words):
        evaluator.update(*arguments)
    assert evaluator.metrics() == before


def test_batches_must_be_alike():
    scores, y, predictions = batches()[0]
    with pytest.raises(TypeError, match=r"dtype torch.float32 of those before, got torch.float64"):
        DetectionEvaluator().update(scores, y).update(scores.double(), y)
    with pytest.raises(ValueError, match="predictions must be given with every batch or with none"):
        DetectionEvaluator().update(scores, y).update(scores, y, predictions)
    with pytest.raises(ValueError, match="predictions must be given with every batch or with none"):
        DetectionEvaluator().update(scores, y, predictions).merge(DetectionEvaluator().update(scores, y))
    with pytest.raises(ValueError, match=r"predictions must have shape"):
        DetectionEvaluator().update(scores, y, predictions[:2])


@pytest.mark.parametrize("setting", [{"tpr": 0.0}, {"positive": "x"}, {"rule": "x"}, {"aupr_kind": "x"}])
def test_bad_settings_are_errors(setting):
    with pytest.raises(ValueError, match=next(iter(setting))):
        DetectionEvaluator(**setting)


WORLD_SIZE = 2


def evaluate_share(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD_SIZE)
    exact, binned = DetectionEvaluator(tpr=0.8), HistogramEvaluator()
    # Of unequal length: five batches and one.
    for batch in batches()[:5] if rank == 0 else batches()[5:]:
        exact.update(*batch)
        binned.update(*batch[:2])
    found = exact.gather().compute(), binned.all_reduce().metrics(tpr=0.8)
    torch.save(found, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_processes_give_what_one_gives(tmp_path: Path) -> None:
    mp.spawn(evaluate_share, args=(str(tmp_path),), nprocs=WORLD_SIZE)
    exact, binned = DetectionEvaluator(tpr=0.8), HistogramEvaluator()
    for batch in batches():
        exact.update(*batch)
        binned.update(*batch[:2])
    for rank in range(WORLD_SIZE):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=False)
        assert found == (exact.gather().compute(), binned.all_reduce().metrics(tpr=0.8))


# Numbers that share bins, near and far from each other, of either sign.
pixel_scores = st.one_of(
    st.floats(allow_nan=False, width=32),
    st.integers(0, 40).map(lambda step: 1 + step / 8192),
    st.integers(0, 40).map(lambda step: -3 - step / 4096),
    st.sampled_from([0.0, -0.0, inf, -inf, 1e-42]),
)


def assert_bounded(found, id_scores, ood_scores, tpr, positive):
    exact = detection_metrics(id_scores, ood_scores, tpr=tpr, positive=positive)
    for name in METRICS:
        bounded = getattr(found, name)
        value = getattr(exact, name)
        assert bounded.low - 1e-15 <= value <= bounded.high + 1e-15, name
        assert bounded.low - 1e-15 <= bounded.estimate <= bounded.high + 1e-15, name


@settings(max_examples=200, deadline=None)
@given(
    id_scores=st.lists(pixel_scores, min_size=1, max_size=30),
    ood_scores=st.lists(pixel_scores, min_size=1, max_size=30),
    bits=st.sampled_from([10, 14, 20, 24]),
    percent=st.integers(1, 100),
    positive=st.sampled_from(["ood", "id"]),
)
def test_exact_metrics_are_within_the_bounds_of_a_histogram(id_scores, ood_scores, bits, percent, positive):
    y = torch.tensor([1] * len(id_scores) + [-1] * len(ood_scores))
    scores = torch.tensor(id_scores + ood_scores, dtype=torch.float64)
    found = HistogramEvaluator(bits=bits).update(scores, y).metrics(tpr=percent / 100, positive=positive)
    assert_bounded(found, scores[y > 0], scores[y < 0], percent / 100, positive)


def test_a_histogram_of_many_scores_is_close():
    source = torch.Generator().manual_seed(0)
    scores = torch.randn(300_000, generator=source)
    y = torch.randint(-1, 9, (300_000,), generator=source)
    scores += 2 * (y < 0)
    evaluator = HistogramEvaluator()
    for part in zip(scores.split(70_000), y.split(70_000), strict=True):
        evaluator.update(*part)
    found = evaluator.metrics()
    assert_bounded(found, scores[y >= 0], scores[y < 0], 0.95, "ood")
    for name in METRICS:
        bounded = getattr(found, name)
        assert bounded.high - bounded.low < 1e-3, name
    assert found.aupr == found.aupr_out
    assert (found.id_count, found.ood_count) == (int((y >= 0).sum()), int((y < 0).sum()))


def test_histograms_of_scores_apart_are_exact():
    id_scores, ood_scores = torch.tensor([1.0, 2, 3, 5, -0.0]), torch.tensor([4.0, 6, -1, 5, 0.0])
    y = torch.tensor([0] * 5 + [-1] * 5)
    found = HistogramEvaluator().update(torch.cat((id_scores, ood_scores)), y).metrics()
    exact = detection_metrics(id_scores, ood_scores)
    # A tie of both classes stays a tie; other bins hold one score.
    assert found.auroc.estimate == exact.auroc
    assert found.fpr_at_tpr.estimate == exact.fpr_at_tpr
    assert found.aupr_out.estimate == pytest.approx(exact.aupr_out, abs=1e-12)


def test_histograms_merge_skip_void_labels_and_reset():
    (scores, y, _), (more_scores, more_y, _) = batches()[:2]
    one = HistogramEvaluator(bits=12).update(torch.cat((scores, more_scores)), torch.cat((y, more_y)))
    parts = HistogramEvaluator(bits=12).update(scores, y)
    parts.merge(HistogramEvaluator(bits=12).update(more_scores, more_y))
    assert torch.equal(parts.id_counts, one.id_counts)
    assert torch.equal(parts.ood_counts, one.ood_counts)
    void = HistogramEvaluator(bits=12, void_label=0).update(scores, y)
    assert int(void.id_counts.sum()) == int((y > 0).sum())
    assert int(void.reset().id_counts.sum()) == 0
    with pytest.raises(ValueError, match="other must have 12 bits, got 13"):
        one.merge(HistogramEvaluator(bits=13))
    with pytest.raises(ValueError, match="bits must be 10 to 24, got 25"):
        HistogramEvaluator(bits=25)


def test_a_batch_that_its_device_does_not_take_is_not_half_added() -> None:
    evaluator = DetectionEvaluator()
    evaluator.device = torch.device("cuda:99")
    with pytest.raises((RuntimeError, AssertionError)):
        evaluator.update(torch.tensor([0.0, 1.0]), torch.tensor([0, -1]))
    evaluator.device = torch.device("cpu")
    found = evaluator.update(torch.tensor([0.0, 1.0]).double(), torch.tensor([0, -1])).metrics()
    assert (found.id_count, found.ood_count, evaluator.id_scores.dtype) == (1, 1, torch.float64)
