"""Cross-entropy alone, scored by the maximum softmax: the baseline of every paper.

Hendrycks & Gimpel 2017 (https://arxiv.org/abs/1610.02136).
"""

from dataclasses import dataclass, field
from typing import ClassVar

from fastood.common.config_checks import require_at_least_one
from fastood.data import DetectionTask
from fastood.models import ModelConfig
from fastood.train.arm import Arm
from fastood.train.engine.schedule import Schedule
from fastood.train.engine.stage import Stage
from fastood.train.method import Method, MethodConfig
from fastood.train.methods.plain import plain_arm, plain_stage


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
    summary: ClassVar[str] = "cross-entropy alone, scored by the maximum softmax (Hendrycks & Gimpel 2017)"
    ignores_background: ClassVar[bool] = True

    batch_size: int = 128
    """Images in a batch."""
    training: Schedule = field(default_factory=lambda: Schedule(epochs=100, learning_rate=0.1))
    """Schedule of the one stage."""

    def __post_init__(self) -> None:
        require_at_least_one(self, "batch_size")

    def build(self, model: ModelConfig, *, task: DetectionTask, seed: int) -> "MSP":
        """Build the method with these hyper-parameters; see `MSP`."""
        return MSP(self, model=model, task=task, seed=seed)


class MSP(Method):
    """One stage and one arm; background images are not used.

    Raises:
        ValueError: If the network is unknown.
    """

    config: MSPConfig

    def build_arms(self) -> tuple[Arm, ...]:
        """Return the one arm."""
        return (plain_arm(),)

    def build_stages(self) -> tuple[Stage, ...]:
        """Return the one stage."""
        return (plain_stage(self.build_classifier, self.config.training, batch_size=self.config.batch_size),)
