"""Stages of a training: the interface between methods and the training loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from fastood.data import Augment, DetectionTask, ImageSet
from fastood.data.loaders import LoaderPlan
from fastood.train.acceleration import CompileMode
from fastood.train.engine.failure import StageFailedError

if TYPE_CHECKING:
    from lightning_fabric import Fabric

RESIDENT = LoaderPlan(name="resident", prefetch_depth=0, reason="the default")

Weights = Mapping[str, Tensor]
"""Parameters and statistics of a network by name, as in its state_dict."""
Embed = Callable[[Any, ImageSet], Tensor]
"""Computes features float32 `[N, d]`, on the CPU, of N images by a `Classifier` at test time."""


def load_all(model: nn.Module, weights: Weights, embed: Embed) -> None:
    """Load the weights of an earlier stage into a network of the same kind."""
    model.load_state_dict(weights)


@dataclass(frozen=True, kw_only=True, eq=False)
class StageContext:
    """Images, seed, device and options that all stages of a run share."""

    task: DetectionTask
    """Images to train on."""
    augment: Augment
    """Turns uint8 images into network input."""
    seed: int
    """Seed of the run."""
    fabric: Fabric
    """Device, precision and group of processes."""
    precision: str = "32-true"
    """Precision of the Fabric instance (Fabric exposes no getter)."""
    loading: LoaderPlan = RESIDENT
    """How images get to the device; by default they reside in its memory."""
    channels_last: bool = True
    """Memory layout of weights and activations."""
    compile: CompileMode = "none"
    """Mode of `torch.compile` for networks in training."""
    ema_decay: float | None = None
    """Decay of the running average of the weights that stages end with; None for the weights themselves."""


class StageRun(Protocol):
    """A stage in progress: everything that changes while it runs, and so everything that a checkpoint holds."""

    name: str
    """Name of the stage."""
    rng_name: str
    """Name of the stage's RNG streams."""
    context: StageContext
    """Images, seed, device and options of the run."""
    step: int
    """Steps done."""
    total_steps: int
    """Steps of the whole stage."""
    steps_per_epoch: int | None
    """Steps of a pass over the in-distribution images; None for a stage without epochs."""
    images_per_step: int
    """Images of a step, over all processes; 0 for a stage that trains on none."""

    @property
    def learning_rate(self) -> float | None:
        """Learning rate of the last step; None for a stage without a single one."""
        ...

    def take_accuracy_counts(self) -> Tensor:
        """Return the counts of correct and of all classified images of this process since the last call, `[2]`."""
        ...

    def train_step(self) -> Tensor:
        """Take one step.

        Returns:
            The loss of this process, floating-point `[]`, on the stage's device or the CPU. The mean over the processes
            is the loss of the whole batch. It may be NaN or infinite: the loop reads it later, so that a step does not
            wait for the device.

        Raises:
            StageFailedError: If the loss cannot be computed, or the stage reads it at once and it is NaN or infinite.
        """
        ...

    def loss_failure(self, step: int, loss: float) -> StageFailedError:
        """Return the error for a loss that is NaN or infinite; every process must call it.

        Args:
            step: Number of the step, from 0, one of the last `READ_EVERY`.
            loss: Mean loss of the processes.
        """
        ...

    def scalars(self) -> dict[str, Tensor]:
        """Return numbers to plot in TensorBoard in addition to loss and learning rate, `[]` each."""
        ...

    def require_finite_weights(self) -> None:
        """Raise `NonFiniteLossError` if a parameter or a statistic is NaN or infinite."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the state from which new processes resume exactly, with the network's weights as "model".

        Every process must call it.
        """
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a state of `state_dict`."""
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
    def rng_name(self) -> str:
        """Name of the RNG streams; stages that share it see the same batches."""
        ...

    @property
    def start_from(self) -> str | None:
        """Earlier stage that supplies the initial weights; None for the run's initial ones."""
        ...

    @property
    def needs(self) -> tuple[str, ...]:
        """Earlier stages that supply anything but weights, such as a learnt pool."""
        ...

    def build_model(self) -> nn.Module:
        """Build the network with the run's initial weights, the same at each call."""
        ...

    def take_over(self, model: Any, weights: Weights, embed: Embed) -> None:
        """Put the weights of `start_from` into the network."""
        ...

    def begin(self, model: Any, context: StageContext) -> StageRun:
        """Start with a network that already holds the weights that the stage begins with; it is trained in place."""
        ...
