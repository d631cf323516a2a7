"""Random access to a packed pool in the page cache, compared with the same rows in order and with memory."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import Comparison, compare, copy_bandwidth
from torch import Tensor

from fastood.data.images.augment import Augment
from fastood.data.packed.packed_pool import PackedPool, open_packed
from fastood.data.packed.writer import pack
from fastood.data.sources.local_files import open_arrays

IMAGES = 400_000
SIZE = 32


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> PackedPool:
    """1.2 GB of 32×32 images, far more than any cache holds."""
    folder = tmp_path_factory.mktemp("packed")
    np.save(folder / "few.npy", np.random.default_rng(0).integers(256, size=(64, SIZE, SIZE, 3), dtype=np.uint8))
    pack(open_arrays(folder / "few.npy", None, field="source"), folder / "pool", origin="npy:few.npy", size=SIZE)
    grow(folder / "pool", IMAGES)
    opened = open_packed(folder / "pool")
    assert opened.images is not None
    for rows in opened.images.split(4096):
        # Read once, so that the file is in the page cache.
        rows.max()
    return opened


def grow(folder: Path, count: int) -> None:
    """Build a large pool by repeating a small one, without decoding images."""
    header = json.loads((folder / "pool.json").read_text())
    for name in header["bytes"]:
        few = np.load(folder / name)
        grown = np.lib.format.open_memmap(folder / name, "w+", few.dtype, (count, *few.shape[1:]))
        for start in range(0, count, len(few)):
            grown[start : start + len(few)] = few[: count - start]
        grown.flush()
        header["bytes"][name] = (folder / name).stat().st_size
    (folder / "pool.json").write_text(json.dumps({**header, "images": count}))


def batches(order: Tensor, batch: int) -> Iterator[Tensor]:
    """Return an endless cycle of batches of indices; every image is visited before one repeats."""
    return itertools.cycle(torch.split(order[: len(order) - len(order) % batch], batch))


@pytest.mark.parametrize("batch", [128, 512])
@pytest.mark.parametrize("what", ["training batch", "rows alone"])
def test_random_access(
    pool: PackedPool,
    what: str,
    batch: int,
    device: str,
    budget: dict[str, float],
    record: Callable[[Comparison, Callable[[], object]], None],
) -> None:
    """Compare raw rows: a copy, whose random form is bound by memory latency in either case."""
    if device != "cpu":
        pytest.skip("reads files")
    images = pool.images
    assert images is not None
    augment, generator = Augment(flip=True), torch.Generator().manual_seed(0)
    orders = {"in order": torch.arange(len(pool)), "at random": torch.randperm(len(pool), generator=generator)}

    def provider(stored: Tensor, order: str) -> Callable[[], Tensor]:
        walk = batches(orders[order], batch)

        def rows() -> Tensor:
            return torch.index_select(stored, 0, next(walk))

        return rows if what == "rows alone" else lambda: augment(rows(), generator=generator)

    providers = {name: provider(images, name) for name in ("at random", "in order")}
    providers["at random from memory"] = provider(images.clone(), "at random")
    # Uint8 rows are read and copied, and a batch of float32 is written.
    moved = (2 if what == "rows alone" else 6) * batch * images[0].nbytes
    bandwidth = copy_bandwidth("cpu", 256 << 20)
    comparison = compare(
        f"packed pool, {what}",
        f"{batch} of {len(pool)}x3x{SIZE}x{SIZE}",
        providers,
        subject="at random",
        dtype="uint8" if what == "rows alone" else "float32",
        device=device,
        floor=moved / bandwidth,
        floor_is=f"{moved} bytes at the {bandwidth / 1e9:.1f} GB/s of a copy of 256 MiB",
        **budget,
    )
    record(comparison, providers["at random"])


def test_opening(
    pool: PackedPool,
    device: str,
    budget: dict[str, float],
    record: Callable[[Comparison, Callable[[], object]], None],
) -> None:
    """Compare opening a pool, which maps its files, with reading its images into memory."""
    if device != "cpu":
        pytest.skip("reads files")
    providers = {
        "mapped": lambda: open_packed(pool.path).image_set(),
        "read": lambda: np.load(pool.path / "images.npy"),
    }
    comparison = compare(
        "opening a packed pool",
        f"{len(pool)}x3x{SIZE}x{SIZE}",
        providers,
        subject="mapped",
        dtype="uint8",
        device=device,
        floor=None,
        floor_is="",
        **budget,
    )
    record(comparison, providers["mapped"])
