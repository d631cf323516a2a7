"""Base classes of training methods: a config of hyper-parameters, and the stages and arms that it defines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal, Self

import torch
from torch import Tensor

from fastood.common.config_checks import require_arm
from fastood.common.seeding import named_generator
from fastood.data import Augment, DataConfig, DetectionTask
from fastood.models import Classifier, ModelConfig, build_model
from fastood.samplers import BackgroundPool, ShardedBackgroundPool
from fastood.train.arm import Arm
from fastood.train.engine.stage import Stage

PresetName = Literal["embedded", "paper"]


@dataclass(frozen=True, kw_only=True)
class Preset:
    """Defaults of the command line: a method's hyper-parameters, with images and a network for it."""

    method: MethodConfig
    data: DataConfig = field(default_factory=DataConfig)
    augment: Augment = field(default_factory=Augment)
    model: ModelConfig = field(default_factory=ModelConfig)


@dataclass(frozen=True, kw_only=True)
class MethodConfig(ABC):
    """Hyper-parameters of a method; the defaults are those of its paper, where the paper states them."""

    name: ClassVar[str]
    """First word of the command line."""
    summary: ClassVar[str]
    """One line of help: the method, its authors and the year."""
    divides_background: ClassVar[bool] = False
    """Flag: several processes divide the background images, so that each holds a slice of them in memory."""
    ignores_background: ClassVar[bool] = False
    """Flag: no arm of the method ever trains with background images."""

    @property
    def needs_background(self) -> bool:
        """Whether an arm trains with background images, so that data.background must name some."""
        return not self.ignores_background

    @abstractmethod
    def build(self, model: ModelConfig, *, task: DetectionTask, seed: int) -> Method:
        """Build the method with these hyper-parameters.

        Args:
            model: The network.
            task: Images to train on.
            seed: Seed of the run.

        Raises:
            ValueError: If network, images and hyper-parameters do not fit together.
        """

    @classmethod
    def embedded(cls) -> Self:
        """Return hyper-parameters for the embedded digits; the paper's by default."""
        return cls()

    @classmethod
    def presets(cls) -> dict[PresetName, Preset]:
        """Return the presets: embedded, about a minute on two CPU cores, and paper, with its network and image size."""
        return {
            "embedded": Preset(method=cls.embedded(), model=ModelConfig(name="small-cnn")),
            "paper": Preset(method=cls(), data=DataConfig(image_size=32), augment=Augment(flip=True)),
        }


@dataclass(frozen=True, kw_only=True, eq=False)
class LearntPool:
    """Background weights that a method learns."""

    pool: BackgroundPool | ShardedBackgroundPool
    """Final once every stage has run."""
    effective_sample_sizes: Tensor
    """Effective sample size of the pool after each of its T ascent steps so far, float64 `[T]`."""


class Method(ABC):
    """Base class of ways to train and score; loop, checkpoints and evaluation are the same for all methods.

    A subclass defines the stages to train (`build_stages`) and the arms to evaluate (`build_arms`). It may override
    `setup`, `baseline`, `learnt_pool` and `background_index`.

    Args:
        config: Hyper-parameters.
        model: The network.
        task: Images to train on.
        seed: Seed of the run.

    Attributes:
        config: Hyper-parameters.
        model: The network.
        task: Images to train on.
        seed: Seed of the run.
        arms: Rows of the results, in table order.
        stages: Parts of the training, in the order in which they run.

    Raises:
        ValueError: If the network is unknown, or network, images and hyper-parameters do not fit together.
    """

    def __init__(self, config: MethodConfig, *, model: ModelConfig, task: DetectionTask, seed: int) -> None:
        self.config = config
        self.model = model
        self.task = task
        self.seed = seed
        self.setup()
        self.arms: tuple[Arm, ...] = tuple(self.build_arms())
        self.stages: tuple[Stage, ...] = tuple(self.build_stages())
        # A network that cannot be built is an error now, not hours later when its stage begins.
        for stage in self.stages:
            stage.build_model()

    def setup(self) -> None:  # noqa: B027 - a hook that most methods do without
        """Check the images and prepare shared parts of arms and stages; called before either is built."""

    @abstractmethod
    def build_arms(self) -> Sequence[Arm]:
        """Return the rows of the results, in table order."""

    @abstractmethod
    def build_stages(self) -> Sequence[Stage]:
        """Return the parts of the training, in the order in which they run; `arms` are built before."""

    @property
    def name(self) -> str:
        """Name in metrics.json."""
        return self.config.name

    @property
    def baseline(self) -> str | None:
        """Arm that the others are compared with, by default the first; None if each is evaluated on other images."""
        return self.arms[0].name

    @property
    def learnt_arm(self) -> str | None:
        """Arm that trains on the images that learnt background weights select; None without such weights."""
        return None

    @property
    def learnt_pool(self) -> LearntPool | None:
        """Background weights, for a method that learns them; None otherwise."""
        return None

    def background_index(self, arm: str) -> Tensor:
        """Return the background images that an arm trains on, by default none.

        Args:
            arm: Name of the arm.

        Returns:
            Indices int64 `[n]` into the whole background, the same at each call after the stages have run. If the
            images are divided among processes, those of this process.

        Raises:
            ValueError: If there is no arm of this name.
        """
        require_arm(arm, [row.name for row in self.arms])
        return torch.empty(0, dtype=torch.int64)

    def background_count(self, arm: str) -> int:
        """Return the number of background images that an arm trains on, over all processes; every process must call it.

        Args:
            arm: Name of the arm.

        Raises:
            ValueError: If there is no arm of this name.
        """
        return len(self.background_index(arm))

    def build_classifier(self) -> Classifier:
        """Build the configured network with the run's initial weights, the same at each call and for every method."""
        images = self.task.id_train.images
        return build_model(
            self.model.name,
            num_classes=self.task.num_classes,
            in_channels=images.shape[1],
            image_size=images.shape[2],
            dropout=self.model.dropout_rate,
            generator=named_generator(self.seed, "initial weights"),
        )
