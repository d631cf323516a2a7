"""Real data sets, as torchvision lays them out under FASTOOD_DATA_ROOT; skipped where they are absent."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastood.data import DataConfig, load_task
from fastood.data.sources.local_files import open_folder
from fastood.data.sources.named_sets import NAMED_SETS
from fastood.data.sources.open_source import open_source
from fastood.data.sources.overlap import without_overlap
from fastood.data.sources.source_spec import parse_spec
from fastood.samplers import BackgroundPool
from fastood.train import cli as train
from fastood.train.report.illustrations import SHEET_IMAGES
from fastood.train.report.learnt_weights import extreme_images
from fastood.train.run_folder import RunFolder

ROOT = Path(os.environ.get("FASTOOD_DATA_ROOT", "data"))


@pytest.mark.skipif(not (ROOT / "MNIST" / "raw").is_dir(), reason="no MNIST under FASTOOD_DATA_ROOT")
def test_mnist():
    config = DataConfig(
        in_dist="mnist", background="uniform", ood=("g=gaussian",), root=ROOT, noise_size=100, image_size=28
    )
    task = load_task(config, seed=0)
    assert (len(task.id_train), len(task.id_test), task.num_classes) == (60_000, 10_000, 10)
    # The mean and standard deviation everyone knows.
    pixels = task.id_train.images.float() / 255
    assert pixels.mean().item() == pytest.approx(0.1307, abs=1e-4)
    assert pixels.std().item() == pytest.approx(0.3081, abs=1e-4)
    assert torch.bincount(task.id_test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]


@pytest.mark.parametrize(
    ("name", "train", "test", "classes"),
    [("fashion-mnist", 60_000, 10_000, 10), ("emnist-letters", 124_800, 20_800, 26)],
)
def test_relatives_of_mnist(name, train, test, classes):
    if "test" not in NAMED_SETS[name].present(ROOT):
        pytest.skip(f"no {name} under FASTOOD_DATA_ROOT")
    config = DataConfig(
        in_dist=name, background="uniform", ood=("g=gaussian",), root=ROOT, noise_size=100,
        image_size=28,
    )  # fmt: skip
    task = load_task(config, seed=0)
    assert (len(task.id_train), len(task.id_test), task.num_classes) == (train, test, classes)
    assert len(task.id_train.class_names) == classes


@pytest.mark.parametrize(
    ("name", "count", "shape", "darker"),
    [
        ("notmnist", 10_000, (1, 28, 28), False),
        ("omniglot-small1", 2_720, (1, 105, 105), True),
        ("omniglot-small2", 3_120, (1, 105, 105), True),
    ],
)
def test_sets_that_torchvision_does_not_have(name, count, shape, darker):
    known = NAMED_SETS[name]
    if "test" not in known.present(ROOT):
        pytest.skip(f"no {name} under FASTOOD_DATA_ROOT")
    source = open_source(parse_spec(name, field="ood"), field="ood", part="ood", root=ROOT, download=False)
    assert (len(source), len(source.class_names)) == (count, known.classes)
    assert source.read(0).shape == shape
    if darker:  # Strokes are bright and rare once inverted, as in MNIST.
        assert source.read(0).float().mean() < 64


TREES = {
    # Classes and images of each part.
    "cifar10-q75": (10, {"train": 50_000, "test": 10_000}),
    "svhn-test10k-q75": (10, {"test": 10_000}),
    "dtd10-q75": (10, {"test": 1_200}),
    "intel-scenes-q75": (6, {"test": 10_899}),
    "tiny-imagenet-train-q75": (200, {"train": 100_000}),
}


@pytest.mark.parametrize("name", TREES)
def test_trees_are_whole(name):
    tree = ROOT / name
    if not tree.is_dir():
        pytest.skip(f"no {name} under FASTOOD_DATA_ROOT")
    classes, images = TREES[name]
    parts = {path.name: path for path in tree.iterdir() if path.is_dir()}
    sources = {part: open_folder(path, field="ood") for part, path in parts.items()}
    assert all(len(source.class_names) == classes for source in sources.values())
    assert {part: len(source) for part, source in sources.items()} == images
    assert all(source.read(0).shape == (3, 32, 32) for source in sources.values())


def test_tiny_imagenet_without_the_classes_of_cifar10():
    tree = ROOT / "tiny-imagenet-train-q75" / "train"
    if not tree.is_dir():
        pytest.skip("no tiny-imagenet-train-q75 under FASTOOD_DATA_ROOT")
    source = without_overlap(open_folder(tree, field="background"), "tiny-imagenet-vs-cifar10", field="background")
    assert len(source) == (200 - 24) * 500
    assert source.read(len(source) - 1).shape == (3, 32, 32)


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


def linked_tree(tree: Path, few: Path, per_class: int) -> str:
    """A source of the first images of every class."""
    for folder in sorted(path for path in tree.iterdir() if path.is_dir()):
        (few / folder.name).mkdir(parents=True)
        for file in sorted(folder.iterdir())[:per_class]:
            (few / folder.name / file.name).symlink_to(file.resolve())
    return f"folder:{few}"


def colours(pixels: np.ndarray) -> np.ndarray:
    """The different colours of [..., 3 or more] pixels."""
    return np.unique(pixels[..., :3].reshape(-1, 3).astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32))


def test_a_short_run_on_cifar10_shows_the_images_of_tiny_imagenet(tmp_path):
    """The whole pool from its files, without the classes that CIFAR-10 has; few enough in-distribution images."""
    cifar10, tiny_imagenet = ROOT / "cifar10-q75", ROOT / "tiny-imagenet-train-q75" / "train"
    if not (cifar10.is_dir() and tiny_imagenet.is_dir()):
        pytest.skip("no cifar10-q75 or tiny-imagenet-train-q75 under FASTOOD_DATA_ROOT")
    options = {
        "out": tmp_path, "name": "run", "device": "cpu", "model.name": "small-cnn", "model.dropout": 0.0,
        "data.in-dist": linked_tree(cifar10 / "train", tmp_path / "train", 64),
        "data.in-dist-test": linked_tree(cifar10 / "test", tmp_path / "test", 20),
        "data.background": f"folder:{tiny_imagenet}", "data.exclude-overlap": "tiny-imagenet-vs-cifar10",
        "data.ood": "gaussian", "data.noise-size": 40, "data.decode": "stream",
        "method.batch-size": 64, "method.background-batch-size": 64, "method.sample-rate": 0.01,
        "method.pretrain.epochs": 1, "method.reweight.epochs": 1, "method.finetune.epochs": 1,
    }  # fmt: skip
    assert train.main([part for name, value in options.items() for part in (f"--{name}", str(value))]) == 0
    run = RunFolder(tmp_path / "run")
    config = run.read_config()
    pool = load_task(config.data, seed=config.seed).background
    assert len(pool) == (200 - 24) * 500
    learnt = BackgroundPool(len(pool))
    learnt.load_state_dict(run.read_pool())
    sheet = colours(np.asarray(Image.open(run.path / "figures" / "most_weighted.png")))
    most, least = extreme_images(learnt.weights, SHEET_IMAGES)
    shown, not_shown = (colours(pool.pixels(index).permute(0, 2, 3, 1).numpy()) for index in (most, least))
    assert np.isin(shown, sheet).mean() > 0.99
    assert np.isin(not_shown, sheet).mean() < 0.5
