"""Generalised ODIN: a decomposed confidence, and inputs moved by a step chosen on in-distribution images alone.

Hsu et al. 2020 (https://arxiv.org/abs/2002.11297).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fastood.common.config_checks import require_at_least_one, require_choice
from fastood.common.seeding import named_generator
from fastood.data import DetectionTask, ImageSet
from fastood.data.images.augment import STD
from fastood.data.splits import stratified_split
from fastood.detectors.perturbation import perturbed
from fastood.heads.decomposed_confidence import DecomposedConfidenceHead, Similarity
from fastood.losses import OutlierExposureLoss
from fastood.models import Classifier, ModelConfig
from fastood.train.arm import Arm, Predict, Prediction, Scorer
from fastood.train.engine.image_stage import ImageStage
from fastood.train.engine.objective import LogitObjective
from fastood.train.engine.schedule import Schedule
from fastood.train.engine.stage import Stage
from fastood.train.method import Method, MethodConfig, Preset, PresetName
from fastood.train.methods.plain import plain_arm, plain_stage
from fastood.train.trained_network import TrainedNetwork

Confidence = Literal["h", "g"]
VARIANTS: dict[Similarity, str] = {"inner": "DeConf-I", "euclidean": "DeConf-E", "cosine": "DeConf-C"}
"""Names of the networks in the paper."""


@dataclass(frozen=True, kw_only=True)
class GODINConfig(MethodConfig):
    """Networks with a decomposed confidence, next to one with a linear head.

    The schedule is that of public reimplementations of the paper: 0.1, divided by ten after half and three quarters of
    the training, no weight decay for h.

    Example:
        >>> GODINConfig(magnitudes=(0.01, -0.02))
        Traceback (most recent call last):
        ...
        ValueError: magnitudes (ε) must be finite and at least 0, got 0.01, -0.02
    """

    name: ClassVar[str] = "godin"
    summary: ClassVar[str] = "generalised ODIN: logits h/g, scored by h or g, ε from in-distribution alone (Hsu 2020)"
    ignores_background: ClassVar[bool] = True

    similarities: tuple[Similarity, ...] = ("cosine",)
    """Networks to train. inner: h is a linear layer, DeConf-I; euclidean: a negative squared distance, DeConf-E;
    cosine: a cosine, DeConf-C, the one that the paper adopts."""
    confidences: tuple[Confidence, ...] = ("h",)
    """Scores of each network, an arm each. h: the largest class score; g: the denominator of the logits. Nothing in the
    training determines the direction of g, as a small g makes the logits of the right class large: inspect it first."""
    magnitudes: tuple[float, ...] = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08)
    """Steps ε to choose from, in units of a pixel range of [0, 1]: the one at which the confidence of held-out
    in-distribution images is highest on average. A single value is used as it is, 0 for no step."""
    validation_fraction: float = 0.1
    """Fraction of every class that no arm trains on if there is an ε to choose, in (0, 1)."""
    batch_size: int = 128
    """Images in a batch."""
    training: Schedule = field(
        default_factory=lambda: Schedule(epochs=200, learning_rate=0.1, decay="milestones", milestones=(0.5, 0.75))
    )
    """Schedule of every network."""

    def __post_init__(self) -> None:
        require_choice(self, similarities=Similarity, confidences=Confidence)
        if not self.magnitudes:
            raise ValueError("magnitudes (ε) must have at least one value, got none")
        if not all(0 <= epsilon < math.inf for epsilon in self.magnitudes):
            got = ", ".join(map(str, self.magnitudes))
            raise ValueError(f"magnitudes (ε) must be finite and at least 0, got {got}")
        if not 0 < self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must be in (0, 1), got {self.validation_fraction}")
        require_at_least_one(self, "batch_size")

    def build(self, model: ModelConfig, *, task: DetectionTask, seed: int) -> "GODIN":
        """Build the method with these hyper-parameters; see `GODIN`."""
        return GODIN(self, model=model, task=task, seed=seed)

    @classmethod
    def embedded(cls) -> "GODINConfig":
        """Return fewer epochs of smaller batches and steps: at 0.1, g may saturate at 1 and logits be cosines alone."""
        training = Schedule(epochs=60, learning_rate=0.03, decay="milestones", milestones=(0.5, 0.75))
        return cls(batch_size=64, training=training)

    @classmethod
    def presets(cls) -> dict[PresetName, Preset]:
        """Return presets with the largest of the paper's networks, WRN-28-10."""
        paper = replace(super().presets()["paper"], model=ModelConfig(name="wrn-28-10", dropout=0.0))
        return {**super().presets(), "paper": paper}


class GODIN(Method):
    """Cross-entropy of a linear head, and of `DecomposedConfidenceHead` on the same budget and the same images.

    Neither background images nor, before the test, OOD sets are used. The in-distribution images that choose ε are held
    out of the training set, that of the plain arm included. Each arm chooses its own ε, the one that raises its
    confidence the most.

    Raises:
        ValueError: If the network is unknown, or a class has too few images to hold one out.
    """

    config: GODINConfig

    def setup(self) -> None:
        """Hold out the images that choose ε, if there is one to choose."""
        self._kept = self._held_out = torch.arange(len(self.task.id_train))
        if len(self.config.magnitudes) > 1:
            generator = named_generator(self.seed, "validation")
            self._kept, self._held_out = stratified_split(
                self.task.id_train.labels, self.config.validation_fraction, generator=generator
            )

    def build_arms(self) -> tuple[Arm, ...]:
        """Return the plain arm, and one for each similarity and confidence."""
        return (
            plain_arm(),
            *(
                Arm(
                    name=f"{similarity}-{confidence}",
                    label=f"{VARIANTS[similarity]}, {confidence}",
                    stage=similarity,
                    scorer=by_confidence(confidence, self.config.magnitudes, self._held_out),
                )
                for similarity in self.config.similarities
                for confidence in self.config.confidences
            ),
        )

    def build_stages(self) -> tuple[Stage, ...]:
        """Return the training of the linear head and one for each similarity, on the same batches."""
        config = self.config
        return (
            plain_stage(self.build_classifier, config.training, batch_size=config.batch_size, id_index=self._kept),
            *(self._stage(similarity) for similarity in config.similarities),
        )

    def _decomposed(self, similarity: Similarity) -> Classifier:
        model = self.build_classifier()
        model.head = DecomposedConfidenceHead(
            model.feature_dim,
            self.task.num_classes,
            similarity=similarity,
            generator=named_generator(self.seed, "initial head"),
        )
        return model

    def _stage(self, similarity: Similarity) -> ImageStage:
        return ImageStage(
            name=similarity,
            rng_name="training",
            schedule=self.config.training,
            build_model=partial(self._decomposed, similarity),
            objective=lambda: LogitObjective(OutlierExposureLoss(weight=0.0)),
            batch_size=self.config.batch_size,
            id_index=self._kept,
        )


def by_confidence(confidence: Confidence, magnitudes: Sequence[float], held_out: Tensor) -> Scorer:
    """Return a scorer by h or g of inputs moved towards a larger value; it classifies the images as they are.

    Args:
        confidence: "h" or "g".
        magnitudes: Steps ε to choose from.
        held_out: In-distribution training images that choose ε, int64 `[n]`.
    """

    def scorer(network: TrainedNetwork, task: DetectionTask) -> Predict:
        def ranks(inputs: Tensor) -> Tensor:
            features = network.module.features(inputs)  # type: ignore[operator]
            head = network.module.head
            assert isinstance(head, DecomposedConfidenceHead)
            return head.class_scores(features).amax(dim=1) if confidence == "h" else head.gate_logits(features)

        def confidences(images: ImageSet, epsilon: float) -> Tensor:
            return network.over_batches(images, lambda inputs: [moved(inputs, ranks, epsilon)])[0].double()

        def average(epsilon: float) -> float:
            values = confidences(task.id_train.subset(held_out), epsilon)
            return float((values if confidence == "h" else values.sigmoid()).mean())

        # max takes the first of equal values: the smallest step, in the default order.
        epsilon = magnitudes[0] if len(magnitudes) == 1 else max(magnitudes, key=average)

        def predict(images: ImageSet) -> Prediction:
            return Prediction(scores=-confidences(images, epsilon), classes=network.logits(images).argmax(dim=1))

        return predict

    return scorer


def moved(inputs: Tensor, confidence: Callable[[Tensor], Tensor], epsilon: float) -> Tensor:
    """Return the confidence `[N]` of inputs after a step ε along the sign of its gradient."""
    if epsilon > 0:
        inputs = perturbed(inputs, lambda x: -confidence(x), epsilon, input_std=[STD] * inputs.shape[1])
    with torch.inference_mode():
        return confidence(inputs)
