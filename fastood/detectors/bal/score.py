"""Score of BAL: softmax confidence times D, p₁ · p₂, in logarithms that do not round to 1."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastood.scores import max_softmax_score

__all__ = ["boundary_score"]


def boundary_score(logits: Tensor, discriminator_logits: Tensor) -> Tensor:
    """Compute `-log(p₁ p₂)` with p₁ the largest softmax probability, of class ĉ, and p₂ = D(f; ĉ).

    Pei et al. 2022, equation 2 (https://arxiv.org/abs/2112.11648). Both logarithms come from log-odds,
    `-log p = log(1 + exp(-odds))`, so that rows with a p₁ or p₂ that rounds to 1 stay distinct. The ranking is that of
    1 - p₁ p₂.

    Args:
        logits: Logits `[N, K]` of the classifier.
        discriminator_logits: Logits `[N]` of D under the class of the largest logit.

    Returns:
        Scores `[N]` in float64, at least 0; higher means more out-of-distribution.

    Raises:
        TypeError, ValueError: If `fastood.scores.max_softmax_score` raises it.

    Example:
        >>> import torch
        >>> boundary_score(torch.tensor([[0.0, 0.0]]), torch.tensor([0.0])).exp()
        tensor([4.], dtype=torch.float64)
    """
    log_odds = max_softmax_score(logits)
    # max_softmax_score is log((1 - p₁) / p₁), the discriminator's logit log(p₂ / (1 - p₂)): hence the two signs.
    return -F.logsigmoid(-log_odds) - F.logsigmoid(discriminator_logits.double())
