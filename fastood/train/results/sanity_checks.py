"""Sanity checks of a run: has the network learnt anything, and do scores rank the right way round?

Pure functions of counts, scores and curves. Each check returns a sentence that describes the problem, or None.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import lgamma, log, sqrt
from typing import Literal

import torch
from torch import Tensor

Kind = Literal[
    "accuracy-at-chance",
    "accuracy-far-below-baseline",
    "constant-outputs",
    "loss-never-moved",
    "ranks-backwards",
    "tied-scores",
]
CHANCE = 0.025
"""Probability of at least as many correct answers by chance, from which on an accuracy counts as chance: the upper
tail of a 95 % interval."""
CONSTANT = 1e-4
"""Spread across images, relative to the largest value, below which outputs are constant up to rounding."""
TIED = 0.9
"""Fraction of the images with one common score from which on there is nothing to rank."""
UNMOVED = 0.02
"""Decrease of the loss, as a fraction of the first epoch's, below which it counts as not having fallen."""
FAR_BELOW = 0.05
"""Decrease of accuracy, as a fraction of the images, that counts as far below the baseline if it is not noise."""
NOISE = 0.01
"""p-value below which a decrease of accuracy is more than noise."""


@dataclass(frozen=True, kw_only=True)
class Behaviour:
    """Statistics of a network's outputs on in-distribution test images, independent of the score."""

    chance: float | None
    """Accuracy of the best constant answer, in [0, 1]; None for a network of one class."""
    answers: int
    """Number of distinct classes among the answers."""
    logit_spread: float | None
    """`spread` of the logits; None for a network without logits."""
    feature_spread: float | None
    """`spread` of the features; None for a network that does not return them."""


def spread(values: Tensor) -> float | None:
    """Return the largest standard deviation of a column, relative to the largest absolute value.

    Args:
        values: `[N, …]` or `[N]`, one row per image.

    Returns:
        At least 0; 0 if all rows are equal. None for fewer than two images.

    Example:
        >>> spread(torch.tensor([[1.0, 5.0], [1.0, 5.0]])), spread(torch.tensor([[0.0], [2.0]]))
        (0.0, 0.5)
    """
    rows = values.detach().double().flatten(1) if values.ndim > 1 else values.detach().double()[:, None]
    if len(rows) < 2 or rows.shape[1] == 0:
        return None
    largest = float(rows.abs().max())
    return float(rows.std(dim=0, correction=0).max()) / largest if largest > 0 else 0.0


def chance_rate(labels: Tensor, num_classes: int) -> float | None:
    """Return the accuracy that needs no image: that of a random guess or of the most frequent class, if it is higher.

    Args:
        labels: Classes of the test images, int64 `[N]`.
        num_classes: K.

    Returns:
        A fraction; None if K < 2 or N = 0.

    Example:
        >>> chance_rate(torch.tensor([0, 0, 0, 1]), 2)
        0.75
    """
    if num_classes < 2 or len(labels) == 0:
        return None
    return max(float(torch.bincount(labels).max()) / len(labels), 1 / num_classes)


def accuracy_at_chance(correct: int, total: int, chance: float | None) -> str | None:
    """Check that an accuracy is above chance: P(X ≥ correct) of a binomial X must be below `CHANCE`.

    Args:
        correct: Correct answers.
        total: N, test images.
        chance: Accuracy by chance, from `chance_rate`; None skips the check.

    Example:
        >>> accuracy_at_chance(60, 481, 0.125).partition(":")[0]
        'accuracy 12.47 % is within noise of chance, 12.50 %'
        >>> accuracy_at_chance(478, 481, 0.125) is None
        True
    """
    if chance is None or total == 0 or binomial_tail(correct, total, chance) < CHANCE:
        return None
    place = "within noise of" if correct >= total * chance - 2 * sqrt(total * chance * (1 - chance)) else "below"
    return (
        f"accuracy {_per_cent(correct / total)} % is {place} chance, {_per_cent(chance)} %: nothing shows that the "
        "network has learnt anything, and its detection may mean nothing; try a smaller learning rate first"
    )


def constant_outputs(behaviour: Behaviour) -> str | None:
    """Check that features, logits and answers differ between images."""
    same = [
        name
        for name, value in (("features", behaviour.feature_spread), ("logits", behaviour.logit_spread))
        if value is not None and value < CONSTANT
    ]
    if same:
        return f"{' and '.join(same)} are the same for every image: the network looks at none"
    if behaviour.chance is not None and behaviour.answers == 1:
        return "every test image gets the same class as its answer"
    return None


def tied_scores(id_scores: Tensor, ood_scores: Iterable[Tensor]) -> str | None:
    """Check that fewer than nine in ten test images share one score.

    Args:
        id_scores: `[N]`.
        ood_scores: Scores `[M]` of each OOD set.
    """
    every = torch.cat([id_scores.flatten(), *(part.flatten() for part in ood_scores)])
    if len(every) < 2:
        return None
    ranked = every.sort().values
    starts = torch.cat(
        [torch.tensor([0]), 1 + (ranked[1:] != ranked[:-1]).nonzero().flatten(), torch.tensor([len(ranked)])]
    )
    tied = int(starts.diff().max())
    if tied < TIED * len(every):
        return None
    return f"{tied:,} of {len(every):,} test images have the same score: there is nothing to rank"


def unmoved_loss(stage: str, losses: Sequence[float]) -> str | None:
    """Check that the mean loss of a stage's last epoch is below that of its first epoch.

    Args:
        stage: Name of the stage, which starts from random weights.
        losses: Mean loss of each epoch; fewer than two are not checked.

    Example:
        >>> unmoved_loss("pretrain", [2.31, 2.3, 2.3])
        "the loss of stage 'pretrain' never moved: 2.3100 in its first epoch, 2.3000 in its last"
        >>> unmoved_loss("pretrain", [2.07, 1.73, 2.42, 2.08])
        "the loss of stage 'pretrain' did not fall: 2.0700 in its first epoch, 2.0800 in its last, 1.7300 at its least"
        >>> unmoved_loss("pretrain", [2.31, 0.4, 0.1]) is None
        True
    """
    if len(losses) < 2 or losses[-1] < losses[0] - UNMOVED * abs(losses[0]):
        return None
    ends = f"{losses[0]:.4f} in its first epoch, {losses[-1]:.4f} in its last"
    if max(losses) - min(losses) <= UNMOVED * abs(losses[0]):
        return f"the loss of stage {stage!r} never moved: {ends}"
    return f"the loss of stage {stage!r} did not fall: {ends}, {min(losses):.4f} at its least"


def ranks_backwards(name: str, auroc: float, high: float, *, id_count: int, ood_count: int) -> str | None:
    """Check that an AUROC is not below one half by more than noise.

    Args:
        name: Name of the OOD set.
        auroc: AUROC as a fraction.
        high: Upper end of the 95 % interval of the AUROC.
        id_count: N, in-distribution images.
        ood_count: M, OOD images.

    Example:
        >>> ranks_backwards("uniform noise", 0.26, 0.29, id_count=481, ood_count=200)
        'uniform noise is ranked backwards: AUROC 26.00, interval up to 29.00'
        >>> ranks_backwards("uniform noise", 0.48, 0.52, id_count=481, ood_count=200) is None
        True
    """
    # The interval of few images can be too narrow: require also that the AUROC is more than 1.96 standard deviations
    # from one half. This is the deviation of the Mann-Whitney statistic when scores carry no information.
    deviation = sqrt((id_count + ood_count + 1) / (12 * max(id_count, 1) * max(ood_count, 1)))
    if not (high < 0.5 and auroc < 0.5 - 1.96 * deviation):
        return None
    return f"{name} is ranked backwards: AUROC {_per_cent(auroc)}, interval up to {_per_cent(high)}"


def far_below_baseline(correct: Tensor, of_baseline: Tensor, label: str) -> str | None:
    """Check that an arm is not five points or more, and by more than noise, less accurate than the baseline.

    Args:
        correct: Whether the arm classified each test image correctly, bool `[N]`.
        of_baseline: Whether the baseline did, bool `[N]`.
        label: Label of the baseline.
    """
    if correct.shape != of_baseline.shape or len(correct) == 0:
        return None
    # A sign test (exact McNemar test): only images on which the two differ carry information.
    lost, won = int((of_baseline & ~correct).sum()), int((correct & ~of_baseline).sum())
    if lost - won < FAR_BELOW * len(correct) or binomial_tail(lost, lost + won, 0.5) >= NOISE:
        return None
    own, baseline = (float(part.double().mean()) for part in (correct, of_baseline))
    return f"accuracy {_per_cent(own)} % is far below the {_per_cent(baseline)} % of {label}"


def binomial_tail(successes: int, trials: int, probability: float) -> float:
    """Return P(X ≥ successes) of a binomial X.

    Args:
        successes: Lower bound of X.
        trials: Number of trials.
        probability: Probability of success in a trial, in [0, 1].

    Example:
        >>> round(binomial_tail(2, 3, 0.5), 6), binomial_tail(0, 3, 0.5)
        (0.5, 1.0)
    """
    if successes <= 0:
        return 1.0
    if successes > trials or probability <= 0:
        return 0.0
    if probability >= 1:
        return 1.0
    # Summed in logarithms: binomial coefficients of thousands of trials overflow.
    k = torch.arange(successes, trials + 1, dtype=torch.float64)
    choose = lgamma(trials + 1) - torch.lgamma(k + 1) - torch.lgamma(trials - k + 1)
    logs = choose + k * log(probability) + (trials - k) * log(1 - probability)
    return min(1.0, float(logs.logsumexp(0).exp()))


def merged(warnings: Iterable[Mapping[str, str]], labels: Mapping[str, str]) -> list[str]:
    """Return warnings as lines to print; a message that several arms share is printed once, after their labels.

    Args:
        warnings: "warnings" of metrics.json.
        labels: Label of each arm by its name.

    Example:
        >>> alike = [{"arm": arm, "kind": "tied-scores", "message": "all tied"} for arm in ("a", "b")]
        >>> merged(alike, {"a": "Plain", "b": "OE"})
        ['Plain, OE: all tied']
    """
    arms: dict[str, list[str]] = {}
    for warning in warnings:
        arms.setdefault(warning["message"], []).append(labels.get(warning["arm"], warning["arm"]))
    return [
        f"{'; '.join(of) if any(',' in label for label in of) else ', '.join(of)}: {text}" for text, of in arms.items()
    ]


def _per_cent(fraction: float) -> str:
    return f"{100 * fraction:.2f}"
