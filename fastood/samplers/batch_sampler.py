"""A pool as the batch sampler of a plain `torch.utils.data.DataLoader`."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch.utils.data import Sampler

from fastood.samplers.checks import check_batch_size
from fastood.samplers.pool import BackgroundPool


class BackgroundPoolSampler(Sampler[list[int]]):
    """Batches of indices drawn from a pool, each by the weights of the moment at which it is asked for.

    A loader asks ahead: with worker processes, `prefetch_factor * num_workers` batches are drawn before the first is
    handed out, and that many at most lie between the draw of a batch and its use. So many steps at most have the
    weights moved on since: `max_staleness`. With `num_workers=0` there are none, and every draw is fresh. What
    `BackgroundPool.importance` returns is of the weights at the time of the call in any case.

    The dataset should hand out the index of an example beside it, so that `BackgroundPool.ascend` learns whose loss it
    is told.

    Args:
        pool: The pool, one example for each of the dataset.
        batch_size: B >= 1.
        num_batches: Length of an epoch, at least 1.
        generator: Of the draws, on the pool's device; goes on from epoch to epoch.

    Raises:
        ValueError: `batch_size` or `num_batches` is no int or below 1.

    Example:
        In place of `DataLoader(data, batch_size=2, sampler=WeightedRandomSampler(weights, num_samples=6))`:

        >>> from torch.utils.data import DataLoader
        >>> data, weights = torch.arange(4) * 10, torch.tensor([0.0, 1.0, 0.0, 0.0])
        >>> pool = BackgroundPool.from_weights(weights)
        >>> sampler = BackgroundPoolSampler(pool, 2, 3, generator=torch.Generator().manual_seed(0))
        >>> [batch.tolist() for batch in DataLoader(data, batch_sampler=sampler)]
        [[10, 10], [10, 10], [10, 10]]
    """

    def __init__(self, pool: BackgroundPool, batch_size: int, num_batches: int, *, generator: torch.Generator) -> None:
        check_batch_size(batch_size)
        if isinstance(num_batches, bool) or not isinstance(num_batches, int) or num_batches < 1:
            raise ValueError(f"num_batches must be an int >= 1, got {num_batches!r}")
        self.pool = pool
        self.batch_size = batch_size
        self.num_batches = num_batches
        self.generator = generator

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(self.num_batches):
            yield self.pool.sample(self.batch_size, generator=self.generator)[0].tolist()

    @staticmethod
    def max_staleness(*, num_workers: int, prefetch_factor: int = 2) -> int:
        """Steps that the weights can have moved on between the draw of a batch and its use.

        Args:
            num_workers: As for the loader.
            prefetch_factor: As for the loader, whose default is 2.

        Example:
            >>> BackgroundPoolSampler.max_staleness(num_workers=4), BackgroundPoolSampler.max_staleness(num_workers=0)
            (8, 0)
        """
        return num_workers * prefetch_factor
