"""Draws without replacement, by dropping repeated draws."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["draw_distinct"]

_ROUNDS = 16
"""Batches of draws before a pass over the pool is cheaper, because a few drawn examples have most of the mass."""


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
