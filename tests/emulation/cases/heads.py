"""Calls of the Mahalanobis logits, forward and backward, and of the nearest key of a class."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tests.emulation.cases.case import Case, Ops, refusal
from tests.support.class_l1_nearest_samples import NearestSample, op_args
from tests.support.mahalanobis_samples import MahalanobisSample

HEADS = "mahalanobis"
NEAREST = "class_l1_nearest"


def _head_case(sample: MahalanobisSample, dtype: torch.dtype, large: bool = False) -> Case:
    features, means, scale = sample.make("cpu", dtype)

    def run(ops: Ops) -> Iterator[Tensor]:
        logits, residual, whitened, nearest = ops.mahalanobis_logits(features, means, scale)
        yield from (logits, nearest, residual)
        upstream = torch.cos(torch.arange(logits.numel(), dtype=dtype)).view_as(logits)
        yield from ops._mahalanobis_logits_backward(upstream, residual, whitened, nearest, scale)

    return Case(HEADS, f"{sample}-{dtype}", run, ulps=256, large=large)


def _special_head() -> Case:
    features, means, scale = (x.clone() for x in MahalanobisSample(9, 5, 6).make("cpu", torch.float32))
    features[0, 1], features[1, 2], features[2, 0] = torch.nan, torch.inf, 3e38

    def run(ops: Ops) -> Iterator[Tensor]:
        logits, _, _, nearest = ops.mahalanobis_logits(features, means, scale)
        yield from (logits, nearest)

    return Case(HEADS, "NaN, infinite and huge features", run, ulps=256)


def _two_clusters() -> Case:
    """Return a head whose means are in two tight clusters: half of the pairs are near, up to the last class."""
    generator = torch.Generator().manual_seed(6)
    side = torch.where(torch.arange(33) % 2 == 0, 10.0, -10.0)[:, None]
    means = side + 0.1 * torch.randn(33, 8, generator=generator)
    features = means[torch.arange(12)] + 0.1 * torch.randn(12, 8, generator=generator)

    def run(ops: Ops) -> Iterator[Tensor]:
        logits, residual, _, nearest = ops.mahalanobis_logits(features, means, torch.ones(8))
        yield from (logits, nearest, residual)

    return Case(HEADS, "two clusters of means", run, ulps=256)


def mahalanobis_cases() -> list[Case]:
    """Return the cases of the heads."""
    samples = [
        *(MahalanobisSample(rows, 3, dim) for rows, dim in ((1, 1), (7, 33), (33, 65), (35, 129))),
        MahalanobisSample(70, 33, 16),
        MahalanobisSample(40, 10, 64, spread=0.0),  # all pairs near
        MahalanobisSample(40, 10, 64, spread=100.0),
        MahalanobisSample(20, 10, 40, offset=1000.0),
        MahalanobisSample(0, 4, 8),
        MahalanobisSample(33, 7, 40, strided=True),
        MahalanobisSample(40, 7, 70, diagonal=True),
        MahalanobisSample(0, 4, 8, diagonal=True),
        MahalanobisSample(3, 600, 60),  # centre of its own
        MahalanobisSample(1100, 3, 9),  # class sums by a launch of their own, shares of Q and of dL
        MahalanobisSample(1100, 3, 40, diagonal=True),
    ]
    cases = [_head_case(sample, torch.float32) for sample in samples]
    cases += [
        _head_case(MahalanobisSample(*shape, diagonal=diagonal), torch.float64, large=shape[0] > 1000)
        for shape in ((17, 5, 40), (1100, 3, 9))
        for diagonal in (False, True)
    ]
    # Tiles of 64 and several rows of a warp: enough blocks for 132 multiprocessors.
    cases.append(_head_case(MahalanobisSample(1060, 2, 130, diagonal=True), torch.float32, large=True))
    cases += [_head_case(MahalanobisSample(4170, 66, 16, spread=100.0), torch.float32, large=True), _many_tiles()]
    cases += [_special_head(), _two_clusters()]
    good = MahalanobisSample(5, 3, 4).make("cpu", torch.float32)
    cases.append(
        refusal(
            HEADS, "means of another dimension", lambda ops: ops.mahalanobis_logits(good[0], good[1][:, :3], good[2])
        )
    )
    return cases


def _many_tiles() -> Case:
    """Return a backward pass alone whose pairs fill the GPU with tiles of 64."""
    generator = torch.Generator().manual_seed(5)
    rows, classes, dim = 4300, 2, 96
    residual = torch.randn(rows, dim, generator=generator)
    whitened = torch.randn(classes, dim, generator=generator)
    nearest = torch.randint(classes, (rows,), generator=generator)
    upstream = torch.randn(rows, classes, generator=generator)
    scale = torch.ones(dim)
    return Case(
        HEADS,
        "backward in tiles of 64",
        lambda ops: ops._mahalanobis_logits_backward(upstream, residual, whitened, nearest, scale),
        ulps=4096,  # sums over 4,300 samples
        large=True,
    )


def nearest_cases() -> list[Case]:
    """Return the cases of the nearest key of a class."""
    samples = [
        *(NearestSample(20, 70, dim) for dim in (1, 31, 33)),
        *(NearestSample(queries, 20, 20, 1) for queries in (1, 2, 3, 5, 9)),
        *(NearestSample(9, keys, 20, 1) for keys in (1, 2, 3, 4, 5)),
        NearestSample(0, 5, 3),
        NearestSample(5, 0, 3),
        NearestSample(20, 50, 4, 3, values=2),
        NearestSample(20, 60, 40, strided=True),
    ]
    shared = [NearestSample(20, 300, 5, 2), NearestSample(300, 200, 3, 30, values=3)]
    cases = [
        *(_nearest_case(sample, torch.float32) for sample in samples),
        *(_nearest_case(sample, torch.float32, second_turn=True) for sample in shared),
        *(_nearest_case(NearestSample(12, 30, 9), dtype) for dtype in (torch.float64, torch.bfloat16, torch.float16)),
    ]
    args = [x.clone() for x in op_args(NearestSample(12, 30, 9), "cpu", torch.float32)]
    args[0][2, 3], args[0][5, 0], args[3][7, 1], args[3][8, 2] = torch.nan, torch.inf, torch.nan, torch.inf
    cases.append(Case(NEAREST, "NaN and infinite features", lambda ops: ops.class_l1_nearest(*args), ulps=16))
    cases.append(
        refusal(NEAREST, "integer keys", lambda ops: ops.class_l1_nearest(*args[:3], args[3].long(), *args[4:]))
    )
    return cases


def _nearest_case(sample: NearestSample, dtype: torch.dtype, second_turn: bool = False) -> Case:
    args = op_args(sample, "cpu", dtype)
    return Case(NEAREST, f"{sample}-{dtype}", lambda ops: ops.class_l1_nearest(*args), ulps=16, second_turn=second_turn)
