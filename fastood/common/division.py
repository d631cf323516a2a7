"""Division of rows among processes: slices of equal length, as `torch.chunk` and DTensors cut them."""

from __future__ import annotations

__all__ = ["processes_with_rows", "slice_rows"]


def slice_rows(count: int, rank: int, processes: int) -> range:
    """Return the rows of a process: `ceil(N / R)` each, the last ones fewer or none.

    `torch.chunk` and `Shard(0)` of a DTensor cut alike.

    Args:
        count: Number N of rows, at least 0.
        rank: Rank of the process, in `0 … processes - 1`.
        processes: Number R of processes, at least 1.

    Example:
        >>> [slice_rows(10, rank, 4) for rank in range(4)]
        [range(0, 3), range(3, 6), range(6, 9), range(9, 10)]
        >>> [len(slice_rows(6, rank, 4)) for rank in range(4)]
        [2, 2, 2, 0]
    """
    size = -(-count // processes)
    return range(min(rank * size, count), min((rank + 1) * size, count))


def processes_with_rows(count: int, processes: int) -> int:
    """Return the number of processes that `slice_rows` gives a row.

    Args:
        count: Number N of rows, at least 0.
        processes: Number R of processes, at least 1.

    Example:
        >>> processes_with_rows(10, 4), processes_with_rows(6, 4), processes_with_rows(0, 4)
        (4, 3, 0)
    """
    return 0 if count == 0 else -(-count // len(slice_rows(count, 0, processes)))
