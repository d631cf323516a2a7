"""Slices of the background: each process keeps rows of the whole, and all of them have the digest of the whole."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fastood.data import DataConfig, DetectionTask, EmbeddedConfig, load_task
from fastood.data.images.background_share import BackgroundShare
from fastood.data.images.encoded import EncodedImages
from fastood.data.packed.writer import pack
from fastood.data.sources.local_files import open_arrays
from fastood.data.summary import data_summary
from fastood.train.run_folder import fingerprint
from tests.support.packed_pool_samples import open_tree, write_jpeg, write_tree

OVERLAP = {"ant": "airplane"}
"""An overlap list with a class of the tree."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sources of every kind, of 31 to 37 images."""
    folder = tmp_path_factory.mktemp("sources")
    rng = np.random.default_rng(0)
    np.save(folder / "x.npy", rng.integers(256, size=(20, 10, 10, 3), dtype=np.uint8))
    np.save(folder / "y.npy", np.arange(20) % 2)
    np.save(folder / "few.npy", rng.integers(256, size=(37, 10, 12), dtype=np.uint8))
    tree = write_tree(folder / "tree", per_class=12)
    for number in range(9):
        write_jpeg(tree / "cat" / f"{number}.jpg", seed=number)
    (folder / "paths.txt").write_text("\n".join(open_tree(tree).files[:31]))
    pack(open_arrays(folder / "few.npy", None, field="source"), folder / "pool", origin="npy", size=8, channels=3)
    pack(open_tree(tree), folder / "classes", origin="folder:tree", size=8)
    pack(open_tree(tree), folder / "jpegs", origin="folder:tree", store="jpeg")
    return folder


@pytest.fixture
def config_of(folder: Path, monkeypatch: pytest.MonkeyPatch):
    # Several chunks, and slices that begin within one.
    monkeypatch.setattr("fastood.data.images.image_source._DECODED_AT_ONCE", 7)
    monkeypatch.setattr("fastood.data.images.noise._DRAWN_AT_ONCE", 16)
    monkeypatch.setattr("fastood.data.sources.overlap.overlapping_classes", lambda name: OVERLAP)

    def config(background: str, **options: object) -> DataConfig:
        defaults = {
            "in_dist": f"npy:{folder}/x.npy,{folder}/y.npy",
            "background": background.replace("HERE", str(folder)),
            "ood": ("rademacher",),
            "noise_size": 37,
            "image_size": 8,
        }
        return DataConfig(**(defaults | options))

    return config


def require_slices(config: DataConfig, numbers: tuple[int, ...] = (1, 2, 3)) -> list[DetectionTask]:
    """Check the slices of each number of processes against the whole; return those of the last."""
    whole = load_task(config, seed=1)
    summary, digests = data_summary(config, whole), fingerprint(whole)
    count, everything = len(whole.background), whole.background
    assert (whole.background_begin, whole.background_size, whole.share) == (0, count, None)
    for processes in numbers:
        tasks = [load_task(config, seed=1, share=(rank, processes)) for rank in range(processes)]
        size = -(-count // processes)
        for rank, task in enumerate(tasks):
            begin = rank * size
            index = torch.arange(begin, min(begin + size, count))
            assert (task.background_begin, task.background_size) == (begin, count)
            mine = task.background
            assert torch.equal(mine.pixels(torch.arange(len(mine))), everything.pixels(index))
            assert torch.equal(mine.labels, everything.labels[index])
            assert torch.equal(mine.source, everything.source[index])
            assert (mine.name, mine.source_names) == (everything.name, everything.source_names)
            assert mine.sha256() == everything.subset(index).sha256()
            assert mine.sha256() == everything.rows(begin, begin + len(index)).sha256()
            assert fingerprint(task) == digests
            assert data_summary(config, task) == summary
            assert mine.labels.untyped_storage().nbytes() == 8
        assert sum(len(task.background) for task in tasks) == count
    return tasks


@pytest.mark.parametrize(
    ("background", "options"),
    [
        ("gaussian", {}),
        ("blobs", {}),
        ("uniform", {"blend": 0.3}),
        ("npy:HERE/few.npy", {}),
        ("npy:HERE/few.npy", {"blend": 0.3}),
        ("folder:HERE/tree", {"blend": 0.3}),
    ],
)
def test_slices_of_a_background_that_is_known_by_its_pixels(config_of, background, options):
    tasks = require_slices(config_of(background, **options))
    assert all(len(task.background) == task.background.images.untyped_storage().nbytes() // 192 for task in tasks)


@pytest.mark.parametrize(
    ("background", "options"),
    [
        ("folder:HERE/tree", {}),
        ("folder:HERE/tree", {"exclude_overlap": "stl10-vs-cifar10"}),
        ("list:HERE/paths.txt", {}),
        ("packed:HERE/jpegs", {}),
        ("packed:HERE/jpegs", {"exclude_overlap": "stl10-vs-cifar10"}),
    ],
)
def test_a_process_decodes_the_files_of_its_slice_alone(config_of, background, options, monkeypatch):
    config = config_of(background, **options)
    for task in require_slices(replace(config, decode="stream")):
        assert isinstance(task.background.images, EncodedImages)
    require_slices(config)
    decoded = []

    def decode_images(source, rows, **others):
        decoded.append(len(rows))
        return torch.zeros(len(rows), 3, 8, 8, dtype=torch.uint8)

    monkeypatch.setattr("fastood.data.decoding.decode_images", decode_images)
    task = load_task(config, seed=1, share=(1, 3))
    assert decoded[2:] == [len(task.background)] == [-(-task.background_size // 3)]


def test_slices_of_a_packed_pool_stay_in_its_file(config_of):
    require_slices(config_of("packed:HERE/classes", exclude_overlap="stl10-vs-cifar10"))
    for pool in ("pool", "classes"):
        for task in require_slices(config_of(f"packed:HERE/{pool}")):
            assert task.background.images.untyped_storage().nbytes() == 192 * task.background_size


def test_slices_of_the_embedded_background_and_of_none(config_of):
    require_slices(DataConfig(embedded=EmbeddedConfig(pool_size=70, near_fraction=0.3, ood_size=5), channels=3), (2,))
    task = load_task(config_of("none"), seed=1, share=(2, 3))
    assert (len(task.background), task.background_begin, task.background_size) == (0, 0, 0)
    assert fingerprint(task) == fingerprint(load_task(config_of("none"), seed=1))


def test_a_process_without_an_image_is_refused_on_every_rank_before_decoding(config_of, monkeypatch):
    monkeypatch.setattr("fastood.data.task.decode_set", lambda *_, **__: pytest.fail("decoded"))
    config = config_of("packed:HERE/pool")
    # Slices of ceil(37 / 20) = 2 are for 19 processes.
    for rank in (0, 5, 19):
        with pytest.raises(
            ValueError, match=r"each of the 20 processes, got 37 images, .* slices of 2 for 19 processes"
        ):
            load_task(config, seed=1, share=(rank, 20))
    for share in ((-1, 2), (2, 2), (0, 0)):
        with pytest.raises(ValueError, match=r"share must be \(rank, world_size\) with 0 <= rank < world_size, got"):
            load_task(config, seed=1, share=share)
    for share in ((0.0, 2), (False, 2), 1, (1, 2, 3), [0, 1]):
        with pytest.raises(TypeError, match=r"share must be a pair of integers, \(rank, world_size\), got"):
            load_task(config, seed=1, share=share)


def test_files_that_stay_encoded_cannot_be_blended(config_of):
    config = config_of("folder:HERE/tree", decode="stream", blend=0.3)
    for share in (None, (0, 2), (1, 2)):
        with pytest.raises(ValueError, match="background must be in memory to be blended, tree is still encoded"):
            load_task(config, seed=1, share=share)


def test_a_share_lies_in_the_whole_background(config_of):
    task = load_task(config_of("uniform"), seed=1)
    share = BackgroundShare(begin=1, size=37, digest=str, group_counts=task.background.group_counts)
    with pytest.raises(ValueError, match=r"place the slice in the 37 images of the whole background, got 1…37"):
        replace(task, share=share)
