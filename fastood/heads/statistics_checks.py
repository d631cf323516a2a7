"""Checks of what statistics are given: labels, saved states, fourth moments."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from fastood.ops._arguments import as_integer, as_real

UNNAMED_CLASSES = 1 << 16
"""Classes that statistics grow to by themselves: float64 means of 512 features are then 256 MiB."""
UNNAMED_COVARIANCES = 1 << 12
"""Classes with a covariance each that statistics grow to by themselves."""


def check_label_range(largest: int, limit: int | None, *, rows: int, known: int, per_class: bool) -> None:
    """Raise for a label that classes must not be made for, before anything is allocated.

    Args:
        largest: Of the labels.
        limit: Number of classes that was asked for; None for one that grows.
        rows: Rows so far, with those to come.
        known: Classes so far.
        per_class: Whether each class has a covariance.
    """
    if limit is not None:
        if largest >= limit:
            raise ValueError(f"labels must be below num_classes = {limit}, got {largest}")
        return
    most = max(UNNAMED_COVARIANCES if per_class else UNNAMED_CLASSES, rows, known)
    if largest >= most:
        raise ValueError(
            f"labels must be class indices below {most} beside {rows} rows, got {largest}: number the classes from 0, "
            "or, if there are so many, say so by num_classes"
        )


def check_class_index(index: int, classes: int) -> int:
    """Return `index` as an int, or raise unless it is one of the classes."""
    return as_integer("index", index, 0, classes - 1, wanted=f"a class, 0 to {classes - 1}")


def fourth_moment_sum(fourth_moment: Tensor | float, classes: int) -> float:
    """Return the sum of what `GaussianStatistics.fourth_moment` returned, or an error."""
    if not isinstance(fourth_moment, Tensor):
        return as_real("fourth_moment", fourth_moment, wanted="a number or a tensor")
    if not fourth_moment.is_floating_point():
        raise TypeError(f"fourth_moment must be floating-point, got {fourth_moment.dtype}")
    if fourth_moment.shape not in ((), (1,), (classes,)) or fourth_moment.numel() == 0:
        raise ValueError(f"fourth_moment must be a number or [{classes}], got shape {tuple(fourth_moment.shape)}")
    return float(fourth_moment.double().sum())


def check_state(state: Mapping[str, Tensor]) -> None:
    """Raise unless these are the tensors of statistics that rows can add up to."""
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
    # What stands above the diagonal of a sum of squares does not count.
    for name, tensor in (("means", means), ("scatter", scatter.tril())):
        if not bool(tensor.isfinite().all()):
            raise ValueError(f"{name} must be finite, got NaN or infinity")
    if bool((scatter.diagonal(dim1=1, dim2=2) < 0).any()):
        raise ValueError("scatter must have a diagonal of at least 0, got sums of squares below it")
    resolution = state.get("resolution")
    if resolution is not None and not (resolution.numel() == 1 and 0 <= float(resolution) < math.inf):
        raise ValueError(f"resolution must be one finite number of at least 0, got {resolution}")
