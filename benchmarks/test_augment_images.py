"""Training batches from a pool in memory, compared with eager PyTorch and torchvision in a DataLoader."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import pytest
import torch
from harness import Comparison, compare, floor
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from fastood.data import Augment, AugmentDraws

POOL, CHANNELS, SIZE, PADDING = 100_000, 3, 32, 4
MEAN, STD = 0.5, 0.25
# Batches of a call: a DataLoader keeps its workers between calls, but has to fill its queue in each.
BATCHES = 16
WORKERS = [0, 1, 2, 3]


class TransformedPool(Dataset[Tensor]):
    """Images with torchvision transforms, one at a time, as recipes for CIFAR have them."""

    def __init__(self, images: Tensor) -> None:
        self.images = images
        self.transform = v2.Compose(
            [
                v2.RandomCrop(SIZE, padding=PADDING),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize([MEAN] * CHANNELS, [STD] * CHANNELS),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(self.images[index])


class RandomBatches:
    """Batch sampler of random indices, which differ between epochs."""

    def __init__(self, batch: int) -> None:
        self.batch, self.generator = batch, torch.Generator().manual_seed(0)

    def __len__(self) -> int:
        return BATCHES

    def __iter__(self) -> Iterator[list[int]]:
        for _ in range(BATCHES):
            yield torch.randint(POOL, (self.batch,), generator=self.generator).tolist()


def eager_batch(images: Tensor, index: Tensor, draws: AugmentDraws, *, padding: int) -> Tensor:
    """Augment the whole batch at once in PyTorch, by indexing."""
    padded = torch.nn.functional.pad(images[index], (padding,) * 4)
    size = images.shape[-1]
    along = torch.arange(size, device=images.device)
    rows = draws.rows[:, None] + along
    columns = draws.columns[:, None] + torch.where(draws.flip[:, None], size - 1 - along, along)
    image = torch.arange(len(index), device=images.device)[:, None, None, None]
    channel = torch.arange(CHANNELS, device=images.device)[:, None, None]
    crops = padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]
    return (crops.float() / 255 - MEAN) / STD


@pytest.mark.parametrize("batch", [128, 512])
def test_batches_of_a_pool(
    batch: int,
    device: str,
    budget: dict[str, float],
    record: Callable[[Comparison, Callable[[], object]], None],
) -> None:
    generator = torch.Generator(device).manual_seed(0)
    on_host = torch.randint(256, (POOL, CHANNELS, SIZE, SIZE), dtype=torch.uint8)
    images = on_host.to(device)
    augment = Augment(padding=PADDING, flip=True)

    def with_draws(make: Callable[[Tensor, Tensor, AugmentDraws], Tensor]) -> Callable[[], None]:
        def run() -> None:
            for _ in range(BATCHES):
                index = torch.randint(POOL, (batch,), generator=generator, device=device)
                make(images, index, augment.draw(batch, height=SIZE, generator=generator))

        return run

    def from_workers(num_workers: int) -> Callable[[], None]:
        loader = DataLoader(
            TransformedPool(on_host),
            batch_sampler=RandomBatches(batch),
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=device == "cuda",
        )

        def run() -> None:
            for augmented in loader:
                augmented.to(device, non_blocking=True)

        return run

    providers = {
        "fastood": with_draws(augment.apply),
        "eager": with_draws(functools.partial(eager_batch, padding=PADDING)),
        **{f"DataLoader, {count} workers": from_workers(count) for count in WORKERS},
    }
    # Per pixel one byte read and four written.
    seconds, floor_is = floor(device, 5 * BATCHES * batch * CHANNELS * SIZE * SIZE, 0)
    comparison = compare(
        "augmented batches of a pool",
        f"{BATCHES} of {batch}x{CHANNELS}x{SIZE}x{SIZE}",
        providers,
        subject="fastood",
        device=device,
        floor=seconds,
        floor_is=f"five bytes a pixel: {floor_is}",
        **budget,
    )
    record(comparison, providers["fastood"])
