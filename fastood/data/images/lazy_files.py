"""Sequences of image files that are not all in memory: a choice of others, or slices of one large file."""

from collections.abc import Sequence
from typing import TypeVar, overload

from torch import Tensor

FileT = TypeVar("FileT")


class ChosenFiles(Sequence[FileT]):
    """Some of a sequence's items, fetched when they are asked for.

    Args:
        files: The sequence.
        chosen: Places in it, in the order wanted.

    Example:
        >>> list(ChosenFiles(("a.jpg", "b.jpg", "c.jpg"), range(2, 0, -1)))
        ['c.jpg', 'b.jpg']
    """

    def __init__(self, files: Sequence[FileT], chosen: Sequence[int]) -> None:
        self._files = files
        self._chosen = chosen

    def __len__(self) -> int:
        return len(self._chosen)

    @overload
    def __getitem__(self, place: int) -> FileT: ...
    @overload
    def __getitem__(self, place: slice) -> "ChosenFiles[FileT]": ...
    def __getitem__(self, place: int | slice) -> "FileT | ChosenFiles[FileT]":
        """The item at a place, or a further choice."""
        if isinstance(place, slice):
            return ChosenFiles(self._files, self._chosen[place])
        return self._files[self._chosen[place]]


class FileContents(Sequence[bytes]):
    r"""Contents of files that lie end to end in one.

    Args:
        joined: uint8 [bytes], may be mapped from a file.
        offsets: int64 [N + 1], where each begins and the last one ends.

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
        """The content at a place, or a choice of them."""
        places = range(len(self))[place]
        if isinstance(places, range):
            return ChosenFiles(self, places)
        begin, end = self._offsets[places : places + 2].tolist()
        return self._joined[begin:end].numpy().tobytes()


def choose_files(files: Sequence[FileT], chosen: list[int]) -> Sequence[FileT]:
    """Items of a sequence, in the order asked: a tuple of a tuple's or list's, fetched on use of others."""
    if isinstance(files, list | tuple):
        return tuple(files[place] for place in chosen)
    return ChosenFiles(files, chosen)
