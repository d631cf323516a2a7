"""Passes over a whole pool, chunk by chunk: random subset, heaviest examples, histogram."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fastood.samplers.softplus import softplus

__all__ = ["bernoulli", "bernoulli_chunks", "calibrated_factor", "heaviest", "log_histogram", "weight_chunks"]

CHUNK = 1 << 20
"""Number of examples that have float64 weights in memory at once."""
GROUP = 1 << 27
"""Number of examples, at least, whose draws are turned into indices at once."""


def weight_chunks(omega: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Iterate over the chunks of a pool: index of the first example, and the weights, float64."""
    for begin in range(0, omega.numel(), CHUNK):
        yield begin, softplus(omega[begin : begin + CHUNK].double())


def bernoulli_chunks(
    omega: Tensor, factor: Tensor, *, generator: torch.Generator, within: tuple[int, int] | None = None
) -> Iterator[Tensor]:
    """Draw each example independently with probability `min(1, factor · w_i)`, chunk by chunk, without waiting.

    Args:
        omega: float32 `[N]`, or a slice of it.
        factor: Factor of the weights, >= 0; float64 `[]` on the device of `omega`.
        generator: Source of N uniform numbers, also for a slice, so that all slices see the draws of the whole pool.
        within: Begin of the slice in the pool, and N; None if `omega` is the whole pool.

    Yields:
        Whether each example is drawn, bool, for consecutive chunks of `omega`.
    """
    first, size = within or (0, omega.numel())
    for begin in range(0, size, CHUNK):
        end = min(begin + CHUNK, size)
        # Drawn for all chunks, also those outside the slice: every slice then sees the same numbers per example.
        uniform = torch.rand(end - begin, dtype=torch.float64, device=omega.device, generator=generator)
        low, high = max(begin, first), min(end, first + omega.numel())
        if low < high:
            weights = softplus(omega[low - first : high - first].double())
            yield uniform[low - begin : high - begin] < factor * weights


def bernoulli(
    omega: Tensor, factor: Tensor, *, generator: torch.Generator, within: tuple[int, int] | None = None
) -> Tensor:
    """Return the indices of the examples that `bernoulli_chunks` draws, int64 `[M]`, ascending, in the whole pool.

    Waits for the device once for every `GROUP` examples, because M depends on the draws.

    Example:
        >>> one = torch.ones((), dtype=torch.float64)
        >>> bernoulli(torch.tensor([50.0, -80.0, 50.0]), one, generator=torch.Generator()).tolist()
        [0, 2]
    """
    begin = within[0] if within else 0
    chosen = [torch.empty(0, dtype=torch.int64, device=omega.device)]
    masks: list[Tensor] = []
    held = 0
    for mask in bernoulli_chunks(omega, factor, generator=generator, within=within):
        masks.append(mask)
        held += len(mask)
        if held >= GROUP:
            chosen.append(torch.cat(masks).nonzero().flatten() + begin)
            begin, masks, held = begin + held, [], 0
    if masks:
        chosen.append(torch.cat(masks).nonzero().flatten() + begin)
    return torch.cat(chosen)


def calibrated_factor(
    omega: Tensor, expected: float, *, start: float, add: Callable[[Tensor], Tensor] | None = None
) -> float:
    """Return the factor `c` with `Σ min(1, c w_i) = expected`.

    The sum is concave and piecewise linear in c, so that Newton's method from below converges in finitely many steps
    and never overshoots. Each step is a pass over the pool, after which the host waits for its sums.

    Args:
        omega: float32 `[N]`.
        expected: Expected size, in (0, number of examples with weight].
        start: A factor with an expected size of at most `expected`, such as `expected / Σ w`.
        add: Function that adds a float64 tensor over all slices, if `omega` is a slice; None for a whole pool.

    Example:
        >>> omega = torch.tensor([100.0, 1.0, 1.0])
        >>> factor = calibrated_factor(omega, 2.0, start=2 / float(softplus(omega).sum()))
        >>> (factor * softplus(omega)).clamp(max=1).round(decimals=3).tolist()
        [1.0, 0.5, 0.5]
    """
    factor = start
    while True:
        sums = torch.zeros(2, dtype=torch.float64, device=omega.device)
        for _, weights in weight_chunks(omega):
            cut = factor * weights >= 1
            sums += torch.stack([cut.sum(dtype=torch.float64), weights.masked_fill(cut, 0.0).sum()])
        certain, rest = (sums if add is None else add(sums)).tolist()
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
    none = omega.numel()
    # Of fixed sizes, because the host would have to wait for a size that depends on the values.
    above = (omega > threshold).nonzero_static(size=count, fill_value=none)
    level = (omega == threshold).nonzero_static(size=count, fill_value=none)
    index = torch.cat([above, level]).flatten().sort().values
    # The places that hold no example come last, also after examples without weight, which have lower indices.
    present = omega[index.clamp(max=none - 1)].masked_fill_(index == none, -torch.inf)
    return index[present.sort(descending=True, stable=True).indices[:count]]


def log_histogram(
    omega: Tensor,
    bins: int,
    *,
    largest: Callable[[Tensor], Tensor] | None = None,
    add: Callable[[Tensor], Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return counts, int64 `[bins]`, and logarithmic edges, float64 `[bins + 1]`, of a histogram of the weights.

    The edges go from the smallest to the largest weight. Examples without weight are not counted. If all weights are
    equal they fall into the first bin, and the outer edges are one part in a million apart.

    Args:
        omega: float32 `[N]`.
        bins: Number of bins.
        largest: Function that takes the maximum of a tensor over all slices, if `omega` is a slice.
        add: Function that adds a tensor over all slices, if `omega` is a slice.
    """
    lowest = torch.stack(
        [part.masked_fill(part == -torch.inf, torch.inf).min() for part in torch.split(omega, CHUNK)]
    ).min()
    # One maximum for both limits.
    limits = torch.stack([-lowest, omega.max()])
    lowest, highest = limits if largest is None else largest(limits)
    low, high = (softplus(x.double()).log() for x in (-lowest, highest))
    # Neither linspace, which reads the limits, nor bincount, which reads the largest place: both would wait.
    steps = torch.arange(bins + 1, dtype=torch.float64, device=omega.device) / bins
    edges = torch.lerp(low, torch.maximum(high, low + 1e-6), steps)
    counts = torch.zeros(bins + 1, dtype=torch.int64, device=omega.device)
    for _, weights in weight_chunks(omega):
        # Examples without weight are counted in the last entry.
        place = torch.bucketize(weights.log(), edges[1:-1], right=True).masked_fill_(weights == 0, bins)
        counts.index_add_(0, place, torch.ones_like(place))
    return (counts if add is None else add(counts))[:bins], edges.exp()
