"""Prototypes: logits, losses and scores against Yang et al. 2018 by hand, and a run from the command line."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fastood.heads import PrototypeHead
from fastood.losses import PrototypeLoss
from fastood.models import ModelConfig
from fastood.train import cli as train
from fastood.train.engine.objective import Batch
from fastood.train.methods.gcpl import GCPLConfig, GCPLObjective, by_nearest_prototype
from tests.support.tiny_run import tiny_data_args, tiny_task


def head_of(prototypes: list, gamma: float = 0.5) -> PrototypeHead:
    """A head with these prototypes [K, J, d]."""
    values = torch.tensor(prototypes)
    head = PrototypeHead(values.shape[2], values.shape[0], per_class=values.shape[1], gamma=gamma)
    head.prototypes.data.copy_(values)
    return head


TWO_EACH = head_of([[[0.0, 0.0], [4.0, 0.0]], [[0.0, 3.0], [0.0, 9.0]]])
FEATURES = torch.tensor([[1.0, 0.0], [0.0, 5.0]])
DISTANCES = [[[1.0, 9.0], [10.0, 82.0]], [[25.0, 41.0], [4.0, 16.0]]]


class Network(nn.Module):
    """Features as they are, under a head; with what Fabric adds to a module."""

    def __init__(self, head: PrototypeHead) -> None:
        super().__init__()
        self.head = head

    def forward_outputs(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.head(images), images

    def mark_forward_method(self, name: str) -> None:
        """As Fabric's."""


def test_logits_are_the_posterior_over_all_prototypes():
    torch.testing.assert_close(TWO_EACH.distances(FEATURES), torch.tensor(DISTANCES))
    posterior = TWO_EACH(FEATURES).softmax(dim=1)
    for row, distances in zip(posterior.tolist(), DISTANCES, strict=True):
        mass = [sum(math.exp(-0.5 * d) for d in of_class) for of_class in distances]
        assert row == pytest.approx([m / sum(mass) for m in mass], rel=1e-5)


def test_near_a_far_prototype_no_digit_is_lost():
    """The prototype loss makes distances small beside the features: ‖z‖² - 2 z·m + ‖m‖² would be 0 here."""
    head = head_of([[[1000.0, 0.0]], [[0.0, 1000.0]]])
    assert head.distances(torch.tensor([[1000.0, 0.001]]))[0, 0, 0].item() == pytest.approx(1e-6, rel=1e-3)


def test_objective_is_distance_based_cross_entropy_and_prototype_loss():
    """-log p(y | z) + λ min_j ‖z - m_yj‖², the second row being of class 0 and far from it."""
    batch = Batch(images=FEATURES, labels=torch.tensor([0, 0]), importance=None)
    loss, per_sample = GCPLObjective(0.01)(Network(TWO_EACH), batch)
    want = []
    for distances, nearest in zip(DISTANCES, (1, 25), strict=True):
        mass = [sum(math.exp(-0.5 * d) for d in of_class) for of_class in distances]
        want.append(-math.log(mass[0] / sum(mass)) + 0.01 * nearest)
    assert per_sample.tolist() == pytest.approx(want, rel=1e-5)
    assert loss.item() == pytest.approx(sum(want) / 2, rel=1e-5)


def test_prototype_loss_pulls_the_nearest_prototype_of_the_class_alone():
    head = head_of([[[0.0, 0.0], [4.0, 0.0]], [[0.0, 3.0], [0.0, 9.0]]])
    features = torch.tensor([[1.0, 0.0], [math.inf, 1.0]], requires_grad=True)
    loss = PrototypeLoss()(features, head.prototypes, torch.tensor([0, -1]))
    loss.backward()
    assert loss.item() == 1
    assert features.grad.tolist() == [[2.0, 0.0], [0.0, 0.0]]
    want = torch.zeros(2, 2, 2)
    want[0, 0, 0] = -2.0
    assert torch.equal(head.prototypes.grad, want)
    nothing = PrototypeLoss()(features, head.prototypes, torch.tensor([-1, -100]))
    assert nothing.item() == 0


def test_score_is_the_distance_to_the_nearest_prototype():
    network = SimpleNamespace(module=Network(TWO_EACH), features=lambda images: FEATURES, device="cpu")
    predicted = by_nearest_prototype(network, None)(None)
    assert predicted.scores.tolist() == [1.0, 4.0]
    assert predicted.classes.tolist() == [0, 1]


def test_prototypes_do_not_decay_and_begin_alike():
    method = GCPLConfig(per_class=2).build(ModelConfig(name="small-cnn", dropout=0.0), task=tiny_task(), seed=3)
    _, stage = method.stages
    first, second = stage.build_model(), stage.build_model()
    assert torch.equal(first.head.prototypes, second.head.prototypes)
    assert first.head.prototypes.shape == (4, 2, 64)
    *_, undecayed_group = stage.schedule.build_optimizer(first).param_groups
    (undecayed,) = undecayed_group["params"]
    assert undecayed is first.head.prototypes
    assert len(method.background_index("gcpl")) == 0


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("gamma", 0.0, r"gamma \(γ\) must be finite and above 0, got 0.0"),
        ("per_class", 0, "per_class must be at least 1, got 0"),
        ("prototype_weight", -1.0, "prototype_weight must be finite and at least 0, got -1.0"),
        ("batch_size", 0, "batch_size must be at least 1, got 0"),
    ],
)
def test_errors_name_the_field(field: str, value: float, message: str):
    with pytest.raises(ValueError, match=message):
        GCPLConfig(**{field: value})


@pytest.mark.parametrize(
    ("features", "prototypes", "error", "message"),
    [
        (torch.zeros(2), torch.zeros(3, 1, 2), ValueError, r"features must be \[N, d\]"),
        (torch.zeros(2, 2), torch.zeros(3, 2), ValueError, r"prototypes must be \[K, J, d\] with d = 2"),
        (torch.zeros(2, 2, dtype=torch.int64), torch.zeros(3, 1, 2), TypeError, "features must be float64, .*int64"),
        (torch.zeros(1, 2), torch.zeros(3, 1, 2), ValueError, "targets must have shape .* like the rows of features"),
    ],
)
def test_loss_errors_name_the_argument(features: torch.Tensor, prototypes: torch.Tensor, error: type, message: str):
    with pytest.raises(error, match=message):
        PrototypeLoss()(features, prototypes, torch.tensor([0, 1]))


@pytest.mark.parametrize("setting", [{"per_class": 0}, {"gamma": math.inf}, {"init_scale": -1.0}])
def test_head_errors_name_the_argument(setting: dict):
    with pytest.raises(ValueError, match=next(iter(setting))):
        PrototypeHead(2, 3, **setting)


def test_a_run_beats_chance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fastood.train.run.write_report", lambda *args, **kwargs: None)
    options = ["--method.training.epochs", "6", "--method.batch-size", "16"]
    assert train.main(["gcpl", *tiny_data_args(tmp_path), *options]) == 0
    metrics = json.loads((tmp_path / "runs" / "run" / "metrics.json").read_text())
    assert list(metrics["arms"]) == ["msp", "gcpl", "gcpl-softmax"]
    assert metrics["arms"]["gcpl"]["accuracy"] > 0.5, "chance is 0.25"
    # Distances take longer than these 36 steps: features come close to their prototypes last.
    assert metrics["arms"]["gcpl-softmax"]["mean"]["auroc"] > 0.6, "chance is 0.5"
