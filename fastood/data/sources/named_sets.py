"""Data sets that options name: contents, files under the data root, and how to get them."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

_ODIN = "ShiyuLiang/odin-pytorch on GitHub links it; unpack under the root"


@dataclass(frozen=True, kw_only=True)
class NamedSet:
    """Data set with a name in options, e.g. ``--data.in-dist cifar10``."""

    what: str
    """Content, size and colour of the images."""
    classes: int
    """Number of classes; 1 where images have none."""
    images: tuple[int | None, int | None]
    """Published counts of the training and the test part; None for a part that does not exist or varies."""
    files: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Glob patterns under the root by part ("train", "test"); each matches something if the part is present."""
    torchvision: str = ""
    """Key in `TORCHVISION_SETS`; empty for sets that torchvision does not have."""
    tree: str = ""
    """Path of a tree of class folders under the root; empty for other layouts."""
    inverted_grey: bool = False
    """Whether `tree` holds black strokes on white, which are read as grey and inverted to resemble MNIST."""
    part_of: str = ""
    """Key in `TORCHVISION_SETS` of the data set that contains these images."""
    how: str = ""
    """Instructions for getting the set by hand; empty if --data.download fetches it."""

    def present(self, root: Path) -> tuple[str, ...]:
        """Return the parts that are under `root`, by the names of files and folders; nothing is opened."""
        return tuple(part for part, globs in self.files.items() if all(any(root.glob(one)) for one in globs))


def _idx(folder: str, train: str = "train", test: str = "t10k") -> dict[str, tuple[str, ...]]:
    """Return glob patterns of the images and labels of both parts of a set in MNIST's format."""
    return {
        part: tuple(f"{folder}/raw/{prefix}-{kind}-ubyte*" for kind in ("images-idx3", "labels-idx1"))
        for part, prefix in (("train", train), ("test", test))
    }


def _parts(train: str, test: str) -> dict[str, tuple[str, ...]]:
    return {"train": (train,), "test": (test,)}


def _tree(what: str, path: str, classes: int, images: int, how: str) -> NamedSet:
    """Return a tree of class folders that has one part, for testing."""
    files = {"test": (f"{path}/*",)}
    return NamedSet(what=what, classes=classes, images=(None, images), files=files, tree=path, how=how)


def _omniglot_small(number: int, images: int) -> NamedSet:
    """Return five alphabets of Omniglot's background part; both such sets share the images of Greek and Latin."""
    archive = f"images_background_small{number}"
    how = f"brendenlake/omniglot on GitHub: python/{archive}.zip; unpack in omniglot/ under the root"
    tree = _tree("characters of 5 alphabets (classes), 105×105 grey, inverted", f"omniglot/{archive}", 5, images, how)
    return replace(tree, inverted_grey=True, part_of="Omniglot")


NAMED_SETS: dict[str, NamedSet] = {
    "mnist": NamedSet(
        what="digits, 28×28 grey", classes=10, images=(60_000, 10_000), files=_idx("MNIST"), torchvision="MNIST"
    ),
    "fashion-mnist": NamedSet(
        what="clothes, 28×28 grey", classes=10, images=(60_000, 10_000), files=_idx("FashionMNIST"),
        torchvision="FashionMNIST",
    ),
    "kmnist": NamedSet(
        what="hiragana, 28×28 grey", classes=10, images=(60_000, 10_000), files=_idx("KMNIST"), torchvision="KMNIST"
    ),
    "emnist-letters": NamedSet(
        what="letters, 28×28 grey", classes=26, images=(124_800, 20_800),
        files=_idx("EMNIST", "emnist-letters-train", "emnist-letters-test"), torchvision="EMNIST",
    ),
    "notmnist": NamedSet(
        what="letters A–J in many fonts, 28×28 grey", classes=10, images=(None, 10_000), files=_idx("notMNIST"),
        how="davidflanagan/notMNIST-to-MNIST on GitHub: idx files, plain or .gz, in notMNIST/raw under the root",
    ),
    "usps": NamedSet(
        what="digits, 16×16 grey", classes=10, images=(7_291, 2_007), files=_parts("usps.bz2", "usps.t.bz2"),
        torchvision="USPS",
    ),
    "omniglot": NamedSet(
        what="characters of 50 alphabets, 105×105 grey, inverted", classes=964, images=(19_280, 13_180),
        files=_parts("omniglot-py/images_background.zip", "omniglot-py/images_evaluation.zip"), torchvision="Omniglot",
    ),
    "omniglot-small1": _omniglot_small(1, 2_720),
    "omniglot-small2": _omniglot_small(2, 3_120),
    "cifar10": NamedSet(
        what="animals and vehicles, 32×32 colour", classes=10, images=(50_000, 10_000),
        files=_parts("cifar-10-batches-py/data_batch_5", "cifar-10-batches-py/test_batch"), torchvision="CIFAR10",
    ),
    "cifar100": NamedSet(
        what="objects, 32×32 colour", classes=100, images=(50_000, 10_000),
        files=_parts("cifar-100-python/train", "cifar-100-python/test"), torchvision="CIFAR100",
    ),
    "svhn": NamedSet(
        what="house numbers, 32×32 colour", classes=10, images=(73_257, 26_032),
        files=_parts("train_32x32.mat", "test_32x32.mat"), torchvision="SVHN",
    ),
    "stl10": NamedSet(
        what="animals and vehicles, 96×96 colour", classes=10, images=(5_000, 8_000),
        files=_parts("stl10_binary/train_X.bin", "stl10_binary/test_X.bin"), torchvision="STL10",
    ),
    "textures": NamedSet(
        what="textures (DTD), colour; as OOD set all 5,640", classes=47, images=(1_880, 1_880),
        files=_parts("dtd/dtd/labels/train1.txt", "dtd/dtd/labels/test1.txt"), torchvision="DTD",
    ),
    "places365": NamedSet(
        what="scenes, shorter edge 256, colour; test: its val part", classes=365, images=(1_803_460, 36_500),
        files=_parts("places365/data_256_standard", "places365/val_256"), torchvision="Places365",
    ),
    "lsun": NamedSet(
        what="scenes, colour; test part without classes", classes=10, images=(9_895_373, 10_000),
        files=_parts("lsun/bedroom_train_lmdb", "lsun/test_lmdb"), torchvision="LSUN",
        how="fyu/lsun on GitHub; unpack its *_lmdb folders in lsun/ under the root; needs the package lmdb",
    ),
    "lsun-resize": _tree("LSUN test scenes resized to 32×32, colour", "LSUN_resize", 1, 10_000, _ODIN),
    "isun": _tree("scenes resized to 32×32, colour", "iSUN", 1, 8_925, _ODIN),
    "tiny-imagenet": NamedSet(
        what="objects, 64×64 colour; test: its val part", classes=200, images=(100_000, 10_000),
        files=_parts("tiny-imagenet-200/train", "tiny-imagenet-200/val/val_annotations.txt"),
        how="http://cs231n.stanford.edu/tiny-imagenet-200.zip; unpack under the root",
    ),
    "imagenet": NamedSet(
        what="objects (ILSVRC 2012), colour; test: its val part", classes=1000, images=(1_281_167, 50_000),
        files=_parts("imagenet/train", "imagenet/val"), torchvision="ImageNet",
        how="https://image-net.org (with an account): the archives and the devkit, in imagenet/ under the root",
    ),
}  # fmt: skip
"""All named sets, in the order of `python -m fastood.data list`."""

Part = Literal["train", "test", "ood"]
"""Purpose that a set is opened for: to train on, to test the classifier with, or as an OOD set."""
