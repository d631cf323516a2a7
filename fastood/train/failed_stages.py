"""Effects of failed stages: stages and arms that depend on them, and no others."""

from __future__ import annotations

from collections.abc import Mapping

from fastood.train.engine.failure import StageFailure
from fastood.train.method import LearntPool, Method


def with_dependants(method: Method, failed: Mapping[str, StageFailure]) -> dict[str, StageFailure]:
    """Return failures by stage, including the stages that depend on a failed one.

    Args:
        method: The method, whose stages are in the order in which they run.
        failed: Failures of stages that ran.
    """
    failures = dict(failed)
    for stage in method.stages:
        bases = [base for base in (stage.start_from, *stage.needs) if base in failures]
        if bases and stage.name not in failures:
            root = failures[bases[0]]
            why = root.reason if root.step is None else f"it needs what has failed, {root.describe()}"
            failures[stage.name] = StageFailure(stage=stage.name, step=None, steps=None, reason=why)
    return failures


def failed_arms(method: Method, failed: Mapping[str, StageFailure]) -> dict[str, StageFailure]:
    """Return the failures of arms by the arm's name, in the order of the table.

    Args:
        method: The method.
        failed: Failures of stages that ran.
    """
    stages = with_dependants(method, failed)
    return {arm.name: stages[arm.stage] for arm in method.arms if arm.stage in stages}


def learnt_pool_of(method: Method, failed: Mapping[str, StageFailure]) -> LearntPool | None:
    """Return the method's learnt weights; None if it learns none, or the stage that learns them has failed."""
    if method.learnt_arm is None:
        return None
    names = {arm.name: arm.stage for arm in method.arms}
    needs = next(stage.needs for stage in method.stages if stage.name == names[method.learnt_arm])
    return None if set(needs) & set(with_dependants(method, failed)) else method.learnt_pool
