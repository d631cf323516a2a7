"""Fitted state of a Mahalanobis detector: statistics, their sum over processes, and their tensors for a file."""

from __future__ import annotations

from dataclasses import asdict

import torch
import torch.distributed as dist
from torch import Tensor

from fastood.common.distributed import check_alike, exchange
from fastood.detectors.gaussian_classes import FourthMoments, GaussianClasses
from fastood.detectors.mahalanobis_fitting import Fitting, MahalanobisSettings
from fastood.heads import GaussianStatistics

__all__ = ["MahalanobisState"]

_NOT_FITTED = "the detector has not been fitted: call fit, fit_features or partial_fit first"


class MahalanobisState:
    """Statistics of the training features, and the Gaussians factorised from them on demand.

    Args:
        settings: Settings of the detector.

    Attributes:
        statistics: A `GaussianStatistics`, or None before the first fit.
    """

    def __init__(self, settings: MahalanobisSettings) -> None:
        self.settings = settings
        self.statistics: GaussianStatistics | None = None
        self._fourth: FourthMoments | None = None
        self._classes: GaussianClasses | None = None

    def replace(self, fitting: Fitting) -> None:
        """Factorise a complete fit and replace the previous state by it; an error leaves the previous state."""
        self._classes = fitting.classes()
        self.statistics, self._fourth = fitting.statistics, fitting.fourth

    def add(self, features: Tensor, labels: Tensor) -> None:
        """Add rows `[N, d]` with labels `[N]` to the statistics."""
        self._require_one_pass("partial_fit")
        fitting = Fitting(self.settings, self.statistics)
        fitting.add(features, labels)
        self.statistics, self._classes = fitting.statistics, None

    def all_reduce(self, group: dist.ProcessGroup | None) -> None:
        """Sum the statistics of all processes; see `MahalanobisDetector.all_reduce`."""
        # Without a process group no other process waits for this one, and it may raise before the exchange.
        if not dist.is_initialized():
            self._require_one_pass("all_reduce")
            self.require_statistics()
        statistics = self.statistics
        own = None if statistics is None else (statistics.num_features, statistics.means.device.type)
        device = None if statistics is None else statistics.means.device
        states = exchange((asdict(self.settings), own), group, device=device)
        for name in asdict(self.settings):
            check_alike(name, [settings[name] for settings, _ in states])
        self._require_one_pass("all_reduce")
        fitted = [widths for _, widths in states if widths is not None]
        if not fitted:
            raise RuntimeError(_NOT_FITTED)
        if statistics is None:
            # A process without data takes part with statistics of zero rows.
            width, device_type = fitted[0]
            per_class = self.settings.covariance == "per_class"
            statistics = GaussianStatistics(width, per_class=per_class, device=device_type)
        statistics.all_reduce(group)
        self.statistics, self._classes = statistics, None

    def require_statistics(self) -> GaussianStatistics:
        """Return the statistics.

        Raises:
            RuntimeError: If nothing has been fitted.
        """
        if self.statistics is None:
            raise RuntimeError(_NOT_FITTED)
        return self.statistics

    def classes(self) -> GaussianClasses:
        """Return the Gaussians of the classes, factorised at the first call after a change of the statistics.

        Raises:
            RuntimeError: If nothing has been fitted.
            ValueError: If a covariance is singular.
        """
        statistics = self.require_statistics()
        if self._classes is None:
            self._classes = self._factorised(statistics)
        return self._classes

    def state_dict(self) -> dict[str, Tensor]:
        """Return the statistics as tensors, not copied.

        Raises:
            RuntimeError: If nothing has been fitted.
        """
        state = self.require_statistics().state_dict()
        if self._fourth is not None:
            state |= {"fourth_within": self._fourth.within, "fourth_marginal": self._fourth.marginal}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Replace the statistics by those that `state_dict` returned.

        Raises:
            ValueError: If a tensor is missing, or the covariances are not of the kind that the settings name.
        """
        statistics = GaussianStatistics.from_state_dict(state)
        if statistics.per_class != (self.settings.covariance == "per_class"):
            raise ValueError(
                f"state must have covariances as the setting {self.settings.covariance!r}, got {statistics}"
            )
        fourth = None
        if "fourth_within" in state:
            fourth = FourthMoments(within=state["fourth_within"], marginal=state["fourth_marginal"])
        self.statistics, self._fourth, self._classes = statistics, fourth, None

    # The first score after partial_fit factorises, possibly inside the caller's inference mode or with gradients on.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _factorised(self, statistics: GaussianStatistics) -> GaussianClasses:
        fitting = Fitting(self.settings, statistics)
        fitting.fourth = self._fourth
        return fitting.classes()

    def _require_one_pass(self, call: str) -> None:
        if self.settings.two_passes:
            raise ValueError(f'{call} must not be used with shrinkage="ledoit_wolf", which takes two passes; use "oas"')
