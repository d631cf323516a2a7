"""What a method is made of: stages that train, and arms that are judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from fastood.data import Augment, DetectionTask, ImageSet
from fastood.data.loaders import LoaderPlan
from fastood.samplers import BackgroundPool
from fastood.train.acceleration import CompileMode
from fastood.train.arm import Arm

if TYPE_CHECKING:
    from lightning.fabric import Fabric

RESIDENT = LoaderPlan(name="resident", prefetch_depth=0, reason="the default")

Weights = Mapping[str, Tensor]
"""Parameters and statistics of a network by name, as its state_dict has them."""
Embed = Callable[[Any, ImageSet], Tensor]
"""Features `[N, d]` float32 on the CPU that a `Classifier` gives images at test time."""


def load_all(model: nn.Module, weights: Weights, embed: Embed) -> None:
    """Begin with an earlier stage's weights as they are."""
    model.load_state_dict(weights)


@dataclass(frozen=True, kw_only=True, eq=False)
class StageContext:
    """What every stage of a run has in common."""

    task: DetectionTask
    """Images to train on."""
    augment: Augment
    """Turns uint8 images into network input."""
    seed: int
    """Seed of the run."""
    fabric: Fabric
    """Device, precision and group of processes."""
    precision: str = "32-true"
    """That of `fabric`, which does not tell."""
    loading: LoaderPlan = RESIDENT
    """How images get to the device; by default from its memory."""
    channels_last: bool = True
    """Memory layout of weights and activations."""
    compile: CompileMode = "none"
    """What `torch.compile` does to networks that train."""
    ema_decay: float | None = None
    """Decay of the running average of the weights that stages end with; None for the weights themselves."""


class StageRun(Protocol):
    """A stage in progress: everything that changes while it runs, and so everything that is saved."""

    name: str
    """Of the stage."""
    draws: str
    """Name of its random draws."""
    context: StageContext
    """What it has in common with the run's other stages."""
    step: int
    """Steps done."""
    total_steps: int
    """Steps until the end."""
    steps_per_epoch: int | None
    """Steps of a pass over the in-distribution images; None for a stage without epochs."""
    images_per_step: int
    """Images that a step trains on, of all processes; 0 for a stage that trains on none."""

    @property
    def learning_rate(self) -> float | None:
        """Step size of the last step; None where there is no single one."""
        ...

    def take_answers(self) -> tuple[int, int]:
        """Return right answers to this process's training images since the last call, and how many images."""
        ...

    def train_step(self) -> float:
        """One step.

        Returns:
            The loss.

        Raises:
            StageFailedError: If the loss is NaN or infinite, or cannot be computed; nothing has moved then.
        """
        ...

    def scalars(self) -> dict[str, float]:
        """What is worth a curve in TensorBoard beside the loss."""
        ...

    def require_finite_weights(self) -> None:
        """Raise `NonFiniteLossError` if a parameter or a statistic is NaN or infinite."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """All that a later process needs to go on exactly as this one would; the network's weights as "model"."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where `state_dict` was taken."""
        ...

    def close(self) -> None:
        """End the processes and threads that load images."""
        ...


class Stage(Protocol):
    """A part of a method's training, from weights to weights."""

    @property
    def name(self) -> str:
        """Name in checkpoints, progress bars and TensorBoard."""
        ...

    @property
    def draws(self) -> str:
        """Name of the random draws."""
        ...

    @property
    def start_from(self) -> str | None:
        """Earlier stage whose final weights this one begins with; None begins with the initial ones."""
        ...

    @property
    def needs(self) -> tuple[str, ...]:
        """Earlier stages that leave this one something beside weights, such as a pool that has learnt."""
        ...

    def build_model(self) -> nn.Module:
        """Makes the network with the run's initial weights, the same at each call."""
        ...

    def take_over(self, model: Any, weights: Weights, embed: Embed) -> None:
        """Puts the weights of `start_from` into the network."""
        ...

    def begin(self, model: Any, context: StageContext) -> StageRun:
        """Start with a network that already holds the weights that the stage begins with; it is trained in place."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class LearntPool:
    """Background weights that a method learns, and what is told of them."""

    pool: BackgroundPool
    """Final once every stage has run."""
    arm: str
    """Arm that trains on what the pool selects."""
    effective_sample_sizes: Tensor
    """Of the pool after each step that moved it so far, float64 `[T]`."""


class Method(Protocol):
    """A way of training and scoring; the loop, the checkpoints and the evaluation are the same for all."""

    @property
    def name(self) -> str:
        """Name in metrics.json."""
        ...

    @property
    def stages(self) -> tuple[Stage, ...]:
        """In the order in which they run."""
        ...

    @property
    def arms(self) -> tuple[Arm, ...]:
        """In table order."""
        ...

    @property
    def baseline(self) -> str | None:
        """Arm that the others are compared with; None if they are judged on images of their own."""
        ...

    @property
    def learnt_pool(self) -> LearntPool | None:
        """Background weights, for a method that learns them."""
        ...

    def background_index(self, arm: str) -> Tensor:
        """Background images that an arm trains on, int64 `[n]`; the same at each call after the stages."""
        ...
