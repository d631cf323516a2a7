"""`python -m fastood.data pack`, `info` and `verify`: the commands of packed pools."""

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
from fastood.data.packed.packed_pool import PackedPool, Store, open_packed
from fastood.data.packed.writer import pack
from fastood.data.sources.named_sets import Part
from fastood.data.sources.open_source import open_source
from fastood.data.sources.overlap import without_overlap
from fastood.data.sources.source_spec import parse_spec

_LISTED = 20


@dataclass(frozen=True, kw_only=True)
class PackCommand:
    """Pack images into one pool, which opens immediately at any size.

    Repeat an interrupted command to resume it. Train with the pool by --data.background packed:OUT.
    """

    source: Annotated[str, tyro.conf.Positional]
    """folder:PATH (PATH/CLASS/IMAGE, or PATH/IMAGE for images without classes), list:FILE (a path per line),
    torchvision:NAME (under --root), npy:IMAGES.npy[,LABELS.npy], or packed:PATH."""
    out: Annotated[Path, tyro.conf.Positional]
    """Folder to create. It is called OUT.partial until the pool is complete."""
    store: Store = "pixels"
    """pixels: uint8 at one size. jpeg: the bytes of the files, decoded on use."""
    size: int | None = None
    """Rows and columns; the shorter edge is resized to this, then the centre is cropped. Default: 32. Not with jpeg."""
    channels: Literal[1, 3] | None = None
    """1 (grey) or 3 (RGB). Default: that of the source, RGB for files. Not with jpeg."""
    exclude_overlap: str | None = None
    """Leave out the classes that repeat an in-distribution set, by a list of fastood/data/sources/overlap."""
    strict: bool = False
    """Stop at an unreadable image; otherwise it is skipped and listed."""
    threads: int | None = None
    """Decoding threads. Default: one per CPU."""
    part: Part = "train"
    """Part of a torchvision dataset."""
    root: Path = Path("data")
    """Folder of the torchvision datasets."""
    download: bool = False
    """Let torchvision fetch a dataset that is missing under the root."""

    def run(self) -> int:
        """Write the pool, and print its size.

        Returns:
            0; errors are raised.
        """
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
    """Show the contents of a packed pool."""

    pool: Annotated[Path, tyro.conf.Positional]
    """Folder of the pool."""
    skipped: bool = False
    """List all skipped images instead of the first ones."""

    def run(self) -> int:
        """Print the table of the pool.

        Returns:
            0, always.
        """
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
            # As text, since a path may contain characters of rich's markup.
            table.add_row(name, Text(printable(value)))
        Console().print(table)
        print_skipped(pool, len(pool.skipped) if self.skipped else _LISTED)
        return 0


@dataclass(frozen=True, kw_only=True)
class VerifyCommand:
    """Recompute the digests of all images of a packed pool and of its index."""

    pool: Annotated[Path, tyro.conf.Positional]
    """Folder of the pool."""

    def run(self) -> int:
        """Print damaged images and files.

        Returns:
            0 if nothing is damaged, else 1.
        """
        pool = open_packed(expanded(self.pool))
        total = len(pool) + len(pool.digests)
        progress = tqdm(pool.damage(), total=total, desc=f"verifying {pool.name}", unit=" images", disable=None)
        damaged = [message for message in progress if message is not None]
        for message in damaged[:_LISTED]:
            print(f"damaged: {printable(message)}")
        if len(damaged) > _LISTED:
            print(f"and {len(damaged) - _LISTED:,} more")
        state = f"{counted(len(pool), 'image')}, {f'{len(damaged):,} damaged' if damaged else 'all intact'}"
        print(f"{printable(str(self.pool))}: {state}")
        return 1 if damaged else 0


def source_lines(text: str, source: ImageSource) -> Iterator[str]:
    """Describe an opened source: its images, its classes, and the files that were left out.

    Args:
        text: The source as options spell it.
        source: The opened source.

    Yields:
        Lines without line ends.
    """
    classes = ""
    if source.class_names:
        classes = f", {counted(len(source.class_names), 'class', 'classes')} ({first_of(source.class_names, 6)})"
    yield f"read: {text}, {counted(len(source), 'image')}{classes}"
    if source.left_out:
        yield f"left out: {'; '.join(map(str, source.left_out))}"


def print_skipped(pool: PackedPool, limit: int) -> None:
    """Print the first skipped images, at most `limit`."""
    for image in pool.skipped[:limit]:
        print(f"skipped: image {image.index}: {printable(image.reason)}")
    if len(pool.skipped) > limit:
        print(f"skipped: {len(pool.skipped) - limit:,} more; info --skipped lists them")
