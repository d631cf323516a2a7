"""Read-only side of a pool: weights, selection and statistics."""

from __future__ import annotations

import torch
from torch import Tensor

from fastood.ops import background_pool as ops
from fastood.ops._arguments import allocating, as_flag
from fastood.samplers import pool_checks, selection
from fastood.samplers.softplus import softplus
from fastood.samplers.state import PoolState

__all__ = ["PoolQueries"]


class PoolQueries:
    """Base class of `BackgroundPool` with the read-only methods: weights, selection and statistics."""

    epsilon: float
    momentum: float
    _state: PoolState

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
        """Weights `w`, float64 `[N]`, a copy."""
        return softplus(self._state.omega.double())

    def select(self, rate: float, *, generator: torch.Generator, calibrated: bool = False) -> Tensor:
        """Return a random subset: each example independently with probability `min(1, γ N w_i / Σ w)` (eq. 20).

        Args:
            rate: γ in (0, 1]. The expected size is at most `γ N`; it is smaller if a probability is clamped to one.
            generator: Source of the draws, on the device of the pool.
            calibrated: Whether to replace `γ N / Σ w` by the larger constant for which the expected size is `γ N`
                despite the clamping. Selects all examples with weight if there are fewer.

        Returns:
            Indices, int64 `[M]`, ascending.

        Raises:
            TypeError: If `generator` is not a `torch.Generator`, or `calibrated` not a bool.
            ValueError: If `rate` is outside (0, 1], or `generator` is on another device.
        """
        rate, calibrated = pool_checks.checked_rate(rate), as_flag("calibrated", calibrated)
        pool_checks.check_generator(generator, self.device)
        expected = rate * len(self)
        factor = expected / float(self._state.stats[ops.WEIGHT_TOTAL])
        if calibrated:
            # The expected size cannot exceed the number of examples with weight: without the minimum there is no
            # solution.
            factor = selection.calibrated_factor(self._state.omega, min(expected, self._state.drawable), start=factor)
        return selection.bernoulli(self._state.omega, factor, generator=generator)

    def top(self, k: int) -> Tensor:
        """Return the indices of the k heaviest examples, int64 `[k]`, heaviest first, then lowest index first.

        Raises:
            ValueError: If `k` is not an int in `1 … N`.
        """
        k = pool_checks.integer("k", k, 1, len(self), wanted=f"an int in 1 … {len(self)}")
        return selection.heaviest(self._state.omega, k)

    def histogram(self, bins: int = 50) -> tuple[Tensor, Tensor]:
        """Return a histogram of the weights with logarithmically spaced edges.

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

    def effective_sample_size(self) -> float:
        """Return `(Σ w)² / Σ w²`, from 1 (a single example) to N (equal weights). Synchronises with the device."""
        _, total, squares, *_ = self._state.stats.tolist()
        return float(total * total / squares)
