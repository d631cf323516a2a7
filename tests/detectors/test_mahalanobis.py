"""The Mahalanobis detector against its formula, scikit-learn, and what users put into it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.covariance import OAS, LedoitWolf
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis, QuadraticDiscriminantAnalysis
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastood.detectors import MahalanobisDetector


def sample(rows: int = 400, d: int = 6, classes: int = 3, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    labels = torch.arange(rows) % classes
    mixing = torch.randn(d, d, generator=generator, dtype=torch.float64)
    centers = 2 * torch.randn(classes, d, generator=generator, dtype=torch.float64)
    noise = torch.randn(rows, d, generator=generator, dtype=torch.float64)
    return (noise @ mixing + centers[labels] + 5).to(dtype), labels


def squared(features: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    """Squared Mahalanobis distances `[N]` by an inverse."""
    difference = features - mean
    return (difference @ torch.linalg.inv(covariance) * difference).sum(1)


def by_definition(features: Tensor, labels: Tensor, new: Tensor, settings: dict[str, Any]) -> Tensor:
    if settings.get("normalize"):
        features, new = F.normalize(features), F.normalize(new)
    means = [features[labels == k].mean(0) for k in range(3)]
    if settings.get("covariance") == "per_class":
        each = [torch.cov(features[labels == k].mT, correction=0) for k in range(3)]
        found = torch.stack([squared(new, m, c) + torch.logdet(c) for m, c in zip(means, each, strict=True)], 1)
    else:
        inside = features - torch.stack(means)[labels]
        shared = inside.mT @ inside / len(features)
        found = torch.stack([squared(new, m, shared) for m in means], 1)
    if settings.get("relative"):
        whole = torch.cov(features.mT, correction=0)
        base = squared(new, features.mean(0), whole)
        if settings.get("covariance") == "per_class":
            base = base + torch.logdet(whole)
        found = found - base[:, None]
    return found.amin(1)


@pytest.mark.parametrize("covariance", ["tied", "per_class"])
@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_is_its_definition(covariance: str, relative: bool, normalize: bool, generator: torch.Generator) -> None:
    features, labels = sample()
    new = torch.randn(50, 6, generator=generator, dtype=torch.float64) * 4
    settings = {"covariance": covariance, "relative": relative, "normalize": normalize}
    detector = MahalanobisDetector(**settings).fit_features(features, labels)
    want = by_definition(features, labels, new, settings)
    torch.testing.assert_close(detector.predict_features(new), want)
    torch.testing.assert_close(detector.class_distances(new).amin(1), want)
    assert detector.predict_features(new).dtype == torch.float64


@pytest.mark.parametrize(
    ("covariance", "theirs"),
    [
        ("tied", LinearDiscriminantAnalysis(solver="lsqr", priors=[1 / 3] * 3)),
        ("per_class", QuadraticDiscriminantAnalysis(priors=[1 / 3] * 3)),
    ],
)
def test_nearest_class_is_that_of_discriminant_analysis(covariance: str, theirs: Any) -> None:
    features, labels = sample(rows=600)
    detector = MahalanobisDetector(covariance=covariance).fit_features(features, labels)
    want = theirs.fit(features.numpy(), labels.numpy()).predict(features.numpy())
    agree = detector.class_distances(features).argmin(1).numpy() == want
    assert agree.mean() > 0.995  # theirs divides by one row less


def test_relative_distances_are_on_one_scale(generator: torch.Generator) -> None:
    """With one class both Gaussians are the same, so that every relative score is 0."""
    features, _ = sample()
    detector = MahalanobisDetector(relative=True).fit_features(features, torch.zeros(400, dtype=torch.int64))
    score = detector.predict_features(torch.randn(20, 6, generator=generator) * 10)
    torch.testing.assert_close(score, torch.zeros(20, dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_low_precision_features_are_scored_in_float64(dtype: torch.dtype) -> None:
    features, labels = sample(dtype=dtype)
    detector = MahalanobisDetector().fit_features(features, labels)
    want = by_definition(features.double(), labels, features.double(), {})
    torch.testing.assert_close(detector.predict_features(features), want)


@pytest.mark.parametrize("per_class", [False, True])
@pytest.mark.parametrize("shrinkage", ["oas", "ledoit_wolf", 0.1])
def test_shrinkage(shrinkage: str | float, per_class: bool, tmp_path: Path) -> None:
    features, labels = sample(rows=30, d=40)
    covariance = "per_class" if per_class else "tied"
    with pytest.raises(ValueError, match=r"covariance.* is singular.* Pass shrinkage="):
        MahalanobisDetector(covariance=covariance).fit_features(features, labels)
    detector = MahalanobisDetector(covariance=covariance, shrinkage=shrinkage, relative=True)
    score = detector.fit_features(features, labels).predict_features(features)
    assert score.isfinite().all()
    detector.save(tmp_path / "detector.safetensors")
    restored = MahalanobisDetector.load(tmp_path / "detector.safetensors")
    assert torch.equal(restored.predict_features(features), score)
    if isinstance(shrinkage, str) and not per_class:
        estimator = {"oas": OAS, "ledoit_wolf": LedoitWolf}[shrinkage]
        means = torch.stack([features[labels == k].mean(0) for k in range(3)])
        inside = estimator(assume_centered=True).fit((features - means[labels]).numpy())
        whole = estimator().fit(features.numpy())
        distances = np.stack([np.square(_whitened(features.numpy() - m.numpy(), inside)).sum(1) for m in means])
        want = distances.min(0) - whole.mahalanobis(features.numpy())
        np.testing.assert_allclose(score.numpy(), want, rtol=1e-8)


def _whitened(rows: np.ndarray, estimator: Any) -> np.ndarray:
    return np.linalg.solve(np.linalg.cholesky(estimator.covariance_), rows.T).T


def test_partial_fit_adds_up() -> None:
    features, labels = sample()
    whole = MahalanobisDetector(relative=True, normalize=True).fit_features(features, labels)
    parts = MahalanobisDetector(relative=True, normalize=True)
    parts.partial_fit(features[:2], labels[:2])  # singular so far, and two of three classes
    with pytest.raises(ValueError, match="singular"):
        parts.predict_features(features)
    for begin in range(2, 400, 123):
        parts.partial_fit(features[begin : begin + 123], labels[begin : begin + 123])
    torch.testing.assert_close(parts.predict_features(features), whole.predict_features(features))
    again = parts.fit_features(features[:100], labels[:100])
    want = MahalanobisDetector(relative=True, normalize=True).fit_features(features[:100], labels[:100])
    assert torch.equal(again.predict_features(features), want.predict_features(features))
    with pytest.raises(ValueError, match='partial_fit must not be used with shrinkage="ledoit_wolf"'):
        MahalanobisDetector(shrinkage="ledoit_wolf").partial_fit(features, labels)


@pytest.mark.parametrize("covariance", ["tied", "per_class"])
def test_save_and_load(covariance: str, tmp_path: Path) -> None:
    features, labels = sample()
    detector = MahalanobisDetector(covariance=covariance, normalize=True, relative=True, input_std=(0.5, 0.25))
    detector.fit_features(features[:300], labels[:300])
    path = tmp_path / "folder" / "detector.safetensors"
    detector.save(path)
    restored = MahalanobisDetector.load(path)
    assert repr(restored) == repr(detector)
    assert "normalize=True" in repr(detector)
    assert torch.equal(restored.predict_features(features), detector.predict_features(features))
    restored.partial_fit(features[300:], labels[300:])
    detector.partial_fit(features[300:], labels[300:])
    assert torch.equal(restored.predict_features(features), detector.predict_features(features))
    (tmp_path / "other.safetensors").write_bytes(_other_file())
    with pytest.raises(ValueError, match=r"other\.safetensors was not written by a detector"):
        MahalanobisDetector.load(tmp_path / "other.safetensors")
    other = "tied" if covariance == "per_class" else "per_class"
    with pytest.raises(ValueError, match=f"state must have covariances as the setting '{other}'"):
        MahalanobisDetector(covariance=other).load_state_dict(detector.state_dict())


def _other_file() -> bytes:
    from safetensors.torch import save

    return save({"weight": torch.zeros(1)})


def test_background_rows_and_classes_without_rows(generator: torch.Generator) -> None:
    features, labels = sample()
    kept = labels != 1
    background = torch.where(kept, labels, -1)
    detector = MahalanobisDetector().fit_features(features, background)
    want = MahalanobisDetector().fit_features(features[kept], labels[kept])
    torch.testing.assert_close(detector.predict_features(features), want.predict_features(features))
    distances = detector.class_distances(features)
    assert distances[:, 1].eq(torch.inf).all()
    assert distances[:, [0, 2]].isfinite().all()
    assert detector.predict_features(features[:0]).shape == (0,)
    assert detector.class_distances(features[:0]).shape == (0, 3)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_rows_that_are_not_finite(bad: float) -> None:
    features, labels = sample()
    detector = MahalanobisDetector(normalize=True).fit_features(features, labels)
    want = detector.predict_features(features)
    broken = features.clone()
    broken[3, 2] = bad
    score = detector.predict_features(broken)
    assert score.isnan().nonzero().flatten().tolist() == [3]
    rest = torch.arange(400) != 3
    torch.testing.assert_close(score[rest], want[rest])
    with pytest.raises(ValueError, match="features must be finite, got NaN or infinity in 1 rows, the first is row 3"):
        detector.fit_features(broken, labels)
    with pytest.raises(ValueError, match="the first is row 3"):
        detector.partial_fit(broken, labels)
    assert torch.equal(detector.predict_features(features), want)  # what was fitted before is still there
    assert MahalanobisDetector().fit_features(broken, labels.index_fill(0, torch.tensor(3), -1)).statistics.count == 399


def test_finds_what_it_is_meant_to_find(generator: torch.Generator) -> None:
    """Outliers between the classes, where a linear classifier is as sure as anywhere."""
    features, labels = sample(rows=2000, d=20)
    detector = MahalanobisDetector().fit_features(features[:1000], labels[:1000])
    outliers = 5 + 6 * torch.randn(1000, 20, generator=generator, dtype=torch.float64)
    known, unknown = detector.predict_features(features[1000:]), detector.predict_features(outliers)
    assert (known[:, None] < unknown).double().mean() > 0.95  # the AUROC


class Largest(TorchDispatchMode):
    """The largest number of elements of any tensor that an op returns."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.numel())
        return out


@pytest.mark.parametrize("covariance", ["tied", "per_class"])
def test_memory_is_rows_by_classes(covariance: str, generator: torch.Generator) -> None:
    rows, d, classes = 20_000, 8, 20
    features, labels = torch.randn(rows, d, generator=generator), torch.arange(rows) % classes
    with Largest() as mode:
        detector = MahalanobisDetector(covariance=covariance).fit_features(features, labels)
        detector.predict_features(features)
    assert mode.largest <= max(rows * d, 1024 * classes, classes * d * d)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"covariance": "shared"}, ValueError, 'covariance must be "tied" or "per_class", got \'shared\''),
        ({"shrinkage": "lw"}, ValueError, "shrinkage must be None"),
        ({"shrinkage": 2.0}, ValueError, "shrinkage must be None"),
        ({"epsilon": -1.0}, ValueError, "epsilon must be finite and >= 0, got -1.0"),
        ({"input_std": [0.0]}, ValueError, r"input_std must be above 0 and finite, got \[0.0\]"),
        ({"feature_layer": "fc"}, ValueError, "feature_layer needs a model, got 'fc' without one"),
        ({"model": 3}, TypeError, "model must be callable, got int"),
    ],
)
def test_bad_settings(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MahalanobisDetector(**settings)


def test_what_it_cannot_fit_or_score() -> None:
    features, labels = sample()
    empty = MahalanobisDetector()
    for call in (empty.predict_features, empty.class_distances):
        with pytest.raises(RuntimeError, match="the detector has not been fitted: call fit"):
            call(features)
    for call in (empty.state_dict, empty.all_reduce):
        with pytest.raises(RuntimeError, match="not been fitted"):
            call()
    with pytest.raises(ValueError, match='all_reduce must not be used with shrinkage="ledoit_wolf"'):
        MahalanobisDetector(shrinkage="ledoit_wolf").all_reduce()
    with pytest.raises(ValueError, match="the detector has no model: pass one, or use fit_features"):
        empty.fit([(features, labels)])
    with pytest.raises(ValueError, match="there must be at least one batch to fit to, got none"):
        empty.fit([])
    with pytest.raises(ValueError, match="at least one row with a label of 0 or above to fit to, got none"):
        empty.fit_features(features, torch.full_like(labels, -1))
    with pytest.raises(ValueError, match="singular: features 0, 1, 2, 3, 4 and 1 more are constant"):
        empty.fit_features(features[:1], labels[:1])
    with pytest.raises(ValueError, match="the covariance of class 1 is singular"):
        MahalanobisDetector(covariance="per_class").fit_features(
            features[[0, 3, *range(6, 400, 3), 1]], labels[[0, 3, *range(6, 400, 3), 1]]
        )
    with pytest.raises(TypeError, match="labels must be int64"):
        empty.fit_features(features, labels.float())
    with pytest.raises(TypeError, match=r"labels must be a torch\.Tensor, got list"):
        empty.fit_features(features, labels.tolist())
    assert empty.statistics is None
    detector = MahalanobisDetector().fit_features(features, labels)
    for call in (detector.predict_features, detector.class_distances):
        with pytest.raises(ValueError, match=r"features must be \[N, 6\], got shape \(2, 5\)"):
            call(torch.zeros(2, 5))
        with pytest.raises(TypeError, match="features must be floating-point"):
            call(torch.zeros(2, 6, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"features must be \[N, 6\], got shape \(2, 5\)"):
        detector.partial_fit(torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64))
