"""Background source of the reweighting: a pool whose weights are learnt, whole or divided among the processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastood.samplers import BackgroundPool, ShardedBackgroundPool
from fastood.samplers.state import AscentMode
from fastood.train.engine.background import Drawn, drawn_by_owner


class AdversarialBackground:
    """Draws from a pool by its weights, and raises the weights of images with a large outlier loss.

    Li & Vasconcelos 2020, supplementary algorithm 1: the weights move at every step and the next draw uses them. With
    `batches_ahead` of an epoch it is the authors' code: indices are drawn an epoch at a time, from weights that lag by
    up to an epoch. Paper:
    https://openaccess.thecvf.com/content_CVPR_2020/html/Li_Background_Data_Resampling_for_Outlier-Aware_Classification_CVPR_2020_paper.html

    Weights, draws, importance and steps stay on the device of the pool. Only a divided pool waits for the device, once
    per draw, for the number of draws that fall to this process.

    Args:
        pool: The pool; changed by `observe`. Of a `ShardedBackgroundPool` each process draws and steps its slice.
        batch_size: Images in a batch, over all processes.
        learning_rate: Step size η_w of the weights.
        generator: Source of the draws, on the device of the pool, in the same state on every process.
        batches_ahead: Batches whose indices are drawn at once, at least 1. Importance and ascent always use the current
            weights.
        mode: Weights that a step moves; see `BackgroundPool.ascend`.
    """

    def __init__(
        self,
        pool: BackgroundPool | ShardedBackgroundPool,
        *,
        batch_size: int,
        learning_rate: float,
        generator: torch.Generator,
        batches_ahead: int = 1,
        mode: AscentMode = "exact",
    ) -> None:
        self.pool = pool
        self.owned = range(pool.begin, pool.end) if isinstance(pool, ShardedBackgroundPool) else None
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.batches_ahead = batches_ahead
        self.mode: AscentMode = mode
        self._generator = generator
        self._ahead: list[Drawn] = []
        self._sizes = _Series(pool.device)

    @property
    def effective_sample_sizes(self) -> Tensor:
        """Effective sample size of the pool after each step, float64 `[T]`, on the CPU."""
        return self._sizes.values()

    def draw(self) -> Drawn:
        """Draw a batch with replacement, by supplementary eq. 11."""
        if not self._ahead:
            # All batches of an epoch in one draw, as in the authors' code: one pass over the weights serves them all.
            self._ahead = self._split(self._draw(self.batches_ahead * self.batch_size))
        return self._ahead.pop(0)

    def _draw(self, count: int) -> Drawn:
        if not isinstance(self.pool, ShardedBackgroundPool):
            index, _ = self.pool.sample(count, generator=self._generator)
            return Drawn(index=index, size=count)
        # Generator and size are equal on all processes by construction: nothing to verify.
        part = self.pool.draw(count, generator=self._generator, verify=False)
        return Drawn(index=part.index, size=count, position=part.position)

    def _split(self, drawn: Drawn) -> list[Drawn]:
        """Return the batches of several batches drawn at once."""
        count = drawn.size // self.batch_size
        if drawn.position is None:
            return [Drawn(index=index, size=len(index)) for index in torch.split(drawn.index, self.batch_size)]
        if count == 1:
            return [drawn]
        batch = drawn.position // self.batch_size
        parts = [(batch == number).nonzero().flatten() for number in range(count)]
        return [
            Drawn(index=drawn.index[part], size=self.batch_size, position=drawn.position[part] % self.batch_size)
            for part in parts
        ]

    def importance(self, index: Tensor) -> Tensor:
        """Return the importance by supplementary eq. 12, from the current weights."""
        return self.pool.importance(index)

    def observe(self, index: Tensor, per_sample_loss: Tensor) -> None:
        """Take an ascent step on the weighted outlier loss, in closed form: no second backward pass."""
        if isinstance(self.pool, ShardedBackgroundPool):
            self.pool.ascend(index, per_sample_loss, lr=self.learning_rate, mode=self.mode)
        else:
            # The loop, which reads the losses of all steps, finds one that is not finite.
            self.pool.ascend(index, per_sample_loss, lr=self.learning_rate, mode=self.mode, wait=False)
        self._sizes.append(self.pool.effective_sample_size_tensor())

    def scalars(self) -> dict[str, Tensor]:
        """Return the effective sample size of the weights."""
        return {"effective_sample_size": self.pool.effective_sample_size_tensor()}

    def state_dict(self) -> dict[str, Any]:
        """Return pool, generator, the indices drawn ahead, and the effective sample sizes so far."""
        ahead = [drawn.whole_index() for drawn in self._ahead]
        return {
            "pool": self.pool.state_dict(),
            "generator": self._generator.get_state(),
            # A copy: the batches are views of all that was drawn at once.
            "ahead": torch.cat(ahead).cpu() if ahead else torch.empty(0, dtype=torch.int64),
            "effective_sample_sizes": self.effective_sample_sizes,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state of `state_dict`."""
        self.pool.load_state_dict(state["pool"])
        self._generator.set_state(state["generator"])
        ahead = state["ahead"].to(self.pool.device)
        self._ahead = [drawn_by_owner(index, self.owned) for index in torch.split(ahead, self.batch_size) if len(index)]
        self._sizes.load(state["effective_sample_sizes"])


class _Series:
    """Growing series of float64 numbers on a device; an append does not wait for the device.

    Args:
        device: Device of the numbers.
    """

    def __init__(self, device: torch.device) -> None:
        self._buffer = torch.empty(1024, dtype=torch.float64, device=device)
        self._length = 0

    def append(self, value: Tensor) -> None:
        """Append a number `[]`."""
        if self._length == len(self._buffer):
            self._buffer = torch.cat([self._buffer, torch.empty_like(self._buffer)])
        self._buffer[self._length] = value
        self._length += 1

    def values(self) -> Tensor:
        """Return the numbers, float64 `[T]`, on the CPU; waits for the device."""
        return self._buffer[: self._length].to("cpu", copy=True)

    def load(self, values: Tensor) -> None:
        """Replace the numbers."""
        room = self._buffer.new_empty(max(1024, 2 * len(values)))
        room[: len(values)] = values
        self._buffer, self._length = room, len(values)
