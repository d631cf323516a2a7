"""Pairs of score sets of every kind, and calls of every op on them for opcheck."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from fastood.ops.detection_metrics import sort_scores

INF = math.inf
RATES = (0.05, 0.5, 0.8, 0.95, 0.99, 1.0)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class PairSample:
    """ID and OOD scores of one kind."""

    kind: str
    num_id: int
    num_ood: int

    def __str__(self) -> str:
        return f"{self.kind}-{self.num_id}x{self.num_ood}"

    def make(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(self.num_id + 7 * self.num_ood)
        id_scores = torch.randn(self.num_id, generator=generator, dtype=torch.float64)
        ood_scores = torch.randn(self.num_ood, generator=generator, dtype=torch.float64) + 1
        scores = KINDS[self.kind](id_scores, ood_scores)
        return scores[0].to(device, dtype), scores[1].to(device, dtype)


def _with_infinities(id_scores: Tensor, ood_scores: Tensor) -> tuple[Tensor, Tensor]:
    id_scores[::3], id_scores[1::7], ood_scores[::2], ood_scores[1::5] = -INF, INF, INF, -INF
    return id_scores, ood_scores


KINDS: dict[str, Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]] = {
    "random": lambda a, b: (a, b),
    "tied": lambda a, b: ((a * 4).round() / 4, (b * 4).round() / 4),
    "two values": lambda a, b: ((a > 0).double(), (b > 0).double()),
    "constant": lambda a, b: (a * 0, b * -0.0),
    "separated": lambda a, b: (a, b + 100),
    "inverted": lambda a, b: (a, b - 100),
    "touching": lambda a, b: (a.clamp(max=0.5), b.clamp(min=0.5)),
    "infinities": _with_infinities,
    "denormal": lambda a, b: (a * 1e-42, b * 1e-42),
}

# Around the lanes (128), a tile (2048), the few keys that are not radix-sorted (400), and where 16-bit values are
# counted (32768).
SIZES = [(1, 1), (1, 2), (2, 1), (3, 400), (127, 129), (401, 3), (1000, 1048), (2047, 2), (2048, 2048), (5000, 1)]
PAIR_SAMPLES = [
    *(PairSample(kind, num_id, num_ood) for kind in KINDS for num_id, num_ood in SIZES),
    PairSample("random", 33_000, 40_000),
    PairSample("tied", 40_000, 33_000),
]


def detection_metrics_calls(device: str) -> list[tuple[str, Callable[..., object], tuple[object, ...]]]:
    """Calls of the ops for opcheck: (name, op, args)."""
    ops = torch.ops.fastood
    calls: list[tuple[str, Callable[..., object], tuple[object, ...]]] = []
    counts = torch.tensor([1, 17, 40], device=device)  # opcheck does not take NaN for equal
    for dtype in DTYPES:
        scores = torch.randn(3, 40, generator=torch.Generator().manual_seed(0)).to(device, dtype)
        calls += [("sort_scores", ops.sort_scores.default, (scores, given)) for given in (None, counts)]
        keys = sort_scores(scores)
        rows = torch.tensor([2, 0, 1], device=device)
        calls += [
            ("ranking_statistics", ops.ranking_statistics.default, (keys, keys[:, :30].contiguous(), *numbers, tpr))
            for numbers in ((None, None, None), (rows, counts, None), (None, counts, counts.clamp(max=30)))
            for tpr in ([], [0.95, 0.5])
        ]
        weight = torch.arange(80, dtype=torch.int32, device=device).reshape(2, 40)
        pair = (sort_scores(scores[:1]), sort_scores(scores[1:2]))
        calls += [
            ("weighted_ranking_statistics", ops.weighted_ranking_statistics.default, (*pair, *weights, [0.95]))
            for weights in ((weight, weight), (weight, None), (None, weight))
        ]
    drawn = torch.empty(3, 50, dtype=torch.int32, device=device)
    calls += [
        ("resampling_counts", ops.resampling_counts.default, (drawn, -1, 0, 2, scheme, size))
        for scheme, size in ((0, 50), (1, 50), (2, 20))
    ]
    return calls
