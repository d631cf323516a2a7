"""Contents of metrics.json, computed from the scores of a run."""

from collections.abc import Mapping
from dataclasses import asdict
from statistics import fmean
from typing import Any

import torch

from fastood.common.seeding import named_generator
from fastood.data import DetectionTask
from fastood.metrics import Protocol, evaluate_protocol, risk_coverage_curve
from fastood.train.engine.failure import StageFailure
from fastood.train.method import LearntPool, Method
from fastood.train.results.error_bars import bootstrap_of_arm, bootstrap_settings
from fastood.train.results.scoring import ArmScores

SCHEMA = 2
"""Version of the layout of metrics.json."""


def metrics_document(
    method: Method,
    task: DetectionTask,
    scores: Mapping[str, ArmScores],
    *,
    protocol: Protocol,
    seed: int,
    failed: Mapping[str, StageFailure] | None = None,
    learnt: LearntPool | None = None,
) -> dict[str, Any]:
    """Return the contents of metrics.json: metrics, and the settings on which they depend.

    Args:
        method: The method after its last stage.
        task: Images that the method was trained and is evaluated on.
        scores: Scores of each arm by its name.
        protocol: Evaluation protocol: draws, positive class, TPR.
        seed: Seed of the run; it also gives the draws of the protocol, which are the same for every arm.
        failed: Failures by the name of an arm without scores; None or empty if every arm has scores.
        learnt: Background pool with learnt weights; None for a method without one.

    Returns:
        Plain values only; metrics are fractions.
    """
    # Without scores of the baseline there are no differences from it.
    baseline = method.baseline if method.baseline in scores else None
    return {
        "schema": SCHEMA,
        "method": method.name,
        "seed": seed,
        "protocol": {
            "name": protocol.name,
            "positive": protocol.positive,
            "ood_fraction": protocol.ood_fraction,
            "repeats": protocol.repeats,
            "tpr": protocol.tpr,
            "rule": protocol.rule,
            "aupr_kind": protocol.aupr_kind,
        },
        "bootstrap": bootstrap_settings(baseline)
        | ({} if baseline == method.baseline else {"failed": method.baseline}),
        "in_distribution": {
            "name": task.id_train.name,
            "train": len(task.id_train),
            "test": len(task.id_test),
            "classes": task.num_classes,
        },
        "arms": {
            arm.name: {
                "label": arm.label,
                "accuracy": scores[arm.name].accuracy,
                "aurc": _aurc(scores[arm.name]),
                "background_size": method.background_count(arm.name),
                **_detection(
                    scores[arm.name],
                    None if baseline is None or arm.name == baseline else scores[baseline],
                    protocol=protocol,
                    seed=seed,
                ),
            }
            for arm in method.arms
            if arm.name in scores
        },
        **({"failed": _failures(method, failed)} if failed else {}),
        **({} if learnt is None else {"pool": _pool_summary(learnt, method, task)}),
    }


def _failures(method: Method, failed: Mapping[str, StageFailure]) -> dict[str, Any]:
    labels = {arm.name: arm.label for arm in method.arms}
    return {arm: {"label": labels[arm], **asdict(failure)} for arm, failure in failed.items()}


def _detection(scores: ArmScores, baseline: ArmScores | None, *, protocol: Protocol, seed: int) -> dict[str, Any]:
    results = evaluate_protocol(
        scores.id_scores,
        scores.ood_scores,
        protocol=protocol,
        generator=named_generator(seed, "protocol"),
    )
    error_bars = bootstrap_of_arm(scores, baseline, protocol=protocol, seed=seed)
    metrics = ("auroc", "aupr", "fpr95")
    return {
        "ood": {name: {**result.as_dict(), "seed": seed, **error_bars[name]} for name, result in results.items()},
        "mean": {metric: fmean(result.metrics()[metric].mean for result in results.values()) for metric in metrics},
    }


def _aurc(scores: ArmScores) -> dict[str, float]:
    """Compute areas under the risk-coverage curve: of ID images alone, and mixed with as many OOD images."""
    ood = list(scores.ood_scores.values())
    return {
        "id": risk_coverage_curve(scores.id_scores, correct=scores.correct).aurc,
        "mixed": risk_coverage_curve(scores.id_scores, correct=scores.correct, ood_scores=ood, ood_per_id=1.0).aurc,
    }


def _pool_summary(learnt: LearntPool, method: Method, task: DetectionTask) -> dict[str, Any]:
    """Return size, effective sample size, and for each source count, mean relative weight and selected images."""
    assert method.learnt_arm is not None
    background, chosen = task.background, method.background_index(method.learnt_arm)
    weights = learnt.pool.weights.cpu()
    relative = weights / weights.mean()
    selected = torch.zeros(len(background), dtype=torch.bool)
    selected[chosen] = True
    sources: dict[str, Any] = {}
    for number, name in enumerate(background.source_names):
        members = background.source == number
        if members.any():
            sources[name] = {
                "count": int(members.sum()),
                "mean_weight": relative[members].mean().item(),
                "selected": int(selected[members].sum()),
            }
    return {
        "size": len(background),
        "effective_sample_size": learnt.pool.effective_sample_size(),
        "sources": sources,
    }
