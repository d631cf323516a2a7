"""Passes over a whole pool, chunk by chunk: random subset, heaviest examples, histogram."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastood.samplers.softplus import softplus

__all__ = ["bernoulli", "calibrated_factor", "heaviest", "log_histogram", "weight_chunks"]

CHUNK = 1 << 20
"""Number of examples that have float64 weights in memory at once."""


def weight_chunks(omega: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Iterate over the chunks of a pool: index of the first example, and the weights, float64."""
    for begin in range(0, omega.numel(), CHUNK):
        yield begin, softplus(omega[begin : begin + CHUNK].double())


def bernoulli(
    omega: Tensor, factor: float, *, generator: torch.Generator, within: tuple[int, int] | None = None
) -> Tensor:
    """Draw each example independently with probability `min(1, factor · w_i)`.

    Args:
        omega: float32 `[N]`, or a slice of it.
        factor: Factor of the weights, >= 0.
        generator: Source of N uniform numbers, also for a slice, so that all slices see the draws of the whole pool.
        within: Begin of the slice in the pool, and N; None if `omega` is the whole pool.

    Returns:
        Indices in the whole pool, int64 `[M]`, ascending.

    Example:
        >>> bernoulli(torch.tensor([50.0, -80.0, 50.0]), 1.0, generator=torch.Generator()).tolist()
        [0, 2]
    """
    first, size = within or (0, omega.numel())
    chosen = [torch.empty(0, dtype=torch.int64, device=omega.device)]
    for begin in range(0, size, CHUNK):
        end = min(begin + CHUNK, size)
        # Drawn for all chunks, also those outside the slice: every slice then sees the same numbers per example.
        uniform = torch.rand(end - begin, dtype=torch.float64, device=omega.device, generator=generator)
        low, high = max(begin, first), min(end, first + omega.numel())
        if low < high:
            weights = softplus(omega[low - first : high - first].double())
            chosen.append((uniform[low - begin : high - begin] < factor * weights).nonzero().flatten() + low)
    return torch.cat(chosen)


def calibrated_factor(omega: Tensor, expected: float, *, start: float) -> float:
    """Return the factor `c` with `Σ min(1, c w_i) = expected`.

    The sum is concave and piecewise linear in c, so that Newton's method from below converges in finitely many steps
    and never overshoots. Each step is a pass over the pool.

    Args:
        omega: float32 `[N]`.
        expected: Expected size, in (0, number of examples with weight].
        start: A factor with an expected size of at most `expected`, such as `expected / Σ w`.

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
        # Rounding may keep the last steps above 0: stop at steps that no longer change the factor.
        if following <= factor * (1 + 1e-15):
            return factor
        factor = following


def heaviest(omega: Tensor, count: int) -> Tensor:
    """Return the indices of the `count` largest ω, int64, in descending order, then lowest index first.

    Example:
        >>> heaviest(torch.tensor([1.0, 3.0, 3.0, 2.0]), 3).tolist()
        [1, 2, 3]
    """
    # The order of topk among equal values is unspecified, so that it only determines the threshold here.
    threshold = omega.topk(count, sorted=False).values.min()
    above = (omega > threshold).nonzero().flatten()
    level = (omega == threshold).nonzero().flatten()[: count - above.numel()]
    index = torch.cat([above, level]).sort().values
    return index[omega[index].sort(descending=True, stable=True).indices]


def log_histogram(omega: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """Return counts, int64 `[bins]`, and logarithmic edges, float64 `[bins + 1]`, of a histogram of the weights.

    The edges go from the smallest to the largest weight. Examples without weight are not counted. If all weights are
    equal they fall into the first bin, and the outer edges are one part in a million apart.
    """
    present = omega[omega != -torch.inf] if bool((omega == -torch.inf).any()) else omega
    low, high = (float(softplus(x.double()).log()) for x in present.aminmax())
    edges = torch.linspace(low, max(high, low + 1e-6), bins + 1, dtype=torch.float64, device=omega.device)
    counts = torch.zeros(bins, dtype=torch.int64, device=omega.device)
    for _, weights in weight_chunks(present):
        place = torch.bucketize(weights.log(), edges[1:-1], right=True)
        counts += torch.bincount(place, minlength=bins)
    return counts, edges.exp()
