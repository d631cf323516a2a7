"""AUROC, both AUPRs and FPR95 of one large set and of many, and their bootstrap, compared with peers."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from detection_metrics_peers import Areas, Sets, batched_torch, peers, scikit_learn
from harness import Comparison, CudaTimer, Run, compare, copy_bandwidth, fastest, host_growth, time_cpu

from fastood.metrics import bootstrap_metrics, detection_metrics
from fastood.ops.detection_metrics import ranking_statistics, resampling_counts, sort_scores

Record = Callable[[Comparison, Run], None]
SHAPES = [(1, 500_000, 500_000), (64, 10_000, 10_000)]
"""Number of sets, of ID scores and of OOD scores in each set."""
TRAPEZOIDS = ("OpenOOD", "pytorch-ood")
"""Peers whose AUPRs differ slightly from average precision."""
REPLICATES, EVALUATIONS = 1000, 10


def sample(sets: int, num_id: int, num_ood: int, *, device: str = "cpu") -> Sets:
    """Draw scores of an average detector, with an AUROC of 0.76."""
    generator = torch.Generator().manual_seed(0)
    id_scores = torch.randn(sets, num_id, generator=generator)
    ood_scores = 1 + torch.randn(sets, num_ood, generator=generator)
    return Sets(id_scores.sigmoid().to(device), ood_scores.sigmoid().to(device))


def public_call(sets: Sets) -> Callable[[], Areas]:
    def run() -> Areas:
        found = detection_metrics(sets.id_scores, sets.ood_scores)
        return [torch.as_tensor(value) for value in (found.auroc, found.aupr_out, found.aupr_in, found.fpr95)]

    return run


def sort_alone(sets: Sets) -> Run:
    return lambda: (sort_scores(sets.id_scores), sort_scores(sets.ood_scores))


def statistics_alone(sets: Sets) -> Run:
    id_keys, ood_keys = sort_scores(sets.id_scores), sort_scores(sets.ood_scores)
    return lambda: ranking_statistics(id_keys, ood_keys)


def sort_floor(sets: Sets) -> tuple[float, str]:
    """Return the time of numpy's sort, vectorised on AVX2 and AVX-512, or of torch's on a GPU: an external measure."""
    shuffled = [
        sort_scores(scores)[:, torch.randperm(scores.shape[1]).to(scores.device)]
        for scores in (sets.id_scores, sets.ood_scores)
    ]
    if sets.id_scores.is_cuda:
        return fastest(CudaTimer(), lambda: [rows.sort(1) for rows in shuffled], 1), "torch.sort of the int32 keys"
    keys = [rows.numpy() for rows in shuffled]
    threads = torch.get_num_threads()
    seconds = fastest(time_cpu, lambda: [np.sort(rows, axis=1) for rows in keys], 1) / threads
    return seconds, f"np.sort of the int32 keys, its time on one thread over {threads}"


def check_agreement(name: str, found: Areas, expected: Areas) -> None:
    """Check that peers compute the same metrics; torchmetrics and torcheval count in float32."""
    for column, value in enumerate(found):
        is_other_area = name in TRAPEZOIDS and column in (1, 2)
        tolerance = 5e-3 if is_other_area else 1e-4
        torch.testing.assert_close(value.double().view(-1), expected[column].view(-1), rtol=0, atol=tolerance)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "x".join(map(str, shape)))
def test_metrics(
    shape: tuple[int, int, int], device: str, budget: dict[str, float], record: Record, request: pytest.FixtureRequest
) -> None:
    shape = scaled(shape, request)
    sets = sample(*shape, device=device)
    ours = public_call(sets)
    expected = ours()
    providers: dict[str, Run] = {
        "fastood": ours,
        "fastood, sort alone": sort_alone(sets),
        "fastood, statistics alone": statistics_alone(sets),
    }
    for name, make in peers(device).items():
        call = make(sets)
        check_agreement(name, call(), expected)
        providers[name] = call
    floor, floor_is = sort_floor(sets)
    comparison = compare(
        "detection metrics: AUROC, both AUPRs, FPR95",
        "{} x ({} + {})".format(*shape),
        providers,
        subject="fastood",
        device=device,
        floor=floor,
        floor_is=floor_is,
        input_bytes=sets.scores.nbytes,
        **budget,
    )
    record(comparison if device == "cuda" else with_peaks(comparison, shape), ours)


def test_bootstrap(device: str, budget: dict[str, float], record: Record, request: pytest.FixtureRequest) -> None:
    shape = scaled((1, 10_000, 10_000), request)
    sets = sample(*shape, device=device)
    generator = torch.Generator().manual_seed(0)
    peer, make = ("batched torch", batched_torch) if device == "cuda" else ("scikit-learn", scikit_learn)
    evaluate = make(sets)

    def ours() -> object:
        return bootstrap_metrics(sets.id_scores[0], sets.ood_scores[0], generator=generator, replicates=REPLICATES)

    def draws_alone() -> None:
        for first in range(0, REPLICATES, 20):
            for stream, count in enumerate(shape[1:]):
                resampling_counts(
                    count,
                    seed=0,
                    stream=stream,
                    replicates=20,
                    scheme="multinomial",
                    first_replicate=first,
                    device=device,
                )

    moved = 8 * REPLICATES * sum(shape[1:])
    bandwidth = copy_bandwidth(device, 256 << 20 if device == "cuda" else 1 << 24)
    comparison = compare(
        f"detection metrics, {REPLICATES} bootstrap replicates",
        "{} + {}".format(*shape[1:]),
        {
            "fastood": ours,
            "fastood, draws alone": draws_alone,
            f"{peer}, {EVALUATIONS} evaluations": lambda: [evaluate() for _ in range(EVALUATIONS)],
        },
        subject="fastood",
        device=device,
        floor=moved / bandwidth,
        floor_is=f"{moved} bytes, counts written once and read once, at the {bandwidth / 1e9:.1f} GB/s of a copy",
        input_bytes=sets.scores.nbytes,
        **budget,
    )
    record(comparison, ours)


def scaled(shape: tuple[int, int, int], request: pytest.FixtureRequest) -> tuple[int, int, int]:
    """Return the shapes, smaller with --quick: one call of a peer would take longer than all others."""
    by = 16 if request.config.getoption("--quick") else 1
    return shape[0], shape[1] // by, shape[2] // by


def with_peaks(comparison: Comparison, shape: tuple[int, int, int]) -> Comparison:
    """Return the comparison with the memory by which a separate process of each provider grows beyond its inputs."""
    context = multiprocessing.get_context("spawn")
    timings = {}
    for name, timing in comparison.timings.items():
        with context.Pool(1) as pool:
            timings[name] = replace(timing, peak_bytes=pool.apply(growth, (name, shape)))
    return replace(comparison, timings=timings)


def growth(name: str, shape: tuple[int, int, int]) -> int:
    """Return the bytes by which this process grows in one call, after a small call that loads everything."""
    make = {
        "fastood": public_call,
        "fastood, sort alone": sort_alone,
        "fastood, statistics alone": statistics_alone,
        **peers(),
    }[name]
    make(sample(1, 100, 100))()
    return host_growth(make(sample(*shape)))
