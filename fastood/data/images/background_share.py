"""Slice of the background that one of several processes keeps."""

from collections.abc import Callable
from dataclasses import dataclass
from numbers import Integral

from torch import Tensor

from fastood.common.division import processes_with_rows, slice_rows


@dataclass(frozen=True, kw_only=True, eq=False)
class BackgroundShare:
    """Position of a slice in the whole background, with size, digest and counts of the whole.

    Example:
        >>> share = BackgroundShare(begin=4, size=7, digest=lambda: "…", group_counts=lambda: Tensor([7]))
        >>> share.begin, share.size
        (4, 7)
    """

    begin: int
    """Index of the slice's first image in the whole background."""
    size: int
    """Number N of images of the whole background."""
    digest: Callable[[], str]
    """Function that returns `ImageSet.sha256` of the whole background."""
    group_counts: Callable[[], Tensor]
    """Function that returns the number of images of each source in the whole background, int64."""


def slice_bounds(count: int, share: tuple[int, int]) -> tuple[int, int]:
    """Return the rows of a process, as `slice_rows` divides the images.

    Args:
        count: Number N of images of the background. Without images every slice is empty.
        share: Rank and number R of the processes, `0 <= rank < R`.

    Returns:
        Index of the first row, and index after the last one.

    Raises:
        TypeError: If `share` is not a pair of integers.
        ValueError: If the rank is out of range, or a process would have no image; then on every rank.

    Example:
        >>> [slice_bounds(10, (rank, 4)) for rank in range(4)]
        [(0, 3), (3, 6), (6, 9), (9, 10)]
        >>> slice_bounds(6, (0, 4))  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        ValueError: data.background must have images for each of the 4 processes, got 6 images, ...
    """
    numbers = isinstance(share, tuple) and len(share) == 2
    if not numbers or not all(isinstance(one, Integral) and not isinstance(one, bool) for one in share):
        raise TypeError(f"share must be a pair of integers, (rank, world_size), got {share!r}")
    rank, processes = map(int, share)
    if not 0 <= rank < processes:
        raise ValueError(f"share must be (rank, world_size) with 0 <= rank < world_size, got ({rank}, {processes})")
    rows, filled = slice_rows(count, rank, processes), processes_with_rows(count, processes)
    if 0 < filled < processes:
        size = len(slice_rows(count, 0, processes))
        raise ValueError(
            f"data.background must have images for each of the {processes} processes, got {count} images, in "
            f"slices of {size} for {filled} processes: start at most {filled}, or name a larger background"
        )
    return rows.start, rows.stop
