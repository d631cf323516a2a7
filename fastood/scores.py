"""Detection scores computed from logits; higher means more out-of-distribution."""

import torch
from torch import Tensor

from fastood.ops import logit_scores


def max_softmax_score(logits: Tensor) -> Tensor:
    """Maximum-softmax score in log-odds: `log((1 - p) / p)` with `p = max_k softmax(logits)_k`.

    The maximum softmax probability (Hendrycks & Gimpel 2017; the score of Li & Vasconcelos 2020, section 5.1)
    rounds to exactly 1 for many confident rows, which turns a ranking into ties. Its log-odds rank rows alike and keep
    two confident rows apart whatever their margin. `fastood.ops.logit_scores` has this score among others, in float32.

    Args:
        logits: `[N, K]`, any floating dtype; K of at least 1. Logits of -inf are masked classes.

    Returns:
        Scores `[N]` in float64, at most `log(K - 1)`; -inf for a single class; NaN where a logit is NaN or +inf.

    Raises:
        TypeError: If `logits` is not floating point.
        ValueError: If `logits` is not two-dimensional or has no class.

    Example:
        >>> import torch
        >>> max_softmax_score(torch.tensor([[0.0, 0.0], [50.0, 0.0], [2000.0, 0.0]]))
        tensor([    0.,   -50., -2000.], dtype=torch.float64)
    """
    return _score(logits, "msp")


def max_logit_score(logits: Tensor) -> Tensor:
    """Negative of the largest logit: `-max_k v_k` (Hendrycks et al. 2022).

    Of negative Mahalanobis distances it is the squared distance to the nearest class, and ranks as one minus the
    confidence exp(max h) of Wu et al. 2023 does, without rounding to 1 far away.

    Args:
        logits: `[N, K]`, any floating dtype; K of at least 1.

    Returns:
        Scores `[N]` in float64; NaN where a logit is NaN or +inf.

    Raises:
        TypeError: If `logits` is not floating point.
        ValueError: If `logits` is not two-dimensional or has no class.

    Example:
        >>> import torch
        >>> max_logit_score(torch.tensor([[-0.5, -8.0], [-900.0, -901.0]])).tolist()
        [0.5, 900.0]
    """
    return _score(logits, "max_logit")


def energy_score(logits: Tensor) -> Tensor:
    """Energy `-logsumexp(v)` at temperature 1 (Liu et al. 2020, eq. 6); arguments and errors as in `max_logit_score`.

    Example:
        >>> import torch
        >>> energy_score(torch.tensor([[0.0, 0.0], [20.0, 0.0]]))
        tensor([ -0.6931, -20.0000], dtype=torch.float64)
    """
    return _score(logits, "energy")


def _score(logits: Tensor, name: str) -> Tensor:
    if not logits.is_floating_point():
        raise TypeError(f"logits must be a floating-point tensor, got {logits.dtype}")
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits must have shape [N, K] with K >= 1, got {list(logits.shape)}")
    return logit_scores(logits.to(torch.float64), scores=[name])[name]
