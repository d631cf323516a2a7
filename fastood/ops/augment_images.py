"""Augmented batches from stored images: gather, pad-crop, mirror and normalise in one pass over the bytes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastood.ops._arguments import shown
from fastood.ops._validation import check_integer, check_number, check_tensor, require_same_device

OUTPUT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_CHANNEL_SCALES = 16  # kMaxScales of csrc/image_augment/math.h
MAX_PADDING = 1 << 16  # kMaxPadding

_augment_images = torch.ops.fastood.augment_images.default


def _fake(
    images: Tensor,
    index: Tensor,
    rows: Tensor,
    columns: Tensor,
    flip: Tensor,
    padding: int,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    channels_last: bool,
) -> Tensor:
    require_same_device(images, index, rows, columns, flip)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    shape = (index.shape[0], *images.shape[1:])
    return torch.empty(shape, dtype=dtype, device=images.device, memory_format=memory_format)


torch.library.register_fake("fastood::augment_images", _fake)


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
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> Tensor:
    """Gather images, crop each from its zero-padded copy, mirror some and normalise: the usual CIFAR augmentation.

    Pixel (y, x) of result b is (v/255 - mean)/std, where v is pixel (y + rows[b] - padding, x' + columns[b] - padding)
    of image index[b], 0 beyond its edges, and x' = W - 1 - x if flip[b], else x: cropped, then mirrored (He et
    al. 2016, section 4.2). Every operation is rounded to float32, so that the result is that of the PyTorch composition
    on the CPU to the bit, on every device. No randomness and no gradient.

    Args:
        images: uint8 `[P, C, H, W]`, on the CPU or a CUDA device, of any strides; may be a memory-mapped file, of which
            only the images of `index` are read.
        index: int64 `[B]`, each 0…P-1, in any order, repeats allowed.
        rows: int64 `[B]`, first row of each crop in the padded image, 0…2·padding; `padding` is the middle.
        columns: int64 `[B]`, first column of each crop in the padded image, 0…2·padding.
        flip: bool `[B]`, whether to mirror left and right.
        padding: Zero pixels on each side before the crop, 0…65536.
        mean: Mean in units of 0…1: a number, or one for each of at most 16 channels.
        std: Standard deviation in units of 0…1, above 0 in float32: a number, or one for each of at most 16 channels.
        dtype: Dtype of the result: float32, or bfloat16 or float16 rounded from it.
        memory_format: `torch.contiguous_format` or `torch.channels_last`.

    Returns:
        `[B, C, H, W]` on the device of `images`. On a CUDA device, where a check would synchronise, images of an index
        out of range are NaN and offsets out of range read zeros.

    Raises:
        TypeError: If a tensor or `dtype` has the wrong type.
        ValueError: If an argument has the wrong shape, device or value.

    Example:
        >>> pool = torch.arange(4, dtype=torch.uint8).reshape(1, 1, 2, 2)
        >>> first, still = torch.tensor([0]), torch.tensor([1])
        >>> mirrored = augment_images(pool, first, still, still, torch.tensor([True]), padding=1, mean=0.0, std=1 / 255)
        >>> mirrored.round().tolist()
        [[[[1.0, 0.0], [3.0, 2.0]]]]
    """
    _check_images(images)
    padding = check_integer("padding", padding, 0, MAX_PADDING)
    per_image = (("index", index, torch.int64), ("rows", rows, torch.int64), ("columns", columns, torch.int64))
    for name, tensor, wanted in (*per_image, ("flip", flip, torch.bool)):
        _check_per_image(tensor, name, wanted, index, images)
    means, stds = _numbers(mean, "mean", images.shape[1]), _numbers(std, "std", images.shape[1])
    if not all(value >= torch.finfo(torch.float32).tiny for value in stds):
        raise ValueError(f"std must be above 0 in float32, got {std}")
    if not isinstance(dtype, torch.dtype) or dtype not in OUTPUT_DTYPES:
        raise TypeError(f"dtype must be float32, bfloat16 or float16, got {shown(dtype)}")
    layouts = (torch.contiguous_format, torch.channels_last)
    if not isinstance(memory_format, torch.memory_format) or memory_format not in layouts:
        raise ValueError(f"memory_format must be contiguous_format or channels_last, got {shown(memory_format)}")
    # The check would synchronise with another device, and break the graph of a compiled function.
    if images.device.type == "cpu" and not torch.compiler.is_compiling():
        for (name, tensor, _), largest in zip(per_image, (images.shape[0] - 1, 2 * padding, 2 * padding), strict=True):
            _check_range(tensor, name, largest)
    # The op takes equal numbers of means and deviations: one for all channels, or one per channel.
    scales = max(len(means), len(stds))
    result: Tensor = _augment_images(
        images,
        index.contiguous(),
        rows.contiguous(),
        columns.contiguous(),
        flip.contiguous(),
        padding,
        means * (scales // len(means)),
        stds * (scales // len(stds)),
        dtype,
        memory_format == torch.channels_last,
    )
    return result


def _check_images(images: Tensor) -> None:
    check_tensor("images", images, [torch.uint8])
    if images.ndim != 4:
        raise ValueError(f"images must have shape [N, C, H, W], got {list(images.shape)}")


def _check_per_image(tensor: Tensor, name: str, dtype: torch.dtype, index: Tensor, images: Tensor) -> None:
    check_tensor(name, tensor, [dtype])
    if tensor.ndim != 1:
        raise ValueError(f"{name} must have shape [B], got {list(tensor.shape)}")
    if tensor.shape != index.shape:
        raise ValueError(f"{name} must have shape {list(index.shape)} like index, got {list(tensor.shape)}")
    if tensor.device != images.device:
        raise ValueError(f"{name} must be on {images.device} like images, got {tensor.device}")


def _numbers(value: float | Sequence[float], name: str, channels: int) -> list[float]:
    several = value if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
    numbers = [check_number(name, number) for number in several]
    if len(numbers) not in (1, channels):
        raise ValueError(f"{name} must be a number or {channels}, one per channel, got {len(numbers)}")
    if len(numbers) > MAX_CHANNEL_SCALES:
        raise ValueError(f"{name} must be a number or at most {MAX_CHANNEL_SCALES}, got {len(numbers)}")
    return numbers


def _check_range(numbers: Tensor, name: str, largest: int) -> None:
    if numbers.numel() == 0:
        return
    low, high = (int(extreme) for extreme in numbers.aminmax())
    if low < 0 or high > largest:
        raise ValueError(f"{name} must be in [0, {largest}], got {low if low < 0 else high}")
