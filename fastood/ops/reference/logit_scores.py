"""Reference of the detection scores of logits in plain float64 PyTorch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fastood.ops.reference.outlier_loss import uniformity


def logit_scores(
    logits: Tensor, *, num_reject: int = 0, gen_gamma: float = 0.1, gen_top: int | None = None
) -> dict[str, Tensor]:
    """Compute every score of `fastood.ops.logit_scores`, which has the formulas, for rows without NaN or +inf.

    Args:
        logits: `[N, K + num_reject]`, any floating-point dtype.
        num_reject: Number of reject classes, the last columns.
        gen_gamma: γ of `gen`.
        gen_top: Number of the largest probabilities that `gen` sums; None for all.

    Returns:
        Name to `[N]`, float64.

    Example:
        >>> round(float(logit_scores(torch.zeros(1, 4))["entropy"].exp()), 6)
        4.0
    """
    num_classes = logits.shape[1] - num_reject
    v, reject = logits.double().tensor_split([num_classes], 1)
    log_sum = torch.logsumexp(v, 1)
    log_f = v - log_sum[:, None]
    largest = v.argmax(1, keepdim=True)
    log_sum_others = torch.logsumexp(v.scatter(1, largest, -math.inf), 1)
    # log(1 - f) of the largest probability comes from the other logits: 1 - f would cancel.
    log_rest = torch.log1p(-log_f.exp()).scatter(1, largest, (log_sum_others - log_sum)[:, None])
    gen_terms = (gen_gamma * (log_f + log_rest)).exp()
    scores = {
        "msp": log_sum_others - v.gather(1, largest).squeeze(1),
        "max_logit": -v.max(1).values,
        "energy": -log_sum,
        # 0 log 0 = 0 at a masked logit.
        "entropy": -(log_f.exp() * log_f.clamp_min(-1e4)).sum(1),
        "kl_uniform": -uniformity(v),
        "gen": gen_terms.gather(1, log_f.topk(min(gen_top or num_classes, num_classes), 1).indices).sum(1),
    }
    if num_reject > 0:
        scores["reject"] = torch.logsumexp(reject, 1) - log_sum
    return scores
