"""Draws from a sharded pool: every process draws the same numbers and keeps those of its slice."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastood.common.transfer import to_device
from fastood.ops import background_pool as ops
from fastood.ops._arguments import allocating, as_flag
from fastood.samplers import pool_checks
from fastood.samplers.digests import digest, generator_digest
from fastood.samplers.sharded_queries import ShardedQueries
from fastood.samplers.without_replacement import earliest_clocks_of_slice

__all__ = ["ShardedDraws", "SliceDraws"]


class SliceDraws(NamedTuple):
    """Draws of a batch that fall into the slice of this process."""

    index: Tensor  # type: ignore[assignment]  # tuple.index is not needed
    """Examples, int64 `[b]`, in `begin … end - 1`."""
    importance: Tensor
    """Importance weights (supplementary eq. 12), float32 `[b]`."""
    position: Tensor
    """Place of each draw in the batch of all processes, int64 `[b]`, ascending, in `0 … B - 1`."""


class ShardedDraws(ShardedQueries):
    """Base class of `ShardedBackgroundPool` with draws and importance."""

    _part: tuple[Tensor, Tensor] | tuple[float, float]
    """Masses before and up to the end of the slice in the running sum over the whole pool; floats on the CPU."""
    _drawn: Tensor | float
    """Last number drawn, float64 `[1]`, which `ascend` compares between the processes; a float on the CPU."""

    def draw(
        self,
        batch_size: int,
        *,
        generator: torch.Generator,
        verify: bool = True,
        replacement: bool = True,
        stratified: bool = False,
    ) -> SliceDraws:
        """Draw a batch from the whole pool (supplementary eq. 11); return the part of this slice.

        Waits for a CUDA device once, because the number of draws in the slice depends on them.

        Args:
            batch_size: B >= 1, the batch size over all processes.
            generator: Source of the draws, on the device of the pool, in the same state on every process: equal draws
                make the parts of the processes one batch.
            verify: Whether to compare the arguments of all processes first, in an exchange that the host waits for.
                Without it an argument that is wrong on one process raises there alone; generators or batch sizes that
                differ are found by the next `ascend`, which raises on every process.
            replacement: False draws distinct examples by successive sampling: each in proportion to `w^ε` among the
                examples not drawn yet. Each process draws the earliest of the clocks of its examples, and the earliest
                of all are the batch: `O(min(64 B, N / R) log N)` and an exchange of B numbers. Always verifies.
            stratified: Take the uniform number of draw b from `[b/B, (b+1)/B)`; see `BackgroundPool.sample`.

        Returns:
            Index, importance and position of the draws in this slice; their number b may be 0.

        Raises:
            TypeError: If `generator` is not a `torch.Generator`, or an option is not a bool.
            ValueError: If `batch_size` is not an int or below 1, `generator` is on another device, an argument differs
                between processes, or distinct draws exceed the number of examples with weight or are stratified. No
                generator advances.
            MemoryError: If a batch of this size does not fit into memory.
        """
        if as_flag("verify", verify) or replacement is not True:
            self._checks.settle(captured=False)
            with self._processes.agreeing("draw") as alike:
                self._own_checks.settle(captured=False)
                batch_size = self._check_draw(batch_size, generator, replacement, stratified)
                alike.update(batch_size=batch_size, replacement=replacement, stratified=stratified)
                alike["generator"] = generator_digest(generator)
        else:
            batch_size = self._check_draw(batch_size, generator, replacement, stratified)
        if not replacement:
            return self._draw_distinct(batch_size, generator)
        with allocating(f"batch_size {batch_size}"):
            uniform = torch.rand(batch_size, dtype=torch.float64, device=self.device, generator=generator)
        position, own = self._within_slice(uniform, stratified=stratified)
        state = self._state
        index = ops.pool_find(state.omega, state.masses, state.stats, own, self.epsilon)
        if own.is_cuda:
            # -1 where the masses that lead to an example are off by their last bits; see _within_slice.
            index = index.clamp(min=0)
        return SliceDraws(index + self.begin, self._importance(index).float(), position)

    def _check_draw(self, batch_size: int, generator: torch.Generator, replacement: bool, stratified: bool) -> int:
        """Return the batch size as an int, or raise for an argument of `draw`."""
        batch_size = pool_checks.integer("batch_size", batch_size)
        pool_checks.check_generator(generator, self.device)
        replacement, stratified = as_flag("replacement", replacement), as_flag("stratified", stratified)
        if not replacement:
            pool_checks.check_distinct(batch_size, self._drawable, stratified=stratified)
        return batch_size

    def _within_slice(self, uniform: Tensor, *, stratified: bool) -> tuple[Tensor, Tensor]:
        """Return positions, int64 `[b]`, and targets, float64 `[b]`, of the draws that fall into this slice.

        Exact: targets, totals and the mass before the slice are multiples of one quantum, equal on every process.
        """
        count, (before, after) = len(uniform), self._part
        if isinstance(before, float):
            # As PoolState.target computes them, by NumPy, whose calls on small arrays are short.
            numbers, total, quantum = uniform.numpy(), self._on_host[ops.MASS_TOTAL], self._on_host[ops.MASS_QUANTUM]
            self._drawn = float(numbers[-1])
            if stratified:
                numbers = (np.arange(count) + numbers) / count
            target = np.minimum(np.floor(numbers * (total / quantum)) * quantum, total - quantum)
            place = ((target >= before) & (target < after)).nonzero()[0]
            return torch.from_numpy(place), torch.from_numpy(target[place] - before)
        self._drawn = uniform[-1:]
        if stratified:
            uniform = (torch.arange(count, dtype=torch.float64, device=self.device) + uniform) / count
        state = self._state
        targets = state.target(uniform, self._whole[ops.MASS_TOTAL])
        position = ((targets >= before) & (targets < after)).nonzero().squeeze(1)
        # Sums that wait for new quanta (see ShardedAscent) may be off by their last bits: stay within the slice.
        most = state.stats[ops.MASS_TOTAL] - state.stats[ops.MASS_QUANTUM]
        return position, torch.minimum(targets[position] - before, most)

    def _draw_distinct(self, batch_size: int, generator: torch.Generator) -> SliceDraws:
        """Draw the earliest of the clocks of all slices; all arguments have been checked."""
        # Clocks of two slices must be independent: each process seeds a generator by the common state and its rank.
        seed = generator.get_state().numpy().tobytes() + self._processes.rank.to_bytes(8, "little")
        source = torch.Generator(self.device).manual_seed(digest(seed))
        drawn = torch.rand(1, dtype=torch.float64, device=self.device, generator=generator)
        self._drawn = float(drawn) if self.device.type == "cpu" else drawn
        with allocating(f"batch_size {batch_size}"):
            rings = torch.full((batch_size,), torch.inf, dtype=torch.float64, device=self.device)
            count = min(batch_size, self.end - self.begin)
            own, index = earliest_clocks_of_slice(self._state, self.epsilon, count, generator=source)
            rings[:count] = own
            earliest = self._processes.gather(rings).flatten().topk(batch_size, largest=False).indices
        position = (earliest // batch_size == self._processes.rank).nonzero().squeeze(1)
        index = index[earliest[position] % batch_size]
        return SliceDraws(index + self.begin, self._importance(index).float(), position)

    def sample(
        self, batch_size: int, *, generator: torch.Generator, replacement: bool = True, stratified: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Draw a batch as `draw` does with `verify=True`; return index, int64 `[b]`, and importance, float32 `[b]`."""
        draws = self.draw(batch_size, generator=generator, replacement=replacement, stratified=stratified)
        return draws.index, draws.importance

    def _importance(self, index: Tensor) -> Tensor:
        """Return the importance weights, float64, at indices within the slice, with the totals of the whole pool."""
        return ops.pool_importance(self._state.omega, self._whole, index, self.epsilon)  # type: ignore[no-any-return]

    def importance(self, index: Tensor) -> Tensor:
        """Return the importance weights, float32 `[b]`, of examples of this slice; see `BackgroundPool.importance`.

        Not collective. Does not wait for the device.

        Args:
            index: int64 `[b]`, each in `begin … end - 1`.

        Raises:
            TypeError: If `index` is not an int64 tensor. This process alone raises.
            ValueError: If an index is in another slice. On the CPU this process alone raises. On a CUDA device the
                importance is NaN, and the next `ascend` raises on every process.
        """
        pool_checks.check_index(index, empty=True)
        local = to_device(index, self.device) - self.begin
        if local.numel() > 0:
            size = self.end - self.begin
            excess = pool_checks.index_excess(local, size)
            self._own_checks.add(excess, partial(pool_checks.check_excess, num_examples=size, begin=self.begin))
        return self._importance(local).float()
