"""Files of a pool that grow by appending: they can be truncated to a checkpoint, and survive a full disk."""

import errno
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from types import TracebackType

import numpy as np

# Size of the header of every array of a pool. NumPy reserves space for a longer shape and rounds up to 64 bytes.
_HEADER_BYTES = 128
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class AppendedFile:
    """A file that grows by appending, from a given length.

    Args:
        path: The file; created if `length` is 0.
        length: Bytes to keep; the rest of the file is truncated.

    Raises:
        OSError: If it cannot be opened.
        ValueError: If it is shorter than `length`.
    """

    def __init__(self, path: Path, length: int) -> None:
        # Unbuffered: after an error for a full disk, close() has nothing left to write.
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        size = os.fstat(self._file).st_size
        if size < length:
            os.close(self._file)
            raise ValueError(f"{path} is damaged: it must have at least {length} bytes, got {size}; remove its folder")
        os.ftruncate(self._file, length)
        self.length = length

    def append(self, content: bytes) -> None:
        """Append bytes."""
        self.write_at(self.length, content)
        self.length += len(content)

    def write_at(self, position: int, content: bytes) -> None:
        """Write bytes at a position; `length` does not change."""
        rest = memoryview(content)
        while rest:
            written = os.pwrite(self._file, rest, position)
            rest, position = rest[written:], position + written

    def sync(self) -> None:
        """Flush the file to the disk."""
        os.fsync(self._file)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


class AppendedArray:
    """An .npy file that grows by rows; its header is written at the end.

    Args:
        path: The file.
        dtype: Dtype of an element, as NumPy spells it.
        row: Shape of a row.
        rows: Rows to keep; later rows are truncated.

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
        """Append rows, as an array or as its bytes."""
        self._file.append(rows if isinstance(rows, bytes) else rows.astype(self._dtype).tobytes())

    def finish(self) -> None:
        """Write the header, which makes the file an .npy array of all rows."""
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
        """Flush the file to the disk."""
        self._file.sync()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class PackedFiles:
    """All files of a pool that grow with every image, as a context manager.

    Args:
        folder: Folder of the files.
        shape: `[C, H, W]` of an image; None if image files are stored unchanged.
        count: Images to keep; later ones are truncated.
        encoded_bytes: Bytes of `images.bin` to keep.
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
        """Append images.

        Args:
            content: Bytes of each image as they are stored.
            sha256: Digest of each content, 32 bytes.
            index: Index of each image in its source.
            labels: Class of each image, or -1.
        """
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
        """Flush all files to the disk."""
        for file in self._all():
            file.sync()

    def finish(self) -> None:
        """Write the headers of all arrays, and flush all files to the disk."""
        for file in self._all():
            if isinstance(file, AppendedArray):
                file.finish()
            else:
                file.sync()

    def _all(self) -> list[AppendedArray | AppendedFile]:
        files = (self._images, self._encoded, self._offsets, self._labels, self._index, self._sha256)
        return [file for file in files if file is not None]


@contextmanager
def require_disk_space(folder: Path, needed: int) -> Iterator[None]:
    """Check the free disk space on entry, and explain how to resume if the disk becomes full inside the context.

    Args:
        folder: Folder that is written.
        needed: Bytes that will be written at least.

    Raises:
        OSError: If the disk has less free space than needed, or becomes full. Files that have been written are kept.
    """
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise OSError(
            errno.ENOSPC, f"{needed / 2**20:,.0f} MiB are needed, {free / 2**20:,.0f} MiB are free", str(folder)
        )
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise OSError(
            error.errno, "the disk is full; free some space and repeat the command to resume", str(folder)
        ) from error
