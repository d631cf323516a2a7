"""Stages that fail numerically, and the arms that depend on them."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch

LinAlgError: type[RuntimeError] = torch.linalg.LinAlgError  # type: ignore[attr-defined]
"""Error of a factorisation of values that are not finite or form a singular matrix."""


class StageFailedError(ArithmeticError):
    """A stage cannot be trained to its end; the message names the stage, the step and the reason."""


class NonFiniteLossError(StageFailedError):
    """The loss or a weight became NaN or infinite; the message names the step and its images."""


@dataclass(frozen=True, kw_only=True)
class StageFailure:
    """A failed stage, or an arm that has no scores, as failed.json and metrics.json hold it."""

    stage: str
    """Stage that failed."""
    step: int | None
    """Steps of the stage that were done; None if an earlier stage failed, or the trained arm cannot be evaluated."""
    steps: int | None
    """Steps of the whole stage; None if it did not begin."""
    reason: str
    """Reason of the failure, without stage and step."""

    def describe(self) -> str:
        """Return the failure as a sentence part.

        Example:
            >>> StageFailure(stage="energy", step=48, steps=490, reason="the loss is inf").describe()
            "stage 'energy', step 48 of 490: the loss is inf"
        """
        of = "" if self.steps is None else f" of {self.steps}"
        return f"stage {self.stage!r}" + ("" if self.step is None else f", step {self.step}{of}") + f": {self.reason}"


def reason_of(error: Exception, *, stage: str, step: int, steps: int | None) -> StageFailure:
    """Return the failure of which an error informs; stage and step are left out of its reason.

    Args:
        error: The error; a step that its message names is that of the failure, since losses may be read later.
        stage: Name of the stage.
        step: Steps of the stage that were done.
        steps: Steps of the whole stage; None if it did not begin.

    Example:
        >>> error = NonFiniteLossError("stage 'a', step 3 of 9: the loss is nan")
        >>> reason_of(error, stage="a", step=3, steps=9).reason
        'the loss is nan'
        >>> reason_of(error, stage="a", step=5, steps=9).step
        3
    """
    text = str(error)
    if named := re.match(rf"stage {re.escape(repr(stage))}, step (\d+) of {steps}: ", text):
        step, text = int(named[1]), text[named.end() :]
    return StageFailure(stage=stage, step=step, steps=steps, reason=text)
