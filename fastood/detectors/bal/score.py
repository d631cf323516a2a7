"""The score of BAL: p₁ · p₂, softmax confidence times D, where neither rounds to 1."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from fastood.scores import max_softmax_score

__all__ = ["boundary_score"]


def boundary_score(logits: Tensor, discriminator_logits: Tensor) -> Tensor:
    """`-log(p₁ p₂)` of Pei et al. 2022, equation 2: p₁ the largest softmax, p₂ = D(f; ĉ) for the class ĉ that has it.

    Both logarithms come from log-odds, `-log p = log(1 + exp(-odds))`, so that rows stay apart whose p₁ or p₂ rounds
    to 1. It ranks as 1 - p₁ p₂ does.

    Args:
        logits: `[N, K]` of the classifier.
        discriminator_logits: `[N]` of D, each under the class of the largest logit.

    Returns:
        Scores `[N]` in float64, at least 0; higher means more out-of-distribution.

    Raises:
        TypeError, ValueError: As in `fastood.scores.max_softmax_score`.

    Example:
        >>> import torch
        >>> boundary_score(torch.tensor([[0.0, 0.0]]), torch.tensor([0.0])).exp()
        tensor([4.], dtype=torch.float64)
    """
    unsure = max_softmax_score(logits)
    return -F.logsigmoid(-unsure) - F.logsigmoid(discriminator_logits.double())
