"""Images of a task from its options: open every source, check them all, then decode."""

import torch

from fastood.common.seeding import named_generator
from fastood.data.config import DataConfig
from fastood.data.embedded.image_sets import embedded_background, embedded_digits, embedded_ood
from fastood.data.images.blending import blend_images
from fastood.data.images.digests import digest_of_subset
from fastood.data.images.encoded import EncodedImages, Images
from fastood.data.images.image_set import DetectionTask, ImageSet
from fastood.data.images.image_source import ImageSource, decode_images
from fastood.data.images.noise import NOISES
from fastood.data.selection import Selection, Selections, Sources, check_sources
from fastood.data.sources.named_sets import Part
from fastood.data.sources.open_source import open_source
from fastood.data.sources.source_spec import SourceSpec


def load_task(config: DataConfig, *, seed: int) -> DetectionTask:
    """Load or generate all images of a task.

    Every source is opened and checked before the first image is decoded.

    Args:
        config: Sources of the images, their size and channels.
        seed: Seed of the splits, the embedded images and the noise, 0 or larger. The same seed gives the same task,
            bit for bit.

    Returns:
        The task in memory, except that background and OOD images of packed pools of pixels stay mapped from their
        files, and that `config.decode` may leave image files encoded until they are used.

    Raises:
        FileNotFoundError: If a path is missing, or a class folder is empty.
        TypeError: If an array has the wrong dtype.
        ValueError: If a set is empty, an image is unreadable, or labels do not fit.

    Example:
        >>> from fastood.data import DataConfig, EmbeddedConfig, load_task
        >>> task = load_task(DataConfig(embedded=EmbeddedConfig(pool_size=100, ood_size=10)), seed=0)
        >>> task.num_classes, len(task.background)
        (8, 100)
        >>> list(task.ood)  # doctest: +NORMALIZE_WHITESPACE
        ['held-out digits', 'Greek letters', 'symbols', 'photographs', 'Gaussian noise', 'uniform noise']
    """
    sources = _open_sources(config)
    selections = check_sources(config, sources, seed=seed)
    return _decode_sources(config, selections, seed=seed)


def _open_sources(config: DataConfig) -> Sources:
    """Open every source, or raise one error that lists all sources that cannot be opened."""
    errors: list[OSError | TypeError | ValueError] = []

    def attempt(spec: SourceSpec | None, field: str, part: Part) -> ImageSource | None:
        if spec is None or spec.kind in ("none", "embedded", *NOISES):
            return None
        try:
            return open_source(
                spec,
                field=field,
                part=part,
                root=config.root,
                download=config.download,
                labelled=field in ("in_dist", "in_dist_test"),
                list_root=config.list_root,
            )
        except (OSError, TypeError, ValueError) as error:
            errors.append(error)
            return None

    in_dist_spec = config.in_dist_spec
    test_spec = config.in_dist_test_spec or (in_dist_spec if in_dist_spec.has_test_part else None)
    # Errors are listed in this order.
    in_dist = attempt(in_dist_spec, "in_dist", "train")
    background = attempt(config.background_spec, "background", "train")
    test = attempt(test_spec, "in_dist_test", "test")
    ood = tuple(attempt(spec, f"ood {name!r}", "ood") for name, spec in config.ood_specs)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        types = {type(error) for error in errors}
        error_type = types.pop() if len(types) == 1 else ValueError
        total = 2 + (test_spec is not None) + len(ood)
        raise error_type("\n".join([f"{len(errors)} of the {total} sources cannot be opened:", *map(str, errors)]))
    return Sources(in_dist=in_dist, in_dist_test=test, background=background, ood=ood)


def _decode_sources(config: DataConfig, selections: Selections, *, seed: int) -> DetectionTask:
    """Decode the selected images, and generate all others."""
    channels, size, _ = selections.shape
    if selections.in_dist is None:
        id_train, id_test = embedded_digits(
            config.embedded, test_fraction=config.test_fraction, size=size, channels=channels, seed=seed
        )
    else:
        name = selections.in_dist[0].source.name
        id_train, id_test = (_decode_set(config, part, selections.shape, name=name) for part in selections.in_dist)
    spec = config.background_spec
    if selections.background is not None:
        background = _decode_set(config, selections.background, selections.shape, name=spec.name)
    elif spec.kind == "embedded":
        background = embedded_background(config.embedded, size=size, channels=channels, seed=seed)
    elif spec.kind == "none":
        background = no_images(selections.shape)
    else:
        background = _noise_set(config, spec, selections.shape, name=spec.name, stream="background", seed=seed)
    if config.blend is not None:
        background = blend_images(
            background, id_train, alpha=config.blend, generator=named_generator(seed, "background", "blend")
        )
    ood: dict[str, ImageSet] = {}
    for (name, spec), selection in zip(config.ood_specs, selections.ood, strict=True):
        if selection is not None:
            ood[name] = _decode_set(config, selection, selections.shape, name=name)
        elif spec.kind == "embedded":
            ood |= embedded_ood(config.embedded, size=size, channels=channels, seed=seed)
        else:
            ood[name] = _noise_set(config, spec, selections.shape, name=name, stream=name, seed=seed)
    return DetectionTask(id_train=id_train, id_test=id_test, background=background, ood=ood)


def _decode_set(config: DataConfig, selection: Selection, shape: tuple[int, int, int], *, name: str) -> ImageSet:
    source, index = selection.source, selection.index
    return ImageSet(
        name=name,
        images=_decode(config, selection, shape),
        labels=selection.labels,
        source=selection.groups,
        source_names=selection.group_names,
        class_names=selection.class_names,
        digest=source.digest if index is None else digest_of_subset(source.digest, index),
        left_out=source.left_out,
    )


def _decode(config: DataConfig, selection: Selection, shape: tuple[int, int, int]) -> Images:
    """Decode images into memory, unless they stay in a mapped file, or encoded as `config.decode` asks."""
    source, (channels, size, _) = selection.source, shape
    # In-distribution images of a pool of any size are resized.
    if source.mapped is not None and not selection.class_names:
        return source.mapped if selection.index is None else source.mapped[selection.index]
    index = torch.arange(len(source)) if selection.index is None else selection.index
    files = source.files if source.contents is None else source.contents
    if files is not None and config.decode != "memory":
        encoded = EncodedImages(files=files, size=size, channels=channels, place=source.place)
        if config.decode == "stream" or len(index) * encoded.nbytes // len(source) > config.decode_budget_gb * 1e9:
            return encoded.select(index)
    return decode_images(source, index, size=size, channels=channels)


def _noise_set(
    config: DataConfig, spec: SourceSpec, shape: tuple[int, int, int], *, name: str, stream: str, seed: int
) -> ImageSet:
    """Draw a set of noise from the RNG stream of a set and kind of noise."""
    generator = named_generator(seed, stream, spec.kind)
    noise = NOISES[spec.kind]((config.noise_size, *shape), generator=generator, space=config.noise_space)
    return ImageSet(
        name=name,
        images=(noise * 255).round().to(torch.uint8),
        labels=torch.full((config.noise_size,), -1),
        source=torch.zeros(config.noise_size, dtype=torch.int64),
        source_names=(spec.name,),
    )


def no_images(shape: tuple[int, int, int]) -> ImageSet:
    """Return an empty background, for methods that train without one.

    Args:
        shape: C, H and W of the task's images.

    Example:
        >>> len(no_images((3, 32, 32)))
        0
    """
    empty = torch.empty(0, dtype=torch.int64)
    images = torch.empty(0, *shape, dtype=torch.uint8)
    return ImageSet(name="none", images=images, labels=empty, source=empty, source_names=("none",))
