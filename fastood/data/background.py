"""Background of a task: the whole of it, or the slice of one of several processes."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor

from fastood.common.seeding import named_generator
from fastood.data.config import DataConfig
from fastood.data.decoding import (
    decode_rows,
    decode_set,
    drawn_noise,
    encoded_images,
    no_images,
    noise_set,
    set_of,
)
from fastood.data.embedded.image_sets import embedded_background
from fastood.data.images.background_share import BackgroundShare
from fastood.data.images.blending import blend_images, blended_chunks, blended_set
from fastood.data.images.digests import digest_of_set
from fastood.data.images.encoded import split_images
from fastood.data.images.image_set import ImageSet
from fastood.data.images.image_source import decode_in_chunks
from fastood.data.images.row_values import constant_rows
from fastood.data.selection import Selections

_SPLIT = 4096


def background_rows(config: DataConfig, selections: Selections) -> int:
    """Return the number N of images of the whole background, before any of them is decoded or drawn."""
    kind = config.background_spec.kind
    if selections.background is not None:
        return len(selections.background)
    return {"none": 0, "embedded": config.embedded.pool_size}.get(kind, config.noise_size)


def load_background(config: DataConfig, selections: Selections, id_train: ImageSet, *, seed: int) -> ImageSet:
    """Decode or generate the whole background.

    Args:
        config: Source of the images, and their blending.
        selections: Checked images of the task.
        id_train: In-distribution images to blend with.
        seed: Seed of generated images and of the blending.

    Raises:
        ValueError: If an image is unreadable, or images to blend are still encoded.
    """
    spec, shape = config.background_spec, selections.shape
    if selections.background is not None:
        background = decode_set(config, selections.background, shape, name=spec.name)
    elif spec.kind == "embedded":
        background = embedded_background(config.embedded, size=shape[1], channels=shape[0], seed=seed)
    elif spec.kind == "none":
        background = no_images(shape)
    else:
        background = noise_set(config, spec, shape, name=spec.name, stream="background", seed=seed)
    if config.blend is None:
        return background
    return blend_images(background, id_train, alpha=config.blend, generator=_blend_generator(seed))


def load_slice(
    config: DataConfig, selections: Selections, id_train: ImageSet, *, seed: int, bounds: tuple[int, int]
) -> tuple[ImageSet, BackgroundShare]:
    """Decode or generate a slice of the background; each image equals that of `load_background`.

    Args:
        config: Source of the images, and their blending.
        selections: Checked images of the task.
        id_train: In-distribution images to blend with.
        seed: Seed of generated images and of the blending.
        bounds: First row of the slice, and row after its last one.

    Returns:
        The slice, and its place in the whole background.

    Raises:
        ValueError: If an image is unreadable, or images to blend are still encoded.
    """
    if selections.background is not None and config.blend is None:
        selection = selections.background
        whole = set_of(selection, _unread(selections, len(selection)), name=config.background_spec.name)
        if whole.digest is not None:
            images = decode_rows(config, selection, selections.shape, selection.rows[slice(*bounds)])
            return replace(whole.rows(*bounds), images=images), _share_of(whole, bounds, cache(whole.sha256))
    whole, chunks = _pixel_chunks(config, selections, seed=seed)
    if config.blend is not None:
        chunks = blended_chunks(chunks, whole, id_train, alpha=config.blend, generator=_blend_generator(seed))
        whole = blended_set(whole, _unread(selections, len(whole)))
    images, digest = _kept_rows(whole, chunks, bounds)
    return replace(whole.rows(*bounds), images=images), _share_of(whole, bounds, lambda: digest)


def _pixel_chunks(config: DataConfig, selections: Selections, *, seed: int) -> tuple[ImageSet, Iterator[Tensor]]:
    """Return the whole background without its pixels, and its pixels in chunks."""
    spec, shape = config.background_spec, selections.shape
    count = background_rows(config, selections)
    if selections.background is not None:
        selection = selections.background
        # Files that stay encoded cannot be blended; the check of the blending raises the error.
        encoded = encoded_images(config, selection, shape)
        images = _unread(selections, count) if encoded is None else encoded.select(selection.rows)
        chunks = decode_in_chunks(selection.source, selection.rows, size=shape[1], channels=shape[0])
        return set_of(selection, images, name=spec.name), chunks
    if spec.kind == "embedded":
        # At most some 130,000 tiny images.
        generated = embedded_background(config.embedded, size=shape[1], channels=shape[0], seed=seed)
        return replace(generated, images=_unread(selections, count)), split_images(generated.images, _SPLIT)
    if spec.kind == "none":
        return no_images(shape), iter(())
    noise = ImageSet(
        name=spec.name,
        images=_unread(selections, count),
        labels=constant_rows(-1, count),
        source=constant_rows(0, count),
        source_names=(spec.name,),
    )
    return noise, drawn_noise(config, spec, shape, stream="background", seed=seed)


def _unread(selections: Selections, count: int) -> Tensor:
    """Return a placeholder for images of the task's shape that takes a byte."""
    return torch.zeros((), dtype=torch.uint8).expand(count, *selections.shape)


def _kept_rows(whole: ImageSet, chunks: Iterable[Tensor], bounds: tuple[int, int]) -> tuple[Tensor, str]:
    """Hash all pixels of the background, and keep those of a slice.

    Args:
        whole: The background without its pixels.
        chunks: Its pixels in order.
        bounds: First row of the slice, and row after its last one.

    Returns:
        Images of the slice, and the SHA-256 of the whole background.
    """
    begin, end = bounds
    kept = torch.empty(end - begin, *whole.images.shape[1:], dtype=torch.uint8)

    def passing() -> Iterator[Tensor]:
        place = 0
        for chunk in chunks:
            low, high = max(begin, place), min(end, place + len(chunk))
            if low < high:
                kept[low - begin : high - begin] = chunk[low - place : high - place]
            place += len(chunk)
            yield chunk

    digest = digest_of_set(whole.images.shape, passing(), (whole.labels, whole.source))
    return kept, digest


def _share_of(whole: ImageSet, bounds: tuple[int, int], digest: Callable[[], str]) -> BackgroundShare:
    return BackgroundShare(begin=bounds[0], size=len(whole), digest=digest, group_counts=cache(whole.group_counts))


def _blend_generator(seed: int) -> torch.Generator:
    return named_generator(seed, "background", "blend")
