"""Lists of background classes that repeat the in-distribution set, and their use."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastood.data import DataConfig, load_task
from fastood.data.__main__ import main
from fastood.data.packed.packed_pool import open_packed
from fastood.data.packed.writer import pack
from fastood.data.sources.local_files import open_arrays, open_folder
from fastood.data.sources.overlap import overlap_lists, overlapping_classes
from fastood.data.sources.source_spec import parse_spec

CIFAR100 = {
    "apple", "aquarium_fish", "baby", "bear", "beaver", "bed", "bee", "beetle", "bicycle", "bottle", "bowl", "boy",
    "bridge", "bus", "butterfly", "camel", "can", "castle", "caterpillar", "cattle", "chair", "chimpanzee", "clock",
    "cloud", "cockroach", "couch", "crab", "crocodile", "cup", "dinosaur", "dolphin", "elephant", "flatfish", "forest",
    "fox", "girl", "hamster", "house", "kangaroo", "keyboard", "lamp", "lawn_mower", "leopard", "lion", "lizard",
    "lobster", "man", "maple_tree", "motorcycle", "mountain", "mouse", "mushroom", "oak_tree", "orange", "orchid",
    "otter", "palm_tree", "pear", "pickup_truck", "pine_tree", "plain", "plate", "poppy", "porcupine", "possum",
    "rabbit", "raccoon", "ray", "road", "rocket", "rose", "sea", "seal", "shark", "shrew", "skunk", "skyscraper",
    "snail", "snake", "spider", "squirrel", "streetcar", "sunflower", "sweet_pepper", "table", "tank", "telephone",
    "television", "tiger", "tractor", "train", "trout", "tulip", "turtle", "wardrobe", "whale", "willow_tree", "wolf",
    "woman", "worm",
}  # fmt: skip
CIFAR10 = {"airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"}


@pytest.fixture
def stl10_tree(tmp_path: Path) -> Path:
    """STL-10 as a folder: one image a class, of grey 20·label."""
    names = ["airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck"]
    for label, name in enumerate(names):
        (tmp_path / "stl10" / name).mkdir(parents=True)
        Image.new("L", (16, 16), 20 * label).save(tmp_path / "stl10" / name / "0.png")
    return tmp_path / "stl10"


def task_options(background: Path) -> dict[str, object]:
    return {"background": f"folder:{background}", "ood": ("g=gaussian",), "noise_size": 3}


@pytest.mark.parametrize("name", overlap_lists())
def test_every_list_is_of_two_known_sets(name):
    background, in_dist = name.split("-vs-")
    assert parse_spec(background, field="background") != parse_spec(in_dist, field="in_dist")
    classes = overlapping_classes(name)
    assert classes
    if in_dist == "cifar10":
        assert set(classes.values()) <= CIFAR10
    if in_dist == "cifar100":
        assert set(classes.values()) <= CIFAR100
    if background in ("tiny-imagenet", "imagenet"):
        assert all(re.fullmatch(r"n\d{8}", wnid) for wnid in classes)


@pytest.mark.parametrize("in_dist", ["cifar10", "cifar100"])
def test_the_lists_of_tiny_imagenet_are_those_of_imagenet(in_dist):
    """Its classes are ImageNet's: one list may not leave out what the other keeps."""
    imagenet = overlapping_classes(f"imagenet-vs-{in_dist}")
    tiny_imagenet = overlapping_classes(f"tiny-imagenet-vs-{in_dist}")
    assert tiny_imagenet.items() <= imagenet.items()
    assert len(imagenet) > len(tiny_imagenet)


def test_unknown_lists_are_answered_with_the_known_ones():
    message = "must be one of .*tiny-imagenet-vs-cifar10, .*got 'cifar10'"
    with pytest.raises(ValueError, match=f"overlap list {message}"):
        overlapping_classes("cifar10")
    with pytest.raises(ValueError, match=rf"data.exclude_overlap {message}"):
        DataConfig(exclude_overlap="cifar10")


def test_only_the_classes_that_repeat_nothing_are_decoded(stl10_tree):
    everything = load_task(DataConfig(**task_options(stl10_tree)), seed=0)
    task = load_task(DataConfig(**task_options(stl10_tree), exclude_overlap="stl10-vs-cifar10"), seed=0)
    assert (len(everything.background), len(task.background)) == (10, 1)
    assert task.background.source_names[task.background.source[0]] == "monkey"
    assert task.background.images.unique().tolist() == [7 * 20]
    assert torch.equal(task.ood["g"].images, everything.ood["g"].images)


def test_a_list_of_another_background_is_refused(stl10_tree):
    config = DataConfig(**task_options(stl10_tree), exclude_overlap="tiny-imagenet-vs-cifar10")
    with pytest.raises(ValueError, match=r"tiny-imagenet-vs-cifar10 is not for data.background \(stl10\), .*n01641577"):
        load_task(config, seed=0)


def test_a_list_that_leaves_nothing_is_refused(stl10_tree):
    (stl10_tree / "monkey" / "0.png").unlink()
    (stl10_tree / "monkey").rmdir()
    config = DataConfig(**task_options(stl10_tree), exclude_overlap="stl10-vs-cifar10")
    with pytest.raises(ValueError, match=r"data.exclude_overlap: stl10-vs-cifar10 leaves nothing of data.background"):
        load_task(config, seed=0)


@pytest.fixture
def pools(stl10_tree: Path, tmp_path: Path) -> dict[str, Path]:
    """The tree packed in either form."""
    for file in stl10_tree.glob("*/*.png"):
        Image.open(file).save(file.with_suffix(".jpg"))
        file.unlink()
    source = open_folder(stl10_tree, field="source")
    pack(source, tmp_path / "pixels", origin="folder:stl10", size=16)
    pack(source, tmp_path / "jpeg", origin="folder:stl10", store="jpeg")
    return {store: tmp_path / store for store in ("pixels", "jpeg")}


@pytest.mark.parametrize(("store", "decode"), [("pixels", "auto"), ("jpeg", "memory"), ("jpeg", "stream")])
def test_classes_can_be_left_out_of_a_pool(pools, store, decode):
    options = {"ood": ("g=gaussian",), "noise_size": 3, "channels": 3, "decode": decode}
    config = DataConfig(background=f"packed:{pools[store]}", exclude_overlap="stl10-vs-cifar10", **options)
    background = load_task(config, seed=0).background
    assert [background.source_names[label] for label in background.source.tolist()] == ["monkey"]
    assert background.pixels(torch.tensor([0])).unique().tolist() == [7 * 20]
    everything = load_task(DataConfig(background=f"packed:{pools[store]}", **options), seed=0).background
    assert background.sha256() != everything.sha256()


def test_what_is_left_of_a_mapped_pool_must_fit_into_memory(pools):
    config = DataConfig(
        background=f"packed:{pools['pixels']}", ood=("g=gaussian",), channels=3, exclude_overlap="stl10-vs-cifar10",
        decode_budget_gb=0.0,
    )  # fmt: skip
    with pytest.raises(ValueError, match=r"would copy 0.0 GB .* pack it with --exclude-overlap stl10-vs-cifar10"):
        load_task(config, seed=0)


def test_classes_can_be_left_out_while_packing(stl10_tree, tmp_path, capsys):
    command = ["pack", f"folder:{stl10_tree}", str(tmp_path / "pool"), "--size", "16"]
    assert main([*command, "--exclude-overlap", "stl10-vs-cifar10"]) == 0
    pool = open_packed(tmp_path / "pool")
    assert pool.origin == f"folder:{stl10_tree} without the classes of stl10-vs-cifar10"
    assert [pool.class_names[label] for label in pool.labels.tolist()] == ["monkey"]
    # Nothing is left to leave out: the pool stays mapped, whatever the budget.
    config = DataConfig(
        background=f"packed:{tmp_path / 'pool'}", ood=("g=gaussian",), channels=3, exclude_overlap="stl10-vs-cifar10",
        decode_budget_gb=0.0,
    )  # fmt: skip
    assert len(load_task(config, seed=0).background) == 1
    assert main([*command, "--exclude-overlap", "tiny-imagenet-vs-cifar10"]) == 1
    assert "error: exclude_overlap: tiny-imagenet-vs-cifar10 is not for data.source (stl10)" in capsys.readouterr().err


def test_a_pool_keeps_the_ids_by_which_its_classes_are_compared(tmp_path):
    wnids = sorted(overlapping_classes("tiny-imagenet-vs-cifar10"))
    tree = tmp_path / "tree"
    for wnid in [*wnids, "n99999999"]:
        (tree / wnid).mkdir(parents=True)
        Image.new("L", (16, 16), 50).save(tree / wnid / "0.png")
    source = open_folder(tree, field="source")
    named = replace(source, class_ids=source.class_names, class_names=tuple(f"name of {c}" for c in source.class_names))
    pack(named, tmp_path / "pool", origin="tiny-imagenet", size=16)
    config = DataConfig(
        background=f"packed:{tmp_path / 'pool'}", ood=("g=gaussian",), channels=3, noise_size=3,
        exclude_overlap="tiny-imagenet-vs-cifar10",
    )  # fmt: skip
    background = load_task(config, seed=0).background
    assert [background.source_names[label] for label in background.source.tolist()] == ["name of n99999999"]


def test_a_pool_without_classes_cannot_be_compared(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((4, 16, 16), dtype=np.uint8))
    pack(open_arrays(tmp_path / "x.npy", None, field="source"), tmp_path / "bare", origin="npy:x.npy", size=16)
    config = DataConfig(
        background=f"packed:{tmp_path / 'bare'}", ood=("g=gaussian",), exclude_overlap="stl10-vs-cifar10"
    )
    with pytest.raises(ValueError, match=r"needs a data.background with named classes, x has none"):
        load_task(config, seed=0)


@pytest.mark.parametrize("background", ["embedded", "uniform", "npy:pool.npy"])
def test_backgrounds_without_classes_are_refused(background):
    with pytest.raises(ValueError, match=f"needs a data.background with named classes, got '{background}'"):
        DataConfig(background=background, exclude_overlap="stl10-vs-cifar10")
