"""Files that are whole or absent."""

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO

from safetensors.torch import save as safetensors_bytes
from torch import Tensor


def write_atomically(path: Path, content: bytes | Callable[[IO[bytes]], object]) -> None:
    """Write a file so that a kill at any moment leaves the old one or the new one, never a part.

    Args:
        path: The file; its folder is made.
        content: The bytes, or a function that writes them into the open temporary file beside it.

    Raises:
        OSError: If the folder cannot be written; the old file is then untouched.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "note.txt"
        >>> write_atomically(path, b"whole")
        >>> path.read_text()
        'whole'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            if callable(content):
                content(file)
            else:
                file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors by name as one safetensors file, whole or not at all.

    Args:
        path: The file.
        tensors: By name.
        metadata: Words beside them, by name.

    Raises:
        OSError: If the folder cannot be written.
    """
    data = safetensors_bytes(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        None if metadata is None else dict(metadata),
    )
    write_atomically(path, data)
