"""Background data resampling: learn which background images matter, and train with those.

Li & Vasconcelos, CVPR 2020:
https://openaccess.thecvf.com/content_CVPR_2020/html/Li_Background_Data_Resampling_for_Outlier-Aware_Classification_CVPR_2020_paper.html
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

from fastood.common.config_checks import require_choice, require_weight
from fastood.common.seeding import named_generator
from fastood.data import DetectionTask
from fastood.losses import OutlierExposureLoss
from fastood.models import ModelConfig
from fastood.samplers import BackgroundPool, ShardedBackgroundPool
from fastood.samplers.state import AscentMode
from fastood.train.engine.adversarial import AdversarialBackground
from fastood.train.engine.image_stage import ImageStage
from fastood.train.engine.objective import LogitObjective
from fastood.train.engine.schedule import Schedule
from fastood.train.engine.stage import StageContext
from fastood.train.engine.stream import EpochStream
from fastood.train.method import LearntPool
from fastood.train.methods.background_part import on_device, owned_slice
from fastood.train.methods.outlier_exposure import BackgroundName, Exposure, ExposureConfig

SamplerRefresh = Literal["step", "epoch"]
Ascent = Literal["auto", "exact", "sparse"]
SPARSE_FROM = 1_000_000
"""Number of background images from which `ascent: auto` is sparse."""


@dataclass(frozen=True, kw_only=True)
class ResampleConfig(ExposureConfig):
    """Background resampling; the defaults are the paper's.

    Of the inherited fields: `finetune` has the paper's learning rate of 0.001, not the 0.1 of the authors' train_bg.py;
    small steps keep the pre-trained features. The paper does not mention `batch_norm`; "eval" is the authors' code, and
    keeps statistics of background images out of the test. `dropout` is off there, too, as their network is in eval
    mode.

    Example:
        >>> ResampleConfig(sample_rate=0)
        Traceback (most recent call last):
        ...
        ValueError: sample_rate (γ) must be in (0, 1], got 0
    """

    name: ClassVar[str] = "resample"
    summary: ClassVar[str] = (
        "background resampling (Li & Vasconcelos 2020), next to no, a random part of, and the full background"
    )

    backgrounds: tuple[BackgroundName, ...] = ("none", "random", "resampled", "full")
    """Parts of the background to train with, an arm each. none: no image; random: each with probability γ; resampled: a
    share γ by learnt weights; full: all."""
    outlier_weight: float = 0.5
    """Weight α of the outlier loss of the reweighting, which is the cross-entropy to the uniform distribution (eq. 5),
    independent of the loss of the fine-tuning."""
    reweight: Schedule = field(default_factory=lambda: Schedule(epochs=50, learning_rate=0.001, decay_every=None))
    """Adversarial reweighting. The paper does not state its length; 50 epochs is the command in the authors' readme.
    The learning rate η_θ is the paper's, held constant; the authors' script decays from 0.1 every 30 epochs."""
    epsilon: float = 0.5
    """Exponent ε in [0, 1): images are drawn in proportion to w^ε, and their losses have the weights w^(1-ε)."""
    initial_weight: float = 1.0
    """Weight of every background image at the start: the paper's 1, not the log 2 of the authors' code (ω = 0).
    Draws and losses depend on ratios of weights alone; a larger start makes the steps relatively smaller."""
    weight_learning_rate: float = 100.0
    """Learning rate η_w of the weights, on l_out as in the paper's algorithm.
    The authors' script applies its 100 to α · l_out, which is 50 here."""
    weight_momentum: float = 0.9
    """Momentum of the weights' steps, in [0, 1): that of the authors' code; the paper names none."""
    sampler_refresh: SamplerRefresh = "step"
    """When draws use new weights. step: at every step, as in the paper's algorithm; epoch: as in the authors' code,
    which draws a whole epoch's indices from the weights at its start. Importance always uses the current weights."""

    ascent: Ascent = "auto"
    """Weights that a step changes. exact: all, as in the paper, in a pass over the pool. sparse: those of the drawn
    images, in a time that does not depend on the size of the pool. It differs in two ways. An image that is not drawn
    keeps its weight: its changes by the sums over all weights are left out, so that weights spread less. A drawn image,
    which may not be drawn again for thousands of steps, takes at once the steps that momentum would add later: the step
    size is η_w / (1 - weight_momentum), without momentum. auto: exact for fewer than 1,000,000 background images, else
    sparse."""

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice(self, sampler_refresh=SamplerRefresh, ascent=Ascent)
        require_weight(self, "outlier_weight")
        if self.pool_weights is not None:
            raise ValueError(
                f"pool_weights must not be given to resample, which learns them; oe, entropy, energy and objectosphere "
                f"take them, got {self.pool_weights}"
            )
        if "resampled" not in self.backgrounds:
            raise ValueError(f"backgrounds of resample must include resampled, got {', '.join(self.backgrounds)}")
        if not 0 <= self.epsilon < 1:
            raise ValueError(f"epsilon (ε) must be in [0, 1), got {self.epsilon}")
        if not self.initial_weight > 0:
            raise ValueError(f"initial_weight must be above 0, got {self.initial_weight}")
        if not 0 < self.weight_learning_rate < math.inf:
            raise ValueError(f"weight_learning_rate (η_w) must be finite and above 0, got {self.weight_learning_rate}")
        if not 0 <= self.weight_momentum < 1:
            raise ValueError(f"weight_momentum must be in [0, 1), got {self.weight_momentum}")

    def build(self, model: ModelConfig, *, task: DetectionTask, seed: int) -> "Resample":
        """Build the method with these hyper-parameters; see `Resample`."""
        return Resample(self, model=model, task=task, seed=seed)

    @classmethod
    def embedded(cls) -> "ResampleConfig":
        """Return the paper's schedule with a longer reweighting, which draws each of 50,000 images about twice.

        50 epochs over CIFAR-10 draw each image of ILSVRC as often.
        """
        return cls(sample_rate=0.01, reweight=Schedule(epochs=100, learning_rate=0.001, decay_every=None))


class Resample(Exposure):
    """Pre-train, reweight the background adversarially, select γ of it, fine-tune; next to the paper's other arms.

    The four arms (none, random γ, resampled γ, full) start from the same pre-trained weights and take the same
    number of steps over the same in-distribution batches; only the background differs. Arm none is
    fine-tuned, too, without background, so that the numbers of steps match; the paper does not say.

    Raises:
        ValueError: If the network is unknown, γ of the background is less than one image, or the random arm draws none.
    """

    config: ResampleConfig

    def setup(self) -> None:
        """Check γ; the stages make the pool, on their device."""
        self._pool: BackgroundPool | ShardedBackgroundPool | None = None
        self._adversary: AdversarialBackground | None = None
        super().setup()

    def open_pool(self, device: torch.device | str = "cpu") -> BackgroundPool | ShardedBackgroundPool:
        """Return the pool; the first call makes it with equal weights on `device`, and the reweighting learns them.

        If the processes divide the background, they divide the pool as well, and each makes its slice.
        """
        if self._pool is None:
            make = BackgroundPool if owned_slice(self.task) is None else ShardedBackgroundPool
            self._pool = make(
                self.task.background_size,
                epsilon=self.config.epsilon,
                momentum=self.config.weight_momentum if self.ascent_mode == "exact" else 0.0,
                initial_weight=self.config.initial_weight,
                device=device,
            )
        return self._pool

    @property
    def pool(self) -> BackgroundPool | ShardedBackgroundPool:
        """Pool of the run, which this makes on the CPU unless a stage has made it on its device."""
        return self.open_pool()

    @property
    def learnt_arm(self) -> str:
        """The resampled arm."""
        return "resampled"

    @property
    def learnt_pool(self) -> LearntPool:
        """Pool, and the effective sample size of its weights after each step of the reweighting."""
        none = torch.empty(0, dtype=torch.float64)
        return LearntPool(
            pool=self.pool,
            effective_sample_sizes=none if self._adversary is None else self._adversary.effective_sample_sizes,
        )

    @property
    def ascent_mode(self) -> AscentMode:
        """Mode of the ascent, "exact" or "sparse", with "auto" resolved by the size of the whole background."""
        if self.config.ascent != "auto":
            return self.config.ascent
        return "exact" if self.task.background_size < SPARSE_FROM else "sparse"

    @property
    def weight_learning_rate(self) -> float:
        """Step size of the weights: η_w, or with sparse steps η_w / (1 - momentum), the sum of a step's momentum."""
        momentum = self.config.weight_momentum if self.ascent_mode == "sparse" else 0.0
        return self.config.weight_learning_rate / (1 - momentum)

    def _check_pool_weights(self) -> None:
        """Accept that there is no file: the weights are learnt."""

    def _selecting_pool(self) -> BackgroundPool | ShardedBackgroundPool:
        return self.pool

    def _learning_stages(self) -> tuple[ImageStage, ...]:
        order = EpochStream(len(self.task.id_train), self.config.batch_size, torch.Generator())

        def background(context: StageContext) -> AdversarialBackground:
            device = context.fabric.device
            pool, mode = self.open_pool(device), self.ascent_mode
            reason = "asked for" if self.config.ascent != "auto" else f"{len(pool):,} background images"
            context.fabric.print(f"ascent of the weights: {mode} ({reason}), pool on {device}", flush=True)
            self._adversary = AdversarialBackground(
                pool,
                batch_size=self.config.background_batch_size,
                learning_rate=self.weight_learning_rate,
                generator=on_device(named_generator(self.seed, "reweight", "background"), pool.device),
                batches_ahead=order.batches_per_epoch if self.config.sampler_refresh == "epoch" else 1,
                mode=mode,
            )
            return self._adversary

        # The importance r_i of supplementary eq. 12 averages to 1 by itself: a plain mean keeps eq. 10 unbiased.
        loss = OutlierExposureLoss(weight=self.config.outlier_weight, reduction="mean")
        stage = ImageStage(
            name="reweight",
            rng_name="reweight",
            schedule=self.config.reweight,
            build_model=self.build_classifier,
            objective=lambda: LogitObjective(loss),
            batch_size=self.config.batch_size,
            start_from="pretrain",
            background=background,
            batch_norm=self.config.batch_norm,
            dropout=self.config.dropout,
        )
        return (stage,)
