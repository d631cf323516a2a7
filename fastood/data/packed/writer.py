"""Writing of packed pools, in parallel and resumable: a kill loses at most some seconds of work.

Images are decoded by threads (Pillow and PyTorch release the GIL; processes were no faster) and appended in the order
of the source. Every few seconds the files are flushed and progress.json records their lengths, to which they are
truncated on resuming. All files are in OUT.partial, which is renamed to OUT at the end.
"""

import hashlib
import json
import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from tqdm import tqdm

from fastood.common.files import remove_temporaries, write_atomically
from fastood.common.locking import LOCK_NAME, hold_lock
from fastood.console.names import printable
from fastood.data.images.image_source import ImageSource, read_image
from fastood.data.images.resize import FITTED_TOGETHER, fit_images, fit_in_turn
from fastood.data.packed.appended_files import PackedFiles, require_disk_space
from fastood.data.packed.mapped_files import file_sha256
from fastood.data.packed.packed_pool import FORMAT, HEADER, PROGRESS, PackedPool, SkippedImage, Store, open_packed

_CHUNK = 64
_CHECKPOINT_SECONDS = 2.0
_JPEG_MAGIC = b"\xff\xd8\xff"


@dataclass(frozen=True)
class _Chunk:
    """Stored bytes of consecutive images of the source, and the images that were skipped."""

    stop: int
    index: list[int]
    content: list[bytes]
    sha256: list[bytes]
    skipped: list[SkippedImage]


def pack(
    source: ImageSource,
    out: Path,
    *,
    origin: str,
    store: Store = "pixels",
    size: int | None = None,
    channels: int | None = None,
    strict: bool = False,
    threads: int | None = None,
) -> PackedPool:
    """Write a packed pool, or resume writing an interrupted one; its bytes do not depend on interruptions.

    Args:
        source: Images to pack.
        out: Folder to create. It is OUT.partial until the pool is complete.
        origin: Option that `source` was opened from, e.g. "folder:pictures"; recorded in the pool.
        store: "pixels" fits every image to one size; "jpeg" keeps the bytes of the files.
        size: Rows and columns of "pixels", 32 by default; None with "jpeg".
        channels: 1 or 3, by default those of the source; None with "jpeg".
        strict: Whether an unreadable image is an error; otherwise it is skipped.
        threads: Decoding threads; by default one per CPU.

    Returns:
        The opened pool.

    Raises:
        FileExistsError: If `out` exists, or OUT.partial holds files that do not belong to an incomplete pool.
        OSError: If a folder cannot be written, or the disk is full. Images that have been packed are kept.
        ValueError: If an argument is out of range, OUT.partial belongs to another source or other options, no image is
            readable, or one is unreadable and `strict` is true.
    """
    plan = _plan(source, origin=origin, store=store, size=size, channels=channels)
    if threads is not None and threads < 1:
        raise ValueError(f"threads must be 1 or larger, got {threads}")
    if out.exists() or out.is_symlink():
        raise FileExistsError(f"{out} exists: remove it, or choose another folder")
    partial = out.with_name(f"{out.name}.partial")
    with hold_lock(partial, doing="writing this pool"):
        remove_temporaries(partial, PROGRESS, HEADER)
        progress = _read_progress(partial, plan)
        if progress is not None:
            _write_images(source, plan, partial, progress, strict=strict, threads=threads or os.cpu_count() or 1)
        (partial / PROGRESS).unlink(missing_ok=True)
        # Before the renaming, so that a complete pool never names an owner. The folder stays locked.
        (partial / LOCK_NAME).unlink(missing_ok=True)
        partial.rename(out)
    return open_packed(out)


def _plan(source: ImageSource, *, origin: str, store: Store, size: int | None, channels: int | None) -> dict[str, Any]:
    """Check the arguments, and return the fields that decide the bytes of a pool."""
    if store not in ("pixels", "jpeg"):
        raise ValueError(f"store must be pixels or jpeg, got {store!r}")
    if len(source) == 0:
        raise ValueError(f"source must hold at least one image, {origin} has none")
    if store == "jpeg":
        for name, value in (("size", size), ("channels", channels)):
            if value is not None:
                raise ValueError(
                    f"{name} must be left out with store 'jpeg', which keeps files as they are, got {value}"
                )
        if source.files is None:
            raise ValueError(f"store 'jpeg' needs a source of image files, got {origin}")
    size = 32 if size is None else size
    channels = source.channels if channels is None else channels
    if size < 1:
        raise ValueError(f"size must be 1 or larger, got {size}")
    if channels not in (1, 3):
        raise ValueError(f"channels must be 1 or 3, got {channels}")
    left_out = source.left_out
    sha256 = hashlib.sha256("\0".join(source.files or ()).encode("utf-8", "surrogateescape"))
    if source.labels is not None:
        sha256.update(source.labels.numpy().astype("<i8").tobytes())
    return {
        "format": FORMAT,
        "name": source.name,
        "origin": origin,
        "store": store,
        "shape": [channels, size, size] if store == "pixels" else None,
        "channels": channels,
        "class_names": list(source.class_names),
        "class_ids": list(source.class_ids),
        "images_in_source": len(source),
        "files_and_labels_sha256": sha256.hexdigest(),
        # Left out if empty, so that the plan equals that of pools of earlier versions.
        **({"left_out": [asdict(one) | {"examples": list(one.examples)} for one in left_out]} if left_out else {}),
    }


def _read_progress(partial: Path, plan: dict[str, Any]) -> dict[str, Any] | None:
    """Return the progress of an interrupted pool or of a new one, or None if only the renaming is missing."""
    file = partial / (HEADER if (partial / HEADER).exists() else PROGRESS)
    if not file.exists():
        others = sorted({entry.name for entry in partial.iterdir()} - {LOCK_NAME})
        if others:
            raise FileExistsError(f"{partial} holds files that do not belong to an incomplete pool, e.g. {others[0]}")
        return {**plan, "done": 0, "images": 0, "encoded_bytes": 0, "skipped": []}
    progress = json.loads(file.read_bytes())
    for field, value in plan.items():
        if progress.get(field) != value:
            raise ValueError(
                f"{partial} is part of another pool: its {field} is {progress.get(field)!r}, now {value!r}; remove it, "
                "or repeat the command that created it"
            )
    return None if file.name == HEADER else progress


def _write_images(
    source: ImageSource, plan: dict[str, Any], partial: Path, progress: dict[str, Any], *, strict: bool, threads: int
) -> None:
    """Write the missing images and the header."""
    shape: list[int] | None = plan["shape"]

    def read(start: int) -> _Chunk:
        return _read_chunk(source, range(start, min(start + _CHUNK, len(source))), shape)

    if strict and progress["skipped"]:
        raise ValueError(f"{partial} has skipped images already: remove it to pack with strict")
    missing = len(source) - progress["done"]
    with require_disk_space(partial, missing * int(np.prod(shape)) if shape else 0):
        # Before any other file: a folder without it is taken for foreign.
        _write_progress(partial, progress)
        bar = tqdm(
            total=len(source), initial=progress["done"], desc=f"packing {source.name}", unit=" images", disable=None
        )
        with bar, PackedFiles(partial, shape, progress["images"], progress["encoded_bytes"]) as files:
            checkpoint = time.monotonic()
            for chunk in _in_order(read, range(progress["done"], len(source), _CHUNK), threads):
                if time.monotonic() - checkpoint >= _CHECKPOINT_SECONDS or (strict and chunk.skipped):
                    files.sync()
                    _write_progress(partial, progress)
                    checkpoint = time.monotonic()
                if strict and chunk.skipped:
                    raise ValueError(f"{chunk.skipped[0].reason} (image {chunk.skipped[0].index} of {plan['origin']})")
                labels = [-1 if source.labels is None else int(source.labels[i]) for i in chunk.index]
                files.append(chunk.content, sha256=chunk.sha256, index=chunk.index, labels=labels)
                bar.update(chunk.stop - progress["done"])
                progress |= {"done": chunk.stop, "images": files.count, "encoded_bytes": files.encoded_bytes}
                progress["skipped"] += [asdict(image) for image in chunk.skipped]
            if files.count == 0:
                raise ValueError(f"no image of {plan['origin']} is readable, e.g. {progress['skipped'][0]['reason']}")
            files.finish()
        _write_header(partial, plan, progress)


def _write_progress(partial: Path, progress: dict[str, Any]) -> None:
    """Record how many images are complete."""
    write_atomically(partial / PROGRESS, json.dumps(progress).encode())


def _write_header(partial: Path, plan: dict[str, Any], progress: dict[str, Any]) -> None:
    """Write pool.json, which completes the pool."""
    sha256, labels = (np.load(partial / f"{name}.npy", mmap_mode="r") for name in ("sha256", "labels"))
    names = sorted(file.name for file in partial.iterdir() if file.suffix in (".npy", ".bin"))
    header = {
        **plan,
        "images": progress["images"],
        "duplicates": len(sha256) - len(np.unique(np.ascontiguousarray(sha256).view("V32"))),
        "skipped": progress["skipped"],
        "label_range": [int(labels.min()), int(labels.max())],
        "bytes": {name: (partial / name).stat().st_size for name in names},
        "sha256": {name: file_sha256(partial / name) for name in names if not name.startswith("images.")},
    }
    write_atomically(partial / HEADER, (json.dumps(header, indent=1) + "\n").encode())


def _in_order(read: Callable[[int], _Chunk], starts: range, threads: int) -> Iterator[_Chunk]:
    """Yield chunks in order, read in parallel a few chunks ahead."""
    with ThreadPoolExecutor(threads) as executor:
        running: deque[Future[_Chunk]] = deque()
        try:
            for start in starts:
                running.append(executor.submit(read, start))
                if len(running) > 2 * threads:
                    yield running.popleft().result()
            while running:
                yield running.popleft().result()
        finally:
            for future in running:
                future.cancel()


def _read_chunk(source: ImageSource, indices: range, shape: list[int] | None) -> _Chunk:
    """Read consecutive images, and convert them to the stored bytes."""
    chunk = _Chunk(indices.stop, [], [], [], [])

    def readable() -> Iterator[Tensor]:
        """Yield the readable images, and record the others as skipped."""
        for i in indices:
            try:
                image = source.read(i)
                # Large images are fitted here, where exhausted memory skips one image; small ones in batches below.
                if shape is not None and image.numel() > FITTED_TOGETHER:
                    image = fit_images(image[None], size=shape[1], channels=shape[0])[0]
            except (ValueError, RuntimeError) as error:
                chunk.skipped.append(SkippedImage(i, _named(error, source, i)))
            else:
                chunk.index.append(i)
                yield image

    if shape is None:
        for i in indices:
            try:
                chunk.content.append(_read_jpeg(source, i))
            except ValueError as error:
                chunk.skipped.append(SkippedImage(i, str(error)))
            else:
                chunk.index.append(i)
    else:
        channels, size, _ = shape
        fitted = fit_in_turn(readable(), size=size, channels=channels)
        chunk.content.extend(image.numpy().tobytes() for image in fitted)
    chunk.sha256.extend(hashlib.sha256(content).digest() for content in chunk.content)
    return chunk


def _named(error: Exception, source: ImageSource, i: int) -> str:
    """Return the reason why an image was skipped. PyTorch's error for exhausted memory does not name the file."""
    if isinstance(error, ValueError):
        return str(error)
    name = f"image {i}" if source.files is None else printable(source.files[i])
    return f"unreadable image {name}: {str(error).splitlines()[0]}"


def _read_jpeg(source: ImageSource, i: int) -> bytes:
    """Return the bytes of a JPEG file, after decoding it once as a check."""
    assert source.files is not None  # Checked in `_plan`.
    path = source.files[i]
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ValueError(f"unreadable image {printable(path)}: {error.strerror}") from error
    if not content.startswith(_JPEG_MAGIC):
        raise ValueError(f"unreadable image {printable(path)}: not a JPEG file")
    read_image(path, content)
    return content
