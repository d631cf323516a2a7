"""Sources of a stage's background images: a fixed subset, or a pool with weights that are learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from fastood.train.engine.stream import EpochStream


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawn:
    """Batch of B images, of which this process has the indices of a part, and loads that part."""

    index: Tensor
    """Images of the part, int64 `[b]`: rows of the whole set."""
    size: int
    """B, images of the batch over all processes."""
    position: Tensor | None = None
    """Places of the part in the batch, int64 `[b]`; None if the part is the whole batch, in order."""

    def whole_index(self) -> Tensor:
        """Return the images of the whole batch, int64 `[B]`; every process of the group must call it."""
        if self.position is None:
            return self.index
        whole = torch.zeros(self.size, dtype=torch.int64, device=self.index.device)
        whole[self.position] = self.index
        # Every place has one owner, and all others add 0.
        dist.all_reduce(whole)
        return whole


def drawn_by_owner(index: Tensor, owned: range | None = None) -> Drawn:
    """Return the part of a whole batch, int64 `[B]`, whose images are in `owned`; the whole batch for None."""
    if owned is None:
        return Drawn(index=index, size=len(index))
    position = ((index >= owned.start) & (index < owned.stop)).nonzero().flatten()
    return Drawn(index=index[position], size=len(index), position=position)


class Background(Protocol):
    """Source of background mini-batches, which receives the losses of each batch.

    A batch may be drawn some steps before it is used; the loop calls `importance` and `observe` when it is used.
    """

    batch_size: int
    """Maximum number B of images in a batch, over all processes."""
    owned: range | None
    """Images that this process loads and no other does; None if each process can load every image."""

    def draw(self) -> Drawn:
        """Draw the next batch of the task's background."""
        ...

    def importance(self, index: Tensor) -> Tensor | None:
        """Return the importance float32 `[b]` of the images about to be used; None means 1 each."""
        ...

    def observe(self, index: Tensor, per_sample_loss: Tensor) -> None:
        """Receive the outlier losses, float32 `[b]`, of the images just used."""
        ...

    def scalars(self) -> dict[str, Tensor]:
        """Return numbers to plot in TensorBoard, float64 `[]`, on the device of the stage."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state from which `load_state_dict` resumes with the same draws."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state of `state_dict`."""
        ...


class SubsetBackground:
    """A fixed subset of the background, shuffled again after each pass.

    Every process draws the same batches of the whole subset. If the images are divided among the processes, each keeps
    the draws of its images: the batches do not depend on the number of processes.

    Args:
        index: The subset, ascending, n of at least 1 over all processes: a tensor int64 or a range, which takes no
            memory. With `owned` the part of the subset in it, which may be empty.
        batch_size: Images in a batch; a smaller subset is one batch.
        generator: Source of the order.
        owned: Images that this process loads; None if each process can load every image.
        counts: Number of images of the subset that each process owns, in the order of the ranks; only with `owned`.
        rank: Rank of this process; only with `owned`.
    """

    def __init__(
        self,
        index: Tensor | range,
        *,
        batch_size: int,
        generator: torch.Generator,
        owned: range | None = None,
        counts: Sequence[int] = (),
        rank: int = 0,
    ) -> None:
        self.index = index
        self.owned = owned
        self._before = sum(counts[:rank])
        self._stream = EpochStream(len(index) if owned is None else sum(counts), batch_size, generator)
        self.batch_size = self._stream.batch_size

    def draw(self) -> Drawn:
        """Draw the next batch of the pass."""
        place = self._stream.next()
        if self.owned is None:
            return drawn_by_owner(self._images(place))
        own = drawn_by_owner(place, range(self._before, self._before + len(self.index)))
        return replace(own, index=self._images(own.index - self._before))

    def _images(self, place: Tensor) -> Tensor:
        return place + self.index.start if isinstance(self.index, range) else self.index[place]

    def importance(self, index: Tensor) -> Tensor | None:
        """Return None: every image has an importance of 1."""
        return None

    def observe(self, index: Tensor, per_sample_loss: Tensor) -> None:
        """Ignore the losses: the subset is fixed."""

    def scalars(self) -> dict[str, Tensor]:
        """Return no numbers: a fixed subset has no state that changes."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the shuffled order."""
        return self._stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state of `state_dict`."""
        self._stream.load_state_dict(state)
