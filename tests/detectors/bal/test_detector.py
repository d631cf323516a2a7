"""BAL as a detector on a frozen model: the contract of pytorch-ood, without a trace on the model."""

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastood.detectors.bal import BoundaryAwareDetector

SMALL = {"steps": 6, "batch_size": 16, "hidden": 16, "noise_dim": 4}


def small_model(*, classes: int = 3) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, classes)
    )


def batches(*, classes: int = 3) -> list[tuple[Tensor, Tensor]]:
    draws = torch.Generator().manual_seed(1)
    images = torch.randn(48, 1, 8, 8, generator=draws)
    labels = torch.arange(48) % classes
    labels[5] = -1
    return list(zip(images.split(16), labels.split(16), strict=True))


def test_model_is_left_as_it_was_to_the_bit():
    """Weights, BatchNorm statistics, modes, hooks and gradients."""
    model = small_model()
    before = deepcopy(model.state_dict())
    detector = BoundaryAwareDetector(model, "4", boundary=SMALL).fit(batches())
    scores = detector.predict(batches()[0][0])
    assert scores.dtype == torch.float64
    assert scores.shape == (16,)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_score_is_softmax_times_discriminator():
    model = small_model().eval()
    detector = BoundaryAwareDetector(model, "4", boundary=SMALL).fit(batches())
    images = batches()[0][0]
    features = model[:5](images).detach()
    logits = model[5](features).detach()
    confidence, classes = logits.double().softmax(1).max(1)
    accepted = detector._discriminator()(features, classes).double().sigmoid()
    torch.testing.assert_close(detector.predict(images), -(confidence * accepted).log(), rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(detector.predict_features(features), detector.predict(images))


def test_fit_is_the_same_again_and_outlives_a_file(tmp_path: Path):
    """Also under no_grad, and whatever the global generator holds; another seed is another fit."""
    model = small_model()
    images = batches()[0][0]
    first = BoundaryAwareDetector(model, "4", boundary=SMALL).fit(batches())
    torch.manual_seed(7)
    with torch.no_grad():
        second = BoundaryAwareDetector(model, "4", boundary=SMALL).fit(batches())
    other = BoundaryAwareDetector(model, "4", boundary=SMALL, seed=1).fit(batches())
    assert torch.equal(first.predict(images), second.predict(images))
    assert not torch.equal(first.predict(images), other.predict(images))
    first.save(tmp_path / "bal.safetensors")
    loaded = BoundaryAwareDetector.load(tmp_path / "bal.safetensors", model, "4")
    assert torch.equal(loaded.predict(images), first.predict(images))
    alone = BoundaryAwareDetector.load(tmp_path / "bal.safetensors")
    assert alone.boundary == first.boundary
    torch.testing.assert_close(alone.predict_features(first.extract(images)), first.predict(images))


def test_features_alone_and_one_class():
    """A head with one logit: the discriminator decides alone."""
    head = nn.Linear(2, 1)
    features = 3 + torch.randn(128, 2, generator=torch.Generator().manual_seed(0))
    features[::2, 1] += 12
    detector = BoundaryAwareDetector(
        head=head, boundary=SMALL | {"steps": 150, "learning_rate": 2e-3, "sampling": "uniform"}
    )
    detector.fit_features(features, torch.zeros(128, dtype=torch.int64))
    inside, outside = detector.predict_features(torch.tensor([[3.0, 3.0], [3.0, 9.0]]))
    assert inside < outside


def test_errors_name_what_is_wrong():
    with pytest.raises(ValueError, match="steps must be at least 1, got 0"):
        BoundaryAwareDetector(small_model(), boundary={"steps": 0})
    detector = BoundaryAwareDetector(small_model(), "4", boundary=SMALL)
    with pytest.raises(RuntimeError, match="not been fitted"):
        detector.predict(torch.zeros(1, 1, 8, 8))
    with pytest.raises(ValueError, match="labels must be below the 3 classes of the discriminator, got 3"):
        detector.fit(batches(classes=4))
    with pytest.raises(ValueError, match="at least one"):
        detector.fit_features(torch.zeros(2, 6), torch.tensor([-1, -1]))
