"""Arms: the rows of a run's results, and how each scores images."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from fastood.data import DetectionTask, ImageSet
from fastood.train.feature_map import FeatureMap
from fastood.train.trained_network import Outputs, TrainedNetwork


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """What an arm says of N images."""

    scores: Tensor
    """`[N]`, higher means more out-of-distribution."""
    classes: Tensor
    """int64 `[N]`, the most likely in-distribution class whatever the score."""


Predict = Callable[[ImageSet], Prediction]
Scorer = Callable[[TrainedNetwork, DetectionTask], Predict]
"""Makes what predicts from a trained network; it may fit to the training images of the task first."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One row of the results: the network at the end of a stage."""

    name: str
    """Name in files."""
    label: str
    """Name in tables and figures."""
    stage: str
    """Stage whose final weights are judged."""
    scorer: Scorer
    """How it scores and classifies."""
    feature_map: Callable[[TrainedNetwork, DetectionTask], FeatureMap] | None = None
    """What the report shows of its features; None for nothing."""
    view: Callable[[DetectionTask], DetectionTask] | None = None
    """What of the task it is judged on, for arms that know a part of the classes; None for all of it."""

    def task(self, task: DetectionTask) -> DetectionTask:
        """What the arm is judged on."""
        return task if self.view is None else self.view(task)


def by_logits(score: Callable[[Tensor], Tensor], *, num_classes: int | None = None) -> Scorer:
    """Score by the logits alone, and classify by the largest.

    Args:
        score: Scores `[N]` of logits `[N, K]`.
        num_classes: How many logits, the first ones, are in-distribution classes; None for all.
    """

    def scorer(network: TrainedNetwork, task: DetectionTask) -> Predict:
        def predict(images: ImageSet) -> Prediction:
            logits = network.logits(images)
            return Prediction(scores=score(logits), classes=logits[:, :num_classes].argmax(dim=1))

        return predict

    return scorer


def by_outputs(score: Callable[[Outputs], Tensor]) -> Scorer:
    """Score by logits and features, and classify by the largest logit.

    Args:
        score: Scores `[N]` of logits `[N, K]` and features `[N, d]`.
    """

    def scorer(network: TrainedNetwork, task: DetectionTask) -> Predict:
        def predict(images: ImageSet) -> Prediction:
            outputs = network.outputs(images)
            return Prediction(scores=score(outputs), classes=outputs.logits.argmax(dim=1))

        return predict

    return scorer
