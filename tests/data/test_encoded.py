"""Images that stay files until they are used: the same pixels, the same task, and how they are known again."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fastood.data import DataConfig, ImageSet, load_task, split_images
from fastood.data.images.digests import digest_of_files
from fastood.data.images.encoded import EncodedImages
from fastood.data.packed.packed_pool import open_packed
from fastood.data.packed.writer import pack
from tests.support.packed_pool_samples import flip_byte, open_tree, write_tree


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "tree", per_class=12)


@pytest.fixture
def sources(tree: Path, tmp_path: Path) -> dict[str, str]:
    """The same 25 images in every form that can stay encoded."""
    (tmp_path / "paths.txt").write_text("\n".join(open_tree(tree).files))
    pack(open_tree(tree), tmp_path / "pool", origin="folder:tree", store="jpeg")
    return {
        "folder": f"folder:{tree}",
        "list": f"list:{tmp_path / 'paths.txt'}",
        "packed": f"packed:{tmp_path / 'pool'}",
    }


def background(source: str, **options: object) -> ImageSet:
    config = DataConfig(background=source, ood=("noise=gaussian",), noise_size=5, channels=3, **options)
    return load_task(config, seed=0).background


@pytest.mark.parametrize("form", ["folder", "list", "packed"])
def test_streamed_images_are_those_in_memory(sources, form):
    decoded, streamed = (background(sources[form], decode=decode) for decode in ("memory", "stream"))
    assert isinstance(decoded.images, torch.Tensor)
    assert isinstance(streamed.images, EncodedImages)
    assert streamed.images.shape == tuple(decoded.images.shape)
    assert streamed.images.nbytes == decoded.images.nbytes
    index = torch.tensor([7, 24, 7, 0])
    for some in (index, torch.arange(25)):
        assert torch.equal(streamed.pixels(some), decoded.pixels(some))
    assert torch.equal(streamed.subset(index).pixels(torch.tensor([3, 1])), decoded.images[[0, 24]])
    assert torch.equal(streamed.source, decoded.source)
    assert streamed.source_names == decoded.source_names
    # A run goes on, or is judged again, on a machine that decodes them at another time.
    assert streamed.sha256() == decoded.sha256()
    assert streamed.subset(index).sha256() == decoded.subset(index).sha256() != decoded.sha256()


def test_in_distribution_and_ood_sets_may_be_streamed(tree):
    other = shutil.copytree(tree, tree.parent / "other")
    options = {"in_dist": f"folder:{tree}", "background": "uniform", "ood": (f"near=folder:{other}",), "noise_size": 5}
    decoded, streamed = (load_task(DataConfig(**options, decode=decode), seed=0) for decode in ("memory", "stream"))
    for one, other in (
        (decoded.id_train, streamed.id_train),
        (decoded.id_test, streamed.id_test),
        (decoded.ood["near"], streamed.ood["near"]),
    ):
        assert isinstance(other.images, EncodedImages)
        assert torch.equal(torch.cat(list(split_images(other.images, 4))), one.images)
        assert torch.equal(other.labels, one.labels)
        assert one.sha256() == other.sha256()
    assert isinstance(streamed.background.images, torch.Tensor)


def test_auto_streams_what_is_larger_than_the_budget(sources):
    size = 25 * 3 * 16 * 16
    for budget, kind in ((size, torch.Tensor), (size - 1, EncodedImages)):
        images = background(sources["folder"], decode_budget_gb=budget / 1e9).images
        assert isinstance(images, kind)


def test_arrays_cannot_be_streamed_and_need_not(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((4, 16, 16), dtype=np.uint8))
    assert isinstance(background(f"npy:{tmp_path}/x.npy", decode="stream").images, torch.Tensor)


@pytest.mark.parametrize("size", [1, 7, 25, 100])
def test_split_keeps_the_order(sources, size):
    streamed, decoded = background(sources["packed"], decode="stream"), background(sources["packed"], decode="memory")
    chunks, expected = list(split_images(streamed.images, size)), list(split_images(decoded.images, size))
    assert [len(chunk) for chunk in chunks] == [len(chunk) for chunk in expected]
    assert all(torch.equal(one, other) for one, other in zip(chunks, expected, strict=True))


def test_split_may_be_left_early_and_of_nothing(sources):
    images = background(sources["folder"], decode="stream").images
    assert len(next(split_images(images, 3))) == 3
    assert [len(chunk) for chunk in split_images(images.select(torch.arange(0)), 3)] == [0]


def test_an_unreadable_image_is_named_when_it_is_used(tree, tmp_path):
    path = open_tree(tree).files[3]
    Path(path).write_bytes(b"no image")
    streamed = background(f"folder:{tree}", decode="stream")
    with pytest.raises(ValueError, match=f"unreadable image {path}"):
        list(split_images(streamed.images, 2))
    Path(path).unlink()
    with pytest.raises(ValueError, match=f"unreadable image {path}"):
        streamed.sha256()


def test_damage_to_a_packed_pool_names_the_pool(sources, tmp_path):
    pool = open_packed(tmp_path / "pool")
    begin, end = pool.offsets[2:4].tolist()
    with (tmp_path / "pool" / "images.bin").open("r+b") as file:
        file.seek(begin)
        file.write(bytes(end - begin))
    with pytest.raises(ValueError, match=f"unreadable image 2 of 25 in {tmp_path / 'pool'}"):
        background(sources["packed"], decode="stream").pixels(torch.tensor([2]))
    # A slice, and a selection from one, name the image's number in the pool.
    some = background(sources["packed"], decode="stream").rows(1, 9).subset(torch.tensor([5, 1]))
    with pytest.raises(ValueError, match=f"unreadable image 2 of 25 in {tmp_path / 'pool'}"):
        some.pixels(torch.tensor([1]))


def test_files_are_known_again_by_name_size_and_content(tree, tmp_path):
    before = background(f"folder:{tree}", decode="stream").sha256()
    tree.rename(tmp_path / "moved")
    assert background(f"folder:{tmp_path / 'moved'}", decode="stream").sha256() == before
    changed = tmp_path / "moved" / "bee" / "000.jpg"
    original = changed.read_bytes()
    # Another size, and another content of the same size; nothing is decoded.
    for content in (original + b"x", original[:-1] + bytes([original[-1] ^ 1])):
        changed.write_bytes(content)
        assert background(f"folder:{tmp_path / 'moved'}", decode="stream").sha256() != before
    changed.write_bytes(original)
    changed.rename(changed.with_name("0001.jpg"))
    assert background(f"folder:{tmp_path / 'moved'}", decode="stream").sha256() != before


def test_of_a_large_set_a_part_is_read(tmp_path, monkeypatch):
    files = [str(tmp_path / f"{number}.jpg") for number in range(10)]
    for file in files:
        Path(file).write_bytes(b"a")
    monkeypatch.setattr("fastood.data.images.digests.READ_FILES", 5)
    before = digest_of_files(files)()
    Path(files[1]).write_bytes(b"b")
    assert digest_of_files(files)() == before
    Path(files[2]).write_bytes(b"b")
    assert digest_of_files(files)() != before
    Path(files[2]).write_bytes(b"a")
    Path(files[1]).write_bytes(b"bb")
    assert digest_of_files(files)() != before


def test_a_packed_pool_is_known_by_its_description(sources, tree, tmp_path):
    """Its images are not read: sha256.npy has the digest of each, and pool.json that of sha256.npy."""
    pack(open_tree(tree), tmp_path / "pixels", origin="folder:tree", size=16)
    before = background(f"packed:{tmp_path / 'pixels'}").sha256()
    images = tmp_path / "pixels" / "images.npy"
    flip_byte(images, images.stat().st_size - 1)
    assert background(f"packed:{tmp_path / 'pixels'}").sha256() == before
    (tree / "ant" / "000.jpg").write_bytes((tree / "ant" / "001.jpg").read_bytes())
    pack(open_tree(tree), tmp_path / "others", origin="folder:tree", size=16)
    assert background(f"packed:{tmp_path / 'others'}").sha256() != before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decode": "later"}, "data.decode must be one of auto, memory, stream, got 'later'"),
        ({"decode_budget_gb": -1.0}, "data.decode_budget_gb must be finite and 0 or larger, got -1.0"),
        (
            {"decode": "stream", "loader": "resident"},
            "data.loader resident keeps decoded images, got data.decode stream",
        ),
    ],
)
def test_options_that_do_not_fit(options, message):
    with pytest.raises(ValueError, match=message):
        DataConfig(**options)
