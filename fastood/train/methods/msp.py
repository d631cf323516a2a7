"""Cross-entropy alone, judged by the maximum softmax (Hendrycks & Gimpel 2017): the baseline of every paper."""

from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar

from fastood.common.config_checks import require_at_least_one
from fastood.data import DetectionTask
from fastood.models import ModelConfig
from fastood.train.engine.schedule import Schedule
from fastood.train.methods.config import MethodConfig
from fastood.train.methods.initial_model import initial_model
from fastood.train.methods.plain import NoBackground, plain_arm, plain_stage


@dataclass(frozen=True, kw_only=True)
class MSPConfig(MethodConfig):
    """Training without background.

    Example:
        >>> MSPConfig(batch_size=0)
        Traceback (most recent call last):
        ...
        ValueError: batch_size must be at least 1, got 0
    """

    name: ClassVar[str] = "msp"
    summary: ClassVar[str] = "cross-entropy alone, judged by the maximum softmax (Hendrycks & Gimpel 2017)"
    ignores_background: ClassVar[bool] = True

    batch_size: int = 128
    """Images in a batch."""
    training: Schedule = field(default_factory=lambda: Schedule(epochs=100, learning_rate=0.1))
    """All there is."""

    def __post_init__(self) -> None:
        require_at_least_one(self, "batch_size")

    def build(self, model: ModelConfig, *, task: DetectionTask, seed: int) -> "MSP":
        """The method with these hyper-parameters; see `MSP`."""
        return MSP(self, model=model, task=task, seed=seed)


class MSP(NoBackground):
    """One stage, one arm; the background is not looked at.

    Args:
        config: Hyper-parameters.
        model: The network.
        task: What to train on.
        seed: Seed of the run.

    Raises:
        ValueError: If the network is unknown.
    """

    name = "msp"
    baseline = "msp"

    def __init__(self, config: MSPConfig, *, model: ModelConfig, task: DetectionTask, seed: int) -> None:
        build_model = partial(initial_model, model, task, seed=seed)
        build_model()
        self.stages = (plain_stage(build_model, config.training, batch_size=config.batch_size),)
        self.arms = (plain_arm(),)
