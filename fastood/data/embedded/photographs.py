"""Crops of scikit-learn's two photographs in the format of the embedded scans: far OOD for handwritten digits.

A photograph is divided into a grid of tiles, of which every fourth is held out. Crops of the background pool are in the
other tiles and test crops in the held-out ones, so that they share no pixel.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from fastood.data.embedded.scans import SCAN_SIZE, quantize

PHOTOGRAPHS = ("china.jpg", "flower.jpg")
TILE_ROWS, TILE_COLUMNS = 4, 6
TILE_SIZE = 106
"""Rows and columns of a tile in pixels; 4×6 of them fit into the 427×640 photographs."""
MIN_CONTRAST = 0.25
"""Smallest difference between the brightest and the darkest pixel of a crop."""


def load_grey(photograph: str) -> Tensor:
    """Return the luma (ITU-R BT.601) of a photograph, float32 `[427, 640]` in 0…1."""
    from sklearn.datasets import load_sample_image

    colour = torch.tensor(load_sample_image(photograph), dtype=torch.float32)
    return colour @ torch.tensor([0.299, 0.587, 0.114]) / 255


def is_held_out(tile: Tensor) -> Tensor:
    """Return whether tiles, counted row by row, are held out: every fourth of a row and one per column, on diagonals.

    Args:
        tile: int64 of any shape, 0…23.

    Returns:
        bool of the same shape.

    Example:
        >>> is_held_out(torch.arange(24)).view(4, 6).int().tolist()
        [[1, 0, 0, 0, 1, 0], [0, 1, 0, 0, 0, 1], [0, 0, 1, 0, 0, 0], [0, 0, 0, 1, 0, 0]]
    """
    row, column = tile // TILE_COLUMNS, tile % TILE_COLUMNS
    return (column - row) % 4 == 0


def crop_corners(photograph: Tensor, scale: int, *, held_out: bool) -> Tensor:
    """Return the corners of all crops inside one tile, of the pool or held out, that are not blank.

    Blank crops (sky and blur that span less than a quarter of the grey levels) are left out: a pool of tens of
    thousands of crops would otherwise repeat the same few images.

    Args:
        photograph: float32 `[427, 640]` in 0…1.
        scale: Pixels of the photograph per pixel of the scan, 1…13; a crop is 8·scale pixels square.
        held_out: Whether to crop from the held-out tiles.

    Returns:
        int64 `[N, 2]`, row and column of the top left pixel.

    Example:
        >>> crop_corners(load_grey("china.jpg"), 4, held_out=True).shape[1]
        2
    """
    means = _block_means(photograph, scale)
    extremes = torch.stack([means, -means])
    for window in ((SCAN_SIZE, 1), (1, SCAN_SIZE)):
        extremes = F.max_pool2d(extremes, window, stride=1, dilation=scale)
    contrast = extremes.sum(0)
    row, column = (torch.arange(length) for length in contrast.shape)
    room = TILE_SIZE - SCAN_SIZE * scale
    tile = (row // TILE_SIZE)[:, None] * TILE_COLUMNS + column // TILE_SIZE
    usable = (
        (is_held_out(tile) == held_out)
        & ((row % TILE_SIZE <= room) & (row < TILE_ROWS * TILE_SIZE))[:, None]
        & ((column % TILE_SIZE <= room) & (column < TILE_COLUMNS * TILE_SIZE))
        & (contrast >= MIN_CONTRAST)
    )
    return torch.nonzero(usable)


def crop_scans(photograph: Tensor, corners: Tensor, scale: int) -> Tensor:
    """Scan crops of a photograph: the mean of each scale×scale block, rounded to 17 grey levels.

    Args:
        photograph: float32 `[H, W]` in 0…1.
        corners: int64 `[N, 2]` from `crop_corners`.
        scale: Scale of the corners, as for `crop_corners`.

    Returns:
        uint8 `[N, 8, 8]` grey levels 0…16.

    Example:
        >>> crop_scans(torch.ones(16, 16), torch.tensor([[0, 0], [8, 8]]), 1).shape
        torch.Size([2, 8, 8])
    """
    step = torch.arange(SCAN_SIZE) * scale
    rows, columns = corners[:, :1] + step, corners[:, 1:] + step
    return quantize(_block_means(photograph, scale)[rows[:, :, None], columns[:, None, :]])


def photograph_scans(
    count: int, *, scales: Sequence[int], held_out: bool, generator: torch.Generator
) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """Scan random crops of both photographs, in equal shares per photograph and scale, without repetition.

    Args:
        count: Number N of images.
        scales: Pixels of the photograph per pixel of the scan, each 1…13.
        held_out: Whether to crop from the held-out tiles.
        generator: RNG of the crops.

    Returns:
        uint8 `[N, 8, 8]` grey levels 0…16; int64 `[N]` the index of each image's source; and the sources' names.

    Raises:
        ValueError: If `count` asks for more crops than a photograph has at one of the scales.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> levels, source, names = photograph_scans(4, scales=[1, 2], held_out=False, generator=generator)
        >>> source.tolist(), names[:2]
        ([0, 1, 2, 3], ('china.jpg ×1', 'china.jpg ×2'))
    """
    kinds = [(photograph, scale) for photograph in PHOTOGRAPHS for scale in scales]
    source = torch.arange(count) * len(kinds) // max(count, 1)
    shares = torch.bincount(source, minlength=len(kinds)).tolist()
    levels = []
    for (name, scale), share in zip(kinds, shares, strict=True):
        photograph = load_grey(name)
        corners = crop_corners(photograph, scale, held_out=held_out)
        if share > len(corners):
            raise ValueError(
                f"count: {count} crops take {share} of {name} ×{scale}, which has {len(corners)}: ask for fewer"
            )
        chosen = torch.randperm(len(corners), generator=generator)[:share]
        levels.append(crop_scans(photograph, corners[chosen], scale))
    return torch.cat(levels), source, tuple(f"{name} ×{scale}" for name, scale in kinds)


def _block_means(photograph: Tensor, scale: int) -> Tensor:
    """Return the mean of the scale×scale block that begins at each pixel, float32 `[H - scale + 1, W - scale + 1]`."""
    return F.avg_pool2d(photograph[None, None], scale, stride=1)[0, 0]
