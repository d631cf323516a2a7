"""The commands of packed pools: `python -m fastood.data pack`, `info` and `verify`."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tqdm import tqdm

from fastood.console.names import expanded, first_of, printable
from fastood.console.wording import counted
from fastood.data.images.image_source import ImageSource
from fastood.data.packed.pool import PackedPool, Store, open_packed
from fastood.data.packed.writer import pack
from fastood.data.sources.named_sets import Part
from fastood.data.sources.open_source import open_source
from fastood.data.sources.overlap import without_overlap
from fastood.data.sources.source_spec import parse_spec

_LISTED = 20


@dataclass(frozen=True, kw_only=True)
class PackCommand:
    """Turn images into one packed pool, which opens at once however large it is.

    An interrupted command is given again and goes on. Train with it by --data.background packed:OUT.
    """

    source: Annotated[str, tyro.conf.Positional]
    """folder:PATH (PATH/CLASS/IMAGE, or PATH/IMAGE for images without classes), list:FILE (a path per line),
    torchvision:NAME (under --root), npy:IMAGES.npy[,LABELS.npy], or packed:PATH."""
    out: Annotated[Path, tyro.conf.Positional]
    """Folder to make. Until the pool is whole it is called OUT.partial."""
    store: Store = "pixels"
    """pixels: uint8 at one size. jpeg: the bytes of the files, decoded when they are used."""
    size: int | None = None
    """Rows and columns; the shorter edge is resized to this, then the centre is cropped. Default: 32. Not with jpeg."""
    channels: Literal[1, 3] | None = None
    """1 (grey) or 3 (RGB). Default: that of the source, files counting as RGB. Not with jpeg."""
    exclude_overlap: str | None = None
    """Leave out the classes that repeat an in-distribution set, by a list of fastood/data/sources/overlap."""
    strict: bool = False
    """Stop at an image that cannot be read; otherwise it is left out and listed."""
    threads: int | None = None
    """Threads that decode. Default: one per CPU."""
    part: Part = "train"
    """Which part of a torchvision dataset."""
    root: Path = Path("data")
    """Folder of the torchvision datasets."""
    download: bool = False
    """Let torchvision fetch a dataset that is missing under root."""

    def run(self) -> int:
        """Pack; 0 if the pool is whole."""
        spec, out = parse_spec(self.source, field="source"), expanded(self.out)
        source = open_source(spec, field="source", part=self.part, root=self.root, download=self.download)
        origin = self.source
        if self.exclude_overlap is not None:
            source = without_overlap(source, self.exclude_overlap, field="source")
            origin += f" without the classes of {self.exclude_overlap}"
        for line in source_lines(str(spec), source):
            print(line, flush=True)
        pool = pack(
            source,
            out,
            origin=origin,
            store=self.store,
            size=self.size,
            channels=self.channels,
            strict=self.strict,
            threads=self.threads,
        )
        print_skipped(pool, _LISTED)
        print(f"{counted(len(pool), 'image')}, {pool.nbytes / 2**20:,.1f} MiB: {printable(str(out))}")
        return 0


@dataclass(frozen=True, kw_only=True)
class InfoCommand:
    """Show what a packed pool holds."""

    pool: Annotated[Path, tyro.conf.Positional]
    """The folder."""
    skipped: bool = False
    """List every image that was left out, not the first ones alone."""

    def run(self) -> int:
        """Print; 0."""
        pool = open_packed(expanded(self.pool))
        shape = "as in the files" if pool.images is None else "×".join(map(str, pool.images.shape[1:]))
        rows = {
            "path": str(pool.path),
            "packed from": pool.origin,
            "images": f"{len(pool):,}",
            "store": f"{pool.store}, {shape}",
            "size": f"{pool.nbytes / 2**20:,.1f} MiB",
            "classes": f"{len(pool.class_names):,} ({first_of(pool.class_names, 6)})" if pool.class_names else "none",
            "exact duplicates": f"{pool.duplicates:,}",
            "left out": "; ".join(map(str, pool.left_out)) or "nothing",
            "unreadable": f"{len(pool.skipped):,}",
            "sha256 of digests": pool.digests["sha256.npy"],
        }
        table = Table(show_header=False, title=Text(pool.name, style="table.title"), title_justify="left")
        table.add_column()
        table.add_column(overflow="fold")
        for name, value in rows.items():
            # As text, for a path may hold what looks like markup.
            table.add_row(name, Text(printable(value)))
        Console().print(table)
        print_skipped(pool, len(pool.skipped) if self.skipped else _LISTED)
        return 0


@dataclass(frozen=True, kw_only=True)
class VerifyCommand:
    """Recompute the digest of every image of a packed pool and of its index."""

    pool: Annotated[Path, tyro.conf.Positional]
    """The folder."""

    def run(self) -> int:
        """Print what is damaged; 0 if nothing is, else 1."""
        pool = open_packed(expanded(self.pool))
        total = len(pool) + len(pool.digests)
        progress = tqdm(pool.damage(), total=total, desc=f"verifying {pool.name}", unit=" images", disable=None)
        damaged = [sentence for sentence in progress if sentence is not None]
        for sentence in damaged[:_LISTED]:
            print(f"damaged: {printable(sentence)}")
        if len(damaged) > _LISTED:
            print(f"and {len(damaged) - _LISTED:,} more")
        state = f"{counted(len(pool), 'image')}, {len(damaged):,} damaged" if damaged else "whole"
        print(f"{printable(str(self.pool))}: {state}")
        return 1 if damaged else 0


def source_lines(spelt: str, source: ImageSource) -> Iterator[str]:
    """Tell what an opened source holds: its images, its classes, and what was left out.

    Args:
        spelt: The source as options spell it.
        source: The opened source.

    Yields:
        Lines without their ends.
    """
    classes = ""
    if source.class_names:
        classes = f", {counted(len(source.class_names), 'class', 'classes')} ({first_of(source.class_names, 6)})"
    yield f"read: {spelt}, {counted(len(source), 'image')}{classes}"
    if source.left_out:
        yield f"left out: {'; '.join(map(str, source.left_out))}"


def print_skipped(pool: PackedPool, limit: int) -> None:
    """List images that were left out, the first ones."""
    for image in pool.skipped[:limit]:
        print(f"skipped: image {image.index}: {printable(image.reason)}")
    if len(pool.skipped) > limit:
        print(f"skipped: {len(pool.skipped) - limit:,} more; info --skipped lists them")
