"""Read-only side of a sharded pool: weights, selection and statistics."""

from __future__ import annotations

import torch
from torch import Tensor

from fastood.common.division import slice_rows
from fastood.ops import background_pool as ops
from fastood.ops._arguments import allocating, as_flag
from fastood.samplers import pool_checks, selection
from fastood.samplers.deferred import DeferredChecks
from fastood.samplers.digests import generator_digest
from fastood.samplers.processes import Processes
from fastood.samplers.softplus import softplus
from fastood.samplers.state import PoolState

__all__ = ["ShardedQueries"]


class ShardedQueries:
    """Base class of `ShardedBackgroundPool` with the read-only methods: weights, selection and statistics."""

    epsilon: float
    momentum: float
    begin: int
    end: int
    _num_examples: int
    _drawable: int
    _state: PoolState
    _processes: Processes
    _checks: DeferredChecks
    """Checks with the same results on every process, settled by the same calls."""
    _own_checks: DeferredChecks
    """Checks of this process alone, whose errors the next exchange of arguments brings to the others."""
    _whole: Tensor
    """Statistics of the whole pool in the layout of `PoolState.stats`."""
    _on_host: list[float]
    """Numbers of `_whole`, in a pool on the CPU."""

    def __len__(self) -> int:
        return self._num_examples

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.begin} … {self.end - 1} of {len(self)}, epsilon={self.epsilon})"

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self._state.omega.device

    @property
    def drawable(self) -> int:
        """Number of examples with weight in the whole pool, the most that can be drawn without replacement."""
        return self._drawable

    @property
    def weights(self) -> Tensor:
        """Weights `w` of the slice, float64 `[end - begin]`, a copy."""
        return softplus(self._state.omega.double())

    def select(self, rate: float, *, generator: torch.Generator, calibrated: bool = False) -> Tensor:
        """Return the examples of this slice in the subset that `BackgroundPool.select` draws with the same generator.

        Every process draws the uniform numbers of all N examples, some 6 ns each on the CPU, and keeps those of its
        slice: PyTorch's generator of the CPU cannot skip numbers, and equal numbers make the subset that of the
        undivided pool. Memory does not depend on N: numbers are drawn by chunks of 2^20.

        Args:
            rate: γ in (0, 1].
            generator: Source of the draws, on the device of the pool, in the same state on every process.
            calibrated: Whether the expected size is `γ N` despite clamped probabilities; see `BackgroundPool.select`.
                One more exchange for each pass over the pool that finds the constant.

        Returns:
            Indices in `begin … end - 1`, int64 `[M]`, ascending.

        Raises:
            TypeError: If `generator` is not a `torch.Generator`, or `calibrated` not a bool.
            ValueError: If `rate` is outside (0, 1], `generator` is on another device, or an argument differs between
                processes. Every process raises, and no generator advances.
        """
        factor = self._selection_factor("select", rate, generator, calibrated)
        within = (self.begin, len(self))
        return selection.bernoulli(self._state.omega, factor, generator=generator, within=within)

    def select_mask(self, rate: float, *, generator: torch.Generator, calibrated: bool = False) -> Tensor:
        """Return the subset that `select` draws with the same generator, as a mask of the slice.

        Args:
            rate: γ in (0, 1].
            generator: Source of the draws, on the device of the pool, in the same state on every process.
            calibrated: Whether to calibrate as `select` does.

        Returns:
            Whether each example of the slice is in the subset, bool `[end - begin]`.

        Raises:
            TypeError: If `generator` is not a `torch.Generator`, or `calibrated` not a bool.
            ValueError: If `rate` is outside (0, 1], `generator` is on another device, or an argument differs between
                processes. Every process raises, and no generator advances.
        """
        factor = self._selection_factor("select_mask", rate, generator, calibrated)
        within = (self.begin, len(self))
        return torch.cat(
            list(selection.bernoulli_chunks(self._state.omega, factor, generator=generator, within=within))
        )

    def _selection_factor(self, call: str, rate: float, generator: torch.Generator, calibrated: bool) -> Tensor:
        """Return the factor of the weights in the probabilities of a selection, float64 `[]`."""
        self._checks.settle(captured=False)
        with self._processes.agreeing(call) as alike:
            self._own_checks.settle(captured=False)
            rate, calibrated = pool_checks.checked_rate(rate), as_flag("calibrated", calibrated)
            pool_checks.check_generator(generator, self.device)
            alike.update(rate=rate, calibrated=calibrated, generator=generator_digest(generator))
        expected = rate * len(self)
        # Not `expected / total`, which multiplies by the rounded inverse of a tensor.
        factor = self._full(expected) / self._whole[ops.WEIGHT_TOTAL]
        if not calibrated:
            return factor
        most = min(expected, self._drawable)
        start, add = float(factor), self._processes.add
        return self._full(selection.calibrated_factor(self._state.omega, most, start=start, add=add))

    def _full(self, value: float) -> Tensor:
        """Return a number as a tensor on the device of the pool, float64 `[]`. A fill, and no copy from the host."""
        return torch.full((), value, dtype=torch.float64, device=self.device)

    def top(self, k: int) -> Tensor:
        """Return the indices of the k heaviest examples of the whole pool, the same on every process.

        Args:
            k: Number of examples, equal on every process.

        Returns:
            int64 `[k]`, heaviest first, then lowest index first.

        Raises:
            ValueError: If `k` is not an int in `1 … N`, or differs between processes. Every process raises.
        """
        self._checks.settle(captured=False)
        with self._processes.agreeing("top") as alike:
            self._own_checks.settle(captured=False)
            alike["k"] = k = pool_checks.integer("k", k, 1, len(self), wanted=f"an int in 1 … {len(self)}")
        processes = self._processes.size
        counts = [min(k, len(slice_rows(len(self), rank, processes))) for rank in range(processes)]
        own = selection.heaviest(self._state.omega, min(k, self.end - self.begin))
        # ω and index as float64: exact for both, below 2^53 examples.
        # The first slice is the largest one: no process has more candidates.
        candidates = torch.full((2, counts[0]), torch.nan, dtype=torch.float64, device=self.device)
        candidates[0, : len(own)] = self._state.omega[own].double()
        candidates[1, : len(own)] = (own + self.begin).double()
        # Lists follow in the order of the slices and are sorted by weight, then index: a stable sort keeps that order.
        every = self._processes.gather(candidates)
        omega, index = torch.cat([part[:, :count] for part, count in zip(every, counts, strict=True)], 1)
        heaviest: Tensor = index[omega.sort(descending=True, stable=True).indices[:k]]
        return heaviest.long()

    def histogram(self, bins: int = 50) -> tuple[Tensor, Tensor]:
        """Return a histogram of the weights of the whole pool with logarithmically spaced edges.

        Args:
            bins: Number of bins, equal on every process.

        Returns:
            counts: int64 `[bins]`; examples without weight are not counted.
            edges: float64 `[bins + 1]`, in units of the weight.

        Raises:
            ValueError: If `bins` is not an int, is below 1, or differs between processes. Every process raises.
            MemoryError: If so many bins do not fit into memory. Every process raises.
        """
        self._checks.settle(captured=False)
        with self._processes.agreeing("histogram") as alike:
            self._own_checks.settle(captured=False)
            alike["bins"] = bins = pool_checks.integer("bins", bins)
            with allocating(f"bins {bins}"):
                torch.empty(4 * bins * self._processes.size, dtype=torch.float64, device=self.device)
        processes = self._processes
        return selection.log_histogram(self._state.omega, bins, largest=processes.largest, add=processes.add)

    def effective_sample_size_tensor(self) -> Tensor:
        """Return the effective sample size of the whole pool on its device, float64 `[]`; no exchange and no wait."""
        total, squares = self._whole[1], self._whole[2]
        return total * total / squares

    def effective_sample_size(self) -> float:
        """Return `(Σ w)² / Σ w²` of the whole pool, from 1 to N. Waits for the device.

        Raises:
            ValueError: If an earlier step on a CUDA device was invalid. Every process raises.
        """
        self._checks.settle()
        _, total, squares, *_ = self._whole.tolist()
        return float(total * total / squares)
