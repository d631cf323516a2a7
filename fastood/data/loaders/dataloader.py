"""Loader by PyTorch's DataLoader: worker processes read and decode ahead, the device augments."""

import gc
import multiprocessing
import multiprocessing.queues
import queue
import signal
import sys
from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from fastood.data.images.augment import Augment, AugmentDraws
from fastood.data.images.encoded import EncodedImages, decoded_images
from fastood.data.loaders.batch_checks import check_batch, check_depth, check_room, check_waiting

# A forked worker shares the images; a spawned one would receive a copy. Other systems keep their default.
_START_METHOD = "fork" if sys.platform == "linux" else None
# Interval in seconds at which a waiting worker checks that the training process is alive.
_PARENT_CHECK_S = 2.0


class WorkerLoader:
    """Loader of images that worker processes read ahead of time.

    Workers return uint8 images of one size; the device crops, flips and normalises them by `Augment.apply`. Only a
    quarter of the bytes pass between processes, and batches equal those of `ResidentLoader` bit for bit.

    Args:
        images: uint8 `[N, C, H, W]`, in memory or mapped from a file, or encoded images.
        augment: Augmentation and normalisation of the images.
        device: Device of the batches.
        prefetch_depth: Batches prepared ahead, 0 or larger; see `ImageLoader`. With fewer than `workers` some are idle.
        workers: Number of worker processes, at least 1; they live until `close`.

    Example:
        >>> augment = Augment()
        >>> images = torch.zeros(5, 1, 8, 8, dtype=torch.uint8)
        >>> loader = WorkerLoader(images, augment, device=torch.device("cpu"), prefetch_depth=1, workers=1)
        >>> loader.submit(torch.tensor([4, 0]), augment.draw(2, height=8, generator=torch.Generator()))
        >>> loader.collect().shape
        torch.Size([2, 1, 8, 8])
        >>> loader.close()
    """

    name = "dataloader"

    def __init__(
        self,
        images: Tensor | EncodedImages,
        augment: Augment,
        *,
        device: torch.device,
        prefetch_depth: int = 2,
        workers: int = 2,
    ) -> None:
        check_depth(prefetch_depth)
        if workers < 1:
            raise ValueError(f"workers must be at least 1, got {workers}")
        self.prefetch_depth = prefetch_depth
        self._num_images = len(images)
        self._augment = augment
        self._padding = augment.padding_of(images.size if isinstance(images, EncodedImages) else images.shape[2])
        self._device = device
        self._waiting: deque[tuple[int, AugmentDraws]] = deque()
        self._submitted = 0
        context = multiprocessing.get_context(_START_METHOD)
        # A queue per worker: DataLoader collects from its W workers in turn, batch k from worker k mod W.
        self._orders: list[multiprocessing.queues.Queue[list[int] | None]] = [context.Queue() for _ in range(workers)]
        reader = DataLoader(
            _OrderedImages(images, self._orders),
            batch_size=None,
            num_workers=workers,
            # Batches that a worker may decode before its first one is collected; further orders wait in its queue.
            prefetch_factor=prefetch_depth // workers + 1,
            multiprocessing_context=context,
            pin_memory=device.type == "cuda",
            worker_init_fn=_ignore_interrupt,
            # Otherwise seeding the workers would draw from the global RNG, which dropout uses.
            generator=torch.Generator(),
        )
        # A worker must not collect garbage of this process: a DALI pipeline has no threads in the worker and crashes.
        gc.collect()
        gc.freeze()
        try:
            self._batches: Iterator[Tensor | str] = iter(reader)
        finally:
            gc.unfreeze()

    def submit(self, index: Tensor, draws: AugmentDraws) -> None:
        """Send the indices of a batch to the next worker."""
        check_room(len(self._waiting), self.prefetch_depth)
        check_batch(index, draws, num_images=self._num_images, padding=self._padding)
        self._orders[self._submitted % len(self._orders)].put(index.tolist())
        self._submitted += 1
        self._waiting.append((len(index), draws))

    def collect(self) -> Tensor:
        """Wait for the oldest batch, and augment it on the device."""
        check_waiting(len(self._waiting))
        count, draws = self._waiting.popleft()
        batch = next(self._batches)
        if isinstance(batch, str):
            raise ValueError(batch)
        images = batch.to(self._device, non_blocking=True)
        return self._augment.apply(images, torch.arange(count, device=self._device), draws)

    def close(self) -> None:
        """End the worker processes."""
        self._waiting.clear()
        for order in self._orders:
            order.put(None)
            order.close()
        self._orders = []
        # DataLoader joins its workers when its iterator is deleted.
        self._batches = iter(())


class _OrderedImages(IterableDataset[Tensor | str]):
    """Batches that a worker reads in the order of its queue, until the queue holds None.

    A batch with an unreadable image is replaced by the error message, since a raised error would carry the worker's
    traceback.
    """

    def __init__(
        self, images: Tensor | EncodedImages, orders: "list[multiprocessing.queues.Queue[list[int] | None]]"
    ) -> None:
        self._images = images
        self._orders = orders

    def __iter__(self) -> Iterator[Tensor | str]:
        worker = get_worker_info()
        assert worker is not None, "only worker processes may iterate"
        while (order := _wait_for_order(self._orders[worker.id])) is not None:
            index = torch.tensor(order, dtype=torch.int64)
            try:
                batch: Tensor | str = decoded_images(self._images, index)
            except ValueError as error:
                batch = str(error)
            yield batch


def _wait_for_order(orders: "multiprocessing.queues.Queue[list[int] | None]") -> list[int] | None:
    parent = multiprocessing.parent_process()
    while parent is not None and parent.is_alive():
        try:
            return orders.get(timeout=_PARENT_CHECK_S)
        except queue.Empty:
            continue
    return None


def _ignore_interrupt(worker: int) -> None:
    """Ignore Ctrl-C in a worker, as the training process still finishes its step."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
