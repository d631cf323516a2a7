"""Labels and sources of images, int64 `[N]`: constant ones take 8 bytes, others are read in chunks."""

from collections.abc import Iterator

import torch
from torch import Tensor

_CHUNK = 1 << 17


def constant_rows(value: int, count: int) -> Tensor:
    """Return one value for every image, of which a single number is stored.

    Args:
        value: The value.
        count: Number N of images.

    Returns:
        int64 `[N]`, expanded: it must not be written to.

    Example:
        >>> labels = constant_rows(-1, 10**9)
        >>> labels.shape, labels[10**8].item(), labels.untyped_storage().nbytes()
        (torch.Size([1000000000]), -1, 8)
    """
    return torch.full((), value, dtype=torch.int64).expand(count)


def is_constant(values: Tensor) -> bool:
    """Return whether values are stored as a single number."""
    return values.stride() == (0,)


def take_rows(values: Tensor, index: Tensor) -> Tensor:
    """Return selected values; constant ones stay a single number.

    Args:
        values: int64 `[N]`.
        index: int64 `[M]`, each 0…N-1.

    Returns:
        int64 `[M]`.

    Example:
        >>> take_rows(torch.tensor([5, 6]), torch.tensor([1, 0])).tolist()
        [6, 5]
    """
    return values.as_strided((len(index),), (0,)) if is_constant(values) else values[index]


def row_chunks(values: Tensor) -> Iterator[Tensor]:
    """Split values into chunks of bounded memory, each contiguous.

    Args:
        values: int64 `[N]`.

    Yields:
        int64, at most 1 MiB.
    """
    chunk = torch.empty(0, dtype=torch.int64)
    for part in torch.split(values, _CHUNK):
        # Chunks of a constant are equal: one is filled.
        if not is_constant(values) or len(chunk) != len(part):
            chunk = part.contiguous()
        yield chunk


def count_rows(values: Tensor, *, minlength: int) -> Tensor:
    """Count how often each value occurs.

    Args:
        values: int64 `[N]`, each 0…minlength-1.
        minlength: Number K of possible values.

    Returns:
        int64 `[K]`.

    Example:
        >>> count_rows(constant_rows(1, 10**9), minlength=2).tolist()
        [0, 1000000000]
    """
    counts = torch.zeros(minlength, dtype=torch.int64)
    if is_constant(values) and len(values):
        counts[values[0]] = len(values)
        return counts
    for chunk in row_chunks(values):
        counts += torch.bincount(chunk, minlength=minlength)
    return counts


def check_range(name: str, field: str, values: Tensor, low: int, high: int) -> None:
    """Check that values are in [low, high).

    Args:
        name: Name of the set, for the error.
        field: Name of the values, for the error.
        values: int64 `[N]`.
        low: Smallest allowed value.
        high: Largest allowed value plus 1.

    Raises:
        ValueError: If a value is out of range; the first one is named.
    """
    for chunk in row_chunks(values[:1] if is_constant(values) else values):
        outside = chunk[(chunk < low) | (chunk >= high)]
        if len(outside):
            expected = f"in {low}…{high - 1}" if high > low + 1 else str(low)
            raise ValueError(f"{name}: {field} must be {expected}, got {int(outside[0])}")
