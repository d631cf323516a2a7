"""Checks that the ops share: an error names the argument, what it got and what it wants."""

from __future__ import annotations

import torch
from torch import Tensor

LOGIT_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype that losses are computed and returned in: float64 for float64 logits, float32 for all others."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def check_logits(logits: Tensor) -> None:
    """Raise unless `logits` is a floating-point `[N, K]` tensor with at least one class."""
    if not isinstance(logits, Tensor):
        raise TypeError(f"logits must be a torch.Tensor, got {type(logits).__name__}")
    if logits.dtype not in LOGIT_DTYPES:
        raise TypeError(f"logits must be float64, float32, bfloat16 or float16, got {logits.dtype}")
    if logits.dim() != 2 or logits.shape[1] < 1:
        raise ValueError(f"logits must be [N, K] with K >= 1, got shape {tuple(logits.shape)}")


def check_weight(weight: Tensor, logits: Tensor, name: str = "weight") -> None:
    """Raise unless `weight` is a floating-point `[N]` tensor on the device of `logits`."""
    if not isinstance(weight, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor or None, got {type(weight).__name__}")
    if not weight.is_floating_point():
        raise TypeError(f"{name} must be floating-point, got {weight.dtype}")
    if weight.dim() != 1 or weight.shape[0] != logits.shape[0]:
        raise ValueError(
            f"{name} must have shape ({logits.shape[0]},) like the rows of logits, got {tuple(weight.shape)}"
        )
    if weight.device != logits.device:
        raise ValueError(f"{name} must be on {logits.device} like logits, got {weight.device}")


def check_reduction(reduction: str) -> None:
    """Raise unless `reduction` is one that the losses know."""
    if reduction not in ("weighted_mean", "mean"):
        raise ValueError(f'reduction must be "weighted_mean" or "mean", got {reduction!r}')


def check_finite_values(tensor: Tensor, name: str) -> None:
    """Raise when a value of `tensor` is NaN or infinite, naming the first row. Waits for the device."""
    bad = ~torch.isfinite(tensor.detach())
    if bool(bad.any()):
        rows = bad.reshape(bad.shape[0], -1).any(1).nonzero().flatten().tolist()
        raise ValueError(f"{name} must be finite, got NaN or infinity in {len(rows)} rows, the first is row {rows[0]}")
