"""Summary of a task's images as text and as plain values: numbers, classes, and files that were left out."""

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from fastood.console.names import first_of, printable
from fastood.console.wording import counted
from fastood.data.config import DataConfig
from fastood.data.images.image_set import DetectionTask, ImageSet
from fastood.data.images.left_out import LeftOut
from fastood.data.sources.source_spec import SourceSpec

_NAMED = 6


def data_summary(config: DataConfig, task: DetectionTask) -> dict[str, Any]:
    """Return the numbers of images of a task as plain values for a JSON file.

    Args:
        config: Sources of the images.
        task: Task that `load_task` returned for `config`.

    Returns:
        "in_distribution", "in_distribution_test", "background" (the whole, in every process) and "ood" (by name), each
        with the source, the number of images, in total and of each class or group, and the files that were left out.

    Example:
        >>> from fastood.data import EmbeddedConfig, load_task
        >>> config = DataConfig(embedded=EmbeddedConfig(pool_size=100, ood_size=10))
        >>> summary = data_summary(config, load_task(config, seed=0))
        >>> summary["in_distribution"]["images"], summary["in_distribution_test"]["images"], list(summary["ood"])[:2]
        (962, 481, ['held-out digits', 'Greek letters'])
    """
    test = config.in_dist_test_spec or config.in_dist_spec
    held_out = config.in_dist_test is None and not config.in_dist_spec.has_test_part
    specs = dict(config.ood_specs)

    def part(images: ImageSet) -> dict[str, Any]:
        return _part(images, len(images), images.group_counts())

    background = _part(task.background, task.background_size, task.background_groups())
    return {
        "in_distribution": {"source": str(config.in_dist_spec), **part(task.id_train)},
        "in_distribution_test": {"source": str(test), "held_out": held_out, **part(task.id_test)},
        "background": {"source": str(config.background_spec), **background},
        "ood": {
            name: {"source": str(specs.get(name, SourceSpec("embedded"))), **part(images)}
            for name, images in task.ood.items()
        },
    }


def summary_lines(summary: Mapping[str, Any]) -> Iterator[str]:
    """Format a summary as lines for the terminal, one for each role and one for the files left out of it.

    Args:
        summary: Return value of `data_summary`.

    Yields:
        Lines without their ends.

    Example:
        >>> part = {"source": "folder:cats", "images": 3, "groups": {"tom": 2, "kit": 1}, "left_out": []}
        >>> test = {**part, "held_out": True, "images": 1, "groups": {"tom": 1, "kit": 0}}
        >>> none = {"source": "none", "images": 0, "groups": {}, "left_out": []}
        >>> noise = {"source": "gaussian", "images": 1, "groups": {"gaussian noise": 1}, "left_out": []}
        >>> roles = {"in_distribution": part, "in_distribution_test": test, "background": none, "ood": {"noise": noise}}
        >>> for line in summary_lines(roles):
        ...     print(line)
        in-distribution: folder:cats, 4 images, 2 classes (tom 3, kit 1), 1 held out for testing
        background: none
        OOD noise: gaussian, 1 image
    """
    train, test = summary["in_distribution"], summary["in_distribution_test"]
    if test["held_out"]:
        both = {name: count + test["groups"].get(name, 0) for name, count in train["groups"].items()}
        total = counted(train["images"] + test["images"], "image")
        yield (
            f"in-distribution: {train['source']}, {total}, {_groups(both, 'class', 'classes')}, "
            f"{test['images']:,} held out for testing"
        )
        yield from _left_out("in-distribution", train)
    else:
        for role, part in (("in-distribution", train), ("in-distribution test", test)):
            classes = _groups(part["groups"], "class", "classes")
            yield f"{role}: {part['source']}, {counted(part['images'], 'image')}, {classes}"
            yield from _left_out(role, part)
    outliers = {"background": summary["background"]} | {f"OOD {name}": part for name, part in summary["ood"].items()}
    for role, part in outliers.items():
        if part["source"] == "none":
            yield f"{role}: none"
            continue
        groups = f", {_groups(part['groups'], 'group')}" if len(part["groups"]) > 1 else ""
        yield f"{role}: {part['source']}, {counted(part['images'], 'image')}{groups}"
        yield from _left_out(role, part)


def _part(images: ImageSet, total: int, counts: Tensor) -> dict[str, Any]:
    """Return the number of images, in total and of each class or group, and the files that were left out."""
    groups: dict[str, int] = {}
    for name, count in zip(images.class_names or images.source_names, counts.tolist(), strict=True):
        # Classes of one name with different ids are counted together.
        groups[printable(name)] = groups.get(printable(name), 0) + count
    left_out = [
        {"reason": entry.reason, "count": entry.count, "examples": list(entry.examples)} for entry in images.left_out
    ]
    return {"images": total, "groups": groups if total else {}, "left_out": left_out}


def _groups(groups: Mapping[str, int], noun: str, plural: str = "") -> str:
    """Return the number of classes with the names and sizes of the first ones."""
    named = first_of([f"{name} {count:,}" for name, count in groups.items()], _NAMED)
    return f"{counted(len(groups), noun, plural)} ({named})"


def _left_out(role: str, part: Mapping[str, Any]) -> Iterator[str]:
    entries = [LeftOut(entry["reason"], entry["count"], tuple(entry["examples"])) for entry in part["left_out"]]
    if entries:
        yield f"{role}, left out: {'; '.join(map(str, entries))}"
