"""Loader of images that stay on the device: a batch is one fused gather, crop, flip and normalisation."""

from collections import deque

import torch
from torch import Tensor

from fastood.data.images.augment import Augment, AugmentDraws
from fastood.data.loaders.batch_checks import check_batch, check_depth, check_room, check_waiting


class ResidentLoader:
    """Loader of images in the memory of the training device.

    Args:
        images: uint8 `[N, C, H, W]`; copied to the device once. On the CPU it may be mapped from a file.
        augment: Augmentation and normalisation of the images.
        device: Device of the batches.
        prefetch_depth: Batches prepared ahead, 0 or larger; see `ImageLoader`. Values above 0 bring no speed; they are
            for resuming a run of another loader.

    Example:
        >>> augment = Augment()
        >>> loader = ResidentLoader(torch.zeros(5, 1, 8, 8, dtype=torch.uint8), augment, device=torch.device("cpu"))
        >>> loader.submit(torch.tensor([4, 0]), augment.draw(2, height=8, generator=torch.Generator()))
        >>> loader.collect().shape
        torch.Size([2, 1, 8, 8])
    """

    name = "resident"

    def __init__(self, images: Tensor, augment: Augment, *, device: torch.device, prefetch_depth: int = 0) -> None:
        check_depth(prefetch_depth)
        self.prefetch_depth = prefetch_depth
        self._images = images.to(device)
        self._augment = augment
        self._waiting: deque[tuple[Tensor, AugmentDraws]] = deque()

    def submit(self, index: Tensor, draws: AugmentDraws) -> None:
        """Queue a batch."""
        check_room(len(self._waiting), self.prefetch_depth)
        padding = self._augment.padding_of(self._images.shape[2])
        check_batch(index, draws, num_images=len(self._images), padding=padding)
        self._waiting.append((index, draws))

    def collect(self) -> Tensor:
        """Compute the oldest batch."""
        check_waiting(len(self._waiting))
        return self._augment.apply(self._images, *self._waiting.popleft())

    def close(self) -> None:
        """Drop waiting batches."""
        self._waiting.clear()
