"""Scores and labels as users have them – tensors, arrays, lists, numbers – as tensors, without a value changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastood.ops._arguments import is_bool, shown

Values: TypeAlias = Tensor | npt.ArrayLike | Sequence[Tensor]
"""A dense tensor on any device, a NumPy array or what turns into one, a list of numbers or of tensors, a number."""

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_FLOAT8 = (
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
    torch.float8_e8m0fnu,
)
_UNSIGNED = (torch.uint16, torch.uint32, torch.uint64)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, *_UNSIGNED)


def as_scores(name: str, values: Values) -> Tensor:
    """Return scores as a tensor without a gradient.

    Args:
        name: The argument's name, for the error.
        values: Bool, integer or floating-point scores of any shape.

    Returns:
        The same dtype and device; float32 for 8-bit floats, which it holds exactly; float64 for lists of Python
        numbers, int64 where such a list holds integers that float64 does not.

    Raises:
        TypeError: `values` is nothing of these, or complex.
        ValueError: `values` holds no data (a meta tensor), has gaps (a masked array) or rows of unequal length.

    Example:
        >>> as_scores("scores", [0, 0.5]), as_scores("scores", np.float32([1, 2]))
        (tensor([0.0000, 0.5000], dtype=torch.float64), tensor([1., 2.]))
    """
    scores = as_tensor(name, values)
    if scores.is_floating_point() or has_dtype(values):
        return scores
    floats = scores.double()
    return floats if scores.dtype != torch.int64 or torch.equal(floats.long(), scores) else scores


def has_dtype(values: Values) -> bool:
    """Tell whether `values` has a dtype of its own: a list of Python numbers takes that of what it stands beside."""
    if isinstance(values, (list, tuple)):
        return bool(values) and all(isinstance(value, (Tensor, np.generic)) for value in values)
    return isinstance(values, Tensor) or hasattr(values, "dtype")


def in_dtype(name: str, scores: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the scores of a list in the dtype that others have, like numbers beside a tensor in PyTorch.

    Raises:
        TypeError: It would turn different scores into ties, or change integers.
    """
    cast_scores = scores.to(dtype)
    kept = torch.unique(scores).numel() == torch.unique(cast_scores).numel()
    both_floats = dtype.is_floating_point and scores.is_floating_point()
    if not kept or not (both_floats or torch.equal(cast_scores.to(scores.dtype), scores)):
        raise TypeError(f"{name} is a list of numbers that {dtype} does not hold: pass all scores as {scores.dtype}")
    return cast_scores


def as_labels(name: str, values: Values) -> Tensor:
    """Return class labels as an integer tensor.

    Args:
        name: The argument's name, for the error.
        values: Integers of any shape, or floats that are whole numbers.

    Raises:
        TypeError: `values` is nothing of these, or bool.
        ValueError: `values` holds a fraction, NaN, infinity or a number beyond int64.

    Example:
        >>> as_labels("y", [0.0, -1.0]), as_labels("y", np.int8([3]))
        (tensor([ 0, -1]), tensor([3], dtype=torch.int8))
    """
    labels = as_tensor(name, values)
    if labels.dtype == torch.bool and labels.numel():
        raise TypeError(f"{name} must hold integer labels, below 0 for OOD, got torch.bool")
    if labels.is_floating_point():
        # 2^63 is the first float beyond int64; NaN fails both comparisons.
        wrong = ~((labels.abs() < 2.0**63) & (labels == labels.round()))
        if bool(wrong.any()):
            first = float(labels[wrong][0])
            raise ValueError(f"{name} must hold whole numbers as labels, got {first} among {labels.dtype}")
        return labels.long()
    if labels.dtype not in _UNSIGNED:
        return labels
    signed = labels.long()
    if bool((signed < 0).any()):
        raise ValueError(f"{name} must hold labels below 2^63, got larger ones among {labels.dtype}")
    return signed


def as_flags(name: str, values: Values) -> Tensor:
    """Return a bool tensor; a list of truth values becomes one, and no number counts as a truth value."""
    flags = as_tensor(name, values)
    if flags.dtype != torch.bool:
        raise TypeError(f"{name} must be bool, got {flags.dtype}")
    return flags


def as_tensor(name: str, values: Values) -> Tensor:
    """Return real numbers as a dense tensor without a gradient; errors as in `as_scores`."""
    tensor = values if isinstance(values, Tensor) else _from_array_like(name, values)
    if tensor.is_complex():
        raise TypeError(f"{name} must be real, got {tensor.dtype}")
    if tensor.layout != torch.strided or tensor.is_nested:
        raise TypeError(f"{name} must be a dense tensor, got {tensor.layout}")
    if tensor.is_meta:
        raise ValueError(f"{name} must hold data, got a tensor on the meta device")
    if tensor.dtype in _FLOAT8:
        return tensor.detach().float()
    if tensor.dtype not in (torch.bool, *_FLOATS, *_INTEGERS):
        raise TypeError(f"{name} must be bool, integer or floating point, got {tensor.dtype}")
    return tensor.detach()


def _from_array_like(name: str, values: object) -> Tensor:
    wanted = f"{name} must be a torch.Tensor, an array or numbers"
    if isinstance(values, (list, tuple)) and values and all(isinstance(value, Tensor) for value in values):
        try:
            return torch.stack(cast("list[Tensor]", list(values)))
        except RuntimeError as error:
            raise ValueError(f"{name} must hold tensors of one shape and device, which can be stacked") from error
    if isinstance(values, np.ma.MaskedArray) and np.ma.is_masked(values):
        raise ValueError(f"{name} must have no masked values: pass .compressed()")
    if values is None or isinstance(values, (str, bytes, dict, set, frozenset)):
        raise TypeError(f"{wanted}, got {type(values).__name__}")
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{wanted} in rows of one length, got {shown(values)}") from error
    except Exception as error:  # whatever a foreign type's __array__ raises
        raise TypeError(f"{wanted}, got {type(values).__name__}") from error
    if array.dtype.kind == "c":
        raise TypeError(f"{name} must be real, got {array.dtype}")
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise TypeError(f"{wanted}, got {type(values).__name__} of {array.dtype}")
    # PyTorch takes the machine's byte order, positive strides and memory that may be written to.
    return torch.from_numpy(np.require(array, array.dtype.newbyteorder("="), ["C", "W"]))


def checked_void_label(label: object) -> int | None:
    """Return the label of rows to leave out, or None; raise TypeError for what no label can equal."""
    if label is None:
        return None
    if not is_bool(label):
        try:
            found = as_labels("void_label", cast("Values", label))
        except (TypeError, ValueError):
            found = None
        if found is not None and found.numel() == 1:
            return int(found)
    raise TypeError(f"void_label must be an integer label, or None, got {shown(label)}")
