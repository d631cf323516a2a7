"""One table of inputs per op: it drives correctness, gradients, opcheck, compile and export, on every device."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class UniformitySample:
    """Logits of one shape and spread; `weights` names how rows are weighted."""

    rows: int
    classes: int
    spread: float = 1.0
    offset: float = 0.0
    weights: str = "random"  # none, random, some_zero, all_zero
    strided: bool = False

    def __str__(self) -> str:
        layout = "-strided" if self.strided else ""
        return f"{self.rows}x{self.classes}-spread{self.spread:g}+{self.offset:g}-{self.weights}{layout}"

    def make(self, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        generator = torch.Generator().manual_seed(self.rows * 10007 + self.classes)
        shape = (self.rows, self.classes * 2 if self.strided else self.classes)
        logits = torch.randn(shape, generator=generator, dtype=torch.float64) * self.spread + self.offset
        logits = logits.to(device, dtype)[:, : self.classes]
        if self.weights == "none":
            return logits, None
        weight = torch.rand(self.rows, generator=generator, dtype=torch.float64) + 0.1
        if self.weights == "some_zero":
            weight[::3] = 0
        if self.weights == "all_zero":
            weight.zero_()
        return logits, weight.to(device, torch.float64 if dtype == torch.float64 else torch.float32)


# Around the lane counts (16, 32), the switch of layouts (32 classes), a warp, and the chunk of the row sums (1024).
UNIFORMITY_SAMPLES = [
    *(UniformitySample(rows, classes) for rows in (1, 15, 16, 33) for classes in (1, 2, 3, 10, 31, 32, 33)),
    *(UniformitySample(7, classes, weights="none") for classes in (100, 129, 1000, 1023, 1024, 1025, 2049)),
    *(UniformitySample(37, 10, spread=spread) for spread in (1e-3, 1e-2, 0.1, 10, 50)),
    *(UniformitySample(5, 1000, spread=spread, offset=8) for spread in (1e-2, 0.1, 10)),
    UniformitySample(0, 10),
    UniformitySample(0, 10, weights="none"),
    UniformitySample(40, 10, weights="some_zero"),
    UniformitySample(9, 100, weights="some_zero"),
    UniformitySample(4, 7, weights="all_zero"),
    UniformitySample(20, 10, strided=True),
    UniformitySample(6, 129, strided=True),
]

SMALL_UNIFORMITY_SAMPLES = [s for s in UNIFORMITY_SAMPLES if s.rows * s.classes <= 200 and s.weights != "all_zero"]


def uniformity_args(device: str) -> list[tuple[str, Callable[..., object], tuple[object, ...]]]:
    """Calls of every op of the family, for opcheck: (name, op, args)."""
    calls: list[tuple[str, Callable[..., object], tuple[object, ...]]] = []
    ops = torch.ops.fastood
    for sample in (UniformitySample(17, 10), UniformitySample(3, 100, weights="none"), UniformitySample(0, 4)):
        for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
            logits, weight = sample.make(device, dtype)
            forward = ops.weighted_uniformity.default
            _, per_sample, row_stats = forward(logits, weight, True)
            grad_loss = torch.ones((), dtype=per_sample.dtype, device=device)
            backward_args = (grad_loss, logits, row_stats)
            calls += [
                ("weighted_uniformity", forward, (logits, weight, True)),
                ("_weighted_uniformity_backward", ops._weighted_uniformity_backward.default, backward_args),
                (
                    "weighted_uniformity_value_and_grad",
                    ops.weighted_uniformity_value_and_grad.default,
                    (logits, weight, False),
                ),
            ]
    return calls
