"""What can be read off the weights of a pool without changing them."""

from __future__ import annotations

import torch
from torch import Tensor

from fastood.ops import background_pool as ops
from fastood.ops._arguments import allocating, as_flag
from fastood.samplers import pool_checks, selection
from fastood.samplers.softplus import softplus
from fastood.samplers.state import PoolState


class PoolQueries:
    """Weights, selection by weight, and statistics of a pool; `BackgroundPool` adds draws and steps."""

    epsilon: float
    momentum: float
    _state: PoolState

    def __len__(self) -> int:
        return self._state.omega.numel()

    @property
    def device(self) -> torch.device:
        """Where the weights live."""
        return self._state.omega.device

    @property
    def drawable(self) -> int:
        """Examples with weight: as many can be drawn without replacement."""
        return self._state.drawable

    @property
    def weights(self) -> Tensor:
        """`w`, float64 `[N]`, a copy."""
        return softplus(self._state.omega.double())

    def select(self, rate: float, *, generator: torch.Generator, calibrated: bool = False) -> Tensor:
        """Choose a subset, each example independently with probability `min(1, γ N w_i / Σ w)` (eq. 20).

        Args:
            rate: γ in (0, 1]. The expected size is at most `γ N`: less where some probability is cut at one.
            generator: On the pool's device.
            calibrated: Replace `γ N / Σ w` by the larger constant that makes the expected size `γ N` in spite of the
                cut; all examples with weight where they are fewer.

        Returns:
            int64 indices, ascending.

        Raises:
            TypeError: `generator` is none.
            ValueError: `rate` is outside (0, 1], or `generator` on another device.
        """
        rate, calibrated = pool_checks.checked_rate(rate), as_flag("calibrated", calibrated)
        pool_checks.check_generator(generator, self.device)
        expected = rate * len(self)
        factor = expected / float(self._state.stats[ops.WEIGHT_TOTAL])
        if calibrated:
            factor = selection.calibrated_factor(self._state.omega, min(expected, self._state.drawable), start=factor)
        return selection.bernoulli(self._state.omega, factor, generator=generator)

    def top(self, k: int) -> Tensor:
        """Indices int64 `[k]` of the k heaviest examples, heaviest first; among equals the lowest index first.

        Raises:
            ValueError: `k` is outside `1 … N`.
        """
        k = pool_checks.integer("k", k, 1, len(self), wanted=f"an int in 1 … {len(self)}")
        return selection.heaviest(self._state.omega, k)

    def histogram(self, bins: int = 50) -> tuple[Tensor, Tensor]:
        """How the weights are spread: counts int64 `[bins]` and edges float64 `[bins + 1]`, logarithmic in the weight.

        Raises:
            ValueError: `bins` is no int, or below 1.
            MemoryError: So many bins do not fit.
        """
        bins = pool_checks.integer("bins", bins)
        with allocating(f"bins {bins}"):
            return selection.log_histogram(self._state.omega, bins)

    def effective_sample_size(self) -> float:
        """`(Σ w)² / Σ w²`, between 1 (one example holds all the weight) and N (all are equal). Waits for the device."""
        _, total, squares, *_ = self._state.stats.tolist()
        return float(total * total / squares)
