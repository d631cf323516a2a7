"""Sources of a stage's background images: a fixed subset, or a pool with weights that are learnt."""

from typing import Any, Protocol

import torch
from torch import Tensor

from fastood.samplers import BackgroundPool
from fastood.train.engine.stream import EpochStream


class Background(Protocol):
    """Source of background mini-batches that observes the loss of each batch.

    A batch may be drawn some steps before it is used; the loop calls `importance` and `observe` when it is used.
    """

    batch_size: int
    """Maximum number B of images in a batch."""

    def draw(self) -> Tensor:
        """Draw the next batch: indices int64 `[B]` into the task's background."""
        ...

    def importance(self, index: Tensor) -> Tensor | None:
        """Return the importance float32 `[B]` of the images about to be used; None means 1 each."""
        ...

    def observe(self, index: Tensor, per_sample_loss: Tensor) -> None:
        """Take in the outlier losses float32 `[B]` of the images just used."""
        ...

    def scalars(self) -> dict[str, float]:
        """Return values to plot in TensorBoard."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state from which `load_state_dict` resumes with the same draws."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state of `state_dict`."""
        ...


class SubsetBackground:
    """A fixed subset of the background, shuffled again after each pass.

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
        """Draw the next batch of the pass, int64 `[B]`."""
        return self.index[self._stream.next()]

    def importance(self, index: Tensor) -> Tensor | None:
        """Return None: every image has an importance of 1."""
        return None

    def observe(self, index: Tensor, per_sample_loss: Tensor) -> None:
        """Ignore the losses: the subset is fixed."""

    def scalars(self) -> dict[str, float]:
        """Return no values: a fixed subset has no state that changes."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the shuffled order."""
        return self._stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state of `state_dict`."""
        self._stream.load_state_dict(state)


class AdversarialBackground:
    """Draws from a pool by its weights, and raises the weights of images with a large outlier loss.

    Li & Vasconcelos 2020, supplementary algorithm 1: the weights move at every step and the next draw uses them. With
    `batches_ahead` of an epoch it is the authors' code: indices are drawn an epoch at a time, from weights that lag by
    up to an epoch. Paper:
    https://openaccess.thecvf.com/content_CVPR_2020/html/Li_Background_Data_Resampling_for_Outlier-Aware_Classification_CVPR_2020_paper.html

    Args:
        pool: The pool; changed by `observe`.
        batch_size: Images in a batch.
        learning_rate: Step size η_w of the weights.
        generator: Source of the draws.
        batches_ahead: Batches whose indices are drawn at once, at least 1. Importance and ascent always use the current
            weights.
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
        """Effective sample size of the pool after every step."""

    def draw(self) -> Tensor:
        """Draw a batch with replacement, by supplementary eq. 11."""
        if len(self._ahead) == 0:
            # All batches of an epoch in one draw, as in the authors' code: one pass over the weights serves them all.
            self._ahead, _ = self.pool.sample(self.batches_ahead * self.batch_size, generator=self._generator)
        index, self._ahead = self._ahead[: self.batch_size], self._ahead[self.batch_size :]
        return index

    def importance(self, index: Tensor) -> Tensor:
        """Return the importance by supplementary eq. 12, from the current weights."""
        return self.pool.importance(index)

    def observe(self, index: Tensor, per_sample_loss: Tensor) -> None:
        """Take an ascent step on the weighted outlier loss, in closed form: no second backward pass."""
        self.pool.ascend(index, per_sample_loss, lr=self.learning_rate)
        self.effective_sample_sizes.append(self.pool.effective_sample_size())

    def scalars(self) -> dict[str, float]:
        """Return the effective sample size of the weights."""
        return {"effective_sample_size": self.pool.effective_sample_size()}

    def state_dict(self) -> dict[str, Any]:
        """Return pool, generator, the indices drawn ahead, and the effective sample sizes so far."""
        return {
            "pool": self.pool.state_dict(),
            "generator": self._generator.get_state(),
            "ahead": self._ahead.clone(),
            "effective_sample_sizes": torch.tensor(self.effective_sample_sizes, dtype=torch.float64),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state of `state_dict`."""
        self.pool.load_state_dict(state["pool"])
        self._generator.set_state(state["generator"])
        self._ahead = state["ahead"]
        self.effective_sample_sizes = state["effective_sample_sizes"].tolist()
