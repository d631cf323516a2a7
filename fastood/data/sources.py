"""Opened image sources: folders and arrays, counted and labelled first, decoded into memory later."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from tokenize import TokenError

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from tqdm import tqdm

from fastood.console.names import printable
from fastood.data.decoding import UNREADABLE, require_decodable, upright
from fastood.data.digests import digest_of_choice, digest_of_files
from fastood.data.fitting import fit_in_turn
from fastood.data.folders import LeftOut, list_folder, set_name
from fastood.data.lazy_files import choose_files
from fastood.data.lists import read_list

_GREY_MODES = ("1", "L", "LA")
_CHUNK = 64


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageSource:
    """Images that can be read one by one, from any thread."""

    name: str
    """What tables call the set."""
    labels: Tensor | None
    """int64 [N], 0 or larger; None without labels."""
    class_names: tuple[str, ...]
    """Names of the classes; empty if they have none."""
    channels: int
    """1 if every image is grey, otherwise 3."""
    read: Callable[[int], Tensor]
    """Decodes the image at an index to uint8 [1 or 3, H, W]."""
    class_ids: tuple[str, ...] = ()
    """Their WordNet ids, where names alone may be ambiguous."""
    size: int = -1
    """Number of images; by default that of the labels."""
    files: Sequence[str] | None = None
    """Path of each image; None where images are not files of their own."""
    contents: Sequence[bytes] | None = None
    """Content of each image's file, where files lie in one large one; fetched on use."""
    place: str = "memory"
    """Where `contents` lie, to name in errors."""
    digest: Callable[[], str] | None = None
    """SHA-256 by which the images are known again without being decoded; None where their pixels must be hashed."""
    left_out: tuple[LeftOut, ...] = ()
    """Files and folders among the images that are not read."""

    def __len__(self) -> int:
        return self.size if self.labels is None else len(self.labels)

    def subset(self, index: Tensor) -> "ImageSource":
        """The images at int64 `index` [M] alone, in that order, with the same classes."""
        read, chosen = self.read, index.tolist()
        labels = None if self.labels is None else self.labels[index]
        return replace(
            self,
            labels=labels,
            size=len(chosen),
            files=None if self.files is None else choose_files(self.files, chosen),
            contents=None if self.contents is None else choose_files(self.contents, chosen),
            digest=digest_of_choice(self.digest, index),
            read=lambda i: read(chosen[i]),
        )


def image_to_tensor(image: Image.Image) -> Tensor:
    """Convert a Pillow image to uint8 [1 or 3, H, W], upright by its EXIF data; transparency is dropped.

    Raises:
        ValueError: The image has more than 8 bits per channel, or is more than 1,000 times as long as wide.

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
    """Decode an image file to uint8 [1 or 3, H, W], upright by its EXIF data.

    Args:
        path: The file.
        content: Its bytes, where they have been read already; `path` then only names it in errors.

    Raises:
        ValueError: The file is no readable image; the message names it.
    """
    try:
        with Image.open(path if content is None else BytesIO(content)) as image:
            return image_to_tensor(image)
    except UnidentifiedImageError as error:
        # Pillow's own words would hold the address of `content`.
        raise ValueError(f"unreadable image {printable(path)}: it is of no kind that Pillow knows") from error
    except UNREADABLE as error:
        raise ValueError(f"unreadable image {printable(path)}: {error}") from error


def open_folder(path: Path, *, field: str, labelled: bool = True) -> ImageSource:
    """Open a folder of images, with one folder per class: PATH/CLASS/…/IMAGE.

    Args:
        path: The folder.
        field: The option it was given for, to name in errors.
        labelled: Whether every image needs a class. Otherwise class folders may be empty, and images may lie in PATH.

    Returns:
        The opened set, without labels if there is no class folder; nothing is decoded yet.

    Raises:
        FileNotFoundError: There is no such folder, or no image in it; or `labelled`, and there is no class folder, or
            one without an image.
        PermissionError: The folder or one in it may not be read.
        ValueError: `labelled`, and its folders are train, test and the like, which are no classes.
    """
    found = list_folder(path, option=field, labelled=labelled)
    files = found.files
    return ImageSource(
        name=set_name(path),
        labels=torch.tensor(found.labels, dtype=torch.int64) if found.labels else None,
        class_names=found.class_names,
        channels=3,
        read=lambda index: read_image(files[index]),
        size=len(files),
        files=files,
        digest=digest_of_files(files),
        left_out=found.left_out,
    )


def open_list(path: Path, *, field: str, root: Path | None = None) -> ImageSource:
    """Open a list of image files: a text file with one path per line, as `read_list` reads it.

    Args:
        path: The list.
        field: The option it was given for, to name in errors.
        root: Folder for relative paths that are not found beside the list; None for the working folder.

    Returns:
        The opened set, without labels; nothing is decoded yet.

    Raises:
        FileNotFoundError: There is no such list.
        ValueError: The list is UTF-16, or no text.
    """
    files = read_list(path, option=field, root=root)
    return ImageSource(
        name=printable(path.stem),
        labels=None,
        class_names=(),
        channels=3,
        read=lambda index: read_image(files[index]),
        size=len(files),
        files=files,
        digest=digest_of_files(files),
    )


def open_arrays(images: Path, labels: Path | None, *, field: str) -> ImageSource:
    """Open a NumPy array of images, and one of labels.

    Args:
        images: uint8 [N, H, W] or [N, H, W, 1 or 3], as saved by ``numpy.save``.
        labels: Integers [N], 0…K-1 with every class present.
        field: The option they were given for, to name in errors.

    Returns:
        The opened set; nothing is read yet.

    Raises:
        FileNotFoundError: A file is missing.
        TypeError: A dtype is wrong.
        ValueError: A file is no array, a shape is wrong, or a label is negative.
    """
    pixels = _open_array(images, field)
    if pixels.dtype != np.uint8:
        raise TypeError(f"data.{field}: {images} must be uint8, got {pixels.dtype}")
    if pixels.ndim not in (3, 4) or (pixels.ndim == 4 and pixels.shape[3] not in (1, 3)) or 0 in pixels.shape[1:]:
        raise ValueError(
            f"data.{field}: {images} must have shape [N, H, W] or [N, H, W, 1 or 3], got {list(pixels.shape)}"
        )
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    targets = None
    if labels is not None:
        values = _open_array(labels, field)
        if values.dtype.kind not in "iu":
            raise TypeError(f"data.{field}: {labels} must hold integers, got {values.dtype}")
        if values.shape != pixels.shape[:1]:
            raise ValueError(
                f"data.{field}: {labels} must have shape [{len(pixels)}] as {images}, got {list(values.shape)}"
            )
        targets = torch.from_numpy(values.astype(np.int64))
        if len(targets) and int(targets.min()) < 0:
            raise ValueError(f"data.{field}: {labels} must hold labels 0…K-1, got {int(targets.min())}")
    return ImageSource(
        name=images.stem,
        labels=targets,
        class_names=(),
        channels=pixels.shape[3],
        read=lambda index: torch.from_numpy(np.array(pixels[index])).permute(2, 0, 1),
        size=len(pixels),
    )


def decode_images(source: ImageSource, index: Tensor, *, size: int, channels: int) -> Tensor:
    """Decode images into memory, in parallel, all brought to one size.

    Args:
        source: Where to read.
        index: int64 [M] which images.
        size: Rows and columns.
        channels: 1 or 3.

    Returns:
        uint8 [M, channels, size, size].

    Raises:
        ValueError: An image is unreadable; the message names it.
    """
    decoded = torch.empty(len(index), channels, size, size, dtype=torch.uint8)

    def decode(start: int) -> int:
        chunk = index[start : start + _CHUNK].tolist()
        fitted = fit_in_turn(map(source.read, chunk), size=size, channels=channels)
        for offset, image in enumerate(fitted):
            decoded[start + offset] = image
        return len(chunk)

    progress = tqdm(total=len(index), desc=f"decoding {source.name}", unit=" images", leave=False, disable=None)
    with ThreadPoolExecutor() as pool, progress:
        for count in pool.map(decode, range(0, len(index), _CHUNK)):
            progress.update(count)
    return decoded


def _open_array(path: Path, field: str) -> "np.ndarray[tuple[int, ...], np.dtype[np.generic]]":
    """Map an .npy file into memory."""
    if not path.is_file():
        raise FileNotFoundError(f"data.{field}: there is no file {path}")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except PermissionError:
        raise
    except (ValueError, EOFError, OSError, SyntaxError, TokenError) as error:
        raise ValueError(f"data.{field}: {path} is no .npy array: {error}") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"data.{field}: {path} must be an .npy array, got {type(array).__name__}")
    return array
