"""Batch sampler of a `torch.utils.data.DataLoader` that draws from a background pool, on one or more ranks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, Sampler

from fastood.ops import background_pool as ops
from fastood.ops._arguments import allocating, as_flag
from fastood.ops._arrays import Values
from fastood.samplers import pool_checks
from fastood.samplers.digests import generator_digest
from fastood.samplers.draw_progress import DrawProgress
from fastood.samplers.epoch_length import EpochLength
from fastood.samplers.gathered_batch import (
    batch_tensors,
    check_ranks,
    checked_place,
    gather_batch,
    ranks_of_group,
)
from fastood.samplers.pool import BackgroundPool
from fastood.samplers.sharded import ShardedBackgroundPool
from fastood.samplers.state import AscentMode

__all__ = ["BackgroundPoolSampler"]


class BackgroundPoolSampler(BatchSampler):
    """Batch sampler that draws indices from a pool, each batch with the weights at the time of the draw.

    Several ranks divide one stream of draws: step t draws `world_size * batch_size` examples, of which rank r receives
    the r-th part. All ranks have equally many batches of equal sizes, and their union is distributed as the batches of
    one process. This needs equal pools and generators in equal states on all ranks (seed them with one number, not with
    the rank). The start of an epoch compares both, with one collective if rank and size are those of the process group,
    and raises on every rank if they differ. A pool that learns stays equal with the method `ascend` of the sampler,
    which gathers the losses of all ranks; `BackgroundPool.ascend` would step each replica with its own losses.

    A loader with worker processes prefetches: it draws `prefetch_factor * num_workers` batches before it returns the
    first one. The weights of a draw are therefore at most this many steps old when the batch is used; see
    `max_staleness`. With `num_workers=0` every draw uses the current weights. `BackgroundPool.importance` always uses
    the weights at the time of the call. On a CUDA device each batch waits for the device once, because a DataLoader
    needs a list of Python numbers; several batches are not drawn at once, because their weights would be older.

    The dataset should return the index of an example along with it, because `ascend` needs the indices of the losses.

    A `ShardedBackgroundPool` is not accepted: the draws of a slice differ in number between ranks and may be none,
    which no DataLoader can return, and only the owner of an example has its importance. Call its `draw` in the loop.

    Frameworks (examples/ has a file for each):
        - Plain DDP, HF Trainer with a loader from `get_train_dataloader`, and Lightning with a sampler that is made in
          `train_dataloader` need no option. A sampler that is made elsewhere needs
          `Trainer(use_distributed_sampler=False)`, because Lightning rebuilds batch samplers, and records their
          arguments only there.
        - `Accelerator.prepare(loader)` divides batches itself: pass `rank=0, world_size=1`. It also draws one batch
          ahead, which adds 1 to the staleness. `ascend` gathers over all processes there, too.
        - torchdata's `StatefulDataLoader` stores the state of the sampler; store that of the pool as well.

    Args:
        pool: The pool, with one entry for each example of the dataset; equal on all ranks.
        batch_size: B >= 1, examples per batch and rank.
        num_batches: Length of an epoch in batches, at least 1. Pass either this or `num_samples`.
        generator: Source of the draws, on the device of the pool; required. Its state continues from epoch to epoch
            unless `set_epoch` is called.
        num_samples: Length of an epoch in examples over all ranks, at least 1, as in `WeightedRandomSampler`. It is
            rounded up to a multiple of the number of ranks. The last batch is shorter if B does not divide it.
        replacement: False draws every example at most once per epoch and over all ranks, by successive sampling as in
            `BackgroundPool.sample`. The whole epoch is drawn at its start, with the weights at that time.
        drop_last: Whether to leave out the last batch of an epoch if it is shorter than B; for `num_samples`.
        rank: Rank of this process, in `0 … world_size - 1`. None for the rank in the default process group at the start
            of an epoch, which may be initialised after the sampler; 0 without a group.
        world_size: Number of ranks that divide the draws. None, together with `rank`, for that of the group.
        sampler: Ignored. Lightning passes a `DistributedSampler` here, which the division of draws makes unnecessary.

    Attributes:
        pool, batch_size, drop_last, replacement, generator: The arguments.

    Raises:
        TypeError: If `pool` is not a BackgroundPool, `generator` not a `torch.Generator`, or a flag not a bool.
        ValueError: If a number is not an int or out of range, not exactly one length is passed, an epoch has no batch
            or, without replacement, more examples than have weight, or `generator` is on another device. On iteration
            also if pools, generators or arguments differ between ranks.

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
        generator: torch.Generator | None = None,
        num_samples: int | None = None,
        replacement: bool = True,
        drop_last: bool = False,
        rank: int | None = None,
        world_size: int | None = None,
        sampler: object = None,
    ) -> None:
        _check_pool(pool)
        pool_checks.check_generator(generator, pool.device)  # type: ignore[arg-type]
        assert generator is not None
        self.pool = pool
        self._length = EpochLength(batch_size, num_batches, num_samples, drop_last)
        self.batch_size, self.drop_last = self._length.batch_size, self._length.drop_last
        self.generator = generator
        self.replacement = as_flag("replacement", replacement)
        self._place = checked_place(rank, world_size)
        self._progress = DrawProgress(generator)
        self._length.check(self.world_size, drawable=None if self.replacement else pool.drawable)

    @property
    def sampler(self) -> BackgroundPoolSampler:  # type: ignore[override]
        """The batch sampler itself, whose `set_epoch` and `generator` frameworks look for under this name."""
        return self

    @property
    def rank(self) -> int:
        """Rank of this process among those that divide the draws."""
        return (self._place or ranks_of_group())[0]

    @property
    def world_size(self) -> int:
        """Number of ranks that divide the draws."""
        return (self._place or ranks_of_group())[1]

    @property
    def num_samples(self) -> int:
        """Length of an epoch in examples over all ranks."""
        return self._length.examples(self.world_size)

    @property
    def num_batches(self) -> int:
        """Length of an epoch in batches, equal on all ranks."""
        return self._length.batches(self.world_size)

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        self._progress.begin()
        # After the comparison of ranks, so that an epoch that is too long is an error on every rank.
        self._check_agreement()
        self._length.check(self.world_size, drawable=None if self.replacement else self.pool.drawable)
        progress, rank, ranks = self._progress, self.rank, self.world_size
        for size in self._length.sizes(ranks, batches=progress.batches, examples=progress.examples):
            batch = self._draw(size, rank, ranks).tolist()
            progress.advance(size * ranks)
            yield batch
        progress.restart()

    def _draw(self, size: int, rank: int, ranks: int) -> Tensor:
        """Return the part of this rank of the next draws, int64 `[size]`."""
        own, pool, progress = slice(rank * size, (rank + 1) * size), self.pool, self._progress
        if self.replacement:
            # The uniforms of all ranks, so that generators stay equal, but only the examples of this one.
            with allocating(f"batch_size {size}"):
                uniform = torch.rand(size * ranks, dtype=torch.float64, device=pool.device, generator=self.generator)
            state = pool._state
            index, _ = ops.pool_draw(state.omega, state.masses, state.stats, uniform[own], pool.epsilon)
            return index  # type: ignore[no-any-return]
        if progress.order is None:
            # Drawn as a whole: a batch drawn later would have to exclude the examples of all batches before it.
            left = self._length.examples(ranks, batches=progress.batches, examples=progress.examples)
            progress.order = pool.sample(left, generator=self.generator, replacement=False)[0]
        batch = progress.order[own]
        progress.order = progress.order[size * ranks :]
        return batch

    def _check_agreement(self) -> None:
        """Raise ValueError on every rank if pools, generators or settings of the ranks differ. A collective."""
        if self.world_size == 1 or self.world_size != ranks_of_group()[1]:
            return
        alike: dict[str, object] = {
            "num_examples": len(self.pool),
            "epsilon": self.pool.epsilon,
            **self._length.settings(),
            "replacement": self.replacement,
            "the number of batches drawn in this epoch": self._progress.batches,
            "the sums over the pool's weights": self.pool._state.stats[: ops.MASS_QUANTUM].tolist(),
            "the state of generator": generator_digest(self.generator),
        }
        check_ranks(self.rank, alike, device=self.pool.device)

    def set_epoch(self, epoch: int) -> None:
        """Set the number of the epoch, on which its draws then depend instead of on the epochs before it.

        The generator is put into a state that depends on its state at the construction of the sampler and on `epoch`;
        in epoch 0 it is the state at the construction. Call it before the epoch and on every rank, as for
        `torch.utils.data.DistributedSampler`; Lightning and the prepared loaders of accelerate do. Without a call the
        generator continues from epoch to epoch. After `load_state_dict` the loaded epoch continues where it was.

        Args:
            epoch: Number of the epoch, at least 0.

        Raises:
            ValueError: If `epoch` is not an int or below 0.
        """
        self._progress.set_epoch(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the epoch and the state of the generator, for a checkpoint.

        It is equal on all ranks. Together with the `state_dict` of the pool it determines all further batches. It
        counts the batches that were drawn: a loader with worker processes has drawn some that the loop has not received
        yet, and only `torchdata.stateful_dataloader.StatefulDataLoader` stores the state before those. A pool that
        learns draws them again with the weights of the checkpoint.

        Returns:
            `epoch`; `batches` and `examples` drawn in it over all ranks; `first_state` and `generator`, the states of
            the generator at the construction and now; `order`, the examples of an epoch without replacement that were
            not returned yet, or None.
        """
        return self._progress.state_dict()

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Resume from a state: the next iteration returns the batches that followed it.

        The number of ranks may be another one. An epoch of `num_batches` then has the batches that were left, and an
        epoch of `num_samples` the examples that were left.

        Args:
            state: State that `state_dict` returned.

        Raises:
            KeyError: If an entry is missing.
            TypeError: If `state` is not a mapping, or has an entry of another type.
            ValueError: If an entry is out of range, or of a generator on another device.
        """
        self._progress.load_state_dict(state, num_examples=len(self.pool), device=self.pool.device)

    def ascend(self, index: Values, per_sample_loss: Values, *, lr: float, mode: AscentMode = "sparse") -> None:
        """Take the ascent step of the batches of all ranks on every rank, so that the pools stay equal.

        Index and losses are gathered from all processes of the default process group, in the order of the ranks, by one
        collective that the host waits for; on a CUDA device it also waits for the step, so that an error is raised by
        the call that it concerns, on every rank. Without a group this is `BackgroundPool.ascend`.

        Args:
            index: Indices of this rank, int64 `[b]`, or an array or list; b may differ between ranks and may be 0.
            per_sample_loss: Losses of this rank, floating-point `[b]`, finite and >= 0, or an array or list.
            lr: Step size > 0, equal on every rank.
            mode: "exact" or "sparse" as in `BackgroundPool.ascend`, equal on every rank.

        Raises:
            TypeError: If an argument has another type or dtype.
            ValueError: If an argument is out of range on a rank, or differs between ranks, the pools or generators of
                the ranks differ, the batches of all ranks are empty, or ε = 1. Every rank raises, and no weight
                changes. A position in the message counts the batches of all ranks.

        Example:
            >>> sampler = BackgroundPoolSampler(BackgroundPool(4), 2, 1, generator=torch.Generator().manual_seed(0))
            >>> sampler.ascend([0, 2], [1.0, 0.0], lr=1.0)
            >>> int(sampler.pool.weights.argmax())
            0
        """
        if ranks_of_group()[1] == 1:
            index, per_sample_loss = batch_tensors(index, per_sample_loss, self.pool.device)
            self.pool.ascend(index, per_sample_loss, lr=lr, mode=mode)
            return
        index, per_sample_loss = gather_batch(
            index,
            per_sample_loss,
            lr=lr,
            mode=mode,
            generator=self.generator if self.world_size > 1 else None,
            stats=self.pool._state.stats[: ops.MASS_QUANTUM],
            device=self.pool.device,
        )
        self.pool.ascend(index, per_sample_loss, lr=lr, mode=mode)
        # Without it one rank could raise in its next draw while another waits for it in the next collective.
        self.pool.synchronize()

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


def _check_pool(pool: object) -> None:
    """Raise TypeError unless `pool` is a BackgroundPool."""
    if isinstance(pool, BackgroundPool):
        return
    message = f"pool must be a BackgroundPool, such as from_weights(weights) returns, got {type(pool).__name__}"
    if isinstance(pool, ShardedBackgroundPool):
        message += ", whose draws differ in number between ranks: call its draw in the loop"
    if isinstance(pool, Sampler):
        message += (
            ". If Lightning passed it: the sampler divides its draws among the ranks itself, so that "
            "Trainer(use_distributed_sampler=False) is right, or make the sampler in train_dataloader"
        )
    raise TypeError(message)
