"""Conversion of scores and labels from tensors, arrays and lists to tensors."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from fastood.ops._arguments import is_bool, shown
from fastood.ops._arrays import UNSIGNED, Values, as_tensor, has_dtype

__all__ = ["Values", "as_flags", "as_labels", "as_scores", "checked_void_label", "has_dtype", "in_dtype"]


def as_scores(name: str, values: Values) -> Tensor:
    """Return scores as a tensor without gradient.

    Args:
        name: The argument's name, for the error.
        values: Bool, integer or floating-point scores of any shape.

    Returns:
        A tensor of the same dtype and device; float32 for 8-bit floats, which it represents exactly; float64 for lists
        of Python numbers, int64 if such a list holds integers that float64 does not represent.

    Raises:
        TypeError: If `values` is not numeric, is complex, or is a list of integers that no single dtype holds.
        ValueError: If `values` holds no data (a meta tensor), has gaps (a masked array) or rows of unequal length.

    Example:
        >>> import numpy as np
        >>> as_scores("scores", [0, 0.5]), as_scores("scores", np.float32([1, 2]))
        (tensor([0.0000, 0.5000], dtype=torch.float64), tensor([1., 2.]))
    """
    scores = as_tensor(name, values)
    if scores.is_floating_point() or has_dtype(values):
        return scores
    floats = scores.double()
    # Python compares an int with a float exactly. NumPy chooses uint64 for a list only if int64 is too small.
    if scores.dtype == torch.uint64 and any(number != float(number) for number in scores.flatten().tolist()):
        raise TypeError(
            f"{name} is a list of integers that neither float64 nor int64 represents: pass a torch.uint64 tensor"
        )
    return floats if scores.dtype != torch.int64 or torch.equal(floats.long(), scores) else scores


def in_dtype(name: str, scores: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the scores of a list in another dtype, like Python numbers in an operation with a tensor.

    Raises:
        TypeError: If the cast would turn different scores into ties, or change integers.
    """
    cast_scores = scores.to(dtype)
    # Equal counts of distinct values mean that no two scores became a tie.
    kept = torch.unique(scores).numel() == torch.unique(cast_scores).numel()
    both_floats = dtype.is_floating_point and scores.is_floating_point()
    if not kept or not (both_floats or torch.equal(cast_scores.to(scores.dtype), scores)):
        raise TypeError(
            f"{name} is a list of numbers that {dtype} does not represent: pass all scores as {scores.dtype}"
        )
    return cast_scores


def as_labels(name: str, values: Values) -> Tensor:
    """Return class labels as an integer tensor.

    Args:
        name: The argument's name, for the error.
        values: Integers of any shape, or floats that are whole numbers.

    Raises:
        TypeError: If `values` is not numeric, or is bool.
        ValueError: If `values` holds a fraction, NaN, infinity or a number beyond int64.

    Example:
        >>> import numpy as np
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
    if labels.dtype not in UNSIGNED:
        return labels
    signed = labels.long()
    if bool((signed < 0).any()):
        raise ValueError(f"{name} must hold labels below 2^63, got larger ones among {labels.dtype}")
    return signed


def as_flags(name: str, values: Values) -> Tensor:
    """Return a bool tensor or list of bools as a tensor; raise TypeError for numbers."""
    flags = as_tensor(name, values)
    if flags.dtype != torch.bool:
        raise TypeError(f"{name} must be bool, got {flags.dtype}")
    return flags


def checked_void_label(label: object) -> int | None:
    """Return the label of rows to leave out, or None; raise TypeError unless it is an integer or None."""
    if label is None:
        return None
    if not is_bool(label):
        try:
            value = as_labels("void_label", cast("Values", label))
        except (TypeError, ValueError):
            value = None
        if value is not None and value.numel() == 1:
            return int(value)
    raise TypeError(f"void_label must be an integer label, or None, got {shown(label)}")
