"""Sources to pack, and what the tests of packed pools compare."""

import hashlib
from pathlib import Path

import numpy as np
from PIL import Image

from fastood.data.images.image_source import ImageSource
from fastood.data.sources.local_files import open_folder


def write_jpeg(path: Path, *, seed: int, width: int = 40, height: int = 36) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(256, size=(6, 6, 3), dtype=np.uint8)
    Image.fromarray(coarse).resize((width, height), Image.Resampling.BILINEAR).save(path, "JPEG", quality=90)


def write_tree(root: Path, per_class: int = 80) -> Path:
    """Two classes of JPEG files of different sizes; the last file of the second repeats its first."""
    for label, name in enumerate(["ant", "bee"]):
        for i in range(per_class):
            write_jpeg(root / name / f"{i:03}.jpg", seed=1000 * label + i, width=40 + i % 3)
    (root / "bee/zzz.jpg").write_bytes((root / "bee/000.jpg").read_bytes())
    return root


def open_tree(root: Path) -> ImageSource:
    return open_folder(root, field="source")


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file, by name."""
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(folder.iterdir())}


def flip_byte(path: Path, position: int) -> None:
    """Damage a file in place."""
    with path.open("r+b") as file:
        file.seek(position)
        (value,) = file.read(1)
        file.seek(position)
        file.write(bytes([value ^ 255]))
