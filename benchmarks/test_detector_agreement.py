"""Scores of every detector compared with those of pytorch-ood (`pip install --no-deps pytorch-ood`)."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from fastood import detectors as ours

theirs = pytest.importorskip("pytorch_ood.detector")

CLASSES, WIDTH = 10, 64


class Data:
    """Features of training and test images, and a head."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(0)
        self.head = nn.Linear(WIDTH, CLASSES).requires_grad_(False)
        self.weight, self.bias = self.head.weight, self.head.bias
        self.train = torch.randn(2000, WIDTH, generator=generator).relu()
        self.labels = self.head(self.train).argmax(1)
        self.labels[::7] = (self.labels[::7] + 1) % CLASSES
        self.new = 1.5 * torch.randn(500, WIDTH, generator=generator).relu()
        self.maps = self.new[:, :, None, None]
        self.train_logits, self.logits = 5 * self.head(self.train), 5 * self.head(self.new)
        self.model = nn.Sequential(nn.Flatten(), nn.Linear(48, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES))
        self.images = torch.randn(50, 3, 4, 4, generator=generator)

    def head_of_maps(self, maps: Tensor) -> Tensor:
        """Return the logits of maps `[N, d, 1, 1]`."""
        return self.head(maps.flatten(1))

    def fitted(self, detector: ours.Detector) -> Tensor:
        """Return fastood's scores of the test features, or of their logits."""
        if detector.reads == "logits":
            return detector.fit_features(self.train_logits, self.labels).predict_features(self.logits)
        return detector.fit_features(self.train, self.labels).predict_features(self.new)


def minus_maximum(log_odds: Tensor) -> Tensor:
    """Convert fastood's `log((1 - max p) / max p)` to `-max p`."""
    return torch.sigmoid(log_odds) - 1


PAIRS: dict[str, Callable[[Data], tuple[Tensor, Tensor]]] = {
    "msp": lambda d: (minus_maximum(d.fitted(ours.MaxSoftmax())), theirs.MaxSoftmax(None).predict_logits(d.logits)),
    "max-logit": lambda d: (d.fitted(ours.MaxLogit()), theirs.MaxLogit(None).predict_logits(d.logits)),
    "energy": lambda d: (d.fitted(ours.EnergyBased()), theirs.EnergyBased(None).predict_logits(d.logits)),
    "entropy": lambda d: (d.fitted(ours.Entropy()), theirs.Entropy(None).predict_logits(d.logits)),
    # With few classes: pytorch-ood clips probabilities at 1e-7, which adds up over many. It takes a mean for the sum.
    "gen": lambda d: (d.fitted(ours.GEN(top=3)) / 3, theirs.GEN(None, M=3).predict_logits(d.logits)),
    "klm": lambda d: (
        d.fitted(ours.KLMatching()),
        theirs.KLMatching(None).fit_logits(d.train_logits, d.labels).predict_logits(d.logits),
    ),
    "odin": lambda d: (
        minus_maximum(ours.ODIN(d.model, epsilon=0.01).predict(d.images)),
        theirs.ODIN(d.model, temperature=1000, eps=0.01).predict(d.images),
    ),
    "knn": lambda d: (
        d.fitted(ours.KNN()),
        theirs.KNN(None, k=50).fit_features(d.train, d.labels).predict_features(d.new),
    ),
    "vim": lambda d: (
        d.fitted(ours.ViM(head=d.head)),
        theirs.ViM(None, WIDTH // 2, d.weight, d.bias).fit_features(d.train, d.labels).predict_features(d.new),
    ),
    "react": lambda d: (
        d.fitted(ours.ReAct(head=d.head)),
        theirs.ReAct(None, d.head).fit_feature_maps(d.train, d.labels).predict_feature_maps(d.new),
    ),
    "dice": lambda d: (
        d.fitted(ours.DICE(head=d.head)),
        theirs.DICE(None, d.weight, d.bias, 0.9).fit_features(d.train, d.labels).predict_features(d.new),
    ),
    "she": lambda d: (
        d.fitted(ours.SHE(head=d.head)),
        theirs.SHE(None, d.head).fit_features(d.train, d.labels).predict_features(d.new),
    ),
    "scale": lambda d: (
        d.fitted(ours.SCALE(head=d.head)),
        theirs.SCALE(None, d.head_of_maps, percentile=0.85).predict_feature_maps(d.maps),
    ),
    "gradnorm": lambda d: (
        ours.GradNorm(d.model).predict(d.images),
        theirs.GradNorm(d.model, param_filter=lambda name: name == "3.weight").to("cpu").predict(d.images),
    ),
}
for _variant in ("s", "p", "b"):
    PAIRS[f"ash-{_variant}"] = lambda d, variant=_variant: (
        d.fitted(ours.ASH(head=d.head, variant=variant)),
        theirs.ASH(None, d.head_of_maps, variant=f"ash-{variant}", percentile=0.9).predict_feature_maps(d.maps),
    )


@pytest.mark.parametrize("name", PAIRS)
def test_scores_agree(name: str) -> None:
    """Compare to the digits of float32, in which pytorch-ood computes."""
    found, expected = (scores.detach().double() for scores in PAIRS[name](Data()))
    spread = float(expected.std())
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=max(1e-3 * spread, 1e-9))


def test_all_are_compared() -> None:
    """Compare all but Mahalanobis and its variants, which test_mahalanobis_detector.py compares."""
    compared = {"ash" if name.startswith("ash") else name for name in PAIRS}
    assert compared == {name for name in ours.DETECTORS if not name.endswith("mahalanobis")}
