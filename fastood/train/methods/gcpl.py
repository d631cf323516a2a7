"""Generalised convolutional prototype learning, a method that Pei et al. 2022 compare with.

GCPL: Yang et al. 2018 (https://arxiv.org/abs/1805.03438).
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from fastood.common.config_checks import require_at_least_one, require_weight
from fastood.common.seeding import named_generator
from fastood.data import DetectionTask, ImageSet
from fastood.heads import PrototypeHead
from fastood.losses import OutlierExposureLoss, PrototypeLoss
from fastood.models import Classifier, ModelConfig
from fastood.scores import max_softmax_score
from fastood.train.arm import Arm, Predict, Prediction, by_logits
from fastood.train.engine.image_stage import ImageStage
from fastood.train.engine.objective import Batch, StatelessObjective, forward_outputs
from fastood.train.engine.schedule import Schedule
from fastood.train.engine.stage import Stage
from fastood.train.method import Method, MethodConfig
from fastood.train.methods.plain import plain_arm, plain_stage
from fastood.train.trained_network import TrainedNetwork


@dataclass(frozen=True, kw_only=True)
class GCPLConfig(MethodConfig):
    """A network with prototypes instead of a linear head, next to one with a linear head.

    Example:
        >>> GCPLConfig(gamma=0)
        Traceback (most recent call last):
        ...
        ValueError: gamma (γ) must be finite and above 0, got 0
    """

    name: ClassVar[str] = "gcpl"
    summary: ClassVar[str] = "convolutional prototypes: distances instead of logits (Yang 2018, as in Pei 2022)"
    ignores_background: ClassVar[bool] = True

    per_class: int = 1
    """Prototypes of each class; 1 in the authors' code."""
    gamma: float = 1.0
    """Hardness γ of the assignment to prototypes; that of the authors' code."""
    prototype_weight: float = 0.01
    """Weight λ of the prototype loss; that of Pei et al. 2022, section 5.2."""
    batch_size: int = 128
    """Images in a batch."""
    training: Schedule = field(
        default_factory=lambda: Schedule(
            epochs=300, learning_rate=0.001, optimizer="adam", decay_every=None, weight_decay=0.0
        )
    )
    """Schedule of both networks. Pei et al. 2022 state Adam and 300 epochs; the learning rate is that of Yang et al."""

    def __post_init__(self) -> None:
        require_at_least_one(self, "per_class", "batch_size")
        if not 0 < self.gamma < math.inf:
            raise ValueError(f"gamma (γ) must be finite and above 0, got {self.gamma}")
        require_weight(self, "prototype_weight")

    def build(self, model: ModelConfig, *, task: DetectionTask, seed: int) -> "GCPL":
        """Build the method with these hyper-parameters; see `GCPL`."""
        return GCPL(self, model=model, task=task, seed=seed)

    @classmethod
    def embedded(cls) -> "GCPLConfig":
        """Return fewer, larger steps: distances are uninformative until features are close to their prototypes."""
        return cls(training=Schedule(epochs=50, learning_rate=0.01, optimizer="adam", decay="cosine", weight_decay=0.0))


class GCPL(Method):
    """Cross-entropy of a linear head, and of prototypes on the same budget; background images are not used.

    The network with prototypes has two scores, the two rejection rules of Yang et al. 2018: the distance to the
    nearest prototype, and the probability of the most likely class. Pei et al. 2022 do not say which of the two
    their table shows.

    Raises:
        ValueError: If the network is unknown.
    """

    config: GCPLConfig

    def build_arms(self) -> tuple[Arm, ...]:
        """Return the plain arm, and one for each score of the network with prototypes."""
        return (
            plain_arm(),
            Arm(name="gcpl", label="GCPL, distance", stage="gcpl", scorer=by_nearest_prototype),
            Arm(name="gcpl-softmax", label="GCPL, softmax", stage="gcpl", scorer=by_logits(max_softmax_score)),
        )

    def build_stages(self) -> tuple[Stage, ...]:
        """Return the trainings of the linear head and of the prototypes, on the same batches."""
        config = self.config
        return (
            plain_stage(self.build_classifier, config.training, batch_size=config.batch_size),
            ImageStage(
                name="gcpl",
                rng_name="training",
                schedule=config.training,
                build_model=self._prototypes,
                objective=lambda: GCPLObjective(config.prototype_weight),
                batch_size=config.batch_size,
            ),
        )

    def _prototypes(self) -> Classifier:
        model = self.build_classifier()
        model.head = PrototypeHead(
            model.feature_dim,
            self.task.num_classes,
            per_class=self.config.per_class,
            gamma=self.config.gamma,
            generator=named_generator(self.seed, "initial head"),
        )
        return model


class GCPLObjective(StatelessObjective):
    """Distance-based cross-entropy + λ · prototype loss, of a network whose head is a `PrototypeHead`.

    Args:
        weight: λ.
    """

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.cross_entropy = OutlierExposureLoss(weight=0.0)
        self.prototype = PrototypeLoss()

    def __call__(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Compute the loss of the network's logits and features."""
        logits, features = forward_outputs(network, batch.images)
        loss, per_sample = self.cross_entropy.with_per_sample(logits, batch.labels, batch.importance)
        pull, distance = self.prototype.with_per_sample(features, network.head.prototypes, batch.labels)  # type: ignore[union-attr, arg-type]
        return loss + self.weight * pull, per_sample + self.weight * distance


def by_nearest_prototype(network: TrainedNetwork, task: DetectionTask) -> Predict:
    """Score by the squared distance to the nearest prototype, and classify by that prototype."""
    head = network.module.head
    assert isinstance(head, PrototypeHead)

    @torch.inference_mode()
    def predict(images: ImageSet) -> Prediction:
        distances = head.distances(network.features(images).to(network.device)).amin(dim=2).cpu()
        return Prediction(scores=distances.amin(dim=1).double(), classes=distances.argmin(dim=1))

    return predict
