"""What every loader checks of a batch before it takes it on."""

import torch
from torch import Tensor

from fastood.data.images.augment import AugmentDraws


def check_depth(prefetch_depth: int) -> None:
    """Refuse a depth below 0 with a ValueError."""
    if prefetch_depth < 0:
        raise ValueError(f"prefetch_depth must be 0 or larger, got {prefetch_depth}")


def check_room(waiting: int, prefetch_depth: int) -> None:
    """Refuse a batch more than may wait, with a RuntimeError."""
    if waiting > prefetch_depth:
        raise RuntimeError(f"{waiting} batches wait to be collected, as many as prefetch_depth {prefetch_depth} allows")


def check_waiting(waiting: int) -> None:
    """Refuse to collect what was never asked for, with a RuntimeError."""
    if not waiting:
        raise RuntimeError("no batch waits to be collected: submit comes first")


def check_batch(index: Tensor, draws: AugmentDraws, *, num_images: int, padding: int) -> None:
    """Refuse a batch that no loader could serve.

    Args:
        index: Images asked for.
        draws: Their crops and flips.
        num_images: N of the set.
        padding: Zero pixels around its images.

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
    given = {"index": index, "draws.rows": draws.rows, "draws.columns": draws.columns, "draws.flip": draws.flip}
    if index.ndim != 1:
        raise ValueError(f"index must have shape [B], got {list(index.shape)}")
    for name, values in given.items():
        wanted = torch.bool if name == "draws.flip" else torch.int64
        if values.dtype != wanted:
            raise TypeError(f"{name} must be {str(wanted).removeprefix('torch.')}, got {values.dtype}")
        if values.shape != index.shape:
            raise ValueError(f"{name} must have shape [{len(index)}] as index, got {list(values.shape)}")
    for name, limit in (("index", num_images), ("draws.rows", 2 * padding + 1), ("draws.columns", 2 * padding + 1)):
        outside = given[name][(given[name] < 0) | (given[name] >= limit)]
        if len(outside):
            raise ValueError(f"{name} must be in 0…{limit - 1}, got {int(outside[0])}")
