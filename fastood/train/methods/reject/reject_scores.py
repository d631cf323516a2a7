"""Scores of a network with reject classes: those of Mohseni et al. 2020, table 2."""

from collections.abc import Callable
from typing import Literal, Protocol

import torch
from torch import Tensor

from fastood.common.seeding import named_generator
from fastood.data import DetectionTask, ImageSet
from fastood.metrics import auroc
from fastood.scores import (
    reject_combined_score,
    reject_entropy_difference_score,
    reject_entropy_score,
    reject_max_score,
    reject_sum_score,
    reject_weighted_score,
)
from fastood.train.arm import Predict, Scorer, by_logits
from fastood.train.trained_network import TrainedNetwork

RejectScoreName = Literal["sum", "max", "weighted", "entropy", "entropy-difference", "combined"]

FIT_IMAGES = 10_000
"""Maximum number of training images of either kind on which weights are searched."""
FACTORS = (0.0, 0.25, 0.5, 2.0, 4.0)
"""Factors by which the search multiplies a weight."""


class _Weighted(Protocol):
    def __call__(self, logits: Tensor, num_reject: int, weights: Tensor) -> Tensor: ...


_FIXED: dict[RejectScoreName, Callable[[Tensor, int], Tensor]] = {
    "sum": reject_sum_score,
    "max": reject_max_score,
    "entropy": reject_entropy_score,
    "entropy-difference": reject_entropy_difference_score,
}
_WEIGHTED: dict[RejectScoreName, _Weighted] = {
    "weighted": reject_weighted_score,
    "combined": reject_combined_score,
}


def reject_scorer(name: RejectScoreName, num_reject: int, *, num_classes: int, seed: int) -> Scorer:
    """Return the scorer of one of the scores.

    Args:
        name: Name of the score; its weights, if it has any, are searched on training images, never on a test set.
        num_reject: Number k of reject classes.
        num_classes: Number K of classes; images are classified by the first K logits alone.
        seed: Seed of the run; chooses the training images if there are more than the search uses.
    """
    if name in _FIXED:
        fixed = _FIXED[name]
        return by_logits(lambda logits: fixed(logits, num_reject), num_classes=num_classes)
    score = _WEIGHTED[name]
    count = num_reject + (2 if name == "combined" else 0)

    def scorer(network: TrainedNetwork, task: DetectionTask) -> Predict:
        id_logits, background_logits = (
            network.logits(_sample(images, named_generator(seed, "score weights", images.name)))
            for images in (task.id_train, task.background)
        )

        def fitness(weights: Tensor) -> float:
            return float(auroc(*(score(logits, num_reject, weights) for logits in (id_logits, background_logits))))

        weights = greedy_weights(fitness, count)
        return by_logits(lambda logits: score(logits, num_reject, weights), num_classes=num_classes)(network, task)

    return scorer


def greedy_weights(fitness: Callable[[Tensor], float], count: int) -> Tensor:
    """Search weights of a score greedily: from all 1, apply the best change of any one weight while it improves.

    Table 2 has two rows of weighted scores. The paper names "greedy search" without the changes that it tries or the
    images that it uses.

    Args:
        fitness: Function to maximise of weights float64 `[count]` that are at least 0 and not all 0.
        count: Number of weights.

    Returns:
        The weights, float64 `[count]`.

    Example:
        >>> import torch
        >>> greedy_weights(lambda weights: -float((weights - torch.tensor([0.25, 1.0, 8.0])).abs().sum()), 3).tolist()
        [0.25, 1.0, 8.0]
    """
    best = torch.ones(count, dtype=torch.float64)
    reached = fitness(best)
    while True:
        changed = [
            torch.where(torch.arange(count) == position, best * factor, best)
            for position in range(count)
            for factor in FACTORS
        ]
        tried = [(fitness(weights), weights) for weights in changed if weights.any() and not torch.equal(weights, best)]
        highest, weights = max(tried, key=lambda pair: pair[0], default=(reached, best))
        # Strictly better only: changes of equal fitness could alternate for ever.
        if highest <= reached:
            return best
        reached, best = highest, weights


def _sample(images: ImageSet, generator: torch.Generator) -> ImageSet:
    """Return at most `FIT_IMAGES` images, drawn without replacement."""
    if len(images) <= FIT_IMAGES:
        return images
    return images.subset(torch.randperm(len(images), generator=generator)[:FIT_IMAGES].sort().values)
