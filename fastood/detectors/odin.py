"""ODIN: maximum softmax at a high temperature of perturbed inputs (Liang et al. 2018, https://arxiv.org/abs/1706.02690)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from fastood.detectors.assumptions import warn_unless_logits
from fastood.detectors.base import Detector
from fastood.detectors.batches import labelled_batches
from fastood.detectors.feature_extractor import FeatureExtractor
from fastood.detectors.logits import check_positive
from fastood.detectors.model_calls import Inputs, Model
from fastood.detectors.perturbation import check_perturbation, perturbed, step_against
from fastood.detectors.pytorch_ood_names import takes_pytorch_ood
from fastood.detectors.storage import read_detector, write_detector
from fastood.metrics import detection_metrics
from fastood.ops._validation import widened
from fastood.scores import max_softmax_score

__all__ = ["EPSILONS", "ODIN"]

EPSILONS = (0.0, 0.0005, 0.001, 0.0014, 0.002, 0.0024, 0.0028, 0.0032, 0.0038, 0.0048)
"""Steps tried by the paper's code and later work, for inputs in [0, 1]."""


class ODIN(Detector):
    """Maximum softmax of `v(x̃) / T` for inputs x̃ moved by `ε sign(∂ log max softmax(v(x) / T) / ∂x)`.

    Liang et al. 2018, equations 1 and 2.

    The final softmax has the temperature, too, as in the paper; pytorch-ood before 0.4 omitted it there and used the
    gradient of the logit. The score is in log-odds (see `MaxSoftmax`), with the ranking of the maximum softmax.

    Args:
        model: Function from inputs to logits.
        temperature: T, above 0.
        epsilon: Step ε, at least 0, in the units of the inputs before they were divided by `input_std`. The paper
            chooses it for each test set on that test set; `choose_epsilon` avoids that.
        input_std: Standard deviation that each channel was divided by; None for 1.

    Raises:
        TypeError: If `model` is not callable.
        ValueError: If a setting is out of range.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(2, 2, bias=False)
        >>> _ = model.weight.data.copy_(torch.eye(2))
        >>> ODIN(model, temperature=2, epsilon=0.5).predict(torch.tensor([[3.0, 1.0]]))  # of the logits (3.5, 0.5) / 2
        tensor([-1.5000], dtype=torch.float64)
    """

    reads = "inputs"
    needs_fit = False
    _inputs_checked = False

    @takes_pytorch_ood("criterion", "eps", "temperature", "norm_std", eps="epsilon", norm_std="input_std")
    def __init__(
        self,
        model: Model,
        *,
        temperature: float = 1000.0,
        epsilon: float = 0.0014,
        input_std: Sequence[float] | None = None,
    ) -> None:
        self._extract = FeatureExtractor(model, pooled=False).single
        self.temperature = check_positive("temperature", temperature)
        self.epsilon, self.input_std = check_perturbation(epsilon, input_std)

    def __repr__(self) -> str:
        """Return the settings."""
        return f"ODIN(temperature={self.temperature!r}, epsilon={self.epsilon!r}, input_std={self.input_std!r})"

    def fit(self, loader: Iterable[Any]) -> Self:
        """Return the detector unchanged, because it has no fitted state."""
        return self

    def fit_features(self, features: Tensor, labels: Tensor) -> Self:
        """Return the detector unchanged, because it has no fitted state."""
        return self

    def predict(self, x: Inputs) -> Tensor:
        """Return scores float64 `[N]` of inputs, by two forward passes and a backward pass.

        Raises:
            TypeError: If `epsilon` is above 0 and `x` is not a floating-point tensor.
            ValueError: If the model is not differentiable at its inputs, or its output is not `[N, K]`.
        """
        return self._predict(x, self.epsilon)

    def predict_features(self, features: Tensor) -> Tensor:
        """Return `predict(features)`: this detector reads inputs."""
        return self.predict(features)

    def moved(self, x: Tensor, logits: Tensor) -> Tensor:
        """Return the moved inputs, given the logits of `x` with gradients; the graph is retained."""
        return step_against(x, self._loss(logits), self.epsilon, self.input_std, retain_graph=True)

    @torch.no_grad()
    def score_logits(self, logits: Tensor) -> Tensor:
        """Return scores float64 `[N]` of the logits of moved inputs."""
        if not self._inputs_checked:
            self._inputs_checked = warn_unless_logits("ODIN", logits.double(), "softmax")
        return max_softmax_score(logits.double() / self.temperature)

    def choose_epsilon(self, loader: Iterable[Any], candidates: Sequence[float] = EPSILONS) -> float:
        """Set ε to the best candidate on data that is neither training nor test data.

        With in-distribution rows and outliers the best candidate has the largest AUROC; with in-distribution rows
        alone, the largest mean maximum softmax (Hsu et al. 2020, eq. 10, https://arxiv.org/abs/2002.11297). The smaller
        one wins a tie.

        Args:
            loader: Batches `(inputs, labels, ...)`, iterated once per candidate; labels below 0 mark outliers, which
                must not be from a test set.
            candidates: Steps to try, each at least 0.

        Returns:
            The chosen ε.

        Raises:
            ValueError: If there is no candidate, a candidate is out of range, or there is no in-distribution row.
        """
        if len(candidates) == 0:
            raise ValueError("candidates must hold at least one step, got none")
        candidates = [check_perturbation(candidate, self.input_std)[0] for candidate in candidates]
        # max returns the first of equal candidates; sorted, that is the smallest step.
        self.epsilon = max(sorted(candidates), key=lambda candidate: self._merit(loader, candidate))
        return self.epsilon

    def save(self, path: str | Path) -> None:
        """Write the settings as one safetensors file, atomically."""
        settings = {"temperature": self.temperature, "epsilon": self.epsilon, "input_std": self.input_std}
        write_detector(path, {}, {"detector": "ODIN", "settings": settings})

    @classmethod
    def load(cls, path: str | Path, model: Model) -> Self:
        """Read a file written by `save`, which does not hold the model.

        Raises:
            ValueError: If the file was written by another detector.
        """
        _, metadata = read_detector(path)
        if metadata.get("detector") != "ODIN":
            raise ValueError(f"{path} holds no ODIN but a {metadata.get('detector', 'Mahalanobis detector')}")
        return cls(model, **metadata["settings"])

    def _predict(self, x: Inputs, epsilon: float) -> Tensor:
        if epsilon > 0:
            x = perturbed(x, lambda x: self._loss(self._extract(x)), epsilon, self.input_std)
        with torch.no_grad():
            return self.score_logits(self._extract(x))

    def _loss(self, logits: Tensor) -> Tensor:
        """Return T times `-log max softmax` of each row, in float32 or float64; higher is more out-of-distribution.

        Only the sign of the gradient is used; the factor T prevents its underflow in 16-bit networks.
        """
        scaled = widened(logits) / self.temperature
        return (scaled.logsumexp(1) - scaled.amax(1)) * self.temperature

    def _merit(self, loader: Iterable[Any], epsilon: float) -> float:
        inliers, outliers = [], []
        for x, labels in labelled_batches(loader):
            scores = self._predict(x, epsilon)
            is_outlier = (labels < 0).to(scores.device)
            inliers.append(scores[~is_outlier])
            outliers.append(scores[is_outlier])
        if sum(map(len, inliers)) == 0:
            raise ValueError("loader must give at least one row with a label of 0 or above, got none")
        id_scores, ood_scores = torch.cat(inliers), torch.cat(outliers)
        if len(ood_scores) == 0:
            # Scores are log-odds against the largest class: the sigmoid of the negative is the maximum softmax.
            return float(torch.sigmoid(-id_scores).mean())
        return float(detection_metrics(id_scores, ood_scores).auroc)
