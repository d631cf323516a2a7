"""Background pool over several processes: each owns a slice, and all draw from the whole pool."""

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
from fastood.samplers.ascent_batch import AscentBatch
from fastood.samplers.deferred import to_device
from fastood.samplers.queries import PoolQueries
from fastood.samplers.softplus import softplus
from fastood.samplers.state import AscentMode, PoolState

__all__ = ["ShardedBackgroundPool", "shard"]

_LABELS = {"generator": "the state of generator"}
"""Names of exchanged values in errors, where they differ from the name of the argument."""


class ShardedBackgroundPool:
    """Slice of a background pool that one process owns; created by `BackgroundPool.shard`.

    All processes must call `sample`, `select` and `ascend` in the same order. Each call exchanges a few numbers, and if
    an argument is wrong on one process, or differs between processes, every process raises. Indices always refer to the
    whole pool; a process receives the draws that fall into its slice, and takes the ascent step for them.

    Draws from the whole pool are exact: every process draws the same uniform numbers, from generators with the same
    seed, and keeps those that fall into its own part of the running sum of all masses. The counts per process are thus
    multinomial. Sums are exact (csrc/background_pool/layout.h), so that totals, draws and selections equal those of the
    undivided pool bit for bit as long as the weights do. The loss of a batch is summed per process first, which rounds
    differently in float64.

    Args:
        state: Tensors of the slice.
        begin: Index of the first example of the slice in the whole pool.
        num_examples: N, the size of the whole pool.
        epsilon: ε in [0, 1]; see `BackgroundPool`.
        momentum: Momentum of the ascent, in [0, 1).
        group: Process group; None for the default group.

    Attributes:
        begin: Index of the first example of the slice.
        end: Index after the last example of the slice.
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
        """Weights `w` of the slice, float64 `[end - begin]`, a copy."""
        return softplus(self._state.omega.double())

    def _gather_totals(self) -> None:
        """Exchange the totals Z, S and Q of all slices, and compute the mass before this slice."""
        own = self._state.stats[: ops.MASS_QUANTUM].clone()
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size(self._group))]
        dist.all_gather(parts, own, group=self._group)
        every = torch.stack(parts)
        self._totals = every.sum(0)
        self._mass_before = every[: dist.get_rank(self._group), 0].sum()

    def sample(self, batch_size: int, *, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw a batch from the whole pool with replacement (supplementary eq. 11); return the part of this slice.

        Args:
            batch_size: B >= 1, the batch size over all processes.
            generator: Source of the draws, on the device of the pool, in the same state on every process: equal draws
                make the parts of the processes one batch.

        Returns:
            index: int64 `[b]`, `begin <= index < end`; b differs between processes and may be 0.
            importance: float32 `[b]`, the importance weights (supplementary eq. 12).

        Raises:
            TypeError: If `generator` is not a `torch.Generator`.
            ValueError: If `batch_size` is not an int or below 1, `generator` is on another device, or an argument
                differs between processes. Every process raises, and no generator advances.
        """
        state = self._state
        with self._together("sample") as alike:
            batch_size = pool_checks.integer("batch_size", batch_size)
            pool_checks.check_generator(generator, state.omega.device)
            alike.update({"batch_size": batch_size, "generator": _digest(generator.get_state().numpy().tobytes())})
        uniform = torch.rand(batch_size, dtype=torch.float64, device=state.omega.device, generator=generator)
        # Exact: targets, totals and the mass before the slice are multiples of one quantum, the same on every process.
        target = state.target(uniform, self._totals[0]) - self._mass_before
        own = target[(target >= 0) & (target < state.stats[ops.MASS_TOTAL])]
        index = ops.pool_find(state.omega, state.masses, state.stats, own, self.epsilon)
        return index + self.begin, self._importance(index).float()

    def _importance(self, index: Tensor) -> Tensor:
        """Return the importance weights, float64, at indices within the slice, with the totals of the whole pool."""
        stats = self._state.stats.clone()
        stats[: ops.MASS_QUANTUM] = self._totals
        return ops.pool_importance(self._state.omega, stats, index, self.epsilon)  # type: ignore[no-any-return]

    def importance(self, index: Tensor) -> Tensor:
        """Return the importance weights, float32 `[B]`, of examples of this slice; see `BackgroundPool.importance`.

        Waits for the device once.

        Args:
            index: int64 `[B]`, each in `begin … end - 1`.

        Raises:
            TypeError: If `index` is not an int64 tensor.
            ValueError: If an index is in another slice.
        """
        pool_checks.check_index(index, empty=True)
        local = to_device(index, self._state.omega.device) - self.begin
        self._check_range(local)
        return self._importance(local).float()

    def _check_range(self, local: Tensor) -> None:
        """Raise ValueError unless every index, relative to `begin`, is in this slice. Waits for the device."""
        if local.numel() > 0:
            size = self.end - self.begin
            excess = pool_checks.index_excess(local, size).tolist()
            pool_checks.check_excess(excess, num_examples=size, begin=self.begin)

    def ascend(self, index: Tensor, per_sample_loss: Tensor, *, lr: float, mode: AscentMode = "exact") -> None:
        """Take one step of gradient ascent on the batch of all processes; see `BackgroundPool.ascend`.

        Waits for the device twice: for the numbers of all processes, and for the status of the step.

        Args:
            index: int64 `[b]`, the indices that `sample` returned to this process; may be empty.
            per_sample_loss: `[b]`, floating-point, >= 0.
            lr: Step size > 0, equal on every process.
            mode: "exact" or "sparse", equal on every process.

        Raises:
            TypeError: If `index` or `per_sample_loss` has another dtype.
            ValueError: If an argument is out of range on a process, or differs between processes, or the batch is empty
                on all of them. Every process raises, and no slice changes.
        """
        # One exchange for the status, the weighted loss, the batch size, and the values that must agree.
        own = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64)
        batch: AscentBatch | Exception
        try:
            rate = pool_checks.checked_ascent(index, per_sample_loss, lr, mode, empty=True)
            pool_checks.check_learns(self.epsilon)
            batch = AscentBatch.of(index, per_sample_loss, rate, self._state.omega).shifted(self.begin)
            own = batch.summary(self.end - self.begin, self._importance, sparse=mode == "sparse")
        except Exception as error:  # of any type, because the other processes wait for the exchange below
            batch, own = error, own.to(self._state.omega.device)
        parts = [torch.empty_like(own) for _ in range(dist.get_world_size(self._group))]
        dist.all_gather(parts, own, group=self._group)
        if isinstance(batch, Exception):
            raise batch
        # One read for all decisions: the host waits once.
        gathered = torch.stack(parts)
        every = gathered.tolist()
        if every[dist.get_rank(self._group)][0]:
            self._check_range(batch.index)
            raise batch.first_bad_loss()
        bad = sum(failed for failed, *_ in every)
        if bad:
            raise ValueError(f"the batches of {bad:g} other processes are invalid: no weight was changed")
        check_alike("lr", [rate for *_, rate, _ in every])
        check_alike("mode", ["sparse" if is_sparse else "exact" for *_, is_sparse in every])
        if not any(count for _, _, count, *_ in every):
            raise ValueError("index must have at least one example on some process")
        # Every process steps with the totals and the loss of all processes, because the gradient depends on them.
        weighted_loss, total = gathered[:, 1:3].sum(0)
        shared = torch.cat([self._totals[:2], torch.stack([weighted_loss / total, total])])
        status = self._state.ascend(batch, self.epsilon, self.momentum, sparse=mode == "sparse", shared=shared)
        self._gather_totals()
        self._finish_step(batch, status)

    def _finish_step(self, batch: AscentBatch, status: Tensor) -> None:
        """Raise for the status of a step, or choose new quanta if a total has left the range of its quantum.

        Status and totals, and hence the decisions, are equal on every process.
        """
        room = ops.has_room(self._totals, self._state.stats[ops.MASS_QUANTUM : ops.BOUND])
        code, position, has_room = torch.cat([status, room.long()[None]]).tolist()
        if code not in (ops.DONE, ops.NEEDS_BUILD):
            raise batch.error(code, position, len(self))
        if not has_room:
            # Not the totals, which may have left the range in which they are exact.
            sums = ops.pool_sums(self._state.omega, self.epsilon)
            dist.all_reduce(sums, group=self._group)
            self._state.sum_up(self.epsilon, quanta=ops.choose_quanta(sums))
            self._gather_totals()

    def select(self, rate: float, *, generator: torch.Generator) -> Tensor:
        """Return the examples of this slice in the subset that `BackgroundPool.select` draws with the same generator.

        Args:
            rate: γ in (0, 1].
            generator: Source of the draws, on the device of the pool, in the same state on every process: each draws
                the uniform numbers of all N examples and uses those of its slice.

        Returns:
            Indices in `begin … end - 1`, int64 `[M]`, ascending.

        Raises:
            TypeError: If `generator` is not a `torch.Generator`.
            ValueError: If `rate` is outside (0, 1], `generator` is on another device, or an argument differs between
                processes. Every process raises, and no generator advances.
        """
        with self._together("select") as alike:
            rate = pool_checks.checked_rate(rate)
            pool_checks.check_generator(generator, self._state.omega.device)
            alike.update({"rate": rate, "generator": _digest(generator.get_state().numpy().tobytes())})
        expected = torch.full((), rate * len(self), dtype=torch.float64, device=self._totals.device)
        factor = expected / self._totals[1]
        within = (self.begin, len(self))
        return selection.bernoulli(self._state.omega, factor, generator=generator, within=within)

    @contextmanager
    def _together(self, call: str) -> Iterator[dict[str, object]]:
        """Check arguments on all processes: an error on one, or a difference, raises on every process.

        Yields:
            A dict for the caller to fill with the values that must be equal on every process, by name.
        """
        alike: dict[str, object] = {}
        trouble = None
        try:
            yield alike
        except Exception as error:  # of any type, because the other processes wait for the exchange below
            trouble = error
        # Usually only a digest is exchanged, one integer; the values follow only if digests differ.
        number = -1 if trouble is not None else int(_digest(repr(alike).encode()), 16)
        own = torch.full((1,), number, device=self._state.omega.device)
        numbers = [torch.empty_like(own) for _ in range(dist.get_world_size(self._group))]
        dist.all_gather(numbers, own, group=self._group)
        if number >= 0 and len(set(torch.cat(numbers).tolist())) == 1:
            return
        every = exchange(alike if trouble is None else None, self._group, device=own.device)
        if trouble is not None:
            raise trouble
        bad = [rank for rank, values in enumerate(every) if values is None]
        if bad:
            raise ValueError(f"the arguments of {call} are invalid on rank {bad[0]}: nothing was drawn")
        for name in alike:
            check_alike(_LABELS.get(name, name), [values[name] for values in every if values is not None])

    def effective_sample_size(self) -> float:
        """Return `(Σ w)² / Σ w²` of the whole pool, from 1 to N."""
        _, total, squares = self._totals.tolist()
        return float(total * total / squares)

    def state_dict(self) -> dict[str, Tensor]:
        """Return copies of the tensors of the slice; see `BackgroundPool.state_dict`.

        ω and velocity of all slices, concatenated in the order of the ranks, equal ω and velocity of the whole pool.
        """
        return {name: tensor.clone() for name, tensor in self._state.leaves().items()}


def shard(
    pool: PoolQueries, rank: int, world_size: int, *, group: dist.ProcessGroup | None = None
) -> ShardedBackgroundPool:
    """Return the slice of `pool` that this process owns; see `BackgroundPool.shard` for arguments and errors."""
    check_in_group(group)
    trouble = None
    for name, value, expected in (
        ("rank", rank, dist.get_rank(group)),
        ("world_size", world_size, dist.get_world_size(group)),
    ):
        if is_bool(value) or value != expected:
            trouble = f"{name} must be that of the process group, {expected}, got {shown(value)}"
            break
    every = exchange(
        (trouble, len(pool), pool.epsilon, pool.momentum, pool._state.stats.tolist()), group, device=pool.device
    )
    if trouble is not None:
        raise ValueError(trouble)
    for of_rank, (problem, *_) in enumerate(every):
        if problem is not None:
            raise ValueError(f"rank {of_rank} cannot take its slice: {problem}")
    for position, name in enumerate(("num_examples", "epsilon", "momentum", "the sums over the pool's weights"), 1):
        check_alike(name, [values[position] for values in every])
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
    """Return a digest of 14 hexadecimal digits, which fits into an int64."""
    return hashlib.blake2b(content, digest_size=7).hexdigest()
