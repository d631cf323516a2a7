"""Batches of a stage: this process's part of the in-distribution and the background images of each step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fastood.common.seeding import named_generator
from fastood.common.transfer import to_device
from fastood.console.wording import some
from fastood.data import Images
from fastood.data.loaders import open_loader
from fastood.train.engine.background import Background, Drawn, drawn_by_owner
from fastood.train.engine.failure import StageFailedError
from fastood.train.engine.objective import Batch
from fastood.train.engine.prefetch import PrefetchedBatches
from fastood.train.engine.processes import require_equal_shares, share_of
from fastood.train.engine.stage import StageContext
from fastood.train.engine.stream import EpochStream


@dataclass(frozen=True)
class StepImages:
    """Images of a step, by index."""

    in_dist: Drawn
    """In-distribution images."""
    background: Drawn | None
    """Background images; None for a stage without background."""

    @property
    def id_count(self) -> int:
        """In-distribution images of this process; the first rows of its batch."""
        return len(self.in_dist.index)

    def describe(self) -> str:
        """Return the images of all processes in words; every process must call it."""
        drawn = [] if self.background is None else self.background.whole_index().tolist()
        return f"in-distribution images {some(self.in_dist.whole_index().tolist())}; background images {some(drawn)}"


class StageBatches:
    """Batches of in-distribution images and, if there is a background, of background images.

    Every process has an equal share of the in-distribution batch. It also has an equal share of the background batch
    or, if the processes divide the background, the images of its slice, whose losses are weighted by count. Indices and
    crops do not depend on the number of processes.

    Args:
        context: Images, device and seed of the run.
        name: Name of the stage, for errors.
        rng_name: Name of the RNG streams.
        id_index: In-distribution images to train on, int64 `[n]`.
        batch_size: In-distribution images in a batch, over all processes.
        background: Source of the background images; None for none.

    Raises:
        StageFailedError: If a batch cannot be divided into equal shares.
    """

    def __init__(
        self,
        context: StageContext,
        *,
        name: str,
        rng_name: str,
        id_index: Tensor,
        batch_size: int,
        background: Background | None,
    ) -> None:
        self._context, self._name, self._rng_name = context, name, rng_name
        self._id_index = id_index
        self.order = EpochStream(len(id_index), batch_size, named_generator(context.seed, rng_name, "order"))
        task = context.task
        self._in_dist = self._open(
            task.id_train.images, self._next_id, self._equal_share, self.order.batch_size, "augment-id"
        )
        self.background = background
        self._background = None
        if background is not None:
            owned = background.owned
            own = self._equal_share if owned is None else partial(drawn_by_owner, owned=owned)
            choose = background.draw if owned is not None else lambda: self._equal_share(background.draw().index)
            # Separate generators: stages with the same rng_name see the same pixels, regardless of their background.
            self._background = self._open(
                task.background.images, choose, own, background.batch_size, "augment-background", owned=owned
            )

    def _open(
        self,
        images: Images,
        choose: Callable[[], Drawn],
        own: Callable[[Tensor], Drawn],
        batch_size: int,
        rng_name: str,
        *,
        owned: range | None = None,
    ) -> PrefetchedBatches:
        context, processes = self._context, self._context.fabric.world_size
        if owned is None:
            try:
                require_equal_shares(f"the batch of stage {self._name!r}", batch_size, processes)
            except ValueError as error:
                # Only the number of images that learnt weights select cannot be checked before training.
                raise StageFailedError(str(error)) from None
        # A process may own all images of a batch.
        largest = batch_size // processes if owned is None else batch_size
        return PrefetchedBatches(
            open_loader(context.loading, images, context.augment, batch_size=largest, device=context.fabric.device),
            choose,
            augment=context.augment,
            height=images.shape[2],
            generator=named_generator(context.seed, self._rng_name, rng_name),
            own=own,
            begin=0 if owned is None else owned.start,
        )

    def _next_id(self) -> Drawn:
        return self._equal_share(self._id_index[self.order.next()])

    def _equal_share(self, index: Tensor) -> Drawn:
        """Return this process's part of a whole batch, int64 `[B]`; every process has as many images."""
        fabric = self._context.fabric
        if fabric.world_size == 1:
            return Drawn(index=index, size=len(index))
        position = share_of(torch.arange(len(index), device=index.device), fabric)
        return Drawn(index=index[position], size=len(index), position=position)

    def next(self) -> tuple[Batch, StepImages]:
        """Return this process's part of the next step's batch, on the device, and its images by index."""
        fabric = self._context.fabric
        drawn, pixels = self._in_dist.next()
        assert pixels is not None, "every process has an equal share of the in-distribution images"
        labels = to_device(self._context.task.id_train.labels[drawn.index], fabric.device)
        if self.background is None or self._background is None:
            return Batch(images=pixels, labels=labels, importance=None), StepImages(drawn, None)
        background, background_pixels = self._background.next()
        count = len(background.index)
        importance = self.background.importance(background.index)
        if self.background.owned is not None:
            # Losses are means over the images of a process. Weighted by count, their mean over the processes is the
            # mean over the whole batch.
            factor = count * fabric.world_size / background.size
            share = torch.full((count,), factor, device=fabric.device)
            importance = share if importance is None else importance * share
        if importance is not None:
            ones = torch.ones(len(labels), device=fabric.device)
            importance = torch.cat([ones, to_device(importance, fabric.device)])
        batch = Batch(
            images=pixels if background_pixels is None else torch.cat([pixels, background_pixels]),
            labels=torch.cat([labels, labels.new_full((count,), -1)]),
            importance=importance,
        )
        return batch, StepImages(drawn, background)

    def close(self) -> None:
        """End the processes and threads that load images."""
        for batches in (self._in_dist, self._background):
            if batches is not None:
                batches.close()

    def state_dict(self) -> dict[str, Any]:
        """Return the state from which `load_state_dict` resumes, with any number of processes; all must call it."""
        return {
            "order": self.order.state_dict(),
            "id_batches": self._in_dist.state_dict(),
            "background_batches": None if self._background is None else self._background.state_dict(),
            "background": None if self.background is None else self.background.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state of `state_dict`.

        Raises:
            ValueError: If the state was saved with another prefetch depth.
        """
        self.order.load_state_dict(state["order"])
        self._in_dist.load_state_dict(state["id_batches"])
        if self.background is not None and self._background is not None:
            self.background.load_state_dict(state["background"])
            self._background.load_state_dict(state["background_batches"])
