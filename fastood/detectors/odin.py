"""ODIN: maximum softmax at a high temperature, of inputs moved to raise it (Liang et al. 2018)."""

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
"""Steps that the paper's code and its followers try, for inputs in [0, 1]."""


class ODIN(Detector):
    """Maximum softmax of `v(x̃) / T` of inputs moved by `ε sign(∂ log max softmax(v(x) / T) / ∂x)`.

    Liang et al. 2018, equations 1 and 2.

    The temperature is in the final softmax, too, as in the paper; pytorch-ood before 0.4 left it out there and took the
    gradient of the logit alone. The score is in log-odds, as that of `MaxSoftmax`, which ranks alike.

    Args:
        model: Maps inputs to logits.
        temperature: T, above 0.
        epsilon: Step ε, at least 0, in the units of the inputs before they were divided by `input_std`. The paper
            chooses it for each test set, on that set; see `choose_epsilon` for how not to.
        input_std: What each channel was divided by; None for 1.

    Raises:
        TypeError: `model` is nothing that can be called.
        ValueError: A setting is out of range.

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
        """The settings."""
        return f"ODIN(temperature={self.temperature!r}, epsilon={self.epsilon!r}, input_std={self.input_std!r})"

    def fit(self, loader: Iterable[Any]) -> Self:
        """Nothing to fit."""
        return self

    def fit_features(self, features: Tensor, labels: Tensor) -> Self:
        """Nothing to fit."""
        return self

    def predict(self, x: Inputs) -> Tensor:
        """Scores float64 `[N]` of inputs, higher for out-of-distribution: two forward passes and a backward one.

        Raises:
            TypeError: `x` is no floating-point tensor, though `epsilon` is above 0.
            ValueError: The model is not differentiable at its inputs, or puts out no `[N, K]`.
        """
        return self._predict(x, self.epsilon)

    def predict_features(self, features: Tensor) -> Tensor:
        """`predict`: what the detector reads are inputs."""
        return self.predict(features)

    def moved(self, x: Tensor, logits: Tensor) -> Tensor:
        """The moved inputs, for whoever has the logits of `x` already, with gradients on; the graph is kept."""
        return step_against(x, self._loss(logits), self.epsilon, self.input_std, retain_graph=True)

    @torch.no_grad()
    def score_logits(self, logits: Tensor) -> Tensor:
        """Scores float64 `[N]` of the logits of moved inputs."""
        if not self._inputs_checked:
            self._inputs_checked = warn_unless_logits("ODIN", logits.double(), "softmax")
        return max_softmax_score(logits.double() / self.temperature)

    def choose_epsilon(self, loader: Iterable[Any], candidates: Sequence[float] = EPSILONS) -> float:
        """Set ε to the best of some, on data that is neither training nor test data.

        With rows of both kinds the best is the one with the largest AUROC; with in-distribution rows alone, the one
        that raises their mean maximum softmax most (Hsu et al. 2020, eq. 10). The smaller wins a tie.

        Args:
            loader: Of batches `(inputs, labels, ...)`, gone through for every candidate; labels below zero mark
                outliers, which must not be those of a test set.
            candidates: Steps to try, each at least 0.

        Returns:
            The one chosen.

        Raises:
            ValueError: There is no candidate or one is out of range, or no in-distribution row.
        """
        if len(candidates) == 0:
            raise ValueError("candidates must hold at least one step, got none")
        candidates = [check_perturbation(candidate, self.input_std)[0] for candidate in candidates]
        self.epsilon = max(sorted(candidates), key=lambda candidate: self._merit(loader, candidate))
        return self.epsilon

    def save(self, path: str | Path) -> None:
        """Write the settings as one safetensors file, whole or not at all."""
        settings = {"temperature": self.temperature, "epsilon": self.epsilon, "input_std": self.input_std}
        write_detector(path, {}, {"detector": "ODIN", "settings": settings})

    @classmethod
    def load(cls, path: str | Path, model: Model) -> Self:
        """Read what `save` wrote; the model is not in the file.

        Raises:
            ValueError: The file is not one of ODIN.
        """
        _, said = read_detector(path)
        if said.get("detector") != "ODIN":
            raise ValueError(f"{path} holds no ODIN but a {said.get('detector', 'Mahalanobis detector')}")
        return cls(model, **said["settings"])

    def _predict(self, x: Inputs, epsilon: float) -> Tensor:
        if epsilon > 0:
            x = perturbed(x, lambda x: self._loss(self._extract(x)), epsilon, self.input_std)
        with torch.no_grad():
            return self.score_logits(self._extract(x))

    def _loss(self, logits: Tensor) -> Tensor:
        """T times `-log max softmax` of each row, at least in float32; higher for out-of-distribution.

        Only the sign of its gradient is taken, which the factor T keeps from underflowing in networks of 16 bits.
        """
        scaled = widened(logits) / self.temperature
        return (scaled.logsumexp(1) - scaled.amax(1)) * self.temperature

    def _merit(self, loader: Iterable[Any], epsilon: float) -> float:
        known, outliers = [], []
        for x, labels in labelled_batches(loader):
            scores = self._predict(x, epsilon)
            is_outlier = (labels < 0).to(scores.device)
            known.append(scores[~is_outlier])
            outliers.append(scores[is_outlier])
        if sum(map(len, known)) == 0:
            raise ValueError("loader must give at least one row with a label of 0 or above, got none")
        id_scores, ood_scores = torch.cat(known), torch.cat(outliers)
        if len(ood_scores) == 0:
            return float(torch.sigmoid(-id_scores).mean())
        return float(detection_metrics(id_scores, ood_scores).auroc)
