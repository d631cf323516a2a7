"""What methods without background share: cross-entropy of a linear head to begin with, and no background to name."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastood.common.config_checks import require_arm
from fastood.losses import OutlierExposureLoss
from fastood.scores import max_softmax_score
from fastood.train.arm import Arm, by_logits
from fastood.train.engine.image_stage import ImageStage
from fastood.train.engine.objective import LogitObjective
from fastood.train.engine.schedule import Schedule
from fastood.train.method import LearntPool


def plain_stage(
    build_model: Callable[[], nn.Module], schedule: Schedule, *, batch_size: int, id_index: Tensor | None = None
) -> ImageStage:
    """Training with cross-entropy alone.

    Args:
        build_model: As in `ImageStage`.
        schedule: Likewise.
        batch_size: Likewise.
        id_index: Likewise.
    """
    return ImageStage(
        name="msp",
        draws="training",
        schedule=schedule,
        build_model=build_model,
        objective=lambda: LogitObjective(OutlierExposureLoss(weight=0.0)),
        batch_size=batch_size,
        id_index=id_index,
    )


def plain_arm(*, stage: str = "msp") -> Arm:
    """The network of a stage with a linear head, judged by the maximum softmax (Hendrycks & Gimpel 2017)."""
    return Arm(name="msp", label="MSP", stage=stage, scorer=by_logits(max_softmax_score))


class NoBackground:
    """Base of methods that look at no background image."""

    arms: tuple[Arm, ...]

    @property
    def learnt_pool(self) -> LearntPool | None:
        """None."""
        return None

    def background_index(self, arm: str) -> Tensor:
        """None, whatever the arm."""
        require_arm(arm, [known.name for known in self.arms])
        return torch.empty(0, dtype=torch.int64)
