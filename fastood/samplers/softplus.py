"""Softplus and its inverse, accurate over the whole range of ω."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from fastood.ops._arguments import as_real
from fastood.ops._validation import LOGIT_DTYPES, check_tensor

__all__ = ["OMEGA_MAX", "OMEGA_MIN", "inverse_softplus", "inverse_softplus_of", "softplus"]

OMEGA_MIN, OMEGA_MAX = -80.0, 1e6
"""Limits of ω. softplus(-80) = 2e-35 is still a normal float32, so that no weight underflows to zero, where it would
stay. The upper limit is far beyond the ω that pools of any size learn, and leaves float32 room for a step. An example
without weight has ω = -inf.
"""


def softplus(x: Tensor) -> Tensor:
    """Return `log(1 + exp(x))`, accurate over the whole range of the dtype.

    PyTorch's default returns `x` above 20, which is off by 2e-9: too much in float64.

    Raises:
        TypeError: If `x` is not a dense tensor of float64, float32, bfloat16 or float16.
    """
    if not isinstance(x, Tensor) or x.dtype not in LOGIT_DTYPES:
        kind = x.dtype if isinstance(x, Tensor) else type(x).__name__
        raise TypeError(f"x must be a tensor of float64, float32, bfloat16 or float16, got {kind}")
    check_tensor("x", x)
    # At these thresholds log(1 + exp(x)) already rounds to x, and exp(x) does not overflow yet.
    return F.softplus(x, threshold=700 if x.dtype == torch.float64 else 80)


def inverse_softplus(w: float) -> float:
    """Return the `x` with `softplus(x) == w`.

    Raises:
        TypeError: If `w` is not a number.
        ValueError: If `w` is negative, NaN or infinite.

    Example:
        >>> inverse_softplus(100.0), inverse_softplus(0.0)
        (100.0, -inf)
    """
    w = as_real("w", w)
    if not 0 <= w < torch.inf:
        raise ValueError(f"w must be finite and >= 0, got {w}")
    return float(inverse_softplus_of(torch.tensor(w, dtype=torch.float64)))


def inverse_softplus_of(w: Tensor) -> Tensor:
    """Return the `x` with `softplus(x) == w` for every element of `w >= 0`, in the dtype of `w`; -inf for 0.

    Example:
        >>> inverse_softplus_of(torch.tensor([0.0, 100.0], dtype=torch.float64)).tolist()
        [-inf, 100.0]
    """
    # log(exp(w) - 1) as w + log(1 - exp(-w)): exp(w) overflows, and exp(w) - 1 cancels for small w.
    return w + torch.log(-torch.expm1(-w))
