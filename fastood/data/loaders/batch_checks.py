"""Checks of batches and of the prefetch queue, shared by all loaders."""

import torch
from torch import Tensor

from fastood.data.images.augment import AugmentDraws


def check_depth(prefetch_depth: int) -> None:
    """Raise a ValueError if a prefetch depth is negative."""
    if prefetch_depth < 0:
        raise ValueError(f"prefetch_depth must be 0 or larger, got {prefetch_depth}")


def check_room(waiting: int, prefetch_depth: int) -> None:
    """Raise a RuntimeError if the queue of submitted batches is full."""
    if waiting > prefetch_depth:
        raise RuntimeError(f"{waiting} batches wait to be collected, as many as prefetch_depth {prefetch_depth} allows")


def check_waiting(waiting: int) -> None:
    """Raise a RuntimeError if no submitted batch waits to be collected."""
    if not waiting:
        raise RuntimeError("no batch waits to be collected: call submit first")


def check_batch(index: Tensor, draws: AugmentDraws, *, num_images: int, padding: int) -> None:
    """Check the indices and augmentations of a batch. Values on a GPU are not read, which would wait for it.

    Args:
        index: int64 `[B]`, the requested images.
        draws: Crops and flips of the B images.
        num_images: Number N of images of the loader.
        padding: Zero pixels on each side of an image before the crop.

    Raises:
        TypeError: If a dtype is wrong.
        ValueError: If a shape is wrong or a value is out of range.

    Example:
        >>> from fastood.data import Augment
        >>> draws = Augment().draw(1, height=32, generator=torch.Generator().manual_seed(0))
        >>> check_batch(torch.tensor([7]), draws, num_images=5, padding=4)
        Traceback (most recent call last):
        ...
        ValueError: index must be in 0…4, got 7
    """
    values_of = {"index": index, "draws.rows": draws.rows, "draws.columns": draws.columns, "draws.flip": draws.flip}
    if index.ndim != 1:
        raise ValueError(f"index must have shape [B], got {list(index.shape)}")
    for name, values in values_of.items():
        dtype = torch.bool if name == "draws.flip" else torch.int64
        if values.dtype != dtype:
            raise TypeError(f"{name} must be {str(dtype).removeprefix('torch.')}, got {values.dtype}")
        if values.shape != index.shape:
            raise ValueError(f"{name} must have shape [{len(index)}] as index, got {list(values.shape)}")
    for name, limit in (("index", num_images), ("draws.rows", 2 * padding + 1), ("draws.columns", 2 * padding + 1)):
        values = values_of[name]
        if values.is_cuda:
            continue  # `augment_images` makes the pixels of an index out of range NaN
        outside = values[(values < 0) | (values >= limit)]
        if len(outside):
            raise ValueError(f"{name} must be in 0…{limit - 1}, got {int(outside[0])}")
