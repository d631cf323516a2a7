"""An endless stream of shuffled mini-batches that can be saved at any batch and resumed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastood.data import epoch_batches

LARGEST_PERMUTATION = 1 << 22
"""Examples of which a whole order, 8 bytes each, is drawn; the order of more is computed batch by batch."""
_ROUNDS = 8
_MASK = (1 << 31) - 1


class EpochStream:
    """Shuffled mini-batches of indices, epoch after epoch.

    The state is that of the generator when the epoch began, and the number of batches taken since: the epoch's order
    is drawn again from these, so that the state's size does not depend on N. Neither does the memory of the stream
    beyond N = 2^22.

    Args:
        num_examples: Number of examples N, at least 1.
        batch_size: Examples in a batch; a smaller set is one batch of all N.
        generator: RNG of the order; used by this stream alone from here on.

    Raises:
        ValueError: If there is no example or no batch.

    Example:
        >>> stream = EpochStream(5, 2, torch.Generator().manual_seed(0))
        >>> [len(stream.next()) for _ in range(3)], stream.batches_per_epoch
        ([2, 2, 2], 2)
    """

    def __init__(self, num_examples: int, batch_size: int, generator: torch.Generator) -> None:
        if num_examples < 1:
            raise ValueError(f"num_examples must be at least 1, got {num_examples}")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        self.num_examples = num_examples
        self.batch_size = min(batch_size, num_examples)
        self._generator = generator
        self._begin_epoch()

    @property
    def batches_per_epoch(self) -> int:
        """Whole batches in an epoch; a last incomplete one is dropped, as in the authors' loaders."""
        return self.num_examples // self.batch_size

    def _begin_epoch(self, taken: int = 0) -> None:
        self._epoch_start = self._generator.get_state()
        self._taken = taken
        if self.num_examples > LARGEST_PERMUTATION:
            self._batches = self._computed_batches(taken)
            return
        self._batches = epoch_batches(self.num_examples, self.batch_size, generator=self._generator, drop_last=True)
        for _ in range(taken):
            next(self._batches)

    def _computed_batches(self, taken: int) -> Iterator[Tensor]:
        keys = torch.randint(_MASK, (_ROUNDS, 2), generator=self._generator)

        def batches() -> Iterator[Tensor]:
            for batch in range(taken, self.batches_per_epoch):
                place = torch.arange(batch * self.batch_size, (batch + 1) * self.batch_size)
                yield permuted(place, self.num_examples, keys)

        return batches()

    def next(self) -> Tensor:
        """Return the next batch of indices, int64 `[B]`, without repetition within an epoch."""
        if self._taken == self.batches_per_epoch:
            self._begin_epoch()
        self._taken += 1
        return next(self._batches)

    def state_dict(self) -> dict[str, Any]:
        """Return the position of the stream."""
        return {"epoch_start": self._epoch_start, "taken": self._taken}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state of `state_dict`."""
        self._generator.set_state(state["epoch_start"])
        self._begin_epoch(state["taken"])


def permuted(place: Tensor, size: int, keys: Tensor) -> Tensor:
    """Return the images of places under a pseudo-random permutation of `0 … size - 1`, without a table.

    A Feistel network over the smallest even number of bits that holds `size`, applied again to values outside of the
    range (cycle walking: https://en.wikipedia.org/wiki/Format-preserving_encryption), at most three times on average
    per place. Each round is a bijection for any function in it, hence so is the whole.

    Args:
        place: int64 `[B]`, each in `0 … size - 1`.
        size: Number of places, in `1 … 2^60`.
        keys: Random numbers of the rounds, int64 `[rounds, 2]`, each in `0 … 2^31 - 1`.

    Example:
        >>> keys = torch.randint(2**31 - 1, (8, 2), generator=torch.Generator().manual_seed(0))
        >>> sorted(permuted(torch.arange(6), 6, keys).tolist())
        [0, 1, 2, 3, 4, 5]
    """
    half = max(1, -(-(size - 1).bit_length() // 2))
    low = (1 << half) - 1

    def once(value: Tensor) -> Tensor:
        left, right = value >> half, value & low
        for multiplier, offset in keys.tolist():
            # Products of numbers below 2^31 stay in int64; their high bits depend on all bits of the factors.
            mixed = ((right + offset) & _MASK) * (multiplier | 1) >> 16 & _MASK
            mixed = (mixed ^ mixed >> 13) * 0x5BD1E995 >> 15
            left, right = right, left ^ mixed & low
        return left << half | right

    value = once(place)
    while bool((outside := value >= size).any()):
        value = torch.where(outside, once(value), value)
    return value
