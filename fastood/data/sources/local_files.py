"""Sources of images in local files: folders, lists of files, and NumPy arrays."""

from pathlib import Path
from tokenize import TokenError

import numpy as np
import torch

from fastood.console.names import printable
from fastood.data.images.digests import digest_of_files
from fastood.data.images.image_source import ImageSource, read_image
from fastood.data.sources.folder_listing import list_folder, set_name
from fastood.data.sources.image_lists import read_list


def open_folder(path: Path, *, field: str, labelled: bool = True) -> ImageSource:
    """Open a folder of images, with one folder per class: PATH/CLASS/…/IMAGE.

    Args:
        path: The folder.
        field: Option of the source, named in errors.
        labelled: Whether every image needs a class. Otherwise class folders may be empty, and images may be in `path`
            itself.

    Returns:
        The source, without labels if there is no class folder; nothing is decoded yet.

    Raises:
        FileNotFoundError: If the folder or an image in it is missing, or `labelled` and there is no class folder or an
            empty one.
        PermissionError: If the folder or one in it is not readable.
        ValueError: If `labelled` and its folders are parts of a data set (train, test, …) instead of classes.
    """
    listing = list_folder(path, option=field, labelled=labelled)
    files = listing.files
    return ImageSource(
        name=set_name(path),
        labels=torch.tensor(listing.labels, dtype=torch.int64) if listing.labels else None,
        class_names=listing.class_names,
        channels=3,
        read=lambda index: read_image(files[index]),
        size=len(files),
        files=files,
        digest=digest_of_files(files),
        left_out=listing.left_out,
    )


def open_list(path: Path, *, field: str, root: Path | None = None) -> ImageSource:
    """Open a list of image files: a text file with one path per line, as `read_list` reads it.

    Args:
        path: The list.
        field: Option of the source, named in errors.
        root: Base folder of relative paths if the first is not in the folder of the list; None for the working folder.

    Returns:
        The source, without labels; nothing is decoded yet.

    Raises:
        FileNotFoundError: If the list is missing.
        ValueError: If the list is UTF-16 or not text.
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
    """Open a NumPy array of images, and optionally one of labels.

    Args:
        images: uint8 `[N, H, W]` or `[N, H, W, 1 or 3]`, as saved by ``numpy.save``.
        labels: Integers `[N]`, 0…K-1; None without labels.
        field: Option of the source, named in errors.

    Returns:
        The source; no image is read yet.

    Raises:
        FileNotFoundError: If a file is missing.
        TypeError: If a dtype is wrong.
        ValueError: If a file is not an array, a shape is wrong, or a label is negative.
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


def _open_array(path: Path, field: str) -> "np.ndarray[tuple[int, ...], np.dtype[np.generic]]":
    """Memory-map an .npy file."""
    if not path.is_file():
        raise FileNotFoundError(f"data.{field}: there is no file {path}")
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except PermissionError:
        raise
    except (ValueError, EOFError, OSError, SyntaxError, TokenError) as error:
        raise ValueError(f"data.{field}: {path} is not an .npy array: {error}") from error
    if not isinstance(array, np.ndarray):
        raise ValueError(f"data.{field}: {path} must be an .npy array, got {type(array).__name__}")
    return array
