"""Ops of the background pool: draws by mass, steps of ascent, and the sums that both use.

State and layout are in csrc/background_pool/layout.h, the maths of one example in math.h next to it. `omega` float32
`[N]` gives the weights `w = softplus(ω)` and masses `p = w^ε`; `masses` float64 holds the sums of a tree of 64 children
per node; `stats` float64 `[7]` the totals `Z = Σ p`, `S = Σ w`, `Q = Σ w²`, the quantum each of them is rounded to, and
a bound on every mass. These functions assume that masses and stats belong to omega, as
`fastood.samplers.BackgroundPool` ensures. With wrong masses a draw may leave the pool, which raises RuntimeError on the
CPU and returns the last example on CUDA.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fastood.ops._validation import require_same_device

FAN_OUT = 64  # kFanOut of csrc/background_pool/layout.h
STATS = 7  # kStats
MASS_TOTAL, WEIGHT_TOTAL, SQUARE_TOTAL, MASS_QUANTUM, WEIGHT_QUANTUM, SQUARE_QUANTUM, BOUND = range(STATS)
DONE, BAD_INDEX, BAD_LOSS, TOO_LARGE, NEEDS_BUILD = range(5)  # PoolStatus of csrc/background_pool/status.h

LOW, HIGH = 2.0**46, 2.0**52  # kLowTotal and kHighTotal: range of a total in quanta

LOSS_DTYPE = torch.float64

_QUANTA_BITS = 50
_EXPONENT_BIAS = 1023
_MANTISSA_BITS = 52

pool_fill = torch.ops.fastood.background_pool_fill.default
pool_sums = torch.ops.fastood.background_pool_sums.default
pool_build = torch.ops.fastood.background_pool_build.default
pool_draw = torch.ops.fastood.background_pool_draw.default
pool_find = torch.ops.fastood.background_pool_find.default
pool_importance = torch.ops.fastood.background_pool_importance.default
pool_ascend = torch.ops.fastood.background_pool_ascend.default


def levels(num_examples: int) -> list[tuple[int, int]]:
    """Return offset in `masses` and number of nodes of every level of a pool of N examples, padded to whole blocks.

    Example:
        >>> levels(64), levels(64 * 64 + 1)
        ([(0, 1)], [(0, 65), (128, 2)])
    """
    sizes: list[tuple[int, int]] = []
    offset, nodes = 0, num_examples
    while not sizes or nodes > FAN_OUT:
        nodes = -(-nodes // FAN_OUT)
        sizes.append((offset, nodes))
        offset += -(-nodes // FAN_OUT) * FAN_OUT
    return sizes


def masses_size(num_examples: int) -> int:
    """Return the length of `masses` for a pool of N examples.

    Example:
        >>> masses_size(64), masses_size(64 * 64 + 1), masses_size(10**9) * 8 / 10**9
        (64, 192, 0.126984704)
    """
    offset, nodes = levels(num_examples)[-1]
    return offset + -(-nodes // FAN_OUT) * FAN_OUT


def choose_quanta(sums: Tensor) -> Tensor:
    """Return powers of two such that each sum is between 2^49 and 2^50 of them: 53-bit additions then stay exact.

    Args:
        sums: float64 `[3]`, finite and >= 0, from `pool_sums`.

    Returns:
        float64 `[3]` on the same device; 1 where the sum is 0.

    Example:
        >>> choose_quanta(torch.tensor([2.0**50, 1.5, 0.0], dtype=torch.float64)).log2().tolist()
        [1.0, -49.0, 0.0]
    """
    # From the bits, on the device: torch.ldexp takes a power in float32, which overflows.
    exponents = (sums.frexp().exponent.long() + (_EXPONENT_BIAS - _QUANTA_BITS)).clamp_(min=1)
    return torch.where(sums > 0, (exponents << _MANTISSA_BITS).view(torch.float64), 1.0)


def _fill_fake(state: Tensor, value: float) -> None:
    return None


def _sums_fake(omega: Tensor, epsilon: float) -> Tensor:
    return omega.new_empty((3,), dtype=torch.float64)


def _build_fake(omega: Tensor, masses: Tensor, stats: Tensor, epsilon: float) -> None:
    require_same_device(omega, masses, stats)


def _draw_fake(omega: Tensor, masses: Tensor, stats: Tensor, uniform: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    require_same_device(omega, masses, stats, uniform)
    return uniform.new_empty(uniform.shape, dtype=torch.int64), uniform.new_empty(uniform.shape, dtype=torch.float32)


def _find_fake(omega: Tensor, masses: Tensor, stats: Tensor, target: Tensor, epsilon: float) -> Tensor:
    require_same_device(omega, masses, stats, target)
    return target.new_empty(target.shape, dtype=torch.int64)


def _importance_fake(omega: Tensor, stats: Tensor, index: Tensor, epsilon: float) -> Tensor:
    require_same_device(omega, stats, index)
    return index.new_empty(index.shape, dtype=torch.float64)


def _ascend_fake(
    omega: Tensor,
    velocity: Tensor,
    masses: Tensor,
    stats: Tensor,
    index: Tensor,
    loss: Tensor,
    shared: Tensor | None,
    epsilon: float,
    momentum: float,
    lr: float,
    sparse: bool,
) -> Tensor:
    require_same_device(omega, velocity, masses, stats, index, loss, shared)
    return index.new_empty((2,))


torch.library.register_fake("fastood::background_pool_fill", _fill_fake)
torch.library.register_fake("fastood::background_pool_sums", _sums_fake)
torch.library.register_fake("fastood::background_pool_build", _build_fake)
torch.library.register_fake("fastood::background_pool_draw", _draw_fake)
torch.library.register_fake("fastood::background_pool_find", _find_fake)
torch.library.register_fake("fastood::background_pool_importance", _importance_fake)
torch.library.register_fake("fastood::background_pool_ascend", _ascend_fake)
