"""Arms: the rows of a run's results, and how each scores images."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from fastood.data import DetectionTask, ImageSet
from fastood.train.feature_map import FeatureMap
from fastood.train.trained_network import Outputs, TrainedNetwork


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """Scores and classes that an arm gives N images."""

    scores: Tensor
    """Scores `[N]`; higher means more out-of-distribution."""
    classes: Tensor
    """The most likely in-distribution class, int64 `[N]`, independent of the score."""


Predict = Callable[[ImageSet], Prediction]
Scorer = Callable[[TrainedNetwork, DetectionTask], Predict]
"""Returns the prediction function of a trained network; it may first fit to the training images of the task."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One row of the results: the network at the end of a stage."""

    name: str
    """Name in files."""
    label: str
    """Name in tables and figures."""
    stage: str
    """Stage that ends with the weights to evaluate."""
    scorer: Scorer
    """Scores and classifies images."""
    feature_map: Callable[[TrainedNetwork, DetectionTask], FeatureMap] | None = None
    """Computes the points that the report draws of its features; None for no figure."""
    view: Callable[[DetectionTask], DetectionTask] | None = None
    """Selects the part of the task to evaluate on, for arms of some of the classes; None for the whole task."""

    def task(self, task: DetectionTask) -> DetectionTask:
        """Return the task that the arm is evaluated on."""
        return task if self.view is None else self.view(task)


def by_logits(score: Callable[[Tensor], Tensor], *, num_classes: int | None = None) -> Scorer:
    """Return a scorer that uses the logits alone, and classifies by the largest.

    Args:
        score: Computes scores `[N]` of logits `[N, K]`.
        num_classes: Number K of in-distribution classes, the first logits; None for all logits.
    """

    def scorer(network: TrainedNetwork, task: DetectionTask) -> Predict:
        def predict(images: ImageSet) -> Prediction:
            logits = network.logits(images)
            return Prediction(scores=score(logits), classes=logits[:, :num_classes].argmax(dim=1))

        return predict

    return scorer


def by_outputs(score: Callable[[Outputs], Tensor]) -> Scorer:
    """Return a scorer that uses logits and features, and classifies by the largest logit.

    Args:
        score: Computes scores `[N]` of logits `[N, K]` and features `[N, d]`.
    """

    def scorer(network: TrainedNetwork, task: DetectionTask) -> Predict:
        def predict(images: ImageSet) -> Prediction:
            outputs = network.outputs(images)
            return Prediction(scores=score(outputs), classes=outputs.logits.argmax(dim=1))

        return predict

    return scorer
