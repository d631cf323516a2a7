"""An endless stream of shuffled mini-batches that can be saved at any batch and resumed."""

from typing import Any

import torch
from torch import Tensor

from fastood.data import epoch_batches


class EpochStream:
    """Shuffled mini-batches of indices, epoch after epoch.

    The state is that of the generator when the epoch began, and the number of batches taken since: the epoch's order
    is drawn again from these, so that the state's size does not depend on N.

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

    def _begin_epoch(self) -> None:
        self._epoch_start = self._generator.get_state()
        self._taken = 0
        self._batches = epoch_batches(self.num_examples, self.batch_size, generator=self._generator, drop_last=True)

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
        self._begin_epoch()
        for _ in range(state["taken"]):
            self.next()
