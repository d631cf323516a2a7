"""Image files that are decoded on use instead of once in advance."""

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fastood.data.images.image_source import read_image
from fastood.data.images.lazy_files import ChosenFiles, choose_files
from fastood.data.images.resize import fit_images

_DECODED_AT_ONCE = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedImages:
    """JPEG, PNG or other image files, on disk or in memory, that are decoded to one size.

    Raises:
        TypeError: If paths and contents are mixed.
        ValueError: If `size` is below 1, or `channels` neither 1 nor 3.

    Example:
        >>> from io import BytesIO
        >>> from PIL import Image
        >>> buffer = BytesIO()
        >>> Image.new("RGB", (40, 30), "white").save(buffer, "png")
        >>> images = EncodedImages(files=[buffer.getvalue()], size=16, channels=3)
        >>> images.shape, images.decode(torch.tensor([0, 0])).shape
        ((1, 3, 16, 16), torch.Size([2, 3, 16, 16]))
    """

    files: Sequence[str] | Sequence[bytes]
    """Paths, or contents of files. Of a sequence that is neither list nor tuple only the first item is checked."""
    size: int
    """Rows and columns after fitting: the shorter edge is resized to this, then the centre is cropped."""
    channels: int
    """1 (grey) or 3 (RGB)."""
    place: str = "memory"
    """Source of the contents, named in errors."""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be 1 or larger, got {self.size}")
        if self.channels not in (1, 3):
            raise ValueError(f"channels must be 1 or 3, got {self.channels}")
        kinds = {type(file) for file in (self.files if isinstance(self.files, list | tuple) else self.files[:1])}
        if len(kinds) > 1 or not kinds <= {str, bytes}:
            names = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise TypeError(f"files must be all str (paths) or all bytes (contents), got {names}")

    def __len__(self) -> int:
        return len(self.files)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """N, C, H and W of the images once decoded."""
        return len(self), self.channels, self.size, self.size

    @property
    def nbytes(self) -> int:
        """Bytes of the images once decoded."""
        return len(self) * self.channels * self.size**2

    def select(self, index: Tensor | range) -> "EncodedImages":
        """Return the images at int64 `index` `[M]`, or at a range of indices, in that order, still encoded."""
        chosen: Any = choose_files(self.files, index)
        return replace(self, files=chosen)

    def decode(self, index: Tensor) -> Tensor:
        """Decode and fit images with Pillow, as `load_task` does.

        Args:
            index: int64 `[B]`, each 0…N-1.

        Returns:
            uint8 `[B, channels, size, size]`.

        Raises:
            ValueError: If an image is unreadable; the message names its path or its place.
        """
        decoded = torch.empty(len(index), self.channels, self.size, self.size, dtype=torch.uint8)
        for place, chosen in zip(decoded, index.tolist(), strict=True):
            place.copy_(fit_images(self._read(chosen)[None], size=self.size, channels=self.channels)[0])
        return decoded

    def _read(self, index: int) -> Tensor:
        file = self.files[index]
        if isinstance(file, str):
            return read_image(file)
        return read_image(self.place_of(index), file)

    def place_of(self, index: int) -> str:
        """Return number and place of a file content for errors; the number does not depend on selections."""
        number, count = self.files.origin(index) if isinstance(self.files, ChosenFiles) else (index, len(self))
        return f"{number} of {count} in {self.place}"


Images: TypeAlias = Tensor | EncodedImages
"""Images of one size: uint8 `[N, C, H, W]` in memory or mapped from a file, or image files that are decoded on use."""


def select_images(images: Images, index: Tensor) -> Images:
    """Return the images at int64 `index` `[M]`, in that order; encoded images stay encoded."""
    return images.select(index) if isinstance(images, EncodedImages) else images[index]


def decoded_images(images: Images, index: Tensor) -> Tensor:
    """Return the pixels of selected images.

    Args:
        images: Decoded or encoded images.
        index: int64 `[M]`, each 0…N-1.

    Returns:
        uint8 `[M, C, H, W]`.

    Raises:
        ValueError: If an image is unreadable; the message names it.
    """
    return images.decode(index) if isinstance(images, EncodedImages) else images[index]


def split_images(images: Images, size: int) -> Iterator[Tensor]:
    """Split images into chunks as `torch.split` does; encoded images are decoded one chunk ahead.

    Args:
        images: Decoded or encoded images.
        size: Images in a chunk, 1 or more; the last may be smaller.

    Yields:
        uint8 `[size, C, H, W]`.

    Raises:
        ValueError: If an image is unreadable; the message names it.

    Example:
        >>> [len(chunk) for chunk in split_images(torch.zeros(5, 1, 8, 8, dtype=torch.uint8), 2)]
        [2, 2, 1]
    """
    if not isinstance(images, EncodedImages):
        yield from torch.split(images, size)
        return
    chunks = torch.split(torch.arange(len(images)), size)
    with ThreadPoolExecutor() as threads:

        def start(chunk: Tensor) -> list[Future[Tensor]]:
            return [threads.submit(images.decode, part) for part in torch.split(chunk, _DECODED_AT_ONCE)]

        running: list[Future[Tensor]] = []
        try:
            running = start(chunks[0])
            for following in (*chunks[1:], None):
                done, running = running, start(following) if following is not None else []
                yield torch.cat([part.result() for part in done])
        finally:
            # Stop decoding after an error, or if the caller stops early.
            for part in running:
                part.cancel()
