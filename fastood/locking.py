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
        folder: The folder; the file `.lock` in it names the process as long as the lock is held.
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
        inside, file = _lock(folder, doing)
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
        # Removed before it is let go of: who has opened it then finds that it is no longer the folder's.
        with suppress(OSError):
            os.unlink(LOCK_NAME, dir_fd=inside)
        _let_go(inside, file)
        _remove_empty(made)


def _lock(folder: Path, doing: str) -> tuple[int, int]:
    """Lock the file of a folder and write into it whose it is; return descriptors of the folder and of the file."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        inside = file = -1
        try:
            inside = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            file = os.open(LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666, dir_fd=inside)
            _held.update((inside, file))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before may have removed the file between the opening and the locking.
            if os.path.samestat(os.fstat(file), os.stat(LOCK_NAME, dir_fd=inside, follow_symlinks=False)):
                os.ftruncate(file, 0)
                os.pwrite(file, f"pid {os.getpid()}, host {socket.gethostname()}".encode(), 0)
                return inside, file
        except FileNotFoundError:
            pass  # So was the folder, or the file.
        except BlockingIOError:
            owner = os.pread(file, 400, 0).decode(errors="replace")
            by = f" ({owner})" if owner and owner.isprintable() else ""
            _let_go(inside, file)
            raise BlockingIOError(f"another process{by} is {doing}: {folder}") from None
        except OSError as error:
            if file >= 0 and error.errno in _NO_LOCKS:
                print(f"warning: {folder} lies where no file can be locked: do not write it twice", file=sys.stderr)
                return inside, file
            _let_go(inside, file)
            raise
        _let_go(inside, file)


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
