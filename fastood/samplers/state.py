"""The tensors of a pool and the ops on them, without the checks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fastood.ops import background_pool as ops
from fastood.samplers import pool_checks
from fastood.samplers.softplus import OMEGA_MAX, OMEGA_MIN

__all__ = ["AscentMode", "PoolState"]

AscentMode = Literal["exact", "sparse"]
"""Coordinates that one step of ascent moves: all of them, or only those of the batch."""


@dataclass(frozen=True, kw_only=True)
class PoolState:
    """What csrc/background_pool/layout.h draws: ω, velocity, the tree of sums over masses, and totals.

    Steps write into the tensors; anything that replaces them makes a new state, complete before the old one is dropped.
    """

    omega: Tensor
    """float32 `[N]`."""
    velocity: Tensor
    """float32 `[N]`."""
    masses: Tensor
    """float64, `ops.masses_size(N)` long."""
    stats: Tensor
    """float64 `[7]`."""
    drawable: int
    """Examples with weight."""

    @classmethod
    def uniform(cls, num_examples: int, omega: float, epsilon: float, device: torch.device | str) -> PoolState:
        """N examples with the same ω and at rest: sums are multiples of one example's, exact like all of them."""
        state = cls.filled(num_examples, omega, device)
        one = cls.filled(1, omega, device)
        one.sum_up(epsilon, quanta=ops.choose_quanta(ops.pool_sums(one.omega, epsilon) * num_examples))
        state.stats.copy_(one.stats)
        state.stats[: ops.MASS_QUANTUM] *= num_examples
        mass, below = one.stats[ops.MASS_TOTAL], 1
        for offset, nodes in ops.levels(num_examples):
            below *= ops.FAN_OUT
            state.masses[offset : offset + nodes - 1] = mass * below
            state.masses[offset + nodes - 1] = mass * (num_examples - (nodes - 1) * below)
        return state

    def take(self, omega: Tensor, velocity: Tensor | None, epsilon: float, *, scale: Tensor | None = None) -> PoolState:
        """Copy the leaves of another pool into this one's memory and sum them up; needs no second pool's worth of it.

        Args:
            omega: float32 `[N]`, finite or -inf; clamped to its range.
            velocity: float32 `[N]`, finite; None for examples at rest.
            epsilon: In [0, 1].
            scale: Quanta and bound of an earlier state, float64 `[4]`; None to choose them.

        Returns:
            The state that stands for the same tensors from now on.

        Raises:
            ValueError: No example has weight, or `scale` does not fit. Nothing has changed then.
        """
        low, high = (float(value) for value in omega.aminmax())
        if high == -torch.inf:
            raise ValueError("every example has weight zero: there is nothing to draw")
        removed = 0
        if low < OMEGA_MIN or high > OMEGA_MAX:
            gone = omega == -torch.inf
            removed = int(gone.sum())
            omega = omega.clamp(OMEGA_MIN, OMEGA_MAX).masked_fill_(gone, -torch.inf)
        omega = omega.to(self.omega.device).contiguous()
        sums = ops.pool_sums(omega, epsilon)
        if scale is not None:
            pool_checks.check_scale(scale, sums)
        self.omega.copy_(omega)
        if velocity is None:
            self.velocity.zero_()
        else:
            self.velocity.copy_(velocity)
        self.sum_up(epsilon, quanta=ops.choose_quanta(sums) if scale is None else scale[:3])
        if scale is not None:
            self.stats[ops.BOUND] = torch.maximum(self.stats[ops.BOUND], scale[3].to(self.stats.device))
        return replace(self, drawable=self.omega.numel() - removed)

    @classmethod
    def filled(cls, num_examples: int, omega: float, device: torch.device | str) -> PoolState:
        """Memory for N examples with the same ω, at rest; the sums are yet to be made."""
        state = cls(
            omega=torch.empty(num_examples, dtype=torch.float32, device=device),
            velocity=torch.empty(num_examples, dtype=torch.float32, device=device),
            masses=torch.empty(ops.masses_size(num_examples), dtype=torch.float64, device=device),
            stats=torch.zeros(ops.STATS, dtype=torch.float64, device=device),
            drawable=num_examples,
        )
        # Not by torch.full: the first touch decides on the size of pages.
        ops.pool_fill(state.omega, omega)
        ops.pool_fill(state.velocity, 0.0)
        ops.pool_fill(state.masses, 0.0)
        return state

    def sum_up(self, epsilon: float, *, quanta: Tensor | None = None) -> None:
        """Compute all sums anew, rounded to `quanta` or to newly chosen ones. Waits for the device."""
        if quanta is None:
            quanta = ops.choose_quanta(ops.pool_sums(self.omega, epsilon))
        self.stats[ops.MASS_QUANTUM : ops.BOUND] = quanta
        ops.pool_build(self.omega, self.masses, self.stats, epsilon)

    def find(self, uniform: Tensor, epsilon: float) -> Tensor:
        """Invert the running sum of masses: int64 `[B]` for float64 uniforms `[B]` in [0, 1), monotone in them."""
        target = self.target(uniform, self.stats[ops.MASS_TOTAL])
        return ops.pool_find(self.omega, self.masses, self.stats, target, epsilon)  # type: ignore[no-any-return]

    def target(self, uniform: Tensor, total: Tensor) -> Tensor:
        """Where in a running sum up to `total` a uniform points: whole quanta, below the total.

        draw_target of csrc/background_pool/math.h.
        """
        quantum = self.stats[ops.MASS_QUANTUM]
        return torch.minimum((uniform * (total / quantum)).floor_() * quantum, total - quantum)

    def part(self, begin: int, end: int, epsilon: float) -> PoolState:
        """A copy of the examples `begin … end - 1`, rounded like the whole; they may all be without weight."""
        state = PoolState.filled(end - begin, 0.0, self.omega.device)
        state.omega.copy_(self.omega[begin:end])
        state.velocity.copy_(self.velocity[begin:end])
        state.sum_up(epsilon, quanta=self.stats[ops.MASS_QUANTUM : ops.BOUND])
        return replace(state, drawable=int((state.omega != -torch.inf).sum()))

    def ascend(
        self,
        index: Tensor,
        per_sample_loss: Tensor,
        epsilon: float,
        momentum: float,
        lr: float,
        *,
        sparse: bool,
        shared: Tensor | None = None,
    ) -> None:
        """One step; see `BackgroundPool.ascend`. `shared` holds Z, S, L and B where they are not those of this state.

        Raises:
            ValueError: A value of the batch is out of range; nothing has changed then.
        """
        # The checked batch is the one that is used: contiguous, float64, on the device of the pool.
        index = index.to(self.omega.device).contiguous()
        loss = per_sample_loss.detach().to(self.omega.device, torch.float64).contiguous()
        status = ops.pool_ascend(
            self.omega, self.velocity, self.masses, self.stats, index, loss, shared, epsilon, momentum, lr, sparse
        )
        if status.is_cuda and torch.cuda.is_current_stream_capturing():
            return  # A graph cannot wait; bad batches change nothing, sums are renewed by the next step outside it.
        code, position = status.tolist()
        if code == ops.NEEDS_BUILD and shared is None:
            self.sum_up(epsilon)
        elif code not in (ops.DONE, ops.NEEDS_BUILD):
            pool_checks.raise_for_status(code, position, index, loss, lr, self.omega.numel())

    def leaves(self) -> dict[str, Tensor]:
        """What the rest follows from, and how it is rounded; not copied."""
        scale = self.stats[ops.MASS_QUANTUM :]
        return {"omega": self.omega, "velocity": self.velocity, "scale": scale}
