"""Training batches requested ahead of the step that uses them, and requested again after a stop."""

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastood.data import Augment, AugmentDraws
from fastood.data.loaders import ImageLoader
from fastood.train.engine.background import Drawn, drawn_by_owner


class PrefetchedBatches:
    """Batches of a loader that is kept `prefetch_depth` batches ahead.

    The batch of step t is chosen and its crops are drawn at step t - depth, or at the first step: indices that depend
    on losses lag by the steps in between. Batches chosen and not used yet belong to the state.

    Args:
        loader: Loader of the images; closed by `close`.
        choose: Returns the next batch, or the part of it that this process loads.
        augment: Draws crops and flips.
        height: Rows of an image.
        generator: Source of crops and flips; belongs to this object from here on. They are always drawn for the whole
            batch, so that they do not depend on the number of processes.
        own: Returns the part of a whole batch, int64 `[B]`, that this process loads.
        begin: Row of the whole set that is the loader's first image.
    """

    def __init__(
        self,
        loader: ImageLoader,
        choose: Callable[[], Drawn],
        *,
        augment: Augment,
        height: int,
        generator: torch.Generator,
        own: Callable[[Tensor], Drawn] = drawn_by_owner,
        begin: int = 0,
    ) -> None:
        self.loader = loader
        self._own = own
        self._choose = choose
        self._augment = augment
        self._height = height
        self._generator = generator
        self._begin = begin
        self._pending: deque[tuple[Drawn, AugmentDraws]] = deque()
        self._submitted = 0

    def next(self) -> tuple[Drawn, Tensor | None]:
        """Return the step's batch, on the loader's device.

        Returns:
            The batch, and the images float32 `[b, C, H, W]` of this process's part; None if it has none.
        """
        while len(self._pending) <= self.loader.prefetch_depth:
            drawn = self._choose()
            draws = self._augment.draw(drawn.size, height=self._height, generator=self._generator)
            self._pending.append((drawn, draws))
        while self._submitted < len(self._pending):
            drawn, draws = self._pending[self._submitted]
            if len(drawn.index) > 0:
                self.loader.submit(
                    drawn.index - self._begin if self._begin else drawn.index, draws_of_part(draws, drawn)
                )
            self._submitted += 1
        drawn, _ = self._pending[0]
        images = self.loader.collect() if len(drawn.index) > 0 else None
        self._pending.popleft()
        self._submitted -= 1
        return drawn, images

    def close(self) -> None:
        """End the loader's processes and threads."""
        self.loader.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the generator, and the whole batches chosen for the next steps; every process must call it."""
        return {
            "generator": self._generator.get_state(),
            "pending": [
                # Copies: an index may be a view of all that a source drew at once.
                {
                    "index": drawn.whole_index().to("cpu", copy=True),
                    "rows": draws.rows,
                    "columns": draws.columns,
                    "flip": draws.flip,
                }
                for drawn, draws in self._pending
            ],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state of `state_dict`; must be called before the first `next`.

        Raises:
            ValueError: If the state holds another number of batches that were chosen ahead.
        """
        pending = state["pending"]
        if len(pending) != self.loader.prefetch_depth:
            raise ValueError(
                f"the checkpoint was written {len(pending)} batches ahead, got a loader of prefetch depth "
                f"{self.loader.prefetch_depth}"
            )
        self._generator.set_state(state["generator"])
        self._pending = deque(
            (
                self._own(batch["index"]),
                AugmentDraws(rows=batch["rows"], columns=batch["columns"], flip=batch["flip"]),
            )
            for batch in pending
        )


def draws_of_part(draws: AugmentDraws, drawn: Drawn) -> AugmentDraws:
    """Return the crops and flips of this process's part of a batch from those of the whole batch."""
    if drawn.position is None:
        return draws
    # Moved first: a position on a device cannot index a tensor on the host.
    place = drawn.position
    rows, columns, flip = (
        values.to(place.device, non_blocking=True)[place] for values in (draws.rows, draws.columns, draws.flip)
    )
    return AugmentDraws(rows=rows, columns=columns, flip=flip)
