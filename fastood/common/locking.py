"""Locks for folders that only one process may write at a time."""

import errno
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["LOCK_NAME", "hold_lock"]

LOCK_NAME = ".lock"
"""Name of the file that describes the holder of the lock; removed with the lock, unless the process is killed."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_held: set[int] = set()
"""Descriptors of locks, which forked children must close."""


@contextmanager
def hold_lock(folder: Path, *, doing: str, exist_ok: bool = True) -> Iterator[None]:
    """Hold the lock of a folder within the context. The lock ends with the process, however that ends.

    The folder is created, and removed again if it is empty in the end. It may be renamed while the lock is held.

    Args:
        folder: The folder. While the lock is held, the file `.lock` in it describes the process; it is not the lock
            itself, and may be removed.
        doing: Activity of the other process for the error, such as "writing this run".
        exist_ok: Whether the folder may exist already.

    Raises:
        FileExistsError: If the folder exists and `exist_ok` is False.
        BlockingIOError: If another process holds the lock; the error names it.
        OSError: If the folder cannot be written.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "run"
        >>> with hold_lock(folder, doing="writing this run"):
        ...     [path.name for path in folder.iterdir()]
        ['.lock']
        >>> folder.exists()
        False
    """
    made = [parent for parent in (folder, *folder.parents) if not parent.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=exist_ok)
        inside = _lock(folder, doing)
    except OSError as error:
        _remove_empty(made)
        if isinstance(error, BlockingIOError):
            raise
        if isinstance(error, FileExistsError):
            raise FileExistsError(f"{folder} exists") from None
        raise OSError(error.errno, f"cannot write {folder}: {error.strerror or error}") from error
    try:
        yield
    finally:
        with suppress(OSError):
            os.unlink(LOCK_NAME, dir_fd=inside)
        _release(inside)
        _remove_empty(made)


def _lock(folder: Path, doing: str) -> int:
    """Lock a folder, describe this process in `.lock`, and return the descriptor of the folder."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        inside = -1
        try:
            inside = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            _held.add(inside)
            _lock_descriptor(inside, folder)
            # The previous holder may have renamed or removed the folder between open and flock.
            if os.path.samestat(os.fstat(inside), folder.stat()):
                _write_owner(inside)
                return inside
        except FileNotFoundError:
            pass  # The folder was removed.
        except BlockingIOError:
            owner = _read_owner(inside)
            _release(inside)
            by = f" ({owner})" if owner and owner.isprintable() else ""
            raise BlockingIOError(f"another process{by} is {doing}: {folder}") from None
        except OSError:
            _release(inside)
            raise
        _release(inside)


def _lock_descriptor(inside: int, folder: Path) -> None:
    try:
        # Lock the folder rather than a file in it: it may be renamed, and a kill leaves no stale lock.
        fcntl.flock(inside, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        print(f"warning: the file system of {folder} has no locks: do not write it twice", file=sys.stderr)


def _write_owner(inside: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    file = os.open(LOCK_NAME, flags, 0o666, dir_fd=inside)
    try:
        os.write(file, f"pid {os.getpid()}, host {socket.gethostname()}".encode())
    finally:
        os.close(file)


def _read_owner(inside: int) -> str:
    """Return the description of the holder; empty if it is not written yet."""
    try:
        file = os.open(LOCK_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=inside)
    except OSError:
        return ""
    try:
        return os.read(file, 400).decode(errors="replace")
    finally:
        os.close(file)


def _release(*descriptors: int) -> None:
    for descriptor in descriptors:
        _held.discard(descriptor)
        if descriptor >= 0:
            with suppress(OSError):
                os.close(descriptor)


def _remove_empty(folders: list[Path]) -> None:
    """Remove the folders that are empty; inner ones come first in `folders`."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _close_in_child() -> None:
    """Close the locks in a forked child, which would otherwise keep them after this process has been killed."""
    _release(*list(_held))


os.register_at_fork(after_in_child=_close_in_child)
