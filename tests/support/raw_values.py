"""Results of ops for values out of range: an error on the CPU, a marked result on a GPU."""

import math
from collections.abc import Callable
from typing import TypeAlias

import pytest
import torch
from torch import Tensor

__all__ = ["LARGEST", "NAN", "OUT_OF_RANGE", "Call", "outcome", "with_value"]

Call: TypeAlias = Callable[[], Tensor | tuple[Tensor, ...]]
LARGEST = torch.iinfo(torch.int64).max
OUT_OF_RANGE = (-1, LARGEST, -LARGEST - 1)
NAN = math.nan


def outcome(device: str, message: str, call: Call) -> tuple[Tensor, ...] | None:
    """Return the results of a call on a GPU; None on the CPU, where the call must raise."""
    if device != "cpu":
        results = call()
        return results if isinstance(results, tuple) else (results,)
    with pytest.raises(RuntimeError, match=message):
        call()
    return None


def with_value(tensor: Tensor, position: int | tuple[int, ...], value: float) -> Tensor:
    """Return a copy of a tensor with another value at one position."""
    changed = tensor.clone()
    changed[position] = value
    return changed
