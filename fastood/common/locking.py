"""Folders that one process writes at a time."""

import errno
import fcntl
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOCK_NAME = ".lock"
"""File of a folder that names the process that writes it; only there while it does, or after a kill."""
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_held: set[int] = set()
"""Descriptors of locks, which a forked child must not keep alive."""


@contextmanager
def hold_lock(folder: Path, *, doing: str, exist_ok: bool = True) -> Iterator[None]:
    """Keep other processes from writing a folder; however the process ends, the lock ends with it.

    The folder is made, and removed again if nothing was put into it. It may be renamed while the lock is held.

    Args:
        folder: The folder; the file `.lock` in it names the process as long as the lock is held, and locks nothing
            itself: it may be removed.
        doing: What the error says that the other process does, e.g. "writing this run".
        exist_ok: Whether the folder may exist.

    Raises:
        FileExistsError: If the folder exists and may not.
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
        _let_go(inside)
        _remove_empty(made)


def _lock(folder: Path, doing: str) -> int:
    """Lock a folder and write into `.lock` who holds it; return the descriptor of the folder."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        inside = -1
        try:
            inside = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            _held.add(inside)
            _lock_descriptor(inside, folder)
            # The holder before may have renamed or removed the folder between the opening and the locking.
            if os.path.samestat(os.fstat(inside), folder.stat()):
                _write_owner(inside)
                return inside
        except FileNotFoundError:
            pass  # The folder was removed.
        except BlockingIOError:
            owner = _read_owner(inside)
            _let_go(inside)
            by = f" ({owner})" if owner and owner.isprintable() else ""
            raise BlockingIOError(f"another process{by} is {doing}: {folder}") from None
        except OSError:
            _let_go(inside)
            raise
        _let_go(inside)


def _lock_descriptor(inside: int, folder: Path) -> None:
    try:
        # The folder itself, not a file in it: it may be renamed, and a kill at any moment leaves nothing locked.
        fcntl.flock(inside, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        print(f"warning: {folder} lies where nothing can be locked: do not write it twice", file=sys.stderr)


def _write_owner(inside: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
    file = os.open(LOCK_NAME, flags, 0o666, dir_fd=inside)
    try:
        os.write(file, f"pid {os.getpid()}, host {socket.gethostname()}".encode())
    finally:
        os.close(file)


def _read_owner(inside: int) -> str:
    """Return what the holder has written, empty if it has not yet."""
    try:
        file = os.open(LOCK_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=inside)
    except OSError:
        return ""
    try:
        return os.read(file, 400).decode(errors="replace")
    finally:
        os.close(file)


def _let_go(*descriptors: int) -> None:
    for descriptor in descriptors:
        _held.discard(descriptor)
        if descriptor >= 0:
            with suppress(OSError):
                os.close(descriptor)


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders, the inner ones first, as far as they are empty."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _close_in_child() -> None:
    """Let go of the locks in a forked child, which would otherwise hold them when this process has been killed."""
    _let_go(*list(_held))


os.register_at_fork(after_in_child=_close_in_child)
