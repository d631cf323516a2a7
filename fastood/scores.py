"""Detection scores computed from logits; higher means more out-of-distribution."""

import torch
from torch import Tensor


def max_softmax_score(logits: Tensor) -> Tensor:
    """Maximum-softmax score in the log domain: `-log max_k softmax(logits)_k`.

    The maximum softmax probability (Hendrycks & Gimpel 2017; the score of Li & Vasconcelos 2020, section 5.1)
    rounds to exactly 1 for many confident rows, which turns a ranking into ties. Its negative logarithm is
    `log(1 + sum_{k != max} exp(logit_k - logit_max))`, and only the other exponentials enter the sum here,
    so two confident rows keep their order until a margin of about 745.

    Args:
        logits: `[N, K]`, any floating dtype; K of at least 1.

    Returns:
        Scores `[N]` in float64, in `[0, log K]`; a non-finite row of logits gives NaN.

    Raises:
        TypeError: If `logits` is not floating point.
        ValueError: If `logits` is not two-dimensional or has no class.

    Example:
        >>> import torch
        >>> max_softmax_score(torch.tensor([[0.0, 0.0], [50.0, 0.0], [60.0, 0.0]]))
        tensor([6.9315e-01, 1.9287e-22, 8.7565e-27], dtype=torch.float64)
    """
    if not logits.is_floating_point():
        raise TypeError(f"logits must be a floating-point tensor, got {logits.dtype}")
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits must have shape [N, K] with K >= 1, got {list(logits.shape)}")
    top = logits.argmax(dim=1, keepdim=True)
    wide = logits.double()
    margin = wide - wide.gather(1, top)
    others = margin.exp().scatter(1, top, 0.0).sum(dim=1)
    score = others.log1p()
    return torch.where(torch.isfinite(logits).all(dim=1), score, torch.nan)
