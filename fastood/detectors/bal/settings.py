"""Hyper-parameters of the conditional GAN of BAL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fastood.common.config_checks import require_at_least_one, require_choice, require_positive, require_weight
from fastood.detectors.bal.feature_frame import Axes
from fastood.detectors.bal.gan import Conditioning
from fastood.detectors.bal.losses import GeneratorForm, NegativeForm

__all__ = ["BoundarySettings", "Sampling"]

Sampling = Literal["uniform", "gaussian"]


@dataclass(frozen=True, kw_only=True)
class BoundarySettings:
    """Settings of the training of generator and discriminator.

    The paper gives the weights λ and λ_c only; architecture, optimiser, length, step ε and conditioning are choices of
    this implementation. Two settings deviate from the paper, `mode_seeking_weight` and `axes`; `as_printed()` returns
    those of the paper. docs/results.md compares them.

    Example:
        >>> BoundarySettings.as_printed().axes, BoundarySettings.as_printed().mode_seeking_weight
        ('features', 0.0)
        >>> BoundarySettings(epsilon=0)
        Traceback (most recent call last):
        ...
        ValueError: epsilon must be finite and above 0, got 0
    """

    steps: int = 800
    """Batches, each drawn from the feature bank with replacement."""
    batch_size: int = 64
    """Features per batch, and negative pairs of each kind per batch."""
    shuffle: bool = True
    """Whether the discriminator has the shuffle loss (equation 8). With one class there is no label to mismatch, and
    the term is left out."""
    uniform: bool = True
    """Whether the discriminator has the uniform loss (equation 9), with trivial and hard features."""
    sampling: Sampling = "uniform"
    """Distribution of trivial features. uniform: in the bounding box of a batch, as in the paper. gaussian: draws of
    low density from Gaussians (table 3)."""
    axes: Axes = "principal"
    """Coordinates of the box, of RSM's steps and of the networks' inputs, standardised along each: the features
    themselves, as in the paper, or the principal axes of their covariance within classes; see `FeatureFrame`."""
    uniform_weight: float = 0.7
    """Weight λ_c of trivial features (equation 9, table 2); 0.7 in the paper."""
    hard_weight: float = 1.0
    """Weight of hard features in the uniform loss. The paper includes them in its negative pairs and states that they
    cause no conflicts, which λ_c is meant to reduce."""
    epsilon: float = 0.5
    """Standard deviation σ of RSM's step ε = |N(0, σ²)|, in standard deviations of each coordinate and of the noise.
    The paper's ε is Gaussian, without absolute value; half of its steps would go towards higher D."""
    negative_form: NegativeForm = "log-one-minus-d"
    """Loss of shuffled and synthetic pairs; see `fastood.detectors.bal.losses.negative_loss`."""
    floor: float = 10.0
    """Bound of the loss for "log-d": equations 8 and 9 are unbounded below."""
    generator_form: GeneratorForm = "saturating"
    """Form of the generator's adversarial loss; "saturating" is equation 12."""
    nearest_weight: float = 0.01
    """Weight λ of the L1 distance to the nearest feature of the class (equation 12); 0.01 in the paper."""
    mode_seeking_weight: float = 3.0
    """Weight of the mode-seeking loss (`fastood.detectors.bal.losses`). At 0, as in the paper, equation 12 collapses
    the generated features of a class to one point, from which all steps of RSM start."""
    conditioning: Conditioning = "distance"
    """How labels enter the discriminator; see `ConditionalDiscriminator`."""
    hidden: int = 256
    """Width of the hidden layers of both networks."""
    embedding: int = 128
    """Width of the discriminator's class vectors, for conditioning "distance"."""
    noise_dim: int = 64
    """Width of the generator's noise."""
    learning_rate: float = 5e-4
    """Learning rate of both Adam optimisers, with β of 0.5 and 0.999 (Radford et al. 2016)."""

    def __post_init__(self) -> None:
        require_at_least_one(self, "steps", "batch_size", "hidden", "embedding", "noise_dim")
        require_positive(self, "epsilon", "floor", "learning_rate")
        require_weight(self, "uniform_weight", "hard_weight", "nearest_weight", "mode_seeking_weight")
        require_choice(
            self,
            sampling=Sampling,
            axes=Axes,
            negative_form=NegativeForm,
            generator_form=GeneratorForm,
            conditioning=Conditioning,
        )

    @classmethod
    def as_printed(cls) -> BoundarySettings:
        """Return the settings of the paper's text for losses and box."""
        return cls(axes="features", mode_seeking_weight=0.0)
