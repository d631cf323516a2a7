"""Scores of the test images by a run's trained networks."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fastood.data import DetectionTask
from fastood.train.arm import Arm
from fastood.train.feature_map import FeatureMap
from fastood.train.results.sanity_checks import Behaviour, chance_rate, spread
from fastood.train.trained_network import TrainedNetwork

OBSERVED = 256
"""Test images, at most, of which logits and features are inspected for warnings."""


@dataclass(frozen=True, kw_only=True, eq=False)
class ArmScores:
    """Scores of the test images by one arm; every tensor is on the CPU."""

    label: str
    """Name of the arm in tables and figures."""
    id_scores: Tensor
    """Scores of the in-distribution test set, `[N]`; higher means more out-of-distribution."""
    ood_scores: Mapping[str, Tensor]
    """Scores of each OOD set by its name, `[M]`."""
    correct: Tensor
    """Whether each in-distribution test image was classified correctly, bool `[N]`."""
    feature_map: FeatureMap | None = None
    """Points of the features figure in the report; None for an arm without one."""
    behaviour: Behaviour | None = None
    """Statistics of the network's outputs, for warnings; None if they were not recorded."""

    @property
    def accuracy(self) -> float:
        """Fraction of the in-distribution test images that were classified correctly, in [0, 1]."""
        return self.correct.double().mean().item()

    def undefined(self) -> str | None:
        """Return a sentence that names the NaN scores, or None if there are none.

        A network can diverge and keep finite weights, so that training alone does not show it.
        """
        for name, scores in {"in-distribution test": self.id_scores, **self.ood_scores}.items():
            if count := int(torch.isnan(scores).sum()):
                return f"{count} of {len(scores)} scores of the {name} images are NaN"
        return None


def score_arm(network: TrainedNetwork, arm: Arm, task: DetectionTask) -> ArmScores:
    """Score every test image once; the draws of the protocol are taken from these scores.

    Args:
        network: The arm's trained network.
        arm: The arm; its scorer is applied, to the part of the task that the arm is evaluated on.
        task: The run's images.

    Returns:
        The scores, with the feature map of the arm if it has one.
    """
    arm_task = arm.task(task)
    predict = arm.scorer(network, arm_task)
    predictions = predict(arm_task.id_test)
    return ArmScores(
        label=arm.label,
        id_scores=predictions.scores,
        ood_scores={name: predict(images).scores for name, images in arm_task.ood.items()},
        correct=predictions.classes == arm_task.id_test.labels,
        feature_map=None if arm.feature_map is None else arm.feature_map(network, arm_task),
        behaviour=observe(network, arm_task, predictions.classes),
    )


def observe(network: TrainedNetwork, task: DetectionTask, answers: Tensor) -> Behaviour:
    """Compute statistics of a network's outputs on the in-distribution test images.

    Args:
        network: The trained network.
        task: The images that it is evaluated on.
        answers: int64 `[N]`, the class that it predicts for each test image.

    Returns:
        The statistics; those of logits and features are of at most `OBSERVED` images.
    """
    images = task.id_test
    # Images of one class may be adjacent in the file: take every so many, not the first ones.
    some = images.subset(torch.linspace(0, len(images) - 1, min(OBSERVED, len(images))).round().long())
    logits = features = None
    if hasattr(network.module, "forward_outputs"):
        outputs = network.outputs(some)
        logits, features = outputs.logits, outputs.features
    elif hasattr(network.module, "features"):
        features = network.features(some)
    else:
        logits = network.logits(some)
    # One-class arms are evaluated on the images of their class alone: any answer is right.
    has_choice = bool((images.labels != images.labels[0]).any())
    return Behaviour(
        chance=chance_rate(images.labels, task.num_classes) if has_choice else None,
        answers=int((torch.bincount(answers) > 0).sum()),
        logit_spread=None if logits is None else spread(logits),
        feature_spread=None if features is None else spread(features),
    )
