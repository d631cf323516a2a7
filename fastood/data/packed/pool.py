"""Packed pools: millions of images in one folder of a few large files, mapped into memory instead of read.

| file | what |
|---|---|
| pool.json | where the images come from, how many, their shape and classes, what was skipped; written last |
| images.npy | uint8 [N, C, H, W], the images of store "pixels" |
| images.bin, offsets.npy | the image files' own bytes end to end, and int64 [N + 1] where each begins: store "jpeg" |
| labels.npy | int64 [N], the class of each image, or -1 |
| index.npy | int64 [N], the place of each image in its source, less excluded classes: unreadable ones are missing |
| sha256.npy | uint8 [N, 32], the digest of each image's bytes |

NumPy's own format was chosen because a training batch is a gather of random rows: a row of an .npy file lies at a known
address, `numpy.load(mmap_mode="r")` opens 4 GB at once without reading them, and every tool reads it without us. Tar
shards (WebDataset) are made for sequential reading, and Arrow adds a dependency and offsets to rows that are all of
one length.
"""

import hashlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tokenize import TokenError
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from fastood.console.names import printable
from fastood.data.images.image_set import ImageSet
from fastood.data.images.image_source import ImageSource, read_image
from fastood.data.images.lazy_files import FileContents
from fastood.data.images.left_out import LeftOut

Store = Literal["pixels", "jpeg"]
"""What a pool holds of each image: its pixels at one size, or the JPEG file as it was."""

FORMAT = "fastood packed pool, version 1"
HEADER, PROGRESS = "pool.json", "progress.json"


@dataclass(frozen=True)
class SkippedImage:
    """An image that was not packed."""

    index: int
    """Its place in the source."""
    reason: str
    """Why; names the file."""


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedPool:
    """An opened pool.

    Its tensors are mapped from files: in memory only as far as they are used, and read-only in earnest, writing to them
    ends the process.
    """

    path: Path
    """The folder."""
    name: str
    """What tables call the set."""
    origin: str
    """The source that was packed, e.g. "folder:pictures"."""
    class_names: tuple[str, ...]
    """Names of the classes; empty if they have none."""
    class_ids: tuple[str, ...]
    """Their WordNet ids, where the source knew them."""
    labels: Tensor
    """int64 [N], the class of each image in its source, or -1."""
    index: Tensor
    """int64 [N], the place of each image in its source."""
    sha256: Tensor
    """uint8 [N, 32], of each image's bytes as stored."""
    images: Tensor | None
    """uint8 [N, C, H, W]; None in a pool of JPEG files."""
    encoded: Tensor | None
    """uint8 [bytes], all JPEG files end to end; None in a pool of pixels."""
    offsets: Tensor | None
    """int64 [N + 1] into `encoded`; None in a pool of pixels."""
    channels: int
    """1 or 3."""
    duplicates: int
    """Images whose bytes repeat those of an earlier one."""
    skipped: tuple[SkippedImage, ...]
    """Images of the source that could not be read."""
    digests: dict[str, str]
    """SHA-256 of the small files, by name."""
    left_out: tuple[LeftOut, ...] = ()
    """Files and folders among the source's images that were not read."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def store(self) -> Store:
        """What the pool holds of each image."""
        return "jpeg" if self.images is None else "pixels"

    @property
    def nbytes(self) -> int:
        """Bytes of all files but pool.json."""
        return sum((self.path / name).stat().st_size for name in (_images_name(self.store), *self.digests))

    def stored(self, i: int) -> Tensor:
        """The bytes of an image as they are stored: uint8 [C, H, W], or [bytes] of a JPEG file."""
        if self.images is not None:
            return self.images[i]
        # One of the two stores is there.
        assert self.encoded is not None
        assert self.offsets is not None
        return self.encoded[int(self.offsets[i]) : int(self.offsets[i + 1])]

    def image_set(self, *, name: str | None = None) -> ImageSet:
        """The images as a background or OOD set, still mapped; classes become sources, every label is -1.

        Args:
            name: What tables call the set; by default the pool's own name.

        Raises:
            ValueError: The pool holds JPEG files, which must be decoded first.
        """
        if self.images is None:
            raise ValueError(f"{self.path} holds JPEG files, not pixels: decode them with as_source()")
        return ImageSet(
            name=self.name if name is None else name,
            images=self.images,
            labels=torch.full((len(self),), -1),
            source=self.labels if self.class_names else torch.zeros(len(self), dtype=torch.int64),
            source_names=self.class_names or (self.name,),
            digest=self.digest,
            left_out=self.left_out,
        )

    def digest(self) -> str:
        """SHA-256 of the small files' digests, and so of every image, by sha256.npy."""
        return hashlib.sha256(json.dumps(self.digests, sort_keys=True).encode()).hexdigest()

    def as_source(self) -> ImageSource:
        """The images to be read one by one, in the way of a folder's."""

        def read(i: int) -> Tensor:
            stored = self.stored(i)
            if self.images is not None:
                return stored
            return read_image(f"{i} of {self.path}", content=stored.numpy().tobytes())

        labelled = bool((self.labels >= 0).all())
        return ImageSource(
            name=self.name,
            labels=self.labels if labelled else None,
            class_names=self.class_names,
            class_ids=self.class_ids,
            channels=self.channels,
            read=read,
            size=len(self),
            contents=None if self.encoded is None or self.offsets is None else FileContents(self.encoded, self.offsets),
            place=str(self.path),
            mapped=self.images,
            digest=self.digest,
            left_out=self.left_out,
        )

    def damage(self) -> Iterator[str | None]:
        """Recompute every digest: for each small file and each image a sentence if it is damaged, else None."""
        for name, wanted in self.digests.items():
            found = file_sha256(self.path / name)
            yield None if found == wanted else f"{name} has sha256 {found}, not {wanted}"
        for i in range(len(self)):
            found = hashlib.sha256(self.stored(i).numpy().data).hexdigest()
            wanted = self.sha256[i].numpy().tobytes().hex()
            yield None if found == wanted else f"image {i} has sha256 {found}, not {wanted}"


def open_packed(path: Path) -> PackedPool:
    """Open a packed pool; only its description is read, images when they are used.

    Args:
        path: The folder that `fastood.data.packed.writer.pack` has made.

    Returns:
        The pool.

    Raises:
        FileNotFoundError: There is no such folder, or a file is missing in it.
        ValueError: It is no pool, half-written, or a file does not have the size that it was written with.

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
    """The pool of a header, each of its files at its size."""
    n, pixels = header["images"], header["store"] == "pixels"
    if not isinstance(n, int) or header["store"] not in get_args(Store):
        raise TypeError(f"images must be a number and store pixels or jpeg, got {n!r} and {header['store']!r}")
    images_name = _images_name(header["store"])
    small = {"labels.npy", "index.npy", "sha256.npy"} | (set() if pixels else {"offsets.npy"})
    if set(header["bytes"]) != small | {images_name} or set(header["sha256"]) != small:
        raise ValueError(f"{path / HEADER} is damaged: it must tell of {', '.join(sorted(small | {images_name}))}")
    for name, size in header["bytes"].items():
        file = path / name
        if not file.is_file():
            raise FileNotFoundError(f"the packed pool {path} has lost its file {name}")
        if file.stat().st_size != size:
            raise ValueError(f"{file} must have {size} bytes, got {file.stat().st_size}: it was cut or overwritten")
    return PackedPool(
        path=path,
        name=printable(header["name"]),
        origin=header["origin"],
        class_names=tuple(map(printable, header["class_names"])),
        # Absent from pools that were packed before ids were kept.
        class_ids=tuple(header.get("class_ids", ())),
        labels=_map_array(path / "labels.npy", "int64", (n,)),
        index=_map_array(path / "index.npy", "int64", (n,)),
        sha256=_map_array(path / "sha256.npy", "uint8", (n, 32)),
        images=_map_array(path / "images.npy", "uint8", (n, *header["shape"])) if pixels else None,
        encoded=None if pixels else _tensor(np.memmap(path / "images.bin", np.uint8, mode="r")),
        offsets=None if pixels else _map_array(path / "offsets.npy", "int64", (n + 1,)),
        channels=header["channels"],
        duplicates=header["duplicates"],
        skipped=tuple(SkippedImage(**image) for image in header["skipped"]),
        digests=header["sha256"],
        left_out=tuple(LeftOut(one["reason"], one["count"], tuple(one["examples"])) for one in header["left_out"])
        if "left_out" in header
        else (),
    )


def _require_indices(pool: PackedPool) -> None:
    """Refuse labels and offsets that lead out of the pool."""
    classes, labels, offsets = len(pool.class_names), pool.labels, pool.offsets
    if len(labels) and (int(labels.min()) < -1 or (classes and int(labels.max()) >= classes)):
        wanted = f"in -1…{classes - 1}" if classes else "-1 or larger"
        found = f"{int(labels.min())}…{int(labels.max())}"
        raise ValueError(f"{pool.path / 'labels.npy'} is damaged: labels must be {wanted}, got {found}")
    if offsets is None or pool.encoded is None:
        return
    if int(offsets[0]) != 0 or int(offsets[-1]) != len(pool.encoded) or bool((offsets[1:] < offsets[:-1]).any()):
        raise ValueError(f"{pool.path / 'offsets.npy'} is damaged: offsets must ascend from 0 to {len(pool.encoded)}")


def _read_header(path: Path) -> dict[str, Any]:
    file = path / HEADER
    if (path / PROGRESS).exists() or (path.suffix == ".partial" and not file.exists()):
        raise ValueError(f"{path} is a half-written pool: give the same pack command again, and it goes on")
    try:
        header = json.loads(file.read_bytes())
    except FileNotFoundError as error:
        raise ValueError(f"{path} is no packed pool: it has no {HEADER}") from error
    except ValueError as error:
        raise ValueError(f"{file} is damaged: {error}") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(f"{file} must say format {FORMAT!r}: it was written by another program or version")
    return header


def _images_name(store: Store) -> str:
    return "images.npy" if store == "pixels" else "images.bin"


def _map_array(path: Path, dtype: str, shape: tuple[int, ...]) -> Tensor:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, SyntaxError, EOFError, TokenError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if array.dtype != dtype or array.shape != shape:
        raise ValueError(f"{path} must be {dtype} {list(shape)}, got {array.dtype} {list(array.shape)}")
    return _tensor(array)


def _tensor(array: "np.ndarray[Any, Any]") -> Tensor:
    with warnings.catch_warnings():
        # PyTorch cannot express read-only. A private writable map would count against the memory limit in full.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
