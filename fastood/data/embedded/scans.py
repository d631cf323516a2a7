"""Pipeline of the embedded scans: 32×32 bitmap → 4×4 block counts → 8×8 images of 17 grey levels.

scikit-learn's digits were made by it (`sklearn.datasets.load_digits`, from the UCI set "Optical Recognition of
Handwritten Digits"). All other embedded images pass through the same steps, so that grey levels, resolution and
interpolation are equal and the sets differ only in content.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

BITMAP_SIZE = 32
"""Rows and columns of the bitmap of a character."""
SCAN_SIZE = 8
"""Rows and columns of a scan."""
MAX_LEVEL = 16
"""Brightest grey level of a scan, where all 4×4 pixels of a block are ink."""


def count_blocks(bitmap: Tensor) -> Tensor:
    """Count the ink of each 4×4 block of a bitmap.

    Args:
        bitmap: bool `[N, 32, 32]`, true where there is ink.

    Returns:
        uint8 `[N, 8, 8]`, 0…16.

    Example:
        >>> count_blocks(torch.ones(1, 32, 32, dtype=torch.bool)).unique().tolist()
        [16]
    """
    block = BITMAP_SIZE // SCAN_SIZE
    counts = F.avg_pool2d(bitmap[:, None].float(), block)[:, 0] * block**2
    return counts.round().to(torch.uint8)


def quantize(intensity: Tensor) -> Tensor:
    """Round intensities to the 17 grey levels of a scan.

    Args:
        intensity: Floating point of any shape; clamped to 0…1.

    Returns:
        uint8 of the same shape, 0…16.

    Example:
        >>> quantize(torch.tensor([-1.0, 0.0, 0.5, 1.0])).tolist()
        [0, 0, 8, 16]
    """
    return (intensity.clamp(0, 1) * MAX_LEVEL).round().to(torch.uint8)


def to_pixels(levels: Tensor) -> Tensor:
    """Map the 17 grey levels to 0…255, and add the channel axis.

    Args:
        levels: uint8 `[N, 8, 8]`, 0…16.

    Returns:
        uint8 `[N, 1, 8, 8]`.

    Example:
        >>> to_pixels(torch.tensor([[[0, 8, 16]]], dtype=torch.uint8)).tolist()
        [[[[0, 128, 255]]]]
    """
    return (levels[:, None].float() * (255 / MAX_LEVEL)).round().to(torch.uint8)
