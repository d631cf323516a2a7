"""Negative pairs of feature and label: mismatched labels, trivial features (REM), hard features (RSM).

Pei et al. 2022, equations 4 to 8 (https://arxiv.org/abs/2112.11648).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastood.detectors.bal.gan import ConditionalDiscriminator, ConditionalGenerator
from fastood.heads import GaussianStatistics

__all__ = ["LowDensityGaussian", "hard_features", "mismatched_labels", "step_down", "uniform_in_box"]


def mismatched_labels(labels: Tensor, num_classes: int, *, generator: torch.Generator) -> Tensor:
    """Draw another label for each label, all others with equal probability: T(c) of equation 8.

    Args:
        labels: int64 `[N]`, each in `0 … K - 1`, on the CPU.
        num_classes: K, at least 2.
        generator: RNG of the draws.

    Raises:
        ValueError: If there is only one class.

    Example:
        >>> import torch
        >>> labels = torch.arange(6) % 3
        >>> bool((mismatched_labels(labels, 3, generator=torch.Generator().manual_seed(0)) != labels).all())
        True
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2 for a label to be mismatched, got {num_classes}")
    # A step of 1…K-1 modulo K never returns the same label, so no draw has to be rejected.
    return (labels + torch.randint(1, num_classes, labels.shape, generator=generator)) % num_classes


def uniform_in_box(features: Tensor, count: int, *, generator: torch.Generator) -> Tensor:
    """Draw trivial features of REM, uniform in the bounding box of a batch (equations 4 and 5).

    Args:
        features: `[N, d]`, at least one row.
        count: Number of features to draw.
        generator: RNG of the draws, on the CPU.

    Returns:
        `[count, d]` on the device of `features`.

    Example:
        >>> import torch
        >>> box = torch.tensor([[0.0, 5.0], [1.0, 5.0]])
        >>> drawn = uniform_in_box(box, 100, generator=torch.Generator().manual_seed(0))
        >>> bool((drawn[:, 0] > 0.9).any()), drawn[:, 1].unique()
        (True, tensor([5.]))
    """
    low, high = features.amin(0), features.amax(0)
    # Drawn on the CPU, so that a seed gives the same draws on every device.
    drawn = torch.rand(count, features.shape[1], generator=generator).to(features.device)
    return low + drawn * (high - low)


class LowDensityGaussian:
    """Trivial features of the Gaussian variant (table 3): draws of low density from Gaussians of the classes.

    The Gaussians have class means and one shared covariance, as in Du et al. 2022, which the paper cites. Of
    `candidates` draws from a class, the one of least density is kept.

    Args:
        statistics: Class means and covariance, such as `FeatureBank.statistics`.
        candidates: Draws per kept feature.

    Raises:
        ValueError: If the covariance is zero, as with one sample in every class or constant features: there
            is no Gaussian to draw from.

    Example:
        >>> import torch
        >>> draws = torch.Generator().manual_seed(0)
        >>> features, labels = torch.randn(1000, 2, generator=draws), torch.zeros(1000, dtype=torch.int64)
        >>> statistics = GaussianStatistics(2).partial_fit(features, labels)
        >>> drawn = LowDensityGaussian(statistics).sample(torch.zeros(200, dtype=torch.int64), generator=draws)
        >>> bool(drawn.norm(dim=1).mean() > 2)
        True
    """

    def __init__(self, statistics: GaussianStatistics, *, candidates: int = 16) -> None:
        if candidates < 1:
            raise ValueError(f"candidates must be at least 1, got {candidates}")
        self.candidates = candidates
        # Units that no image activates give constant features. Shrinkage gives them a variance, unless all are
        # constant.
        if not bool(statistics.covariance().diagonal().any()):
            raise ValueError(
                "sampling 'gaussian' needs features that vary within a class, got none: use sampling 'uniform'"
            )
        self._factor = statistics.cholesky("oas").float()
        self._means = statistics.means.float()

    def sample(self, labels: Tensor, *, generator: torch.Generator) -> Tensor:
        """Draw one feature for each label: `[N, d]` for int64 `[N]`, all of classes that have rows."""
        noise = torch.randn(len(labels), self.candidates, len(self._factor), generator=generator)
        # In whitened coordinates the density depends on the length alone, so the longest draw has the least density.
        farthest = noise.square().sum(2).argmax(1)
        kept = noise[torch.arange(len(labels)), farthest].to(self._means.device)
        with torch.autocast(kept.device.type, enabled=False):
            return self._means[labels] + kept @ self._factor.mT


def step_down(x: Tensor, discriminate: Callable[[Tensor], Tensor], epsilon: Tensor) -> Tensor:
    """Take a step of the fast gradient sign method towards lower D: RSM, equations 6 and 7.

    The gradient is that of the logit, which has the sign of D's gradient and does not underflow. Equation 7 has no sign
    function, unlike equation 6; here both steps use it, so that their length does not depend on the slope of D.

    Args:
        x: `[N, d]`, features or noise.
        discriminate: Function from `x` to logits `[N]` of D.
        epsilon: Step `[N, 1]`, or `[N, d]` for one step per dimension.

    Returns:
        `[N, d]`, without gradient.

    Example:
        >>> import torch
        >>> step_down(torch.tensor([[1.0, 1.0]]), lambda x: x[:, 0] - 2 * x[:, 1], torch.tensor([[0.5]]))
        tensor([[0.5000, 1.5000]])
    """
    with torch.enable_grad():
        # The gradient of x alone: the parameters of both networks must not accumulate one.
        x = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(discriminate(x).sum(), x)
    return x.detach() - epsilon * gradient.sign()


def hard_features(
    discriminator: ConditionalDiscriminator,
    generator_network: ConditionalGenerator,
    noise: Tensor,
    labels: Tensor,
    epsilon: Tensor,
) -> Tensor:
    """Generate hard features of RSM: half are moved towards lower D in their frame, half by their noise.

    Args:
        discriminator: D.
        generator_network: G, in the same frame.
        noise: z `[N, z]`.
        labels: Labels of the generated features, int64 `[N]`.
        epsilon: Step `[N, 1]`, in standard deviations.

    Returns:
        `[N, d]`, without gradient.
    """
    # The paper steps in features (equation 6) and in noise (equation 7), and states no proportion.
    half, frame = len(noise) // 2, generator_network.frame
    with torch.no_grad():
        direct = frame.enter(generator_network(noise[:half], labels[:half]))
    direct = step_down(direct, lambda x: discriminator(frame.leave(x), labels[:half]), epsilon[:half])
    of_moved = labels[half:]
    moved = step_down(noise[half:], lambda z: discriminator(generator_network(z, of_moved), of_moved), epsilon[half:])
    with torch.no_grad():
        return torch.cat([frame.leave(direct), generator_network(moved, of_moved)])
