"""Torchvision datasets that can be named as a source, with the arguments of their training and test parts."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset

from fastood.data.images.decoding import UNREADABLE
from fastood.data.images.digests import digest_of_files
from fastood.data.images.image_source import ImageSource, image_to_tensor, read_image
from fastood.data.sources.file_names import is_image_name, is_left_out
from fastood.data.sources.idx import damaged_idx_file
from fastood.data.sources.named_sets import Part


@dataclass(frozen=True, kw_only=True)
class TorchvisionSet:
    """Constructor arguments and properties of a torchvision dataset."""

    train: Mapping[str, Any]
    """Constructor arguments of the training part."""
    test: Mapping[str, Any]
    """Constructor arguments of the test part."""
    ood: tuple[Mapping[str, Any], ...] = ()
    """Constructor arguments of the parts of an OOD set; empty for the test part alone."""
    channels: int
    """Channels of the images, 1 or 3."""
    first_label: int = 0
    """Label of the first class."""
    transposed: bool = False
    """Whether images are stored transposed."""
    inverted: bool = False
    """Whether images are black strokes on white, which are inverted to resemble MNIST."""
    folder: str = ""
    """Folder under the root; empty for sets that create a folder there themselves."""
    downloads: bool = True
    """Whether torchvision can fetch it."""


_MISSING = re.compile("download=True|not present in the root|No such file")

_FLAG: dict[str, Any] = {"train": {"train": True}, "test": {"train": False}}
_SPLIT: dict[str, Any] = {"train": {"split": "train"}, "test": {"split": "test"}}

TORCHVISION_SETS: dict[str, TorchvisionSet] = {
    "MNIST": TorchvisionSet(**_FLAG, channels=1),
    "FashionMNIST": TorchvisionSet(**_FLAG, channels=1),
    "KMNIST": TorchvisionSet(**_FLAG, channels=1),
    # The letters; the official files are transposed, and their labels begin at 1.
    "EMNIST": TorchvisionSet(
        train={"split": "letters", "train": True},
        test={"split": "letters", "train": False},
        channels=1,
        first_label=1,
        transposed=True,
    ),
    "USPS": TorchvisionSet(**_FLAG, channels=1),
    "CIFAR10": TorchvisionSet(**_FLAG, channels=3),
    "CIFAR100": TorchvisionSet(**_FLAG, channels=3),
    "SVHN": TorchvisionSet(**_SPLIT, channels=3),
    "STL10": TorchvisionSet(**_SPLIT, channels=3),
    # The textures of Li & Vasconcelos 2020, Table 1, are all 5,640 images.
    "DTD": TorchvisionSet(**_SPLIT, ood=tuple({"split": part} for part in ("train", "val", "test")), channels=3),
    "Omniglot": TorchvisionSet(train={"background": True}, test={"background": False}, channels=1, inverted=True),
    # The small images, whose shorter edge is 256; labels of the test part were never published.
    "Places365": TorchvisionSet(
        train={"split": "train-standard", "small": True},
        test={"split": "val", "small": True},
        channels=3,
        folder="places365",
    ),
    "LSUN": TorchvisionSet(
        train={"classes": "train"}, test={"classes": "test"}, channels=3, folder="lsun", downloads=False
    ),
    "ImageNet": TorchvisionSet(
        train={"split": "train"}, test={"split": "val"}, channels=3, folder="imagenet", downloads=False
    ),
}


def open_torchvision(name: str, *, part: Part, root: Path, download: bool, field: str) -> ImageSource:
    """Open a torchvision dataset.

    Args:
        name: A key of `TORCHVISION_SETS`.
        part: The training part, the test part, or the parts of an OOD set (the test part for most).
        root: Folder of the dataset in torchvision's layout.
        download: Whether torchvision fetches a missing dataset.
        field: Option of the source, named in errors.

    Returns:
        The source; nothing is decoded yet.

    Raises:
        FileNotFoundError: If the dataset is not under `root`, and `download` is false.
        PermissionError: If a file is not readable.
        ValueError: If the files are damaged, or the dataset is LSUN and the package lmdb is not installed.
    """
    torchvision_set = TORCHVISION_SETS[name]
    arguments = {
        "train": (torchvision_set.train,),
        "test": (torchvision_set.test,),
        "ood": torchvision_set.ood or (torchvision_set.test,),
    }[part]
    if not download and not root.is_dir():
        raise FileNotFoundError(
            f"data.{field}: torchvision:{name} needs data.root, but there is no folder {root}: give --data.root PATH, "
            "or --data.download to make and fill it"
        )
    datasets = [_construct(name, of_part, root=root, download=download, field=field) for of_part in arguments]
    dataset: ConcatDataset[Any] = ConcatDataset(datasets)
    labels = torch.cat([_labels(one) for one in datasets]) - torchvision_set.first_label
    class_names = _class_names(datasets[0], int(labels.max()) + 1 + torchvision_set.first_label if len(labels) else 0)

    files = _files(datasets)

    def read(index: int) -> Tensor:
        if files is not None:
            return read_image(files[index])
        try:
            image = image_to_tensor(dataset[index][0])
        except UNREADABLE as error:
            raise ValueError(f"unreadable image {index} of torchvision:{name}: {error}") from error
        if torchvision_set.inverted:
            image = 255 - image
        return image.mT if torchvision_set.transposed else image

    return ImageSource(
        name=name,
        labels=labels,
        class_names=class_names[torchvision_set.first_label :],
        class_ids=tuple(getattr(datasets[0], "wnids", ())),
        channels=torchvision_set.channels,
        read=read,
        files=files,
        digest=None if files is None else digest_of_files(files),
    )


def _construct(name: str, arguments: Mapping[str, Any], *, root: Path, download: bool, field: str) -> Any:
    """Construct one part of a dataset; fetch it only if it is missing.

    With download=True torchvision extracts some datasets again even if they are present.
    """
    torchvision_set = TORCHVISION_SETS[name]
    place = root / torchvision_set.folder
    failures = _failures(name, field)
    try:
        return _make(name, place, {"download": False} if torchvision_set.downloads else {}, arguments)
    except PermissionError:
        raise
    except failures as error:
        # torchvision raises RuntimeError both for missing files and for files that it cannot parse.
        if not isinstance(error, OSError) and not _MISSING.search(str(error)):
            reason = damaged_idx_file(place / name / "raw") or error
            message = f"data.{field}: the files of torchvision:{name} under {place} are damaged: {reason}"
            raise ValueError(message) from error
        if not (download and torchvision_set.downloads):
            hint = "; data.download fetches it" if torchvision_set.downloads else ""
            raise FileNotFoundError(f"data.{field}: torchvision:{name} under {place}: {error}{hint}") from error
    try:
        return _make(name, place, {"download": True}, arguments)
    except failures as error:
        raise FileNotFoundError(f"data.{field}: torchvision:{name} could not be fetched: {error}") from error


def _visible_imagenet() -> type[Any]:
    """Return torchvision's ImageNet without hidden and system folders and files."""
    import torchvision

    class VisibleImageNet(torchvision.datasets.ImageNet):  # type: ignore[misc]
        """ImageNet without hidden and system folders and files."""

        def __init__(self, **arguments: Any) -> None:
            super().__init__(**arguments, is_valid_file=_is_visible_image)

        def find_classes(self, directory: str | Path) -> tuple[list[str], dict[str, int]]:
            """Return the visible class folders and their labels."""
            names = [name for name in super().find_classes(directory)[0] if not is_left_out(name)]
            return names, {name: label for label, name in enumerate(names)}

    return VisibleImageNet


def _is_visible_image(path: str) -> bool:
    return is_image_name(path) and not is_left_out(Path(path).parent.name)


def _make(name: str, place: Path, options: Mapping[str, Any], arguments: Mapping[str, Any]) -> Any:
    # Imported here, so that --help does not wait for it.
    import torchvision

    kind = _visible_imagenet() if name == "ImageNet" else getattr(torchvision.datasets, name)
    dataset = kind(root=str(place), **options, **arguments)
    # Places365 itself checks only its lists.
    if not Path(getattr(dataset, "images_dir", place)).is_dir():
        raise FileNotFoundError(f"there is no folder {dataset.images_dir}")
    if name == "Omniglot":
        _sort_omniglot(dataset)
    return dataset


def _sort_omniglot(dataset: Any) -> None:
    """Sort classes and images by name, without hidden ones; torchvision leaves them in the order of the disk."""
    characters = sorted(name for name in dataset._characters if not any(map(is_left_out, Path(name).parts)))
    label_of = {character: label for label, character in enumerate(characters)}
    named = [(dataset._characters[label], image) for image, label in dataset._flat_character_images]
    images = [(label_of[name], image) for name, image in named if name in label_of and not is_left_out(image)]
    dataset._characters = characters
    dataset._flat_character_images = [(image, label) for label, image in sorted(images)]


def _failures(name: str, field: str) -> tuple[type[Exception], ...]:
    """Return the types of error that torchvision raises for missing or damaged files."""
    usual = (RuntimeError, OSError, ValueError, AssertionError, EOFError, UnpicklingError)
    if name != "LSUN":
        return usual
    try:
        import lmdb
    except ImportError as error:
        raise ValueError(f"data.{field}: torchvision:LSUN needs the package lmdb: pip install lmdb") from error
    return (*usual, lmdb.Error)


def _class_names(dataset: Any, count: int) -> tuple[str, ...]:
    """Return the names of the classes in the order of their labels; numbers if the dataset has no names."""
    if hasattr(dataset, "_characters"):  # Omniglot: Alphabet/character01
        return tuple(dataset._characters)
    if hasattr(dataset, "wnids"):  # ImageNet: a tuple of synonyms for each class
        return tuple(", ".join(synonyms) for synonyms in dataset.classes)
    if hasattr(dataset, "load_categories"):  # Places365 sorts the names independently of their labels
        return tuple(sorted(dataset.class_to_idx, key=dataset.class_to_idx.__getitem__))
    return tuple(map(str, getattr(dataset, "classes", range(count))))


def _files(datasets: list[Any]) -> tuple[str, ...] | None:
    """Return the path of each image of a dataset's parts; None if the images are not unchanged image files."""
    files: list[str] = []
    for dataset in datasets:
        if hasattr(dataset, "_image_files"):  # DTD
            files += map(str, dataset._image_files)
        elif hasattr(dataset, "imgs"):  # ImageNet, Places365
            files += (str(file) for file, _ in dataset.imgs)
        else:
            return None
    return tuple(files)


def _labels(dataset: Any) -> Tensor:
    """Return the labels, int64 `[N]`, which torchvision datasets keep in different attributes."""
    if hasattr(dataset, "_flat_character_images"):  # Omniglot
        return torch.tensor([label for _, label in dataset._flat_character_images], dtype=torch.int64)
    if hasattr(dataset, "dbs"):  # LSUN: one database per class
        sizes = torch.tensor([len(database) for database in dataset.dbs])
        return torch.repeat_interleave(torch.arange(len(sizes)), sizes)
    for attribute in ("targets", "labels", "_labels"):
        if hasattr(dataset, attribute):
            return torch.from_numpy(np.asarray(getattr(dataset, attribute))).to(torch.int64)
    raise AttributeError(f"{type(dataset).__name__} has no attribute with labels")
