"""Outlier exposure (https://arxiv.org/abs/1812.04606) and other losses: fine-tuning with parts of the background."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from fastood.common.config_checks import require_at_least_one, require_choice
from fastood.common.seeding import named_generator
from fastood.data import DetectionTask
from fastood.losses import OutlierExposureLoss
from fastood.models import Classifier, ModelConfig
from fastood.models.classifier import initialize
from fastood.samplers import BackgroundPool, ShardedBackgroundPool
from fastood.train.arm import Arm
from fastood.train.engine.background import SubsetBackground
from fastood.train.engine.failure import StageFailedError
from fastood.train.engine.image_stage import ImageStage, NormMode
from fastood.train.engine.objective import LogitObjective
from fastood.train.engine.schedule import Schedule
from fastood.train.engine.stage import Stage, StageContext
from fastood.train.method import Method, MethodConfig
from fastood.train.methods.background_part import (
    BackgroundPart,
    full_part,
    on_device,
    owned_slice,
    random_part,
    selected_part,
)
from fastood.train.methods.outlier_losses import OutlierLossConfig
from fastood.train.methods.pool_weights import require_same_background

BackgroundName = Literal["none", "random", "resampled", "full"]


@dataclass(frozen=True, kw_only=True)
class ExposureConfig(MethodConfig):
    """Fine-tuning of a network with an outlier loss, once for each configured part of the background."""

    divides_background: ClassVar[bool] = True

    backgrounds: tuple[BackgroundName, ...] = ("none", "full")
    """Parts of the background to train with, an arm each. none: no background image, for as many steps; random: each
    image with probability γ; resampled: by learnt weights, from the file `pool_weights`; full: all."""
    sample_rate: float = 0.1
    """Sample rate γ: fraction of the background that the random and the resampled arm keep, in (0, 1].
    Li & Vasconcelos 2020 use 0.1 in their tables, and 0.01 as well in section 5.4."""
    pool_weights: Path | None = None
    """Learnt weights: pool.safetensors of a run of `resample` on the same background in the same order, to transfer to
    another network, loss or in-distribution set (Li & Vasconcelos 2020, section 5.5)."""
    loss: OutlierLossConfig = field(default_factory=OutlierLossConfig)
    """The outlier loss of the fine-tuning."""
    batch_size: int = 128
    """In-distribution images in a batch."""
    background_batch_size: int = 128
    """Background images in a batch, in addition."""
    pretrain: Schedule = field(default_factory=lambda: Schedule(epochs=100, learning_rate=0.1))
    """Training on the in-distribution images alone, from which every arm starts."""
    finetune: Schedule = field(default_factory=lambda: Schedule(epochs=50, learning_rate=0.001))
    """Training with background images, the same for every arm."""
    batch_norm: NormMode = "eval"
    """BatchNorm after pre-training, in every arm. eval: keep the in-distribution statistics; train: learn those of the
    arm's batches."""
    dropout: bool = False
    """Whether dropout is active after pre-training, in every arm."""

    def __post_init__(self) -> None:
        if not 0 < self.sample_rate <= 1:
            raise ValueError(f"sample_rate (γ) must be in (0, 1], got {self.sample_rate}")
        require_choice(self, backgrounds=BackgroundName, batch_norm=NormMode)
        require_at_least_one(self, "batch_size", "background_batch_size")

    @property
    def needs_background(self) -> bool:
        """Whether an arm other than none is trained."""
        return set(self.backgrounds) != {"none"}

    def build(self, model: ModelConfig, *, task: DetectionTask, seed: int) -> "Exposure":
        """Build the method with these hyper-parameters; see `Exposure`."""
        return Exposure(self, model=model, task=task, seed=seed)


@dataclass(frozen=True, kw_only=True)
class OEConfig(ExposureConfig):
    """Outlier exposure."""

    name: ClassVar[str] = "oe"
    summary: ClassVar[str] = "outlier exposure: background towards the uniform distribution (Hendrycks 2019)"


@dataclass(frozen=True, kw_only=True)
class EntropyConfig(ExposureConfig):
    """Entropy maximisation."""

    name: ClassVar[str] = "entropy"
    summary: ClassVar[str] = "background towards high entropy (Li & Vasconcelos 2020, section 5.4)"
    loss: OutlierLossConfig = field(default_factory=lambda: OutlierLossConfig(kind="entropy"))


@dataclass(frozen=True, kw_only=True)
class EnergyConfig(ExposureConfig):
    """Energy training."""

    name: ClassVar[str] = "energy"
    summary: ClassVar[str] = "margins between the energies of in-distribution and background (Liu 2020)"
    loss: OutlierLossConfig = field(default_factory=lambda: OutlierLossConfig(kind="energy"))


@dataclass(frozen=True, kw_only=True)
class ObjectosphereConfig(ExposureConfig):
    """Objectosphere."""

    name: ClassVar[str] = "objectosphere"
    summary: ClassVar[str] = "short features for background, long ones for in-distribution (Dhamija 2018)"
    loss: OutlierLossConfig = field(default_factory=lambda: OutlierLossConfig(kind="objectosphere"))


class Exposure(Method):
    """Pre-train, then fine-tune one arm for each part of the background.

    All arms start from the same pre-trained weights and take the same number of steps over the same in-distribution
    batches; only the background differs. Arm none is fine-tuned, too, without background, so that the
    numbers of steps match.

    Raises:
        FileNotFoundError: If the file of weights does not exist.
        ValueError: If the network is unknown, γ of the background is less than one image, the random arm draws none,
            or the weights are missing or of another background.
    """

    config: ExposureConfig

    def setup(self) -> None:
        """Check γ and open the weights of the resampled arm."""
        background_size, sample_rate = self.task.background_size, self.config.sample_rate
        if {"random", "resampled"} & set(self.config.backgrounds) and sample_rate * background_size < 1:
            raise ValueError(
                f"sample_rate (γ) {sample_rate} of {background_size} background images is less than one image"
            )
        self._check_pool_weights()
        if "random" in self.config.backgrounds:
            self._require_images("random", self._part("random"))

    def build_arms(self) -> tuple[Arm, ...]:
        """Return one arm for each part of the background."""
        percent = f"γ = {100 * self.config.sample_rate:g} %"
        labels: dict[BackgroundName, str] = {
            "none": "None, γ = 0",
            "random": f"Random, {percent}",
            "resampled": f"Resampled, {percent}",
            "full": "Full, γ = 100 %",
        }
        if not {"random", "resampled"} & set(self.config.backgrounds):
            # Labels need γ only if the arms differ in it.
            labels |= {"none": "No background", "full": "All background"}
        return tuple(
            Arm(name=part, label=labels[part], stage=f"finetune-{part}", scorer=self.config.loss.scorer())
            for part in self.config.backgrounds
        )

    def build_stages(self) -> tuple[Stage, ...]:
        """Return the common pre-training, the learning of the pool's weights, and a fine-tuning for each arm."""
        finetunes = (self._finetune(arm.name) for arm in self.arms)
        return (self._pretrain(), *self._learning_stages(), *finetunes)

    @property
    def baseline(self) -> str | None:
        """The random arm, else the first one."""
        return "random" if "random" in self.config.backgrounds else super().baseline

    def build_classifier(self) -> Classifier:
        """Build the configured network with the run's initial weights; without a bias if the loss needs none."""
        model = super().build_classifier()
        if not self.config.loss.bias:
            model.head = nn.Linear(model.feature_dim, self.task.num_classes, bias=False)
            initialize(model.head, named_generator(self.seed, "initial head"))
        return model

    def background_index(self, arm: str) -> Tensor:
        """Return the background images of an arm: none, each with probability γ, by learnt weight (eq. 20), or all.

        If the processes divide the background, the images are those of this process's slice; all must call it.
        """
        none = super().background_index(arm)
        if arm == "none":
            return none
        index = self._part(arm).index
        return torch.arange(index.start, index.stop) if isinstance(index, range) else index

    def background_count(self, arm: str) -> int:
        """Return the number of images of `background_index`, over all processes."""
        super().background_index(arm)
        return 0 if arm == "none" else self._part(arm).total

    def _part(self, arm: str) -> BackgroundPart:
        """Return the images of an arm other than none; every process must call it."""
        generator = named_generator(self.seed, "select", arm)
        if arm == "full":
            return full_part(self.task)
        if arm == "random":
            return random_part(self.task, self.config.sample_rate, generator=generator)
        pool = self._selecting_pool()
        generator = on_device(generator, pool.device)
        return selected_part(self.task, pool.select(self.config.sample_rate, generator=generator))

    def _selecting_pool(self) -> BackgroundPool | ShardedBackgroundPool:
        """Return the pool of the resampled arm, here with the weights of `pool_weights`, on the CPU."""
        assert self.config.pool_weights is not None
        make = BackgroundPool if owned_slice(self.task) is None else ShardedBackgroundPool
        pool = make(self.task.background_size)
        pool.load_state_dict(load_file(self.config.pool_weights))
        return pool

    def _check_pool_weights(self) -> None:
        """Check that the weights of the resampled arm, if there is one, belong to the background."""
        path = self.config.pool_weights
        if path is None:
            if "resampled" in self.config.backgrounds:
                raise ValueError(
                    "backgrounds with resampled needs pool_weights, pool.safetensors of a run of resample, got none"
                )
            return
        try:
            with safe_open(path, framework="pt") as file:
                size = file.get_slice("omega").get_shape()[0] if "omega" in file.keys() else None  # noqa: SIM118
        except SafetensorError as error:
            raise ValueError(f"pool_weights must be pool.safetensors of a run, got {path}: {error}") from None
        background_size = self.task.background_size
        if size != background_size:
            content = "no weights" if size is None else f"of {size} images"
            raise ValueError(f"pool_weights must be of the {background_size} background images, got {path}: {content}")
        require_same_background(path, self.task.background_digest())

    def _learning_stages(self) -> tuple[ImageStage, ...]:
        """Return the stages between pre-training and fine-tuning."""
        return ()

    def _require_images(self, arm: str, part: BackgroundPart) -> BackgroundPart:
        """Check that an arm has at least one image: independent draws can all fail if γ N is small."""
        if part.total == 0:
            raise ValueError(
                f"sample_rate (γ) {self.config.sample_rate} of {self.task.background_size} background images "
                f"left the {arm} arm none with seed {self.seed}; it must be larger"
            )
        return part

    def _pretrain(self) -> ImageStage:
        return ImageStage(
            name="pretrain",
            rng_name="pretrain",
            schedule=self.config.pretrain,
            build_model=self.build_classifier,
            objective=lambda: LogitObjective(OutlierExposureLoss(weight=0.0, reduction="mean")),
            batch_size=self.config.batch_size,
        )

    def _finetune(self, arm: str) -> ImageStage:
        def background(context: StageContext) -> SubsetBackground:
            try:
                part = self._require_images(arm, self._part(arm))
            except ValueError as error:
                raise StageFailedError(str(error)) from None
            return SubsetBackground(
                part.index,
                batch_size=self.config.background_batch_size,
                generator=named_generator(self.seed, "finetune", arm, "background"),
                owned=part.owned,
                counts=part.counts,
                rank=part.rank,
            )

        return ImageStage(
            name=f"finetune-{arm}",
            rng_name="finetune",
            schedule=self.config.finetune,
            build_model=self.build_classifier,
            objective=self.config.loss.objective,
            batch_size=self.config.batch_size,
            start_from="pretrain",
            needs=tuple(stage.name for stage in self._learning_stages()) if arm == "resampled" else (),
            background=None if arm == "none" else background,
            batch_norm=self.config.batch_norm,
            dropout=self.config.dropout,
        )
