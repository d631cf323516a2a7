"""Images of a task from its options: open every source, check them all, then decode."""

from fastood.data.background import background_rows, load_background, load_slice
from fastood.data.config import DataConfig
from fastood.data.decoding import decode_set, noise_set
from fastood.data.embedded.image_sets import embedded_digits, embedded_ood
from fastood.data.images.background_share import slice_bounds
from fastood.data.images.image_set import DetectionTask, ImageSet
from fastood.data.images.image_source import ImageSource
from fastood.data.images.noise import NOISES
from fastood.data.selection import Selections, Sources, check_sources
from fastood.data.sources.named_sets import Part
from fastood.data.sources.open_source import open_source
from fastood.data.sources.source_spec import SourceSpec


def load_task(config: DataConfig, *, seed: int, share: tuple[int, int] | None = None) -> DetectionTask:
    """Load or generate all images of a task.

    Every source is opened and checked before the first image is decoded.

    With a `share`, a background of image files or a packed pool costs a process its slice alone. The others (NumPy
    arrays, data sets of torchvision in one file, noise, embedded and blended images) are identified by the pixels of
    all images: every process decodes or draws each image once, hashes it, and keeps those of its slice.

    Args:
        config: Sources of the images, their size and channels.
        seed: Seed of the splits, the embedded images and the noise, 0 or larger. The same seed gives the same task,
            bit for bit.
        share: Rank of this process and number R of all. It then keeps the rows `background_begin` to `background_begin
            + len(background) - 1` of the background, slices of ceil(N/R) images as `torch.chunk` cuts them, which are
            those that a process alone has there. None keeps all.

    Returns:
        The task in memory, except that background and OOD images of packed pools of pixels stay mapped from their
        files, and that `config.decode` may leave image files encoded until they are used.

    Raises:
        FileNotFoundError: If a path is missing, or a class folder is empty.
        TypeError: If an array has the wrong dtype, or `share` is not a pair of integers.
        ValueError: If a set is empty, an image is unreadable, labels do not fit, or the background has too few images
            for the processes.

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
    bounds = None if share is None else slice_bounds(background_rows(config, selections), share)
    return _decode_sources(config, selections, seed=seed, bounds=bounds)


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


def _decode_sources(
    config: DataConfig, selections: Selections, *, seed: int, bounds: tuple[int, int] | None
) -> DetectionTask:
    """Decode the selected images, and generate all others; of the background only the rows within `bounds`."""
    channels, size, _ = shape = selections.shape
    if selections.in_dist is None:
        id_train, id_test = embedded_digits(
            config.embedded, test_fraction=config.test_fraction, size=size, channels=channels, seed=seed
        )
    else:
        name = selections.in_dist[0].source.name
        id_train, id_test = (decode_set(config, part, shape, name=name) for part in selections.in_dist)
    if bounds is None:
        background, share = load_background(config, selections, id_train, seed=seed), None
    else:
        background, share = load_slice(config, selections, id_train, seed=seed, bounds=bounds)
    ood: dict[str, ImageSet] = {}
    for (name, spec), selection in zip(config.ood_specs, selections.ood, strict=True):
        if selection is not None:
            ood[name] = decode_set(config, selection, shape, name=name)
        elif spec.kind == "embedded":
            ood |= embedded_ood(config.embedded, size=size, channels=channels, seed=seed)
        else:
            ood[name] = noise_set(config, spec, shape, name=name, stream=name, seed=seed)
    return DetectionTask(id_train=id_train, id_test=id_test, background=background, ood=ood, share=share)
