"""Draws without replacement, by dropping repeats."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_ROUNDS = 16
"""Batches of draws before the weights left over are so concentrated that a pass over the pool is cheaper."""


def draw_distinct(
    draw: Callable[[int], Tensor], remaining_mass: Callable[[], Tensor], count: int, *, generator: torch.Generator
) -> Tensor:
    """Successive sampling: each draw by mass among the examples not drawn yet.

    Drawing with replacement and dropping repeats, in order, gives exactly this distribution: given that a draw is new,
    it is distributed by mass over what is left. Where repeats prevail, the rest is drawn by the keys of Efraimidis and
    Spirakis (2006) over the remaining examples, the same distribution again: their order statistics are successive
    draws.

    Args:
        draw: Gives that many draws with replacement, int64.
        remaining_mass: Gives the masses of the whole pool, a fresh `[N]`, when they are needed.
        count: Distinct examples wanted; as many have mass.
        generator: For the keys, on the device of the masses.

    Returns:
        int64 `[count]`, in the order drawn.
    """
    found: dict[int, None] = {}
    for _ in range(_ROUNDS):
        index = draw(count - len(found))
        found.update(dict.fromkeys(index.tolist()))
        if len(found) == count:
            return index if index.numel() == count else torch.tensor(list(found), device=index.device)
    first = torch.tensor(list(found), dtype=torch.int64, device=index.device)
    masses = remaining_mass()
    masses[first] = 0
    uniform = torch.rand(masses.numel(), dtype=torch.float64, device=masses.device, generator=generator)
    # Exp(1) / p: the smallest is the next successive draw. Zero mass gives infinity, or NaN at 0 / 0: never wanted.
    keys = (-torch.log1p(-uniform) / masses).masked_fill_(masses == 0, torch.inf)
    return torch.cat([first, keys.topk(count - first.numel(), largest=False).indices])
