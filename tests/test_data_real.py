"""Real data sets, as torchvision lays them out under FASTOOD_DATA_ROOT; skipped where they are absent."""

import os
from pathlib import Path

import pytest
import torch

from fastood.data import DataConfig, load_task

ROOT = Path(os.environ.get("FASTOOD_DATA_ROOT", "data"))


@pytest.mark.skipif(not (ROOT / "MNIST" / "raw").is_dir(), reason="no MNIST under FASTOOD_DATA_ROOT")
def test_mnist():
    config = DataConfig(
        in_dist="torchvision:MNIST", background="uniform", ood=("g=gaussian",), root=ROOT, noise_size=100, image_size=28
    )
    task = load_task(config, seed=0)
    assert (len(task.id_train), len(task.id_test), task.num_classes) == (60_000, 10_000, 10)
    # The mean and standard deviation everyone knows.
    pixels = task.id_train.images.float() / 255
    assert pixels.mean().item() == pytest.approx(0.1307, abs=1e-4)
    assert pixels.std().item() == pytest.approx(0.3081, abs=1e-4)
    assert torch.bincount(task.id_test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.mark.parametrize(
    ("name", "train", "test", "classes"), [("FashionMNIST", 60_000, 10_000, 10), ("EMNIST", 124_800, 20_800, 26)]
)
def test_relatives_of_mnist(name, train, test, classes):
    if not (ROOT / name / "raw").is_dir():
        pytest.skip(f"no {name} under FASTOOD_DATA_ROOT")
    config = DataConfig(
        in_dist=f"torchvision:{name}", background="uniform", ood=("g=gaussian",), root=ROOT, noise_size=100,
        image_size=28,
    )  # fmt: skip
    task = load_task(config, seed=0)
    assert (len(task.id_train), len(task.id_test), task.num_classes) == (train, test, classes)
    assert len(task.id_train.class_names) == classes


@pytest.mark.parametrize("name", ["intel-scenes-q75", "dtd10-q75"])
def test_image_trees(name):
    tree = ROOT / name
    if not tree.is_dir():
        pytest.skip(f"no {name} under FASTOOD_DATA_ROOT")
    part = next(path for path in (tree / "test", tree / "train", tree) if path.is_dir())
    config = DataConfig(
        in_dist=f"folder:{part}", background="uniform", ood=("g=gaussian",), noise_size=100, test_fraction=0.5
    )
    task = load_task(config, seed=0)
    assert task.num_classes > 1
    assert task.id_train.images.shape[1:] == (3, 32, 32)
    assert task.id_train.images.float().std() > 20
