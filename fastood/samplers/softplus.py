"""Softplus and its inverse, exact over the whole range of ω."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastood.ops._arguments import as_real
from fastood.ops._validation import LOGIT_DTYPES, check_tensor

OMEGA_MIN, OMEGA_MAX = -80.0, 1e6
"""ω is kept in this range. softplus(-80) = 2e-35 is still a normal float32: no weight becomes zero for good. A million
is far beyond what pools of any size learn, and leaves float32 room for a step. An example without weight has ω = -inf.
"""


def softplus(x: Tensor) -> Tensor:
    """Return `log(1 + exp(x))`, exact up to where float64 ends; PyTorch's default replaces it by `x` above 20.

    Raises:
        TypeError: `x` is no dense tensor of float64, float32, bfloat16 or float16.
    """
    if not isinstance(x, Tensor) or x.dtype not in LOGIT_DTYPES:
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x must be a tensor of float64, float32, bfloat16 or float16, got {kind}")
    check_tensor("x", x)
    return F.softplus(x, threshold=700 if x.dtype == torch.float64 else 80)


def inverse_softplus(w: float) -> float:
    """Return the `x` with `softplus(x) == w`.

    Raises:
        TypeError: `w` is no number.
        ValueError: `w` is negative, NaN or infinite.

    Example:
        >>> inverse_softplus(100.0), inverse_softplus(0.0)
        (100.0, -inf)
    """
    w = as_real("w", w)
    if not 0 <= w < torch.inf:
        raise ValueError(f"w must be finite and >= 0, got {w}")
    return float(inverse_softplus_of(torch.tensor(w, dtype=torch.float64)))


def inverse_softplus_of(w: Tensor) -> Tensor:
    """Return the `x` with `softplus(x) == w` for each of a tensor of `w >= 0`, in its dtype; -inf for 0.

    Example:
        >>> inverse_softplus_of(torch.tensor([0.0, 100.0], dtype=torch.float64)).tolist()
        [-inf, 100.0]
    """
    return w + torch.log(-torch.expm1(-w))
