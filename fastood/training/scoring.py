"""From trained networks to logits, features and scores of the test images."""

from dataclasses import dataclass
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor

from fastood.data import Augment, DetectionTask
from fastood.models import Classifier
from fastood.training.stage import Arm


@dataclass(frozen=True, kw_only=True, eq=False)
class ArmScores:
    """What one trained network says of the test images."""

    accuracy: float
    """Share of the in-distribution test images classified correctly, in [0, 1]."""
    id_scores: Tensor
    """Scores of the in-distribution test set, `[N]`; higher means more out-of-distribution."""
    ood_scores: dict[str, Tensor]
    """Scores of each OOD set, `[M]`."""


def predict_logits(
    model: Classifier, images: Tensor, *, augment: Augment, fabric: Fabric, batch_size: int = 512
) -> Tensor:
    """Logits of images as at test time: no augmentation, no dropout, BatchNorm with its statistics.

    Args:
        model: The network; left in eval mode.
        images: uint8 `[N, C, H, W]`.
        augment: Supplies the normalisation.
        fabric: Device and precision.
        batch_size: Images passed at once.

    Returns:
        float32 `[N, K]` on the CPU.
    """
    forward = _setup_for_test(model, fabric)
    with torch.inference_mode():
        return torch.cat(
            [
                forward(augment.normalize(batch).to(fabric.device)).float().cpu()
                for batch in torch.split(images, batch_size)
            ]
        )


def predict_features(
    model: Classifier, images: Tensor, *, augment: Augment, fabric: Fabric, batch_size: int = 512
) -> Tensor:
    """Penultimate features of images as at test time; arguments as in `predict_logits`.

    Returns:
        float32 `[N, d]` on the CPU.
    """
    forward = _setup_for_test(model, fabric)
    forward.mark_forward_method("features")
    with torch.inference_mode():
        return torch.cat(
            [
                forward.features(augment.normalize(batch).to(fabric.device)).float().cpu()
                for batch in torch.split(images, batch_size)
            ]
        )


def _setup_for_test(model: Classifier, fabric: Fabric) -> Any:
    forward = fabric.setup_module(model.to(memory_format=torch.channels_last))
    forward.eval()
    return forward


def score_arm(model: Classifier, arm: Arm, task: DetectionTask, *, augment: Augment, fabric: Fabric) -> ArmScores:
    """Pass every test image through a network once; repeats of the protocol draw from these scores.

    Args:
        model: The arm's trained network.
        arm: Supplies the score.
        task: The test sets.
        augment: Supplies the normalisation.
        fabric: Device and precision.
    """
    logits = predict_logits(model, task.id_test.images, augment=augment, fabric=fabric)
    return ArmScores(
        accuracy=(logits.argmax(dim=1) == task.id_test.labels).double().mean().item(),
        id_scores=arm.score(logits),
        ood_scores={
            name: arm.score(predict_logits(model, images.images, augment=augment, fabric=fabric))
            for name, images in task.ood.items()
        },
    )
