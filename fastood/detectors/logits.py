"""Detectors of the logits `v [N, K]` of a classifier, with softmax `p`."""

from __future__ import annotations

import math
from typing import ClassVar, Self

import torch
from torch import Tensor

from fastood.detectors.assumptions import Reading, warn_if_sign_is_wrong, warn_unless_logits
from fastood.detectors.checks import check_rows
from fastood.detectors.feature_extractor import FeatureExtractor
from fastood.detectors.model_calls import Model
from fastood.detectors.pytorch_ood_names import takes_pytorch_ood
from fastood.detectors.row_detector import Batches, RowDetector, State
from fastood.ops._arguments import as_real, shown
from fastood.ops._features import check_size
from fastood.ops.logit_scores import logit_scores
from fastood.scores import energy_score, max_logit_score, max_softmax_score

__all__ = [
    "GEN",
    "SIGN_CHECK_ROWS",
    "EnergyBased",
    "Entropy",
    "KLMatching",
    "LogitsDetector",
    "MaxLogit",
    "MaxSoftmax",
    "check_positive",
    "check_share",
]

SIGN_CHECK_ROWS = 1024
"""Training rows that are checked for logits of the wrong sign."""


class LogitsDetector(RowDetector):
    """Base class of detectors of logits.

    The first score warns if the rows are probabilities, or have a single logit and the softmax is scored.

    Args:
        model: Function from inputs to logits; None for `fit_features` and `predict_features` only, which take logits.
    """

    reads = "logits"
    takes: ClassVar[Reading] = "softmax"
    """Quantity of the logits that is scored."""
    _inputs_checked = False

    @takes_pytorch_ood()
    def __init__(self, model: Model | None = None) -> None:
        super().__init__(None if model is None else FeatureExtractor(model, pooled=False).single)

    def fit_logits(self, logits: Tensor, labels: Tensor | None = None) -> Self:
        """Call `fit_features(logits, labels)`, under pytorch-ood's name; without labels all rows are fitted."""
        check_rows(logits, name="logits")
        if labels is None:
            labels = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        return self.fit_features(logits, labels)

    def predict_logits(self, logits: Tensor) -> Tensor:
        """Return `predict_features(logits)`, under pytorch-ood's name."""
        return self.predict_features(logits)

    def _score_or_nan(self, rows: Tensor) -> Tensor:
        if not self._inputs_checked:
            self._inputs_checked = warn_unless_logits(type(self).__name__, rows, self.takes)
        return self._score(rows)  # logit scores handle NaN, and -inf of a masked class, themselves


class MaxSoftmax(LogitsDetector):
    """Maximum softmax in log-odds, `log((1 - max p) / max p)` (Hendrycks & Gimpel 2017).

    https://arxiv.org/abs/1610.02136. It has the ranking of `-max p`, but does not round to 1.

    Args:
        model: Function from inputs to logits; None for `fit_features` and `predict_features` only.
        temperature: T, above 0: p is the softmax of `v / T`.

    Example:
        >>> import torch
        >>> MaxSoftmax().predict_features(torch.tensor([[0.0, 0.0], [50.0, 0.0]]))
        tensor([  0., -50.], dtype=torch.float64)
    """

    settings = ("temperature",)

    @takes_pytorch_ood("t", t="temperature")
    def __init__(self, model: Model | None = None, *, temperature: float = 1.0) -> None:
        super().__init__(model)
        self.temperature = check_positive("temperature", temperature)

    @staticmethod
    def score(logits: Tensor, t: float = 1.0) -> Tensor:
        """Return scores float64 `[N]` of logits `[N, K]` at a temperature."""
        return MaxSoftmax(temperature=t).predict_features(logits)

    def _score(self, rows: Tensor) -> Tensor:
        return max_softmax_score(rows / self.temperature)


class MaxLogit(LogitsDetector):
    """Largest logit, `-max v` (Hendrycks et al. 2022, https://arxiv.org/abs/1911.11132).

    Args:
        model: Function from inputs to logits; None for `fit_features` and `predict_features` only.

    Example:
        >>> import torch
        >>> MaxLogit().predict_features(torch.tensor([[1.0, 3.0]]))
        tensor([-3.], dtype=torch.float64)
    """

    takes = "largest"

    @staticmethod
    def score(logits: Tensor) -> Tensor:
        """Return scores float64 `[N]` of logits `[N, K]`."""
        return MaxLogit().predict_features(logits)

    def _score(self, rows: Tensor) -> Tensor:
        return max_logit_score(rows)


class EnergyBased(LogitsDetector):
    """Energy, `-T logsumexp(v / T)` (Liu et al. 2020, eq. 4, https://arxiv.org/abs/2010.03759).

    The energy of log-probabilities is always 0: the first score warns about them.

    Args:
        model: Function from inputs to logits; None for `fit_features` and `predict_features` only.
        temperature: T, above 0.

    Example:
        >>> import torch
        >>> EnergyBased().predict_features(torch.tensor([[0.0, 0.0]]))
        tensor([-0.6931], dtype=torch.float64)
    """

    settings = ("temperature",)
    takes = "energy"

    @takes_pytorch_ood("t", t="temperature")
    def __init__(self, model: Model | None = None, *, temperature: float = 1.0) -> None:
        super().__init__(model)
        self.temperature = check_positive("temperature", temperature)

    @staticmethod
    def score(logits: Tensor, t: float = 1.0) -> Tensor:
        """Return scores float64 `[N]` of logits `[N, K]` at a temperature."""
        return EnergyBased(temperature=t).predict_features(logits)

    def _score(self, rows: Tensor) -> Tensor:
        return self.temperature * energy_score(rows / self.temperature)


class Entropy(LogitsDetector):
    """Entropy of the softmax, `-Σ p log p`, in [0, log K] (Li & Vasconcelos 2020, section 5.4, among others).

    Args:
        model: Function from inputs to logits; None for `fit_features` and `predict_features` only.

    Example:
        >>> import torch
        >>> Entropy().predict_features(torch.tensor([[0.0, 0.0]]))
        tensor([0.6931], dtype=torch.float64)
    """

    @staticmethod
    def score(logits: Tensor) -> Tensor:
        """Return scores float64 `[N]` of logits `[N, K]`."""
        return Entropy().predict_features(logits)

    def _score(self, rows: Tensor) -> Tensor:
        return logit_scores(rows, scores=["entropy"])["entropy"]


class GEN(LogitsDetector):
    """Generalised entropy, `Σ (p (1 - p))^γ` over the largest p (Liu et al. 2023, eq. 3).

    pytorch-ood divides by the number of classes summed and clamps p to [1e-7, 1 - 1e-7], which ties confident rows.

    Args:
        model: Function from inputs to logits; None for `fit_features` and `predict_features` only.
        gamma: γ, above 0.
        top: Number of the largest p that are summed, 100 for ImageNet; None for all.

    Example:
        >>> import torch
        >>> GEN(gamma=0.5).predict_features(torch.tensor([[0.0, 0.0]]))
        tensor([1.], dtype=torch.float64)
    """

    settings = ("gamma", "top")

    @takes_pytorch_ood("gamma", "M", M="top")
    def __init__(self, model: Model | None = None, *, gamma: float = 0.1, top: int | None = None) -> None:
        super().__init__(model)
        self.gamma = check_positive("gamma", gamma)
        self.top = None if top is None else check_size("top", top, wanted="at least 1, or None for all classes")

    @staticmethod
    def score(logits: Tensor, gamma: float = 0.1, M: int | None = None) -> Tensor:
        """Return scores float64 `[N]` of logits `[N, K]`, from the M largest probabilities."""
        return GEN(gamma=gamma, top=M).predict_features(logits)

    def _score(self, rows: Tensor) -> Tensor:
        return logit_scores(rows, gen_gamma=self.gamma, gen_top=self.top, scores=["gen"])["gen"]


class KLMatching(LogitsDetector):
    """KL matching: distance to the nearest class template, `min_k KL(p || d_k)` (Hendrycks et al. 2022, section 4).

    `d_k` is the mean softmax of the training rows that the model predicts as class k, regardless of their label; a
    class that is never predicted has no template. Where p is positive and the template 0, the divergence is very large,
    but finite. Fitting warns if the labels match the smallest logits rather than the largest.

    Args:
        model: Function from inputs to logits; None for `fit_features` and `predict_features` only.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0], [0.0, 2.0], [0.0, 0.0]])
        >>> detector = KLMatching().fit_features(logits[:2], torch.tensor([0, 1]))
        >>> detector.predict_features(logits).round(decimals=3)
        tensor([0.0000, 0.0000, 0.4340], dtype=torch.float64)
    """

    needs_fit = True

    def _fitted(self, batches: Batches) -> State:
        total: Tensor | None = None
        self._inputs_checked = False
        seen: list[tuple[Tensor, Tensor]] = []
        for rows, labels in batches():
            if sum(len(some) for some, _ in seen) < SIGN_CHECK_ROWS:
                seen.append((rows, labels))
            probabilities = rows.softmax(1)
            if total is None:
                classes = rows.shape[1]
                total, counts = rows.new_zeros(classes, classes), rows.new_zeros(classes)
            predicted = rows.argmax(1)
            total.index_add_(0, predicted, probabilities)
            counts += torch.bincount(predicted, minlength=classes)
        assert total is not None
        warn_if_sign_is_wrong(type(self).__name__, *(torch.cat(parts) for parts in zip(*seen, strict=True)))
        present = counts > 0
        return {"templates": total[present] / counts[present, None]}

    def _score(self, rows: Tensor) -> Tensor:
        log_p = rows.log_softmax(1)
        p = log_p.exp()
        # 0 log 0 is 0. The log of a template of 0 is the lowest finite number, not -inf, so that 0 times it is 0.
        lowest = torch.finfo(torch.float64).min
        negative_entropy = (p * log_p.nan_to_num(nan=torch.nan, neginf=lowest)).sum(1, keepdim=True)
        log_templates = self._state["templates"].log().nan_to_num(neginf=lowest)
        return (negative_entropy - p @ log_templates.mT).amin(1)

    def _width(self) -> int | None:
        return self._state["templates"].shape[1] if self._state else None


def check_positive(name: str, value: float) -> float:
    """Return the value as a float, or raise unless it is above 0 and finite."""
    number = as_real(name, value)
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be above 0 and finite, got {shown(value)}")
    return number


def check_share(name: str, value: float) -> float:
    """Return the value as a float, or raise unless it is at least 0 and below 1."""
    number = as_real(name, value)
    if not 0 <= number < 1:
        raise ValueError(f"{name} must be at least 0 and below 1, got {shown(value)}")
    return number
