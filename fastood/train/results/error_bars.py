"""Error bars of a run: bootstrap intervals of the metrics of each arm, and of their differences from the baseline."""

from typing import Any

from fastood.common.seeding import named_generator
from fastood.metrics import BootstrapResult, Difference, Interval, Protocol, bootstrap_differences, bootstrap_metrics
from fastood.train.results.scoring import ArmScores

REPLICATES = 1000
"""Bootstrap replicates of each interval."""
LEVEL = 0.95
"""Coverage of the intervals."""


def bootstrap_settings(baseline: str | None) -> dict[str, Any]:
    """Return the settings of `bootstrap_of_arm`, for metrics.json.

    Args:
        baseline: Name of the arm that others are compared with; None for no comparison.
    """
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
    """Compute percentile bootstrap intervals over the test images, for each OOD set.

    The protocol gives the ratio of OOD to ID images, the TPR and the positive class. The estimate is of all images,
    whereas the protocol's mean is over its draws; FPR is read at the first threshold that reaches the TPR, and AUPR is
    average precision, independent of the protocol's rules. All arms of a run see the same replicates.

    Args:
        scores: Scores of the arm.
        baseline: Scores of the baseline on the same images; None for the baseline itself, and for arms that are
            evaluated on different images.
        protocol: Protocol of the run.
        seed: Seed of the run.

    Returns:
        For each OOD set "interval" and, with a baseline, "difference" (arm minus baseline). Each holds "auroc", "aupr"
        and "fpr95" with estimate, low and high as fractions; a difference also holds its p_value.
    """
    results: dict[str, dict[str, Any]] = {}
    for name, ood_scores in scores.ood_scores.items():
        images = scores.id_scores, ood_scores
        settings: dict[str, Any] = {
            "replicates": REPLICATES,
            "level": LEVEL,
            "tpr": protocol.tpr,
            "positive": protocol.positive,
            "ood_per_id": protocol.ood_fraction,
        }
        # The stream depends on the OOD set alone, so that every arm is resampled alike and differences are paired.
        intervals = bootstrap_metrics(*images, generator=named_generator(seed, "bootstrap", name), **settings)
        results[name] = {"interval": _by_metric(intervals)}
        if baseline is not None:
            differences = bootstrap_differences(
                *images,
                baseline.id_scores,
                baseline.ood_scores[name],
                generator=named_generator(seed, "bootstrap", name),
                **settings,
            )
            results[name]["difference"] = _by_metric(differences)
    return results


def _by_metric(result: BootstrapResult[Interval] | BootstrapResult[Difference]) -> dict[str, dict[str, float]]:
    values: dict[str, Interval] = {"auroc": result.auroc, "aupr": result.aupr, "fpr95": result.fpr_at_tpr}
    return {name: _plain(value) for name, value in values.items()}


def _plain(value: Interval) -> dict[str, float]:
    bounds = {"estimate": value.estimate, "low": value.low, "high": value.high}
    return {**bounds, "p_value": value.p_value} if isinstance(value, Difference) else bounds
