"""Scores of the test images by a run's trained networks."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fastood.data import DetectionTask
from fastood.train.arm import Arm
from fastood.train.feature_map import FeatureMap
from fastood.train.results.sanity_checks import Behaviour, chance_rate, spread
from fastood.train.trained_network import TrainedNetwork

LOOKED_AT = 256
"""Test images whose logits and features are looked at for warnings."""


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
    behaviour: Behaviour | None = None
    """Answers of the network, for warnings; None if they were not recorded."""

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
        behaviour=observe(network, seen, of_id.classes),
    )


def observe(network: TrainedNetwork, task: DetectionTask, answers: Tensor) -> Behaviour:
    """Return how a network answers to the in-distribution test images.

    Args:
        network: The trained network.
        task: What it is judged on.
        answers: int64 `[N]`, the class that it gives each test image.
    """
    images = task.id_test
    # Images of one class may lie together.
    some = images.subset(torch.linspace(0, len(images) - 1, min(LOOKED_AT, len(images))).round().long())
    logits = features = None
    if hasattr(network.module, "forward_outputs"):
        outputs = network.outputs(some)
        logits, features = outputs.logits, outputs.features
    elif hasattr(network.module, "features"):
        features = network.features(some)
    else:
        logits = network.logits(some)
    # Arms that know one class are judged on its images alone.
    has_choice = bool((images.labels != images.labels[0]).any())
    return Behaviour(
        chance=chance_rate(images.labels, task.num_classes) if has_choice else None,
        answers=int((torch.bincount(answers) > 0).sum()),
        logit_spread=None if logits is None else spread(logits),
        feature_spread=None if features is None else spread(features),
    )
