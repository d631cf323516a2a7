"""A pool as the batch sampler of a plain `torch.utils.data.DataLoader`."""

from __future__ import annotations

from collections.abc import Iterator
from warnings import warn

import torch
import torch.distributed as dist
from torch.utils.data import Sampler

from fastood.ops._arguments import as_flag, shown
from fastood.samplers import pool_checks
from fastood.samplers.pool import BackgroundPool


class BackgroundPoolSampler(Sampler[list[int]]):
    """Batches of indices drawn from a pool, each by the weights of the moment at which it is asked for.

    A loader asks ahead: with worker processes, `prefetch_factor * num_workers` batches are drawn before the first is
    handed out, and that many at most lie between the draw of a batch and its use. So many steps at most have the
    weights moved on since: `max_staleness`. With `num_workers=0` there are none, and every draw is fresh. What
    `BackgroundPool.importance` returns is of the weights at the time of the call in any case.

    The dataset should hand out the index of an example beside it, so that `BackgroundPool.ascend` learns whose loss it
    is told.

    Each process draws for itself: several, of which each has such a sampler, draw the same batches where their
    generators have the same seed. A warning says so once where `torch.distributed` runs more than one; seed each
    generator with the rank, or use `BackgroundPool.shard`.

    Args:
        pool: The pool, one example for each of the dataset.
        batch_size: B >= 1.
        num_batches: Length of an epoch in batches, at least 1; or `num_samples`.
        generator: Of the draws, on the pool's device; goes on from epoch to epoch.
        num_samples: Length of an epoch in examples, at least 1, as for `WeightedRandomSampler`: the last batch is
            shorter where B does not divide it.
        replacement: False draws every example at most once in an epoch, by successive sampling as in
            `BackgroundPool.sample`; the whole epoch is drawn at its start, by the weights of then.

    Raises:
        TypeError: `pool` is no BackgroundPool, or `generator` none.
        ValueError: `batch_size`, `num_batches` or `num_samples` is no int or below 1; both or none of the lengths are
            given; an epoch without replacement is longer than the examples with weight; `generator` is on another
            device.

    Example:
        In place of `DataLoader(data, batch_size=2, sampler=WeightedRandomSampler(weights, num_samples=6))`:

        >>> from torch.utils.data import DataLoader
        >>> data, weights = torch.arange(4) * 10, [0.0, 1.0, 0.0, 0.0]
        >>> pool = BackgroundPool.from_weights(weights)
        >>> sampler = BackgroundPoolSampler(pool, 2, 3, generator=torch.Generator().manual_seed(0))
        >>> [batch.tolist() for batch in DataLoader(data, batch_sampler=sampler)]
        [[10, 10], [10, 10], [10, 10]]
    """

    def __init__(
        self,
        pool: BackgroundPool,
        batch_size: int,
        num_batches: int | None = None,
        *,
        generator: torch.Generator,
        num_samples: int | None = None,
        replacement: bool = True,
    ) -> None:
        if not isinstance(pool, BackgroundPool):
            raise TypeError(
                f"pool must be a BackgroundPool, such as from_weights makes of weights, got {type(pool).__name__}"
            )
        pool_checks.check_generator(generator, pool.device)
        if (num_batches is None) == (num_samples is None):
            raise ValueError(
                "num_batches or num_samples must be given, and not both, got "
                f"{shown(num_batches)} and {shown(num_samples)}"
            )
        self.pool = pool
        self.batch_size = pool_checks.integer("batch_size", batch_size)
        if num_batches is not None:
            self.num_samples = self.batch_size * pool_checks.integer("num_batches", num_batches)
        else:
            self.num_samples = pool_checks.integer("num_samples", num_samples)
        self.generator = generator
        self.replacement = as_flag("replacement", replacement)
        if not self.replacement and self.num_samples > pool.drawable:
            raise ValueError(
                f"num_samples must be at most the {pool.drawable} examples with weight when replacement=False, got "
                f"{self.num_samples}"
            )
        self._warned = False

    @property
    def num_batches(self) -> int:
        """Length of an epoch in batches."""
        return -(-self.num_samples // self.batch_size)

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        self._warn_of_other_processes()
        if not self.replacement:
            epoch, _ = self.pool.sample(self.num_samples, generator=self.generator, replacement=False)
            for batch in torch.split(epoch, self.batch_size):
                yield batch.tolist()
            return
        for begin in range(0, self.num_samples, self.batch_size):
            count = min(self.batch_size, self.num_samples - begin)
            yield self.pool.sample(count, generator=self.generator)[0].tolist()

    @staticmethod
    def max_staleness(*, num_workers: int, prefetch_factor: int = 2) -> int:
        """Return the steps that the weights can have moved on between the draw of a batch and its use.

        Args:
            num_workers: As for the loader.
            prefetch_factor: As for the loader, whose default is 2.

        Raises:
            ValueError: `num_workers` is no int or below 0, or `prefetch_factor` below 1.

        Example:
            >>> BackgroundPoolSampler.max_staleness(num_workers=4), BackgroundPoolSampler.max_staleness(num_workers=0)
            (8, 0)
        """
        return pool_checks.integer("num_workers", num_workers, 0) * pool_checks.integer(
            "prefetch_factor", prefetch_factor
        )

    def _warn_of_other_processes(self) -> None:
        if self._warned or not (dist.is_available() and dist.is_initialized()):
            return
        self._warned = True
        if dist.get_world_size() > 1:
            warn(
                f"each of {dist.get_world_size()} processes draws from its BackgroundPoolSampler for itself, and "
                "generators of one seed draw the same batches: seed them with the rank, or use BackgroundPool.shard",
                stacklevel=3,
            )
