"""Detectors inside `torch.inference_mode()`, as trainers' test loops run them, score as they do outside."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastood.detectors import (
    DETECTORS,
    ODIN,
    DetectorSuite,
    LinearHeadModel,
    MahalanobisDetector,
    MultiLayerMahalanobisDetector,
    build_detectors,
)
from fastood.detectors.bal import BoundaryAwareDetector

Batches = list[tuple[Tensor, Tensor]]
SMALL = {"steps": 6, "batch_size": 16, "hidden": 16, "noise_dim": 4}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        # The first layer changes its input in place, which autograd forbids for a tensor of inference mode.
        nn.ReLU(inplace=True),
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 4),
    )


def data() -> Batches:
    draws = torch.Generator().manual_seed(1)
    x = torch.rand(96, 3, 6, 6, generator=draws) + 0.1
    return list(zip(x.split(48), (torch.arange(96) % 4).split(48), strict=True))


KINDS: dict[str, Callable[[nn.Module], Any]] = {
    **{name: lambda model, name=name: build_detectors(LinearHeadModel(model), [name])[name] for name in DETECTORS},
    "moved": lambda model: MahalanobisDetector(model, "3", shrinkage="oas", epsilon=0.01),
    "layers": lambda model: MultiLayerMahalanobisDetector(model, ["3", "5"], shrinkage=0.1, epsilon=0.01),
    "two passes": lambda model: MahalanobisDetector(model, "3", shrinkage="ledoit_wolf"),
    "bal": lambda model: BoundaryAwareDetector(model, boundary=SMALL),
}


@contextmanager
def test_step(dtype: torch.dtype | None) -> Iterator[None]:
    """Contexts in which a trainer calls a model in its test loop."""
    with ExitStack() as contexts:
        if dtype is not None:
            contexts.enter_context(torch.autocast("cpu", dtype=dtype))
        contexts.enter_context(torch.inference_mode())
        yield


test_step.__test__ = False


@pytest.mark.parametrize("name", KINDS)
def test_inside_as_outside(name: str) -> None:
    model, batches = network(), data()
    x = batches[0][0]
    detector = KINDS[name](model).fit(batches)
    want = detector.predict(x.clone())
    with torch.inference_mode():
        found = detector.predict(x.clone())
        of_view = detector.predict(torch.cat([x, x])[: len(x)])
    assert torch.equal(found, want)
    assert torch.equal(of_view, want)
    assert torch.equal(detector.predict(x.clone()), want)


@pytest.mark.parametrize("name", KINDS)
def test_fitted_inside(name: str, tmp_path: Path) -> None:
    """The state of a fit is of use outside, in a file, and to the next fit."""
    model = network()
    want = KINDS[name](model).fit(data()).predict(data()[0][0])
    with torch.inference_mode():
        detector = KINDS[name](model).fit([(x.clone(), y.clone()) for x, y in data()])
        assert torch.equal(detector.predict(data()[0][0]), want)
        detector.save(tmp_path / "x")
        arguments = (model,) if name in ("odin", "layers") else ()
        restored = type(detector).load(tmp_path / "x", *arguments)
    assert torch.equal(detector.predict(data()[0][0]), want)
    assert torch.equal(detector.fit(data()).predict(data()[0][0]), want)
    if name == "moved":
        moved = MahalanobisDetector.load(tmp_path / "x", model, "3")
        restored = MahalanobisDetector.load(tmp_path / "x", model, "3")
        with torch.inference_mode():
            restored.load_state_dict({key: value.clone() for key, value in detector.state_dict().items()})
        assert torch.equal(restored.predict(data()[0][0]), moved.predict(data()[0][0]))


def test_partial_fit_inside_and_outside() -> None:
    rows, labels = torch.randn(60, 3, generator=torch.Generator().manual_seed(0)), torch.arange(60) % 2
    want = MahalanobisDetector().fit_features(rows, labels)
    detector = MahalanobisDetector(nn.Identity(), epsilon=0.1)
    with torch.inference_mode():
        detector.partial_fit(rows[:30].clone(), labels[:30])
        detector.predict(rows)
    detector.partial_fit(rows[30:], labels[30:])
    with torch.inference_mode():
        torch.testing.assert_close(detector.predict_features(rows), want.predict_features(rows))
    assert detector.predict(rows).isfinite().all()  # whose gradient goes through what was factorised inside


@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_suite_in_a_test_loop(dtype: torch.dtype | None) -> None:
    """As a trainer does it: the model has run in the same region before, and autocast keeps copies of its weights."""
    model, batches = network().eval(), data()
    split = LinearHeadModel(model)
    suite = DetectorSuite(split, build_detectors(split)).fit(batches)
    x = batches[0][0]
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        want = suite.predict(x)
        alone = ODIN(model).predict(x)
    with test_step(dtype):
        logits = model(x.clone())
        found = suite.predict(x)
        assert torch.equal(ODIN(model).predict(x), alone)
        assert torch.equal(model(x.clone()), logits)
    assert suite.failed == {}
    for name in DETECTORS:
        assert torch.equal(found[name], want[name]), name


def test_models_made_inside() -> None:
    x = data()[0][0]
    want = ODIN(network(), epsilon=0.01).predict(x)
    with torch.inference_mode():
        model = network()
        assert torch.equal(ODIN(model, epsilon=0.01).predict(x.clone()), want)
    assert torch.equal(ODIN(model, epsilon=0.01).predict(x.clone()), want)
    assert all(tensor.is_inference() for tensor in model.state_dict().values())  # its own, put back
    with pytest.raises(ValueError, match=r"must not compute with tensors made inside torch\.inference_mode\(\)"):
        ODIN(lambda x: model.eval()(x)).predict(x)


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """As a trainer in pure 16 bits sets it for a whole test loop."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", sorted(KINDS.keys() - {"odin", "knn", "moved", "layers", "two passes"}))
def test_features_are_scored_alike_in_any_surroundings(name: str, dtype: torch.dtype) -> None:
    """Whatever autocast and the default dtype say, from the fit on; test_detectors_knn.py does the same for KNN."""
    model = network().eval()
    outputs = [LinearHeadModel(model)(x) for x, _ in data()]
    features, logits = (torch.cat(parts).detach() for parts in zip(*outputs, strict=True))
    labels = torch.cat([y for _, y in data()])
    outside = KINDS[name](model)
    rows = logits if outside.reads == "logits" else features
    want = outside.fit_features(rows, labels).predict_features(rows)
    with default_dtype(dtype), test_step(None if dtype == torch.float64 else torch.bfloat16):
        detector = KINDS[name](model).fit_features(rows, labels)
        found = detector.predict_features(rows)
    assert torch.equal(found, want)
    assert torch.equal(detector.predict_features(rows), want)
