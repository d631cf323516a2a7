"""Lists of background classes that repeat in-distribution classes: one TOML file per pair of data sets.

BACKGROUND-vs-IN_DISTRIBUTION.toml names the classes to leave out (by WordNet ids if the background has them) with the
in-distribution class that each repeats, and the source of the comparison.

Pairs without a file: the 47 textures of DTD repeat no class of any named set, as they are attributes of surfaces.
EMNIST letters that look like MNIST digits (o, l, i, s, z) are not an overlap: the papers keep them, and distinguishing
them is the task. CIFAR-10 and CIFAR-100 were made disjoint by their authors.
"""

import tomllib
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from fastood.data.images.image_source import ImageSource

_SUFFIX = ".toml"


def overlap_lists() -> tuple[str, ...]:
    """Return the names of all lists.

    Example:
        >>> "tiny-imagenet-vs-cifar10" in overlap_lists()
        True
    """
    names = (file.name for file in resources.files(__name__).iterdir())
    return tuple(sorted(name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)))


def overlapping_classes(name: str) -> dict[str, str]:
    """Return the classes of a list, each with the in-distribution class that it repeats.

    Args:
        name: One of `overlap_lists()`.

    Raises:
        ValueError: If there is no list of this name.

    Example:
        >>> overlapping_classes("stl10-vs-cifar10")["car"]
        'automobile'
    """
    if name not in overlap_lists():
        raise ValueError(f"overlap list must be one of {', '.join(overlap_lists())}, got {name!r}")
    text = (resources.files(__name__) / (name + _SUFFIX)).read_text(encoding="utf-8")
    document: dict[str, Any] = tomllib.loads(text)
    return dict(document["classes"])


def kept_images(source: ImageSource, name: str, *, field: str) -> Tensor:
    """Return the indices of the images that are of no class of a list.

    Args:
        source: A source with classes; their ids are compared with the list if it has ids, otherwise their names.
        name: One of `overlap_lists()`.
        field: Option of the source, named in errors.

    Returns:
        int64 `[M]`, in ascending order.

    Raises:
        ValueError: If the source has no classes, lacks a class of the list, or has no image of another class.
    """
    listed = overlapping_classes(name)
    identities = source.class_ids or source.class_names
    if source.labels is None or not identities:
        raise ValueError(
            f"data.exclude_overlap needs a data.{field} with named classes, {source.name} has none: "
            "name the tree or data set that its images come from"
        )
    missing = [identity for identity in listed if identity not in identities]
    if missing:
        raise ValueError(
            f"data.exclude_overlap: {name} is not for data.{field} ({source.name}), which has no class {missing[:3]}"
        )
    left_out = torch.tensor([identity in listed for identity in identities])
    kept = torch.nonzero(~left_out[source.labels])[:, 0]
    if len(kept) == 0:
        raise ValueError(f"data.exclude_overlap: {name} leaves nothing of data.{field} ({source.name})")
    return kept


def without_overlap(source: ImageSource, name: str, *, field: str) -> ImageSource:
    """Leave the classes of a list out of a source.

    Args:
        source: A source with classes; their ids are compared with the list if it has ids, otherwise their names.
        name: One of `overlap_lists()`.
        field: Option of the source, named in errors.

    Returns:
        The images of all other classes, with order and labels unchanged.

    Raises:
        ValueError: If the source has no classes, lacks a class of the list, or has no image of another class.
    """
    return source.subset(kept_images(source, name, field=field))
