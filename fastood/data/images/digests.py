"""Knowing images again without decoding them: by their files' names, sizes and contents."""

import hashlib
import math
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

from torch import Tensor

from fastood.console.names import printable

READ_FILES = 10_000
"""A set of more files is known by all their names and sizes, and by the contents of at most so many of them."""


def digest_of_files(files: Sequence[str]) -> Callable[[], str]:
    """How to hash image files: computed when first asked for, and once.

    A tree may move as a whole: names count from the folder that all files share.

    Args:
        files: Paths.

    Returns:
        Gives the SHA-256 in hexadecimal; raises ValueError, naming the file, if one cannot be read.

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
        # By characters, and cut at a folder: commonpath refuses a list that mixes relative and absolute paths.
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
    """The same for the images at int64 `index` [M]; None of None."""
    if digest is None:
        return None
    return lambda: hashlib.sha256(digest().encode() + index.contiguous().numpy().tobytes()).hexdigest()
