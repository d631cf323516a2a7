"""One pool over several processes: each owns a slice, all draw from the union."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from fastood.common.distributed import check_alike, check_in_group, exchange
from fastood.ops import background_pool as ops
from fastood.ops._arguments import is_bool, shown
from fastood.samplers import pool_checks, selection
from fastood.samplers.queries import PoolQueries
from fastood.samplers.softplus import softplus
from fastood.samplers.state import AscentMode, PoolState

__all__ = ["ShardedBackgroundPool", "shard"]

_SAID = {"generator": "the state of generator"}


class ShardedBackgroundPool:
    """The slice of a pool that one process owns; made by `BackgroundPool.shard`.

    All processes call `sample`, `select` and `ascend` in the same order: each exchanges a few numbers, and where an
    argument is wrong on one process, or differs between them, every one raises. Indices are those of the whole pool
    everywhere; a process is handed the draws that fall into its slice and steps them.

    Draws from the union are exact: every process draws the same uniforms from generators with the same seed and takes
    those whose place in the running sum of all masses lies in its own part. Counts per process are thus multinomial.
    Sums are exact (csrc/background_pool/layout.h), so that totals, draws and selections equal those of the undivided
    pool bit for bit while the weights do; the loss of a batch is summed per process first, which rounds differently in
    float64.

    Args:
        state: The slice.
        begin: Index of its first example in the whole pool.
        num_examples: N of the whole pool.
        epsilon: As for `BackgroundPool`.
        momentum: As for `BackgroundPool`.
        group: Process group; None for the default one.
    """

    def __init__(
        self,
        state: PoolState,
        *,
        begin: int,
        num_examples: int,
        epsilon: float,
        momentum: float,
        group: dist.ProcessGroup | None,
    ) -> None:
        self.epsilon = epsilon
        self.momentum = momentum
        self.begin = begin
        self.end = begin + state.omega.numel()
        self._num_examples = num_examples
        self._state = state
        self._group = group
        self._gather_totals()

    def __len__(self) -> int:
        return self._num_examples

    def __repr__(self) -> str:
        return f"ShardedBackgroundPool({self.begin} … {self.end - 1} of {len(self)}, epsilon={self.epsilon})"

    @property
    def weights(self) -> Tensor:
        """`w` of the slice, float64 `[end - begin]`, a copy."""
        return softplus(self._state.omega.double())

    def _gather_totals(self) -> None:
        """Z, S and Q of all slices, and the mass that lies before this one."""
        own = self._state.stats[: ops.MASS_QUANTUM].clone()
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size(self._group))]
        dist.all_gather(parts, own, group=self._group)
        every = torch.stack(parts)
        self._totals = every.sum(0)
        self._mass_before = every[: dist.get_rank(self._group), 0].sum()

    def sample(self, batch_size: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw one batch from the whole pool, with replacement (supplementary eq. 11), for the share of this slice.

        Args:
            batch_size: B >= 1 of all processes together.
            generator: On the pool's device, in the same state on every process: what ranks have in common makes their
                shares one batch.

        Returns:
            index: int64 `[b]`, `begin <= index < end`; b differs between processes and may be 0.
            importance: float32 `[b]`, as for `BackgroundPool`.

        Raises:
            TypeError: `generator` is none.
            ValueError: `batch_size` is no int or below 1, or `generator` on another device; or these differ between
                processes. Every process raises then, and no generator has moved.
        """
        state = self._state
        with self._together("sample") as alike:
            batch_size = pool_checks.integer("batch_size", batch_size)
            pool_checks.check_generator(generator, state.omega.device)
            alike.update({"batch_size": batch_size, "generator": _digest(generator.get_state().numpy().tobytes())})
        uniform = torch.rand(batch_size, dtype=torch.float64, device=state.omega.device, generator=generator)
        target = state.target(uniform, self._totals[0]) - self._mass_before
        own = target[(target >= 0) & (target < state.stats[ops.MASS_TOTAL])]
        index = ops.pool_find(state.omega, state.masses, state.stats, own, self.epsilon)
        return index + self.begin, self._importance(index).float()

    def _importance(self, index: Tensor) -> Tensor:
        """float64, for indices within the slice, with the normalisers of the whole pool."""
        stats = self._state.stats.clone()
        stats[: ops.MASS_QUANTUM] = self._totals
        return ops.pool_importance(self._state.omega, stats, index, self.epsilon)  # type: ignore[no-any-return]

    def importance(self, index: Tensor) -> Tensor:
        """As for `BackgroundPool`, for indices of this slice.

        Raises:
            TypeError: `index` is no int64 tensor.
            ValueError: An index lies in another slice.
        """
        pool_checks.check_index(index, empty=True)
        local = index.to(self._state.omega.device) - self.begin
        pool_checks.check_index_range(local, self.end - self.begin, begin=self.begin)
        return self._importance(local).float()

    def ascend(self, index: Tensor, per_sample_loss: Tensor, *, lr: float, mode: AscentMode = "exact") -> None:
        """One step of `BackgroundPool.ascend` on the batch of all processes.

        Args:
            index: int64 `[b]`, the share that `sample` gave this process; may be empty.
            per_sample_loss: Floating-point `[b]`.
            lr: As for `BackgroundPool`, the same on every process.
            mode: As for `BackgroundPool`, the same on every process.

        Raises:
            TypeError: As for `BackgroundPool`.
            ValueError: As for `BackgroundPool`; on every process where one has a bad batch. No slice is changed then.
        """
        local, loss, rate, trouble = index, per_sample_loss, 0.0, None
        try:
            rate = pool_checks.checked_ascent(index, per_sample_loss, lr, mode, empty=True)
            pool_checks.check_learns(self.epsilon)
            local = (index.to(self._state.omega.device) - self.begin).contiguous()
            loss = per_sample_loss.detach().to(self._state.omega.device, torch.float64)
            pool_checks.check_index_range(local, self.end - self.begin, begin=self.begin)
            pool_checks.check_losses(index, loss)
        except Exception as error:  # whatever it is, the others wait for the exchange
            trouble = error
        # One exchange for the verdict, the weighted loss, the batch size, and what must be the same everywhere.
        sparse = mode == "sparse"
        found = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64, device=self._state.omega.device)
        if trouble is None:
            weighted = (self._importance(local) * loss).sum()
            others = weighted.new_tensor([local.numel(), rate, sparse])
            found = torch.cat([torch.zeros_like(weighted)[None], weighted[None], others])
        parts = [torch.empty_like(found) for _ in range(dist.get_world_size(self._group))]
        dist.all_gather(parts, found, group=self._group)
        if trouble is not None:
            raise trouble
        every = torch.stack(parts).tolist()
        bad = sum(verdict for verdict, *_ in every)
        if bad:
            raise ValueError(f"the batches of {bad:g} other processes are not as they must be: nothing was changed")
        check_alike("lr", [rate for *_, rate, _ in every])
        check_alike("mode", ["sparse" if told else "exact" for *_, told in every])
        weighted_loss, batch = torch.stack(parts)[:, 1:3].sum(0).tolist()
        if not batch:
            raise ValueError("index must have at least one example on some process")
        shared = torch.cat([self._totals[:2], self._totals.new_tensor([weighted_loss / batch, batch])])
        self._state.ascend(local, loss, self.epsilon, self.momentum, rate, sparse=sparse, shared=shared)
        self._gather_totals()
        self._renew_quanta()

    def _renew_quanta(self) -> None:
        """Where a total has left the range of its quantum, choose anew, the same on every process."""
        quanta = self._state.stats[ops.MASS_QUANTUM : ops.BOUND]
        if not ops.has_room(self._totals, quanta):
            sums = ops.pool_sums(self._state.omega, self.epsilon)
            dist.all_reduce(sums, group=self._group)
            self._state.sum_up(self.epsilon, quanta=ops.choose_quanta(sums))
            self._gather_totals()

    def select(self, rate: float, *, generator: torch.Generator) -> Tensor:
        """This slice's part of what `BackgroundPool.select` chooses from the whole pool with the same generator.

        Args:
            rate: γ in (0, 1].
            generator: On the pool's device, in the same state on every process: each passes over the uniforms of all N
                examples and uses its own.

        Returns:
            int64 indices in `begin … end - 1`, ascending.

        Raises:
            TypeError: `generator` is none.
            ValueError: `rate` is outside (0, 1], or `generator` on another device; or these differ between processes.
                Every process raises then, and no generator has moved.
        """
        with self._together("select") as alike:
            rate = pool_checks.checked_rate(rate)
            pool_checks.check_generator(generator, self._state.omega.device)
            alike.update({"rate": rate, "generator": _digest(generator.get_state().numpy().tobytes())})
        factor = rate * len(self) / float(self._totals[1])
        within = (self.begin, len(self))
        return selection.bernoulli(self._state.omega, factor, generator=generator, within=within)

    @contextmanager
    def _together(self, call: str) -> Iterator[dict[str, object]]:
        """Check arguments on all processes: an error on one, or a difference, is an error on every one.

        Yields:
            What must be the same on every process, for the caller to fill in: name and value.
        """
        alike: dict[str, object] = {}
        trouble = None
        try:
            yield alike
        except Exception as error:  # whatever it is, the others wait for the exchange
            trouble = error
        # One number in the usual case; what differs is told only where something does.
        number = -1 if trouble is not None else int(_digest(repr(alike).encode()), 16)
        own = torch.tensor([number], device=self._state.omega.device)
        numbers = [torch.empty_like(own) for _ in range(dist.get_world_size(self._group))]
        dist.all_gather(numbers, own, group=self._group)
        if number >= 0 and len(set(torch.cat(numbers).tolist())) == 1:
            return
        told = exchange(alike if trouble is None else None, self._group, device=own.device)
        if trouble is not None:
            raise trouble
        bad = [rank for rank, values in enumerate(told) if values is None]
        if bad:
            raise ValueError(f"the arguments of {call} are not as they must be on rank {bad[0]}: nothing was drawn")
        for name in alike:
            check_alike(_SAID.get(name, name), [values[name] for values in told if values is not None])

    def effective_sample_size(self) -> float:
        """`(Σ w)² / Σ w²` of the whole pool."""
        _, total, squares = self._totals.tolist()
        return float(total * total / squares)

    def state_dict(self) -> dict[str, Tensor]:
        """The slice, as `BackgroundPool.state_dict` gives a pool; the slices' ω and velocity joined are the pool's."""
        return {name: tensor.clone() for name, tensor in self._state.leaves().items()}


def shard(
    pool: PoolQueries, rank: int, world_size: int, *, group: dist.ProcessGroup | None = None
) -> ShardedBackgroundPool:
    """Return the slice of `pool` for one process; see `BackgroundPool.shard`."""
    check_in_group(group)
    trouble = None
    for name, value, wanted in (
        ("rank", rank, dist.get_rank(group)),
        ("world_size", world_size, dist.get_world_size(group)),
    ):
        if is_bool(value) or value != wanted:
            trouble = f"{name} must be that of the process group, {wanted}, got {shown(value)}"
            break
    told = exchange(
        (trouble, len(pool), pool.epsilon, pool.momentum, pool._state.stats.tolist()), group, device=pool.device
    )
    if trouble is not None:
        raise ValueError(trouble)
    for of_rank, (problem, *_) in enumerate(told):
        if problem is not None:
            raise ValueError(f"rank {of_rank} cannot take its slice: {problem}")
    for position, name in enumerate(("num_examples", "epsilon", "momentum", "the sums over the pool's weights"), 1):
        check_alike(name, [values[position] for values in told])
    if world_size > len(pool):
        raise ValueError(f"world_size must be at most the {len(pool)} examples of the pool, got {world_size}")
    begin, end = len(pool) * rank // world_size, len(pool) * (rank + 1) // world_size
    return ShardedBackgroundPool(
        pool._state.part(begin, end, pool.epsilon),
        begin=begin,
        num_examples=len(pool),
        epsilon=pool.epsilon,
        momentum=pool.momentum,
        group=group,
    )


def _digest(content: bytes) -> str:
    """Return 14 hexadecimal digits that tell two contents apart."""
    return hashlib.blake2b(content, digest_size=7).hexdigest()
