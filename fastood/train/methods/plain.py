"""Stage and arm of the baseline that most methods share: a linear head, trained with cross-entropy alone."""

from collections.abc import Callable

from torch import Tensor, nn

from fastood.losses import OutlierExposureLoss
from fastood.scores import max_softmax_score
from fastood.train.arm import Arm, by_logits
from fastood.train.engine.image_stage import ImageStage
from fastood.train.engine.objective import LogitObjective
from fastood.train.engine.schedule import Schedule


def plain_stage(
    build_model: Callable[[], nn.Module], schedule: Schedule, *, batch_size: int, id_index: Tensor | None = None
) -> ImageStage:
    """Return a stage that trains with cross-entropy alone.

    Args:
        build_model: Builds the network with the run's initial weights, the same at each call.
        schedule: Length and optimiser.
        batch_size: In-distribution images in a batch.
        id_index: In-distribution images to train on, int64 `[n]`; None for all.
    """
    return ImageStage(
        name="msp",
        rng_name="training",
        schedule=schedule,
        build_model=build_model,
        objective=lambda: LogitObjective(OutlierExposureLoss(weight=0.0)),
        batch_size=batch_size,
        id_index=id_index,
    )


def plain_arm(*, stage: str = "msp") -> Arm:
    """Return the arm of a stage's network, scored by the maximum softmax probability.

    Hendrycks & Gimpel 2017 (https://arxiv.org/abs/1610.02136).

    Args:
        stage: Stage with a network that returns logits.
    """
    return Arm(name="msp", label="MSP", stage=stage, scorer=by_logits(max_softmax_score))
