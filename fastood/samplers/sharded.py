"""Background pool over several processes: each owns a slice, and all draw from the whole pool."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from os import PathLike
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from fastood.common.distributed import check_alike, exchange
from fastood.ops import background_pool as ops
from fastood.ops._arguments import allocating, as_device, as_flag, is_bool, shown
from fastood.samplers import pool_checks
from fastood.samplers.ascent_batch import WHERE, AscentBatch, too_large
from fastood.samplers.deferred import DeferredChecks, Origin, to_device
from fastood.samplers.processes import Processes, digest, slice_bounds
from fastood.samplers.sharded_checkpoint import ShardedCheckpoint
from fastood.samplers.softplus import inverse_softplus
from fastood.samplers.state import AscentMode, PoolState
from fastood.samplers.storage import map_tensors
from fastood.samplers.without_replacement import earliest_clocks_of_slice

__all__ = ["ShardedBackgroundPool", "SliceDraws"]

_VALID, _BAD_VALUES, _BAD_ARGUMENTS = 0.0, 1.0, 2.0
"""State of a rank's batch, the first number of its row in the exchange before a step."""
_ROW = 6
"""Numbers of a row: state, `Σ r l`, B, step size, whether the step is sparse, and the last number drawn."""


class SliceDraws(NamedTuple):
    """Draws of a batch that fall into the slice of this process."""

    index: Tensor
    """Examples, int64 `[b]`, in `begin … end - 1`."""
    importance: Tensor
    """Importance weights (supplementary eq. 12), float32 `[b]`."""
    position: Tensor
    """Place of each draw in the batch of all processes, int64 `[b]`, ascending, in `0 … B - 1`."""


class ShardedBackgroundPool(ShardedCheckpoint):
    """Slice of a background pool that one process owns.

    The slice of rank k are the `ceil(N / R)` examples from `k ceil(N / R)` on, as `torch.chunk` cuts a tensor. Indices
    always refer to the whole pool. Each process makes the tensors of its slice alone, 8.13 bytes an example.

    All methods except `importance` and `weights` are collective: all processes call them in the same order. If an
    argument is wrong on one process, or differs between processes, every process raises, and nothing changes. A process
    receives the draws that fall into its slice, and takes the ascent step for them.

    Draws from the whole pool are exact: every process draws the same uniform numbers, from generators with the same
    seed, and keeps those that fall into its part of the running sum of all masses. The counts per process are thus
    multinomial. Sums are exact (csrc/background_pool/layout.h), so that totals, draws and selections equal those of the
    undivided pool bit for bit as long as the weights do, except that `BackgroundPool.sample` draws by rejection from a
    pool with similar weights. The loss of a batch is summed per process first, which rounds differently in float64.

    A step of Algorithm 1 (`draw` with `verify=False`, `importance`, `ascend`) has two exchanges, both of `ascend`: six
    numbers of each process before the step, and three after it. On a CUDA device the host waits for neither. The
    processes' numbers are compared on the device, which refuses an invalid step on every process; all of them raise
    the error in their next collective call, which does nothing itself and works when it is repeated.

    Args:
        num_examples: N, the size of the whole pool, at least one example for each process.
        epsilon: ε in [0, 1]; see `BackgroundPool`.
        momentum: Momentum of the ascent, in [0, 1).
        initial_weight: Initial w of every example, in [1e-30, 1e6].
        device: Device of the slice and of the drawn indices.
        group: Process group of `torch.distributed`; None for the default group.

    Attributes:
        begin: Index of the first example of the slice.
        end: Index after the last example of the slice.
        epsilon: ε, a float.
        momentum: Momentum, a float.

    Raises:
        RuntimeError: If there is no process group.
        TypeError: If a number is not one.
        ValueError: If an argument is out of range or differs between processes, a process would have no example, or
            this process is not in `group`.
        MemoryError: If a slice does not fit into memory.
    """

    def __init__(
        self,
        num_examples: int,
        *,
        epsilon: float = 0.5,
        momentum: float = 0.9,
        initial_weight: float = 1.0,
        device: torch.device | str = "cpu",
        group: dist.ProcessGroup | None = None,
    ) -> None:
        self._processes = Processes(group, torch.device("cpu"))
        error: Exception | None = None
        arguments: tuple[object, ...] = ()
        try:
            device = self._processes.device = as_device("device", device)
            options = pool_checks.checked_options(num_examples, epsilon, momentum, initial_weight)
            num_examples, epsilon, momentum, initial_weight = arguments = options
            begin, end = slice_bounds(num_examples, self._processes.rank, self._processes.size)
        except Exception as wrong:  # of any type, because the other processes wait for the exchange below
            error = wrong
        self._processes.raise_together("ShardedBackgroundPool", error)
        every = exchange(arguments, group, device=self._processes.device)
        for place, name in enumerate(("num_examples", "epsilon", "momentum", "initial_weight")):
            check_alike(name, [values[place] for values in every])
        state = None
        try:
            omega = inverse_softplus(initial_weight)
            with allocating(f"{end - begin} examples of num_examples {num_examples}"):
                state = PoolState.uniform(end - begin, omega, epsilon, device, pool_size=num_examples)
        except Exception as wrong:
            error = wrong
        self._processes.raise_together("ShardedBackgroundPool", error)
        assert state is not None
        self._set_up(state, begin, num_examples, epsilon, momentum, num_examples)

    @classmethod
    def cut(
        cls,
        whole: PoolState,
        rank: int,
        world_size: int,
        *,
        epsilon: float,
        momentum: float,
        group: dist.ProcessGroup | None,
    ) -> ShardedBackgroundPool:
        """Return the slice of a whole pool; see `BackgroundPool.shard` for arguments and errors."""
        processes, size = Processes(group, whole.omega.device), whole.omega.numel()

        def check() -> None:
            for name, value, expected in (("rank", rank, processes.rank), ("world_size", world_size, processes.size)):
                if is_bool(value) or value != expected:
                    raise ValueError(f"{name} must be that of the process group, {expected}, got {shown(value)}")

        processes.attempt("shard", check)
        every = exchange((size, epsilon, momentum, whole.stats.tolist()), group, device=processes.device)
        for place, name in enumerate(("num_examples", "epsilon", "momentum", "the sums over the pool's weights")):
            check_alike(name, [values[place] for values in every])
        begin, end = slice_bounds(size, rank, world_size)
        pool = cls.__new__(cls)
        pool._processes = processes
        pool._set_up(whole.part(begin, end, epsilon), begin, size, epsilon, momentum, whole.drawable)
        return pool

    @classmethod
    def from_file(
        cls,
        path: str | PathLike[str],
        *,
        device: torch.device | str = "cpu",
        group: dist.ProcessGroup | None = None,
    ) -> ShardedBackgroundPool:
        """Return the pool that `save` of this class or of `BackgroundPool` wrote, with any number of processes.

        Each process maps the file and reads its slice alone.

        Args:
            path: Path of the file.
            device: Device of the slice.
            group: Process group; None for the default group.

        Raises:
            FileNotFoundError: If there is no such file on this process.
            ValueError: If the file is damaged or not a background pool, is missing on another process, or has fewer
                examples than the processes need. Every process raises.
        """
        processes = Processes(group, as_device("device", device))
        state: dict[str, Tensor] = {}
        options: dict[str, str] = {}

        def read() -> None:
            found, metadata = map_tensors(Path(path))
            pool_checks.check_settings(path, found, metadata)
            state.update(found)
            options.update(metadata)

        processes.attempt("from_file", read)
        epsilon, momentum = float(options["epsilon"]), float(options["momentum"])
        pool = cls(state["omega"].numel(), epsilon=epsilon, momentum=momentum, device=device, group=group)
        try:
            pool.load_state_dict(state)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} does not hold a background pool: {error}") from error
        return pool

    def _set_up(
        self, state: PoolState, begin: int, num_examples: int, epsilon: float, momentum: float, drawable: int
    ) -> None:
        self.epsilon, self.momentum = epsilon, momentum
        self.begin, self.end = begin, begin + state.omega.numel()
        self._num_examples, self._drawable, self._state = num_examples, drawable, state
        self._checks, self._own_checks = DeferredChecks(self.device), DeferredChecks(self.device)
        self._drawn = torch.zeros(1, dtype=torch.float64, device=self.device)
        self._gather_totals()

    def _gather_totals(self) -> None:
        """Exchange the totals Z, S and Q of all slices, and compute the part of this slice in the running mass sum."""
        stats, rank = self._state.stats, self._processes.rank
        running = self._processes.gather(stats[: ops.MASS_QUANTUM]).cumsum(0)
        self._whole = torch.cat([running[-1], stats[ops.MASS_QUANTUM :]])
        # Limits of neighbours are the same numbers: each draw belongs to one process, also if sums were not exact.
        self._part = (running[rank - 1, 0] if rank else torch.zeros_like(running[0, 0]), running[rank, 0])

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
        alone = not as_flag("verify", verify) and replacement is True
        if not alone:
            self._checks.settle(captured=False)
        with nullcontext({}) if alone else self._processes.agreeing("draw") as alike:
            if not alone:
                self._own_checks.settle(captured=False)
            batch_size = pool_checks.integer("batch_size", batch_size)
            pool_checks.check_generator(generator, self.device)
            replacement, stratified = as_flag("replacement", replacement), as_flag("stratified", stratified)
            if not replacement:
                pool_checks.check_distinct(batch_size, self._drawable, stratified=stratified)
            if not alone:
                alike.update(batch_size=batch_size, replacement=replacement, stratified=stratified)
                alike["generator"] = digest(generator.get_state().numpy().tobytes())
        if not replacement:
            return self._draw_distinct(batch_size, generator)
        with allocating(f"batch_size {batch_size}"):
            uniform = torch.rand(batch_size, dtype=torch.float64, device=self.device, generator=generator)
        self._drawn = uniform[-1:]
        if stratified:
            uniform = (torch.arange(batch_size, dtype=torch.float64, device=self.device) + uniform) / batch_size
        state = self._state
        # Exact: targets, totals and the mass before the slice are multiples of one quantum, the same on every process.
        target = state.target(uniform, self._whole[ops.MASS_TOTAL])
        before, after = self._part
        position = ((target >= before) & (target < after)).nonzero().squeeze(1)
        own = target[position] - before
        if own.is_cuda:
            # Sums that wait for new quanta (see _finish_step) may be off by their last bits: stay within the slice.
            own = torch.minimum(own, state.stats[ops.MASS_TOTAL] - state.stats[ops.MASS_QUANTUM])
        index = ops.pool_find(state.omega, state.masses, state.stats, own, self.epsilon)
        if own.is_cuda:
            index = index.clamp(min=0)
        return SliceDraws(index + self.begin, self._importance(index).float(), position)

    def _draw_distinct(self, batch_size: int, generator: torch.Generator) -> SliceDraws:
        """Draw the earliest of the clocks of all slices; all arguments have been checked."""
        # Clocks of two slices must be independent: each process seeds a generator by the common state and its rank.
        seed = generator.get_state().numpy().tobytes() + self._processes.rank.to_bytes(8, "little")
        source = torch.Generator(self.device).manual_seed(int(digest(seed), 16))
        self._drawn = torch.rand(1, dtype=torch.float64, device=self.device, generator=generator)
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

    def ascend(self, index: Tensor, per_sample_loss: Tensor, *, lr: float, mode: AscentMode = "exact") -> None:
        """Take one step of gradient ascent on the batch of all processes; see `BackgroundPool.ascend`.

        Args:
            index: int64 `[b]`, the indices that `draw` returned to this process; may be empty.
            per_sample_loss: `[b]`, floating-point, >= 0.
            lr: Step size > 0, equal on every process.
            mode: "exact" or "sparse", equal on every process.

        Raises:
            TypeError: If `index` or `per_sample_loss` has another dtype.
            ValueError: If an argument is out of range on a process, or differs between processes, or the batch is empty
                on all of them, or earlier draws differ between processes. Every process raises, and no slice changes.
                On a CUDA device the next collective call raises, except for an argument whose type, shape or option is
                wrong: this process raises at once, the others in their next collective call.
        """
        # The same results are read by the same calls on every process: all raise here, or none.
        self._checks.settle(captured=False)
        sparse, error, batch = mode == "sparse", None, None
        own = torch.full((_ROW,), _BAD_ARGUMENTS, dtype=torch.float64, device=self.device)
        try:
            self._own_checks.poll()
            rate = pool_checks.checked_ascent(index, per_sample_loss, lr, mode, empty=True)
            pool_checks.check_learns(self.epsilon)
            batch = AscentBatch.of(index, per_sample_loss, rate, self._state.omega, begin=self.begin)
            summary = batch.summary(self.end - self.begin, self._importance)
            own = torch.cat([summary, self._numbers(float(len(index)), rate, float(sparse)), self._drawn])
        except Exception as wrong:  # of any type, because the other processes wait for the exchange below
            error = wrong
        rows = self._processes.gather(own)
        status = torch.zeros(2, dtype=torch.float64, device=self.device)
        if batch is not None and error is None:
            status = self._state.ascend(
                batch, self.epsilon, self.momentum, sparse=sparse, shared=self._shared(rows)
            ).double()
        self._gather_totals()
        if error is not None and self.device.type == "cuda":
            raise error
        result = torch.cat([rows.flatten(), status, self._whole[: ops.BOUND]])
        self._checks.add(result, partial(self._finish_step, batch, error))

    def _numbers(self, *values: float) -> Tensor:
        """Return numbers on the device of the pool, float64, without a copy from the host."""
        if self.device.type == "cpu":
            return torch.tensor(values, dtype=torch.float64)
        return torch.cat([torch.full((1,), value, dtype=torch.float64, device=self.device) for value in values])

    def _shared(self, rows: Tensor) -> Tensor:
        """Return Z, S, L and B of the whole pool; L is NaN, which the op refuses, if the step must not be taken."""
        loss, count = rows[:, 1:3].sum(0)
        refused = rows[:, 0].any() | (rows[:, 3:] != rows[0, 3:]).any()
        # An empty batch is refused, too: 0 / 0.
        mean = (loss / count).masked_fill(refused, torch.nan)
        return torch.cat([self._whole[:2], torch.stack([mean, count])])

    def _finish_step(
        self, batch: AscentBatch | None, error: Exception | None, result: list[float], origin: Origin
    ) -> None:
        """Raise for the status of a step, or choose new quanta if a total has left the range of its quantum.

        All decisions are made on numbers that are equal on every process, in the same call on every process.
        """
        split = _ROW * self._processes.size
        rows = [result[at : at + _ROW] for at in range(0, split, _ROW)]
        code, position, *totals = result[split:]
        states = [row[0] for row in rows]
        if _BAD_ARGUMENTS in states and origin != "this":
            # That process has raised, and may have ended: no exchange.
            raise ValueError(f"ascend got wrong arguments on rank {states.index(_BAD_ARGUMENTS)}{WHERE[origin]}")
        if any(states):
            if error is None and batch is not None and states[self._processes.rank]:
                error = batch.error(int(code), int(position), self.end - self.begin, origin)
            self._processes.raise_together("ascend", error)
        check_alike("lr", [row[3] for row in rows], WHERE[origin])
        check_alike("mode", ["sparse" if row[4] else "exact" for row in rows], WHERE[origin])
        if any(row[5] != rows[0][5] for row in rows):
            raise ValueError(
                "generator and batch_size must be the same on every process, got draws that differ: seed the generators "
                f"alike, not by rank{WHERE[origin]}"
            )
        if not any(row[2] for row in rows):
            raise ValueError(f"index must have at least one example on some process{WHERE[origin]}")
        if code == ops.TOO_LARGE and batch is not None:
            largest = max(exchange(batch.largest_loss(), self._processes.group, device=self.device))
            raise ValueError(too_large(f"{largest:g}", batch.lr) + WHERE[origin])
        if not all(
            ops.LOW * quantum <= total <= ops.HIGH * quantum
            for total, quantum in zip(totals[:3], totals[3:], strict=True)
        ):
            # On a CUDA device draws between the step and this call used totals outside their range. Above it, up to 8
            # times, sums are still exact, and beyond they round in the last bit: a draw moves to another example with a
            # probability of at most 2^-47. Below it, masses are rounded by a larger part of the total: 2^-46 of it for
            # every factor of two. Both last for the batches drawn before this call, one or those drawn ahead.
            self._rescale()

    def _rescale(self) -> None:
        """Choose quanta for the current weights on every process, and build all sums by them."""
        # Not from the totals, which may have left the range in which they are exact.
        sums = self._processes.add(ops.pool_sums(self._state.omega, self.epsilon))
        self._state.sum_up(self.epsilon, quanta=ops.choose_quanta(sums))
        self._gather_totals()
