import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastood.data import DataConfig, EmbeddedConfig, load_task
from fastood.data.packed.packed_pool import open_packed
from fastood.data.packed.writer import pack
from fastood.data.sources.local_files import open_arrays
from fastood.data.sources.source_spec import parse_spec
from tests.support.packed_pool_samples import flip_byte, open_tree, write_tree


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "tree", per_class=12)


@pytest.fixture
def pool(tree, tmp_path) -> Path:
    """25 images, 3×16×16."""
    return pack(open_tree(tree), tmp_path / "pool", origin="folder:tree", size=16).path


@pytest.fixture
def jpeg_pool(tree, tmp_path) -> Path:
    return pack(open_tree(tree), tmp_path / "jpegs", origin="folder:tree", store="jpeg").path


def config(background: str, **options) -> DataConfig:
    return DataConfig(**{"background": background, "ood": ("noise=gaussian",), "noise_size": 5, **options})


def mapped_bytes(file: Path) -> int:
    """Bytes of a mapped file that are in this process's memory."""
    resident, of_file = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            of_file = line.endswith(str(file))
        elif of_file and line.startswith("Rss:"):
            resident += int(line.split()[1]) * 1024
    return resident


def resident(field: str) -> int:
    """Return a field of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(field))


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="asks Linux what is in memory")
def test_pool_of_ten_million_opens_without_reading_it(pool):
    n = 10_000_000
    header = json.loads((pool / "pool.json").read_text())
    for name, dtype, row in (
        ("images", "|u1", (3, 8, 8)),
        ("labels", "<i8", ()),
        ("index", "<i8", ()),
        ("sha256", "|u1", (32,)),
    ):
        # Sparse: it takes no room on the disk.
        np.lib.format.open_memmap(pool / f"{name}.npy", "w+", dtype, (n, *row)).flush()
        header["bytes"][f"{name}.npy"] = (pool / f"{name}.npy").stat().st_size
    changes = {"images": n, "shape": [3, 8, 8], "class_names": [], "label_range": [-1, -1]}
    (pool / "pool.json").write_text(json.dumps({**header, **changes}))
    options = config(f"packed:{pool}", channels=3, image_size=8, embedded=EmbeddedConfig(held_out_digits=()))
    load_task(replace(options, background="none"), seed=0)  # What is imported and cached stays in memory.
    Path("/proc/self/clear_refs").write_text("5")  # Forget the peak so far.
    before = resident("VmRSS")
    whole = load_task(options, seed=0)
    part = load_task(options, seed=0, share=(1, 4))
    assert part.background_digest() == whole.background.sha256()
    assert part.background_groups().tolist() == [n]
    # A byte per image would be 10 MB.
    assert resident("VmHWM") - before < 8 << 20
    images = whole.background.images
    assert images.shape == (n, 3, 8, 8)
    assert images.nbytes == 1_920_000_000
    assert all(mapped_bytes(pool / f"{name}.npy") <= 1 << 16 for name in ("images", "labels", "index"))
    assert images[torch.tensor([5, n - 1])].sum() == part.background.images[[0, -1]].sum() == 0
    assert 0 < mapped_bytes(pool / "images.npy") < 1 << 20


def test_image_set_stays_in_its_file(pool):
    opened = open_packed(pool)
    images = opened.image_set(name="animals")
    assert (images.name, images.source_names, images.class_names) == ("animals", ("ant", "bee"), ())
    assert torch.equal(images.source, torch.tensor([0] * 12 + [1] * 13))
    before = images.images[24, 2, 15, 15].item()
    flip_byte(pool / "images.npy", 128 + 25 * 3 * 16 * 16 - 1)
    assert images.images[24, 2, 15, 15].item() == before ^ 255
    # A selection is a copy of its own.
    assert images.subset(torch.tensor([24])).images.untyped_storage().nbytes() == 3 * 16 * 16


def test_jpeg_pool_has_no_image_set(jpeg_pool):
    with pytest.raises(ValueError, match="holds JPEG files, not pixels"):
        open_packed(jpeg_pool).image_set()


def test_packed_background_is_that_of_the_folder(tree, pool, jpeg_pool):
    of_folder = load_task(config(f"folder:{tree}", channels=3), seed=0).background
    for path in (pool, jpeg_pool):
        task = load_task(config(f"packed:{path}", channels=3), seed=0)
        assert torch.equal(task.background.images, of_folder.images)
        assert torch.equal(task.background.labels, of_folder.labels)
        assert torch.equal(task.background.source, of_folder.source)
        assert task.background.source_names == of_folder.source_names
        assert task.background.name == path.name


def test_packed_background_is_not_decoded(pool):
    task = load_task(config(f"packed:{pool}", channels=3), seed=0)
    before = task.background.images[0, 0, 0, 0].item()
    flip_byte(pool / "images.npy", 128)
    assert task.background.images[0, 0, 0, 0].item() == before ^ 255


def test_packed_ood_set_and_in_distribution(tree, pool, jpeg_pool, tmp_path):
    others = [f"near=packed:{pool}", "noise=gaussian"]
    assert len(load_task(config("uniform", channels=3, ood=tuple(others)), seed=0).ood["near"]) == 25
    options = {"ood": ("noise=gaussian",), "background": "uniform", "image_size": 16, "noise_size": 5}
    folder = load_task(DataConfig(in_dist=f"folder:{tree}", **options), seed=0)
    for path in (pool, jpeg_pool):
        task = load_task(DataConfig(in_dist=f"packed:{path}", **options), seed=0)
        assert torch.equal(task.id_train.images, folder.id_train.images)
        assert torch.equal(task.id_test.labels, folder.id_test.labels)
        assert task.id_train.class_names == ("ant", "bee")
    np.save(tmp_path / "x.npy", np.zeros((4, 16, 16), dtype=np.uint8))
    pack(open_arrays(tmp_path / "x.npy", None, field="source"), tmp_path / "bare", origin="npy:x.npy", size=16)
    with pytest.raises(ValueError, match="must have labels, the packed pool 'x' has none"):
        load_task(DataConfig(in_dist=f"packed:{tmp_path / 'bare'}", **options), seed=0)


@pytest.mark.parametrize("options", [{"channels": 1}, {"channels": 3, "image_size": 32}])
def test_packed_background_of_another_shape(pool, options):
    with pytest.raises(ValueError, match=r"data\.background: the images of the packed pool .*pool are \[3, 16, 16\]"):
        load_task(config(f"packed:{pool}", **options), seed=0)


def test_specification():
    assert parse_spec("packed:a/pool", field="background").name == "pool"
    assert parse_spec("packed:a", field="background").overlaps(parse_spec("packed:./a", field="ood"))
    with pytest.raises(ValueError, match="must have the form packed:PATH"):
        parse_spec("packed:", field="background")
    with pytest.raises(ValueError, match="must have the form list:FILE"):
        parse_spec("list:", field="background")
    with pytest.raises(ValueError, match="must have labels, got a list of files, list:a"):
        config("uniform", in_dist="list:a.txt")


def test_list_as_a_background(tree, tmp_path):
    files = sorted(str(file) for file in tree.glob("*/*.jpg"))
    (tmp_path / "some.txt").write_text("\n".join(files[:7]))
    task = load_task(config(f"list:{tmp_path / 'some.txt'}", channels=3), seed=0)
    assert (len(task.background), task.background.source_names) == (7, ("some",))
    with pytest.raises(FileNotFoundError, match=r"data\.background: there is no file .*none\.txt"):
        load_task(config(f"list:{tmp_path / 'none.txt'}"), seed=0)
    (tmp_path / "latin.txt").write_bytes("ä.jpg".encode("latin-1"))
    with pytest.raises(ValueError, match=r"latin\.txt must list one path per line in UTF-8"):
        load_task(config(f"list:{tmp_path / 'latin.txt'}"), seed=0)


def damage_header(pool: Path, **changes) -> None:
    header = json.loads((pool / "pool.json").read_text())
    (pool / "pool.json").write_text(json.dumps({**header, **changes}))


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (shutil.rmtree, FileNotFoundError, "there is no packed pool .*pool"),
        (lambda pool: (pool / "pool.json").unlink(), ValueError, r"pool is not a packed pool: it has no pool\.json"),
        (lambda pool: (pool / "pool.json").rename(pool / "progress.json"), ValueError, "is an incomplete pool"),
        (lambda pool: (pool / "progress.json").touch(), ValueError, "is an incomplete pool"),
        (lambda pool: os.truncate(pool / "pool.json", 100), ValueError, r"pool\.json is damaged"),
        (lambda pool: damage_header(pool, format="2"), ValueError, r"pool\.json must have the format 'fastood packed"),
        (
            lambda pool: (pool / "labels.npy").unlink(),
            FileNotFoundError,
            r"the file labels\.npy of the packed pool .* is missing",
        ),
        (
            lambda pool: os.truncate(pool / "images.npy", 5000),
            ValueError,
            r"images\.npy must have 19328 bytes, got 5000",
        ),
        (lambda pool: flip_byte(pool / "labels.npy", 0), ValueError, r"labels\.npy is damaged"),
        (
            lambda pool: damage_header(pool, images=24),
            ValueError,
            r"labels\.npy must be int64 \[24\], got int64 \[25\]",
        ),
    ],
)
def test_damaged_pool(pool, damage, error, message):
    damage(pool)
    with pytest.raises(error, match=message):
        open_packed(pool)
    with pytest.raises(error, match=f"data.background: .*{message}"):
        load_task(config(f"packed:{pool}", channels=3), seed=0)


def test_every_flipped_byte_of_an_image_or_the_index_is_found(pool, jpeg_pool):
    for path, images in ((pool, "images.npy"), (jpeg_pool, "images.bin")):
        assert not any(open_packed(path).damage())
        flip_byte(path / images, 128 + 3 * 16 * 16 * 7)
        flip_byte(path / "index.npy", 130)
        damaged = [sentence for sentence in open_packed(path).damage() if sentence is not None]
        assert len(damaged) == 2
        assert damaged[0].startswith("index.npy has sha256 ")
    assert "image 7 has sha256" in [s for s in open_packed(pool).damage() if s][1]
