"""Conversion of the targets and weights of losses to the dtypes and layouts of the ops."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeGuard

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastood.ops._arguments import shown
from fastood.ops._arrays import from_array_like
from fastood.ops._validation import LOGIT_DTYPES, check_finite_weight, check_tensor, compute_dtype

Numbers = Tensor | npt.NDArray[Any] | Sequence[float]
"""Labels or weights: a tensor, an array or a list."""

_INTEGERS = (torch.int32, torch.int16, torch.int8, torch.uint32, torch.uint16, torch.uint8)


def check_dense_logits(logits: Tensor) -> None:
    """Check that `logits` is a floating-point `[N, K]` or `[N, K, ...]` tensor with at least one class."""
    check_tensor("logits", logits, LOGIT_DTYPES)
    if logits.dim() < 2 or logits.shape[1] < 1:
        raise ValueError(f"logits must be [N, K] or [N, K, ...] with K >= 1, got shape {tuple(logits.shape)}")


def _is_ready(values: object, dtype: torch.dtype, logits: Tensor) -> TypeGuard[Tensor]:
    """Return whether values need no conversion: contiguous `[N]` of this dtype, on the device of logits `[N, K]`.

    Such values skip the conversions, which at small batches cost more than the op.
    """
    return (
        isinstance(values, Tensor)
        and values.dtype == dtype
        and values.layout is torch.strided
        and values.dim() == 1
        and logits.dim() == 2
        and values.size(0) == logits.size(0)
        and values.device == logits.device
        and values.is_contiguous()
    )


def as_targets(targets: object, logits: Tensor, name: str = "logits") -> Tensor:
    """Return `targets` as int64 of the shape that the logits leave, `[N]` or `[N, ...]`, or raise.

    Args:
        targets: Integers, or whole numbers in float32 or float64, as a tensor, an array or a list. Floating-point
            targets are checked, which synchronises with the device. An array or a list moves to the device of `logits`.
        logits: `[N, K]` or `[N, K, ...]`.
        name: Name of `logits` in the message.

    Example:
        >>> as_targets([0.0, -1.0], torch.zeros(2, 5))
        tensor([ 0, -1])
    """
    if _is_ready(targets, torch.int64, logits):
        return targets
    targets = _as_tensor("targets", targets, logits.device)
    shape = logits.shape[:1] + logits.shape[2:]
    if targets.shape != shape:
        raise ValueError(f"targets must have shape {tuple(shape)} like the rows of {name}, got {tuple(targets.shape)}")
    if targets.device != logits.device:
        raise ValueError(f"targets must be on {logits.device} like {name}, got {targets.device}")
    if targets.dtype in (torch.float64, torch.float32):
        targets = targets.detach()
        # Beyond 2^53 float64 has no odd numbers.
        whole = (targets == targets.round()) & (targets.abs() <= 2.0**53)
        if not bool(whole.all()):
            bad = float(targets[~whole][0])
            raise ValueError(f"targets must be whole numbers, got {bad}")
    elif targets.dtype not in (torch.int64, *_INTEGERS):
        # float16 and bfloat16 round labels above 2048 and 256.
        raise TypeError(
            f"targets must be int64 or a smaller integer dtype, or whole numbers in float32 or float64, "
            f"got {targets.dtype}"
        )
    return targets.to(torch.int64).contiguous()


def as_sample_weight(
    weight: object,
    logits: Tensor,
    targets: Tensor | None,
    by_weight: bool,
    *,
    check_finite: bool = False,
    name: str = "sample_weight",
) -> Tensor:
    """Return `weight` in the dtype that a loss of `logits` is computed in, or raise.

    Args:
        weight: Numbers, as a tensor, an array or a list. An array or a list moves to the device of `logits`.
        logits: `[N, K]` or `[N, K, ...]`.
        targets: Result of `as_targets`; None if all rows are background.
        by_weight: Whether only the ratios of the weights of in-distribution rows, and of those of background rows,
            matter. Then float64 weights of any scale keep their ratios.
        check_finite: Raise on NaN, infinite and negative weights. Synchronises with the device.
        name: Name of the weights in the message.

    Example:
        >>> as_sample_weight([1e300, 3e300], torch.zeros(2, 5), torch.tensor([0, 1]), True)
        tensor([0.1867, 0.5600])
    """
    dtype = compute_dtype(logits.dtype)
    if _is_ready(weight, dtype, logits) and not check_finite:
        return weight
    weight = _as_tensor(name, weight, logits.device)
    if weight.dtype not in (*LOGIT_DTYPES, torch.int64, torch.uint64, *_INTEGERS, torch.bool):
        raise TypeError(f"{name} must be floating-point or integers, got {weight.dtype}")
    shape = logits.shape[:1] + logits.shape[2:]
    if weight.shape != shape:
        raise ValueError(f"{name} must have shape {tuple(shape)} like the rows of logits, got {tuple(weight.shape)}")
    if weight.device != logits.device:
        raise ValueError(f"{name} must be on {logits.device} like logits, got {weight.device}")
    if check_finite:
        check_finite_weight(weight, name)
    if not weight.is_floating_point():
        weight = weight.to(torch.float64)
    # Only float64 weights can leave the range of float32. A common factor changes no mean that divides by their sum.
    if weight.dtype == torch.float64 != dtype and by_weight and weight.numel() > 0:
        weight = _rescaled(weight, torch.ones_like(weight, dtype=torch.bool) if targets is None else targets < 0)
    return weight.to(dtype).contiguous()


def _rescaled(weight: Tensor, background: Tensor) -> Tensor:
    """Return float64 weights divided by a power of two per kind of row, so that they are at most 1 and fit float32."""
    # Detached: the divisor is a constant, which the mean cancels. Per kind of row, because each kind has its mean.
    size = weight.detach().abs()
    largest = torch.where(
        background, torch.where(background, size, 0.0).amax(), torch.where(background, 0.0, size).amax()
    )
    # The exponent is arbitrary where the largest is infinite, NaN or zero: scaling leaves those unchanged.
    exponent = torch.frexp(torch.where(largest.isfinite(), largest, 1.0)).exponent.clamp(-1000, 1000)
    return weight * torch.exp2(-exponent.to(torch.float64))


def _as_tensor(name: str, value: object, device: torch.device) -> Tensor:
    if isinstance(value, Tensor):
        return check_tensor(name, value)
    # np.asarray would silently drop the mask.
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must be a plain array, got a masked one: fill it, or leave its rows out")
    if not isinstance(value, (list, tuple)) and not hasattr(value, "__array__"):
        raise TypeError(f"{name} must be a tensor, an array or a list, got {type(value).__name__}")
    try:
        return from_array_like(name, value).to(device)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must hold numbers, in rows of one length, got {shown(value)}") from error
