"""Digests that identify images without decoding them: by names, sizes and contents of their files."""

import hashlib
import math
import os
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from fastood.console.names import printable
from fastood.data.images.row_values import row_chunks

READ_FILES = 10_000
"""Largest number of files whose contents are hashed; of a larger set all names and sizes are hashed as well."""
HASHED_ROWS = 1 << 24
"""Largest number of labels and sources that are hashed where the digest of the images covers them."""

_RANGE_CHUNK = 1 << 17


def digest_of_files(files: Sequence[str]) -> Callable[[], str]:
    """Return a function that computes a digest of image files on its first call.

    Names are relative to the folder that all files share, so that a tree may be moved as a whole.

    Args:
        files: Paths.

    Returns:
        Function that returns the SHA-256 in hexadecimal. It raises a ValueError that names the file if one cannot be
        read.

    Example:
        >>> import tempfile
        >>> tree, moved = Path(tempfile.mkdtemp()), Path(tempfile.mkdtemp())
        >>> for folder in (tree, moved):
        ...     _ = (folder / "a.jpg").write_bytes(b"a"), (folder / "b.jpg").write_bytes(b"b")
        >>> first, second = (digest_of_files([f"{folder}/a.jpg", f"{folder}/b.jpg"])() for folder in (tree, moved))
        >>> first == second
        True
    """

    @cache
    def digest() -> str:
        # By characters, cut at a folder: commonpath raises an error if relative and absolute paths are mixed.
        prefix = os.path.commonprefix(files).rpartition(os.sep)[0]  # noqa: RUF071
        every = max(1, math.ceil(len(files) / READ_FILES))
        whole = hashlib.sha256()
        for place, file in enumerate(files):
            try:
                content = Path(file).read_bytes() if place % every == 0 else b""
                size = os.stat(file).st_size  # noqa: PTH116, for a million of files
            except OSError as error:
                raise ValueError(f"unreadable image {printable(file)}: {error.strerror}") from error
            whole.update(f"{file.removeprefix(prefix)}\0{size}\0".encode("utf-8", "surrogateescape"))
            whole.update(content)
        return whole.hexdigest()

    return digest


def digest_of_subset(digest: Callable[[], str] | None, index: Tensor | range) -> Callable[[], str] | None:
    """Return a digest of the selected images, or None if the source has none.

    Args:
        digest: Function that computes the digest of all images.
        index: int64 `[M]`, the selected images, or a range of them, which has the digest of the same numbers in a
            tensor.
    """
    if digest is None:
        return None

    def of_subset() -> str:
        whole = hashlib.sha256(digest().encode())
        if isinstance(index, range):
            starts = range(0, len(index), _RANGE_CHUNK)
            parts: Iterable[Tensor] = (as_tensor(index[start : start + _RANGE_CHUNK]) for start in starts)
        else:
            parts = row_chunks(index)
        for part in parts:
            whole.update(part.numpy().data)
        return whole.hexdigest()

    return of_subset


def as_tensor(index: Tensor | range) -> Tensor:
    """Return indices as int64 `[M]`."""
    if isinstance(index, range):
        return torch.arange(index.start, index.stop, index.step)
    return index


def digest_of_set(
    shape: Sequence[int], images: str | Iterable[Tensor], rows: Sequence[Tensor], *, covers_rows: bool = False
) -> str:
    """Return the SHA-256 of a set of images with their labels and sources.

    Args:
        shape: N, C, H and W.
        images: Digest of the images, or their pixels in order, uint8 `[n, C, H, W]` each.
        rows: Labels and sources, int64 `[N]` each; hashed in chunks.
        covers_rows: Whether the digest of the images depends on labels and sources. They are then left out if there
            are more than 2²⁴, so that the time does not grow with N; smaller sets keep the SHA-256 of earlier versions.

    Returns:
        The SHA-256 in hexadecimal.
    """
    whole = hashlib.sha256(str(tuple(shape)).encode())
    if isinstance(images, str):
        whole.update(images.encode())
    else:
        for chunk in images:
            whole.update(chunk.contiguous().numpy().data)
    if not covers_rows or shape[0] <= HASHED_ROWS:
        for values in rows:
            for part in row_chunks(values):
                whole.update(part.numpy().data)
    return whole.hexdigest()
