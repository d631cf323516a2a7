"""Mahalanobis detector: squared distance to the nearest class mean (Lee et al. 2018, https://arxiv.org/abs/1807.03888)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor

from fastood.detectors.base import Detector
from fastood.detectors.batches import labelled_batches
from fastood.detectors.checks import check_rows
from fastood.detectors.feature_extractor import FeatureExtractor
from fastood.detectors.mahalanobis_fitting import CHUNK_ROWS, Fitting, MahalanobisSettings
from fastood.detectors.mahalanobis_state import MahalanobisState
from fastood.detectors.model_calls import Inputs, Model
from fastood.detectors.perturbation import perturbed
from fastood.detectors.pytorch_ood_names import takes_pytorch_ood
from fastood.detectors.storage import read_detector, with_stored_layer, write_detector
from fastood.heads import GaussianStatistics
from fastood.heads.covariance import Shrinkage

__all__ = ["MahalanobisDetector"]


class MahalanobisDetector(Detector):
    r"""Detector with the score `min_k (z - m_k)^T Σ^-1 (z - m_k)` of features z, for class means m_k and covariance Σ.

    The fit is one pass in float64 (`GaussianStatistics`). The score whitens the rows once; memory is a chunk of rows
    times classes plus d², never N × N. Rows with a label below 0 are skipped.

    Choices in which papers and libraries differ:
        - All covariances are divided by the number of rows, also that of `relative`, so that their distances have one
          scale.
        - Covariances are factorised, not inverted with a constant on the diagonal. A singular covariance, or one with
          features that are constant up to rounding (see `GaussianStatistics`), is an error that names the features;
          set `shrinkage` then. Features after a ReLU are often constant: `build_detectors` sets "oas".
        - A class without rows is left out. With `relative` and one class all scores are equal up to rounding.
        - With one covariance per class the score is `min_k (z - m_k)^T Σ_k^-1 (z - m_k) + log det Σ_k`, twice the
          negative log-density, because distances alone would favour the class with the largest covariance.

    Args:
        model: The network, or a function from inputs to features; None for `fit_features` and `predict_features` only.
            It runs in evaluation mode, and its previous mode is restored; see `FeatureExtractor`.
        feature_layer: Name of the layer whose output is the features; None for the output of `model`.
        covariance: "tied" or "per_class".
        shrinkage: None, "oas", "ledoit_wolf" or a share in [0, 1], see `GaussianStatistics.covariance`. "ledoit_wolf"
            needs a second pass over the data and excludes `partial_fit`.
        normalize: Whether to divide features by their length first (Mahalanobis++, Müller & Hein 2025); rows of zeros
            stay zeros.
        relative: Whether to subtract the distance by mean and covariance of all rows (Ren et al. 2021,
            https://arxiv.org/abs/2106.09022).
        epsilon: Step ε by which inputs are moved against the gradient of their score first (Lee et al. 2018, section
            2.2), in the units of the inputs before division by `input_std`; 0 for no step. Needs a backward pass.
        input_std: Standard deviation that each channel was divided by; None for 1.

    Raises:
        TypeError: If `model` is not callable, or `feature_layer` is named and it is not an `nn.Module`.
        ValueError: If a setting is out of range, or the layer does not exist.

    Example:
        >>> import torch
        >>> generator = torch.Generator().manual_seed(0)
        >>> labels = torch.arange(400) % 2
        >>> features = torch.randn(400, 3, generator=generator) + 10 * labels[:, None]
        >>> detector = MahalanobisDetector().fit_features(features, labels)
        >>> near, between = detector.predict_features(torch.tensor([[10.0, 10.0, 10.0], [5.0, 5.0, 5.0]]))
        >>> bool(near < 0.1), bool(between > 50)
        (True, True)
    """

    reads = "features"
    needs_fit = True

    @takes_pytorch_ood("eps", "norm_std", eps="epsilon", norm_std="input_std")
    def __init__(
        self,
        model: Model | None = None,
        feature_layer: str | None = None,
        *,
        covariance: Literal["tied", "per_class"] = "tied",
        shrinkage: Shrinkage = None,
        normalize: bool = False,
        relative: bool = False,
        epsilon: float = 0.0,
        input_std: Sequence[float] | None = None,
    ) -> None:
        if model is None and feature_layer is not None:
            raise ValueError(f"feature_layer needs a model, got {feature_layer!r} without one")
        self.settings = MahalanobisSettings(
            covariance=covariance,
            shrinkage=shrinkage,
            normalize=normalize,
            relative=relative,
            epsilon=epsilon,
            input_std=input_std,
        )
        self.feature_layer = feature_layer
        layers = None if feature_layer is None else [feature_layer]
        self._extractor = None if model is None else FeatureExtractor(model, layers)
        self._state = MahalanobisState(self.settings)

    @property
    def statistics(self) -> GaussianStatistics | None:
        """Statistics of the training features, or None before the first fit."""
        return self._state.statistics

    def __repr__(self) -> str:
        """Return the settings that differ from the defaults, and the statistics."""
        defaults = asdict(MahalanobisSettings())
        changed = [f"{name}={value!r}" for name, value in asdict(self.settings).items() if value != defaults[name]]
        return f"MahalanobisDetector({', '.join([*changed, repr(self.statistics or 'not fitted')])})"

    # Tensors made in inference mode cannot be saved for a backward pass, which `perturbed` takes through them.
    @torch.inference_mode(False)
    @torch.no_grad()
    def fit(self, loader: Iterable[Any]) -> MahalanobisDetector:
        """Fit to the features of batches `(inputs, labels, ...)`, replacing the previous fit.

        Args:
            loader: Batches, see `Detector.fit`; iterated twice for "ledoit_wolf".

        Returns:
            Itself.

        Raises:
            ValueError: If there is no model, or `fit_features` raises it. The previous fit is then kept.
        """
        self.settings.check_passes(loader)
        fitting = Fitting(self.settings)
        for inputs, labels in labelled_batches(loader):
            fitting.add(self.extract(inputs), labels)
        if self.settings.two_passes:
            for inputs, labels in labelled_batches(loader):
                fitting.add_again(self.extract(inputs), labels)
        return self._take(fitting)

    @torch.inference_mode(False)
    @torch.no_grad()
    def fit_features(self, features: Tensor, labels: Tensor) -> MahalanobisDetector:
        """Fit to features, replacing the previous fit.

        Args:
            features: `[N, d]`, any floating dtype, finite where the label is not below zero.
            labels: int64 `[N]`; rows with a label below 0 are skipped.

        Returns:
            Itself.

        Raises:
            TypeError: If a tensor is of another dtype.
            ValueError: If a shape or value is invalid, no row has a label of 0 or above, or a covariance is singular.
                The previous fit is then kept.
        """
        fitting = Fitting(self.settings)
        fitting.add(features, labels)
        if self.settings.two_passes:
            fitting.add_again(features, labels)
        return self._take(fitting)

    @torch.inference_mode(False)
    @torch.no_grad()
    def partial_fit(self, features: Tensor, labels: Tensor) -> MahalanobisDetector:
        """Add features to the statistics; arguments and errors are those of `fit_features`.

        The covariance is factorised at the next score, so that it may be singular after the first batches.
        """
        self._state.add(features, labels)
        return self

    @torch.inference_mode(False)
    @torch.no_grad()
    def all_reduce(self, group: dist.ProcessGroup | None = None) -> MahalanobisDetector:
        """Sum the statistics that all processes have fitted with `partial_fit`; call it once.

        A process without data only receives the statistics of the others.

        Raises:
            ValueError: If the shrinkage is "ledoit_wolf", or the processes differ in a setting or in the width of the
                features. Every process raises, and none has changed.
            RuntimeError: If nothing has been fitted in any process, or there is no process group.
        """
        self._state.all_reduce(group)
        return self

    def predict(self, x: Inputs) -> Tensor:
        """Return scores float64 `[N]` of inputs; higher is more out-of-distribution.

        Raises:
            ValueError: If there is no model, or its output is not `[N, d]` or `[N, C, H, W]`.
            RuntimeError: If nothing has been fitted.
        """
        if self.settings.epsilon > 0:
            x = self.perturbed(x, self._extract)
        return self.predict_features(self.extract(x))

    @torch.no_grad()
    def predict_features(self, features: Tensor) -> Tensor:
        """Return scores float64 `[N]` of features `[N, d]`; NaN for a row that is not finite.

        Raises:
            TypeError: If `features` is not floating-point.
            ValueError: If the width of `features` differs from that of the fitted features.
            RuntimeError: If nothing has been fitted.
        """
        return torch.cat([self._distances(chunk).amin(1) for chunk in self._chunks(features)])

    @torch.no_grad()
    def class_distances(self, features: Tensor) -> Tensor:
        """Return distances float64 `[N, K]` to every class, +inf for a class without rows.

        The score is the minimum of a row; `argmin(1)` is the class by Gaussian discriminant analysis with equal priors.
        Errors are those of `predict_features`.
        """
        fitted, chunks = self._state.classes(), self._chunks(features)
        distances = fitted.means.new_full((len(features), self._state.require_statistics().num_classes), torch.inf)
        distances[:, fitted.index] = torch.cat([self._distances(chunk) for chunk in chunks])
        return distances

    def perturbed(self, x: Inputs, extract: Callable[[Tensor], Tensor]) -> Tensor:
        """Return inputs moved by `epsilon`; `extract` is a differentiable function from inputs to features."""

        def score(x: Tensor) -> Tensor:
            return self._distances(extract(x)).amin(1)

        return perturbed(x, score, self.settings.epsilon, self.settings.input_std)

    @torch.no_grad()
    def extract(self, x: Inputs) -> Tensor:
        """Return the features `[N, d]` of inputs.

        Raises:
            ValueError: If there is no model, or its output is not `[N, d]` or `[N, C, H, W]`.
        """
        return self._extract(x)

    def save(self, path: str | Path) -> None:
        """Write settings and statistics, without the model, as one safetensors file, atomically.

        Raises:
            RuntimeError: If nothing has been fitted.
        """
        write_detector(
            path, self.state_dict(), {"settings": asdict(self.settings), "feature_layer": self.feature_layer}
        )

    @classmethod
    @torch.inference_mode(False)
    def load(
        cls, path: str | Path, model: Model | None = None, feature_layer: str | None = None
    ) -> MahalanobisDetector:
        """Read a file written by `save`, which holds no model; the layer is read from the file unless it is named."""
        tensors, metadata = read_detector(path)
        named = with_stored_layer(metadata, (model,), {"feature_layer": feature_layer})
        detector = cls(model, **(named | metadata["settings"]))
        detector.load_state_dict(tensors)
        return detector

    @classmethod
    def of_fitting(cls, fitting: Fitting) -> MahalanobisDetector:
        """Return a detector without a model from a complete fit; errors are those of `fit_features`."""
        return cls(**asdict(fitting.settings))._take(fitting)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the statistics as tensors, not copied.

        Raises:
            RuntimeError: If nothing has been fitted.
        """
        return self._state.state_dict()

    @torch.inference_mode(False)
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Replace the statistics by those of a `state_dict`.

        Raises:
            ValueError: If a tensor is missing, or the covariances are not of the kind that the settings name.
        """
        self._state.load_state_dict(state)

    def _extract(self, x: Inputs) -> Tensor:
        if self._extractor is None:
            raise ValueError("the detector has no model: pass one, or use fit_features and predict_features")
        return self._extractor(x)[0]

    def _take(self, fitting: Fitting) -> MahalanobisDetector:
        self._state.replace(fitting)
        return self

    def _chunks(self, features: Tensor) -> tuple[Tensor, ...]:
        """Return chunks of checked rows, which bound the memory of rows times classes."""
        check_rows(features, self._state.require_statistics().num_features)
        return torch.split(features.detach(), CHUNK_ROWS)

    def _distances(self, features: Tensor) -> Tensor:
        """Return distances of one chunk to the classes with rows, NaN for rows that are not finite; differentiable."""
        fitted = self._state.classes()
        distances = fitted.distances(self.settings.prepared(features).to(fitted.means.device))
        # An infinite feature would give NaN or infinity, by the signs in the factor: such rows are NaN for every class.
        finite = features.isfinite().all(1, keepdim=True).to(distances.device)
        return distances.masked_fill(~finite, torch.nan)
