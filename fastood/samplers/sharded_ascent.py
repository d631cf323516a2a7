"""Steps of ascent of a sharded pool: one exchange before the step, and one after it."""

from __future__ import annotations

import math
from functools import partial
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from fastood.common.distributed import check_alike, exchange
from fastood.ops import background_pool as ops
from fastood.samplers import pool_checks
from fastood.samplers.ascent_batch import ROW, WHERE, AscentBatch, too_large
from fastood.samplers.deferred import Origin
from fastood.samplers.sharded_draws import ShardedDraws
from fastood.samplers.state import AscentMode

__all__ = ["ShardedAscent"]

_BAD_ARGUMENTS = 2.0
"""First number of the row of a process that could not make its batch; see `AscentBatch.summary`."""


class ShardedAscent(ShardedDraws):
    """Base class of `ShardedBackgroundPool` with the steps of ascent."""

    def _gather_totals(self) -> None:
        """Exchange the totals of all slices, and compute the part of this slice in the running sum of masses."""
        every, rank = self._processes.gather(self._state.stats), self._processes.rank
        # Limits of neighbours are the same numbers: each draw belongs to one process, also if sums were not exact.
        if self.device.type == "cpu":
            rows = every.tolist()
            limits = list(accumulate((row[0] for row in rows), initial=0.0))
            self._part = (limits[rank], limits[rank + 1])
            columns = list(zip(*rows, strict=True))
            totals = [limits[-1], sum(columns[ops.WEIGHT_TOTAL]), sum(columns[ops.SQUARE_TOTAL])]
            self._on_host = [*totals, *rows[0][ops.MASS_QUANTUM : ops.BOUND], max(columns[ops.BOUND])]
            self._whole = torch.from_numpy(np.array(self._on_host))
        else:
            running = every[:, : ops.MASS_QUANTUM].cumsum(0)
            self._part = (running[rank - 1, 0] if rank else torch.zeros_like(running[0, 0]), running[rank, 0])
            self._whole = torch.cat(
                [running[-1], every[0, ops.MASS_QUANTUM : ops.BOUND], every[:, ops.BOUND :].amax(0)]
            )

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
        error, batch = None, None
        try:
            self._own_checks.poll()
            rate = pool_checks.checked_ascent(index, per_sample_loss, lr, mode, empty=True)
            pool_checks.check_learns(self.epsilon)
            sparse, like = mode == "sparse", self._state.omega
            batch = AscentBatch.of(index, per_sample_loss, rate, like, sparse=sparse, begin=self.begin)
            own = batch.summary(self.end - self.begin, self._importance, drawn=self._drawn)
        except Exception as wrong:  # of any type, because the other processes wait for the exchange below
            error = wrong
            own = torch.full((ROW,), _BAD_ARGUMENTS, dtype=torch.float64, device=self.device)
        rows = self._processes.gather(own)
        if self.device.type == "cpu":
            # Plain numbers and NumPy cost less than small tensors.
            numbers = rows.tolist()
            done = self._step(batch, error, self._shared_on_host(numbers)).tolist()
            self._gather_totals()
            self._finish_step(batch, error, numbers, done, self._on_host, "this")
            return
        status = self._step(batch, error, self._shared(rows))
        self._gather_totals()
        if error is not None:
            raise error
        assert batch is not None
        result = torch.cat([rows.flatten(), status.double(), self._whole[: ops.BOUND]])
        self._checks.add(result, partial(self._report_step, batch))

    def _step(self, batch: AscentBatch | None, error: Exception | None, shared: Tensor) -> Tensor:
        """Take the step on this slice; return status and position, int64 `[2]`."""
        if batch is None or error is not None:
            return torch.zeros(2, dtype=torch.int64, device=self.device)
        return self._state.ascend(batch, self.epsilon, self.momentum, shared=shared)

    def _shared(self, rows: Tensor) -> Tensor:
        """Return Z, S, L and B of the whole pool; L is NaN, which the op refuses, if the step must not be taken."""
        loss, count = rows[:, 1:3].sum(0)
        refused = rows[:, 0].any() | (rows[:, 3:] != rows[0, 3:]).any()
        # An empty batch is refused, too: 0 / 0.
        mean = (loss / count).masked_fill(refused, torch.nan)
        return torch.cat([self._whole[:2], torch.stack([mean, count])])

    def _shared_on_host(self, rows: list[list[float]]) -> Tensor:
        """Return what `_shared` does, from plain numbers."""
        loss, count, mean = sum(row[1] for row in rows), sum(row[2] for row in rows), math.nan
        if count and not any(row[0] or row[3:] != rows[0][3:] for row in rows):
            mean = loss / count
        return torch.from_numpy(np.array([*self._on_host[:2], mean, count], dtype=np.float64))

    def _report_step(self, batch: AscentBatch, result: list[float], origin: Origin) -> None:
        """Finish a step whose numbers have been copied from the device as one list."""
        split = ROW * self._processes.size
        rows = [result[at : at + ROW] for at in range(0, split, ROW)]
        self._finish_step(batch, None, rows, result[split : split + 2], result[split + 2 :], origin)

    def _finish_step(
        self,
        batch: AscentBatch | None,
        error: Exception | None,
        rows: list[list[float]],
        status: list[float],
        whole: list[float],
        origin: Origin,
    ) -> None:
        """Raise for a step that was refused, or choose new quanta if a total has left the range of its quantum.

        All decisions are made on numbers that are equal on every process, in the same call on every process.

        Args:
            batch: Batch of this process; None if it could not be made.
            error: Error of this process in its arguments.
            rows: Numbers of all processes before the step.
            status: Status of the step on this slice, and the position in the batch that it refers to.
            whole: Totals and quanta after the step.
            origin: Call that the step belongs to.
        """
        if status[0] not in (ops.DONE, ops.NEEDS_BUILD) or batch is None or error is not None:
            self._raise_refusal(batch, error, rows, status, origin)
        totals, quanta = whole[: ops.MASS_QUANTUM], whole[ops.MASS_QUANTUM : ops.BOUND]
        if not all(ops.LOW * q <= total <= ops.HIGH * q for total, q in zip(totals, quanta, strict=True)):
            # On a CUDA device this is the next call: batches drawn since the step used totals outside their range. That
            # is exact enough. Sums stay exact up to twice the upper limit; beyond, an addition rounds by at most 2^-53
            # of its sum. Below the lower limit, 2^46 quanta, masses are rounded by a larger part of the total, doubled
            # by every factor of two. The errors do not last: all sums are built again from ω.
            self._rescale()

    def _raise_refusal(
        self,
        batch: AscentBatch | None,
        error: Exception | None,
        rows: list[list[float]],
        status: list[float],
        origin: Origin,
    ) -> None:
        """Raise the error of a refused step; see `_finish_step` for the arguments."""
        states = [row[0] for row in rows]
        if _BAD_ARGUMENTS in states and origin != "this":
            # That process has raised, and may have ended: no exchange.
            raise ValueError(f"ascend got wrong arguments on rank {states.index(_BAD_ARGUMENTS)}{WHERE[origin]}")
        if any(states):
            if error is None and batch is not None and states[self._processes.rank]:
                error = batch.error(int(status[0]), int(status[1]), self.end - self.begin, origin)
            self._processes.raise_together("ascend", error)
        check_alike("lr", [row[3] for row in rows], WHERE[origin])
        check_alike("mode", ["sparse" if row[4] else "exact" for row in rows], WHERE[origin])
        if any(row[5] != rows[0][5] for row in rows):
            raise ValueError(
                "generator and batch_size must be the same on every process, got draws that differ: seed the "
                f"generators alike, not by rank{WHERE[origin]}"
            )
        if not any(row[2] for row in rows):
            raise ValueError(f"index must have at least one example on some process{WHERE[origin]}")
        assert batch is not None
        largest = max(exchange(batch.largest_loss(), self._processes.group, device=self.device))
        raise ValueError(too_large(f"{largest:g}", batch.lr) + WHERE[origin])

    def _rescale(self) -> None:
        """Choose quanta for the current weights on every process, and build all sums by them."""
        # Not from the totals, which may have left the range in which they are exact.
        sums = self._processes.add(ops.pool_sums(self._state.omega, self.epsilon))
        self._state.sum_up(self.epsilon, quanta=ops.choose_quanta(sums))
        self._gather_totals()
