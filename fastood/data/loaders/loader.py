"""What every loader is: batches asked for by index and draws, collected in the order asked."""

from typing import Protocol

from torch import Tensor

from fastood.data.images.augment import AugmentDraws


class ImageLoader(Protocol):
    """Serves augmented batches of one image set.

    A loader holds no randomness: its caller chooses images and draws. So all loaders give the same batches, and a run
    that was stopped goes on by asking again for what had not been collected.
    """

    name: str
    """"resident", "dataloader" or "dali"."""
    prefetch_depth: int
    """Batches that may be asked for before the first of them is collected, beside that one; 0 decodes on collect.
    Whatever chose the indices of a batch knows nothing of the losses of so many batches before it."""

    def submit(self, index: Tensor, draws: AugmentDraws) -> None:
        """Ask for a batch.

        Args:
            index: int64 `[B]`, each 0…N-1, in any order, repeats allowed.
            draws: Crops and flips of these B images.

        Raises:
            RuntimeError: If `prefetch_depth` + 1 batches are waiting to be collected.
            TypeError: If an argument has the wrong dtype.
            ValueError: If an argument has the wrong shape, or a value is out of range.
        """
        ...

    def collect(self) -> Tensor:
        """The oldest batch asked for, float32 `[B, C, H, W]` on the loader's device.

        Raises:
            RuntimeError: If none is waiting.
            ValueError: If one of its images cannot be read.
        """
        ...

    def close(self) -> None:
        """End processes and threads, and forget what is waiting."""
        ...
