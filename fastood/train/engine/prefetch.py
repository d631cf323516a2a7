"""Training batches requested ahead of the step that uses them, and requested again after a stop."""

from collections import deque
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastood.data import Augment, AugmentDraws
from fastood.data.loaders import ImageLoader


class PrefetchedBatches:
    """Batches of a loader that is kept `prefetch_depth` batches ahead.

    The batch of step t is chosen and its crops are drawn at step t - depth, or at the first step: indices that depend
    on losses lag by the steps in between. Batches chosen and not used yet belong to the state.

    Args:
        loader: Loader of the images; closed by `close`.
        choose: Returns the indices of the next batch, int64 `[B]`.
        augment: Draws crops and flips.
        height: Rows of an image.
        generator: Source of crops and flips; belongs to this object from here on.
        share: Selects the part of a batch that this process loads; indices and crops are always drawn for the whole.
    """

    def __init__(
        self,
        loader: ImageLoader,
        choose: Callable[[], Tensor],
        *,
        augment: Augment,
        height: int,
        generator: torch.Generator,
        share: Callable[[Tensor], Tensor] = lambda whole: whole,
    ) -> None:
        self.loader = loader
        self._share = share
        self._choose = choose
        self._augment = augment
        self._height = height
        self._generator = generator
        self._pending: deque[tuple[Tensor, AugmentDraws]] = deque()
        self._submitted = 0

    def next(self) -> tuple[Tensor, Tensor]:
        """Return the step's batch, on the loader's device.

        Returns:
            Indices int64 `[B]` of the whole batch, and images float32 `[b, C, H, W]` of this process's share.
        """
        while len(self._pending) <= self.loader.prefetch_depth:
            index = self._choose()
            draws = self._augment.draw(len(index), height=self._height, generator=self._generator)
            self._pending.append((index, draws))
        while self._submitted < len(self._pending):
            index, draws = self._pending[self._submitted]
            mine = AugmentDraws(
                rows=self._share(draws.rows), columns=self._share(draws.columns), flip=self._share(draws.flip)
            )
            self.loader.submit(self._share(index), mine)
            self._submitted += 1
        images = self.loader.collect()
        index, _ = self._pending.popleft()
        self._submitted -= 1
        return index, images

    def close(self) -> None:
        """End the loader's processes and threads."""
        self.loader.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the generator, and the batches chosen for the next steps."""
        return {
            "generator": self._generator.get_state(),
            "pending": [
                # Copies: an index may be a view of all that a source drew at once.
                {"index": index.clone(), "rows": draws.rows, "columns": draws.columns, "flip": draws.flip}
                for index, draws in self._pending
            ],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state of `state_dict`; must be called before the first `next`.

        Raises:
            ValueError: If the state holds another number of batches chosen ahead.
        """
        pending = state["pending"]
        if len(pending) != self.loader.prefetch_depth:
            raise ValueError(
                f"the checkpoint was written {len(pending)} batches ahead, got a loader of prefetch depth "
                f"{self.loader.prefetch_depth}"
            )
        self._generator.set_state(state["generator"])
        self._pending = deque(
            (batch["index"], AugmentDraws(rows=batch["rows"], columns=batch["columns"], flip=batch["flip"]))
            for batch in pending
        )
