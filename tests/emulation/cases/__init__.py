"""Small calls of every op that reach every branch of the CUDA code, by folder of csrc/."""

from __future__ import annotations

from tests.emulation.cases.augment import augment_cases
from tests.emulation.cases.case import Case, Ops, first_line
from tests.emulation.cases.heads import mahalanobis_cases, nearest_cases
from tests.emulation.cases.metrics import metrics_cases
from tests.emulation.cases.misuse import misuse_cases
from tests.emulation.cases.pool import pool_cases
from tests.emulation.cases.rows import loss_cases, score_cases

__all__ = ["Case", "Ops", "all_cases", "first_line"]


def all_cases() -> list[Case]:
    """Return the cases of all folders."""
    return [
        *pool_cases(),
        *loss_cases(),
        *score_cases(),
        *mahalanobis_cases(),
        *nearest_cases(),
        *metrics_cases(),
        *augment_cases(),
        *misuse_cases(),
    ]
