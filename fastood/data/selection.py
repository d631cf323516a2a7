"""Checks of a task's opened sources, and the images of them that make each of its sets."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastood.common.seeding import named_generator
from fastood.console.wording import counted
from fastood.data.config import DataConfig
from fastood.data.images.image_source import ImageSource
from fastood.data.images.row_values import constant_rows
from fastood.data.sources.folder_listing import require_classes
from fastood.data.sources.overlap import kept_images
from fastood.data.sources.source_spec import SourceSpec
from fastood.data.splits import stratified_split


@dataclass(frozen=True, kw_only=True, eq=False)
class Sources:
    """Opened sources of a task; None for images that are generated, and for no images."""

    in_dist: ImageSource | None
    in_dist_test: ImageSource | None
    """Source of the test images; None also where they are split from `in_dist`."""
    background: ImageSource | None
    ood: tuple[ImageSource | None, ...]
    """Sources in the order of `DataConfig.ood_specs`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Selection:
    """Images of an opened source that become one set of the task, not decoded yet."""

    source: ImageSource
    index: Tensor | None
    """int64 `[M]`, the selected images; None for all, in their order."""
    labels: Tensor
    """int64 `[M]`, -1 for background and OOD images."""
    groups: Tensor
    """int64 `[M]`, index into `group_names`."""
    group_names: tuple[str, ...]
    class_names: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def rows(self) -> Tensor | range:
        """Indices of the selected images; a range, which takes no memory, for all."""
        return range(len(self.source)) if self.index is None else self.index


@dataclass(frozen=True, kw_only=True, eq=False)
class Selections:
    """Checked images of a task; None where `Sources` has None."""

    shape: tuple[int, int, int]
    """C, H and W of every image."""
    in_dist: tuple[Selection, Selection] | None
    """Training and test images."""
    background: Selection | None
    ood: tuple[Selection | None, ...]


def check_sources(config: DataConfig, sources: Sources, *, seed: int) -> Selections:
    """Check labels, classes and sizes, and select the images of every set.

    Args:
        config: Sources of the images, their size and channels.
        sources: The opened sources.
        seed: Seed of the split where the test images are held out from the training images.

    Raises:
        ValueError: If labels, classes or sizes do not fit, or an overlap list does not apply to the background.
    """
    in_dist = None
    if sources.in_dist is not None:
        in_dist = _select_in_distribution(config, sources.in_dist, sources.in_dist_test, seed=seed)
    channels = config.channels or (1 if sources.in_dist is None else sources.in_dist.channels)
    shape = (channels, config.size, config.size)
    background = None
    if sources.background is not None:
        kept = _kept_background(config, sources.background)
        _check_mapped_shape(sources.background, shape, field="background")
        background = _select_outliers(sources.background, kept, config.background_spec)
    ood: list[Selection | None] = []
    for (name, spec), source in zip(config.ood_specs, sources.ood, strict=True):
        if source is not None:
            _check_mapped_shape(source, shape, field=f"ood {name!r}")
        ood.append(None if source is None else _select_outliers(source, None, spec))
    return Selections(shape=shape, in_dist=in_dist, background=background, ood=tuple(ood))


def _select_in_distribution(
    config: DataConfig, train: ImageSource, test: ImageSource | None, *, seed: int
) -> tuple[Selection, Selection]:
    """Check the labels of the in-distribution images, and split off a test set where there is none."""
    if config.in_dist_spec.kind == "packed":
        # The class folders of a tree are checked when they are listed.
        require_classes(train.class_names, option="in_dist", kind="packed", place=config.in_dist_spec.argument)
    labels = _require_labels(train)
    if int(labels.max()) >= len(labels):
        # Every class needs an image. Checked before bincount allocates a counter per label value.
        raise ValueError(f"data.in_dist must have labels below its {len(labels)} images, got {int(labels.max())}")
    count = torch.bincount(labels, minlength=len(train.class_names))
    class_names = train.class_names or tuple(map(str, range(len(count))))
    needed = 2 if test is None else 1
    if int(count.min()) < needed:
        label = int(count.argmin())
        raise ValueError(
            f"data.in_dist: class {class_names[label]!r} has {counted(int(count[label]), 'image')}, "
            + ("at least 2 are needed, one to train on and one to test with" if needed == 2 else "at least 1 is needed")
        )
    if test is None:
        generator = named_generator(seed, "in_dist")
        test, test_labels = train, labels
        kept, held_out = stratified_split(labels, config.test_fraction, generator=generator)
    else:
        test_labels = _require_labels(test)
        kept, held_out = torch.arange(len(train)), torch.arange(len(test))
        if test.class_names and test.class_names != class_names:
            raise ValueError(
                f"data.in_dist_test must have the classes of in_dist {class_names}, got {test.class_names}"
            )
        if int(test_labels.max()) >= len(class_names):
            raise ValueError(
                f"data.in_dist_test must have labels 0…{len(class_names) - 1}, got {int(test_labels.max())}"
            )

    def select(source: ImageSource, source_labels: Tensor, index: Tensor) -> Selection:
        return Selection(
            source=source,
            index=index,
            labels=source_labels[index],
            groups=constant_rows(0, len(index)),
            group_names=(source.name,),
            class_names=class_names,
        )

    return select(train, labels, kept), select(test, test_labels, held_out)


def _require_labels(source: ImageSource) -> Tensor:
    if source.labels is None:
        # DataConfig refuses every other source without labels; only an opened pool shows whether it has them.
        raise ValueError(
            f"data.in_dist and data.in_dist_test must have labels, the packed pool {source.name!r} has none"
        )
    return source.labels


def _check_mapped_shape(source: ImageSource, shape: tuple[int, int, int], *, field: str) -> None:
    """Check that images that stay in their file have the shape of the task's images."""
    if source.mapped is not None and source.mapped.shape[1:] != shape:
        raise ValueError(
            f"data.{field}: the images of the packed pool {source.place} are {list(source.mapped.shape[1:])}, those of "
            f"the task {list(shape)}: pack it again with --size {shape[1]} --channels {shape[0]}, or choose "
            f"data.image_size and data.channels"
        )


def _kept_background(config: DataConfig, source: ImageSource) -> Tensor | None:
    """Return the indices of the images that `config.exclude_overlap` leaves, or None for all of a mapped file."""
    if config.exclude_overlap is None:
        return None
    kept = kept_images(source, config.exclude_overlap, field="background")
    if source.mapped is not None:
        if len(kept) == len(source):
            return None
        needed = len(kept) * source.mapped.nbytes / len(source) / 1e9
        if needed > config.decode_budget_gb:
            raise ValueError(
                f"data.exclude_overlap would copy {needed:.1f} GB of {source.place} into memory, data.decode_budget_gb "
                f"is {config.decode_budget_gb:g}: pack it with --exclude-overlap {config.exclude_overlap}"
            )
    return kept


def _select_outliers(source: ImageSource, index: Tensor | None, spec: SourceSpec) -> Selection:
    """Select images of a background or OOD set; classes of the source become groups."""
    count = len(source) if index is None else len(index)
    if source.labels is not None and source.class_names:
        groups, group_names = source.labels if index is None else source.labels[index], source.class_names
    else:
        groups = constant_rows(0, count)
        group_names = (spec.name if source.mapped is None else source.name,)
    labels = constant_rows(-1, count)
    return Selection(source=source, index=index, labels=labels, groups=groups, group_names=group_names)
