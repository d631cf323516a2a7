"""Batch sampler of a `torch.utils.data.DataLoader` that draws from a background pool."""

from __future__ import annotations

from collections.abc import Iterator
from warnings import warn

import torch
import torch.distributed as dist
from torch.utils.data import Sampler

from fastood.ops._arguments import as_flag, shown
from fastood.samplers import pool_checks
from fastood.samplers.pool import BackgroundPool

__all__ = ["BackgroundPoolSampler"]


class BackgroundPoolSampler(Sampler[list[int]]):
    """Batch sampler that draws indices from a pool, each batch with the weights at the time of the draw.

    A loader with worker processes prefetches: it draws `prefetch_factor * num_workers` batches before it returns the
    first one. The weights of a draw are therefore at most this many steps old when the batch is used; see
    `max_staleness`. With `num_workers=0` every draw uses the current weights. `BackgroundPool.importance` always uses
    the weights at the time of the call.

    The dataset should return the index of an example along with it, because `BackgroundPool.ascend` needs the indices
    of the losses.

    Each process draws independently of the others: generators with the same seed draw the same batches in every
    process. A warning is issued once if `torch.distributed` runs more than one process; seed each generator with the
    rank, or use `BackgroundPool.shard`.

    Args:
        pool: The pool, with one entry for each example of the dataset.
        batch_size: B >= 1, examples per batch.
        num_batches: Length of an epoch in batches, at least 1. Pass either this or `num_samples`.
        generator: Source of the draws, on the device of the pool; its state continues from epoch to epoch.
        num_samples: Length of an epoch in examples, at least 1, as in `WeightedRandomSampler`. The last batch is
            shorter if B does not divide it.
        replacement: False draws every example at most once per epoch, by successive sampling as in
            `BackgroundPool.sample`. The whole epoch is drawn at its start, with the weights at that time.

    Raises:
        TypeError: If `pool` is not a BackgroundPool, or `generator` not a `torch.Generator`.
        ValueError: If `batch_size`, `num_batches` or `num_samples` is not an int or below 1, not exactly one length is
            passed, an epoch without replacement is longer than the number of examples with weight, or `generator` is
            on another device.

    Example:
        Replaces `DataLoader(data, batch_size=2, sampler=WeightedRandomSampler(weights, num_samples=6))`:

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
                f"pool must be a BackgroundPool, such as from_weights(weights) returns, got {type(pool).__name__}"
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
            # Drawn as a whole: a batch drawn later would have to exclude the examples of all batches before it.
            epoch, _ = self.pool.sample(self.num_samples, generator=self.generator, replacement=False)
            for batch in torch.split(epoch, self.batch_size):
                yield batch.tolist()
            return
        for begin in range(0, self.num_samples, self.batch_size):
            count = min(self.batch_size, self.num_samples - begin)
            # One draw per batch and not per epoch, so that ascent steps between two batches take effect.
            yield self.pool.sample(count, generator=self.generator)[0].tolist()

    @staticmethod
    def max_staleness(*, num_workers: int, prefetch_factor: int = 2) -> int:
        """Return the largest number of steps between the draw of a batch and its use.

        Args:
            num_workers: Worker processes of the loader, at least 0.
            prefetch_factor: Batches that each worker prefetches, at least 1; the default is that of `DataLoader`.

        Raises:
            ValueError: If an argument is not an int or below its minimum.

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
                f"each of {dist.get_world_size()} processes draws from its BackgroundPoolSampler independently, and "
                "generators with the same seed draw the same batches: seed them with the rank, or use "
                "BackgroundPool.shard",
                stacklevel=3,
            )
