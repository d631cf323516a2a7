"""Protocol of all loaders: batches are submitted by indices and augmentations, and collected in order."""

from typing import Protocol

from torch import Tensor

from fastood.data.images.augment import AugmentDraws


class ImageLoader(Protocol):
    """Loader of augmented batches of one image set.

    A loader has no RNG: its caller chooses images and augmentations. Therefore all loaders return the same batches, and
    a run is resumed by submitting the uncollected batches again.
    """

    name: str
    """"resident", "dataloader" or "dali"."""
    prefetch_depth: int
    """Batches that may be submitted in addition to the one that is collected next; 0 decodes on collect.
    The sampler's weights lag by this many batches, at the beginning by fewer."""

    def submit(self, index: Tensor, draws: AugmentDraws) -> None:
        """Submit a batch.

        Args:
            index: int64 `[B]`, each 0…N-1, in any order, repeats allowed.
            draws: Crops and flips of the B images.

        Raises:
            RuntimeError: If `prefetch_depth` + 1 batches are waiting to be collected.
            TypeError: If an argument has the wrong dtype.
            ValueError: If an argument has the wrong shape, or a value is out of range.
        """
        ...

    def collect(self) -> Tensor:
        """Return the oldest submitted batch, float32 `[B, C, H, W]` on the loader's device.

        Raises:
            RuntimeError: If no batch is waiting.
            ValueError: If one of its images is unreadable.
        """
        ...

    def close(self) -> None:
        """End processes and threads, and drop waiting batches."""
        ...
