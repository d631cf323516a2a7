"""Processes that differ, or have nothing (2, gloo): every one raises the same error, or the empty one adds nothing."""

import copy
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from fastood.common.distributed import check_alike, exchange
from fastood.detectors import MahalanobisDetector
from fastood.heads import GaussianStatistics
from fastood.metrics import DetectionEvaluator, HistogramEvaluator

WORLD_SIZE = 2
SCORES = torch.tensor([0.0, 1.0, 2.0, 0.5])
LABELS = torch.tensor([0, -1, -1, 1])


def rows(rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(rank)
    return torch.randn(40, 3, generator=generator), torch.arange(40) % (2 + rank)


def raises_alike(call: Callable[[], object], error: type[Exception], message: str) -> None:
    """Require one error on every process, word for word."""
    with pytest.raises(error, match=message) as found:
        call()
    assert len(set(exchange(str(found.value)))) == 1


def evaluators(rank: int) -> None:
    first = DetectionEvaluator()
    if rank == 0:
        first.update(SCORES, LABELS, LABELS)
    assert first.gather().compute() == DetectionEvaluator().update(SCORES, LABELS, LABELS).compute()
    assert len(DetectionEvaluator().gather().id_scores) == 0

    pixels, of_pixels = torch.stack([SCORES, SCORES.flip(0)])[:, None], LABELS.expand(2, 1, 4)
    images = DetectionEvaluator(mode="segmentation")
    if rank == 1:
        images.update(pixels, of_pixels)
    want = DetectionEvaluator(mode="segmentation").update(pixels, of_pixels)
    assert images.gather().compute() == want.compute()
    unlike = DetectionEvaluator(mode="segmentation", tpr=0.9 if rank else 0.95).update(pixels, of_pixels)
    raises_alike(unlike.gather, ValueError, "must have the same metrics .* FPR95TPR on rank 0 and .* FPR90TPR on")

    other = DetectionEvaluator().update(SCORES.double() if rank else SCORES, LABELS)
    raises_alike(other.gather, TypeError, r"got torch\.float32 on rank 0 and torch\.float64 on rank 1")
    assert len(other.id_scores) == 2

    some = DetectionEvaluator().update(SCORES, LABELS, LABELS if rank else None)
    raises_alike(some.gather, ValueError, "predictions .* got them on rank 1 and not on rank 0")
    assert len(some.ood_scores) == 2

    binned = HistogramEvaluator(bits=10 + rank).update(SCORES, LABELS)
    raises_alike(binned.all_reduce, ValueError, "bits must be the same on every process, got 10 on rank 0 and 11 on")
    assert int(binned.id_counts.sum()) == 2
    empty = HistogramEvaluator()
    if rank == 1:
        empty.update(SCORES, LABELS)
    assert empty.all_reduce().metrics() == HistogramEvaluator().update(SCORES, LABELS).metrics()


def statistics(rank: int) -> None:
    whole = GaussianStatistics(3).partial_fit(*rows(1))
    found = GaussianStatistics(3)
    if rank == 1:
        found.partial_fit(*rows(1))
    found.all_reduce()
    torch.testing.assert_close(found.state_dict(), whole.state_dict())

    for made, message in (
        (GaussianStatistics(3 + rank), "num_features must be the same on every process, got 3 on rank 0 and 4 on rank"),
        (GaussianStatistics(3, per_class=rank == 1), "per_class must be the same on every process, got False on rank"),
        (
            GaussianStatistics(3, 2 if rank == 0 else None).partial_fit(*rows(rank)),
            "num_classes must be the same on every process, got 2 on rank 0 and labels up to 2",
        ),
    ):
        before = copy.deepcopy(made.state_dict())
        raises_alike(made.all_reduce, ValueError, message)
        torch.testing.assert_close(made.state_dict(), before)


def detectors(rank: int) -> None:
    queries = rows(5)[0]
    for settings in ({}, {"covariance": "per_class"}):
        detector = MahalanobisDetector(**settings)
        if rank == 0:
            detector.partial_fit(*rows(0))
        want = MahalanobisDetector(**settings).fit_features(*rows(0)).predict_features(queries)
        torch.testing.assert_close(detector.all_reduce().predict_features(queries), want)

    raises_alike(MahalanobisDetector().all_reduce, RuntimeError, "has not been fitted")
    features, labels = rows(rank)
    wide = MahalanobisDetector().partial_fit(features[:, : 3 - rank], labels)
    before = wide.predict_features(queries[:, : 3 - rank])
    raises_alike(wide.all_reduce, ValueError, "num_features must be the same on every process, got 3 on rank 0 and 2")
    assert torch.equal(wide.predict_features(queries[:, : 3 - rank]), before)
    unlike = MahalanobisDetector(normalize=rank == 1).partial_fit(features, labels)
    raises_alike(unlike.all_reduce, ValueError, "normalize must be the same on every process, got False on rank 0")
    shrunk = MahalanobisDetector(shrinkage="ledoit_wolf" if rank else None)
    raises_alike(shrunk.all_reduce, ValueError, "shrinkage must be the same on every process")


def groups(rank: int) -> None:
    first = dist.new_group([0])
    evaluator = DetectionEvaluator().update(SCORES, LABELS)
    if rank == 0:
        assert len(evaluator.gather(first).id_scores) == 2
    else:
        for call in (
            lambda: evaluator.gather(first),
            lambda: HistogramEvaluator().all_reduce(first),
            lambda: GaussianStatistics(3).all_reduce(first),
        ):
            with pytest.raises(ValueError, match="group must hold this process, which is rank 1"):
                call()
        assert len(evaluator.id_scores) == 2
    dist.barrier()


def run(rank: int, rendezvous: str) -> None:
    torch.set_num_threads(1)
    patience = timedelta(seconds=120)  # a process that is waited for in vain fails the test
    dist.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=WORLD_SIZE, timeout=patience
    )
    try:
        for body in (evaluators, statistics, detectors, groups):
            body(rank)
    finally:
        dist.destroy_process_group()


def test_processes_agree_or_all_raise(tmp_path: Path) -> None:
    mp.spawn(run, args=(str(tmp_path / "rendezvous"),), nprocs=WORLD_SIZE)


def test_without_a_process_group() -> None:
    for call in (GaussianStatistics(3).all_reduce, MahalanobisDetector().partial_fit(*rows(0)).all_reduce):
        with pytest.raises(RuntimeError, match="no process group has been set up"):
            call()
    check_alike("bits", [20])


@pytest.mark.parametrize("parts", [1, 3])
def test_merging_with_oneself_counts_every_score_twice(parts: int) -> None:
    y, scores = LABELS.repeat(parts), torch.arange(4.0 * parts)
    batches = list(zip(scores.split(4), y.split(4), strict=True))
    one, binned, gaussian = DetectionEvaluator(), HistogramEvaluator(), GaussianStatistics(1)
    for batch, labels in batches:
        one.update(batch, labels, labels)
        binned.update(batch, labels)
        gaussian.partial_fit(batch[:, None], labels)
    twice = DetectionEvaluator().update(scores.repeat(2), y.repeat(2), y.repeat(2)).compute()
    assert one.merge(one).compute() == twice
    assert binned.merge(binned).metrics() == HistogramEvaluator().update(scores.repeat(2), y.repeat(2)).metrics()
    want = GaussianStatistics(1).partial_fit(scores.repeat(2)[:, None], y.repeat(2))
    torch.testing.assert_close(gaussian.merge(gaussian).state_dict(), want.state_dict())


def test_merging_with_an_alias_ends() -> None:
    one = DetectionEvaluator().update(SCORES, LABELS)
    alias = copy.copy(one)  # the same lists
    assert len(one.merge(alias).id_scores) == 4


def test_merging_with_something_else_changes_nothing() -> None:
    for made in (DetectionEvaluator().update(SCORES, LABELS), HistogramEvaluator().update(SCORES, LABELS)):
        before = copy.deepcopy(made).metrics()
        for other in (None, 3, [made], GaussianStatistics(3)):
            with pytest.raises(TypeError, match=f"other must be a {type(made).__name__}, got"):
                made.merge(other)
        assert made.merge(type(made)()).metrics() == before
    with pytest.raises(TypeError, match="other must be GaussianStatistics, got NoneType"):
        GaussianStatistics(3).merge(None)
    with pytest.raises(ValueError, match="predictions must be given"):
        DetectionEvaluator().update(SCORES, LABELS).merge(DetectionEvaluator().update(SCORES, LABELS, LABELS))
