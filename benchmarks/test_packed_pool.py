"""Random access to a packed pool, beside the same rows in order, from files that are in the page cache."""

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
from fastood.data.packed.pool import PackedPool, open_packed
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
        # Once through: the page cache has it then.
        rows.max()
    return opened


def grow(folder: Path, count: int) -> None:
    """Make a pool of so many images out of a small one, without decoding any."""
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
    """Batches of indices without end; every image is visited before one is seen again."""
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
    """Rows alone are a copy, whose random form waits for the memory's latency, wherever it lies."""
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
    # Uint8 rows are read and copied; a batch of float32 is written beside them.
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
    """Opening maps the files; reading the images into memory is what it saves."""
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
