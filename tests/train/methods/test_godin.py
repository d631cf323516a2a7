"""Generalised ODIN: h, g, their quotient, the step and its choice against Hsu et al. 2020 by hand, and a run."""

import json
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from fastood.data.images.augment import STD
from fastood.heads import DecomposedConfidenceHead
from fastood.models import ModelConfig
from fastood.train import cli as train
from fastood.train.methods.godin import GODINConfig, by_confidence
from tests.support.tiny_run import tiny_data_args, tiny_task

SMALL = ModelConfig(name="small-cnn", dropout=0.0)
FEATURES = torch.tensor([[3.0, 4.0], [0.0, 2.0]])


def head_of(similarity: str) -> DecomposedConfidenceHead:
    """A head with plain numbers, at test time: g = σ((z_1 - 1) / 2)."""
    head = DecomposedConfidenceHead(2, 3, similarity=similarity)
    head.weight.data = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]])
    if head.bias is not None:
        head.bias.data = torch.tensor([0.0, 1.0, 2.0])
    head.gate.weight.data = torch.tensor([[1.0, 0.0]])
    head.gate.bias.data = torch.tensor([-1.0])
    head.norm.running_var.fill_(4.0 - head.norm.eps)
    return head.eval()


@pytest.mark.parametrize(
    ("similarity", "want"),
    [
        ("inner", [[3.0, 9.0, 27.0], [0.0, 5.0, 10.0]]),
        ("euclidean", [[-20.0, -13.0, 0.0], [-5.0, 0.0, -13.0]]),
        ("cosine", [[0.6, 0.8, 1.0], [0.0, 1.0, 0.8]]),
    ],
)
def test_logits_are_class_scores_over_confidence(similarity: str, want: list):
    head, h = head_of(similarity), torch.tensor(want)
    torch.testing.assert_close(head.class_scores(FEATURES), h)
    torch.testing.assert_close(head.gate_logits(FEATURES), torch.tensor([1.0, -0.5]))
    g = [1 / (1 + math.exp(-1.0)), 1 / (1 + math.exp(0.5))]
    torch.testing.assert_close(head(FEATURES), h / torch.tensor(g)[:, None])


def test_weights_of_h_alone_do_not_decay():
    stage = GODINConfig(similarities=("inner",)).build(SMALL, task=tiny_task(), seed=0).stages[1]
    model = stage.build_model()
    decayed, kept = (group["params"] for group in stage.schedule.build_optimizer(model).param_groups)
    assert {id(value) for value in kept} == {id(model.head.weight), id(model.head.bias)}
    assert any(value is model.head.gate.weight for value in decayed)
    assert torch.equal(model.head.gate.weight, stage.build_model().head.gate.weight)


class Inputs(nn.Module):
    """Two input pixels as features, under a head."""

    def __init__(self) -> None:
        super().__init__()
        self.head = head_of("inner")

    def features(self, inputs: Tensor) -> Tensor:
        return inputs.flatten(1)


def predicted(confidence: str, magnitudes: tuple[float, ...], held_out: Tensor) -> Tensor:
    """Scores of `FEATURES` as images of one channel, where held-out images are another set's."""
    network = SimpleNamespace(
        module=Inputs(),
        over_batches=lambda images, compute: compute(images),
        logits=lambda images: Inputs().head(images.flatten(1)),
    )
    task = SimpleNamespace(id_train=SimpleNamespace(subset=lambda index: held_out))
    found = by_confidence(confidence, magnitudes, torch.tensor([0]))(network, task)(FEATURES[:, None, None])
    assert found.classes.tolist() == [2, 2]
    return found.scores


def test_scores_are_of_inputs_moved_towards_more_confidence():
    """The largest h is of class 2, whose weights (3, 4) are both positive: each pixel rises by ε / STD."""
    step = 0.125 / STD
    anything = FEATURES[:, None, None]
    assert predicted("h", (0.0,), anything).tolist() == [-27.0, -10.0]
    assert predicted("h", (0.125,), anything).tolist() == pytest.approx([-27 - 7 * step, -10 - 7 * step])
    assert predicted("g", (0.125,), anything).tolist() == pytest.approx([-1 - step / 2, 0.5 - step / 2])


def test_the_step_is_the_one_at_which_held_out_images_are_most_confident():
    """A held-out image that nearly points along its class is carried past it by a large step, which so is not taken."""
    network_head = head_of("cosine")
    held_out = torch.tensor([[[[0.31, 0.4]]]])

    class Cosine(Inputs):
        def __init__(self) -> None:
            super().__init__()
            self.head = network_head

    network = SimpleNamespace(
        module=Cosine(),
        over_batches=lambda images, compute: compute(images),
        logits=lambda images: network_head(images.flatten(1)),
    )
    task = SimpleNamespace(id_train=SimpleNamespace(subset=lambda index: held_out))
    image = torch.tensor([[[[1.0, 0.2]]]])
    unmoved = by_confidence("h", (0.0,), torch.tensor([0]))(network, task)(image).scores
    for magnitudes in ((0.0, 0.5), (0.5, 0.0)):
        assert torch.equal(by_confidence("h", magnitudes, torch.tensor([0]))(network, task)(image).scores, unmoved)
    moved = by_confidence("h", (0.05,), torch.tensor([0]))(network, task)(image).scores
    assert not torch.equal(moved, unmoved)
    # Along (1, 1) the linear h of the same image only grows: the largest step wins.
    assert torch.equal(predicted("h", (0.0, 0.5, 0.1), held_out), predicted("h", (0.5,), held_out))


def test_images_that_choose_the_step_train_no_arm():
    task = tiny_task()
    stages = GODINConfig(validation_fraction=0.25).build(SMALL, task=task, seed=0).stages
    assert all(torch.equal(stage.id_index, stages[0].id_index) for stage in stages)
    assert len(stages[0].id_index) == 72
    assert torch.bincount(task.id_train.labels[stages[0].id_index]).tolist() == [18] * 4
    assert len(GODINConfig(magnitudes=(0.01,)).build(SMALL, task=task, seed=0).stages[0].id_index) == 96


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("similarities", ("dot",), "similarities must be of inner, euclidean, cosine, got 'dot'"),
        ("confidences", (), "confidences must name at least one of h, g, got none"),
        ("magnitudes", (), r"magnitudes \(ε\) must have at least one value, got none"),
        ("magnitudes", (math.nan,), r"magnitudes \(ε\) must be finite and at least 0, got nan"),
        ("validation_fraction", 1.0, r"validation_fraction must be in \(0, 1\), got 1.0"),
        ("batch_size", 0, "batch_size must be at least 1, got 0"),
    ],
)
def test_errors_name_the_field(field: str, value: object, message: str):
    with pytest.raises(ValueError, match=message):
        GODINConfig(**{field: value})


def test_head_errors_name_the_argument():
    with pytest.raises(ValueError, match="similarity must be one of inner, euclidean, cosine, got 'dot'"):
        DecomposedConfidenceHead(2, 3, similarity="dot")
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        DecomposedConfidenceHead(2, 0)


def test_a_run_beats_chance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("fastood.train.run.write_report", lambda *args, **kwargs: None)
    options = ["--method.training.epochs", "6", "--method.batch-size", "16", "--method.confidences", "h", "g"]
    assert train.main(["godin", *tiny_data_args(tmp_path), *options]) == 0
    metrics = json.loads((tmp_path / "runs" / "run" / "metrics.json").read_text())
    assert list(metrics["arms"]) == ["msp", "cosine-h", "cosine-g"]
    assert metrics["arms"]["cosine-h"]["accuracy"] > 0.5, "chance is 0.25"
    assert metrics["arms"]["cosine-h"]["mean"]["auroc"] > 0.6, "chance is 0.5"
