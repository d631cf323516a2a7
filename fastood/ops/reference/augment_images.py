"""Reference of the augmented batches in plain float64 PyTorch."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def augment_images(
    images: Tensor,
    index: Tensor,
    rows: Tensor,
    columns: Tensor,
    flip: Tensor,
    *,
    padding: int,
    mean: float | Sequence[float],
    std: float | Sequence[float],
) -> Tensor:
    """Compute `fastood.ops.augment_images` image by image: float64 `[B, C, H, W]`.

    Example:
        >>> white, zero = torch.full((1, 1, 1, 2), 255, dtype=torch.uint8), torch.tensor([0])
        >>> augment_images(white, zero, zero + 1, zero, zero.bool(), padding=1, mean=0.5, std=0.25)
        tensor([[[[-2.,  2.]]]], dtype=torch.float64)
    """
    height, width = images.shape[2:]
    batch = images.new_zeros((len(index), *images.shape[1:]))
    draws = zip(index.tolist(), rows.tolist(), columns.tolist(), flip.tolist(), strict=True)
    for b, (i, row, column, mirrored) in enumerate(draws):
        padded = torch.nn.functional.pad(images[i], (padding,) * 4)
        crop = padded[:, row : row + height, column : column + width]
        batch[b] = crop.flip(-1) if mirrored else crop
    return (batch.double() / 255 - _per_channel(mean, batch)) / _per_channel(std, batch)


def _per_channel(value: float | Sequence[float], batch: Tensor) -> Tensor:
    return torch.as_tensor(value, dtype=torch.float64, device=batch.device).reshape(-1, 1, 1)
