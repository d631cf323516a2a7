"""Training methods: stages that one loop runs, arms that are judged, a score.

A new method is one file: a class with the members of `Method`, and a config dataclass whose `build` makes it;
`MethodConfig` names the config.
"""

from fastood.methods.resample import Resample, ResampleConfig
from fastood.training.stage import Arm, Method, Schedule, Stage

MethodConfig = ResampleConfig
"""Configurations that a run can be given."""

__all__ = ["Arm", "Method", "MethodConfig", "Resample", "ResampleConfig", "Schedule", "Stage"]
