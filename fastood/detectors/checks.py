"""Checks of rows and labels passed to detectors, in addition to those of `fastood.ops._features`."""

from __future__ import annotations

import torch
from torch import Tensor

from fastood.detectors.model_calls import FLOATS
from fastood.ops._features import check_features, check_labels

__all__ = ["check_rows", "labels_on_device_of"]


def check_rows(features: Tensor, width: int | None = None, name: str = "features") -> None:
    """Check that `features` are dense rows `[N, d]` with values, in float64, float32, bfloat16 or float16.

    Raises:
        TypeError: If `features` is not a tensor, or not float64, float32, bfloat16 or float16.
        ValueError: If the shape differs, or the tensor is sparse or has no values (meta device).
    """
    if isinstance(features, Tensor) and features.is_nested:
        raise ValueError(f"{name} must be one tensor [N, d], got a nested tensor")
    check_features(features, width, name)
    if features.dtype not in FLOATS:
        raise TypeError(f"{name} must be float64, float32, bfloat16 or float16, got {features.dtype}: use .float()")
    if features.layout != torch.strided:
        raise ValueError(f"{name} must be dense, got {features.layout}: use .to_dense()")
    if features.is_meta:
        raise ValueError(f"{name} must have values, got a tensor on the meta device, which has none")


def labels_on_device_of(labels: Tensor, rows: Tensor) -> Tensor:
    """Check labels and return them on the device of their rows; labels of a loader are on the CPU.

    Raises:
        TypeError: If `labels` is not an int64 tensor.
        ValueError: If `labels` is not `[N]` for `[N, d]` rows, or has no values (meta device).
    """
    if isinstance(labels, Tensor):
        if labels.is_meta:
            raise ValueError("labels must have values, got a tensor on the meta device, which has none")
        labels = labels.to(rows.device)
    check_labels(labels, rows)
    return labels
