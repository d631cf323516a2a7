"""Scores as sorted integer keys of the same order, from which every detection statistic is counted.

csrc/detection_metrics/keys.h has the map. Checks shared by the functions on keys are here as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastood.ops._validation import LOGIT_DTYPES, check_tensor, require_same_device

MAX_COUNT = 2**31 - 1  # kMaxCount of csrc/detection_metrics/math.h

_sort_scores = torch.ops.fastood.sort_scores.default


def _sort_fake(scores: Tensor, counts: Tensor | None) -> Tensor:
    require_same_device(scores, counts)
    return scores.new_empty(scores.shape, dtype=torch.int64 if scores.dtype == torch.float64 else torch.int32)


torch.library.register_fake("fastood::sort_scores", _sort_fake)


def sort_scores(scores: Tensor, counts: Tensor | None = None) -> Tensor:
    """Convert scores to order-preserving integer keys and sort each row.

    -0.0 has the key of 0.0; infinities are scores like any other. Keys of one dtype compare across calls: int32 keys
    of float32, bfloat16 and float16 scores are those of the scores as float32.

    Args:
        scores: `[..., N]` float64, float32, bfloat16 or float16, N below 2^31.
        counts: int64 `[...]`, number of leading scores of each row that count; all by default. The others are padding
            of any value, and sort last with the largest integer as key.

    Returns:
        `[..., N]`, int64 for float64, int32 for all others.

    Raises:
        TypeError: If `scores` or `counts` is not a tensor of the dtypes above.
        ValueError: If a score is NaN (on the CPU; on CUDA, where a check would synchronise, all statistics of its row
            are NaN instead), or if `counts` has the wrong shape, device or range.

    Example:
        >>> keys = sort_scores(torch.tensor([0.5, -float("inf"), -0.0, 0.0]))
        >>> keys_to_scores(keys).tolist()
        [-inf, 0.0, 0.0, 0.5]
    """
    check_tensor("scores", scores, LOGIT_DTYPES)
    if scores.dim() < 1 or scores.shape[-1] > MAX_COUNT:
        raise ValueError(f"scores must be [..., N] with N < 2^31, got shape {tuple(scores.shape)}")
    check_per_row(counts, "counts", scores.shape[:-1], scores.device)
    rows = scores.detach().reshape(scores.shape[:-1].numel(), scores.shape[-1]).contiguous()
    row_counts = None if counts is None else counts.reshape(-1).contiguous()
    if row_counts is not None:
        check_range(row_counts, "counts", rows.shape[1])
    keys: Tensor = _sort_scores(rows, row_counts)
    if keys.device.type == "cpu" and not torch.compiler.is_compiling():
        _check_no_nan(keys, row_counts)
    return keys.reshape(scores.shape)


def keys_to_scores(keys: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """Return the scores of keys, float64 for int64 and float32 for int32 keys, converted to `dtype`; NaN for padding.

    Example:
        >>> keys_to_scores(sort_scores(torch.tensor([2.0, -1.0], dtype=torch.bfloat16)), torch.bfloat16)
        tensor([-1.,  2.], dtype=torch.bfloat16)
    """
    _check_keys(keys, "keys")
    # Negative floats have their lower bits flipped, so that keys ascend with the scores; the flip is its own inverse.
    bits = torch.where(keys < 0, keys ^ torch.iinfo(keys.dtype).max, keys)
    scores = bits.contiguous().view(torch.float64 if keys.dtype == torch.int64 else torch.float32)
    return scores if dtype is None else scores.to(dtype)


def _check_keys(keys: Tensor, name: str) -> None:
    check_tensor(name, keys)
    if keys.dtype not in (torch.int32, torch.int64):
        raise TypeError(f"{name} must be int32 or int64 keys of sort_scores, got {keys.dtype}")


def check_both_keys(id_keys: Tensor, ood_keys: Tensor, *, dim: int) -> None:
    """Check that both are keys of one dtype, on one device, with `dim` dimensions."""
    for keys, name in ((id_keys, "id_keys"), (ood_keys, "ood_keys")):
        _check_keys(keys, name)
        if keys.dim() != dim or keys.shape[-1] > MAX_COUNT:
            raise ValueError(
                f"{name} must be {dim}-D with fewer than 2^31 keys in a row, got shape {tuple(keys.shape)}"
            )
    if id_keys.dtype != ood_keys.dtype:
        raise TypeError(f"ood_keys must be {id_keys.dtype} like id_keys, got {ood_keys.dtype}")
    if id_keys.device != ood_keys.device:
        raise ValueError(f"ood_keys must be on {id_keys.device} like id_keys, got {ood_keys.device}")


def check_per_row(numbers: Tensor | None, name: str, shape: Sequence[int], device: torch.device) -> None:
    """Check that `numbers` is None or int64 of this shape on this device."""
    if numbers is None:
        return
    check_tensor(name, numbers, [torch.int64])
    if numbers.shape != torch.Size(shape):
        raise ValueError(f"{name} must have shape {tuple(shape)}, got {tuple(numbers.shape)}")
    if numbers.device != device:
        raise ValueError(f"{name} must be on {device}, got {numbers.device}")


def check_range(numbers: Tensor, name: str, largest: int) -> None:
    """Check on the CPU that all numbers are in [0, largest]; on other devices the check would synchronise."""
    if numbers.device.type != "cpu" or torch.compiler.is_compiling() or numbers.numel() == 0:
        return
    low, high = (int(extreme) for extreme in numbers.aminmax())
    if low < 0 or high > largest:
        raise ValueError(f"{name} must be in [0, {largest}], got {low if low < 0 else high}")


def _check_no_nan(keys: Tensor, counts: Tensor | None) -> None:
    """Check that no score is NaN: NaN sorts last, so that the last score of each row is enough."""
    if keys.numel() == 0:
        return
    last = keys[:, -1] if counts is None else keys.gather(1, (counts - 1).clamp(min=0)[:, None])[:, 0]
    bad = last == torch.iinfo(keys.dtype).max
    if counts is not None:
        bad &= counts > 0
    if bool(bad.any()):
        raise ValueError(f"scores must not be NaN, got one or more in row {int(bad.nonzero()[0])} of {len(keys)}")
