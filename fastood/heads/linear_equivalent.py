"""Gaussian classes with the posterior of a trained linear layer."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastood.ops._arguments import as_real
from fastood.ops._validation import LOGIT_DTYPES

__all__ = ["checked_linear", "checked_scale", "isotropic_scale", "means_of_linear"]


def isotropic_scale(weight: Tensor, feature_scale: float) -> float:
    """Return the l of `L = l I` for which features are closest to the means that match a linear layer.

    With Σ = l² I the means are l² w_i / 2. For features of squared length |z|² that are independent of the weights the
    squared distance is |z|²/l² + l² |w|²/4 on average, with its minimum at l² = 2 |z| / |w|.

    Args:
        weight: W, `[K, d]`, not all zero.
        feature_scale: Root mean square of a feature; |z|² is taken as `d · feature_scale²`.

    Raises:
        ValueError: If all weights are zero.
    """
    squared = float(weight.double().square().sum(1).mean())
    if squared == 0:
        raise ValueError("linear must have a weight that is not zero, got all zeros")
    return math.sqrt(2 * feature_scale * math.sqrt(weight.shape[1] / squared))


def means_of_linear(weight: Tensor, bias: Tensor, scale_tril: Tensor, center: Tensor) -> Tensor:
    r"""Return the means m_i for which softmax(h) equals the softmax of `W z + b`, for a fixed Σ = L L^T.

    With m_i = Σ w_i / 2 + s for any s that the classes share,

        h_i = w_i·z - w_i·Σ w_i / 4 - w_i·s + terms independent of i,

    because eq. 0.11 of Wu et al. 2023 does not halve distances. The posteriors agree if `w_i·s + b_i + w_i·Σ w_i / 4`
    is equal for all i: K - 1 linear equations for the d numbers in s. They have a solution if the differences of the
    w_i are linearly independent (K <= d + 1 in general position). Among all solutions s moves the mean of the m_i least
    from `center`, in the Mahalanobis distance of Σ. With more classes s is the least-squares solution, and the log-odds
    of a class are off by its residual.

    Args:
        weight: W, float64 `[K, d]`.
        bias: b, float64 `[K]`.
        scale_tril: L, float64 `[d, d]` or `[d]`.
        center: Target of the mean of the means, float64 `[d]`.

    Returns:
        Means, float64 `[K, d]`.
    """
    factor = scale_tril.diag() if scale_tril.dim() == 1 else scale_tril
    white = weight @ factor
    means = white @ factor.mT / 2
    shift = center - means.mean(0)
    left = bias + white.square().sum(1) / 4 + weight @ shift
    # Terms common to all classes cancel in the softmax, so that only differences to the mean enter. gelsd returns the
    # solution of least norm in whitened coordinates, that is, of least Mahalanobis distance.
    step: Tensor = torch.linalg.lstsq(white - white.mean(0), (left.mean() - left)[:, None], driver="gelsd").solution
    return means + shift + factor @ step[:, 0]


def checked_linear(
    linear: nn.Linear, scale_tril: Tensor | None, center: Tensor | None, feature_scale: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return W, b, L and the centre for `CholeskyMahalanobisHead.from_linear` in float64 on the CPU, or raise.

    Args:
        linear: Layer with or without bias.
        scale_tril: L, `[d, d]`; None for `isotropic_scale(W, feature_scale) · I`.
        center: `[d]`; None for zeros.
        feature_scale: Root mean square of a feature, for `scale_tril=None` alone.

    Returns:
        W `[K, d]`, b `[K]`, L `[d, d]` lower-triangular and the centre `[d]`.

    Raises:
        TypeError: If `linear` is not an `nn.Linear`, or a tensor is not floating-point.
        ValueError: If a shape does not fit, a number is not finite, `feature_scale` is not above 0, or the diagonal of
            `scale_tril` is not positive.
    """
    if not isinstance(linear, nn.Linear):
        raise TypeError(f"linear must be an nn.Linear, got {type(linear).__name__}")
    feature_scale = checked_scale(feature_scale)
    for name, tensor in (
        ("linear.weight", linear.weight),
        ("linear.bias", linear.bias),
        ("scale_tril", scale_tril),
        ("center", center),
    ):
        if tensor is not None:
            _check_finite(name, tensor)
    # On the CPU, where `means_of_linear` finds gelsd, the driver of lstsq for matrices without full rank.
    weight, d = linear.weight.detach().double().cpu(), linear.in_features
    bias = torch.zeros(len(weight)).double() if linear.bias is None else linear.bias.detach().double().cpu()
    if scale_tril is None:
        scale_tril = isotropic_scale(weight, feature_scale) * torch.eye(d, dtype=torch.float64)
    if scale_tril.shape != (d, d):
        raise ValueError(f"scale_tril must be [{d}, {d}], got shape {tuple(scale_tril.shape)}")
    if not bool((scale_tril.diagonal() > 0).all()):
        raise ValueError(f"scale_tril must have a diagonal above 0, got {float(scale_tril.diagonal().min()):.3g}")
    center = torch.zeros(d) if center is None else center
    if center.shape != (d,):
        raise ValueError(f"center must be [{d}], got shape {tuple(center.shape)}")
    return weight, bias, scale_tril.detach().double().cpu().tril(), center.double().cpu()


def checked_scale(feature_scale: object) -> float:
    """Return the standard deviation of a feature as a float, or raise unless it is above 0 and finite."""
    scale = as_real("feature_scale", feature_scale)
    if not 0 < scale < math.inf:
        raise ValueError(f"feature_scale must be above 0 and finite, got {feature_scale}")
    return scale


def _check_finite(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}")
    if tensor.dtype not in LOGIT_DTYPES:
        raise TypeError(f"{name} must be float64, float32, bfloat16 or float16, got {tensor.dtype}")
    if not bool(tensor.isfinite().all()):
        raise ValueError(f"{name} must be finite, got NaN or infinity")
