"""Packed pools: millions of images in one folder of a few large files, mapped into memory instead of read.

| file | content |
|---|---|
| pool.json | origin, number, shape and classes of the images, and the skipped ones; written last |
| images.npy | uint8 `[N, C, H, W]`, the images of store "pixels" |
| images.bin, offsets.npy | bytes of the image files end to end, and int64 `[N + 1]`, their starts: store "jpeg" |
| labels.npy | int64 `[N]`, the class of each image, or -1 |
| index.npy | int64 `[N]`, the index of each image in its source without excluded classes; skipped ones are missing |
| sha256.npy | uint8 `[N, 32]`, the digest of each image's bytes |

NumPy's format was chosen because a training batch is a gather of random rows: a row of an .npy file has a known
address, `numpy.load(mmap_mode="r")` opens 4 GB at once without reading them, and other tools read it without fastood.
Tar shards (WebDataset) are made for sequential reading; Arrow adds a dependency, and offsets to rows of equal length.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from torch import Tensor

from fastood.console.names import printable
from fastood.data.images.image_set import ImageSet
from fastood.data.images.image_source import ImageSource, read_image
from fastood.data.images.lazy_files import FileContents
from fastood.data.images.left_out import LeftOut
from fastood.data.images.row_values import constant_rows
from fastood.data.packed.mapped_files import file_sha256, map_array, read_only_tensor

Store = Literal["pixels", "jpeg"]
"""Storage of each image: its pixels at one size, or its JPEG file unchanged."""

FORMAT = "fastood packed pool, version 1"
HEADER, PROGRESS = "pool.json", "progress.json"
_COMPARED = 1 << 20


@dataclass(frozen=True)
class SkippedImage:
    """An image that was not packed."""

    index: int
    """Index of the image in the source."""
    reason: str
    """Reason that names the file."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedPool:
    """An opened pool.

    Its tensors are memory-mapped: they are read on use. They are read-only, and writing to one ends the process with a
    segmentation fault.
    """

    path: Path
    """The folder."""
    name: str
    """Name of the set in tables."""
    origin: str
    """The source that was packed, e.g. "folder:pictures"."""
    class_names: tuple[str, ...]
    """Names of the classes; empty if the classes have none."""
    class_ids: tuple[str, ...]
    """WordNet ids of the classes; empty if the source has none."""
    labels: Tensor
    """int64 `[N]`, the class of each image in its source, or -1."""
    index: Tensor
    """int64 `[N]`, the index of each image in its source."""
    sha256: Tensor
    """uint8 `[N, 32]`, the SHA-256 of each image's stored bytes."""
    images: Tensor | None
    """uint8 `[N, C, H, W]`; None in a pool of JPEG files."""
    encoded: Tensor | None
    """uint8 `[bytes]`, all JPEG files end to end; None in a pool of pixels."""
    offsets: Tensor | None
    """int64 `[N + 1]`, the start of each file in `encoded`, and its end; None in a pool of pixels."""
    channels: int
    """Channels of the images, 1 or 3."""
    duplicates: int
    """Number of images with the same bytes as an earlier one."""
    skipped: tuple[SkippedImage, ...]
    """Images of the source that could not be read."""
    digests: dict[str, str]
    """SHA-256 of the small files, by name."""
    label_range: tuple[int, int]
    """Smallest and largest label."""
    left_out: tuple[LeftOut, ...] = ()
    """Files and folders among the source's images that were not read."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def store(self) -> Store:
        """Storage of each image."""
        return "jpeg" if self.images is None else "pixels"

    @property
    def nbytes(self) -> int:
        """Bytes of all files but pool.json."""
        return sum((self.path / name).stat().st_size for name in (_images_name(self.store), *self.digests))

    def stored(self, i: int) -> Tensor:
        """Return an image as it is stored: its pixels, uint8 `[C, H, W]`, or its JPEG file, uint8 `[bytes]`."""
        if self.images is not None:
            return self.images[i]
        assert self.encoded is not None
        assert self.offsets is not None
        return self.encoded[int(self.offsets[i]) : int(self.offsets[i + 1])]

    def image_set(self, *, name: str | None = None) -> ImageSet:
        """Return the images as a background or OOD set, still mapped; classes become sources, every label is -1.

        Args:
            name: Name of the set in tables; by default the name of the pool.

        Raises:
            ValueError: If the pool holds JPEG files, which must be decoded first.
        """
        if self.images is None:
            raise ValueError(f"{self.path} holds JPEG files, not pixels: decode them with as_source()")
        return ImageSet(
            name=self.name if name is None else name,
            images=self.images,
            labels=constant_rows(-1, len(self)),
            source=self.labels if self.class_names else constant_rows(0, len(self)),
            source_names=self.class_names or (self.name,),
            digest=self.digest,
            digest_covers_rows=True,
            left_out=self.left_out,
        )

    def digest(self) -> str:
        """Return the SHA-256 of the small files' digests; sha256.npy makes it depend on every image."""
        return hashlib.sha256(json.dumps(self.digests, sort_keys=True).encode()).hexdigest()

    def as_source(self) -> ImageSource:
        """Return the images as a source that is read one by one."""

        def read(i: int) -> Tensor:
            stored = self.stored(i)
            if self.images is not None:
                return stored
            return read_image(f"{i} of {self.path}", content=stored.numpy().tobytes())

        return ImageSource(
            name=self.name,
            labels=self.labels if self.label_range[0] >= 0 else None,
            class_names=self.class_names,
            class_ids=self.class_ids,
            channels=self.channels,
            read=read,
            size=len(self),
            contents=None if self.encoded is None or self.offsets is None else FileContents(self.encoded, self.offsets),
            place=str(self.path),
            mapped=self.images,
            digest=self.digest,
            digest_covers_rows=True,
            left_out=self.left_out,
        )

    def damage(self) -> Iterator[str | None]:
        """Recompute every digest.

        Yields:
            For each small file and each image a message if it is damaged, else None.
        """
        for name, expected in self.digests.items():
            actual = file_sha256(self.path / name)
            yield None if actual == expected else f"{name} has sha256 {actual}, not {expected}"
        for i in range(len(self)):
            actual = hashlib.sha256(self.stored(i).numpy().data).hexdigest()
            expected = self.sha256[i].numpy().tobytes().hex()
            yield None if actual == expected else f"image {i} has sha256 {actual}, not {expected}"


def open_packed(path: Path) -> PackedPool:
    """Open a packed pool; images are read on use.

    Args:
        path: Folder that `fastood.data.packed.writer.pack` has written.

    Returns:
        The pool.

    Raises:
        FileNotFoundError: If there is no such folder, or a file is missing in it.
        ValueError: If the folder is not a pool, the pool is incomplete, or a file does not have its original size.

    Example:
        >>> import tempfile
        >>> from fastood.data.packed.writer import pack
        >>> from fastood.data.sources.local_files import open_arrays
        >>> folder = Path(tempfile.mkdtemp())
        >>> np.save(folder / "noise.npy", np.zeros((5, 40, 40, 3), dtype=np.uint8))
        >>> source = open_arrays(folder / "noise.npy", None, field="source")
        >>> _ = pack(source, folder / "pool", origin="npy:noise.npy", size=32)
        >>> pool = open_packed(folder / "pool")
        >>> len(pool), pool.images.shape, pool.duplicates
        (5, torch.Size([5, 3, 32, 32]), 4)
    """
    if not path.is_dir():
        raise FileNotFoundError(f"there is no packed pool {path}")
    header = _read_header(path)
    try:
        pool = _open_files(path, header)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path / HEADER} is damaged: {error!r}") from error
    _require_indices(pool)
    return pool


def _open_files(path: Path, header: dict[str, Any]) -> PackedPool:
    """Open the files of a pool, and check their sizes against the header."""
    n, pixels = header["images"], header["store"] == "pixels"
    if not isinstance(n, int) or header["store"] not in get_args(Store):
        raise TypeError(f"images must be an integer and store pixels or jpeg, got {n!r} and {header['store']!r}")
    images_name = _images_name(header["store"])
    small = {"labels.npy", "index.npy", "sha256.npy"} | (set() if pixels else {"offsets.npy"})
    if set(header["bytes"]) != small | {images_name} or set(header["sha256"]) != small:
        raise ValueError(f"{path / HEADER} is damaged: it must list {', '.join(sorted(small | {images_name}))}")
    for name, size in header["bytes"].items():
        file = path / name
        if not file.is_file():
            raise FileNotFoundError(f"the file {name} of the packed pool {path} is missing")
        if file.stat().st_size != size:
            raise ValueError(
                f"{file} must have {size} bytes, got {file.stat().st_size}: it was truncated or overwritten"
            )
    return PackedPool(
        path=path,
        name=printable(header["name"]),
        origin=header["origin"],
        class_names=tuple(map(printable, header["class_names"])),
        # Pools of earlier versions have no ids.
        class_ids=tuple(header.get("class_ids", ())),
        labels=map_array(path / "labels.npy", "int64", (n,)),
        index=map_array(path / "index.npy", "int64", (n,)),
        sha256=map_array(path / "sha256.npy", "uint8", (n, 32)),
        images=map_array(path / "images.npy", "uint8", (n, *header["shape"])) if pixels else None,
        encoded=None if pixels else read_only_tensor(np.memmap(path / "images.bin", np.uint8, mode="r")),
        offsets=None if pixels else map_array(path / "offsets.npy", "int64", (n + 1,)),
        channels=header["channels"],
        duplicates=header["duplicates"],
        skipped=tuple(SkippedImage(**image) for image in header["skipped"]),
        digests=header["sha256"],
        label_range=_label_range(path, header),
        left_out=tuple(LeftOut(one["reason"], one["count"], tuple(one["examples"])) for one in header["left_out"])
        if "left_out" in header
        else (),
    )


def _label_range(path: Path, header: dict[str, Any]) -> tuple[int, int]:
    """Return the smallest and the largest label; labels of a pool without any are not read."""
    # Pools of earlier versions do not have it.
    if header.get("label_range") == [-1, -1] and not header["class_names"]:
        return -1, -1
    labels = map_array(path / "labels.npy", "int64", (header["images"],))
    return (int(labels.min()), int(labels.max())) if len(labels) else (-1, -1)


def _require_indices(pool: PackedPool) -> None:
    """Check that labels and offsets are in range."""
    classes, (low, high), offsets = len(pool.class_names), pool.label_range, pool.offsets
    if low < -1 or (classes and high >= classes):
        expected = f"in -1…{classes - 1}" if classes else "-1 or larger"
        raise ValueError(f"{pool.path / 'labels.npy'} is damaged: labels must be {expected}, got {low}…{high}")
    if offsets is None or pool.encoded is None:
        return
    # In chunks, which overlap by one: a comparison of all offsets at once would take a byte for each.
    parts = (offsets[start : start + _COMPARED + 1] for start in range(0, len(pool), _COMPARED))
    ascending = all(bool((part[1:] >= part[:-1]).all()) for part in parts)
    if int(offsets[0]) != 0 or int(offsets[-1]) != len(pool.encoded) or not ascending:
        raise ValueError(f"{pool.path / 'offsets.npy'} is damaged: offsets must ascend from 0 to {len(pool.encoded)}")


def _read_header(path: Path) -> dict[str, Any]:
    file = path / HEADER
    if (path / PROGRESS).exists() or (path.suffix == ".partial" and not file.exists()):
        raise ValueError(f"{path} is an incomplete pool: repeat the pack command to resume writing it")
    try:
        header = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise ValueError(f"{path} is not a packed pool: it has no {HEADER}") from error
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"{file} must have the format {FORMAT!r}: it was written by another program or version")
    return header


def _images_name(store: Store) -> str:
    return "images.npy" if store == "pixels" else "images.bin"
