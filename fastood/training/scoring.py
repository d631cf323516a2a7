"""Scores of the test images by a run's trained networks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastood.data import DetectionTask
from fastood.training.arm import Arm
from fastood.training.feature_map import FeatureMap
from fastood.training.trained_network import TrainedNetwork


@dataclass(frozen=True, kw_only=True, eq=False)
class ArmScores:
    """What one trained network says of the test images."""

    correct: Tensor
    """Whether each in-distribution test image was classified correctly, bool `[N]`."""
    id_scores: Tensor
    """Scores of the in-distribution test set, `[N]`; higher means more out-of-distribution."""
    ood_scores: dict[str, Tensor]
    """Scores of each OOD set, `[M]`."""
    feature_map: FeatureMap | None = None
    """What the report shows of its features."""

    @property
    def accuracy(self) -> float:
        """Share of the in-distribution test images classified correctly, in [0, 1]."""
        return self.correct.double().mean().item()

    def undefined(self) -> str | None:
        """Return which scores are NaN, or None if none is: a network can diverge and keep finite weights."""
        for name, scores in {"in-distribution test": self.id_scores, **self.ood_scores}.items():
            if count := int(torch.isnan(scores).sum()):
                return f"{count} of {len(scores)} scores of the {name} images are NaN"
        return None


def score_arm(network: TrainedNetwork, arm: Arm, task: DetectionTask) -> ArmScores:
    """Score every test image once; repeats of the protocol draw from these scores.

    Args:
        network: The arm's trained network.
        arm: How it scores, and what it is judged on.
        task: The run's images.
    """
    seen = arm.task(task)
    predict = arm.scorer(network, seen)
    of_id = predict(seen.id_test)
    return ArmScores(
        correct=of_id.classes == seen.id_test.labels,
        id_scores=of_id.scores,
        ood_scores={name: predict(images).scores for name, images in seen.ood.items()},
        feature_map=None if arm.feature_map is None else arm.feature_map(network, seen),
    )
