"""Settings that are none: an error names the argument before anything is fitted, and numbers of any kind are taken."""

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fastood.detectors import (
    ASH,
    DICE,
    GEN,
    KNN,
    ODIN,
    EnergyBased,
    FeatureExtractor,
    GradNorm,
    LinearHeadModel,
    MahalanobisDetector,
    ReAct,
    ViM,
    build_detectors,
)
from fastood.heads import (
    CholeskyMahalanobisHead,
    DecomposedConfidenceHead,
    GaussianStatistics,
    HypersphereHead,
    PrototypeHead,
)

HEAD = nn.Linear(8, 3)
TAKES: dict[str, Callable[[Any], object]] = {
    "k": lambda value: KNN(k=value),
    "principal": lambda value: ViM(head=HEAD, principal=value),
    "temperature": lambda value: EnergyBased(temperature=value),
    "gamma": lambda value: GEN(gamma=value),
    "top": lambda value: GEN(top=value),
    "percentile": lambda value: ASH(head=HEAD, percentile=value),
    "threshold": lambda value: ReAct(head=HEAD, threshold=value),
    "sparsity": lambda value: DICE(head=HEAD, sparsity=value),
    "epsilon": lambda value: ODIN(HEAD, epsilon=value),
    "input_std": lambda value: MahalanobisDetector(input_std=value),
    "shrinkage": lambda value: MahalanobisDetector(shrinkage=value),
    "normalize": lambda value: KNN(normalize=value),
    "relative": lambda value: MahalanobisDetector(relative=value),
    "layers": lambda value: FeatureExtractor(HEAD, value),
    "num_features": GaussianStatistics,
    "num_classes": lambda value: GaussianStatistics(3, value),
    "in_features": HypersphereHead,
    "per_class": lambda value: PrototypeHead(3, 2, per_class=value),
    "rank": lambda value: CholeskyMahalanobisHead(3, 2, covariance="low_rank", rank=value),
    "feature_scale": lambda value: CholeskyMahalanobisHead(3, 2, feature_scale=value),
    "min_scale": lambda value: CholeskyMahalanobisHead(3, 2, min_scale=value),
    "mean_distance": lambda value: CholeskyMahalanobisHead.from_features(
        torch.randn(40, 3), torch.arange(40) % 2, mean_distance=value
    ),
}


@pytest.mark.parametrize("value", ["x", torch.ones(2, 2), 1j, object()])
@pytest.mark.parametrize("name", TAKES)
def test_what_is_no_setting_is_named(name: str, value: object) -> None:
    with pytest.raises((TypeError, ValueError), match=f"{name} must be "):
        TAKES[name](value)


@pytest.mark.parametrize(
    "name", ["k", "principal", "top", "num_features", "num_classes", "in_features", "per_class", "rank"]
)
def test_fractions_are_no_counts(name: str) -> None:
    for value in (2.5, float("nan"), True):
        with pytest.raises(TypeError, match=f"{name} must be "):
            TAKES[name](value)
    TAKES[name](np.int64(2))
    TAKES[name](torch.tensor(2))


def test_flags_are_bools() -> None:
    for value in (1, "no", None, float("nan")):
        with pytest.raises(TypeError, match=f"normalize must be a bool, got {re.escape(repr(value))}"):
            KNN(normalize=value)  # type: ignore[arg-type]


def test_sizes_beyond_memory_are_named() -> None:
    with pytest.raises(ValueError, match="in_features must be at most 2147483647, got an int of 401 digits"):
        DecomposedConfidenceHead(10**400, 2)
    with pytest.raises(MemoryError, match="num_features 2000000, num_classes None needs more memory"):
        GaussianStatistics(2_000_000)


def test_numbers_of_any_kind_score_alike(tmp_path: Path) -> None:
    logits, features = torch.randn(5, 3), torch.rand(5, 8)
    expected = EnergyBased(temperature=0.5).predict_features(logits)
    for value in (torch.tensor(0.5), np.float32(0.5), np.array(0.5)):
        detector = EnergyBased(temperature=value)  # type: ignore[arg-type]
        assert torch.equal(detector.predict_features(logits), expected)
        detector.save(tmp_path / "energy.safetensors")
        assert EnergyBased.load(tmp_path / "energy.safetensors").temperature == 0.5
    shaped = ASH(head=HEAD, percentile=torch.tensor(0.5))  # type: ignore[arg-type]
    assert torch.equal(shaped.predict_features(features), ASH(head=HEAD, percentile=0.5).predict_features(features))
    labels = torch.arange(40) % 2
    settings: dict[str, Any] = {"shrinkage": torch.tensor(0.25), "input_std": torch.tensor([0.5, 0.25])}
    written = MahalanobisDetector(**settings).fit_features(torch.randn(40, 2), labels)
    written.save(tmp_path / "mahalanobis.safetensors")
    read = MahalanobisDetector.load(tmp_path / "mahalanobis.safetensors")
    assert (read.settings.shrinkage, read.settings.input_std) == (0.25, (0.5, 0.25))
    assert torch.equal(read.predict_features(features[:, :2]), written.predict_features(features[:, :2]))


def test_a_class_index_is_an_integer() -> None:
    statistics = GaussianStatistics(2, per_class=True).partial_fit(torch.randn(20, 2), torch.arange(20) % 2)
    for index in (1.0, "x", True):
        with pytest.raises(TypeError, match="index must be a class, 0 to 1"):
            statistics.class_covariance(index)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="fourth_moment must be a number or a tensor, got 'x'"):
        statistics.covariance("ledoit_wolf", fourth_moment="x")  # type: ignore[arg-type]


def test_built_detectors_can_be_pickled() -> None:
    network = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3))
    split = LinearHeadModel(network)
    batches, x = [(torch.randn(60, 4), torch.arange(60) % 3)], torch.randn(5, 4)
    for name, detector in build_detectors(split, settings={"knn": {"k": 5}, "ash": {"percentile": 0.5}}).items():
        detector.fit(batches)
        again = pickle.loads(pickle.dumps(detector))
        assert torch.equal(again.predict(x), detector.predict(x)), name


def test_gradnorm_checks_its_temperature() -> None:
    with pytest.raises(TypeError, match="temperature must be a real number, got None"):
        GradNorm(head=HEAD, temperature=None)  # type: ignore[arg-type]
