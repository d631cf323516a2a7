"""Files that are whole or absent."""

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

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of a full disk, of a quota that is used up, and of a file that may grow no further."""


def write_atomically(path: Path, content: bytes | Callable[[IO[bytes]], object]) -> None:
    """Write a file so that a kill at any moment leaves the old one or the new one, never a part.

    The temporary file beside it has a name that no other process chooses, `.NAME.….tmp`; `remove_temporaries` clears
    away what kills have left.

    Args:
        path: The file; its folder is made.
        content: The bytes, or a function that writes them into the open temporary file.

    Raises:
        OSError: If the folder cannot be written or is full, naming the file and, if it is full, the bytes that are
            needed and free; the old file is then untouched.

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
        # Exclusive: neither another process's file nor the target of a link that lies there.
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o666)
        try:
            with os.fdopen(descriptor, "wb") as file:
                recorded = _RecordedErrors(file)
                try:
                    write(recorded)  # type: ignore[arg-type]
                except RuntimeError:
                    # PyTorch's writer says "unexpected pos" where the file said that the disk is full.
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
    """An open file that remembers the first error of writing to it."""

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
    """A file that keeps nothing of what is written to it but its length."""

    def __init__(self) -> None:
        self.length = 0

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        size = memoryview(data).nbytes
        self.length += size
        return size


def _explained(error: OSError, path: Path, write: Callable[[Any], object]) -> OSError:
    """Return an error of the same number that names the file and, of a full disk, what is needed and what is free."""
    reason = f"cannot write {path}: {error.strerror or error}"
    if error.errno in NO_ROOM:
        counter = _Counter()
        write(counter)
        reason += f"; {counter.length:,} bytes are needed, {shutil.disk_usage(path.parent).free:,} are free"
    return OSError(error.errno, reason)


def remove_temporaries(folder: Path, *names: str) -> None:
    """Remove what kills have left of files that were being written; for the process that holds the folder's lock.

    Args:
        folder: Where to look.
        names: Names of the files that they were to become, in this folder; by default any, here and further inside.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> (folder / ".note.txt.0f3a.tmp").touch()
        >>> remove_temporaries(folder, "note.txt")
        >>> list(folder.iterdir())
        []
    """
    patterns = [f".{escape(name)}{middle}.tmp" for name in names for middle in ("", ".*")]
    found = [path for pattern in patterns for path in folder.glob(pattern)] if names else folder.rglob(".*.tmp")
    for path in list(found):
        path.unlink(missing_ok=True)


def save_tensors(path: Path, tensors: Mapping[str, "Tensor"], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors by name as one safetensors file, whole or not at all.

    Args:
        path: The file.
        tensors: By name.
        metadata: Words beside them, by name.

    Raises:
        OSError: As `write_atomically`.
    """
    from safetensors.torch import save

    data = save(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        None if metadata is None else dict(metadata),
    )
    write_atomically(path, data)
