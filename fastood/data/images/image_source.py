"""Sources of images that are read one by one, reading of image files, and decoding into memory."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import BytesIO

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from fastood.console.names import printable
from fastood.data.images.decoding import UNREADABLE, require_decodable, upright
from fastood.data.images.digests import as_tensor, digest_of_subset
from fastood.data.images.lazy_files import choose_files
from fastood.data.images.left_out import LeftOut
from fastood.data.images.resize import fit_in_turn

_GREY_MODES = ("1", "L", "LA")
_CHUNK = 64
_DECODED_AT_ONCE = 4096


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSource:
    """Images that can be read one by one, from any thread."""

    name: str
    """Name of the set in tables."""
    labels: Tensor | None
    """int64 `[N]`, 0 or larger; None without labels."""
    class_names: tuple[str, ...]
    """Names of the classes; empty if the classes have none."""
    channels: int
    """1 if every image is grey, otherwise 3."""
    read: Callable[[int], Tensor]
    """Function that decodes the image at an index to uint8 `[1 or 3, H, W]`; called from several threads."""
    class_ids: tuple[str, ...] = ()
    """WordNet ids of the classes, where names alone may be ambiguous."""
    size: int = -1
    """Number of images; by default the number of labels."""
    files: Sequence[str] | None = None
    """Path of each image; None if images are not separate files."""
    contents: Sequence[bytes] | None = None
    """Content of each image's file where they are joined in one large file; fetched on use."""
    place: str = "memory"
    """Place of `contents` or `mapped`, named in errors."""
    mapped: Tensor | None = None
    """uint8 `[N, C, H, W]`, the images mapped from a file; None if they are not stored at one size."""
    digest: Callable[[], str] | None = None
    """Function that computes a SHA-256 of the images without decoding them; None if their pixels must be hashed."""
    digest_covers_rows: bool = False
    """Whether `digest` depends on the labels, too (`fastood.data.images.digests.digest_of_set`)."""
    left_out: tuple[LeftOut, ...] = ()
    """Files and folders among the images that are not read."""

    def __len__(self) -> int:
        return self.size if self.labels is None else len(self.labels)

    def subset(self, index: Tensor) -> "ImageSource":
        """Return the images at int64 `index` `[M]`, in that order, with all classes of the source."""
        read = self.read
        labels = None if self.labels is None else self.labels[index]
        return replace(
            self,
            labels=labels,
            size=len(index),
            files=None if self.files is None else choose_files(self.files, index),
            contents=None if self.contents is None else choose_files(self.contents, index),
            # Indexing would copy the images into memory.
            mapped=None,
            digest=digest_of_subset(self.digest, index),
            read=lambda i: read(int(index[i])),
        )


def image_to_tensor(image: Image.Image) -> Tensor:
    """Convert a Pillow image to uint8 `[1 or 3, H, W]`, upright by its EXIF data; transparency is dropped.

    Raises:
        ValueError: If the image has more than 8 bits per channel, or is more than 1,000 times as long as wide.

    Example:
        >>> image_to_tensor(Image.new("RGBA", (5, 4))).shape
        torch.Size([3, 4, 5])
    """
    require_decodable(image)
    # Imported here: command lines ask for help without waiting for it.
    from torchvision.transforms.v2 import functional as transforms

    turned = upright(image)
    tensor: Tensor = transforms.pil_to_tensor(turned.convert("L" if turned.mode in _GREY_MODES else "RGB"))
    return tensor


def read_image(path: str, content: bytes | None = None) -> Tensor:
    """Decode an image file to uint8 `[1 or 3, H, W]`, upright by its EXIF data.

    Args:
        path: The file.
        content: Its bytes, if they have been read already; `path` then only names the file in errors.

    Raises:
        ValueError: If the file is not a readable image; the message names it.
    """
    try:
        with Image.open(path if content is None else BytesIO(content)) as image:
            return image_to_tensor(image)
    except UnidentifiedImageError as error:
        # Pillow's own message would hold the memory address of `content`.
        raise ValueError(f"unreadable image {printable(path)}: its format is unknown to Pillow") from error
    except UNREADABLE as error:
        raise ValueError(f"unreadable image {printable(path)}: {error}") from error


def decode_images(
    source: ImageSource, index: Tensor | range, *, size: int, channels: int, progress: bool = True
) -> Tensor:
    """Decode images into memory in parallel, and fit all to one size.

    Args:
        source: Source of the images.
        index: int64 `[M]` or a range, the images to decode.
        size: Rows and columns.
        channels: 1 or 3.
        progress: Whether a terminal shows a bar.

    Returns:
        uint8 `[M, channels, size, size]`.

    Raises:
        ValueError: If an image is unreadable; the message names it.
    """
    # Imported here: loaders import this module, and do without it.
    from tqdm import tqdm

    decoded = torch.empty(len(index), channels, size, size, dtype=torch.uint8)

    def decode(start: int) -> int:
        chunk = as_tensor(index[start : start + _CHUNK]).tolist()
        fitted = fit_in_turn(map(source.read, chunk), size=size, channels=channels)
        for offset, image in enumerate(fitted):
            decoded[start + offset] = image
        return len(chunk)

    hidden = None if progress else True
    bar = tqdm(total=len(index), desc=f"decoding {source.name}", unit=" images", leave=False, disable=hidden)
    with ThreadPoolExecutor() as pool, bar:
        for count in pool.map(decode, range(0, len(index), _CHUNK)):
            bar.update(count)
    return decoded


def decode_in_chunks(source: ImageSource, index: Tensor | range, *, size: int, channels: int) -> Iterator[Tensor]:
    """Decode images as `decode_images` does, and hold a few thousand of them at a time.

    Args:
        source: Source of the images.
        index: int64 `[M]` or a range, the images to decode.
        size: Rows and columns.
        channels: 1 or 3.

    Yields:
        uint8 `[n, channels, size, size]`, in the order of `index`.

    Raises:
        ValueError: If an image is unreadable; the message names it.
    """
    from tqdm import tqdm

    with tqdm(total=len(index), desc=f"decoding {source.name}", unit=" images", leave=False, disable=None) as bar:
        for start in range(0, len(index), _DECODED_AT_ONCE):
            chunk = index[start : start + _DECODED_AT_ONCE]
            yield decode_images(source, chunk, size=size, channels=channels, progress=False)
            bar.update(len(chunk))
