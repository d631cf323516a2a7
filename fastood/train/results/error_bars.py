"""Error bars of a run: intervals of every arm's metrics, and its differences from the arm it is to beat."""

from typing import Any

from fastood.common.seeding import named_generator
from fastood.metrics import BootstrapResult, Difference, Interval, Protocol, bootstrap_differences, bootstrap_metrics
from fastood.train.results.scoring import ArmScores

REPLICATES = 1000
LEVEL = 0.95


def bootstrap_settings(baseline: str | None) -> dict[str, Any]:
    """What the intervals of `bootstrap_of_arm` depend on, for metrics.json."""
    return {
        "baseline": baseline,
        "level": LEVEL,
        "replicates": REPLICATES,
        "method": "percentile",
        "resampling": "multinomial",
        "rule": "first",
        "aupr_kind": "average_precision",
    }


def bootstrap_of_arm(
    scores: ArmScores, baseline: ArmScores | None, *, protocol: Protocol, seed: int
) -> dict[str, dict[str, Any]]:
    """Percentile intervals over all test images of each OOD set, at the protocol's ratio, TPR and positive class.

    The estimate is of all images, where the protocol's mean is of its draws; FPR is read at the first threshold that
    reaches the TPR, and AUPR is average precision, whatever the protocol's rules. All arms of a run see the same
    replicates.

    Args:
        scores: The arm's scores.
        baseline: Scores of the arm it is compared with, of the same images; None for that arm itself, or
            where arms are judged on images of their own.
        protocol: What is measured.
        seed: Seed of the run.

    Returns:
        OOD set → {"interval": …} and, with a baseline, {"difference": …}; in each "auroc", "aupr" and "fpr95" with
        estimate, low and high as fractions, and a p_value in differences (the arm less the baseline).
    """
    found: dict[str, dict[str, Any]] = {}
    for name, ood_scores in scores.ood_scores.items():
        images = scores.id_scores, ood_scores
        asked: dict[str, Any] = {
            "replicates": REPLICATES,
            "level": LEVEL,
            "tpr": protocol.tpr,
            "positive": protocol.positive,
            "ood_per_id": protocol.ood_fraction,
        }
        intervals = bootstrap_metrics(*images, generator=named_generator(seed, "bootstrap", name), **asked)
        found[name] = {"interval": _by_metric(intervals)}
        if baseline is not None:
            differences = bootstrap_differences(
                *images,
                baseline.id_scores,
                baseline.ood_scores[name],
                generator=named_generator(seed, "bootstrap", name),
                **asked,
            )
            found[name]["difference"] = _by_metric(differences)
    return found


def _by_metric(result: BootstrapResult[Interval] | BootstrapResult[Difference]) -> dict[str, dict[str, float]]:
    values: dict[str, Interval] = {"auroc": result.auroc, "aupr": result.aupr, "fpr95": result.fpr_at_tpr}
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Interval) -> dict[str, float]:
    bounds = {"estimate": value.estimate, "low": value.low, "high": value.high}
    return {**bounds, "p_value": value.p_value} if isinstance(value, Difference) else bounds
