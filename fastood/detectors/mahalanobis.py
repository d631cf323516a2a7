"""The Mahalanobis detector: squared distance to the nearest class of a Gaussian fit to features (Lee et al. 2018)."""

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
    r"""Score `min_k (z - m_k)^T Σ^-1 (z - m_k)` of features z, from class means and covariances of training features.

    Fitted in one pass and in float64 (`GaussianStatistics`), scored through one whitening: memory is that of a chunk of
    rows by classes and of d², never N × N. Rows with a label below zero are skipped.

    Choices that papers and libraries differ in:
        - The covariance is divided by the number of rows, the shared one and that of `relative` alike, so that their
          distances are on one scale.
        - It is factorised, not inverted with something added: a singular one, or one with features that are constant
          but for rounding (see `GaussianStatistics`), is an error that names them, with `shrinkage` as the remedy.
          Features after a ReLU are often constant; `build_detectors` takes "oas", which gives them a variance.
        - A class without rows is left out; with `relative` and one class every score is of no use, but defined.
        - With one covariance per class the score is `min_k (z - m_k)^T Σ_k^-1 (z - m_k) + log det Σ_k`, twice the
          negative log-density: bare distances would favour the class with the largest covariance.

    Args:
        model: Maps inputs to features, or has a layer that does; None for `fit_features` and `predict_features` alone.
            Any module or callable, see `FeatureExtractor`: it runs in evaluation mode and is left as it was.
        feature_layer: Name of the layer whose output is the features; None for the output of `model`.
        covariance: "tied" or "per_class".
        shrinkage: None, "oas", "ledoit_wolf" or a share, as `GaussianStatistics.covariance` takes it. "ledoit_wolf"
            takes a second pass over the data, so `partial_fit` does not go with it.
        normalize: Divide features by their length first (Mahalanobis++, Müller & Hein 2025); zeros stay zeros.
        relative: Subtract the distance by mean and covariance of all rows whatever their class (Ren et al. 2021).
        epsilon: Move inputs by ε against the gradient of their score first (Lee et al. 2018, section 2.2), in the
            units of the inputs before they were divided by `input_std`; 0 for not. Takes a backward pass per batch.
        input_std: What each channel was divided by; None for 1.

    Attributes:
        statistics: A `GaussianStatistics`, or None before there is one.

    Raises:
        TypeError: `model` is nothing of these.
        ValueError: A setting is out of range, or the layer does not exist.

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
        """The settings that differ from the defaults, and what there is to score with."""
        defaults = asdict(MahalanobisSettings())
        said = [f"{name}={value!r}" for name, value in asdict(self.settings).items() if value != defaults[name]]
        return f"MahalanobisDetector({', '.join([*said, repr(self.statistics or 'not fitted')])})"

    @torch.inference_mode(False)
    @torch.no_grad()
    def fit(self, loader: Iterable[Any]) -> MahalanobisDetector:
        """Fit to the features of batches `(inputs, labels, ...)`, instead of what was there.

        Args:
            loader: Of batches; gone through twice for "ledoit_wolf".

        Returns:
            Itself.

        Raises:
            ValueError: There is no model, or as in `fit_features`. What was fitted before is then still there.
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
        """Fit to features, instead of what was there.

        Args:
            features: `[N, d]`, any floating dtype, finite where the label is not below zero.
            labels: `[N]`, int64; below zero for rows to skip.

        Returns:
            Itself.

        Raises:
            TypeError: A tensor is of another dtype.
            ValueError: A shape or value does not fit, no row is left, or a covariance is singular. What was fitted
                before is then still there.
        """
        fitting = Fitting(self.settings)
        fitting.add(features, labels)
        if self.settings.two_passes:
            fitting.add_again(features, labels)
        return self._take(fitting)

    @torch.inference_mode(False)
    @torch.no_grad()
    def partial_fit(self, features: Tensor, labels: Tensor) -> MahalanobisDetector:
        """Add features to what was fitted; arguments and errors as in `fit_features`.

        The covariance is factorised when the next score asks for it, so that early batches may leave it singular.
        """
        self._state.add(features, labels)
        return self

    @torch.inference_mode(False)
    @torch.no_grad()
    def all_reduce(self, group: dist.ProcessGroup | None = None) -> MahalanobisDetector:
        """Add what all processes have fitted with `partial_fit`; call it once, as `GaussianStatistics.all_reduce`.

        A process that has fitted nothing adds nothing, and afterwards holds what the others have.

        Raises:
            ValueError: The shrinkage is "ledoit_wolf", as in `partial_fit`; the processes differ in a setting or in the
                width of the features. All processes say so, and none has changed.
            RuntimeError: Nothing has been fitted in any process, or there is no process group.
        """
        self._state.all_reduce(group)
        return self

    def predict(self, x: Inputs) -> Tensor:
        """Scores float64 `[N]` of inputs, higher for out-of-distribution.

        Raises:
            ValueError: There is no model, or it puts out no features.
            RuntimeError: Nothing has been fitted.
        """
        if self.settings.epsilon > 0:
            x = self.perturbed(x, self._extract)
        return self.predict_features(self.extract(x))

    @torch.no_grad()
    def predict_features(self, features: Tensor) -> Tensor:
        """Scores float64 `[N]` of features `[N, d]`, higher for out-of-distribution; NaN for a row that is not finite.

        Raises:
            TypeError: `features` is not floating-point.
            ValueError: It has another width than what was fitted.
            RuntimeError: Nothing has been fitted.
        """
        return torch.cat([self._distances(chunk).amin(1) for chunk in self._chunks(features)])

    @torch.no_grad()
    def class_distances(self, features: Tensor) -> Tensor:
        """Distances float64 `[N, K]` to every class, +inf to one without rows; the score is the least of a row.

        Their `argmin(1)` is the class by Gaussian discriminant analysis with equal priors. Errors as in
        `predict_features`.
        """
        fitted, chunks = self._state.classes(), self._chunks(features)
        found = fitted.means.new_full((len(features), self._state.require_statistics().num_classes), torch.inf)
        found[:, fitted.index] = torch.cat([self._distances(chunk) for chunk in chunks])
        return found

    def perturbed(self, x: Inputs, extract: Callable[[Tensor], Tensor]) -> Tensor:
        """Inputs after the step that `epsilon` asks for; `extract` gives the features of inputs, differentiably."""

        def score(x: Tensor) -> Tensor:
            return self._distances(extract(x)).amin(1)

        return perturbed(x, score, self.settings.epsilon, self.settings.input_std)

    @torch.no_grad()
    def extract(self, x: Inputs) -> Tensor:
        """Features `[N, d]` of inputs, as the detector takes them from the model.

        Raises:
            ValueError: There is no model, or it puts out no features.
        """
        return self._extract(x)

    def save(self, path: str | Path) -> None:
        """Write settings and statistics, without the model, as one safetensors file, whole or not at all.

        Raises:
            RuntimeError: Nothing has been fitted.
        """
        write_detector(
            path, self.state_dict(), {"settings": asdict(self.settings), "feature_layer": self.feature_layer}
        )

    @classmethod
    @torch.inference_mode(False)
    def load(
        cls, path: str | Path, model: Model | None = None, feature_layer: str | None = None
    ) -> MahalanobisDetector:
        """Read what `save` wrote; the model is not in the file, the name of its layer is, if none is given here."""
        tensors, said = read_detector(path)
        named = with_stored_layer(said, (model,), {"feature_layer": feature_layer})
        made = cls(model, **(named | said["settings"]))
        made.load_state_dict(tensors)
        return made

    @classmethod
    def of_fitting(cls, fitting: Fitting) -> MahalanobisDetector:
        """A detector without a model, of features that have been added up elsewhere; errors as in `fit_features`."""
        return cls(**asdict(fitting.settings))._take(fitting)

    def state_dict(self) -> dict[str, Tensor]:
        """What was fitted, as tensors; not copied."""
        return self._state.state_dict()

    @torch.inference_mode(False)
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over what `state_dict` returned.

        Raises:
            ValueError: A tensor is missing, or the covariances are not those that the settings ask for.
        """
        self._state.load_state_dict(state)

    def _extract(self, x: Inputs) -> Tensor:
        if self._extractor is None:
            raise ValueError("the detector has no model: use fit_features and predict_features, or pass one")
        return self._extractor(x)[0]

    def _take(self, fitting: Fitting) -> MahalanobisDetector:
        self._state.replace(fitting)
        return self

    def _chunks(self, features: Tensor) -> tuple[Tensor, ...]:
        """A few rows at a time, or an error."""
        check_rows(features, self._state.require_statistics().num_features)
        return torch.split(features.detach(), CHUNK_ROWS)

    def _distances(self, features: Tensor) -> Tensor:
        """Of one chunk, to the classes that have rows; differentiable. NaN for a row that is not finite."""
        fitted = self._state.classes()
        found = fitted.distances(self.settings.prepared(features).to(fitted.means.device))
        finite = features.isfinite().all(1, keepdim=True).to(found.device)
        return found.masked_fill(~finite, torch.nan)
