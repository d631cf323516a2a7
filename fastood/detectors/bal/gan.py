"""Generator and discriminator of BAL, conditional on class labels."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from fastood.common.initialization import initialize
from fastood.detectors.bal.feature_frame import FeatureFrame

__all__ = ["ConditionalDiscriminator", "ConditionalGenerator", "Conditioning"]

Conditioning = Literal["distance", "projection", "concatenation"]


class ConditionalDiscriminator(nn.Module):
    """Discriminator: the logit of D(f; c), the probability that f is an in-distribution feature of class c.

    The paper gives no architecture. This network reads coordinates in its `frame` and has two hidden layers φ with
    leaky ReLUs (slope 0.2), without normalisation, so that the logit of a row does not depend on other rows. Labels c
    enter by a vector e_c per class, in one of three forms:

    - "distance": `b - a |φ(f) - e_c|²`, with a learnt scale a > 0 and a linear last layer of φ. Features far from a
      class in any direction are rejected, also where no negative was drawn.
    - "projection": `w·φ(f) + e_c·φ(f) + b` (Miyato & Koyama 2018).
    - "concatenation": `w·φ([f, c]) + b` with a one-hot label.

    The logits of the last two forms grow without bound along some directions, also far from all data.

    Args:
        num_features: Width d of the features, at least 1.
        num_classes: Number of classes K, at least 1.
        hidden: Width of the hidden layers, at least 1.
        embedding: Width of e_c for "distance", at least 1.
        conditioning: "distance", "projection" or "concatenation".
        generator: RNG of the initial weights; None uses PyTorch's global one.

    Raises:
        ValueError: If a size is below 1, or the conditioning unknown.

    Example:
        >>> import torch
        >>> discriminator = ConditionalDiscriminator(8, 3, hidden=16)
        >>> discriminator(torch.zeros(5, 8), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5])
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        hidden: int = 256,
        embedding: int = 128,
        conditioning: Conditioning = "distance",
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(num_features=num_features, num_classes=num_classes, hidden=hidden, embedding=embedding)
        if conditioning not in get_args(Conditioning):
            raise ValueError(f"conditioning must be one of {', '.join(get_args(Conditioning))}, got {conditioning!r}")
        self.num_features, self.num_classes = num_features, num_classes
        self.conditioning = conditioning
        concatenated = num_classes if conditioning == "concatenation" else 0
        # nn.Linear draws from the global generator before `initialize` replaces its weights: fork that generator, so
        # that a call with `generator` leaves its state unchanged.
        with torch.random.fork_rng(devices=[], enabled=generator is not None):
            self.frame = FeatureFrame(num_features)
            self.body = nn.Sequential(
                nn.Linear(num_features + concatenated, hidden),
                nn.LeakyReLU(0.2),
                nn.Linear(hidden, hidden),
                nn.LeakyReLU(0.2),
            )
            self.output = nn.Linear(hidden, embedding if conditioning == "distance" else 1)
            self.class_vectors = nn.Linear(hidden, num_classes, bias=False) if conditioning == "projection" else None
            initialize(self, generator)
        if conditioning == "distance":
            self.centres = nn.Parameter(torch.zeros(num_classes, embedding))
            self.log_scale = nn.Parameter(torch.zeros(()))
            # D starts at sigmoid(2) = 0.88 at the centre of a class: confident, but not saturated.
            self.bias = nn.Parameter(torch.tensor(2.0))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """Return logits `[N]` of D for features `[N, d]` under labels int64 `[N]`, each in `0 … K - 1`."""
        x = self.frame.enter(features)
        if self.conditioning == "concatenation":
            x = torch.cat([x, nn.functional.one_hot(labels, self.num_classes).to(x.dtype)], dim=1)
        hidden = self.body(x)
        if self.conditioning == "distance":
            away = (self.output(hidden) - self.centres[labels]).square().sum(1)
            # The exponential keeps the scale a above 0 without a constraint.
            nearness: Tensor = self.bias - self.log_scale.exp() * away
            return nearness
        logits: Tensor = self.output(hidden).squeeze(1)
        if self.class_vectors is not None:
            logits = logits + (hidden * self.class_vectors.weight[labels]).sum(1)
        return logits


class ConditionalGenerator(nn.Module):
    """Generator network: features G(z; c) of class c from noise z.

    Noise and a one-hot label pass two hidden layers with leaky ReLUs and a linear layer to coordinates in `frame`. The
    paper gives no architecture.

    Args:
        num_features: Width d of the features, at least 1.
        num_classes: Number of classes K, at least 1.
        noise_dim: Width of the noise z, at least 1.
        hidden: Width of the hidden layers, at least 1.
        generator: RNG of the initial weights; None uses PyTorch's global one.

    Raises:
        ValueError: If a size is below 1.

    Example:
        >>> import torch
        >>> generator = ConditionalGenerator(8, 3, noise_dim=4, hidden=16)
        >>> generator(torch.randn(5, 4), torch.tensor([0, 1, 2, 0, 1])).shape
        torch.Size([5, 8])
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        *,
        noise_dim: int = 64,
        hidden: int = 256,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(num_features=num_features, num_classes=num_classes, noise_dim=noise_dim, hidden=hidden)
        self.num_classes, self.noise_dim = num_classes, noise_dim
        with torch.random.fork_rng(devices=[], enabled=generator is not None):
            self.frame = FeatureFrame(num_features)
            self.body = nn.Sequential(
                nn.Linear(noise_dim + num_classes, hidden),
                nn.LeakyReLU(0.2),
                nn.Linear(hidden, hidden),
                nn.LeakyReLU(0.2),
                nn.Linear(hidden, num_features),
            )
            initialize(self, generator)

    def forward(self, noise: Tensor, labels: Tensor) -> Tensor:
        """Return features `[N, d]` for noise `[N, noise_dim]` and labels int64 `[N]`, each in `0 … K - 1`."""
        condition = nn.functional.one_hot(labels, self.num_classes).to(noise.dtype)
        return self.frame.leave(self.body(torch.cat([noise, condition], dim=1)))


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"{name} must be at least 1, got {size}")
