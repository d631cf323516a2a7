"""Quantile of more numbers than fit into memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor

__all__ = ["float32_quantile"]

_SIGN = 1 << 31
_BINS = 1 << 16


def float32_quantile(parts: Callable[[], Iterable[Tensor]], share: float) -> float:
    """Return the quantile of numbers rounded to float32, with linear interpolation between neighbours.

    Two passes count the upper and the lower 16 bits of the numbers: the result is exact, with memory for 65 536 counts.

    Args:
        parts: Function that returns an iterable over all numbers at each call; at least one number, none NaN. If the
            second pass yields other numbers, the result is within a relative error of 2^-7 of the quantile of the first
            pass, except for denormal numbers.
        share: Position of the quantile, in [0, 1].

    Example:
        >>> import torch
        >>> float32_quantile(lambda: [torch.tensor([4.0, 1.0]), torch.tensor([-2.0])], 0.75)
        2.5
    """
    # The upper half of a key selects one of 65 536 bins; the second pass counts within the one or two bins needed.
    upper = _counts(_keys(part) >> 16 for part in parts())
    count = int(upper.sum())
    position = share * (count - 1)
    ranks = sorted({math.floor(position), math.ceil(position)})
    before = upper.cumsum(0) - upper
    # The last non-empty bin that starts at or before a rank contains it.
    bins = [int((before <= rank).nonzero()[upper[before <= rank] > 0][-1]) for rank in ranks]
    lower = {
        chosen: _counts(keys[(keys >> 16) == chosen] & (_BINS - 1) for keys in map(_keys, parts()))
        for chosen in dict.fromkeys(bins)
    }
    found = []
    for rank, chosen in zip(ranks, bins, strict=True):
        inside = lower[chosen].cumsum(0)
        # The minimum below matters only if the second pass yields other numbers, so that the rank is beyond the bin.
        low = int((inside <= rank - int(before[chosen])).sum())
        found.append(_number((chosen << 16) | min(low, _BINS - 1)))
    return found[0] + (found[-1] - found[0]) * (position - ranks[0])


def _keys(numbers: Tensor) -> Tensor:
    """Return integers in [0, 2^32) in the order of the numbers."""
    bits = numbers.detach().flatten().float().view(torch.int32).long() & 0xFFFFFFFF
    return torch.where(bits >= _SIGN, 0xFFFFFFFF - bits, bits + _SIGN)


def _number(key: int) -> float:
    bits = key - _SIGN if key >= _SIGN else 0xFFFFFFFF - key
    signed = bits - (1 << 32) if bits >= _SIGN else bits
    return float(torch.tensor(signed, dtype=torch.int32).view(torch.float32))


def _counts(parts: Iterable[Tensor]) -> Tensor:
    total = torch.zeros(_BINS, dtype=torch.int64)
    for part in parts:
        total += torch.bincount(part, minlength=_BINS).cpu()
    return total
