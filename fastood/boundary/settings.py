"""Hyper-parameters of the conditional GAN of BAL."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from fastood.boundary.losses import GeneratorForm, NegativeForm
from fastood.boundary.networks import Conditioning

Sampling = Literal["uniform", "gaussian", "between"]


@dataclass(frozen=True, kw_only=True)
class BoundarySettings:
    """How generator and discriminator train.

    The paper gives the weights λ and λ_c and nothing else: architecture, optimiser, length, step ε and conditioning are
    ours. The defaults depart from its text in three places, where they detected more on features of a ResNet-18 of 512
    dimensions: `sampling`, `generator_form` and `nearest_weight`. `BoundarySettings.as_printed()` has its own.

    Example:
        >>> BoundarySettings.as_printed().sampling, BoundarySettings.as_printed().nearest_weight
        ('uniform', 0.01)
        >>> BoundarySettings(epsilon=0)
        Traceback (most recent call last):
        ...
        ValueError: epsilon must be finite and above 0, got 0
    """

    steps: int = 1500
    """Batches, each drawn from the feature bank with replacement."""
    batch_size: int = 64
    """Features in a batch, and negative pairs of each kind beside them."""
    shuffle: bool = True
    """Whether the discriminator has the shuffle loss (equation 8). With one class there is no label to mismatch, and
    the term is left out."""
    uniform: bool = True
    """Whether it has the uniform loss (equation 9), with trivial and hard features."""
    sampling: Sampling = "gaussian"
    """Trivial features. uniform: in the box of a batch, as in the paper. gaussian: unlikely draws of Gaussians (table
    3). between: on segments between features of a batch; see `fastood.boundary.sampling`."""
    box_margin: float = 0.0
    """For uniform: share of the box's width added on each side. The paper's 0 leaves what lies beyond the box, which is
    little in many dimensions and most of the plane in two, to how the discriminator extrapolates."""
    uniform_weight: float = 0.7
    """Weight λ_c of trivial features (equation 9, table 2); the paper's."""
    hard_weight: float = 1.0
    """Weight of hard features in the uniform loss. The paper has them among its negative pairs and says that they bring
    no conflicts, against which λ_c is meant."""
    epsilon: float = 0.5
    """Standard deviation σ of RSM's step ε = |N(0, σ²)|, in standard deviations of each feature and of the noise. The
    paper's ε is Gaussian, without absolute value; half of its steps would go to where D is higher."""
    negative_form: NegativeForm = "log-one-minus-d"
    """What shuffled and synthetic pairs cost; see `fastood.boundary.losses.negative_loss`."""
    floor: float = 10.0
    """For "log-d": the bound that equations 8 and 9 need."""
    generator_form: GeneratorForm = "non-saturating"
    """What being found out costs the generator; "saturating" is equation 12."""
    nearest_weight: float = 0.1
    """Weight λ of the L1 distance to the nearest feature of the class (equation 12). The paper's 0.01 lets a generator
    that does not saturate wander off."""
    conditioning: Conditioning = "projection"
    """How labels enter the discriminator; see `ConditionalDiscriminator`."""
    hidden: int = 256
    """Width of the hidden layers of both networks."""
    noise_dim: int = 64
    """Width of the generator's noise."""
    learning_rate: float = 5e-4
    """Step size of both Adams, with β of 0.5 and 0.999 (Radford et al. 2016)."""

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "hidden", "noise_dim"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("epsilon", "floor", "learning_rate"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and above 0, got {getattr(self, name)}")
        for name in ("uniform_weight", "hard_weight", "nearest_weight", "box_margin"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, got {getattr(self, name)}")
        for name, kind in (
            ("sampling", Sampling),
            ("negative_form", NegativeForm),
            ("generator_form", GeneratorForm),
            ("conditioning", Conditioning),
        ):
            if getattr(self, name) not in get_args(kind):
                raise ValueError(f"{name} must be one of {', '.join(get_args(kind))}, got {getattr(self, name)!r}")

    @classmethod
    def as_printed(cls) -> BoundarySettings:
        """What the paper's text says: uniform features, the generator's loss of equation 12, λ = 0.01."""
        return cls(sampling="uniform", generator_form="saturating", nearest_weight=0.01)
