"""Packed pools of tiny random images, written fast: each file equals the one that `pack` would write."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from fastood.data.packed.mapped_files import file_sha256
from fastood.data.packed.packed_pool import FORMAT, HEADER

SHAPE = (1, 8, 8)
AT_ONCE = 1 << 16


def write_large_pool(folder: Path, count: int) -> Path:
    """Write a pool of unlabelled images without decoding any.

    Args:
        folder: Folder to create.
        count: Number N of images.

    Returns:
        The folder.
    """
    folder.mkdir(parents=True)
    rng = np.random.default_rng(count)
    of_file = {"images": ("|u1", SHAPE), "labels": ("<i8", ()), "index": ("<i8", ()), "sha256": ("|u1", (32,))}
    images, labels, index, sha256 = (
        np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, (count, *row))
        for name, (dtype, row) in of_file.items()
    )
    for start in range(0, count, AT_ONCE):
        rows = slice(start, min(start + AT_ONCE, count))
        pixels = rng.integers(256, size=(rows.stop - start, *SHAPE), dtype=np.uint8)
        images[rows], labels[rows], index[rows] = pixels, -1, np.arange(start, rows.stop)
        digests = b"".join(hashlib.sha256(image.data).digest() for image in pixels)
        sha256[rows] = np.frombuffer(digests, np.uint8).reshape(-1, 32)
    for file in (images, labels, index, sha256):
        file.flush()
    names = [f"{name}.npy" for name in sorted(of_file)]
    header = {
        "format": FORMAT,
        "name": folder.name,
        "origin": "random pixels",
        "store": "pixels",
        "shape": list(SHAPE),
        "channels": SHAPE[0],
        "class_names": [],
        "class_ids": [],
        "images_in_source": count,
        "images": count,
        "duplicates": 0,
        "skipped": [],
        "label_range": [-1, -1],
        "bytes": {name: (folder / name).stat().st_size for name in names},
        "sha256": {name: file_sha256(folder / name) for name in names if name != "images.npy"},
    }
    (folder / HEADER).write_text(json.dumps(header))
    return folder
