"""Checks of features and labels for heads, statistics and detectors. Errors name argument, value and requirement."""

from __future__ import annotations

import torch
from torch import Tensor

from fastood.ops._arguments import as_integer, shown
from fastood.ops._validation import LOGIT_DTYPES, compute_dtype

__all__ = [
    "MOST",
    "check_features",
    "check_finite_rows",
    "check_head_features",
    "check_labels",
    "check_size",
    "check_width",
]

MOST = 2**31 - 1
"""Largest number of features, classes or rows."""


def check_size(name: str, value: object, *, wanted: str = "at least 1") -> int:
    """Return a number of features, classes or rows as an int, or raise unless it is in 1 … 2^31 - 1."""
    number = as_integer(name, value)
    if number < 1:
        raise ValueError(f"{name} must be {wanted}, got {number}")
    if number > MOST:
        raise ValueError(f"{name} must be at most {MOST}, got {shown(number)}")
    return number


def check_features(features: Tensor, num_features: int | None = None, name: str = "features") -> None:
    """Raise unless `features` is a floating-point `[N, d]` tensor, with d = `num_features` unless that is None."""
    if not isinstance(features, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(features).__name__}")
    if not features.is_floating_point():
        raise TypeError(f"{name} must be floating-point, got {features.dtype}")
    if features.dtype not in LOGIT_DTYPES:
        raise TypeError(f"{name} must be float64, float32, bfloat16 or float16, got {features.dtype}")
    width = "d" if num_features is None else num_features
    if features.dim() != 2 or features.shape[1] == 0 or num_features not in (None, features.shape[1]):
        raise ValueError(f"{name} must be [N, {width}], got shape {tuple(features.shape)}")


def check_width(features: Tensor) -> int:
    """Return the width d of `features`, or raise unless it is a floating-point `[N, d]` tensor."""
    check_features(features)
    return features.shape[1]


def check_head_features(features: Tensor, parameter: Tensor) -> None:
    """Raise unless `features` are `[N, d]` for a parameter `[..., d]`, in 16 bits or in its compute dtype."""
    check_features(features, parameter.shape[-1])
    computed = compute_dtype(parameter.dtype)
    if features.dtype not in (torch.bfloat16, torch.float16, computed):
        raise TypeError(f"features must be {computed}, bfloat16 or float16, got {features.dtype}")
    if features.device != parameter.device:
        raise ValueError(f"features must be on {parameter.device} like the head, got {features.device}")


def check_labels(labels: Tensor, features: Tensor) -> None:
    """Raise unless `labels` is an int64 `[N]` tensor on the device of `features`."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a torch.Tensor, got {type(labels).__name__}")
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must be int64, got {labels.dtype}")
    if labels.shape != features.shape[:1]:
        raise ValueError(
            f"labels must have shape ({len(features)},) like the rows of features, got {tuple(labels.shape)}"
        )
    if labels.device != features.device:
        raise ValueError(f"labels must be on {features.device} like features, got {labels.device}")


def check_finite_rows(features: Tensor, rows: Tensor) -> None:
    """Raise if a feature in the mask `rows` `[N]` is NaN or infinite. Waits for the device once."""
    # A sum is finite only if every term is, so that one pass clears almost all rows. It may also overflow: the
    # elements of the suspect rows decide.
    suspicious = ~features.sum(1).isfinite() & rows
    if not bool(suspicious.any()):
        return
    suspect = suspicious.nonzero().flatten()
    bad = suspect[(~features[suspect].isfinite()).any(1)].tolist()
    if bad:
        raise ValueError(f"features must be finite, got NaN or infinity in {len(bad)} rows, the first is row {bad[0]}")
