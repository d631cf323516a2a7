"""Deep SVDD: losses, radius and centre against Ruff et al. 2018 by hand; one class against the rest, and a run."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning_fabric import Fabric
from safetensors.torch import load_file
from torch import Tensor, nn

from fastood.data import Augment
from fastood.heads import HypersphereHead
from fastood.losses import DeepSVDDLoss
from fastood.models import ModelConfig
from fastood.models.one_class import OneClassLeNet
from fastood.train import cli as train
from fastood.train.engine.objective import Batch
from fastood.train.engine.stage import StageContext
from fastood.train.methods.deep_svdd import OTHERS, DeepSVDDConfig, DeepSVDDObjective, by_distance, one_against_rest
from tests.support.tiny_run import tiny_data_args, tiny_task

DISTANCES = torch.tensor([16.0, 1.0, 9.0, 4.0])
SMALL = ModelConfig(name="small-cnn", dropout=0.0)


def test_hard_boundary_is_the_mean_distance():
    loss, per_sample = DeepSVDDLoss().with_per_sample(DISTANCES)
    assert loss.item() == 7.5
    assert torch.equal(per_sample, DISTANCES)


@pytest.mark.parametrize(
    ("nu", "radius", "want"),
    [
        (0.25, 3.0, 9 + 4 * 7 / 4),
        (0.3, 3.0, 9 + 7 / 4 / 0.3),
        (0.5, 2.0, 4 + 2 * 17 / 4),
        (1.0, 0.0, 7.5),
        (0.1, 4.0, 16.0),
    ],
)
def test_soft_boundary_and_the_radius_that_minimises_it(nu: float, radius: float, want: float):
    loss = DeepSVDDLoss(nu)
    found = loss.radius_of(DISTANCES)
    assert found.item() == radius
    assert loss(DISTANCES, found).item() == pytest.approx(want)
    others = torch.linspace(0, 5, 101)
    assert min(loss(DISTANCES, other).item() for other in others) >= want - 1e-5


@pytest.mark.parametrize("nu", [0.07, 0.14, 0.28, 0.29, 0.55, 0.56, 0.57, 0.58])
def test_the_share_outside_is_the_decimal_that_was_given(nu: float):
    """0.29 · 100 is 28.999… in binary, and 29 images may lie outside."""
    distances = torch.arange(1.0, 101.0)
    assert DeepSVDDLoss(nu).radius_of(distances).square().item() == pytest.approx(100 - round(100 * nu))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("radius", [300.0, torch.tensor(300.0), torch.tensor(300.0, dtype=torch.float16)])
def test_sixteen_bits_hold_the_distances_and_not_what_is_made_of_them(dtype: torch.dtype, radius: float | torch.Tensor):
    distances = torch.tensor([1.0, 4.0, 65000.0, 32768.0], dtype=dtype)
    wide = distances.float()
    for loss in (DeepSVDDLoss(), DeepSVDDLoss(0.5)):
        found, per_image = loss.with_per_sample(distances, radius)
        want, of_images = loss.with_per_sample(wide, 300.0)
        assert found.dtype == per_image.dtype == torch.float32
        assert found == want
        assert torch.equal(per_image, of_images)
    assert DeepSVDDLoss(0.5).radius_of(distances) == DeepSVDDLoss(0.5).radius_of(wide)


def test_images_inside_the_sphere_have_no_gradient():
    distances = DISTANCES.clone().requires_grad_()
    DeepSVDDLoss(0.5)(distances, torch.tensor(3.0)).backward()
    assert distances.grad.tolist() == [0.5, 0, 0, 0]


def test_centre_is_the_mean_away_from_zero():
    head = HypersphereHead(4)
    head.radius.fill_(7)
    head.fit(torch.tensor([[1.0, -0.04, 0.0, -3.0], [2.0, -0.02, 0.1, -3.0]]))
    assert head.center.tolist() == pytest.approx([1.5, -0.1, 0.1, -3.0])
    assert head.radius.item() == 0
    assert head(torch.tensor([[2.5, -0.1, 0.1, -1.0]])).item() == pytest.approx(5)


@pytest.mark.parametrize("rows", [torch.zeros(0, 2), torch.tensor([[float("inf"), 0.0]])])
def test_centre_of_nothing_or_infinity_is_refused(rows: Tensor):
    with pytest.raises(ValueError, match="features must be finite, with one row or more"):
        HypersphereHead(2).fit(rows)


def test_the_network_cannot_be_constant():
    """No bias, no scale of BatchNorm, no bounded activation: what is trained are weights that multiply the image."""
    network = OneClassLeNet(in_channels=3, image_size=32, widths=(32, 64, 128), feature_dim=128)
    assert all(value.dim() in (2, 4) for value in network.parameters())
    assert {type(module) for module in network.body} == {
        nn.Conv2d,
        nn.BatchNorm2d,
        nn.LeakyReLU,
        nn.MaxPool2d,
        nn.Flatten,
        nn.Linear,
    }
    assert network.features(torch.randn(2, 3, 32, 32)).shape == (2, 128)
    with pytest.raises(ValueError, match="image_size must be at least 16 pixels, got 8"):
        OneClassLeNet(in_channels=1, image_size=8, widths=(4, 4, 4, 4))


class Distances(nn.Module):
    """Images are the distances; with a radius."""

    def __init__(self) -> None:
        super().__init__()
        self.head = HypersphereHead(1)

    def forward(self, images: Tensor) -> Tensor:
        return images


def test_the_soft_objective_keeps_the_radius_with_the_network():
    network = Distances()
    batch = Batch(images=DISTANCES, labels=torch.zeros(4, dtype=torch.int64), importance=None)
    loss, per_sample = DeepSVDDObjective(DeepSVDDLoss(0.5))(network, batch)
    assert loss.item() == 4 + 2 * 17 / 4
    assert per_sample.tolist() == [12, 0, 5, 0]
    assert network.state_dict()["head.radius"].item() == 2
    predicted = by_distance(3)(SimpleNamespace(module=network, logits=lambda images: images), None)(DISTANCES)
    assert predicted.scores.tolist() == [12, -3, 5, 0]
    assert predicted.classes.tolist() == [3] * 4


def test_one_class_is_told_from_all_others():
    task = tiny_task()
    seen = one_against_rest(1, task)
    assert seen.id_test.labels.unique().tolist() == seen.id_train.labels.unique().tolist() == [1]
    (others,) = seen.ood.values()
    assert list(seen.ood) == [OTHERS]
    assert len(seen.id_test) + len(others) == len(task.id_test)
    assert torch.equal(others.images, task.id_test.images[task.id_test.labels != 1])
    assert set(others.labels.tolist()) == {-1}


def test_a_stage_begins_with_the_centre_of_its_class():
    """In evaluation mode, as the authors; a network that has been trained is not centred anew on resuming."""
    task = tiny_task()
    stage = DeepSVDDConfig().build(SMALL, task=task, seed=0).stages[2]
    fabric = Fabric(accelerator="cpu", devices=1)
    context = StageContext(task=task, augment=Augment(padding=0), seed=0, fabric=fabric)
    run = stage.begin(stage.build_model(), context)
    network = stage.build_model().eval()
    with torch.no_grad():
        images = context.augment.normalize(task.id_train.images[task.id_train.labels == 2])
        want = HypersphereHead(32).fit(network.features(images)).center
    torch.testing.assert_close(run.model.head.center, want)
    assert run.model.training
    state = run.state_dict()
    state["model"]["head.center"] = want + 1
    run.load_state_dict(state)
    torch.testing.assert_close(run.model.head.center, want + 1)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("boundary", "firm", "boundary must be one of hard, soft, got 'firm'"),
        ("nu", 1.5, r"nu \(ν\) must be in \(0, 1\], got 1.5"),
        ("widths", (), r"widths must be one or more, each at least 1, got \(\)"),
        ("feature_dim", 0, "feature_dim must be at least 1, got 0"),
    ],
)
def test_errors_name_the_field(field: str, value: object, message: str):
    with pytest.raises(ValueError, match=message):
        DeepSVDDConfig(**{field: value})


def test_loss_errors_name_the_argument():
    with pytest.raises(ValueError, match=r"nu must be in \(0, 1\], got 0"):
        DeepSVDDLoss(0)
    with pytest.raises(ValueError, match=r"distances must be \[N\] with N >= 1, .*got shape \(0,\)"):
        DeepSVDDLoss()(torch.zeros(0))
    with pytest.raises(ValueError, match="radius must be given for the soft boundary, got none"):
        DeepSVDDLoss(0.1)(DISTANCES)
    with pytest.raises(ValueError, match=r"radius must be a number or of shape \(\), got shape \(5,\)"):
        DeepSVDDLoss(0.1)(DISTANCES, torch.ones(5))
    with pytest.raises(ValueError, match=r"radius must be >= 0, got -5"):
        DeepSVDDLoss(0.1)(DISTANCES, torch.tensor(-5.0))
    with pytest.raises(ValueError, match="distances must be >= 0, got -inf"):
        DeepSVDDLoss()(torch.tensor([1.0, -torch.inf]))
    for wrong in (torch.ones(2, 5), torch.ones(0)):
        with pytest.raises(ValueError, match=r"distances must be \[N\] with N >= 1"):
            DeepSVDDLoss(0.1).radius_of(wrong)
    with pytest.raises(TypeError, match=r"distances must be a torch.Tensor, got list"):
        DeepSVDDLoss()([1.0])
    with pytest.raises(TypeError, match=r"distances must be float64, .*got torch.complex64"):
        DeepSVDDLoss()(torch.ones(2, dtype=torch.complex64))
    with pytest.raises(ValueError, match="radius_of needs a soft boundary"):
        DeepSVDDLoss().radius_of(DISTANCES)


def test_a_run_has_an_arm_for_each_class(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fastood.train.run.write_report", lambda *args, **kwargs: None)
    options = {"training.epochs": 20, "training.learning-rate": 0.003, "batch-size": 8, "boundary": "soft"}
    flat = [part for name, value in options.items() for part in (f"--method.{name}", str(value))]
    # Of 8 test images a fifth is one OOD image; all of them are what papers take.
    whole = ["--protocol.name", "whole", "--protocol.ood-fraction", "None", "--protocol.repeats", "1"]
    assert train.main(["deep-svdd", *tiny_data_args(tmp_path), *flat, *whole]) == 0
    run = tmp_path / "runs" / "run"
    metrics = json.loads((run / "metrics.json").read_text())
    assert list(metrics["arms"]) == [f"class-{label}" for label in range(4)]
    assert metrics["bootstrap"]["baseline"] is None
    aurocs = [arm["ood"][OTHERS]["auroc"]["mean"] for arm in metrics["arms"].values()]
    assert sum(aurocs) / 4 > 0.6, "chance is 0.5"
    weights = [load_file(run / "models" / f"class-{label}.safetensors") for label in range(2)]
    assert all(of_class["head.radius"] > 0 for of_class in weights)
    assert not torch.equal(weights[0]["head.center"], weights[1]["head.center"])
