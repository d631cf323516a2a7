"""From options to the images of a task: open and check every source first, then decode."""

import torch
from torch import Tensor

from fastood.common.seeding import named_generator
from fastood.console.wording import counted
from fastood.data.config import DataConfig
from fastood.data.embedded.image_sets import embedded_background, embedded_digits, embedded_ood
from fastood.data.images.blending import blend_images
from fastood.data.images.digests import digest_of_subset
from fastood.data.images.encoded import EncodedImages, Images
from fastood.data.images.image_set import DetectionTask, ImageSet
from fastood.data.images.image_source import ImageSource, decode_images
from fastood.data.images.noise import NOISES
from fastood.data.packed.pool import PackedPool
from fastood.data.sources.folder_listing import require_classes
from fastood.data.sources.named_sets import Part
from fastood.data.sources.open_source import open_pool, open_source
from fastood.data.sources.overlap import kept_images, without_overlap
from fastood.data.sources.source_spec import SourceSpec
from fastood.data.splits import stratified_split


def load_task(config: DataConfig, *, seed: int) -> DetectionTask:
    """Load or make all images of a task.

    Every source is opened, counted and checked before the first image is decoded.

    Args:
        config: Where images come from.
        seed: Decides splits, embedded images and noise. The same seed gives the same task, bit for bit.

    Returns:
        The task, in memory but for packed pools, whose background and OOD images are mapped, and for files that
        `config.decode` leaves encoded until they are used.

    Raises:
        FileNotFoundError: A path is missing, or a class folder is empty.
        TypeError: An array has the wrong dtype.
        ValueError: A set is empty, an image is unreadable, or labels do not fit.

    Example:
        >>> from fastood.data import DataConfig, EmbeddedConfig, load_task
        >>> task = load_task(DataConfig(embedded=EmbeddedConfig(pool_size=100, ood_size=10)), seed=0)
        >>> task.num_classes, len(task.background)
        (8, 100)
        >>> list(task.ood)  # doctest: +NORMALIZE_WHITESPACE
        ['held-out digits', 'Greek letters', 'symbols', 'photographs', 'Gaussian noise', 'uniform noise']
    """
    sources = _open_all(config)
    train = sources["in_dist"]
    channels = config.channels or (train.channels if train is not None else 1)
    if train is None:
        id_train, id_test = embedded_digits(
            config.embedded, test_fraction=config.test_fraction, size=config.size, channels=channels, seed=seed
        )
    else:
        id_train, id_test = _in_distribution(config, train, sources.get("in_dist_test"), channels, seed)
    background = _outliers("background", config.background_spec, sources["background"], config, channels, seed)
    if config.blend is not None:
        background = blend_images(
            background, id_train, alpha=config.blend, generator=named_generator(seed, "background", "blend")
        )
    ood: dict[str, ImageSet] = {}
    for name, spec in config.ood_specs:
        if spec.kind == "embedded":
            ood |= embedded_ood(config.embedded, size=config.size, channels=channels, seed=seed)
        else:
            ood[name] = _outliers(name, spec, sources[f"ood {name}"], config, channels, seed)
    return DetectionTask(id_train=id_train, id_test=id_test, background=background, ood=ood)


def _open_all(config: DataConfig) -> dict[str, ImageSource | None]:
    """Open every source by its option; None for those that are made, not read. All that fail are named at once."""
    in_dist = config.in_dist_spec
    wanted: list[tuple[str, SourceSpec, str, Part]] = [
        ("in_dist", in_dist, "in_dist", "train"),
        ("background", config.background_spec, "background", "train"),
    ]
    test = config.in_dist_test_spec or (in_dist if in_dist.has_test_part else None)
    if test is not None:
        wanted.append(("in_dist_test", test, "in_dist_test", "test"))
    wanted += [(f"ood {name}", spec, f"ood {name!r}", "ood") for name, spec in config.ood_specs]
    sources: dict[str, ImageSource | None] = {}
    failed: list[OSError | TypeError | ValueError] = []
    for key, spec, field, part in wanted:
        try:
            sources[key] = _open(spec, field, config, part=part)
        except (OSError, TypeError, ValueError) as error:
            failed.append(error)
    if len(failed) == 1:
        raise failed[0]
    if failed:
        same = {type(error) for error in failed}
        kind = type(failed[0]) if len(same) == 1 else ValueError
        raise kind("\n".join([f"{len(failed)} of the {len(wanted)} sources cannot be opened:", *map(str, failed)]))
    return sources


def _open(spec: SourceSpec, field: str, config: DataConfig, *, part: Part) -> ImageSource | None:
    if spec.kind in ("none", "embedded", *NOISES):
        return None
    source = open_source(
        spec,
        field=field,
        part=part,
        root=config.root,
        download=config.download,
        labelled=field in ("in_dist", "in_dist_test"),
        list_root=config.list_root,
    )
    if field == "background" and config.exclude_overlap is not None:
        return without_overlap(source, config.exclude_overlap, field=field)
    return source


def _in_distribution(
    config: DataConfig, train: ImageSource, test: ImageSource | None, channels: int, seed: int
) -> tuple[ImageSet, ImageSet]:
    """The in-distribution sets; labels are checked before anything is decoded."""
    if config.in_dist_spec.kind == "packed":
        # Of a folder it was asked when it was listed.
        require_classes(train.class_names, option="in_dist", kind="packed", place=config.in_dist_spec.argument)
    labels = _labels(train)
    if int(labels.max()) >= len(labels):
        # Every class needs an image; asked before bincount makes room for each label.
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
        kept, held_out = stratified_split(labels, config.test_fraction, generator=generator)
        test, test_labels = train, labels
    else:
        test_labels = _labels(test)
        kept, held_out = torch.arange(len(train)), torch.arange(len(test))
        if test.class_names and test.class_names != class_names:
            raise ValueError(
                f"data.in_dist_test must have the classes of in_dist {class_names}, got {test.class_names}"
            )
        if int(test_labels.max()) >= len(class_names):
            raise ValueError(
                f"data.in_dist_test must have labels 0…{len(class_names) - 1}, got {int(test_labels.max())}"
            )

    def decode(source: ImageSource, source_labels: Tensor, index: Tensor) -> ImageSet:
        return ImageSet(
            name=train.name,
            images=_decode(source, index, config, channels),
            labels=source_labels[index],
            source=torch.zeros(len(index), dtype=torch.int64),
            source_names=(source.name,),
            class_names=class_names,
            digest=digest_of_subset(source.digest, index),
            left_out=source.left_out,
        )

    return decode(train, labels, kept), decode(test, test_labels, held_out)


def _decode(source: ImageSource, index: Tensor, config: DataConfig, channels: int) -> Images:
    """Images of a source: in memory, or encoded as they are if the configuration says so and they are files."""
    files = source.files if source.contents is None else source.contents
    if files is not None and config.decode != "memory":
        encoded = EncodedImages(files=files, size=config.size, channels=channels, place=source.place)
        if config.decode == "stream" or len(index) * encoded.nbytes // len(source) > config.decode_budget_gb * 1e9:
            return encoded.select(index)
    return decode_images(source, index, size=config.size, channels=channels)


def _labels(source: ImageSource) -> Tensor:
    if source.labels is None:
        # DataConfig refuses other sources without labels; of a pool it is known now.
        raise ValueError(
            f"data.in_dist and data.in_dist_test must have labels, the packed pool {source.name!r} has none"
        )
    return source.labels


def _outliers(
    name: str, spec: SourceSpec, source: ImageSource | None, config: DataConfig, channels: int, seed: int
) -> ImageSet:
    """A background or OOD set: read, or made if `source` is None."""
    if spec.kind == "embedded":
        return embedded_background(config.embedded, size=config.size, channels=channels, seed=seed)
    if spec.kind == "none":
        return no_images((channels, config.size, config.size))
    if spec.kind == "packed":
        pool = open_pool(spec, name)
        if pool.images is not None:
            images_in_file = _mapped(name, spec, pool, (channels, config.size, config.size))
            # No OOD set shares images with the background.
            is_background = spec == config.background_spec
            return _without_overlap(images_in_file, pool, config) if is_background else images_in_file
    if source is None:
        shape = (config.noise_size, channels, config.size, config.size)
        generator = named_generator(seed, name, spec.kind)
        noise = NOISES[spec.kind](shape, generator=generator, space=config.noise_space)
        images: Images = (noise * 255).round().to(torch.uint8)
    else:
        images = _decode(source, torch.arange(len(source)), config, channels)
    if source is not None and source.labels is not None and source.class_names:
        origin, origin_names = source.labels, source.class_names
    else:
        origin, origin_names = torch.zeros(len(images), dtype=torch.int64), (spec.name,)
    return ImageSet(
        name=spec.name if name == "background" else name,
        images=images,
        labels=torch.full((len(images),), -1),
        source=origin,
        source_names=origin_names,
        digest=None if source is None else source.digest,
        left_out=() if source is None else source.left_out,
    )


def no_images(shape: tuple[int, int, int]) -> ImageSet:
    """Make the background of methods that train without.

    Args:
        shape: C, H and W of the task's images.

    Example:
        >>> len(no_images((3, 32, 32)))
        0
    """
    nothing = torch.empty(0, dtype=torch.int64)
    images = torch.empty(0, *shape, dtype=torch.uint8)
    return ImageSet(name="none", images=images, labels=nothing, source=nothing, source_names=("none",))


def _mapped(name: str, spec: SourceSpec, pool: PackedPool, shape: tuple[int, int, int]) -> ImageSet:
    """A background or OOD set that stays in its file."""
    images = pool.image_set(name=spec.name if name == "background" else name)
    if images.images.shape[1:] != shape:
        raise ValueError(
            f"data.{name}: the images of the packed pool {pool.path} are {list(images.images.shape[1:])}, those of the "
            f"task {list(shape)}: pack it again with --size {shape[1]} --channels {shape[0]}, or choose "
            f"data.image_size and data.channels"
        )
    return images


def _without_overlap(background: ImageSet, pool: PackedPool, config: DataConfig) -> ImageSet:
    """The mapped background, or a copy in memory of what `config.exclude_overlap` leaves of it."""
    if config.exclude_overlap is None:
        return background
    kept = kept_images(pool.as_source(), config.exclude_overlap, field="background")
    if len(kept) == len(background):
        return background
    needed = len(kept) * background.images.nbytes / len(background) / 1e9
    if needed > config.decode_budget_gb:
        raise ValueError(
            f"data.exclude_overlap would copy {needed:.1f} GB of {pool.path} into memory, data.decode_budget_gb is "
            f"{config.decode_budget_gb:g}: pack it with --exclude-overlap {config.exclude_overlap}"
        )
    return background.subset(kept)
