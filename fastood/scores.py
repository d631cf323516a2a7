"""Out-of-distribution scores of logits; a higher score is more out-of-distribution."""

import torch
from torch import Tensor

from fastood.ops import logit_scores
from fastood.ops._validation import LOGIT_DTYPES, check_integer, check_tensor

__all__ = [
    "energy_score",
    "max_logit_score",
    "max_softmax_score",
    "reject_combined_score",
    "reject_entropy_difference_score",
    "reject_entropy_score",
    "reject_max_score",
    "reject_sum_score",
    "reject_weighted_score",
]

_FLOAT8 = (
    torch.float8_e4m3fn,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2,
    torch.float8_e5m2fnuz,
)
_INTEGERS = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def max_softmax_score(logits: Tensor) -> Tensor:
    """Compute the maximum-softmax score in log-odds: `log((1 - p) / p)` with `p = max_k softmax(logits)_k`.

    The maximum softmax probability (Hendrycks & Gimpel 2017, https://arxiv.org/abs/1610.02136; the score of Li &
    Vasconcelos 2020, section 5.1) rounds to exactly 1 for many confident rows, which turns a ranking into ties. Its
    log-odds have the same ranking and keep confident rows distinct at any margin. `fastood.ops.logit_scores` computes
    this score together with others, in float32.

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
    """Compute the negative of the largest logit: `-max_k v_k` (Hendrycks et al. 2022, https://arxiv.org/abs/1911.11132).

    For logits that are negative Mahalanobis distances this is the squared distance to the nearest class. It has the
    ranking of one minus the confidence exp(max h) of Wu et al. 2023, but does not round to 1 far away.

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
    """Compute the energy `-logsumexp(v)` at temperature 1 (Liu et al. 2020, eq. 6, https://arxiv.org/abs/2010.03759).

    Args:
        logits: `[N, K]`, any floating dtype; K of at least 1.

    Returns:
        Scores `[N]` in float64; NaN where a logit is NaN or +inf.

    Raises:
        TypeError: If `logits` is not floating point.
        ValueError: If `logits` is not two-dimensional or has no class.

    Example:
        >>> import torch
        >>> energy_score(torch.tensor([[0.0, 0.0], [20.0, 0.0]]))
        tensor([ -0.6931, -20.0000], dtype=torch.float64)
    """
    return _score(logits, "energy")


def reject_sum_score(logits: Tensor, num_reject: int) -> Tensor:
    """Compute the summed probability s of the reject classes in log-odds: `log(s / (1 - s))`.

    This is the score of the section "Detection Inference" of Mohseni et al. 2020
    (https://ojs.aaai.org/index.php/AAAI/article/view/5966). The softmax is over all K + k logits. s itself rounds to
    exactly 1 for most outliers of a trained network.

    Args:
        logits: `[N, K + k]`, any floating dtype; the last k are reject classes. Logits of -inf are masked classes.
        num_reject: k, at least 1 and below the number of logits.

    Returns:
        Scores `[N]` in float64; NaN where a logit is NaN or +inf.

    Raises:
        TypeError: If `logits` is not floating point.
        ValueError: If `logits` is not two-dimensional, or `num_reject` is out of range.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[9.0, 0.0, 0.0, 0.0], [0.0, 0.0, 2000.0, 0.0]])
        >>> reject_sum_score(logits, num_reject=2)
        tensor([  -8.3070, 1999.3069], dtype=torch.float64)
    """
    num_reject = _check_reject(logits, num_reject)
    return logit_scores(logits.to(torch.float64), num_reject=num_reject, scores=["reject"])["reject"]


def reject_max_score(logits: Tensor, num_reject: int) -> Tensor:
    """Compute the largest probability p of a reject class in log-odds: `log(p / (1 - p))` (Mohseni et al., table 2).

    Args:
        logits: `[N, K + k]`, any floating dtype; the last k are reject classes.
        num_reject: k, at least 1 and below the number of logits.

    Returns:
        Scores `[N]` in float64; NaN where a logit is NaN or +inf. Errors are those of `reject_sum_score`.

    Example:
        >>> import torch
        >>> reject_max_score(torch.tensor([[0.0, 0.0, 1.0, 0.0]]), num_reject=2)
        tensor([-0.0986], dtype=torch.float64)
    """
    num_reject = _check_reject(logits, num_reject)
    v = _float64(logits)
    largest, position = v[:, -num_reject:].max(dim=1, keepdim=True)
    # log p - log(1 - p) is the logit minus the logsumexp of all others, which does not round where p does.
    others = v.scatter(1, position + v.shape[1] - num_reject, -torch.inf)
    return largest.squeeze(1) - others.logsumexp(dim=1)


def reject_weighted_score(logits: Tensor, num_reject: int, weights: Tensor) -> Tensor:
    """Compute the weighted sum `s = Σ_j w_j f_j` over the reject classes in log-odds (Mohseni et al. 2020, table 2).

    The weights are divided by the largest one, which keeps the ranking and makes s a probability. With equal weights
    this is `reject_sum_score`; the errors are the same.

    Args:
        logits: `[N, K + k]`, any floating dtype; the last k are reject classes.
        num_reject: k, at least 1 and below the number of logits.
        weights: `[k]`, finite and at least 0, one of them above 0.

    Returns:
        Scores `[N]` in float64; NaN where a logit is NaN or +inf.

    Example:
        >>> import torch
        >>> reject_weighted_score(torch.tensor([[0.0, 0.0, 1.0, 0.0]]), num_reject=2, weights=torch.tensor([2.0, 1.0]))
        tensor([0.2526], dtype=torch.float64)
    """
    num_reject = _check_reject(logits, num_reject)
    _check_weights(weights, num_reject)
    v, w = _float64(logits), weights.to(logits.device, torch.float64)
    w = w / w.max()
    reject = v[:, -num_reject:]
    # 1 - s = Σ_id f + Σ_j (1 - w_j) f_j: both sums stay in logarithms, so that s may round to 0 or 1.
    against = torch.cat([v[:, :-num_reject], reject + torch.log1p(-w)], dim=1)
    return (reject + w.log()).logsumexp(dim=1) - against.logsumexp(dim=1)


def reject_entropy_score(logits: Tensor, num_reject: int) -> Tensor:
    """Compute `-H_out`, the negative entropy of a softmax over the reject classes alone (Mohseni et al. 2020, table 2).

    An outlier belongs to one reject class, an in-distribution image to none. The paper leaves open whether the softmax
    is over all classes. Its signs (`-sum`, `H_out`, `H_out - H_in`) agree only if it is not: in a softmax over all
    classes the sum and the entropy of the reject terms rise and fall together.

    Args:
        logits: `[N, K + k]`, any floating dtype; the last k are reject classes.
        num_reject: k, at least 1 and below the number of logits.

    Returns:
        Scores `[N]` in float64; NaN where a reject logit is NaN or +inf. Errors are those of `reject_sum_score`.

    Example:
        >>> import torch
        >>> reject_entropy_score(torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 9.0, 0.0]]), num_reject=2)
        tensor([-0.6931, -0.0012], dtype=torch.float64)
    """
    num_reject = _check_reject(logits, num_reject)
    return -_score(logits[:, -num_reject:], "entropy")


def reject_entropy_difference_score(logits: Tensor, num_reject: int) -> Tensor:
    """Compute `H_in - H_out`, the negative of a score in Mohseni et al. 2020, table 2.

    H_in is the entropy of a softmax over the in-distribution classes alone, H_out of one over the reject classes alone.

    Args:
        logits: `[N, K + k]`, any floating dtype; the last k are reject classes.
        num_reject: k, at least 1 and below the number of logits.

    Returns:
        Scores `[N]` in float64; NaN where a logit is NaN or +inf. Errors are those of `reject_sum_score`.

    Example:
        >>> import torch
        >>> reject_entropy_difference_score(torch.zeros(1, 4), num_reject=3)
        tensor([-1.0986], dtype=torch.float64)
    """
    num_reject = _check_reject(logits, num_reject)
    return _score(logits[:, :-num_reject], "entropy") - _score(logits[:, -num_reject:], "entropy")


def reject_combined_score(logits: Tensor, num_reject: int, weights: Tensor) -> Tensor:
    """Compute `Σ_j w_j f_j - w_{k+1} H_out + w_{k+2} H_in` over the reject classes j.

    This is the last row of table 2 of Mohseni et al. 2020. The entropies are those of
    `reject_entropy_difference_score`; f is the softmax over all classes. The score is not in log-odds and rounds where
    f does: a sum of probabilities and entropies has no stable logarithm.

    Args:
        logits: `[N, K + k]`, any floating dtype; the last k are reject classes.
        num_reject: k, at least 1 and below the number of logits.
        weights: `[k + 2]`, finite and at least 0, one of them above 0.

    Returns:
        Scores `[N]` in float64; NaN where a logit is NaN or +inf. Errors are those of `reject_weighted_score`.

    Example:
        >>> import torch
        >>> reject_combined_score(torch.zeros(1, 4), num_reject=2, weights=torch.tensor([1.0, 0.5, 0.0, 0.0]))
        tensor([0.3750], dtype=torch.float64)
    """
    num_reject = _check_reject(logits, num_reject)
    _check_weights(weights, num_reject + 2)
    w = weights.to(logits.device, torch.float64)
    h_in, h_out = (_score(part, "entropy") for part in (logits[:, :-num_reject], logits[:, -num_reject:]))
    return _float64(logits).softmax(dim=1)[:, -num_reject:] @ w[:-2] - w[-2] * h_out + w[-1] * h_in


def _float64(logits: Tensor) -> Tensor:
    """Return logits in float64, with rows of NaN where a row has a NaN or +inf."""
    v = logits.to(torch.float64)
    # -inf is a masked class, with probability 0. A logit of +inf has no softmax.
    return v.masked_fill((v.isnan() | (v == torch.inf)).any(dim=1, keepdim=True), torch.nan)


def _check_reject(logits: Tensor, num_reject: int) -> int:
    _check_logits(logits)
    count = check_integer("num_reject", num_reject)
    if not 1 <= count < logits.shape[1]:
        raise ValueError(
            f"num_reject must be at least 1 and below {logits.shape[1]}, the number of logits, got {count}"
        )
    return count


def _check_weights(weights: Tensor, count: int) -> None:
    check_tensor("weights", weights, (*LOGIT_DTYPES, *_INTEGERS), values=True)
    if weights.shape != (count,):
        raise ValueError(f"weights must have shape ({count},), got {tuple(weights.shape)}")
    if not bool((torch.isfinite(weights) & (weights >= 0)).all() & (weights > 0).any()):
        raise ValueError(f"weights must be finite and at least 0, one of them above 0, got {weights.tolist()}")


def _score(logits: Tensor, name: str) -> Tensor:
    _check_logits(logits)
    return logit_scores(logits.to(torch.float64), scores=[name])[name]


def _check_logits(logits: Tensor) -> None:
    check_tensor("logits", logits)
    if logits.dtype not in (*LOGIT_DTYPES, *_FLOAT8):
        raise TypeError(f"logits must be a floating-point tensor, got {logits.dtype}")
    if logits.ndim != 2 or logits.shape[1] == 0:
        raise ValueError(f"logits must have shape [N, K] with K >= 1, got {list(logits.shape)}")
