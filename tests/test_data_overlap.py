"""Lists of background classes that repeat the in-distribution set, and their use."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

from fastood.data import DataConfig, load_task
from fastood.data.overlap import overlap_lists, overlapping_classes
from fastood.data.specs import parse_spec

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
    if background == "tiny-imagenet":
        assert all(re.fullmatch(r"n\d{8}", wnid) for wnid in classes)


def test_unknown_lists_are_answered_with_the_known_ones():
    message = "must be one of .*tiny-imagenet-vs-cifar10, got 'cifar10'"
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


@pytest.mark.parametrize("background", ["embedded", "uniform", "npy:pool.npy"])
def test_backgrounds_without_classes_are_refused(background):
    with pytest.raises(ValueError, match=f"needs a data.background with named classes, got '{background}'"):
        DataConfig(background=background, exclude_overlap="stl10-vs-cifar10")
