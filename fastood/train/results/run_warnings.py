"""Warnings of a run: the checks of `fastood.train.results.sanity_checks` on its arms, scores and curves."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any

from fastood.train.engine.curve import Entry
from fastood.train.engine.stage import Stage
from fastood.train.method import Method
from fastood.train.results.sanity_checks import (
    Kind,
    accuracy_at_chance,
    constant_outputs,
    far_below_baseline,
    ranks_backwards,
    tied_scores,
    unmoved_loss,
)
from fastood.train.results.scoring import ArmScores


def run_warnings(
    method: Method,
    metrics: Mapping[str, Any],
    scores: Mapping[str, ArmScores],
    curves: Mapping[str, Sequence[Entry]],
) -> list[dict[str, str]]:
    """Return the warnings of a run, for its metrics.json.

    Args:
        method: Method of the run, with its stages and arms.
        metrics: Contents of metrics.json without warnings.
        scores: Scores of each arm by its name.
        curves: Entries of each stage, as in curves.json; a stage without entries is not checked.

    Returns:
        Arm, kind and message of each warning; empty if there is nothing to warn of.
    """
    stages = {stage.name: stage for stage in method.stages}
    messages = []
    for arm in method.arms:
        if arm.name not in scores:  # its training failed
            continue
        warnings: list[tuple[Kind, str | None]] = [
            ("loss-never-moved", unmoved_loss(name, losses))
            for name, losses in _losses(_chain(arm.stage, stages), curves)
        ]
        warnings += _score_warnings(scores[arm.name])
        if method.baseline in scores and method.baseline != arm.name:
            baseline = metrics["arms"][method.baseline]["label"]
            baseline_correct = scores[method.baseline or ""].correct
            text = far_below_baseline(scores[arm.name].correct, baseline_correct, baseline)
            warnings.append(("accuracy-far-below-baseline", text))
        warnings += _ranking_warnings(metrics["arms"][arm.name], scores[arm.name])
        messages += [{"arm": arm.name, "kind": kind, "message": text} for kind, text in warnings if text is not None]
    return messages


def _chain(name: str, stages: Mapping[str, Stage]) -> Iterator[Stage]:
    """Yield the stages that trained an arm's network, the last one first."""
    stage: Stage | None = stages[name]
    while stage is not None:
        yield stage
        stage = None if stage.start_from is None else stages[stage.start_from]


def _losses(chain: Iterator[Stage], curves: Mapping[str, Sequence[Entry]]) -> Iterator[tuple[str, list[float]]]:
    """Yield name and loss of every epoch of the stages that train a network from random weights.

    The loss of a stage that starts from trained weights may already be at its minimum, and in a stage without epochs a
    generator and a discriminator train against each other.
    """
    for stage in chain:
        entries = curves.get(stage.name, ())
        if stage.start_from is None and all(entry["epoch"] is not None for entry in entries):
            yield stage.name, [float(entry["loss"] or 0.0) for entry in entries]


def _score_warnings(scores: ArmScores) -> list[tuple[Kind, str | None]]:
    """Return warnings on accuracy, outputs and tied scores of an arm."""
    warnings: list[tuple[Kind, str | None]] = []
    if scores.behaviour is not None:
        chance = scores.behaviour.chance
        correct, total = int(scores.correct.sum()), len(scores.correct)
        warnings.append(("accuracy-at-chance", accuracy_at_chance(correct, total, chance)))
        warnings.append(("constant-outputs", constant_outputs(scores.behaviour)))
    warnings.append(("tied-scores", tied_scores(scores.id_scores, scores.ood_scores.values())))
    return warnings


def _ranking_warnings(arm: Mapping[str, Any], scores: ArmScores) -> list[tuple[Kind, str | None]]:
    """Return warnings on OOD sets that are ranked backwards, and on their mean if there are several."""
    counts = {
        name: {"id_count": len(scores.id_scores), "ood_count": len(part)} for name, part in scores.ood_scores.items()
    }
    intervals = {name: arm["ood"][name]["interval"]["auroc"] for name in counts}
    warnings: list[tuple[Kind, str | None]] = [
        ("ranks-backwards", ranks_backwards(name, interval["estimate"], interval["high"], **counts[name]))
        for name, interval in intervals.items()
    ]
    if len(intervals) > 1:
        fewest = {key: min(count[key] for count in counts.values()) for key in ("id_count", "ood_count")}
        high = fmean(interval["high"] for interval in intervals.values())
        text = ranks_backwards(f"the mean over {len(intervals)} OOD sets", arm["mean"]["auroc"], high, **fewest)
        warnings.append(("ranks-backwards", text))
    return warnings
