"""Where a stage's background images come from: a fixed subset, or a pool whose weights learn."""

from typing import Any, Protocol

import torch
from torch import Tensor

from fastood.samplers import BackgroundPool
from fastood.train.engine.stream import EpochStream


class Background(Protocol):
    """Source of background mini-batches, told the loss of what it gave.

    A batch may be drawn steps before it is used: the loop then calls `importance` and `observe` for it that much later.
    """

    batch_size: int
    """The most images in a batch."""

    def draw(self) -> Tensor:
        """Indices of the next batch, int64 `[B]` into the task's background."""
        ...

    def importance(self, index: Tensor) -> Tensor | None:
        """Importance float32 `[B]` of images now to be used; None means 1 each."""
        ...

    def observe(self, index: Tensor, per_sample_loss: Tensor) -> None:
        """Takes the outlier losses `[B]` of the images just used."""
        ...

    def scalars(self) -> dict[str, float]:
        """What is worth a curve in TensorBoard."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything that `load_state_dict` needs to go on with the same draws."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        ...


class SubsetBackground:
    """A fixed subset of the background, shuffled anew each time it has been passed through.

    Args:
        index: The subset, int64 `[n]`, n of at least 1.
        batch_size: Images in a batch; a smaller subset is one batch.
        generator: Source of the order.
    """

    def __init__(self, index: Tensor, *, batch_size: int, generator: torch.Generator) -> None:
        self.index = index
        self._stream = EpochStream(len(index), batch_size, generator)
        self.batch_size = self._stream.batch_size

    def draw(self) -> Tensor:
        """The next batch."""
        return self.index[self._stream.next()]

    def importance(self, index: Tensor) -> Tensor | None:
        """Each image counts once."""
        return None

    def observe(self, index: Tensor, per_sample_loss: Tensor) -> None:
        """Nothing to learn from the losses."""

    def scalars(self) -> dict[str, float]:
        """None."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Position in the shuffled order."""
        return self._stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self._stream.load_state_dict(state)


class AdversarialBackground:
    """Draws from a pool by its weights and raises the weights of what the network finds hard.

    Li & Vasconcelos 2020, supplementary algorithm 1: the weights move at every step and the next draw uses
    them. With `batches_ahead` of an epoch it is the authors' code: indices are drawn an epoch at a time, from weights
    that the batches in between have moved on from.

    Args:
        pool: The pool; changed by `observe`.
        batch_size: Images in a batch.
        learning_rate: Step size η_w of the weights.
        generator: Source of the draws.
        batches_ahead: Batches whose indices are drawn at once, at least 1. Importance and ascent always go by the
            weights of the moment.
    """

    def __init__(
        self,
        pool: BackgroundPool,
        *,
        batch_size: int,
        learning_rate: float,
        generator: torch.Generator,
        batches_ahead: int = 1,
    ) -> None:
        self.pool = pool
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.batches_ahead = batches_ahead
        self._generator = generator
        self._ahead = torch.empty(0, dtype=torch.int64)
        self.effective_sample_sizes: list[float] = []
        """Of the pool, after every step."""

    def draw(self) -> Tensor:
        """A batch with replacement, by supplementary eq. 11."""
        if len(self._ahead) == 0:
            self._ahead, _ = self.pool.sample(self.batches_ahead * self.batch_size, generator=self._generator)
        index, self._ahead = self._ahead[: self.batch_size], self._ahead[self.batch_size :]
        return index

    def importance(self, index: Tensor) -> Tensor:
        """By supplementary eq. 12, from the weights of the moment."""
        return self.pool.importance(index)

    def observe(self, index: Tensor, per_sample_loss: Tensor) -> None:
        """One ascent step on the weighted outlier loss, in closed form: no second backward pass."""
        self.pool.ascend(index, per_sample_loss, lr=self.learning_rate)
        self.effective_sample_sizes.append(self.pool.effective_sample_size())

    def scalars(self) -> dict[str, float]:
        """How many images the weights amount to."""
        return {"effective_sample_size": self.pool.effective_sample_size()}

    def state_dict(self) -> dict[str, Any]:
        """Pool, generator, the indices drawn ahead, and the effective sample sizes so far."""
        return {
            "pool": self.pool.state_dict(),
            "generator": self._generator.get_state(),
            "ahead": self._ahead.clone(),
            "effective_sample_sizes": torch.tensor(self.effective_sample_sizes, dtype=torch.float64),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        self.pool.load_state_dict(state["pool"])
        self._generator.set_state(state["generator"])
        self._ahead = state["ahead"]
        self.effective_sample_sizes = state["effective_sample_sizes"].tolist()
