"""Autoencoder and Mahalanobis distance: the score against Denouden et al. 2018 by hand, and a run."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fastood.models import ModelConfig
from fastood.models.autoencoder import Autoencoder
from fastood.train import cli as train
from fastood.train.engine.objective import Batch
from fastood.train.methods.aec import (
    AECConfig,
    AutoencodingClassifier,
    ReconstructionObjective,
    by_reconstruction,
    mahalanobis_distance,
)
from tests.support.tiny_run import tiny_task

SMALL = ModelConfig(name="small-cnn", dropout=0.0)


@pytest.mark.parametrize("size", [8, 15, 28, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_of_any_size_come_back(size: int, channels: int, generator: torch.Generator):
    autoencoder = Autoencoder(in_channels=channels, image_size=size, latent_dim=5, generator=generator)
    images = torch.randn(2, channels, size, size, generator=generator)
    latent, reconstruction = autoencoder(images)
    assert latent.shape == (2, 5)
    assert reconstruction.shape == images.shape


def test_initial_weights_are_those_of_the_seed():
    state = torch.get_rng_state()
    first, second = (
        Autoencoder(in_channels=1, image_size=8, latent_dim=4, generator=torch.Generator().manual_seed(5))
        for _ in range(2)
    )
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in first.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


@pytest.mark.parametrize("setting", [{"in_channels": 0}, {"image_size": 7}, {"latent_dim": 0}])
def test_autoencoder_errors_name_the_argument(setting: dict):
    sizes = {"in_channels": 1, "image_size": 8, "latent_dim": 4, **setting}
    ((name, value),) = setting.items()
    with pytest.raises(ValueError, match=f"{name} must be at least ., got {value}"):
        Autoencoder(**sizes)


def test_distance_is_that_of_one_gaussian(generator: torch.Generator):
    rows = torch.randn(50, 3, generator=generator, dtype=torch.float64) @ torch.diag(
        torch.tensor([1.0, 5, 0.1]).double()
    )
    others = torch.randn(4, 3, generator=generator, dtype=torch.float64)
    inverse = np.linalg.inv(np.cov(rows.numpy().T, bias=True))
    centred = (others - rows.mean(0)).numpy()
    want = np.sqrt(np.einsum("ni,ij,nj->n", centred, inverse, centred))
    np.testing.assert_allclose(mahalanobis_distance(rows)(others).numpy(), want, rtol=1e-10)


class Given(nn.Module):
    """Latent vectors and errors of images [N, 1, 1, 2]: the first value squared is the error, both are the latent."""

    def reconstruct(self, images: Tensor) -> tuple[Tensor, Tensor]:
        rows = images.flatten(1)
        return rows, rows[:, 0].square()

    def mark_forward_method(self, name: str) -> None:
        """As Fabric's."""


def test_score_adds_error_and_distance_each_in_its_spread(generator: torch.Generator):
    fitted = torch.randn(20, 1, 1, 2, generator=generator, dtype=torch.float64)
    images = torch.tensor([[[[1.0, 2.0]]], [[[-3.0, 0.5]]]]).double()
    network = SimpleNamespace(
        module=Given(),
        over_batches=lambda rows, compute: compute(rows),
        logits=lambda rows: torch.tensor([[1, 0], [0, 1]]),
    )
    task = SimpleNamespace(id_train=fitted)
    rows = fitted.flatten(1)
    inverse = np.linalg.inv(np.cov(rows.numpy().T, bias=True))

    def distance(of: Tensor) -> Tensor:
        centred = (of.flatten(1) - rows.mean(0)).numpy()
        return torch.from_numpy(np.sqrt(np.einsum("ni,ij,nj->n", centred, inverse, centred)))

    errors = torch.tensor([1.0, 9.0]).double() / rows[:, 0].square().std()
    for weight in (0.0, 0.5):
        found = by_reconstruction(weight)(network, task)(images)
        torch.testing.assert_close(found.scores, errors + weight * distance(images) / distance(fitted).std())
        assert found.classes.tolist() == [0, 1]


def test_loss_is_the_mean_squared_error():
    images = torch.tensor([[[[2.0, 0.0]]], [[[4.0, 1.0]]]])
    loss, per_sample = ReconstructionObjective()(Given(), Batch(images=images, labels=torch.zeros(2), importance=None))
    assert loss.item() == 10
    assert per_sample.tolist() == [4, 16]
    autoencoder = Autoencoder(in_channels=1, image_size=8, latent_dim=2)
    model = AutoencodingClassifier(
        AECConfig().build(SMALL, task=tiny_task(), seed=0).stages[0].build_model(), autoencoder
    )
    images = torch.ones(3, 1, 8, 8)
    _, errors = model.eval().reconstruct(images)
    torch.testing.assert_close(errors, (autoencoder(images)[1] - images).square().mean(dim=(1, 2, 3)))


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("latent_dim", 0, "latent_dim must be at least 1, got 0"),
        ("distance_weight", float("inf"), "distance_weight must be finite and above 0, got inf"),
        ("batch_size", 0, "batch_size must be at least 1, got 0"),
    ],
)
def test_errors_name_the_field(field: str, value: float, message: str):
    with pytest.raises(ValueError, match=message):
        AECConfig(**{field: value})


def test_a_run_beats_chance_and_keeps_the_classifier(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fastood.train.run.write_report", lambda *args, **kwargs: None)
    # The tiny run will not do: its images are noise, which no autoencoder learns.
    options = {"data.embedded.pool-size": 50, "data.embedded.ood-size": 100}
    options |= {"method.training.epochs": 3, "method.autoencoder.epochs": 4}
    flat = [part for name, value in options.items() for part in (f"--{name}", str(value))]
    assert train.main(["aec", "--out", str(tmp_path / "runs"), "--name", "run", *flat]) == 0
    run = tmp_path / "runs" / "run"
    arms = json.loads((run / "metrics.json").read_text())["arms"]
    assert list(arms) == ["msp", "error", "aec"]
    assert arms["aec"]["accuracy"] == arms["msp"]["accuracy"] > 0.25, "chance is 0.125"
    assert arms["aec"]["mean"]["auroc"] > 0.6, "chance is 0.5"
    plain, both = (load_file(run / "models" / f"{arm}.safetensors") for arm in ("msp", "aec"))
    for name, value in plain.items():
        assert torch.equal(both[f"classifier.{name}"], value), name
