"""Training methods: stages that one loop runs, and arms that are judged by a score.

A new method is one file: a class with the members of `fastood.training.stage.Method`, and a config dataclass whose
`build` makes it; `MethodConfig` names the config.
"""

from fastood.methods.ice import ICE, ICEConfig
from fastood.methods.resample import Resample, ResampleConfig

MethodConfig = ResampleConfig | ICEConfig
"""Configurations that a run can be given."""

__all__ = ["ICE", "ICEConfig", "MethodConfig", "Resample", "ResampleConfig"]
