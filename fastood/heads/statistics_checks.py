"""Checks of the arguments of feature statistics: labels, saved states, fourth moments."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fastood.ops._arguments import as_integer, as_real

__all__ = ["check_class_index", "check_label_range", "check_state", "fourth_moment_sum"]

UNNAMED_CLASSES = 1 << 16
"""Largest number of classes that statistics grow to without `num_classes`: 256 MiB of means for 512 features."""
UNNAMED_COVARIANCES = 1 << 12
"""Largest number of classes that statistics with a covariance per class grow to without `num_classes`."""


def check_label_range(largest: int, limit: int | None, *, rows: int, classes: int, per_class: bool) -> None:
    """Raise if the largest label is not plausible as a class index, before memory for the classes is allocated.

    Args:
        largest: Largest label.
        limit: Number of classes set by the user; None if it grows with the labels.
        rows: Number of rows so far, including the ones to be added.
        classes: Number of classes so far.
        per_class: Whether each class has a covariance.

    Raises:
        ValueError: If the label is not below `limit`, or, without a limit, far above the number of rows.
    """
    if limit is not None:
        if largest >= limit:
            raise ValueError(f"labels must be below num_classes = {limit}, got {largest}")
        return
    most = max(UNNAMED_COVARIANCES if per_class else UNNAMED_CLASSES, rows, classes)
    if largest >= most:
        raise ValueError(
            f"labels must be class indices below {most} for {rows} rows, got {largest}: number the classes from 0, "
            "or, if there are so many, pass num_classes"
        )


def check_class_index(index: int, classes: int) -> int:
    """Return `index` as an int, or raise unless it is in `0 … classes - 1`."""
    return as_integer("index", index, 0, classes - 1, wanted=f"a class, 0 to {classes - 1}")


def fourth_moment_sum(fourth_moment: Tensor | float, classes: int) -> float:
    """Return the sum over the classes of a fourth moment, a number or `[K]`, or raise unless it is one of these."""
    if not isinstance(fourth_moment, Tensor):
        return as_real("fourth_moment", fourth_moment, wanted="a number or a tensor")
    if not fourth_moment.is_floating_point():
        raise TypeError(f"fourth_moment must be floating-point, got {fourth_moment.dtype}")
    if fourth_moment.shape not in ((), (1,), (classes,)) or fourth_moment.numel() == 0:
        raise ValueError(f"fourth_moment must be a number or [{classes}], got shape {tuple(fourth_moment.shape)}")
    return float(fourth_moment.double().sum())


def check_state(state: Mapping[str, Tensor]) -> None:
    """Raise unless `state` holds the tensors of valid statistics.

    Raises:
        TypeError: If a tensor has another dtype, or is not a tensor.
        ValueError: If a tensor is missing, a shape does not fit, or a value is impossible for sums over rows.
    """
    missing = {"counts", "means", "scatter", "per_class"} - set(state)
    if missing:
        raise ValueError(f"state must hold counts, means, scatter and per_class, lacks {', '.join(sorted(missing))}")
    for name in ("counts", "means", "scatter", "per_class"):
        if not isinstance(state[name], Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(state[name]).__name__}")
    counts, means, scatter, per_class = state["counts"], state["means"], state["scatter"], state["per_class"]
    if counts.dtype != torch.int64:
        raise TypeError(f"counts must be int64, got {counts.dtype}")
    for name, tensor in (("means", means), ("scatter", scatter)):
        if tensor.dtype not in (torch.float64, torch.float32):
            raise TypeError(f"{name} must be float64 or float32, got {tensor.dtype}")
    if per_class.numel() != 1:
        raise ValueError(f"per_class must be one truth value, got shape {tuple(per_class.shape)}")
    fits = means.dim() == 2 and means.shape[1] > 0 and counts.shape == means.shape[:1]
    sums = len(means) if bool(per_class) else 1
    if not fits or scatter.shape != (sums, means.shape[1], means.shape[1]):
        shapes = [tuple(t.shape) for t in (counts, means, scatter)]
        raise ValueError(f"counts, means and scatter must be [K], [K, d] and [1 or K, d, d], got {shapes}")
    if len(counts) > 0 and int(counts.min()) < 0:
        raise ValueError(f"counts must be at least 0, got {int(counts.min())}")
    # Elements above the diagonal of the sums of squares are undefined.
    for name, tensor in (("means", means), ("scatter", scatter.tril())):
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    if bool((scatter.diagonal(dim1=1, dim2=2) < 0).any()):
        raise ValueError("scatter must have a diagonal of at least 0, got sums of squares below it")
    resolution = state.get("resolution")
    if resolution is not None and not (resolution.numel() == 1 and 0 <= float(resolution) < math.inf):
        raise ValueError(f"resolution must be one finite number of at least 0, got {resolution}")
