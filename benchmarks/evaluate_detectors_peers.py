"""Peers of the evaluation of ten detectors: a pass of the network per detector, or per detector and draw."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from statistics import fmean
from typing import Any

import torch
from torch import Tensor

from fastood.detectors import Detector, DetectorSuite, LinearHeadModel, build_detectors
from fastood.metrics import evaluate_detectors, evaluate_protocol
from fastood.metrics.protocol import PROTOCOLS, ProtocolName
from fastood.models import Classifier

NAMES = ("msp", "energy", "entropy", "klm", "mahalanobis", "knn", "vim", "react", "dice", "she")
BATCH = 256

Loader = list[tuple[Tensor, Tensor]]
Means = dict[str, float]
"""Mean AUROC over sets and draws, by detector."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """Network with training images, ID test images and OOD sets, as network input."""

    model: Classifier
    train: Tensor
    labels: Tensor
    id_test: Tensor
    ood: Mapping[str, Tensor]

    def loader(self) -> Loader:
        """Return the training batches."""
        return list(zip(self.train.split(BATCH), self.labels.split(BATCH), strict=True))


def generator() -> torch.Generator:
    """Return the RNG of the protocol's draws, with the same seed for every provider."""
    return torch.Generator().manual_seed(0)


def one_pass(work: Work, protocol: ProtocolName = "li2020") -> Means:
    """Evaluate with fastood: one pass of every image, and one call of the metrics."""
    split = LinearHeadModel(work.model)
    suite = DetectorSuite(split, build_detectors(split, NAMES)).fit(work.loader())

    def scores(images: Tensor) -> Tensor:
        batches = [torch.stack(list(suite.predict(batch).values())) for batch in images.split(BATCH)]
        return torch.cat(batches, 1)

    ood = {name: scores(images) for name, images in work.ood.items()}
    found = evaluate_detectors(scores(work.id_test), ood, protocol=protocol, generator=generator())
    return {
        name: fmean(result.auroc.mean for result in of_sets.values())
        for name, of_sets in zip(NAMES, found, strict=True)
    }


def pass_for_each_detector(work: Work) -> Means:
    """Evaluate with one pass of all images per detector, as libraries do; draws are taken from the scores."""
    means = {}
    for name in NAMES:
        detector = _fitted(work, name)
        ood = {of_set: _scores(detector, images) for of_set, images in work.ood.items()}
        found = evaluate_protocol(_scores(detector, work.id_test), ood, generator=generator())
        means[name] = fmean(result.auroc.mean for result in found.values())
    return means


def pass_for_each_draw(work: Work) -> Means:
    """Evaluate with one pass of the drawn and the ID test images per draw, as the code of the papers does."""
    protocol = PROTOCOLS["li2020"]
    count = protocol.ood_count(len(work.id_test))
    assert count is not None
    whole = PROTOCOLS["wu2023"]
    means = {}
    for name in NAMES:
        detector = _fitted(work, name)
        draws, values = generator(), []
        orders = {
            of_set: [torch.randperm(len(images), generator=draws)[:count] for _ in range(protocol.repeats)]
            for of_set, images in work.ood.items()
        }
        for repeat in range(protocol.repeats):
            id_scores = _scores(detector, work.id_test)
            for of_set, images in work.ood.items():
                drawn = {of_set: _scores(detector, images[orders[of_set][repeat]])}
                found = evaluate_protocol(id_scores, drawn, protocol=whole, generator=draws)
                values.append(found[of_set].auroc.mean)
        means[name] = fmean(values)
    return means


def pytorch_ood(work: Work) -> Means:
    """Evaluate with the detectors and metrics of pytorch-ood, each detector on whole sets, without draws."""
    from pytorch_ood import detector as theirs
    from pytorch_ood.metrics import OODMetrics

    model = work.model.eval()
    weight, bias = model.head.weight.detach(), model.head.bias.detach()
    made: dict[str, Any] = {
        "msp": theirs.MaxSoftmax(model),
        "energy": theirs.EnergyBased(model),
        "entropy": theirs.Entropy(model),
        "klm": theirs.KLMatching(model),
        "mahalanobis": theirs.Mahalanobis(model.features),
        "knn": theirs.KNN(model.features, k=50),
        "vim": theirs.ViM(model.features, d=model.feature_dim // 2, w=weight, b=bias),
        "react": theirs.ReAct(model.features, model.head),
        "dice": theirs.DICE(model.features, w=weight, b=bias, p=0.9),
        "she": theirs.SHE(model.features, model.head),
    }
    means = {}
    with torch.no_grad():
        for name, detector in made.items():
            detector.to("cpu").fit(work.loader())
            id_scores = torch.cat([detector(batch) for batch in work.id_test.split(BATCH)])
            values = []
            for images in work.ood.values():
                metrics = OODMetrics()
                metrics.update(id_scores, torch.zeros(len(id_scores)))
                for batch in images.split(BATCH):
                    metrics.update(detector(batch), -torch.ones(len(batch)))
                values.append(float(metrics.compute()["AUROC"]))
            means[name] = fmean(values)
    return means


def peers() -> dict[str, Callable[[Work], Means]]:
    """Return the installed peers by name."""
    made: dict[str, Callable[[Work], Means]] = {
        "network for each detector": pass_for_each_detector,
        "network for each detector and draw": pass_for_each_draw,
    }
    if find_spec("pytorch_ood") is None:
        print("pytorch_ood is not installed: no row of pytorch-ood", file=sys.stderr)
    else:
        made["pytorch-ood"] = pytorch_ood
    return made


def _fitted(work: Work, name: str) -> Detector:
    split = LinearHeadModel(work.model)
    return build_detectors(split, [name])[name].fit(work.loader())


def _scores(detector: Detector, images: Tensor) -> Tensor:
    return torch.cat([detector.predict(batch) for batch in images.split(BATCH)])
