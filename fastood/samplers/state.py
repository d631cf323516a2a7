"""The tensors of a pool and the ops on them, without the checks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastood.ops import background_pool as ops
from fastood.samplers import checks
from fastood.samplers.softplus import OMEGA_MAX, OMEGA_MIN


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
    def build(cls, omega: Tensor, velocity: Tensor, epsilon: float, *, scale: Tensor | None = None) -> PoolState:
        """Sum up a pool. Takes over the tensors, with ω clamped to its range.

        Args:
            omega: float32 `[N]`, finite or -inf.
            velocity: float32 `[N]`, finite.
            epsilon: In [0, 1].
            scale: Quanta and bound of an earlier state, float64 `[4]`; None to choose them.

        Raises:
            ValueError: No example has weight, or `scale` does not fit.
        """
        if float(omega.max()) == -torch.inf:
            raise ValueError("every example has weight zero: there is nothing to draw")
        removed = int((omega == -torch.inf).sum()) if float(omega.min()) == -torch.inf else 0
        if removed:
            omega = torch.where(omega == -torch.inf, omega, omega.clamp(OMEGA_MIN, OMEGA_MAX))
        else:
            omega.clamp_(OMEGA_MIN, OMEGA_MAX)
        masses = torch.zeros(ops.masses_size(omega.numel()), dtype=torch.float64, device=omega.device)
        stats = torch.zeros(ops.STATS, dtype=torch.float64, device=omega.device)
        state = cls(omega=omega, velocity=velocity, masses=masses, stats=stats, drawable=omega.numel() - removed)
        state.sum_up(epsilon, quanta=None if scale is None else scale[:3])
        if scale is not None:
            checks.check_scale(scale, stats)
            stats[ops.BOUND] = torch.maximum(stats[ops.BOUND], scale[3])
        return state

    def sum_up(self, epsilon: float, *, quanta: Tensor | None = None) -> None:
        """Compute all sums anew, rounded to `quanta` or to newly chosen ones. Waits for the device."""
        if quanta is None:
            quanta = ops.choose_quanta(ops.pool_sums(self.omega, epsilon))
        self.stats[ops.MASS_QUANTUM : ops.BOUND] = quanta
        ops.pool_build(self.omega, self.masses, self.stats, epsilon)

    def find(self, uniform: Tensor, epsilon: float) -> Tensor:
        """Invert the running sum of masses: int64 `[B]` for float64 uniforms `[B]` in [0, 1), monotone in them."""
        total, quantum = self.stats[ops.MASS_TOTAL], self.stats[ops.MASS_QUANTUM]
        # Whole quanta, below the total: draw_target of csrc/background_pool/math.h.
        target = torch.minimum((uniform * (total / quantum)).floor_() * quantum, total - quantum)
        return ops.pool_find(self.omega, self.masses, self.stats, target, epsilon)  # type: ignore[no-any-return]

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
            checks.raise_for_status(code, position, index, loss, lr, self.omega.numel())

    def leaves(self) -> dict[str, Tensor]:
        """What the rest follows from, and how it is rounded; not copied."""
        scale = self.stats[ops.MASS_QUANTUM :]
        return {"omega": self.omega, "velocity": self.velocity, "scale": scale}

    def fresh_copy(self, tensor: Tensor) -> Tensor:
        """A copy of a loaded tensor on the device of this state."""
        return tensor.to(self.omega.device, copy=True).contiguous()
