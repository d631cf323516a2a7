"""Checks of what detectors are given beside those of `fastood.heads.checks`."""

from __future__ import annotations

import torch
from torch import Tensor

from fastood.detectors.model_calls import FLOATS
from fastood.heads.checks import check_features


def check_rows(features: Tensor, width: int | None = None, name: str = "features") -> None:
    """Raise unless `features` are rows `[N, d]` with values, of a dtype that PyTorch computes in.

    Raises:
        TypeError: `features` is no tensor, or not float64, float32, bfloat16 or float16.
        ValueError: The shape is another one, or the tensor is sparse or has no values (device meta).
    """
    check_features(features, width, name)
    if features.dtype not in FLOATS:
        raise TypeError(f"{name} must be float64, float32, bfloat16 or float16, got {features.dtype}: use .float()")
    if features.layout != torch.strided:
        raise ValueError(f"{name} must be dense, got {features.layout}: use .to_dense()")
    if features.is_meta:
        raise ValueError(f"{name} must have values, got a tensor on the meta device, which has none")
