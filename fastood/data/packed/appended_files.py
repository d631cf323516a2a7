"""The files of a pool while they grow: arrays that can be cut back, and a disk that may be full."""

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from types import TracebackType

import numpy as np

# NumPy leaves room for a longer shape and rounds up to 64: every array of a pool gets this much.
_HEADER_BYTES = 128
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class AppendedFile:
    """A file that is written at its end alone, beginning at a known length.

    Args:
        path: The file; made if `length` is 0.
        length: Bytes that count; what lies beyond them is cut off.

    Raises:
        OSError: It cannot be opened.
        ValueError: It is shorter than `length`.
    """

    def __init__(self, path: Path, length: int) -> None:
        # Unbuffered: after a full disk nothing is left to be written by close().
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        size = os.fstat(self._file).st_size
        if size < length:
            os.close(self._file)
            raise ValueError(f"{path} is damaged: it must have at least {length} bytes, got {size}; remove its folder")
        os.ftruncate(self._file, length)
        self.length = length

    def append(self, content: bytes) -> None:
        """Write at the end."""
        self.write_at(self.length, content)
        self.length += len(content)

    def write_at(self, position: int, content: bytes) -> None:
        """Write somewhere; `length` stays."""
        rest = memoryview(content)
        while rest:
            written = os.pwrite(self._file, rest, position)
            rest, position = rest[written:], position + written

    def sync(self) -> None:
        """Wait until the disk has it."""
        os.fsync(self._file)

    def close(self) -> None:
        """Let go of the file."""
        os.close(self._file)


class AppendedArray:
    """An .npy file that grows by rows, and says how many it has when it is finished.

    Args:
        path: The file.
        dtype: Type of an element.
        row: Shape of a row.
        rows: Rows that count already.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "squares.npy"
        >>> squares = AppendedArray(path, "<i8", (), rows=0)
        >>> squares.append(np.array([0, 1, 4]))
        >>> squares.finish()
        >>> squares.close()
        >>> np.load(path).tolist()
        [0, 1, 4]
    """

    def __init__(self, path: Path, dtype: str, row: Sequence[int], *, rows: int) -> None:
        self._dtype, self._row = np.dtype(dtype), tuple(row)
        self._row_bytes = self._dtype.itemsize * int(np.prod(self._row))
        self._file = AppendedFile(path, _HEADER_BYTES + rows * self._row_bytes if rows else 0)
        if not rows:
            self._file.append(bytes(_HEADER_BYTES))

    def append(self, rows: "bytes | np.ndarray[tuple[int, ...], np.dtype[np.generic]]") -> None:
        """Add rows, as an array or as the bytes of one."""
        self._file.append(rows if isinstance(rows, bytes) else rows.astype(self._dtype).tobytes())

    def finish(self) -> None:
        """Write the header; the file is then an array of all rows."""
        rows = (self._file.length - _HEADER_BYTES) // self._row_bytes
        header = BytesIO()
        shape = (rows, *self._row)
        np.lib.format.write_array_header_1_0(
            header, {"descr": np.lib.format.dtype_to_descr(self._dtype), "fortran_order": False, "shape": shape}
        )
        if len(header.getvalue()) != _HEADER_BYTES:
            raise ValueError(f"an array of shape {shape} needs a header of {len(header.getvalue())} bytes")
        self._file.write_at(0, header.getvalue())
        self.sync()

    def sync(self) -> None:
        """Wait until the disk has it."""
        self._file.sync()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


class PackedFiles:
    """All files of a pool that grow with every image, to be used in a `with` statement.

    Args:
        folder: Where they lie.
        shape: [C, H, W] of an image; None if files are kept as they are.
        count: Images that count already.
        encoded_bytes: Bytes of kept files that count already.
    """

    def __init__(self, folder: Path, shape: Sequence[int] | None, count: int, encoded_bytes: int) -> None:
        self._folder, self._shape = folder, shape
        self.count, self.encoded_bytes = count, encoded_bytes

    def __enter__(self) -> "PackedFiles":
        folder, count = self._folder, self.count
        self._images = AppendedArray(folder / "images.npy", "|u1", self._shape, rows=count) if self._shape else None
        self._encoded = None if self._shape else AppendedFile(folder / "images.bin", self.encoded_bytes)
        self._labels = AppendedArray(folder / "labels.npy", "<i8", (), rows=count)
        self._index = AppendedArray(folder / "index.npy", "<i8", (), rows=count)
        self._sha256 = AppendedArray(folder / "sha256.npy", "|u1", (32,), rows=count)
        # One more than images: it begins with 0 and ends with the number of bytes.
        self._offsets = None
        if not self._shape:
            self._offsets = AppendedArray(folder / "offsets.npy", "<i8", (), rows=count + 1 if count else 0)
            if not count:
                self._offsets.append(np.zeros(1))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._all():
            file.close()

    def append(
        self, content: Sequence[bytes], *, sha256: Sequence[bytes], index: Sequence[int], labels: Sequence[int]
    ) -> None:
        """Add images by their bytes, each with their digest, its place in the source, and its class or -1."""
        if self._images is not None:
            self._images.append(b"".join(content))
        if self._encoded is not None and self._offsets is not None:
            self._encoded.append(b"".join(content))
            self._offsets.append(self.encoded_bytes + np.cumsum([len(one) for one in content], dtype=np.int64))
            self.encoded_bytes += sum(len(one) for one in content)
        self._labels.append(np.array(labels, dtype=np.int64))
        self._index.append(np.array(index, dtype=np.int64))
        self._sha256.append(b"".join(sha256))
        self.count += len(content)

    def sync(self) -> None:
        """Wait until the disk has everything."""
        for file in self._all():
            file.sync()

    def finish(self) -> None:
        """Make arrays of the files."""
        for file in self._all():
            if isinstance(file, AppendedArray):
                file.finish()
            else:
                file.sync()

    def _all(self) -> list[AppendedArray | AppendedFile]:
        files = (self._images, self._encoded, self._offsets, self._labels, self._index, self._sha256)
        return [file for file in files if file is not None]


@contextmanager
def hold_room(folder: Path, wanted: int) -> Iterator[None]:
    """Refuse to begin where the disk has no room, and say what to do where it runs full on the way.

    Args:
        folder: Where will be written.
        wanted: Bytes that are known to be needed.

    Raises:
        OSError: There is no room. What has been written stays.
    """
    free = shutil.disk_usage(folder).free
    if free < wanted:
        raise OSError(
            errno.ENOSPC, f"{wanted / 2**20:,.0f} MiB are needed, {free / 2**20:,.0f} MiB are free", str(folder)
        )
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise OSError(
            error.errno, "the disk is full; make room and give the same command again, it goes on", str(folder)
        ) from error
