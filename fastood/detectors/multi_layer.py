"""Mahalanobis scores of several layers, combined (Lee et al. 2018, section 2.2)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastood.common.extras import needed_for
from fastood.detectors.batches import labelled_batches
from fastood.detectors.feature_extractor import FeatureExtractor
from fastood.detectors.logits import check_positive
from fastood.detectors.mahalanobis import MahalanobisDetector
from fastood.detectors.mahalanobis_fitting import Fitting
from fastood.detectors.model_calls import Inputs, Model
from fastood.detectors.storage import read_detector, write_detector

__all__ = ["MultiLayerMahalanobisDetector"]


class MultiLayerMahalanobisDetector:
    r"""Weighted sum of the Mahalanobis scores of several layers: `Σ_l a_l s_l(x)`.

    One forward pass gives the features of all layers. Weights are 1 at first: the sum of squared distances is that of
    features taken as independent. `fit_weights` learns them by logistic regression, as Lee et al. do; on held-out
    in-distribution data and background data (or perturbed inputs), never on the test sets: their code fits them to a
    part of each test OOD set, which no detector in use has.

    Args:
        model: An `nn.Module`.
        feature_layers: Names of layers that put out `[N, d]` or `[N, C, H, W]` (of which the spatial mean is taken).
        **settings: Of every layer's `MahalanobisDetector`. With `epsilon` each layer scores inputs that were moved by
            the gradient of its own score, as in the paper: a forward and a backward pass for each.

    Attributes:
        feature_layers: The names.
        weights: float64 `[L]`.

    Raises:
        TypeError: `model` is no module.
        ValueError: A setting is out of range, or a layer does not exist.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 4), nn.Linear(4, 3))
        >>> x, y = torch.randn(100, 6), torch.arange(100) % 3
        >>> detector = MultiLayerMahalanobisDetector(model, ["1", "2"]).fit([(x, y)])
        >>> detector.predict(x).shape, detector.layer_scores(x).shape
        (torch.Size([100]), torch.Size([100, 2]))
    """

    def __init__(self, model: Model, feature_layers: Sequence[str], **settings: Any) -> None:
        self._extractor = FeatureExtractor(model, feature_layers)
        self.feature_layers = tuple(feature_layers)
        self._settings = MahalanobisDetector(**settings).settings
        self._layers: list[MahalanobisDetector] = []
        self.weights = torch.ones(len(feature_layers), dtype=torch.float64)

    @torch.inference_mode(False)
    @torch.no_grad()
    def fit(self, loader: Iterable[Any]) -> MultiLayerMahalanobisDetector:
        """Fit every layer to batches `(inputs, labels, ...)` in one pass (two for "ledoit_wolf"), weights as they are.

        Raises:
            ValueError: As in `MahalanobisDetector.fit`. What was fitted before is then still there.
        """
        self._settings.check_passes(loader)
        fits = [Fitting(self._settings) for _ in self.feature_layers]
        for inputs, labels in labelled_batches(loader):
            for fit, features in zip(fits, self.extract(inputs), strict=True):
                fit.add(features, labels)
        if self._settings.two_passes:
            for inputs, labels in labelled_batches(loader):
                for fit, features in zip(fits, self.extract(inputs), strict=True):
                    fit.add_again(features, labels)
        self._layers = [MahalanobisDetector.of_fitting(fit) for fit in fits]
        return self

    @torch.inference_mode(False)
    @torch.no_grad()
    def fit_weights(self, loader: Iterable[Any], *, regularization: float = 1.0) -> MultiLayerMahalanobisDetector:
        """Learn the weights of the layers by logistic regression on standardised scores (scikit-learn).

        Args:
            loader: Of batches `(inputs, labels, ...)` held out from `fit`: labels below zero are background data.
            regularization: scikit-learn's C, the inverse of the strength of the penalty, above 0.

        Returns:
            Itself, with `weights` in units of the layers' scores; only their ratios matter to a ranking.

        Raises:
            ValueError: There is no row of either kind, a score is not finite, or `regularization` is out of range.
            RuntimeError: Nothing has been fitted.
        """
        with needed_for("fit_weights"):
            from sklearn.linear_model import LogisticRegression

        check_positive("regularization", regularization)
        scores, background = [], []
        for inputs, labels in labelled_batches(loader):
            scores.append(self.layer_scores(inputs).cpu())
            background.append(labels < 0)
        if not scores or len(set(torch.cat(background).tolist())) < 2:
            raise ValueError("loader must give in-distribution rows and rows with a label below zero, got one kind")
        of_layer, is_background = torch.cat(scores), torch.cat(background)
        if not bool(of_layer.isfinite().all()):
            raise ValueError("the scores of every layer must be finite, got NaN or infinity")
        spread = of_layer.std(0).clamp_min(torch.finfo(torch.float64).tiny)
        standard = (of_layer - of_layer.mean(0)) / spread
        model = LogisticRegression(C=regularization).fit(standard.numpy(), is_background.cpu().numpy())
        self.weights = torch.from_numpy(model.coef_[0]).to(spread) / spread
        return self

    def predict(self, x: Inputs) -> Tensor:
        """Scores float64 `[N]` of inputs, higher for out-of-distribution.

        Raises:
            RuntimeError: Nothing has been fitted.
        """
        scores = self.layer_scores(x)
        return scores @ self.weights.to(scores.device)

    def layer_scores(self, x: Inputs) -> Tensor:
        """The score of each layer, float64 `[N, L]`."""
        if len(self._layers) == 0:
            raise RuntimeError("the detector has not been fitted: call fit first")
        if self._settings.epsilon == 0:
            features = self.extract(x)
        else:
            features = [self.extract(self._perturbed(x, i))[i] for i in range(len(self._layers))]
        pairs = zip(self._layers, features, strict=True)
        return torch.stack([layer.predict_features(of_layer) for layer, of_layer in pairs], 1)

    @torch.no_grad()
    def extract(self, x: Inputs) -> list[Tensor]:
        """Features `[N, d]` of each layer."""
        return self._extractor(x)

    def save(self, path: str | Path) -> None:
        """Write settings, statistics and weights, without the model, as one safetensors file, whole or not at all."""
        if len(self._layers) == 0:
            raise RuntimeError("the detector has not been fitted: call fit first")
        tensors = {"weights": self.weights}
        for i, layer in enumerate(self._layers):
            tensors |= {f"{i}.{name}": tensor for name, tensor in layer.state_dict().items()}
        write_detector(path, tensors, {"settings": asdict(self._settings), "feature_layers": self.feature_layers})

    @classmethod
    @torch.inference_mode(False)
    def load(cls, path: str | Path, model: Model) -> MultiLayerMahalanobisDetector:
        """Read what `save` wrote; the model is not in the file."""
        tensors, said = read_detector(path)
        made = cls(model, said["feature_layers"], **said["settings"])
        made.weights = tensors["weights"]
        for i in range(len(made.feature_layers)):
            layer = MahalanobisDetector(**said["settings"])
            layer.load_state_dict({n.partition(".")[2]: t for n, t in tensors.items() if n.startswith(f"{i}.")})
            made._layers.append(layer)
        return made

    def _perturbed(self, x: Inputs, position: int) -> Tensor:
        return self._layers[position].perturbed(x, lambda x: self._extractor(x)[position])
