"""Self-supervised reject classes, next to a baseline and outlier exposure.

Mohseni et al., AAAI 2020 (https://ojs.aaai.org/index.php/AAAI/article/view/5966).
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from fastood.common.config_checks import require_at_least_one, require_choice, require_weight
from fastood.common.seeding import named_generator
from fastood.data import DetectionTask
from fastood.losses import OutlierExposureLoss, RejectClassLoss
from fastood.models import Classifier, ModelConfig
from fastood.models.classifier import initialize
from fastood.scores import max_softmax_score
from fastood.train.arm import Arm, by_logits
from fastood.train.engine.background import SubsetBackground
from fastood.train.engine.image_stage import ImageStage, NormMode
from fastood.train.engine.objective import Batch, LogitObjective, Objective
from fastood.train.engine.schedule import Schedule
from fastood.train.engine.stage import Embed, Stage, StageContext, Weights, load_all
from fastood.train.method import Method, MethodConfig, Preset, PresetName
from fastood.train.methods.reject.reject_scores import RejectScoreName, reject_scorer

ArmName = Literal["msp", "oe", "reject"]

MANY_CLASSES = 100
"""Smallest number of classes with ten reject classes instead of five."""


@dataclass(frozen=True, kw_only=True)
class RejectConfig(MethodConfig):
    """Reject classes and the baselines of the paper's table 1, on one budget; the defaults are the paper's.

    The paper states a learning rate of 0.1 and its cosine decay; it states neither momentum nor weight decay, nor
    whether the second step starts at 0.1 again, as it does here. For MNIST it uses batches of 64, a learning rate of
    0.01, dropout of 0.1 and 10 + 10 epochs, for SVHN 20 + 20 epochs.

    Example:
        >>> RejectConfig(num_reject=0)
        Traceback (most recent call last):
        ...
        ValueError: num_reject must be at least 1, or None, got 0
    """

    name: ClassVar[str] = "reject"
    summary: ClassVar[str] = "self-supervised reject classes (Mohseni 2020), next to its baseline and outlier exposure"

    arms: tuple[ArmName, ...] = ("msp", "oe", "reject")
    """Arms to train and compare. msp: no background, the paper's baseline; oe: outlier exposure; reject: the paper's
    method."""
    num_reject: int | None = None
    """Number k of reject classes; None for the paper's numbers: 5, and 10 for a hundred classes or more."""
    reject_weight: float = 5.0
    """Weight λ of the cross-entropy of background images to their pseudo-labels."""
    outlier_weight: float = 0.5
    """Weight of the outlier loss of oe; that of Hendrycks 2019."""
    score: tuple[RejectScoreName, ...] = ("sum",)
    """Scores of the reject arm, those of table 2; a row each, of one network. sum: sum of the reject classes'
    probabilities; max: the largest of them; weighted: their weighted sum; entropy: negative entropy of the reject
    classes; entropy-difference: entropy of the in-distribution classes minus that of the reject classes; combined:
    weighted sum and entropies. Weights are searched on training images."""
    batch_size: int = 128
    """In-distribution images in a batch."""
    background_batch_size: int = 640
    """Background images in a batch, in addition: five times as many."""
    pretrain: Schedule = field(default_factory=lambda: Schedule(epochs=100, learning_rate=0.1, decay="cosine"))
    """First step: training on the in-distribution images alone, from which every arm starts."""
    finetune: Schedule = field(default_factory=lambda: Schedule(epochs=100, learning_rate=0.1, decay="cosine"))
    """Second step: training with background images; for msp without."""
    batch_norm: NormMode = "train"
    """BatchNorm of the second step. train: learn its statistics over both parts of a batch; eval: keep those of the
    first step. The paper does not say."""

    def __post_init__(self) -> None:
        require_choice(self, arms=ArmName, score=RejectScoreName, batch_norm=NormMode)
        if self.num_reject is not None and self.num_reject < 1:
            raise ValueError(f"num_reject must be at least 1, or None, got {self.num_reject}")
        require_weight(self, "reject_weight", "outlier_weight")
        require_at_least_one(self, "batch_size", "background_batch_size")

    @property
    def needs_background(self) -> bool:
        """Whether an arm other than msp is trained."""
        return set(self.arms) != {"msp"}

    def build(self, model: ModelConfig, *, task: DetectionTask, seed: int) -> "Reject":
        """Build the method with these hyper-parameters; see `Reject`."""
        return Reject(self, model=model, task=task, seed=seed)

    @classmethod
    def embedded(cls) -> "RejectConfig":
        """Return small batches and steps: an epoch of the embedded digits has few large batches."""
        return cls(
            batch_size=32,
            background_batch_size=160,
            pretrain=Schedule(epochs=50, learning_rate=0.1, decay="cosine"),
            finetune=Schedule(epochs=25, learning_rate=0.01, decay="cosine"),
        )

    @classmethod
    def presets(cls) -> dict[PresetName, Preset]:
        """Return presets with the paper's network, WRN-40-2; for SVHN it is WRN-16-2."""
        paper = replace(super().presets()["paper"], model=ModelConfig(name="wrn-40-2", dropout=0.3))
        return {**super().presets(), "paper": paper}


class RejectObjective:
    """`RejectClassLoss` with random pseudo-labels, the same on every device.

    Args:
        loss: Called with logits, labels and importance.
        generator: RNG of the pseudo-labels, on the CPU; used by this objective alone from here on.
    """

    def __init__(self, loss: RejectClassLoss, generator: torch.Generator) -> None:
        self.loss = loss
        self._generator = generator

    def __call__(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """Compute the loss of the network's logits."""
        # Drawn on the CPU: a GPU's generator would give other pseudo-labels.
        uniform01 = torch.rand(len(batch.labels), generator=self._generator).to(batch.labels.device)
        return self.loss.with_per_sample(network(batch.images), batch.labels, batch.importance, uniform01=uniform01)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the RNG of the pseudo-labels."""
        return {"generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state of `state_dict`."""
        self._generator.set_state(state["generator"])


class Reject(Method):
    """Two steps (algorithm 1): train on the K classes, then with background images, an arm for each way of using them.

    Every arm starts from the same network, trained on the K classes alone ("in any fashion and duration"), and takes
    the same number of steps over the same in-distribution batches. Arm reject gets k freshly drawn outputs in addition
    when its second step begins; the paper can also be read as having them, unused, from the start. Images
    are classified by the first K logits.

    Raises:
        ValueError: If the network is unknown.
    """

    config: RejectConfig

    def setup(self) -> None:
        """Decide the number of reject classes."""
        self.num_reject = self.config.num_reject or (10 if self.task.num_classes >= MANY_CLASSES else 5)

    def build_arms(self) -> tuple[Arm, ...]:
        """Return the configured arms, that of the reject classes once for each score."""
        return tuple(row for arm in self.config.arms for row in self._rows(arm))

    def build_stages(self) -> tuple[Stage, ...]:
        """Return the common first step, and a second step for each arm."""
        return (self._pretrain(), *(self._finetune(arm) for arm in self.config.arms))

    def background_index(self, arm: str) -> Tensor:
        """Return the background images of an arm: all, or none for the baseline."""
        none = super().background_index(arm)
        return none if arm == "msp" else torch.arange(len(self.task.background))

    def _rows(self, arm: ArmName) -> tuple[Arm, ...]:
        """Return one row for a baseline, or one for each score of the reject classes."""
        if arm != "reject":
            label = {"msp": "Baseline", "oe": "OE"}[arm]
            return (Arm(name=arm, label=label, stage=arm, scorer=by_logits(max_softmax_score)),)
        return tuple(
            Arm(
                name="reject" if score == "sum" else f"reject-{score}",
                label="Reject" if score == "sum" else f"Reject, {score}",
                stage="reject",
                scorer=reject_scorer(score, self.num_reject, num_classes=self.task.num_classes, seed=self.seed),
            )
            for score in self.config.score
        )

    def _with_reject_classes(self) -> Classifier:
        model = self.build_classifier()
        model.head = nn.Linear(model.feature_dim, self.task.num_classes + self.num_reject)
        initialize(model.head, named_generator(self.seed, "initial head"))
        return model

    def _add_reject_classes(self, model: Classifier, weights: Weights, embed: Embed) -> None:
        """Take over the pre-trained network, and keep the reject classes as they were drawn."""
        classes = self.task.num_classes
        merged = {name: value.clone() for name, value in model.state_dict().items()}
        for name, value in weights.items():
            if name.startswith("head."):
                merged[name][:classes] = value
            else:
                merged[name] = value
        model.load_state_dict(merged)

    def _objective(self, arm: ArmName) -> Callable[[], Objective]:
        config = self.config
        if arm == "reject":
            loss = RejectClassLoss(self.num_reject, weight=config.reject_weight)
            return lambda: RejectObjective(loss, named_generator(self.seed, "pseudo-labels"))
        weight = config.outlier_weight if arm == "oe" else 0.0
        return lambda: LogitObjective(OutlierExposureLoss(weight=weight))

    def _pretrain(self) -> ImageStage:
        return ImageStage(
            name="pretrain",
            rng_name="pretrain",
            schedule=self.config.pretrain,
            build_model=self.build_classifier,
            objective=self._objective("msp"),
            batch_size=self.config.batch_size,
        )

    def _finetune(self, arm: ArmName) -> ImageStage:
        def background(context: StageContext) -> SubsetBackground:
            return SubsetBackground(
                torch.arange(len(self.task.background)),
                batch_size=self.config.background_batch_size,
                generator=named_generator(self.seed, "background"),
            )

        return ImageStage(
            name=arm,
            rng_name="arms",
            schedule=self.config.finetune,
            build_model=self._with_reject_classes if arm == "reject" else self.build_classifier,
            objective=self._objective(arm),
            batch_size=self.config.batch_size,
            start_from="pretrain",
            take_over=self._add_reject_classes if arm == "reject" else load_all,
            background=None if arm == "msp" else background,
            batch_norm=self.config.batch_norm,
        )
