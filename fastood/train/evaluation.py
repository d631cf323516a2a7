"""Evaluation of a trained method: scores of every arm, and from them the metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fastood.data import DetectionTask
from fastood.train.arm import Arm
from fastood.train.config import RunConfig
from fastood.train.engine.curve import read_curves
from fastood.train.engine.failure import StageFailedError, StageFailure
from fastood.train.failed_stages import failed_arms, learnt_pool_of
from fastood.train.method import Method
from fastood.train.results.metrics_document import metrics_document
from fastood.train.results.run_warnings import run_warnings
from fastood.train.results.scoring import ArmScores, score_arm
from fastood.train.run_folder import RunFolder, naming
from fastood.train.trained_network import TrainedNetwork


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Results of a run before they are written."""

    metrics: dict[str, Any]
    """Contents of metrics.json."""
    scores: dict[str, ArmScores]
    """Scores of the test images by arm."""


def score_arms(
    method: Method,
    task: DetectionTask,
    failures: Mapping[str, StageFailure],
    network: Callable[[Arm], TrainedNetwork],
) -> tuple[dict[str, ArmScores], dict[str, StageFailure]]:
    """Score the test images with every arm that was trained; processes that share the networks' batches all call it.

    Args:
        method: The method.
        task: Images to score.
        failures: Failures of stages by name.
        network: Returns the trained network of an arm.

    Returns:
        Scores by arm, and the failures of the other arms: of their stages, or of scores that are not finite.

    Raises:
        FileNotFoundError: If the run has not been trained.
        StageFailedError: If no arm has scores.
        ValueError: If the weights of an arm are damaged or an image is unreadable.
    """
    failed = failed_arms(method, failures)
    scores = {}
    for arm in method.arms:
        if arm.name in failed:
            continue
        arm_scores = score_arm(network(arm), arm, task)
        if (reason := arm_scores.undefined()) is None:
            scores[arm.name] = arm_scores
        else:
            failed[arm.name] = StageFailure(stage=arm.stage, step=None, steps=None, reason=reason)
    if not scores:
        raise StageFailedError(f"no arm can be evaluated: {next(iter(failed.values())).describe()}")
    return scores, failed


def evaluate_scores(
    method: Method,
    task: DetectionTask,
    scores: dict[str, ArmScores],
    *,
    config: RunConfig,
    folder: RunFolder,
    failures: Mapping[str, StageFailure],
    failed: Mapping[str, StageFailure],
) -> Evaluation:
    """Compute the metrics of scores, with warnings and the summary of a learnt pool.

    Args:
        method: The method, built with `task`; its pool takes the stored weights.
        task: The images, with the whole background.
        scores: Scores by arm.
        config: Protocol and seed.
        folder: Folder of the stored pool and of the curves.
        failures: Failures of stages by name.
        failed: Failures of the arms without scores.

    Raises:
        FileNotFoundError: If the pool has not been stored.
        ValueError: If a file is damaged.
    """
    learnt = learnt_pool_of(method, failures)
    if learnt is not None:
        with naming(folder.pool):
            learnt.pool.load_state_dict(folder.read_pool())
    metrics = metrics_document(
        method, task, scores, protocol=config.protocol, seed=config.seed, failed=failed, learnt=learnt
    )
    if warnings := run_warnings(method, metrics, scores, read_curves(folder.curves)):
        metrics["warnings"] = warnings
    return Evaluation(metrics=metrics, scores=scores)
