"""Weighted Mahalanobis scores of several layers (Lee et al. 2018, section 2.2, https://arxiv.org/abs/1807.03888)."""

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

    One forward pass computes the features of all layers. Initial weights are 1: the sum of squared distances is that of
    independent features. `fit_weights` learns the weights by logistic regression, as Lee et al. do, but on held-out
    in-distribution data and background data (or perturbed inputs). The code of the paper fits them to a part of each
    test OOD set, which is not available in deployment.

    Args:
        model: An `nn.Module`.
        feature_layers: Names of layers with outputs `[N, d]` or `[N, C, H, W]`, which become their spatial mean.
        **settings: Settings of every layer's `MahalanobisDetector`. With `epsilon` each layer scores inputs that were
            moved by the gradient of its own score, as in the paper: a forward and a backward pass per layer.

    Attributes:
        feature_layers: Names of the layers.
        weights: Weights of the layers, float64 `[L]`.

    Raises:
        TypeError: If `model` is not a module.
        ValueError: If a setting is out of range, or a layer does not exist.

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
        """Fit every layer to batches `(inputs, labels, ...)` in one pass (two for "ledoit_wolf"); weights are kept.

        Raises:
            ValueError: If `MahalanobisDetector.fit` raises it. The previous fit is then kept.
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
            loader: Batches `(inputs, labels, ...)` that were not used in `fit`; labels below 0 are background data.
            regularization: scikit-learn's C, the inverse of the strength of the penalty, above 0.

        Returns:
            Itself, with `weights` in units of the layers' scores; a ranking depends on their ratios only.

        Raises:
            ValueError: If there are no rows of one kind, a score is not finite, or `regularization` is out of range.
            RuntimeError: If nothing has been fitted.
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
        # The penalty treats layers equally only if their scores have unit variance. Coefficients are divided by the
        # spread afterwards, to be weights of the original scores. The clamp avoids 0 / 0.
        spread = of_layer.std(0).clamp_min(torch.finfo(torch.float64).tiny)
        standard = (of_layer - of_layer.mean(0)) / spread
        model = LogisticRegression(C=regularization).fit(standard.numpy(), is_background.cpu().numpy())
        self.weights = torch.from_numpy(model.coef_[0]).to(spread) / spread
        return self

    def predict(self, x: Inputs) -> Tensor:
        """Return scores float64 `[N]` of inputs; higher is more out-of-distribution.

        Raises:
            RuntimeError: If nothing has been fitted.
        """
        scores = self.layer_scores(x)
        return scores @ self.weights.to(scores.device)

    def layer_scores(self, x: Inputs) -> Tensor:
        """Return the score of each layer, float64 `[N, L]`."""
        if len(self._layers) == 0:
            raise RuntimeError("the detector has not been fitted: call fit first")
        if self._settings.epsilon == 0:
            features = self.extract(x)
        else:
            # The step of a layer depends on its own score, so that each layer needs its own forward pass.
            features = [self.extract(self._perturbed(x, i))[i] for i in range(len(self._layers))]
        pairs = zip(self._layers, features, strict=True)
        return torch.stack([layer.predict_features(of_layer) for layer, of_layer in pairs], 1)

    @torch.no_grad()
    def extract(self, x: Inputs) -> list[Tensor]:
        """Return the features `[N, d]` of each layer."""
        return self._extractor(x)

    def save(self, path: str | Path) -> None:
        """Write settings, statistics and weights, without the model, as one safetensors file, atomically."""
        if len(self._layers) == 0:
            raise RuntimeError("the detector has not been fitted: call fit first")
        tensors = {"weights": self.weights}
        for i, layer in enumerate(self._layers):
            tensors |= {f"{i}.{name}": tensor for name, tensor in layer.state_dict().items()}
        write_detector(path, tensors, {"settings": asdict(self._settings), "feature_layers": self.feature_layers})

    @classmethod
    @torch.inference_mode(False)
    def load(cls, path: str | Path, model: Model) -> MultiLayerMahalanobisDetector:
        """Read a file written by `save`, which does not hold the model."""
        tensors, metadata = read_detector(path)
        detector = cls(model, metadata["feature_layers"], **metadata["settings"])
        detector.weights = tensors["weights"]
        for i in range(len(detector.feature_layers)):
            layer = MahalanobisDetector(**metadata["settings"])
            layer.load_state_dict({n.partition(".")[2]: t for n, t in tensors.items() if n.startswith(f"{i}.")})
            detector._layers.append(layer)
        return detector

    def _perturbed(self, x: Inputs, position: int) -> Tensor:
        return self._layers[position].perturbed(x, lambda x: self._extractor(x)[position])
