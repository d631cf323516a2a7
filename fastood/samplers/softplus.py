"""Softplus and its inverse, exact over the whole range of ω."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

OMEGA_MIN, OMEGA_MAX = -80.0, 1e6
"""ω is kept in this range. softplus(-80) = 2e-35 is still a normal float32: no weight becomes zero for good. A million
is far beyond what pools of any size learn, and leaves float32 room for a step. An example without weight has ω = -inf.
"""


def softplus(x: Tensor) -> Tensor:
    """`log(1 + exp(x))`, exact up to where float64 ends; PyTorch's default replaces it by `x` above 20."""
    return F.softplus(x, threshold=700 if x.dtype == torch.float64 else 80)


def inverse_softplus(w: float) -> float:
    """The `x` with `softplus(x) == w`, for `w > 0`."""
    return float(inverse_softplus_of(torch.tensor(w, dtype=torch.float64)))


def inverse_softplus_of(w: Tensor) -> Tensor:
    """The same for a tensor of `w >= 0`, in its dtype; -inf for 0.

    Example:
        >>> inverse_softplus_of(torch.tensor([0.0, 100.0], dtype=torch.float64)).tolist()
        [-inf, 100.0]
    """
    return w + torch.log(-torch.expm1(-w))
