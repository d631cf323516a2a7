"""Peers of the Mahalanobis logits: one whitening and a matrix product, `cdist`, or a distribution.

GPyTorch's covariance distance is left out where it is not installed: `pip install gpytorch` brings it in.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor

Logits = Callable[[Tensor, Tensor, Tensor], Tensor]
MVN_LIMIT = 256 * 100 * 512
"""N K d up to which `MultivariateNormal` is timed: it solves for every pair and stores several `[N, K, d]`."""


def whiten(features: Tensor, means: Tensor, scale_tril: Tensor) -> tuple[Tensor, Tensor]:
    """Compute L⁻¹ z and L⁻¹ m with one solve for both."""
    both = torch.linalg.solve_triangular(scale_tril, torch.cat([features, means]).T, upper=False).T
    return both[: len(features)], both[len(features) :]


def solve_and_mm(features: Tensor, means: Tensor, scale_tril: Tensor) -> Tensor:
    """Compute |y|² + |c|² - 2 y·c: the fastest composition, which loses the digits of close pairs."""
    y, c = whiten(features, means, scale_tril)
    return 2 * (y @ c.T) - y.square().sum(1, keepdim=True) - c.square().sum(1)


def solve_and_cdist(features: Tensor, means: Tensor, scale_tril: Tensor) -> Tensor:
    """Compute -cdist²; by default, `cdist` uses a matrix product for more than 25 rows."""
    return -torch.cdist(*whiten(features, means, scale_tril)).square()


def multivariate_normal(features: Tensor, means: Tensor, scale_tril: Tensor) -> Tensor:
    """Compute the log-density of `MultivariateNormal`: half the logits plus a constant, which is enough for a score."""
    normal = torch.distributions.MultivariateNormal(means, scale_tril=scale_tril, validate_args=False)
    return normal.log_prob(features[:, None])


def gpytorch_distance(features: Tensor, means: Tensor, scale_tril: Tensor) -> Tensor:
    """Compute the squared distance of GPyTorch between whitened vectors, centred by the mean of the features."""
    from gpytorch.kernels.kernel import sq_dist

    return -sq_dist(*whiten(features, means, scale_tril))


def peers(num_features: int, num_classes: int, dim: int) -> dict[str, Logits]:
    """Return the peers that can be timed on this shape, by name."""
    made: dict[str, Logits] = {
        "solve + mm": solve_and_mm,
        "solve + cdist": solve_and_cdist,
        "compiled solve + mm": torch.compile(solve_and_mm, dynamic=False),
    }
    if find_spec("gpytorch") is not None:
        made["gpytorch"] = gpytorch_distance
    if num_features * num_classes * dim <= MVN_LIMIT:
        made["MultivariateNormal"] = multivariate_normal
    return made
