"""Negative pairs of feature and label: mismatched labels, trivial features (REM), hard ones (RSM)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fastood.detectors.bal.gan import ConditionalDiscriminator, ConditionalGenerator
from fastood.heads import GaussianStatistics

__all__ = ["LowDensityGaussian", "hard_features", "mismatched_labels", "step_down", "uniform_in_box"]


def mismatched_labels(labels: Tensor, num_classes: int, *, generator: torch.Generator) -> Tensor:
    """T(c) of equation 8: for each label another one, all others alike.

    Args:
        labels: int64 `[N]`, each 0…K-1, on the CPU.
        num_classes: K, at least 2.
        generator: Source of the draws.

    Raises:
        ValueError: There is only one class, and so no other label.

    Example:
        >>> import torch
        >>> labels = torch.arange(6) % 3
        >>> bool((mismatched_labels(labels, 3, generator=torch.Generator().manual_seed(0)) != labels).all())
        True
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2 for a label to be mismatched, got {num_classes}")
    # Steps of 1…K-1 around the circle of classes never come back: no draw has to be repeated.
    return (labels + torch.randint(1, num_classes, labels.shape, generator=generator)) % num_classes


def uniform_in_box(features: Tensor, count: int, *, generator: torch.Generator) -> Tensor:
    """Trivial features of REM: uniform in the box that just holds a batch (equations 4 and 5).

    Args:
        features: `[N, d]`, at least one row.
        count: How many to draw.
        generator: Source of the draws, on the CPU.

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
    drawn = torch.rand(count, features.shape[1], generator=generator).to(features.device)
    return low + drawn * (high - low)


class LowDensityGaussian:
    """Trivial features of the Gaussian variant (table 3): the unlikely draws of Gaussians fitted to the classes.

    Class means and one shared covariance, as Du et al. 2022 have it, to whom the paper refers; of `candidates` draws
    from a class the one of least density is kept.

    Args:
        statistics: Class means and covariance; of a bank, its `statistics`.
        candidates: Draws for each feature that is kept.

    Raises:
        ValueError: The covariance is zero, as with one sample in every class or constant features: there is no Gaussian
            to draw from.

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
        # Features that no image of a class activates are constant; shrinkage gives them a variance.
        if not bool(statistics.covariance().diagonal().any()):
            raise ValueError(
                "sampling gaussian needs classes that spread: no feature varies within one; uniform does not"
            )
        self._factor = statistics.cholesky("oas").float()
        self._means = statistics.means.float()

    def sample(self, labels: Tensor, *, generator: torch.Generator) -> Tensor:
        """One feature `[N, d]` for each label int64 `[N]`, of classes that had rows."""
        noise = torch.randn(len(labels), self.candidates, len(self._factor), generator=generator)
        # Before the factor is applied the density falls with the length alone.
        farthest = noise.square().sum(2).argmax(1)
        kept = noise[torch.arange(len(labels)), farthest].to(self._means.device)
        with torch.autocast(kept.device.type, enabled=False):
            return self._means[labels] + kept @ self._factor.mT


def step_down(x: Tensor, discriminate: Callable[[Tensor], Tensor], epsilon: Tensor) -> Tensor:
    """RSM: a step of the fast gradient sign method to where D is lower (equations 6 and 7).

    The sign is taken of the logit's gradient, which is that of D's and does not underflow. Equation 7 has no sign where
    equation 6 has; it is taken for both, so that a step has the same length whatever D's slope.

    Args:
        x: `[N, d]`, features or noise.
        discriminate: Logits of D `[N]` for them.
        epsilon: Step `[N, 1]`, or `[N, d]` for one of its own in every dimension.

    Returns:
        Like `x`, without gradient.

    Example:
        >>> import torch
        >>> step_down(torch.tensor([[1.0, 1.0]]), lambda x: x[:, 0] - 2 * x[:, 1], torch.tensor([[0.5]]))
        tensor([[0.5000, 1.5000]])
    """
    with torch.enable_grad():
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
    """Hard features of RSM: generated ones pushed down D's slope, half in the features' frame, half by their noise.

    Args:
        discriminator: D.
        generator_network: G, in the same frame.
        noise: z `[N, z]`.
        labels: int64 `[N]` to generate under.
        epsilon: Step `[N, 1]`, in standard deviations.

    Returns:
        `[N, d]`, without gradient.
    """
    half, frame = len(noise) // 2, generator_network.frame
    with torch.no_grad():
        direct = frame.enter(generator_network(noise[:half], labels[:half]))
    direct = step_down(direct, lambda x: discriminator(frame.leave(x), labels[:half]), epsilon[:half])
    of_moved = labels[half:]
    moved = step_down(noise[half:], lambda z: discriminator(generator_network(z, of_moved), of_moved), epsilon[half:])
    with torch.no_grad():
        return torch.cat([frame.leave(direct), generator_network(moved, of_moved)])
