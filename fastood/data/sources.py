"""Opened image sources: folders and arrays, counted and labelled first, decoded into memory later."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from fastood.data.digests import digest_of_choice, digest_of_files
from fastood.data.fitting import fit_images
from fastood.data.lazy_files import choose_files

_GREY_MODES = ("1", "L", "LA")
_DEEP_MODES = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")
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
    """Convert a Pillow image to uint8 [1 or 3, H, W]; transparency is dropped.

    Raises:
        ValueError: The image has more than 8 bits per channel.

    Example:
        >>> image_to_tensor(Image.new("RGBA", (5, 4))).shape
        torch.Size([3, 4, 5])
    """
    if image.mode in _DEEP_MODES:
        raise ValueError(f"8 bits per channel are wanted, got Pillow mode {image.mode!r}")
    from torchvision.transforms.v2 import functional as transforms

    tensor: Tensor = transforms.pil_to_tensor(image.convert("L" if image.mode in _GREY_MODES else "RGB"))
    return tensor


def read_image(path: str, content: bytes | None = None) -> Tensor:
    """Decode an image file to uint8 [1 or 3, H, W].

    Args:
        path: The file.
        content: Its bytes, where they have been read already; `path` then only names it in errors.

    Raises:
        ValueError: The file is no readable image; the message names it.
    """
    try:
        with Image.open(path if content is None else BytesIO(content)) as image:
            return image_to_tensor(image)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"unreadable image {path}: {error}") from error


def open_folder(path: Path, *, field: str) -> ImageSource:
    """Open a tree of images with one folder per class, PATH/CLASS/…/IMAGE.

    Args:
        path: The tree.
        field: The option it was given for, to name in errors.

    Returns:
        The opened set; nothing is decoded yet.

    Raises:
        FileNotFoundError: There is no such folder, or no class folder in it, or a class folder has no image.
        PermissionError: The folder or a class folder may not be read.
    """
    if not path.is_dir():
        raise FileNotFoundError(f"data.{field}: there is no folder {path}")
    try:
        # Asked first, as ImageFolder takes a folder that it may not read for an empty one.
        locked = [child for child in path.iterdir() if child.is_dir() and not os.access(child, os.R_OK | os.X_OK)]
        if locked:
            raise PermissionError(f"data.{field}: class folder {locked[0]} must be readable")
        from torchvision.datasets import ImageFolder

        tree = ImageFolder(str(path))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"data.{field}: {path} must hold class folders with images: {error}") from error
    files = tuple(file for file, _ in tree.samples)
    return ImageSource(
        name=path.name,
        labels=torch.tensor(tree.targets),
        class_names=tuple(tree.classes),
        channels=3,
        read=lambda index: read_image(files[index]),
        files=files,
        digest=digest_of_files(files),
    )


def open_list(path: Path, *, field: str) -> ImageSource:
    """Open a list of image files: a text file with one path per line, relative to where the program runs.

    Args:
        path: The list.
        field: The option it was given for, to name in errors.

    Returns:
        The opened set, without labels; nothing is decoded yet.

    Raises:
        FileNotFoundError: There is no such list.
        ValueError: The list is no UTF-8 text.
    """
    if not path.is_file():
        raise FileNotFoundError(f"data.{field}: there is no file {path}")
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"data.{field}: {path} must list one path per line in UTF-8: {error}") from error
    files = tuple(line for line in lines if line.strip())
    return ImageSource(
        name=path.stem,
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
        chunk = [source.read(i) for i in index[start : start + _CHUNK].tolist()]
        if len({image.shape for image in chunk}) == 1:
            decoded[start : start + _CHUNK] = fit_images(torch.stack(chunk), size=size, channels=channels)
        else:
            for offset, image in enumerate(chunk):
                decoded[start + offset] = fit_images(image[None], size=size, channels=channels)[0]
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
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"data.{field}: {path} is no .npy array: {error}") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"data.{field}: {path} must be an .npy array, got {type(array).__name__}")
    return array
