"""Loaders of training images, in memory and from JPEG files, compared with PyTorch's DataLoader with transforms.

A call asks for several batches and collects all of them, so that no provider's workers run in another's time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import Comparison, Run, compare
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from fastood.data import Augment
from fastood.data.loaders import EncodedImages, ImageLoader, LoaderName, LoaderPlan, open_loader
from fastood.data.loaders.choice import dali_installed

Record = Callable[[Comparison, Run], None]
SIZE, BATCH, BATCHES = 32, 128, 4
PEER_WORKERS = (1, 2)
AUGMENT = Augment(flip=True)
TRAINING = [
    v2.RandomCrop(SIZE, padding=4),
    v2.RandomHorizontalFlip(),
    v2.ToImage(),
    v2.ToDtype(torch.float32, scale=True),
    v2.Normalize([0.5] * 3, [0.25] * 3),
]


class Transformed(Dataset[Tensor]):
    """Data set of one image at a time, as users of torchvision write it."""

    def __init__(self, images: Sequence[str] | Tensor, transform: v2.Compose) -> None:
        self._images = images
        self._transform = transform

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> Tensor:
        chosen = self._images[index]
        image = chosen if isinstance(chosen, Tensor) else Image.open(chosen).convert("RGB")
        return self._transform(image)


def peers(dataset: Transformed, device: str) -> dict[str, Run]:
    """Return DataLoaders with several worker counts, with the indices of an epoch drawn with replacement."""

    def epoch(loader: DataLoader[Tensor]) -> Run:
        def run() -> None:
            for batch in loader:
                batch.to(device, non_blocking=True)

        return run

    def sampler() -> torch.utils.data.Sampler[int]:
        return torch.utils.data.RandomSampler(dataset, replacement=True, num_samples=BATCH * BATCHES)

    return {
        f"DataLoader x{workers}": epoch(
            DataLoader(
                dataset,
                BATCH,
                sampler=sampler(),
                num_workers=workers,
                persistent_workers=True,
                pin_memory=device == "cuda",
            )
        )
        for workers in PEER_WORKERS
    }


def served(name: LoaderName, images: Tensor | EncodedImages, device: str) -> Run:
    """Load batches with a loader of fastood; unless it is resident, all are requested before the first is collected."""
    depth = 0 if name == "resident" else BATCHES - 1
    plan = LoaderPlan(name=name, prefetch_depth=depth, reason="benchmark")
    loader: ImageLoader = open_loader(plan, images, AUGMENT, batch_size=BATCH, device=torch.device(device))
    generator = torch.Generator().manual_seed(0)

    def run() -> None:
        for batch in range(BATCHES + depth):
            if batch < BATCHES:
                index = torch.randint(len(images), (BATCH,), generator=generator)
                loader.submit(index, AUGMENT.draw(BATCH, height=SIZE, generator=generator))
            if batch >= depth:
                loader.collect()

    return run


def test_in_memory(device: str, budget: dict[str, float], record: Record) -> None:
    images = torch.randint(256, (50_000, 3, SIZE, SIZE), dtype=torch.uint8)
    ours = served("resident", images, device)
    providers = {"fastood, resident": ours, "fastood, dataloader": served("dataloader", images, device)}
    if dali_installed():
        providers["fastood, dali"] = served("dali", images, device)
    providers |= peers(Transformed(images, v2.Compose(TRAINING)), device)
    shape = f"{BATCHES} x {BATCH}x3x{SIZE}x{SIZE}"
    subject = "fastood, resident"
    record(compare("images in memory", shape, providers, subject=subject, device=device, **budget), ours)


@pytest.mark.parametrize(("height", "width"), [(64, 64), (375, 500)])
def test_jpeg_tree(
    height: int, width: int, device: str, budget: dict[str, float], record: Record, tmp_path: Path
) -> None:
    if not dali_installed():
        pytest.skip("NVIDIA DALI is not installed")
    paths = write_tree(tmp_path, count=256, height=height, width=width)
    images = EncodedImages(files=paths, size=SIZE, channels=3)
    ours = served("dali", images, device)
    fitted = v2.Compose([v2.Resize(SIZE, antialias=True), v2.CenterCrop(SIZE), *TRAINING])
    providers = {"fastood, dali": ours, "fastood, dataloader": served("dataloader", images, device)}
    providers |= peers(Transformed(paths, fitted), device)
    shape = f"{BATCHES} x {BATCH} of {height}x{width}"
    subject = "fastood, dali"
    record(compare("images from JPEG files", shape, providers, subject=subject, device=device, **budget), ours)


def write_tree(folder: Path, *, count: int, height: int, width: int) -> list[str]:
    """Write JPEG files of low-pass noise, which compresses about as well as photographs."""
    rng, paths = np.random.default_rng(0), []
    for number in range(count):
        coarse = rng.integers(0, 256, (height // 8 + 1, width // 8 + 1, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        paths.append(str(folder / f"{number}.jpg"))
        image.save(paths[-1], quality=90)
    return paths
