"""Passes over a whole pool, chunk by chunk: choosing a subset, the heaviest examples, a histogram."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastood.samplers.softplus import softplus

CHUNK = 1 << 20
"""Examples whose float64 weights are in memory at once."""


def weight_chunks(omega: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Position of each chunk and its weights, float64."""
    for begin in range(0, omega.numel(), CHUNK):
        yield begin, softplus(omega[begin : begin + CHUNK].double())


def bernoulli(
    omega: Tensor, factor: float, *, generator: torch.Generator, within: tuple[int, int] | None = None
) -> Tensor:
    """Each example independently with probability `min(1, factor · w_i)`; int64 indices, ascending.

    Args:
        omega: float32 `[N]`, or a slice of it.
        factor: >= 0.
        generator: Gives N uniforms in any case.
        within: Position of the slice and N; None for the whole. Indices are then of the whole.

    Example:
        >>> bernoulli(torch.tensor([50.0, -80.0, 50.0]), 1.0, generator=torch.Generator()).tolist()
        [0, 2]
    """
    first, size = within or (0, omega.numel())
    chosen = [torch.empty(0, dtype=torch.int64, device=omega.device)]
    for begin in range(0, size, CHUNK):
        end = min(begin + CHUNK, size)
        uniform = torch.rand(end - begin, dtype=torch.float64, device=omega.device, generator=generator)
        low, high = max(begin, first), min(end, first + omega.numel())
        if low < high:
            weights = softplus(omega[low - first : high - first].double())
            chosen.append((uniform[low - begin : high - begin] < factor * weights).nonzero().flatten() + low)
    return torch.cat(chosen)


def calibrated_factor(omega: Tensor, expected: float, *, start: float) -> float:
    """The `c` with `Σ min(1, c w_i) = expected`.

    The sum is concave and piecewise linear in c, so that Newton's method from below arrives in finitely many steps,
    none of which overshoots; each is a pass over the pool.

    Args:
        omega: float32 `[N]`.
        expected: In (0, number of examples with weight].
        start: A factor that gives at most `expected`, e.g. `expected / Σ w`.

    Example:
        >>> omega = torch.tensor([100.0, 1.0, 1.0])
        >>> factor = calibrated_factor(omega, 2.0, start=2 / float(softplus(omega).sum()))
        >>> (factor * softplus(omega)).clamp(max=1).round(decimals=3).tolist()
        [1.0, 0.5, 0.5]
    """
    factor = start
    while True:
        certain, rest = 0, 0.0
        for _, weights in weight_chunks(omega):
            cut = factor * weights >= 1
            certain += int(cut.sum())
            rest += float(weights.masked_fill(cut, 0.0).sum())
        if rest == 0:
            return factor
        following = (expected - certain) / rest
        if following <= factor * (1 + 1e-15):
            return factor
        factor = following


def heaviest(omega: Tensor, count: int) -> Tensor:
    """Indices of the largest ω, descending; among equals the lowest index first.

    Example:
        >>> heaviest(torch.tensor([1.0, 3.0, 3.0, 2.0]), 3).tolist()
        [1, 2, 3]
    """
    threshold = omega.topk(count, sorted=False).values.min()
    above = (omega > threshold).nonzero().flatten()
    level = (omega == threshold).nonzero().flatten()[: count - above.numel()]
    index = torch.cat([above, level]).sort().values
    return index[omega[index].sort(descending=True, stable=True).indices]


def log_histogram(omega: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Counts of weights between logarithmically spaced edges from the smallest to the largest.

    Examples without weight are not counted. All equal weights fall into the first bin of edges one part in a million
    apart.
    """
    present = omega[omega != -torch.inf] if bool((omega == -torch.inf).any()) else omega
    low, high = (float(softplus(x.double()).log()) for x in present.aminmax())
    edges = torch.linspace(low, max(high, low + 1e-6), bins + 1, dtype=torch.float64, device=omega.device)
    counts = torch.zeros(bins, dtype=torch.int64, device=omega.device)
    for _, weights in weight_chunks(present):
        place = torch.bucketize(weights.log(), edges[1:-1], right=True)
        counts += torch.bincount(place, minlength=bins)
    return counts, edges.exp()
