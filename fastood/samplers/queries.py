"""Read-only side of a pool: weights, selection and statistics."""

from __future__ import annotations

import torch
from torch import Tensor

from fastood.ops import background_pool as ops
from fastood.ops._arguments import allocating, as_flag
from fastood.samplers import pool_checks, selection
from fastood.samplers.deferred import DeferredChecks
from fastood.samplers.softplus import softplus
from fastood.samplers.state import PoolState

__all__ = ["PoolQueries"]


class PoolQueries:
    """Base class of `BackgroundPool` with the read-only methods: weights, selection and statistics."""

    epsilon: float
    momentum: float
    _state: PoolState
    _checks: DeferredChecks

    def __len__(self) -> int:
        return self._state.omega.numel()

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self._state.omega.device

    @property
    def drawable(self) -> int:
        """Number of examples with weight, the most that can be drawn without replacement."""
        return self._state.drawable

    @property
    def weights(self) -> Tensor:
        """Weights `w`, float64 `[N]`, a copy. Does not wait for the device."""
        return softplus(self._state.omega.double())

    def select(self, rate: float, *, generator: torch.Generator, calibrated: bool = False) -> Tensor:
        """Return a random subset: each example independently with probability `min(1, γ N w_i / Σ w)` (eq. 20).

        Waits for the device, because the size of the subset depends on the draws; `select_mask` does not.

        Args:
            rate: γ in (0, 1]. The expected size is at most `γ N`; it is smaller if a probability is clamped to one.
            generator: Source of the draws, on the device of the pool.
            calibrated: Whether to replace `γ N / Σ w` by the larger constant for which the expected size is `γ N`
                despite the clamping. Selects all examples with weight if there are fewer. Waits for the device a few
                times more, once for every pass over the pool that finds the constant.

        Returns:
            Indices, int64 `[M]`, ascending.

        Raises:
            TypeError: If `generator` is not a `torch.Generator`, or `calibrated` not a bool.
            ValueError: If `rate` is outside (0, 1], or `generator` is on another device. On a CUDA device also the
                error of an earlier call.
        """
        factor = self._selection_factor(rate, generator, calibrated)
        self._checks.settle(captured=False)
        return selection.bernoulli(self._state.omega, factor, generator=generator)

    def select_mask(self, rate: float, *, generator: torch.Generator, calibrated: bool = False) -> Tensor:
        """Return the subset that `select` draws with the same generator, without waiting for the device.

        Args:
            rate: γ in (0, 1].
            generator: Source of the draws, on the device of the pool.
            calibrated: Whether to calibrate as `select` does, which waits for the device.

        Returns:
            Whether each example is in the subset, bool `[N]`. Its sum is the size of the subset.

        Raises:
            TypeError: If `generator` is not a `torch.Generator`, or `calibrated` not a bool.
            ValueError: If `rate` is outside (0, 1], or `generator` is on another device.
        """
        factor = self._selection_factor(rate, generator, calibrated)
        mask = torch.empty(len(self), dtype=torch.bool, device=self.device)
        begin = 0
        for chunk in selection.bernoulli_chunks(self._state.omega, factor, generator=generator):
            mask[begin : begin + len(chunk)] = chunk
            begin += len(chunk)
        return mask

    def _selection_factor(self, rate: float, generator: torch.Generator, calibrated: bool) -> Tensor:
        """Return the factor of the weights in the probabilities of a selection, float64 `[]`."""
        rate, calibrated = pool_checks.checked_rate(rate), as_flag("calibrated", calibrated)
        pool_checks.check_generator(generator, self.device)
        expected = rate * len(self)
        # Not `expected / total`, which multiplies by the rounded inverse of a tensor.
        factor = self._full(expected) / self._state.stats[ops.WEIGHT_TOTAL]
        if not calibrated:
            return factor
        # The expected size cannot exceed the number of examples with weight: without the minimum there is no solution.
        most = min(expected, self._state.drawable)
        return self._full(selection.calibrated_factor(self._state.omega, most, start=float(factor)))

    def _full(self, value: float) -> Tensor:
        """Return a number as a tensor on the device of the pool, float64 `[]`. A fill, and no copy from the host."""
        return torch.full((), value, dtype=torch.float64, device=self.device)

    def top(self, k: int) -> Tensor:
        """Return the indices of the k heaviest examples, int64 `[k]`, heaviest first, then lowest index first.

        Does not wait for the device.

        Raises:
            ValueError: If `k` is not an int in `1 … N`.
        """
        k = pool_checks.integer("k", k, 1, len(self), wanted=f"an int in 1 … {len(self)}")
        return selection.heaviest(self._state.omega, k)

    def histogram(self, bins: int = 50) -> tuple[Tensor, Tensor]:
        """Return a histogram of the weights with logarithmically spaced edges. Does not wait for the device.

        Returns:
            counts: int64 `[bins]`; examples without weight are not counted.
            edges: float64 `[bins + 1]`, in units of the weight.

        Raises:
            ValueError: If `bins` is not an int, or below 1.
            MemoryError: If so many bins do not fit into memory.
        """
        bins = pool_checks.integer("bins", bins)
        with allocating(f"bins {bins}"):
            return selection.log_histogram(self._state.omega, bins)

    def effective_sample_size_tensor(self) -> Tensor:
        """Return the effective sample size as a tensor on the device of the pool, float64 `[]`, without waiting."""
        total, squares = self._state.stats[ops.WEIGHT_TOTAL], self._state.stats[ops.SQUARE_TOTAL]
        return total * total / squares

    def effective_sample_size(self) -> float:
        """Return `(Σ w)² / Σ w²`, from 1 (a single example) to N (equal weights). Waits for the device.

        Raises:
            ValueError: If an earlier call on a CUDA device had values out of range.
        """
        self._checks.settle()
        _, total, squares, *_ = self._state.stats.tolist()
        return float(total * total / squares)
