"""What the tests of image loaders share: the loaders by name, images and batches."""

import pytest
import torch

from fastood.data import Augment, AugmentDraws
from fastood.data.loaders import EncodedImages, ImageLoader, LoaderName, LoaderPlan, open_loader
from fastood.data.loaders.choice import dali_installed

CPU = torch.device("cpu")
NEEDS_DALI = pytest.mark.skipif(not dali_installed(), reason="NVIDIA DALI is not installed")
EVERY_LOADER = pytest.mark.parametrize("name", ["resident", "dataloader", pytest.param("dali", marks=NEEDS_DALI)])
AUGMENT = Augment(flip=True)


def random_images(count: int = 50, channels: int = 3, height: int = 16, width: int = 16) -> torch.Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def open_named(
    name: LoaderName, images: torch.Tensor | EncodedImages, *, depth: int = 0, batch_size: int = 16
) -> ImageLoader:
    plan = LoaderPlan(name=name, prefetch_depth=depth, reason="tested")
    return open_loader(plan, images, AUGMENT, batch_size=batch_size, device=CPU)


def draw_batch(
    size: int, generator: torch.Generator, *, count: int = 50, height: int = 16
) -> tuple[torch.Tensor, AugmentDraws]:
    index = torch.randint(count, (size,), generator=generator)
    return index, AUGMENT.draw(size, height=height, generator=generator)
