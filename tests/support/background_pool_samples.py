"""Pools of every kind of layout, and calls of every pool op for opcheck."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastood.ops import background_pool as ops
from fastood.samplers import BackgroundPool
from fastood.samplers.softplus import inverse_softplus_of


def pool_of(weights: Tensor, **options: object) -> BackgroundPool:
    """A pool with these weights, 0 included, and any options."""
    pool = BackgroundPool(len(weights), **options)
    omega = inverse_softplus_of(weights.double()).float()
    pool.load_state_dict({"omega": omega, "velocity": torch.zeros_like(omega)})
    return pool


def one_hot(size: int, position: int, rest: float = 0.0) -> Tensor:
    weights = torch.full((size,), rest, dtype=torch.float64)
    weights[position] = 1.0
    return weights


# (name, weights): up to 3 levels; skewed ones are drawn by descent, even ones by rejection.
LAYOUTS: dict[str, Tensor] = {
    "uniform": torch.ones(1000),
    "skewed": torch.linspace(0.01, 5, 333, dtype=torch.float64) ** 3,
    "one of many": one_hot(5000, 4095, rest=1e-6),
    "geometric over 30 decades": 10.0 ** torch.linspace(-28, 2, 300, dtype=torch.float64),
    "half without weight": (torch.arange(700) % 2).double(),
    "one": torch.ones(1),
    "a leaf and one": torch.linspace(1, 3, 65),
    "three levels": torch.linspace(0.5, 1.5, 4097 * 3).roll(700),
}

# Where a descent could fall off: zeros before, after and between, at the edges of blocks of 64 and 4096.
ADVERSARIAL: dict[str, Tensor] = {
    **{f"only {i} of 8193": one_hot(8193, i) for i in (0, 1, 62, 63, 64, 65, 4094, 4095, 4096, 4097, 8191, 8192)},
    "first of every block": (torch.arange(4160) % 64 == 0).double(),
    "last of every block": (torch.arange(4160) % 64 == 63).double(),
    "every other block": (torch.arange(4160) // 64 % 2 == 1).double(),
    "zeros, then tiny beside huge": torch.cat([torch.zeros(70), torch.tensor([1e-12, 1e6, 1e-12]), torch.zeros(70)]),
    "falling to zero": torch.cat([2.0 ** -torch.arange(60.0, dtype=torch.float64), torch.zeros(100)]),
}


def pool_args(device: str) -> list[tuple[str, Callable[..., object], tuple[object, ...]]]:
    """Calls of every op of the pool: (name, op, args)."""
    calls: list[tuple[str, Callable[..., object], tuple[object, ...]]] = []
    generator = torch.Generator().manual_seed(0)
    for name in ("uniform", "skewed", "half without weight", "a leaf and one"):
        weights = LAYOUTS[name]
        state = pool_of(weights, device=device)._state
        uniform = torch.rand(33, dtype=torch.float64, generator=generator).to(device)
        index, _ = ops.pool_draw(state.omega, state.masses, state.stats, uniform, 0.5)
        loss = torch.rand(33, dtype=torch.float64, generator=generator).to(device)
        sums = state.stats[: ops.MASS_QUANTUM]
        shared = torch.cat([sums[:2] * 2, sums.new_tensor([0.4, 40.0])])
        target = (uniform * (sums[0] / state.stats[ops.MASS_QUANTUM])).floor() * state.stats[ops.MASS_QUANTUM]
        tree = (state.omega, state.masses, state.stats)
        calls += [
            ("background_pool_fill", ops.pool_fill, (state.velocity.clone(), 0.5)),
            ("background_pool_fill", ops.pool_fill, (state.masses.clone(), 0.0)),
            ("background_pool_sums", ops.pool_sums, (state.omega, 0.5)),
            ("background_pool_build", ops.pool_build, (*tree, 0.5)),
            ("background_pool_draw", ops.pool_draw, (*tree, uniform, 0.5)),
            ("background_pool_find", ops.pool_find, (*tree, target, 0.5)),
            ("background_pool_importance", ops.pool_importance, (state.omega, state.stats, index, 0.5)),
        ]
        for sparse, reach in ((False, None), (True, None), (False, shared)):
            args = (state.omega, state.velocity, *tree[1:], index, loss, reach, 0.5, 0.9, 2.0, sparse)
            calls.append(("background_pool_ascend", ops.pool_ascend, args))
    return calls
