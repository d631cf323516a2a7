"""Atomic writes: a file is complete or absent."""

import errno
import os
import secrets
import shutil
from collections.abc import Callable, Mapping
from glob import escape
from io import RawIOBase
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["NO_ROOM", "remove_temporaries", "save_tensors", "write_atomically"]

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a full disk, an exhausted quota, and a file at its size limit."""


def write_atomically(path: Path, content: bytes | Callable[[IO[bytes]], object]) -> None:
    """Write a file so that a kill at any time leaves the complete old or the complete new one.

    The temporary file in the same folder has a unique name, `.NAME.….tmp`. `remove_temporaries` removes temporary files
    that killed processes have left.

    Args:
        path: The file; its folder is created.
        content: Bytes, or a function that writes them to the open temporary file.

    Raises:
        OSError: If the folder cannot be written or the disk is full. The error names the file and, for a full disk, the
            bytes that are needed and free. The old file is then unchanged.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "note.txt"
        >>> write_atomically(path, b"whole")
        >>> path.read_text()
        'whole'
    """
    write = content if callable(content) else lambda file: file.write(content)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Exclusive creation: overwrite neither a file of another process nor the target of a symbolic link.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        try:
            with os.fdopen(descriptor, "wb") as file:
                recorded = _RecordedErrors(file)
                try:
                    write(recorded)  # type: ignore[arg-type]
                except RuntimeError:
                    # PyTorch's writer hides the error of a full disk behind "unexpected pos".
                    if recorded.error is not None:
                        raise recorded.error from None
                    raise
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise _explained(error, path, write) from error


class _RecordedErrors:
    """Open file that records the first error of a write."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


class _Counter(RawIOBase):
    """File that discards all data and counts the bytes."""

    def __init__(self) -> None:
        self.length = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self.length += size
        return size


def _explained(error: OSError, path: Path, write: Callable[[Any], object]) -> OSError:
    """Return `error` with a message that names the file and, for a full disk, the bytes needed and free."""
    reason = f"cannot write {path}: {error.strerror or error}"
    if error.errno in NO_ROOM:
        counter = _Counter()
        write(counter)
        reason += f"; {counter.length:,} bytes are needed, {shutil.disk_usage(path.parent).free:,} are free"
    return OSError(error.errno, reason)


def remove_temporaries(folder: Path, *names: str) -> None:
    """Remove temporary files that killed processes have left. Call it only while holding the lock of the folder.

    Args:
        folder: The folder.
        names: Names of the intended files in this folder; by default all, also in subfolders.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / ".note.txt.0f3a.tmp").touch()
        >>> remove_temporaries(folder, "note.txt")
        >>> list(folder.iterdir())
        []
    """
    patterns = [f".{escape(name)}{middle}.tmp" for name in names for middle in ("", ".*")]
    paths = [path for pattern in patterns for path in folder.glob(pattern)] if names else folder.rglob(".*.tmp")
    for path in list(paths):
        path.unlink(missing_ok=True)


def save_tensors(path: Path, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors to a safetensors file, atomically.

    Args:
        path: The file; its folder is created.
        tensors: Tensors by name.
        metadata: Strings by name, stored in the header; None for none.

    Raises:
        OSError: If the folder cannot be written or the disk is full.
    """
    from safetensors.torch import save

    data = save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        None if metadata is None else dict(metadata),
    )
    write_atomically(path, data)
