"""The ops in plain PyTorch and float64: what the tests hold the kernels to, and the place to read the formulas."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def weighted_uniformity(
    logits: Tensor, weight: Tensor | None = None, *, reduction: str = "weighted_mean"
) -> tuple[Tensor, Tensor]:
    """Li & Vasconcelos 2020, eq. 5 and 14 (`"weighted_mean"`) or supplementary eq. 10 (`"mean"`).

    Args:
        logits: `[N, K]`, any floating-point dtype.
        weight: `[N]` or None for all ones.
        reduction: What the weighted sum is divided by: the sum of weights, or N.

    Returns:
        loss `[]` and per_sample `[N]`, float64, differentiable to any order.

    Raises:
        ValueError: `reduction` is unknown.

    Example:
        >>> loss, per_sample = weighted_uniformity(torch.zeros(2, 10))
        >>> float(loss)
        0.0
    """
    if reduction not in ("weighted_mean", "mean"):
        raise ValueError(f'reduction must be "weighted_mean" or "mean", got {reduction!r}')
    v = logits.double()
    w = torch.ones(v.shape[0], dtype=v.dtype, device=v.device) if weight is None else weight.double()
    # The mean is subtracted first: eq. 5 is invariant to it, and what is left of float64 lasts to spreads of 1e-5.
    per_sample = torch.logsumexp(v - v.mean(1, keepdim=True), 1) - math.log(v.shape[1])
    divisor = w.sum() if reduction == "weighted_mean" else v.new_tensor(float(v.shape[0]))
    if v.shape[0] == 0 or bool(divisor == 0):
        return (v * 0).sum(), per_sample
    return (w * per_sample).sum() / divisor, per_sample
