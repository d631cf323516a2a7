"""The idx format of MNIST: a header of big-endian sizes, then the bytes.

Unlike torchvision's reader, this one names the file in errors. Format: two zero bytes, the type (8: unsigned byte), the
number of dimensions, each size as uint32, then the values in row-major order (LeCun, Cortes & Burges,
http://yann.lecun.com/exdb/mnist).
"""

import gzip
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastood.data.images.image_source import ImageSource

_UNSIGNED_BYTE = 8


def read_idx(path: Path, *, dimensions: int) -> Tensor:
    """Read a file of unsigned bytes, plain or compressed by gzip (suffix .gz).

    Args:
        path: The file.
        dimensions: Expected number of dimensions: 3 for images, 1 for labels.

    Returns:
        uint8, of the shape in the header.

    Raises:
        FileNotFoundError: If the file is missing.
        ValueError: If the file is truncated, too long or of another format; the message names it.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is not a complete gzip file: {error}") from error
    if len(data) < 4 or data[:2] != b"\0\0" or data[2] != _UNSIGNED_BYTE:
        raise ValueError(
            f"{path} is not an idx file of unsigned bytes, it begins with {data[:4].hex(' ') or 'nothing'}"
        )
    if data[3] != dimensions:
        raise ValueError(f"{path} must have {dimensions} dimensions, got {data[3]}")
    start = 4 + 4 * dimensions
    shape = [int.from_bytes(data[i : i + 4], "big") for i in range(4, start, 4)]
    expected = start + int(np.prod(shape, dtype=object))
    if len(data) != expected:
        raise ValueError(f"{path} must hold {expected} bytes by its header (shape {shape}), got {len(data)}")
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)[start:].reshape(shape)


def damaged_idx_file(folder: Path) -> str:
    """Return the error of the first damaged idx file of a folder, or an empty string.

    torchvision raises an assertion without a message for such a file.
    """
    for path in sorted(folder.glob("*-ubyte")):
        try:
            read_idx(path, dimensions=3 if "idx3" in path.name else 1)
        except (ValueError, OSError) as error:
            return str(error)
    return ""


def open_idx(folder: Path, *, prefix: str, name: str, class_names: tuple[str, ...], field: str) -> ImageSource:
    """Open a pair of idx files, FOLDER/PREFIX-images-idx3-ubyte and -labels-idx1-ubyte, each plain or with .gz.

    Args:
        folder: Folder of the files.
        prefix: "train" or "t10k", as for MNIST.
        name: Name of the set in tables.
        class_names: Names of the classes 0, 1, ….
        field: Option of the source, named in errors.

    Returns:
        The source of grey images.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a file is damaged, or the numbers of images and labels differ.
    """
    parts = []
    for kind, dimensions in (("images-idx3", 3), ("labels-idx1", 1)):
        plain = folder / f"{prefix}-{kind}-ubyte"
        path = plain if plain.is_file() else plain.with_name(plain.name + ".gz")
        if not path.is_file():
            raise FileNotFoundError(f"data.{field}: {name} needs {plain} (or with .gz), but the file is missing")
        try:
            parts.append(read_idx(path, dimensions=dimensions))
        except ValueError as error:
            raise ValueError(f"data.{field}: {error}") from error
    images, labels = parts[0], parts[1].long()
    if len(images) != len(labels):
        raise ValueError(
            f"data.{field}: {folder}/{prefix}-* must hold a label for each of {len(images)} images, got {len(labels)}"
        )
    if len(labels) and int(labels.max()) >= len(class_names):
        raise ValueError(
            f"data.{field}: {folder}/{prefix}-* must have labels 0…{len(class_names) - 1}, got {int(labels.max())}"
        )
    return ImageSource(
        name=name, labels=labels, class_names=class_names, channels=1, read=lambda index: images[index][None]
    )
