"""In-distribution compatible outlier exposure (ICE; Wu et al., AAAI 2023), next to the trainings of its tables."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor

from fastood.common.config_checks import require_at_least_one, require_choice, require_weight
from fastood.common.seeding import named_generator
from fastood.data import DetectionTask
from fastood.heads import CholeskyMahalanobisHead
from fastood.losses import (
    EnergyRegularizedLoss,
    ICELoss,
    MixedBatchLoss,
    OutlierExposureLoss,
    SigmoidLikelihoodLoss,
)
from fastood.models import Classifier, ModelConfig
from fastood.scores import energy_score, max_logit_score, max_softmax_score
from fastood.train.arm import Arm, by_logits
from fastood.train.engine.background import SubsetBackground
from fastood.train.engine.image_stage import ImageStage, NormMode
from fastood.train.engine.objective import LogitObjective
from fastood.train.engine.schedule import Schedule
from fastood.train.engine.stage import Embed, Stage, StageContext, Weights, load_all
from fastood.train.method import Method, MethodConfig, Preset, PresetName

ArmName = Literal["plain", "oe", "energy", "ice", "ice-minus", "sigmoid", "energy-gaussian"]
Training = Literal["fine-tune", "from-scratch"]
Covariance = Literal["full", "diagonal"]


@dataclass(frozen=True, kw_only=True)
class ICEConfig(MethodConfig):
    """ICE and the trainings to compare with, on one budget; the defaults are the paper's where it states them.

    Example:
        >>> ICEConfig(arms=("ice", "ece"))
        Traceback (most recent call last):
        ...
        ValueError: arms must be of plain, oe, energy, ice, ice-minus, sigmoid, energy-gaussian, got 'ece'
    """

    name: ClassVar[str] = "ice"
    summary: ClassVar[str] = (
        "in-distribution compatible outlier exposure (Wu 2023), next to outlier exposure and energy training"
    )

    arms: tuple[ArmName, ...] = ("plain", "oe", "energy", "ice")
    """Arms to train and compare.
    plain: no background; oe: outlier exposure; energy: Liu 2020; ice: the paper's method. Ablations of its table 3:
    ice-minus: without the likelihood of in-distribution images; sigmoid: the loss of ice on a linear head, the table's
    BCE; energy-gaussian: the energy loss on the Gaussian head."""
    training: Training = "fine-tune"
    """fine-tune: every arm from one network trained without background; from-scratch: every arm from the start."""
    likelihood_weight: float = 0.3
    """Weight λ of both likelihood terms of ice, ice-minus and sigmoid. The paper states none. On the embedded digits
    (seeds 0 and 1, mean over the OOD sets) 0.01, 0.03, 0.1, 0.3, 1 and 3 gave an AUROC of 97.4, 98.3, 98.5, 98.6, 98.5
    and 95.7 per cent: flat from 0.1 to 1. At 3 the accuracy falls as well, from 99.6 to 97.8 per cent."""
    outlier_weight: float = 0.5
    """Weight of the outlier loss of oe; that of Hendrycks 2019."""
    energy_weight: float = 0.1
    """Weight of the energy terms of energy and energy-gaussian; that of Liu 2020."""
    margin_id: float = -23.0
    """Energy below which in-distribution images have no loss in the energy arm; that of Liu 2020 for ten classes."""
    margin_background: float = -5.0
    """Energy above which background images have no loss in the energy arm; that of Liu 2020 for ten classes."""
    covariance: Covariance = "full"
    """Shape of the Gaussian head's covariance L Lᵀ, which all classes share; the paper's L is full."""
    batch_size: int = 128
    """In-distribution images in a batch."""
    background_batch_size: int = 256
    """Background images in a batch, in addition."""
    pretrain: Schedule = field(default_factory=lambda: Schedule(epochs=100, learning_rate=0.1))
    """For fine-tune: training without background, from which every arm starts."""
    finetune: Schedule = field(default_factory=lambda: Schedule(epochs=10, learning_rate=0.01, decay="cosine"))
    """For fine-tune: training with background."""
    scratch: Schedule = field(default_factory=lambda: Schedule(epochs=100, learning_rate=0.1))
    """For from-scratch: the one training. "The commonly-used stair-wise decay" of the paper is taken as a tenth every
    30 epochs."""
    batch_norm: NormMode = "train"
    """BatchNorm of arms with background. train: learn its statistics over both parts of a batch, as in Hendrycks 2019,
    the protocols of the paper; eval: keep those of the pre-training."""

    def __post_init__(self) -> None:
        require_choice(self, arms=ArmName, training=Training, covariance=Covariance, batch_norm=NormMode)
        require_weight(self, "likelihood_weight", "outlier_weight", "energy_weight")
        if not self.margin_id < self.margin_background:
            raise ValueError(
                f"margin_id must be below margin_background {self.margin_background}, got {self.margin_id}"
            )
        require_at_least_one(self, "batch_size", "background_batch_size")

    @property
    def needs_background(self) -> bool:
        """Whether an arm other than plain is trained."""
        return set(self.arms) != {"plain"}

    def build(self, model: ModelConfig, *, task: DetectionTask, seed: int) -> "ICE":
        """Build the method with these hyper-parameters; see `ICE`."""
        return ICE(self, model=model, task=task, seed=seed)

    @classmethod
    def embedded(cls) -> "ICEConfig":
        """Return a longer fine-tuning: ten epochs of the embedded digits are ninety steps."""
        return cls(finetune=Schedule(epochs=50, learning_rate=0.01, decay="cosine"))

    @classmethod
    def presets(cls) -> dict[PresetName, Preset]:
        """Return presets with the paper's network, WRN-34-10."""
        paper = replace(super().presets()["paper"], model=ModelConfig(name="wrn-34-10"))
        return {**super().presets(), "paper": paper}


GAUSSIAN_MARGINS = (0.0, 5.0)
"""Margins of the energy loss on a Gaussian head, whose logits are at most 0: a likelihood of 1 for in-distribution
images and of exp(-5) for background. Those of a linear head cannot be reached. The energy without margins (Wu 2023,
eq. 0.5) has no lower bound and diverges; the paper does not say which of the two it uses."""


@dataclass(frozen=True, kw_only=True)
class ArmRecipe:
    """Loss, head and score of an arm."""

    label: str
    """Name in tables and figures."""
    loss: Callable[[ICEConfig], MixedBatchLoss]
    """Builds the loss from the hyper-parameters."""
    score: Callable[[Tensor], Tensor]
    """Computes scores `[N]` of logits `[N, K]`."""
    gaussian: bool = False
    """Whether the linear head is replaced by a Gaussian one (eq. 0.11)."""


RECIPES: dict[ArmName, ArmRecipe] = {
    "plain": ArmRecipe(
        label="Plain",
        loss=lambda config: OutlierExposureLoss(weight=0.0),
        score=max_softmax_score,
    ),
    "oe": ArmRecipe(
        label="OE",
        loss=lambda config: OutlierExposureLoss(weight=config.outlier_weight),
        score=max_softmax_score,
    ),
    "energy": ArmRecipe(
        label="Energy",
        loss=lambda config: EnergyRegularizedLoss(config.energy_weight, config.margin_id, config.margin_background),
        score=energy_score,
    ),
    # exp(max h) is the paper's confidence; -max h has the same ranking, and distinguishes values that exp rounds to 0.
    "ice": ArmRecipe(
        label="ICE",
        loss=lambda config: ICELoss(config.likelihood_weight),
        score=max_logit_score,
        gaussian=True,
    ),
    "ice-minus": ArmRecipe(
        label="ICE⁻",
        loss=lambda config: ICELoss(config.likelihood_weight, id_likelihood=False),
        score=max_logit_score,
        gaussian=True,
    ),
    "sigmoid": ArmRecipe(
        label="Sigmoid",
        loss=lambda config: SigmoidLikelihoodLoss(config.likelihood_weight),
        score=max_logit_score,
    ),
    "energy-gaussian": ArmRecipe(
        label="Energy, Gaussian",
        loss=lambda config: EnergyRegularizedLoss(config.energy_weight, *GAUSSIAN_MARGINS),
        score=energy_score,
        gaussian=True,
    ),
}


class ICE(Method):
    """Train each arm with its own loss on the same images, the same order and the same number of steps.

    Fine-tuning starts every arm from one network, trained without background. An arm with a Gaussian head keeps its
    features, and takes means and covariance from the features of the training images; the paper does not say how its
    head is initialised. Arm plain is fine-tuned, too, without background, so that the numbers of steps match.

    Raises:
        ValueError: If the network is unknown, or an arm needs background images and the task has none.
    """

    config: ICEConfig

    def setup(self) -> None:
        """Check that there is a background for the arms that need one."""
        if len(self.task.background) == 0 and self.config.needs_background:
            raise ValueError("the background must have at least one image, got none")

    def build_arms(self) -> tuple[Arm, ...]:
        """Return the configured arms."""
        return tuple(
            Arm(name=arm, label=RECIPES[arm].label, stage=arm, scorer=by_logits(RECIPES[arm].score))
            for arm in self.config.arms
        )

    def build_stages(self) -> tuple[Stage, ...]:
        """Return one training for each arm, after that of the common network if they are fine-tuned."""
        stages = tuple(self._arm(arm) for arm in self.config.arms)
        return (self._pretrain(), *stages) if self.config.training == "fine-tune" else stages

    @property
    def baseline(self) -> str | None:
        """The oe arm, else the first one."""
        return "oe" if "oe" in self.config.arms else super().baseline

    def background_index(self, arm: str) -> Tensor:
        """Return the background images of an arm: all, or none for the plain one."""
        none = super().background_index(arm)
        return none if arm == "plain" else torch.arange(len(self.task.background))

    def _gaussian(self) -> Classifier:
        model = self.build_classifier()
        model.head = CholeskyMahalanobisHead(
            model.feature_dim,
            self.task.num_classes,
            covariance=self.config.covariance,
            generator=named_generator(self.seed, "initial head"),
        )
        return model

    def _begin_gaussian(self, model: Classifier, weights: Weights, embed: Embed) -> None:
        """Take over the features of the pre-trained network, and fit the head to them."""
        model.load_state_dict({**model.state_dict(), **{k: v for k, v in weights.items() if not k.startswith("head.")}})
        features = embed(model, self.task.id_train)
        # Dead ReLU features are constant within the classes, which makes the covariance singular: shrink it.
        head = CholeskyMahalanobisHead.from_features(
            features, self.task.id_train.labels, covariance=self.config.covariance, shrinkage="oas"
        )
        # `embed` has moved the network to the device of the run.
        model.head = head.to(next(model.parameters()).device)

    def _pretrain(self) -> ImageStage:
        return ImageStage(
            name="pretrain",
            rng_name="pretrain",
            schedule=self.config.pretrain,
            build_model=self.build_classifier,
            objective=lambda: LogitObjective(RECIPES["plain"].loss(self.config)),
            batch_size=self.config.batch_size,
        )

    def _arm(self, arm: ArmName) -> ImageStage:
        recipe, fine_tuned = RECIPES[arm], self.config.training == "fine-tune"

        def background(context: StageContext) -> SubsetBackground:
            return SubsetBackground(
                self.background_index(arm),
                batch_size=self.config.background_batch_size,
                generator=named_generator(self.seed, "background"),
            )

        return ImageStage(
            name=arm,
            rng_name="arms",
            schedule=self.config.finetune if fine_tuned else self.config.scratch,
            build_model=self._gaussian if recipe.gaussian else self.build_classifier,
            objective=lambda: LogitObjective(recipe.loss(self.config)),
            batch_size=self.config.batch_size,
            start_from="pretrain" if fine_tuned else None,
            take_over=self._begin_gaussian if recipe.gaussian else load_all,
            background=None if arm == "plain" else background,
            batch_norm=self.config.batch_norm,
        )
