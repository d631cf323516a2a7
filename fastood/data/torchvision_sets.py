"""The torchvision datasets that can be named as a source, and how each spells its training and test part."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torchvision
from torch import Tensor
from torch.utils.data import ConcatDataset

from fastood.data.sources import ImageSource, image_to_tensor


@dataclass(frozen=True, kw_only=True)
class TorchvisionSet:
    """How to construct a torchvision dataset's two parts, and what its images are."""

    train: Mapping[str, Any]
    """Constructor arguments of the training part."""
    test: Mapping[str, Any]
    """Constructor arguments of the test part."""
    ood: tuple[Mapping[str, Any], ...] = ()
    """Constructor arguments of the parts that make an OOD set, where that is more than the test part."""
    channels: int
    """1 or 3."""
    first_label: int = 0
    """Label of the first class."""
    transposed: bool = False
    """Whether images are stored with rows and columns exchanged."""


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
}


Part = Literal["train", "test", "ood"]
"""What a set is opened for: to train on, to test the classifier with, or as an OOD set."""


def open_torchvision(name: str, *, part: Part, root: Path, download: bool, field: str) -> ImageSource:
    """Open a torchvision dataset.

    Args:
        name: A key of `TORCHVISION_SETS`.
        part: The training part, the test part, or all that makes an OOD set (the test part for most).
        root: Folder that holds the dataset as torchvision lays it out.
        download: Fetch it if it is not there.
        field: The option it was given for, to name in errors.

    Returns:
        The opened set; nothing is decoded yet.

    Raises:
        FileNotFoundError: The dataset is not under `root`, and `download` is false.
        ValueError: Its files are damaged.
    """
    known = TORCHVISION_SETS[name]
    arguments = {"train": (known.train,), "test": (known.test,), "ood": known.ood or (known.test,)}[part]
    if not download and not root.is_dir():
        raise FileNotFoundError(f"data.{field}: torchvision:{name} needs data.root, but there is no folder {root}")
    try:
        make = getattr(torchvision.datasets, name)
        datasets = [make(root=str(root), download=download, **of_part) for of_part in arguments]
    except (RuntimeError, OSError, ValueError, AssertionError, EOFError) as error:
        # torchvision raises RuntimeError for files that are missing and for files that it cannot parse.
        if isinstance(error, OSError) or "download=True" in str(error):
            hint = "" if download else "; data.download fetches it"
            raise FileNotFoundError(f"data.{field}: torchvision:{name} under {root}: {error}{hint}") from error
        raise ValueError(f"data.{field}: the files of torchvision:{name} under {root} are damaged: {error}") from error
    dataset: ConcatDataset[Any] = ConcatDataset(datasets)
    labels = torch.cat([_labels(one) for one in datasets]) - known.first_label
    class_names = tuple(map(str, getattr(datasets[0], "classes", range(int(labels.max()) + 1 + known.first_label))))

    def read(index: int) -> Tensor:
        try:
            image = image_to_tensor(dataset[index][0])
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"unreadable image {index} of torchvision:{name}: {error}") from error
        return image.mT if known.transposed else image

    return ImageSource(
        name=name,
        labels=labels,
        class_names=class_names[known.first_label :],
        channels=known.channels,
        read=read,
    )


def _labels(dataset: Any) -> Tensor:
    """Labels int64 [N] of a torchvision dataset, which keep them under different names."""
    for attribute in ("targets", "labels", "_labels"):
        if hasattr(dataset, attribute):
            return torch.from_numpy(np.asarray(getattr(dataset, attribute))).to(torch.int64)
    raise AttributeError(f"{type(dataset).__name__} has no labels under any known name")
