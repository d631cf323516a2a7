"""Checks of arguments shared by public calls: an error names the argument, its value and the requirement."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from fastood.ops._arguments import as_integer, as_real, limits, shown

Reduction = Literal["weighted_mean", "mean", "sum", "none"]
REDUCTIONS: tuple[Reduction, ...] = ("weighted_mean", "mean", "sum", "none")
LOGIT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype that losses are computed and returned in: float64 for float64 logits, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def dtype_names(dtypes: Sequence[torch.dtype]) -> str:
    """Return `dtypes` as a list for an error message.

    Example:
        >>> dtype_names([torch.float64, torch.float32, torch.int64])
        'float64, float32 or int64'
    """
    names = [str(dtype).removeprefix("torch.") for dtype in dtypes]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"


def check_tensor(
    name: str, value: object, dtypes: Sequence[torch.dtype] | None = None, *, values: bool = False
) -> Tensor:
    """Return `value`, or raise unless it is a dense tensor of one of `dtypes`.

    Args:
        name: The argument's name, for the message.
        value: The argument.
        dtypes: The allowed dtypes; None for all.
        values: Whether to raise for tensors on the meta device as well, because the caller reads the values.

    Raises:
        TypeError: If `value` is not a tensor, or is sparse, nested, quantised or of another dtype.
        ValueError: If `values` is set and `value` is on the meta device.

    Example:
        >>> check_tensor("scores", torch.tensor([1.0]), [torch.float32])
        tensor([1.])
        >>> check_tensor("scores", [1.0])
        Traceback (most recent call last):
        TypeError: scores must be a torch.Tensor, got list: pass torch.as_tensor(scores)
    """
    if not isinstance(value, Tensor):
        remedy = f": pass torch.as_tensor({name})" if isinstance(value, (np.ndarray, np.generic, list, tuple)) else ""
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}{remedy}")
    if value.layout is not torch.strided or value.is_nested:
        kind = "a nested tensor" if value.is_nested else f"layout {value.layout}"
        raise TypeError(f"{name} must be a dense tensor, got {kind}")
    if dtypes is not None and value.dtype not in dtypes:
        raise TypeError(f"{name} must be {dtype_names(dtypes)}, got {value.dtype}")
    if values and value.is_meta:
        raise ValueError(f"{name} must be on a device that holds its values, got the meta device")
    return value


def require_same_device(first: Tensor, *others: Tensor | None) -> None:
    """Check that all tensors are on one device and raise RuntimeError otherwise; for the fake kernels.

    Example:
        >>> require_same_device(torch.zeros(1), None, torch.zeros(1, device="meta"))
        Traceback (most recent call last):
        RuntimeError: all tensors must be on the device of the first argument, cpu, got one on meta
    """
    for other in others:
        if other is not None and other.device != first.device:
            raise RuntimeError(
                f"all tensors must be on the device of the first argument, {first.device}, got one on {other.device}"
            )


def check_number(
    name: str,
    value: object,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    above_low: bool = False,
    below_high: bool = False,
) -> float:
    """Return `value` as a finite float, or raise unless it is a number in `[low, high]`.

    Args:
        name: The argument's name, for the message.
        value: A number of Python or NumPy, or a tensor or array without dimensions; no bool.
        low: The least value that is allowed.
        high: The largest value that is allowed.
        above_low: Whether `low` itself is out of range.
        below_high: Whether `high` itself is out of range.

    Raises:
        TypeError: If `value` is not a real number.
        ValueError: If `value` is NaN, infinite, beyond float64 or out of range.

    Example:
        >>> check_number("epsilon", 1, 0, 1)
        1.0
        >>> check_number("epsilon", 1, 0, 1, below_high=True)
        Traceback (most recent call last):
        ValueError: epsilon must be in [0, 1), got 1
    """
    if type(value) is not float and getattr(value, "ndim", 0) != 0:
        raise TypeError(f"{name} must be a number, got {shown(value)}")
    number = as_real(name, value, wanted="a number")
    inside = (number > low if above_low else number >= low) and (number < high if below_high else number <= high)
    if not (inside and math.isfinite(number)):
        raise ValueError(f"{name} must be {_range(low, high, above_low, below_high)}, got {shown(value)}")
    return number


def check_integer(name: str, value: object, low: int | None = None, high: int | None = None) -> int:
    """Return `value` as an int, or raise unless it is an integer in `low … high`.

    Args:
        name: The argument's name, for the message.
        value: An integer of Python or NumPy, or an integer tensor or array without dimensions; no bool.
        low: The least value that is allowed; None for any.
        high: The largest value that is allowed; None for any.

    Raises:
        TypeError: If `value` is not an integer.
        ValueError: If `value` is out of range.

    Example:
        >>> check_integer("num_reject", np.int64(5), 1)
        5
        >>> check_integer("num_reject", 0, 1)
        Traceback (most recent call last):
        ValueError: num_reject must be an int >= 1, got 0
    """
    if type(value) is not int and getattr(value, "ndim", 0) != 0:
        raise TypeError(f"{name} must be an int{limits(low, high)}, got {shown(value)}")
    return as_integer(name, value, low, high)


def _range(low: float, high: float, above_low: bool, below_high: bool) -> str:
    if low == -math.inf and high == math.inf:
        return "finite"
    if high == math.inf:
        return f"finite and {'>' if above_low else '>='} {low:g}"
    if low == -math.inf:
        return f"finite and {'<' if below_high else '<='} {high:g}"
    return f"in {'(' if above_low else '['}{low:g}, {high:g}{')' if below_high else ']'}"


def widened(tensor: Tensor) -> Tensor:
    """Return the tensor in its compute dtype: float32 for bfloat16 and float16, unchanged otherwise."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def check_logits(logits: Tensor) -> None:
    """Check that `logits` is a floating-point `[N, K]` tensor with at least one class."""
    check_tensor("logits", logits, LOGIT_DTYPES)
    if logits.dim() != 2 or logits.shape[1] < 1:
        raise ValueError(f"logits must be [N, K] with K >= 1, got shape {tuple(logits.shape)}")


def check_reduction(reduction: object) -> Reduction:
    """Return `reduction`, or raise unless it is a `Reduction`; None means "none", as in pytorch-ood."""
    if reduction is None:
        return "none"
    for known in REDUCTIONS:
        if isinstance(reduction, str) and reduction == known:
            return known
    names = ", ".join(f'"{name}"' for name in REDUCTIONS[:-1])
    raise ValueError(f'reduction must be {names} or "{REDUCTIONS[-1]}", got {shown(reduction)}')


def check_finite_weight(weight: Tensor, name: str = "weight") -> None:
    """Check that no weight is NaN, infinite or negative. Waits for the device once."""
    if bool(((weight >= 0) & torch.isfinite(weight)).all()):
        return
    check_finite_values(weight, name)
    raise ValueError(f"{name} must be >= 0, got a minimum of {weight.min().item():g}")


def check_finite_values(tensor: Tensor, name: str) -> None:
    """Check that no value is NaN or infinite; the error names the first such row. Synchronises with the device."""
    bad = ~torch.isfinite(tensor.detach())
    if bool(bad.any()):
        rows = bad.reshape(bad.shape[0], -1).any(1).nonzero().flatten().tolist()
        raise ValueError(f"{name} must be finite, got NaN or infinity in {len(rows)} rows, the first is row {rows[0]}")
