"""Digests that identify images without decoding them: by names, sizes and contents of their files."""

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from torch import Tensor

from fastood.console.names import printable

READ_FILES = 10_000
"""Largest number of files whose contents are hashed; of a larger set all names and sizes are hashed as well."""


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


def digest_of_subset(digest: Callable[[], str] | None, index: Tensor) -> Callable[[], str] | None:
    """Return a digest of the selected images, or None if the source has none.

    Args:
        digest: Function that computes the digest of all images.
        index: int64 `[M]`, the selected images.
    """
    if digest is None:
        return None
    return lambda: hashlib.sha256(digest().encode() + index.contiguous().numpy().tobytes()).hexdigest()
