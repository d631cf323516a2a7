"""Outlier losses for fine-tuning, each with its score."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

from fastood.common.config_checks import require_choice, require_positive, require_weight
from fastood.losses import EnergyRegularizedLoss, EntropyMaximizationLoss, ObjectosphereLoss, OutlierExposureLoss
from fastood.scores import energy_score, max_softmax_score
from fastood.train.arm import Scorer, by_logits, by_outputs
from fastood.train.engine.objective import Batch, LogitObjective, Objective, StatelessObjective, forward_outputs
from fastood.train.trained_network import Outputs

OutlierLossName = Literal["oe", "entropy", "energy", "objectosphere"]
WEIGHTS: dict[OutlierLossName, float] = {"oe": 0.5, "entropy": 0.5, "energy": 0.1, "objectosphere": 1.0}
"""Weight of each loss in its paper."""


@dataclass(frozen=True, kw_only=True)
class OutlierLossConfig:
    """A loss on background images, in addition to cross-entropy on in-distribution images.

    Example:
        >>> OutlierLossConfig(kind="energy").weight_of_kind
        0.1
    """

    kind: OutlierLossName = "oe"
    """oe: cross-entropy to the uniform distribution (Hendrycks 2019; Li & Vasconcelos 2020, eq. 5), scored by the
    maximum softmax; entropy: negative entropy (Li & Vasconcelos 2020, section 5.4), scored by the maximum softmax;
    energy: squared hinges on the energy (Liu 2020), scored by the energy; objectosphere: short features for background,
    long ones for in-distribution (Dhamija 2018), scored by maximum softmax times length of the features, as in that
    paper: Li & Vasconcelos do not say."""
    weight: float | None = None
    """Weight of the outlier loss; by default the paper's: 0.5 for oe and entropy, 0.1 for energy, 1 for
    objectosphere."""
    margin_id: float = -23.0
    """energy: energy below which in-distribution images have no loss; that of Liu 2020 for ten classes."""
    margin_background: float = -5.0
    """energy: energy above which background images have no loss; that of Liu 2020 for ten classes."""
    min_magnitude: float = 10.0
    """objectosphere: length ξ beyond which features of in-distribution images have no loss; depends on the network."""
    magnitude_weight: float = 0.01
    """objectosphere: weight μ of the lengths; depends on the network."""

    def __post_init__(self) -> None:
        require_choice(self, kind=OutlierLossName)
        if self.weight is not None:
            require_weight(self, "weight")
        if not self.margin_id < self.margin_background:
            raise ValueError(
                f"margin_id must be below margin_background {self.margin_background}, got {self.margin_id}"
            )
        require_positive(self, "min_magnitude", "magnitude_weight")

    @property
    def weight_of_kind(self) -> float:
        """Weight of the outlier loss."""
        return WEIGHTS[self.kind] if self.weight is None else self.weight

    def objective(self) -> Objective:
        """Return the objective of a stage; plain means, so that importance keeps its meaning (supplementary eq. 12)."""
        if self.kind == "oe":
            return LogitObjective(OutlierExposureLoss(weight=self.weight_of_kind, reduction="mean"))
        if self.kind == "entropy":
            return LogitObjective(EntropyMaximizationLoss(weight=self.weight_of_kind, reduction="mean"))
        if self.kind == "energy":
            return LogitObjective(
                EnergyRegularizedLoss(self.weight_of_kind, self.margin_id, self.margin_background, reduction="mean")
            )
        return ObjectosphereObjective(
            ObjectosphereLoss(self.min_magnitude, self.magnitude_weight, weight=self.weight_of_kind, reduction="mean")
        )

    def scorer(self) -> Scorer:
        """Return the scorer of networks trained with this loss."""
        if self.kind == "energy":
            return by_logits(energy_score)
        return by_outputs(magnitude_score) if self.kind == "objectosphere" else by_logits(max_softmax_score)

    @property
    def bias(self) -> bool:
        """Whether the head has a bias: without it features of length 0 have the uniform distribution (Dhamija 2018)."""
        return self.kind != "objectosphere"


class ObjectosphereObjective(StatelessObjective):
    """`ObjectosphereLoss` on the logits and features of one pass."""

    def __init__(self, loss: ObjectosphereLoss) -> None:
        self.loss = loss

    def __call__(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Compute the loss of the network's logits and features."""
        logits, features = forward_outputs(network, batch.images)
        return self.loss.with_per_sample(logits, features, batch.labels, batch.importance)


def magnitude_score(outputs: Outputs) -> Tensor:
    """Return `-max_k f_k · ‖z‖`, float64 `[N]` (Dhamija et al. 2018, section 3, https://arxiv.org/abs/1811.04110).

    Example:
        >>> import torch
        >>> magnitude_score(Outputs(logits=torch.zeros(2, 4), features=torch.tensor([[3.0, 4.0], [0.0, 0.0]])))
        tensor([-1.2500, -0.0000], dtype=torch.float64)
    """
    # float64: float32 rounds confident softmax values to 1, and ties images that the length alone then ranks.
    confidence = outputs.logits.double().softmax(dim=1).amax(dim=1)
    scores: Tensor = -confidence * outputs.features.double().norm(dim=1)
    return scores
