"""Stages of a GPU run, the most decisive first: after ten minutes a run has built, measured the goals, and tested."""

from __future__ import annotations

from . import measure, profiling, sanitize, train
from .build import BUILD_STAGE, MACHINE
from .kernel_names import KERNELS
from .runner import Stage
from .tests import SMOKE_STAGE, TESTS

STAGES: list[Stage] = [
    MACHINE,
    BUILD_STAGE,
    SMOKE_STAGE,
    measure.GOALS_STAGE,
    TESTS,
    sanitize.STAGES[0],
    sanitize.STAGES[1],
    train.TRAIN,
    profiling.PROFILE,
    KERNELS,
    *measure.STAGES,
    *sanitize.STAGES[2:],
]
