"""Contents of detectors.json: metrics of every detector on every OOD set, and warnings."""

from collections.abc import Mapping
from dataclasses import asdict
from statistics import fmean
from typing import Any

from torch import Tensor

from fastood.common.seeding import named_generator
from fastood.evaluate.detector_scores import DetectorScores
from fastood.metrics import Protocol, delong_estimate, evaluate_detectors
from fastood.train.results.sanity_checks import Kind, ranks_backwards, tied_scores
from fastood.train.run import Run

SCHEMA = 1
"""Version of the layout of detectors.json."""


def detectors_document(run: Run, scores: Mapping[str, DetectorScores]) -> dict[str, Any]:
    """Return the contents of detectors.json: the layout of metrics.json, with a level of detectors in each arm.

    Args:
        run: The run; its protocol and seed give the draws, which are those of metrics.json.
        scores: Scores of each arm by its name.

    Returns:
        Plain values only; metrics are fractions. "warnings" is present only if there are any.
    """
    protocol = run.config.protocol
    document = {
        "schema": SCHEMA,
        "method": run.method.name,
        "seed": run.config.seed,
        "protocol": asdict(protocol),
        "arms": {arm: _arm_document(arm_scores, protocol, run.config.seed) for arm, arm_scores in scores.items()},
    }
    warnings = [warning for arm, arm_scores in scores.items() for warning in detector_warnings(arm, arm_scores)]
    return {**document, "warnings": warnings} if warnings else document


def detector_warnings(arm: str, scores: DetectorScores) -> list[dict[str, str]]:
    """Return warnings on the detectors of an arm: scores that are nearly all tied, and OOD sets ranked backwards.

    Args:
        arm: Name of the arm.
        scores: Scores of its detectors.

    Returns:
        Arm, detector, kind and message of each warning; empty if there is nothing to warn of.
    """
    warnings = []
    for row, name in enumerate(scores.settings):
        id_scores, ood_scores = scores.id_scores[row], {ood: part[row] for ood, part in scores.ood_scores.items()}
        messages: list[tuple[Kind, str | None]] = [("tied-scores", tied_scores(id_scores, ood_scores.values()))]
        for ood, part in ood_scores.items():
            # DeLong's variance needs two images of either kind.
            if min(len(id_scores), len(part)) > 1:
                messages.append(("ranks-backwards", _backwards(ood, id_scores, part)))
        warnings += [
            {"arm": arm, "detector": name, "kind": kind, "message": message}
            for kind, message in messages
            if message is not None
        ]
    return warnings


def _backwards(name: str, id_scores: Tensor, ood_scores: Tensor) -> str | None:
    """Return a warning if an AUROC is below one half by more than its standard error of DeLong allows."""
    estimate = delong_estimate(id_scores, ood_scores)
    high = estimate.auroc + 1.96 * estimate.std
    return ranks_backwards(name, estimate.auroc, high, id_count=len(id_scores), ood_count=len(ood_scores))


def _arm_document(scores: DetectorScores, protocol: Protocol, seed: int) -> dict[str, Any]:
    results = []
    if scores.settings:
        # The stream of metrics.json, so that detectors see the same draws as the arm's own score.
        draws = named_generator(seed, "protocol")
        results = evaluate_detectors(scores.id_scores, scores.ood_scores, protocol=protocol, generator=draws)
    detectors = {}
    for (name, settings), of_sets in zip(scores.settings.items(), results, strict=True):
        detectors[name] = {
            "settings": settings,
            "ood": {ood: {**result.as_dict(), "seed": seed} for ood, result in of_sets.items()},
            "mean": {
                metric: fmean(result.metrics()[metric].mean for result in of_sets.values())
                for metric in ("auroc", "aupr", "fpr95")
            },
        }
    return {"label": scores.label, "detectors": detectors, "skipped": scores.skipped}
