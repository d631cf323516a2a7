"""Draws without replacement: by dropping repeated draws, or without reading a value, by the earliest of clocks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastood.ops import background_pool as ops
from fastood.samplers.state import PoolState

__all__ = ["draw_distinct", "draw_earliest", "earliest_clocks_of_slice"]

_ROUNDS = 16
"""Batches of draws before a pass over the pool is cheaper, because a few drawn examples have most of the mass."""
_CHUNK = 1 << 24
"""Examples whose masses are in memory at once when every example has a clock."""


def draw_distinct(
    draw: Callable[[int], Tensor], remaining_mass: Callable[[], Tensor], count: int, *, generator: torch.Generator
) -> Tensor:
    """Draw distinct examples by successive sampling: each in proportion to mass among the examples not drawn yet.

    Drawing with replacement and dropping repeats, in order, has exactly this distribution: a draw that is new is
    distributed in proportion to mass over the remaining examples. If repeats prevail, the rest is drawn by the keys of
    Efraimidis & Spirakis 2006 over the remaining examples. The distribution is the one of successive sampling, too,
    because the order statistics of the keys are successive draws.

    Args:
        draw: Function that returns the requested number of draws with replacement, int64.
        remaining_mass: Function that returns a new tensor with the masses of the whole pool, `[N]`. It is called only
            if the keys are needed.
        count: Number of distinct examples to draw, at most the number of examples with mass.
        generator: Source of the keys, on the device of the masses.

    Returns:
        int64 `[count]`, in the order of the draws.
    """
    drawn: dict[int, None] = {}  # keeps the order of insertion
    for _ in range(_ROUNDS):
        index = draw(count - len(drawn))
        drawn.update(dict.fromkeys(index.tolist()))
        if len(drawn) == count:
            return index if index.numel() == count else torch.tensor(list(drawn), device=index.device)
    first = torch.tensor(list(drawn), dtype=torch.int64, device=index.device)
    masses = remaining_mass()
    masses[first] = 0
    uniform = torch.rand(masses.numel(), dtype=torch.float64, device=masses.device, generator=generator)
    # Exp(1) / p: the smallest key is the next successive draw. Zero mass gives infinity, or NaN at 0 / 0; neither may
    # be drawn.
    keys = (-torch.log1p(-uniform) / masses).masked_fill_(masses == 0, torch.inf)
    return torch.cat([first, keys.topk(count - first.numel(), largest=False).indices])


def draw_earliest(state: PoolState, epsilon: float, count: int, *, generator: torch.Generator) -> Tensor:
    """Draw distinct examples by successive sampling without reading a value, so that the host never waits.

    Args:
        state: The pool.
        epsilon: ε in [0, 1].
        count: Number of distinct examples to draw, at most the number of examples with mass.
        generator: Source of the draws, on the device of the pool.

    Returns:
        int64 `[count]`, in the order of the draws.
    """
    # The order does not depend on the time of the first ring.
    return _earliest_clocks(state, epsilon, count, torch.zeros_like(state.stats[:1]), generator=generator)[1]


def earliest_clocks_of_slice(
    state: PoolState, epsilon: float, count: int, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return the earliest of independent clocks, one for every example, with their times.

    The earliest clocks of all slices of a pool are a draw by successive sampling from the whole pool.

    Args:
        state: The slice.
        epsilon: ε in [0, 1].
        count: Number of clocks, at most the number of examples of the slice, also of those without weight.
        generator: Source of the clocks, on the device of the slice; every slice needs its own stream of numbers.

    Returns:
        rings: Times, float64 `[count]`, ascending; infinite for examples without weight.
        index: Examples of the slice, int64 `[count]`.
    """
    mass = state.stats[ops.MASS_TOTAL :][:1]
    first = _exponential(mass, generator) / torch.maximum(mass, _least_mass(state))
    return _earliest_clocks(state, epsilon, count, first, generator=generator)


def _earliest_clocks(
    state: PoolState, epsilon: float, count: int, first: Tensor, *, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return the times of the earliest clocks, float64 `[count]`, ascending, and their examples, int64 `[count]`.

    Every example has a clock that rings after a time distributed as Exp(1) / p_i; the order in which the clocks ring is
    successive sampling (Efraimidis & Spirakis 2006). The clock of a node of the tree is the earliest below the node,
    distributed as Exp(1) / Σ p, and the `count` earliest examples are below the `count` earliest nodes of each level.
    Given that the earliest clock below a node rings at T, the clocks of its children ring at `T + e_j - min e` with
    independent `e_j` distributed as Exp(1) / m_j, because the exponential distribution has no memory. Only 64 children
    of `count` nodes per level thus need clocks: `O(min(64 count, N) log N)` time and memory. If N is below `64 count`,
    or examples without weight would need a check of every node, each example has a clock: `O(N)`.

    Masses of nodes are rounded as in `BackgroundPool.sample`. Examples of a node whose mass rounds to zero, below 2^-50
    of the total, are drawn after all others, nodes in any order.

    Args:
        state: The pool, or a slice.
        epsilon: ε in [0, 1].
        count: Number of clocks, at most the number of examples.
        first: Time of the first ring, distributed as Exp(1) / Σ p, or any other if only the order is of interest;
            float64 `[1]`. Not used if each example has a clock.
        generator: Source of the clocks, on the device of the pool.
    """
    size = state.omega.numel()
    if size <= ops.FAN_OUT * count or state.drawable < size:
        rings, earliest = _flat_clocks(state, epsilon, generator).topk(count, largest=False)
        return rings, earliest
    device = state.omega.device
    children = torch.arange(ops.FAN_OUT, device=device)
    least = _least_mass(state)
    earliest = torch.zeros(1, dtype=torch.int64, device=device)
    rings = first
    for offset, nodes in [*reversed(ops.levels(size)), (-1, size)]:
        place = earliest[:, None] * ops.FAN_OUT + children
        inside = place < nodes
        place = place.clamp_(max=nodes - 1)
        masses = state.exact_masses(state.omega[place], epsilon) if offset < 0 else state.masses[offset + place]
        clocks = (_exponential(masses, generator) / torch.maximum(masses, least)).masked_fill_(~inside, torch.inf)
        clocks += rings[:, None] - clocks.amin(1, keepdim=True)
        rings, order = clocks.flatten().topk(min(count, nodes), largest=False)
        earliest = place.flatten()[order]
    return rings, earliest


def _least_mass(state: PoolState) -> Tensor:
    """Return a mass, float64 `[]`, for nodes whose mass is 0 by rounding: their clocks ring later than any other."""
    return state.stats[ops.MASS_QUANTUM] * 2.0**-64


def _flat_clocks(state: PoolState, epsilon: float, generator: torch.Generator) -> Tensor:
    """Return a clock for every example, float64 `[N]`; infinite for examples without weight."""
    clocks = torch.empty_like(state.omega, dtype=torch.float64)
    for omega, part in zip(torch.split(state.omega, _CHUNK), torch.split(clocks, _CHUNK), strict=True):
        masses = state.exact_masses(omega, epsilon)
        part.copy_(_exponential(masses, generator)).div_(masses).masked_fill_(masses == 0, torch.inf)
    return clocks


def _exponential(like: Tensor, generator: torch.Generator) -> Tensor:
    """Return draws of Exp(1), float64, in the shape of a tensor."""
    uniform = torch.rand(like.shape, dtype=torch.float64, device=like.device, generator=generator)
    return -torch.log1p(-uniform)
