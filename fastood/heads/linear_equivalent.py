"""Gaussian classes with the posterior of a linear layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def isotropic_scale(weight: Tensor, feature_scale: float) -> float:
    """The l of `L = l I` at which features lie nearest to the means that a linear layer's weights ask for.

    With Σ = l² I the means are l² w_i / 2, so that for features of squared length |z|² and unrelated to the weights the
    squared distance is |z|²/l² + l² |w|²/4 on average, least at l² = 2 |z| / |w|.

    Args:
        weight: W, `[K, d]`, not all zero.
        feature_scale: Root mean square of a feature; |z|² is taken as `d · feature_scale²`.
    """
    squared = float(weight.double().square().sum(1).mean())
    if squared == 0:
        raise ValueError("linear must have a weight that is not zero, got all zeros")
    return math.sqrt(2 * feature_scale * math.sqrt(weight.shape[1] / squared))


def means_of_linear(weight: Tensor, bias: Tensor, scale_tril: Tensor, center: Tensor) -> Tensor:
    r"""Means m_i for which softmax(h) is that of `W z + b`, for a given Σ = L L^T.

    With m_i = Σ w_i / 2 + s for any s that the classes share,

        h_i = w_i·z - w_i·Σ w_i / 4 - w_i·s + what does not depend on i,

    as eq. 0.11 of Wu et al. 2023 is not halved. So the posterior is the same once `w_i·s + b_i + w_i·Σ w_i / 4` is the
    same for all i: K - 1 linear equations for the d numbers in s, which have a solution where the differences of the
    w_i are linearly independent (K <= d + 1 in general position). Of all solutions, that which moves the mean of the
    m_i least, by the distance of Σ, from `center`. Beyond that many classes the equations hold in the sense of least
    squares, and a class's log-odds are off by what is left.

    Args:
        weight: W, float64 `[K, d]`.
        bias: b, float64 `[K]`.
        scale_tril: L, float64 `[d, d]` or `[d]`.
        center: Where the mean of the means should be, float64 `[d]`.

    Returns:
        float64 `[K, d]`.
    """
    factor = scale_tril.diag() if scale_tril.dim() == 1 else scale_tril
    white = weight @ factor
    means = white @ factor.mT / 2
    shift = center - means.mean(0)
    left = bias + white.square().sum(1) / 4 + weight @ shift
    # What is common to all classes cancels in the softmax.
    step: Tensor = torch.linalg.lstsq(white - white.mean(0), (left.mean() - left)[:, None], driver="gelsd").solution
    return means + shift + factor @ step[:, 0]
