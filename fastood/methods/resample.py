"""Background data resampling (Li & Vasconcelos, CVPR 2020): learn which background images matter, keep those."""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from torch import Tensor

from fastood.data import DetectionTask
from fastood.data.seeding import named_generator
from fastood.losses import OutlierExposureLoss
from fastood.methods.initial_model import initial_model
from fastood.models import Classifier, ModelConfig
from fastood.samplers import BackgroundPool
from fastood.scores import max_softmax_score
from fastood.training.background import AdversarialBackground, SubsetBackground
from fastood.training.stage import Arm, LearntPool, NormMode, Schedule, Stage
from fastood.training.stream import EpochStream

SamplerRefresh = Literal["step", "epoch"]


@dataclass(frozen=True, kw_only=True)
class ResampleConfig:
    """Background resampling; the defaults are the paper's.

    Example:
        >>> ResampleConfig(sample_rate=0)
        Traceback (most recent call last):
        ...
        ValueError: sample_rate (γ) must be in (0, 1], got 0
    """

    sample_rate: float = 0.1
    """Sample rate γ: share of the background that the random and the resampled arm keep, in (0, 1].
    The paper's tables have 0.1, its section 5.4 also 0.01."""
    outlier_weight: float = 0.5
    """Weight α of the outlier loss beside the classification loss."""
    batch_size: int = 128
    """In-distribution images in a batch."""
    background_batch_size: int = 128
    """Background images beside them."""
    pretrain: Schedule = field(default_factory=lambda: Schedule(epochs=100, learning_rate=0.1))
    """Training on the in-distribution images alone, from which every arm starts."""
    reweight: Schedule = field(default_factory=lambda: Schedule(epochs=50, learning_rate=0.001, decay_every=None))
    """Adversarial reweighting. The paper does not say how long; 50 epochs is the command in the authors' readme.
    The step size η_θ is the paper's, held constant; the authors' script starts at 0.1 and divides every 30 epochs."""
    finetune: Schedule = field(default_factory=lambda: Schedule(epochs=50, learning_rate=0.001))
    """Training with background images, for every arm alike.
    The paper's 0.001, not the 0.1 of the authors' train_bg.py: small steps keep the pre-trained features."""
    epsilon: float = 0.5
    """Share ε of the weights' effect that the sampler takes, the loss taking the rest, in [0, 1)."""
    initial_weight: float = 1.0
    """Weight of every background image at the start: the paper's 1, not the log 2 of the authors' code (ω = 0).
    Draws and losses depend on ratios of weights alone; a larger start makes the steps smaller beside it."""
    weight_learning_rate: float = 100.0
    """Step size η_w of the weights, on l_out as in the paper's algorithm.
    The authors' script takes its 100 on α · l_out: 50 here."""
    weight_momentum: float = 0.9
    """Momentum of the weights' steps: the authors' code; the paper names none."""
    sampler_refresh: SamplerRefresh = "step"
    """When draws take up new weights: "step" as in the paper's algorithm, at every step; "epoch" as in the authors'
    code, which draws a whole epoch's indices from the weights at its start. Importance is always of the moment."""
    batch_norm: NormMode = "eval"
    """BatchNorm after pre-training, in every arm: "eval" keeps the in-distribution statistics, "train" learns those of
    what the arm sees. The paper is silent; "eval" is the authors' code, and spares test images the statistics of half
    a background."""
    dropout: bool = False
    """Dropout after pre-training, in every arm. Off in the authors' code, whose network is in eval mode there."""

    def __post_init__(self) -> None:
        if not 0 < self.sample_rate <= 1:
            raise ValueError(f"sample_rate (γ) must be in (0, 1], got {self.sample_rate}")
        if not 0 <= self.outlier_weight < math.inf:
            raise ValueError(f"outlier_weight (α) must be finite and at least 0, got {self.outlier_weight}")
        if not 0 <= self.epsilon < 1:
            raise ValueError(f"epsilon (ε) must be in [0, 1), got {self.epsilon}")
        if not self.initial_weight > 0:
            raise ValueError(f"initial_weight must be above 0, got {self.initial_weight}")
        if not 0 < self.weight_learning_rate < math.inf:
            raise ValueError(f"weight_learning_rate (η_w) must be finite and above 0, got {self.weight_learning_rate}")
        if not 0 <= self.weight_momentum < 1:
            raise ValueError(f"weight_momentum must be in [0, 1), got {self.weight_momentum}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {self.batch_size}")
        if self.background_batch_size < 1:
            raise ValueError(f"background_batch_size must be at least 1, got {self.background_batch_size}")
        if self.sampler_refresh not in get_args(SamplerRefresh):
            raise ValueError(f"sampler_refresh must be one of step, epoch, got {self.sampler_refresh!r}")
        if self.batch_norm not in get_args(NormMode):
            raise ValueError(f"batch_norm must be one of eval, train, got {self.batch_norm!r}")

    def build(self, model: ModelConfig, *, task: DetectionTask, seed: int) -> "Resample":
        """The method with these hyper-parameters; see `Resample`."""
        return Resample(self, model=model, task=task, seed=seed)


class Resample:
    """Pre-train, reweight the background adversarially, select γ of it, fine-tune; beside the paper's other arms.

    The four arms (none, random γ, resampled γ, full) start from the same pre-trained weights and take the same
    number of steps over the same in-distribution batches; only the background differs. None is fine-tuned too,
    without background, so that steps match; the paper does not say.

    Args:
        config: Hyper-parameters.
        model: The network.
        task: What to train on.
        seed: Seed of the run.

    Raises:
        ValueError: If the network is unknown, γ of the background is less than one image, or the random arm draws none.
    """

    name = "resample"
    baseline = "random"

    def __init__(self, config: ResampleConfig, *, model: ModelConfig, task: DetectionTask, seed: int) -> None:
        background_size = len(task.background)
        if config.sample_rate * background_size < 1:
            raise ValueError(
                f"sample_rate (γ) {config.sample_rate} of {background_size} background images is less than one image"
            )
        self.config = config
        self.pool = BackgroundPool(
            background_size,
            epsilon=config.epsilon,
            momentum=config.weight_momentum,
            initial_weight=config.initial_weight,
        )
        self._adversary: AdversarialBackground | None = None
        self._model = model
        self._task = task
        self._seed = seed
        percent = f"γ = {100 * config.sample_rate:g} %"
        labels = {
            "none": "None, γ = 0",
            "random": f"Random, {percent}",
            "resampled": f"Resampled, {percent}",
            "full": "Full, γ = 100 %",
        }
        self.arms = tuple(
            Arm(name=arm, label=label, stage=f"finetune-{arm}", score=max_softmax_score)
            for arm, label in labels.items()
        )
        self.stages = (self._pretrain(), self._reweight(), *(self._finetune(arm.name) for arm in self.arms))
        self.build_model()
        self._require_background("random")

    def build_model(self) -> Classifier:
        """The configured network with the run's initial weights."""
        return initial_model(self._model, self._task, seed=self._seed)

    @property
    def learnt_pool(self) -> LearntPool:
        """The pool, and how many images its weights amounted to after each step of the reweighting."""
        sizes = [] if self._adversary is None else self._adversary.effective_sample_sizes
        return LearntPool(
            pool=self.pool, arm="resampled", effective_sample_sizes=torch.tensor(sizes, dtype=torch.float64)
        )

    def background_index(self, arm: str) -> Tensor:
        """Background images of an arm: none, each with probability γ, by learnt weight (eq. 20), or all."""
        background_size = len(self._task.background)
        generator = named_generator(self._seed, "select", arm)
        if arm == "none":
            return torch.empty(0, dtype=torch.int64)
        if arm == "full":
            return torch.arange(background_size)
        if arm == "random":
            kept = torch.rand(background_size, generator=generator) < self.config.sample_rate
            return kept.nonzero().flatten()
        if arm == "resampled":
            return self.pool.select(self.config.sample_rate, generator=generator)
        raise ValueError(f"arm must be one of {', '.join(known.name for known in self.arms)}, got {arm!r}")

    def _require_background(self, arm: str) -> Tensor:
        """Background images of an arm that must have some: independent draws can all fail where γ N is small."""
        index = self.background_index(arm)
        if len(index) == 0:
            raise ValueError(
                f"sample_rate (γ) {self.config.sample_rate} of {len(self._task.background)} background images "
                f"left the {arm} arm none with seed {self._seed}; it must be larger"
            )
        return index

    def _loss(self) -> OutlierExposureLoss:
        # The importance r_i of supplementary eq. 12 averages to 1 by itself: a plain mean keeps eq. 10 unbiased.
        return OutlierExposureLoss(weight=self.config.outlier_weight, reduction="mean")

    def _pretrain(self) -> Stage:
        return Stage(
            name="pretrain",
            draws="pretrain",
            schedule=self.config.pretrain,
            build_model=self.build_model,
            loss=self._loss(),
            batch_size=self.config.batch_size,
        )

    def _reweight(self) -> Stage:
        order = EpochStream(len(self._task.id_train), self.config.batch_size, torch.Generator())

        def background() -> AdversarialBackground:
            self._adversary = AdversarialBackground(
                self.pool,
                batch_size=self.config.background_batch_size,
                learning_rate=self.config.weight_learning_rate,
                generator=named_generator(self._seed, "reweight", "background"),
                batches_ahead=order.batches_per_epoch if self.config.sampler_refresh == "epoch" else 1,
            )
            return self._adversary

        return Stage(
            name="reweight",
            draws="reweight",
            schedule=self.config.reweight,
            build_model=self.build_model,
            loss=self._loss(),
            batch_size=self.config.batch_size,
            start_from="pretrain",
            background=background,
            batch_norm=self.config.batch_norm,
            dropout=self.config.dropout,
        )

    def _finetune(self, arm: str) -> Stage:
        def background() -> SubsetBackground:
            return SubsetBackground(
                self._require_background(arm),
                batch_size=self.config.background_batch_size,
                generator=named_generator(self._seed, "finetune", arm, "background"),
            )

        return Stage(
            name=f"finetune-{arm}",
            draws="finetune",
            schedule=self.config.finetune,
            build_model=self.build_model,
            loss=self._loss(),
            batch_size=self.config.batch_size,
            start_from="pretrain",
            background=None if arm == "none" else background,
            batch_norm=self.config.batch_norm,
            dropout=self.config.dropout,
        )
