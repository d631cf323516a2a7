import errno
import hashlib
import os
import resource
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastood.common.locking import LOCK_NAME, hold_lock
from fastood.data.images.image_source import decode_images
from fastood.data.packed import writer as packing
from fastood.data.packed.appended_files import AppendedArray, AppendedFile
from fastood.data.packed.packed_pool import SkippedImage
from fastood.data.packed.writer import pack
from fastood.data.sources.local_files import open_arrays, open_list
from tests.support.packed_pool_samples import digests, open_tree, write_jpeg, write_tree


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "tree")


def test_pixels_are_those_of_the_source(tree, tmp_path):
    source = open_tree(tree)
    pool = pack(source, tmp_path / "pool", origin="folder:tree", size=20, channels=1)
    assert torch.equal(pool.images, decode_images(source, torch.arange(len(source)), size=20, channels=1))
    assert torch.equal(pool.labels, source.labels)
    assert torch.equal(pool.index, torch.arange(161))
    digest = [hashlib.sha256(image.numpy().tobytes()).digest() for image in pool.images]
    assert pool.sha256.numpy().tobytes() == b"".join(digest)
    assert (pool.class_names, pool.origin, pool.name, pool.duplicates) == (("ant", "bee"), "folder:tree", "tree", 1)
    assert not (tmp_path / "pool.partial").exists()


def test_jpeg_keeps_the_bytes_of_the_files(tree, tmp_path):
    source = open_tree(tree)
    pool = pack(source, tmp_path / "pool", origin="folder:tree", store="jpeg")
    assert [pool.stored(i).numpy().tobytes() for i in range(161)] == [Path(f).read_bytes() for f in source.files]
    decoded = decode_images(pool.as_source(), torch.arange(161), size=20, channels=3)
    assert torch.equal(decoded, decode_images(source, torch.arange(161), size=20, channels=3))
    assert (pool.store, pool.images, pool.duplicates) == ("jpeg", None, 1)


def test_arrays_and_lists_can_be_packed(tree, tmp_path):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).integers(256, size=(150, 16, 16), dtype=np.uint8))
    pool = pack(open_arrays(tmp_path / "x.npy", None, field="source"), tmp_path / "x", origin="npy:x.npy", size=16)
    assert np.array_equal(pool.images[:, 0].numpy(), np.load(tmp_path / "x.npy"))
    assert pool.labels.unique().tolist() == [-1]
    files = [str(tree / "ant/005.jpg"), str(tree / "bee/001.jpg")]
    (tmp_path / "some.txt").write_text("\n".join(files) + "\n\n")
    pool = pack(open_list(tmp_path / "some.txt", field="source"), tmp_path / "some", origin="list:some.txt")
    whole = open_tree(tree)
    assert torch.equal(pool.images, decode_images(whole, torch.tensor([5, 81]), size=32, channels=3))


@pytest.mark.parametrize("store", ["pixels", "jpeg"])
def test_bytes_do_not_depend_on_threads(tree, tmp_path, store):
    for threads in (1, 3):
        pack(open_tree(tree), tmp_path / f"by{threads}", origin="folder:tree", store=store, threads=threads)
    assert digests(tmp_path / "by1") == digests(tmp_path / "by3")


def test_unreadable_images_are_left_out_and_listed(tree, tmp_path):
    (tree / "ant/001.jpg").write_bytes(b"no image")
    cut = tree / "bee/003.jpg"
    cut.write_bytes(cut.read_bytes()[:400])
    (tree / "bee/004.jpg").write_bytes(b"")
    write_jpeg(tree / "bee/new.jpg", seed=7)
    for store in ("pixels", "jpeg"):
        pool = pack(open_tree(tree), tmp_path / store, origin="folder:tree", store=store)
        assert [image.index for image in pool.skipped] == [1, 83, 84]
        assert all(str(tree) in image.reason for image in pool.skipped)
        assert len(pool) == 159
        assert pool.index[:3].tolist() == [0, 2, 3]
        assert torch.equal(pool.labels, open_tree(tree).labels[pool.index])


def test_jpeg_store_leaves_out_other_files(tree, tmp_path):
    from PIL import Image

    Image.new("RGB", (40, 40)).save(tree / "ant/000.png")
    pool = pack(open_tree(tree), tmp_path / "pool", origin="folder:tree", store="jpeg")
    assert pool.skipped == (SkippedImage(1, f"unreadable image {tree}/ant/000.png: not a JPEG file"),)


def test_strict_stops_and_goes_on_once_the_file_is_mended(tree, tmp_path):
    pack(open_tree(tree), tmp_path / "whole", origin="folder:tree")
    good = (tree / "bee/050.jpg").read_bytes()
    (tree / "bee/050.jpg").write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"unreadable image .*bee/050\.jpg.*image 130 of folder:tree"):
        pack(open_tree(tree), tmp_path / "pool", origin="folder:tree", strict=True)
    assert not (tmp_path / "pool").exists()
    (tree / "bee/050.jpg").write_bytes(good)
    reads: list[int] = []
    source = open_tree(tree)
    counted = replace(source, read=lambda i: (reads.append(i), source.read(i))[1])
    pack(counted, tmp_path / "pool", origin="folder:tree", strict=True)
    assert min(reads) == 128
    assert digests(tmp_path / "pool") == digests(tmp_path / "whole")


def test_strict_after_images_were_left_out(tree, tmp_path, monkeypatch):
    (tree / "ant/001.jpg").write_bytes(b"no image")
    monkeypatch.setattr(packing, "_CHECKPOINT_SECONDS", 0.0)
    _interrupt(tree, tmp_path / "pool")
    with pytest.raises(ValueError, match="skipped images already"):
        pack(open_tree(tree), tmp_path / "pool", origin="folder:tree", strict=True)


def _interrupt(tree: Path, out: Path) -> None:
    """Leave an incomplete pool."""
    source = open_tree(tree)

    def read(i: int) -> torch.Tensor:
        if i == 130:
            raise KeyboardInterrupt
        return source.read(i)

    with pytest.raises(KeyboardInterrupt):
        pack(replace(source, read=read), out, origin="folder:tree", threads=1)
    assert not out.exists()


def test_nothing_readable(tree, tmp_path):
    for file in tree.glob("*/*.jpg"):
        file.write_bytes(b"no image")
    with pytest.raises(ValueError, match=r"no image of folder:tree is readable, e\.g\. unreadable image .*000\.jpg"):
        pack(open_tree(tree), tmp_path / "pool", origin="folder:tree")
    assert not (tmp_path / "pool").exists()


@pytest.mark.parametrize(
    ("change", "field"),
    [({"size": 16}, "shape"), ({"channels": 1}, "shape"), ({"store": "jpeg"}, "store"), ({"origin": "x"}, "origin")],
)
def test_half_of_another_pool_is_not_gone_on_with(tree, tmp_path, change, field):
    _interrupt(tree, tmp_path / "pool")
    with pytest.raises(ValueError, match=f"part of another pool: its {field}"):
        pack(open_tree(tree), tmp_path / "pool", **{"origin": "folder:tree", **change})


def test_changed_tree_is_another_pool(tree, tmp_path):
    _interrupt(tree, tmp_path / "pool")
    (tree / "bee/000.jpg").rename(tree / "ant/new.jpg")
    with pytest.raises(ValueError, match="files_and_labels_sha256"):
        pack(open_tree(tree), tmp_path / "pool", origin="folder:tree")


def test_damaged_half_is_refused(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(packing, "_CHECKPOINT_SECONDS", 0.0)
    _interrupt(tree, tmp_path / "pool")
    os.truncate(tmp_path / "pool.partial/images.npy", 1000)
    with pytest.raises(ValueError, match=r"images\.npy is damaged"):
        pack(open_tree(tree), tmp_path / "pool", origin="folder:tree")


def test_nothing_is_overwritten(tree, tmp_path):
    (tmp_path / "pool").mkdir()
    with pytest.raises(FileExistsError, match="pool exists"):
        pack(open_tree(tree), tmp_path / "pool", origin="folder:tree")
    (tmp_path / "new.partial").mkdir()
    (tmp_path / "new.partial/images.npy").write_bytes(b"mine")
    with pytest.raises(FileExistsError, match=r"new\.partial holds files that do not belong to an incomplete pool"):
        pack(open_tree(tree), tmp_path / "new", origin="folder:tree")
    assert (tmp_path / "new.partial/images.npy").read_bytes() == b"mine"


def test_one_writer_at_a_time(tree, tmp_path):
    with (
        hold_lock(tmp_path / "pool.partial", doing="writing this pool"),
        pytest.raises(BlockingIOError, match=rf"another process \(pid {os.getpid()}, host .*\) is writing this pool"),
    ):
        pack(open_tree(tree), tmp_path / "pool", origin="folder:tree")
    assert len(pack(open_tree(tree), tmp_path / "pool", origin="folder:tree")) == 161
    assert not (tmp_path / "pool" / LOCK_NAME).exists()


def test_full_disk_is_named_and_costs_nothing(tree, tmp_path):
    pack(open_tree(tree), tmp_path / "whole", origin="folder:tree")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    # The kernel refuses to let a file grow beyond this, as it would on a full disk.
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, before[1]))
    try:
        with pytest.raises(OSError, match=r"the disk is full; free some space.*pool\.partial") as caught:
            pack(open_tree(tree), tmp_path / "pool", origin="folder:tree")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert caught.value.errno == errno.EFBIG
    assert not (tmp_path / "pool").exists()
    pack(open_tree(tree), tmp_path / "pool", origin="folder:tree")
    assert digests(tmp_path / "pool") == digests(tmp_path / "whole")


def test_room_is_asked_for_first(tree, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=161 * 32 * 32 * 3 - 1))
    with pytest.raises(OSError, match=r"MiB are needed, .* MiB are free.*pool\.partial") as caught:
        pack(open_tree(tree), tmp_path / "pool", origin="folder:tree")
    assert caught.value.errno == errno.ENOSPC


def test_no_permission_names_the_folder(tree, tmp_path):
    source = open_tree(tree)
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    user = os.geteuid()
    if user == 0:
        # Root may write everywhere.
        os.seteuid(65534)
    try:
        with pytest.raises(PermissionError, match=str(closed)):
            pack(source, closed / "pool", origin="folder:tree")
    finally:
        os.seteuid(user)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"store": "png"}, "store must be pixels or jpeg, got 'png'"),
        ({"store": "jpeg", "size": 32}, "size must be left out with store 'jpeg'"),
        ({"store": "jpeg", "channels": 3}, "channels must be left out with store 'jpeg'"),
        ({"size": 0}, "size must be 1 or larger, got 0"),
        ({"channels": 2}, "channels must be 1 or 3, got 2"),
        ({"threads": 0}, "threads must be 1 or larger, got 0"),
    ],
)
def test_arguments_are_checked_before_anything_is_written(tree, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        pack(open_tree(tree), tmp_path / "pool", origin="folder:tree", **options)
    assert not (tmp_path / "pool.partial").exists()


def test_jpeg_store_needs_files(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((3, 8, 8), dtype=np.uint8))
    source = open_arrays(tmp_path / "x.npy", None, field="source")
    with pytest.raises(ValueError, match="needs a source of image files, got npy:x"):
        pack(source, tmp_path / "pool", origin="npy:x", store="jpeg")
    np.save(tmp_path / "none.npy", np.zeros((0, 8, 8), dtype=np.uint8))
    with pytest.raises(ValueError, match="at least one image, npy:none has none"):
        pack(open_arrays(tmp_path / "none.npy", None, field="source"), tmp_path / "pool", origin="npy:none")


@pytest.mark.parametrize(("dtype", "row"), [("<i8", ()), ("|u1", (3, 5, 7)), ("|u1", (32,))])
@pytest.mark.parametrize("kept", [0, 1, 4])
def test_array_is_cut_back_and_goes_on(tmp_path, dtype, row, kept):
    rows = np.random.default_rng(0).integers(100, size=(9, *row)).astype(dtype)
    array = AppendedArray(tmp_path / "a.npy", dtype, row, rows=0)
    array.append(rows[:6])
    array.close()
    array = AppendedArray(tmp_path / "a.npy", dtype, row, rows=kept)
    array.append(rows[kept:7])
    array.append(rows[7:].tobytes())
    array.finish()
    array.close()
    assert np.array_equal(np.load(tmp_path / "a.npy"), rows)


def test_file_shorter_than_what_counts(tmp_path):
    (tmp_path / "a").write_bytes(b"123")
    with pytest.raises(ValueError, match="must have at least 4 bytes, got 3"):
        AppendedFile(tmp_path / "a", 4)
    assert (tmp_path / "a").read_bytes() == b"123"
