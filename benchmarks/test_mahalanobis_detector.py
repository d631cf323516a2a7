"""Fitting and scoring a Mahalanobis detector, with peak memory, compared with pytorch-ood and OpenOOD."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from dataclasses import replace

import mahalanobis_detector_peers as peers
import pytest
import torch
from harness import Comparison, Run, compare, host_growth
from torch import Tensor

from fastood.detectors import MahalanobisDetector

Record = Callable[[Comparison, Run], None]
CLASSES, WIDTH = 100, 512
FIT_ROWS, SCORE_ROWS = 50_000, 10_000
# Batch size of scoring, as evaluations load test data: the peers' products are then 256 × 256. On whole sets they are
# rows × rows per class, minutes a call at 10,000 rows, so that this comparison has fewer rows.
BATCH, AT_ONCE = 256, 1024


def sample(rows: int) -> tuple[Tensor, Tensor]:
    """Draw rectified, correlated features with unequal scales, like those of a network's last layer."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(WIDTH, WIDTH, generator=generator) / WIDTH**0.5
    centers = torch.randn(CLASSES, WIDTH, generator=generator)
    labels = torch.randint(CLASSES, (rows,), generator=generator)
    features = torch.randn(rows, WIDTH, generator=generator) @ mixing + centers[labels]
    return features.relu_() * torch.logspace(-1, 1, WIDTH), labels


@pytest.fixture
def scale(request: pytest.FixtureRequest) -> int:
    """Return the divisor of row counts: with --quick, one call of a peer would take longer than all others."""
    return 16 if request.config.getoption("--quick") else 1


def test_fit(scale: int, device: str, budget: dict[str, float], record: Record) -> None:
    if device == "cuda":
        pytest.skip("the peers fit on the CPU")
    rows = FIT_ROWS // scale
    features, labels = sample(rows)
    providers: dict[str, Run] = {
        "fastood": lambda: MahalanobisDetector().fit_features(features, labels),
        "pytorch-ood": lambda: peers.fit_pytorch_ood(features, labels),
        "OpenOOD": lambda: peers.fit_openood(features, labels),
    }
    comparison = compare(
        "Mahalanobis detector, fit", f"{rows}x{WIDTH} K={CLASSES}", providers, subject="fastood", **budget
    )
    record(with_peaks(comparison, "fit", rows), providers["fastood"])


@pytest.mark.parametrize(("rows", "batch"), [(SCORE_ROWS, BATCH), (AT_ONCE, AT_ONCE)])
def test_score(rows: int, batch: int, scale: int, device: str, budget: dict[str, float], record: Record) -> None:
    if device == "cuda":
        pytest.skip("the peers score on the CPU")
    rows //= scale
    batch = min(batch, rows)
    features, labels = sample(FIT_ROWS)
    detector = MahalanobisDetector().fit_features(features, labels)
    fitted = peers.fit_pytorch_ood(features, labels)
    batches = features[:rows].split(batch)
    providers: dict[str, Run] = {
        "fastood": lambda: [detector.predict_features(b) for b in batches],
        "pytorch-ood, OpenOOD": lambda: [peers.score(fitted, b) for b in batches],
    }
    torch.testing.assert_close(
        detector.predict_features(batches[0][:100]).float(), peers.score(fitted, batches[0][:100]), rtol=0.01, atol=0.1
    )
    comparison = compare(
        "Mahalanobis detector, score",
        f"{rows}x{WIDTH} K={CLASSES} in {batch}s",
        providers,
        subject="fastood",
        **budget,
    )
    record(with_peaks(comparison, "score", batch), providers["fastood"])


def with_peaks(comparison: Comparison, work: str, rows: int) -> Comparison:
    """Return the comparison with the memory by which each provider's process grows beyond its inputs."""
    context = multiprocessing.get_context("spawn")
    timings = {}
    for name, timing in comparison.timings.items():
        with context.Pool(1) as pool:
            peak = pool.apply(growth, (name, work, rows))
        timings[name] = replace(timing, peak_bytes=peak)
    return replace(comparison, timings=timings)


def growth(name: str, work: str, rows: int) -> int:
    """Return the bytes by which this process grows in one call, after a small call that loads everything."""
    features, labels = sample(rows if work == "fit" else 2 * WIDTH)
    scored = features[:1].repeat(rows, 1)
    ours = MahalanobisDetector().fit_features(features[: 2 * WIDTH], labels[: 2 * WIDTH])
    fit = {"fastood": ours.fit_features, "OpenOOD": peers.fit_openood}.get(name, peers.fit_pytorch_ood)
    theirs = peers.fit_pytorch_ood(features[: 2 * WIDTH], labels[: 2 * WIDTH])
    fit(features[: 2 * WIDTH], labels[: 2 * WIDTH])
    score = ours.predict_features if name == "fastood" else lambda rows: peers.score(theirs, rows)
    score(features[:8])
    return host_growth(lambda: fit(features, labels) if work == "fit" else score(scored))
