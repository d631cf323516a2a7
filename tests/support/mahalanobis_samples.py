"""One table of inputs for the Mahalanobis logits: every edge of the kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


def random_scale(dim: int, *, generator: torch.Generator, condition: float = 10.0) -> Tensor:
    """Cholesky factor, float64 `[d, d]`, of a random covariance of that condition number."""
    q, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
    eigenvalues = torch.logspace(0, 1, dim, base=condition, dtype=torch.float64) / condition**0.5
    return torch.linalg.cholesky((q * eigenvalues) @ q.T)


@dataclass(frozen=True)
class MahalanobisSample:
    """Features around the means, some of them on one."""

    rows: int
    classes: int
    dim: int
    diagonal: bool = False
    offset: float = 0.0
    spread: float = 3.0
    condition: float = 10.0
    strided: bool = False

    def __str__(self) -> str:
        flags = "".join(f"-{name}" for name in ("diagonal", "strided") if getattr(self, name))
        return f"{self.rows}x{self.classes}x{self.dim}-offset{self.offset:g}-spread{self.spread:g}{flags}"

    def make(self, device: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        """features, means and scale_tril; the upper triangle holds garbage."""
        generator = torch.Generator().manual_seed(self.rows + 10 * self.classes + 100 * self.dim)

        def randn(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        means = self.offset + self.spread * randn(self.classes, self.dim)
        own = torch.arange(self.rows) % self.classes
        distance = torch.tensor([0.0, 1e-3, 1.0])[torch.arange(self.rows) % 3, None]
        features = means[own] + distance * randn(self.rows, self.dim)
        if self.diagonal:
            scale = 0.5 + torch.rand(self.dim, generator=generator, dtype=torch.float64)
        else:
            scale = random_scale(self.dim, generator=generator, condition=self.condition)
            scale = scale + torch.triu(torch.full_like(scale, 1e6), 1)
        made = tuple(x.to(device, dtype) for x in (features, means, scale))
        if not self.strided:
            return made
        return tuple(torch.stack([x, torch.full_like(x, torch.nan)], -1)[..., 0] for x in made)


SAMPLES = [
    *(MahalanobisSample(rows, 3, dim) for rows in (1, 7, 33) for dim in (1, 2, 31, 32, 33)),
    *(MahalanobisSample(20, classes, 16) for classes in (1, 31, 32, 33)),
    *(MahalanobisSample(rows, 10, 64) for rows in (95, 96, 97)),
    *(MahalanobisSample(17, 5, dim) for dim in (127, 128, 129, 255, 256, 257)),
    MahalanobisSample(3, 600, 20),
    MahalanobisSample(400, 2, 8),
    MahalanobisSample(0, 4, 8),
    MahalanobisSample(40, 10, 64, offset=1000.0),
    MahalanobisSample(40, 10, 64, spread=0.0),
    MahalanobisSample(40, 10, 64, spread=100.0),
    MahalanobisSample(40, 10, 64, condition=1e4),
    MahalanobisSample(40, 10, 64, diagonal=True),
    MahalanobisSample(33, 7, 129, diagonal=True, offset=10.0),
    MahalanobisSample(33, 7, 40, strided=True),
    MahalanobisSample(33, 7, 40, strided=True, diagonal=True),
]
SMALL_SAMPLES = [
    MahalanobisSample(5, 3, 4),
    MahalanobisSample(4, 1, 3),
    MahalanobisSample(2, 6, 5, strided=True),
    MahalanobisSample(5, 3, 1),
    MahalanobisSample(5, 3, 4, diagonal=True),
    MahalanobisSample(0, 3, 4),
]


def mahalanobis_calls(device: str) -> list[tuple[str, Callable[..., object], tuple[object, ...]]]:
    """Calls of the op and its backward, for opcheck: (name, op, args)."""
    calls: list[tuple[str, Callable[..., object], tuple[object, ...]]] = []
    for sample in (*SMALL_SAMPLES, MahalanobisSample(33, 7, 40)):
        for dtype in (torch.float32, torch.float64):
            args = sample.make(device, dtype)
            logits, residual, whitened_means, nearest = torch.ops.fastood.mahalanobis_logits(*args)
            grad = torch.linspace(-1, 1, logits.numel(), dtype=dtype, device=device).reshape(logits.shape)
            backward = (grad, residual, whitened_means, nearest, args[2])
            calls += [
                ("mahalanobis_logits", torch.ops.fastood.mahalanobis_logits.default, args),
                (
                    "_mahalanobis_logits_backward",
                    torch.ops.fastood._mahalanobis_logits_backward.default,
                    backward,
                ),
            ]
    return calls
