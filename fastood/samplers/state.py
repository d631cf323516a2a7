"""Tensors of a pool and the operations on them, without argument checks."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from fastood.ops import background_pool as ops
from fastood.samplers import pool_checks
from fastood.samplers.ascent_batch import AscentBatch
from fastood.samplers.softplus import OMEGA_MAX, OMEGA_MIN, softplus

__all__ = ["NO_WEIGHT", "AscentMode", "PoolState"]

NO_WEIGHT = "every example has weight zero: there is nothing to draw"
"""Message of the error for a pool without any weight."""

AscentMode = Literal["exact", "sparse"]
"""Coordinates that one step of ascent moves: all of them, or only those of the batch."""


@dataclass(frozen=True, kw_only=True)
class PoolState:
    """Tensors of a pool in the layout of csrc/background_pool/layout.h: ω, velocity, tree of mass sums, and totals.

    Steps write into the tensors. Operations that replace them return a new state, so that an error leaves the old one
    intact.
    """

    omega: Tensor
    """Parameters ω of the weights, float32 `[N]`; -inf for examples without weight."""
    velocity: Tensor
    """Velocity of ω, float32 `[N]`."""
    masses: Tensor
    """Tree of sums of the masses `w^ε`, float64 `[ops.masses_size(N)]`."""
    stats: Tensor
    """Totals of masses, weights and squared weights, their rounding units, and a bound; float64 `[7]`."""
    drawable: int
    """Number of examples with weight."""

    @classmethod
    def uniform(
        cls,
        num_examples: int,
        omega: float,
        epsilon: float,
        device: torch.device | str,
        *,
        pool_size: int | None = None,
    ) -> PoolState:
        """Return the state of N examples with equal ω and zero velocity, without a pass over the examples.

        Args:
            num_examples: N.
            omega: ω of every example.
            epsilon: ε in [0, 1].
            device: Device of the tensors.
            pool_size: Number of examples of the whole pool, whose sums determine the quanta, if this is a slice.
        """
        state = cls.filled(num_examples, omega, device)
        # Sums of quanta are exact, so that the sums over N equal examples are multiples of the sums over one.
        one = cls.filled(1, omega, device)
        one.sum_up(epsilon, quanta=ops.choose_quanta(ops.pool_sums(one.omega, epsilon) * (pool_size or num_examples)))
        state.stats.copy_(one.stats)
        state.stats[: ops.MASS_QUANTUM] *= num_examples
        mass, below = one.stats[ops.MASS_TOTAL], 1
        for offset, nodes in ops.levels(num_examples):
            below *= ops.FAN_OUT
            # Every node of a level has the same number of examples below it, except for the last, which may have fewer.
            state.masses[offset : offset + nodes - 1] = mass * below
            state.masses[offset + nodes - 1] = mass * (num_examples - (nodes - 1) * below)
        return state

    def take(self, omega: Tensor, velocity: Tensor | None, epsilon: float, *, scale: Tensor | None = None) -> PoolState:
        """Copy ω and velocity of another pool into the tensors of this one and compute the sums.

        Does not allocate a second pool.

        Args:
            omega: float32 `[N]`, finite or -inf; finite values are clamped to `OMEGA_MIN … OMEGA_MAX`.
            velocity: float32 `[N]`, finite; None for zeros.
            epsilon: ε in [0, 1].
            scale: Quanta and bound of an earlier state, float64 `[4]`; None to choose new ones.

        Returns:
            A state that shares the tensors of this one and replaces it.

        Raises:
            ValueError: If no example has weight, or `scale` does not fit. The state is then unchanged.
        """
        omega, drawable = self.clamped(omega)
        if drawable == 0:
            raise ValueError(NO_WEIGHT)
        sums = ops.pool_sums(omega, epsilon)
        if scale is not None:
            pool_checks.check_scale(scale, sums)
        # Written after all checks, so that an error leaves the state unchanged.
        return self.write(omega, velocity, epsilon, drawable=drawable, sums=sums, scale=scale)

    def clamped(self, omega: Tensor) -> tuple[Tensor, int]:
        """Return ω within its limits on the device of this state, and the number of examples with weight.

        Args:
            omega: float32 `[N]`, finite or -inf, on any device.
        """
        low, high = torch.stack(omega.aminmax()).tolist()
        removed = 0
        if low < OMEGA_MIN or high > OMEGA_MAX:
            gone = omega == -torch.inf
            removed = int(gone.sum())
            omega = omega.clamp(OMEGA_MIN, OMEGA_MAX).masked_fill_(gone, -torch.inf)
        return omega.to(self.omega.device).contiguous(), omega.numel() - removed

    def write(
        self,
        omega: Tensor,
        velocity: Tensor | None,
        epsilon: float,
        *,
        drawable: int,
        sums: Tensor,
        scale: Tensor | None,
    ) -> PoolState:
        """Copy checked values into the tensors of this state and build the sums.

        Args:
            omega: float32 `[N]`, as `clamped` returns it.
            velocity: float32 `[N]`; None for zeros.
            epsilon: ε in [0, 1].
            drawable: Number of examples with weight.
            sums: Sums of the whole pool, which determine the quanta, float64 `[3]`; not read if there is a scale.
            scale: Quanta and bound of an earlier state, float64 `[4]`; None to choose new ones.

        Returns:
            A state that shares the tensors of this one and replaces it.
        """
        self.omega.copy_(omega)
        if velocity is None:
            self.velocity.zero_()
        else:
            self.velocity.copy_(velocity)
        self.sum_up(epsilon, quanta=ops.choose_quanta(sums) if scale is None else scale[:3])
        if scale is not None:
            # Draws by rejection depend on the bound: with the saved one a restored pool makes the same draws.
            self.stats[ops.BOUND] = torch.maximum(self.stats[ops.BOUND], scale[3].to(self.stats.device))
        return replace(self, drawable=drawable)

    @classmethod
    def filled(cls, num_examples: int, omega: float, device: torch.device | str) -> PoolState:
        """Return a state of N examples with equal ω, zero velocity and empty sums, to be completed by `sum_up`."""
        state = cls(
            omega=torch.empty(num_examples, dtype=torch.float32, device=device),
            velocity=torch.empty(num_examples, dtype=torch.float32, device=device),
            masses=torch.empty(ops.masses_size(num_examples), dtype=torch.float64, device=device),
            stats=torch.zeros(ops.STATS, dtype=torch.float64, device=device),
            drawable=num_examples,
        )
        # Not by torch.full: the op requests huge pages before its first write to the memory.
        ops.pool_fill(state.omega, omega)
        ops.pool_fill(state.velocity, 0.0)
        ops.pool_fill(state.masses, 0.0)
        return state

    def sum_up(self, epsilon: float, *, quanta: Tensor | None = None) -> None:
        """Compute all sums, rounded to multiples of `quanta` or of newly chosen ones."""
        if quanta is None:
            quanta = ops.choose_quanta(ops.pool_sums(self.omega, epsilon))
        self.stats[ops.MASS_QUANTUM : ops.BOUND] = quanta
        ops.pool_build(self.omega, self.masses, self.stats, epsilon)

    def find(self, uniform: Tensor, epsilon: float) -> Tensor:
        """Return the examples, int64 `[B]`, at uniforms, float64 `[B]` in [0, 1), by inverting the running mass sum."""
        target = self.target(uniform, self.stats[ops.MASS_TOTAL])
        return ops.pool_find(self.omega, self.masses, self.stats, target, epsilon)  # type: ignore[no-any-return]

    @staticmethod
    def exact_masses(omega: Tensor, epsilon: float) -> Tensor:
        """Return the masses `w^ε`, float64, of these ω without rounding to a quantum; 0 for examples without weight."""
        # An example without weight has w^0 = 1 at ε = 0, and must still have no mass.
        return softplus(omega.double()).pow(epsilon).masked_fill_(omega == -torch.inf, 0.0)

    def target(self, uniform: Tensor, total: Tensor) -> Tensor:
        """Return the positions of uniforms in a running sum up to `total`: whole quanta, below the total.

        Mirrors `draw_target` of csrc/background_pool/math.h.
        """
        quantum = self.stats[ops.MASS_QUANTUM]
        # Whole quanta keep all comparisons with partial sums exact; the minimum keeps a product that rounds up below
        # the total.
        return torch.minimum((uniform * (total / quantum)).floor_() * quantum, total - quantum)

    def part(self, begin: int, end: int, epsilon: float) -> PoolState:
        """Return a copy of the examples `begin … end - 1` with the quanta of the whole. All may be without weight."""
        state = PoolState.filled(end - begin, 0.0, self.omega.device)
        state.omega.copy_(self.omega[begin:end])
        state.velocity.copy_(self.velocity[begin:end])
        state.sum_up(epsilon, quanta=self.stats[ops.MASS_QUANTUM : ops.BOUND])
        return replace(state, drawable=int((state.omega != -torch.inf).sum()))

    def ascend(self, batch: AscentBatch, epsilon: float, momentum: float, *, shared: Tensor | None = None) -> Tensor:
        """Take one ascent step in place; see `BackgroundPool.ascend`.

        Args:
            batch: The batch, on the device of this state.
            epsilon: ε in [0, 1).
            momentum: Momentum in [0, 1).
            shared: Z, S, L and B of the whole pool, float64 `[4]`, if this state is a slice; else None.

        Returns:
            Status and position, int64 `[2]`. The state is unchanged if `AscentBatch.error` has an error for it.
        """
        return ops.pool_ascend(  # type: ignore[no-any-return]
            self.omega,
            self.velocity,
            self.masses,
            self.stats,
            batch.index,
            batch.loss,
            shared,
            epsilon,
            momentum,
            batch.lr,
            batch.sparse,
        )

    def leaves(self) -> dict[str, Tensor]:
        """Return the tensors that determine the state, not copied: ω, velocity, and quanta and bound of the sums."""
        scale = self.stats[ops.MASS_QUANTUM :]
        return {"omega": self.omega, "velocity": self.velocity, "scale": scale}
