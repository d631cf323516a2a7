"""Image sets from selected images of opened sources, and from noise."""

from collections.abc import Iterator

import torch
from torch import Tensor

from fastood.common.seeding import named_generator
from fastood.data.config import DataConfig
from fastood.data.images.digests import digest_of_subset
from fastood.data.images.encoded import EncodedImages, Images
from fastood.data.images.image_set import ImageSet
from fastood.data.images.image_source import decode_images
from fastood.data.images.noise import noise_chunks
from fastood.data.images.row_values import constant_rows
from fastood.data.selection import Selection
from fastood.data.sources.source_spec import SourceSpec


def decode_set(config: DataConfig, selection: Selection, shape: tuple[int, int, int], *, name: str) -> ImageSet:
    """Decode the selected images into memory, unless they stay in a mapped file, or encoded as `config.decode` asks.

    Args:
        config: Sources of the images, and when they are decoded.
        selection: Images of a source.
        shape: C, H and W of the task's images.
        name: Name of the set in tables.

    Raises:
        ValueError: If an image is unreadable; the message names it.
    """
    return set_of(selection, decode_rows(config, selection, shape, selection.rows), name=name)


def set_of(selection: Selection, images: Images, *, name: str) -> ImageSet:
    """Return the set of selected images, with labels, groups, names and digest of the selection."""
    source, index = selection.source, selection.index
    return ImageSet(
        name=name,
        images=images,
        labels=selection.labels,
        source=selection.groups,
        source_names=selection.group_names,
        class_names=selection.class_names,
        digest=source.digest if index is None else digest_of_subset(source.digest, index),
        digest_covers_rows=source.digest_covers_rows,
        left_out=source.left_out,
    )


def decode_rows(config: DataConfig, selection: Selection, shape: tuple[int, int, int], rows: Tensor | range) -> Images:
    """Decode images as `decode_set` does.

    Args:
        config: When images are decoded.
        selection: Images of a source.
        shape: C, H and W of the task's images.
        rows: `selection.rows`, or a part of them.
    """
    source, (channels, size, _) = selection.source, shape
    # In-distribution images of a pool of any size are resized.
    if source.mapped is not None and not selection.class_names:
        return source.mapped[rows.start : rows.stop] if isinstance(rows, range) else source.mapped[rows]
    encoded = encoded_images(config, selection, shape)
    if encoded is not None:
        return encoded.select(rows)
    return decode_images(source, rows, size=size, channels=channels)


def encoded_images(config: DataConfig, selection: Selection, shape: tuple[int, int, int]) -> EncodedImages | None:
    """Return all image files of a source, if `config.decode` leaves them encoded, otherwise None.

    The size of the whole selection decides, for any number of processes.

    Args:
        config: When images are decoded.
        selection: Images of the source.
        shape: C, H and W of the task's images.
    """
    source, (channels, size, _) = selection.source, shape
    files = source.files if source.contents is None else source.contents
    if files is None or config.decode == "memory":
        return None
    if config.decode == "auto" and len(selection) * channels * size**2 <= config.decode_budget_gb * 1e9:
        return None
    return EncodedImages(files=files, size=size, channels=channels, place=source.place)


def noise_set(
    config: DataConfig, spec: SourceSpec, shape: tuple[int, int, int], *, name: str, stream: str, seed: int
) -> ImageSet:
    """Draw a set of noise from the RNG stream of a set and kind of noise.

    Args:
        config: Size of the set, and space of the noise.
        spec: Kind of noise.
        shape: C, H and W of the task's images.
        name: Name of the set in tables.
        stream: Name of the RNG stream.
        seed: Seed of the stream.
    """
    images = torch.empty(config.noise_size, *shape, dtype=torch.uint8)
    drawn = 0
    for chunk in drawn_noise(config, spec, shape, stream=stream, seed=seed):
        images[drawn : drawn + len(chunk)] = chunk
        drawn += len(chunk)
    return ImageSet(
        name=name,
        images=images,
        labels=constant_rows(-1, config.noise_size),
        source=constant_rows(0, config.noise_size),
        source_names=(spec.name,),
    )


def drawn_noise(
    config: DataConfig, spec: SourceSpec, shape: tuple[int, int, int], *, stream: str, seed: int
) -> Iterator[Tensor]:
    """Draw the images of `noise_set` in chunks, uint8 `[n, C, H, W]`."""
    generator = named_generator(seed, stream, spec.kind)
    return noise_chunks(spec.kind, config.noise_size, shape, generator=generator, space=config.noise_space)


def no_images(shape: tuple[int, int, int]) -> ImageSet:
    """Return an empty background, for methods that train without one.

    Args:
        shape: C, H and W of the task's images.

    Example:
        >>> len(no_images((3, 32, 32)))
        0
    """
    empty = constant_rows(-1, 0)
    images = torch.empty(0, *shape, dtype=torch.uint8)
    return ImageSet(name="none", images=images, labels=empty, source=empty, source_names=("none",))
