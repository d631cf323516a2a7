"""Classes of a background that repeat the in-distribution set, as data: one TOML file for each pair of sets.

BACKGROUND-vs-IN_DISTRIBUTION.toml names the classes to leave out (WordNet ids where the background has them) with the
in-distribution class that each repeats, and says who compared them.

Pairs without a file: the 47 textures of DTD repeat no class of any named set, as they are attributes of surfaces.
EMNIST letters that look like MNIST digits (o, l, i, s, z) are no overlap: the papers keep them, and telling them apart
is the task. CIFAR-10 and CIFAR-100 were made disjoint by their authors.
"""

import tomllib
from importlib import resources
from typing import Any

import torch
from torch import Tensor

from fastood.data.images.image_source import ImageSource

_SUFFIX = ".toml"


def overlap_lists() -> tuple[str, ...]:
    """The names of all lists.

    Example:
        >>> "tiny-imagenet-vs-cifar10" in overlap_lists()
        True
    """
    names = (file.name for file in resources.files(__name__).iterdir())
    return tuple(sorted(name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX)))


def overlapping_classes(name: str) -> dict[str, str]:
    """The classes on a list, each with what it repeats.

    Args:
        name: One of `overlap_lists()`.

    Raises:
        ValueError: There is no such list.

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
    """Find the images of a source that are of no class of a list.

    Args:
        source: A set with classes; their ids are compared with the list if it has ids, otherwise their names.
        name: One of `overlap_lists()`.
        field: The option the source was given for, to name in errors.

    Returns:
        int64 [M], in ascending order.

    Raises:
        ValueError: The source has no classes, or lacks one of the list, which then is not for it; or nothing remains.
    """
    listed = overlapping_classes(name)
    identities = source.class_ids or source.class_names
    if source.labels is None or not identities:
        raise ValueError(
            f"data.exclude_overlap needs a data.{field} with named classes, {source.name} has none: "
            "name the tree or data set that its images come from"
        )
    missing = [wanted for wanted in listed if wanted not in identities]
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
    """Leave the classes of a list out of a source; arguments and errors as in `kept_images`.

    Returns:
        The source with the images of the other classes alone, in the same order, under the same labels.
    """
    return source.subset(kept_images(source, name, field=field))
