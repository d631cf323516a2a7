"""Sequences of image files that are fetched on use: subsets of other sequences, and slices of one large file."""

from collections.abc import Sequence
from typing import TypeVar, overload

from torch import Tensor

FileT = TypeVar("FileT")


class ChosenFiles(Sequence[FileT]):
    """Selected items of a sequence, fetched on use.

    Args:
        files: The sequence.
        chosen: Their indices in `files`, int64 `[M]` or a range.

    Example:
        >>> list(ChosenFiles(("a.jpg", "b.jpg", "c.jpg"), range(2, 0, -1)))
        ['c.jpg', 'b.jpg']
    """

    def __init__(self, files: Sequence[FileT], chosen: Tensor | range) -> None:
        self._files = files
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, place: int) -> FileT: ...
    @overload
    def __getitem__(self, place: slice) -> "ChosenFiles[FileT]": ...
    def __getitem__(self, place: int | slice) -> "FileT | ChosenFiles[FileT]":
        """Return the item at an index, or a further subset."""
        if isinstance(place, slice):
            return ChosenFiles(self._files, self._chosen[place])
        return self._files[int(self._chosen[place])]

    def origin(self, place: int) -> tuple[int, int]:
        """Return the index of an item in the sequence that it was chosen from first, and the length of that."""
        chosen = int(self._chosen[place])
        return self._files.origin(chosen) if isinstance(self._files, ChosenFiles) else (chosen, len(self._files))


class FileContents(Sequence[bytes]):
    r"""Contents of files that are joined in one.

    Args:
        joined: uint8 `[bytes]`, all contents end to end; may be mapped from a file.
        offsets: int64 `[N + 1]`, the start of each file in `joined`, and the end of the last one.

    Example:
        >>> import torch
        >>> joined = torch.tensor([1, 2, 3], dtype=torch.uint8)
        >>> list(FileContents(joined, torch.tensor([0, 2, 3])))
        [b'\x01\x02', b'\x03']
    """

    def __init__(self, joined: Tensor, offsets: Tensor) -> None:
        self._joined = joined
        self._offsets = offsets

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, place: int) -> bytes: ...
    @overload
    def __getitem__(self, place: slice) -> Sequence[bytes]: ...
    def __getitem__(self, place: int | slice) -> bytes | Sequence[bytes]:
        """Return the content at an index, or a subset of the contents."""
        places = range(len(self))[place]
        if isinstance(places, range):
            return ChosenFiles(self, places)
        begin, end = self._offsets[places : places + 2].tolist()
        return self._joined[begin:end].numpy().tobytes()


def choose_files(files: Sequence[FileT], chosen: Tensor | range) -> Sequence[FileT]:
    """Return selected items of a sequence: a tuple for a list or tuple, otherwise a sequence that fetches on use.

    Args:
        files: The sequence.
        chosen: Indices in `files`, int64 `[M]` or a range.
    """
    if isinstance(files, list | tuple):
        return tuple(files[place] for place in (chosen.tolist() if isinstance(chosen, Tensor) else chosen))
    return ChosenFiles(files, chosen)
