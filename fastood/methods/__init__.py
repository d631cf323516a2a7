"""Training methods: stages that one loop runs, arms that are judged, a score.

A new method is one file: a config dataclass and a class with the members of `Method`.
"""

from fastood.methods.resample import Resample, ResampleConfig
from fastood.methods.stage import Arm, Method, Schedule, Stage

__all__ = ["Arm", "Method", "Resample", "ResampleConfig", "Schedule", "Stage"]
