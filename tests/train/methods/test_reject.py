"""Reject classes: loss and pseudo-labels by hand, how the second step begins, scores, a run from the command line."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastood.losses import RejectClassLoss
from fastood.metrics import auroc
from fastood.models import ModelConfig
from fastood.scores import reject_sum_score, reject_weighted_score
from fastood.train import cli as train
from fastood.train.config import PRESETS
from fastood.train.engine.objective import Batch
from fastood.train.methods.reject.method import Reject, RejectConfig, RejectObjective
from fastood.train.methods.reject.reject_scores import greedy_weights, reject_scorer
from tests.support.tiny_run import tiny_args, tiny_task

SMALL = ModelConfig(name="small-cnn", dropout=0.0)


def method(**options: object) -> Reject:
    return Reject(RejectConfig(**options), model=SMALL, task=tiny_task(), seed=0)


def test_defaults_are_the_papers():
    config = RejectConfig()
    assert (config.batch_size, config.background_batch_size) == (128, 5 * 128)
    assert (config.reject_weight, config.outlier_weight) == (5, 0.5)
    for step in (config.pretrain, config.finetune):
        assert (step.epochs, step.learning_rate, step.decay) == (100, 0.1, "cosine")
    assert (PRESETS["reject", "paper"].model.name, PRESETS["reject", "paper"].model.dropout) == ("wrn-40-2", 0.3)
    assert method().num_reject == 5
    assert method(num_reject=3).num_reject == 3
    hundred = SimpleNamespace(num_classes=100, id_train=tiny_task().id_train, background=tiny_task().background)
    assert Reject(RejectConfig(), model=SMALL, task=hundred, seed=0).num_reject == 10


def test_the_loss_is_algorithm_1(generator: torch.Generator):
    """Two classes, two reject classes; background rows that have found theirs keep it, the others draw."""
    v = torch.tensor([[2.0, 0.0, 1.0, 0.0], [0.0, 0.0, 3.0, 1.0], [4.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    log_f = v.log_softmax(1)
    draw = torch.rand(3, generator=torch.Generator().manual_seed(3))[2]
    pseudo_label = 2 + int(2 * draw)
    want = -log_f[0, 1] - 5 * (log_f[1, 2] + log_f[2, pseudo_label]) / 2
    objective = RejectObjective(RejectClassLoss(2), torch.Generator().manual_seed(3))
    batch = Batch(images=v, labels=torch.tensor([1, -1, -1]), importance=None)
    loss, per_sample = objective(nn.Identity(), batch)
    torch.testing.assert_close(loss, want)
    torch.testing.assert_close(per_sample[2], -log_f[2, pseudo_label])


def test_pseudo_labels_go_on_where_they_were():
    batch = Batch(images=torch.zeros(64, 7), labels=torch.full((64,), -1), importance=None)
    # All logits are equal, the first class wins: every pseudo-label is drawn, and the weights tell which.
    network = nn.Linear(7, 7)
    nn.init.zeros_(network.weight)
    nn.init.zeros_(network.bias)

    def bias_gradient(objective: RejectObjective) -> Tensor:
        network.zero_grad()
        objective(network, batch)[0].backward()
        return network.bias.grad.clone()

    objective = RejectObjective(RejectClassLoss(5), torch.Generator().manual_seed(0))
    first = bias_gradient(objective)
    state = objective.state_dict()
    second = bias_gradient(objective)
    assert not torch.equal(first, second)
    resumed = RejectObjective(RejectClassLoss(5), torch.Generator().manual_seed(9))
    resumed.load_state_dict(state)
    assert torch.equal(bias_gradient(resumed), second)


def test_arms_share_the_first_step_and_the_length_of_the_second():
    reject = method(arms=("msp", "oe", "reject"))
    pretrain, *second = reject.stages
    assert pretrain.background is None
    assert [stage.name for stage in second] == ["msp", "oe", "reject"]
    assert {stage.start_from for stage in second} == {"pretrain"}
    assert {stage.schedule for stage in second} == {RejectConfig().finetune}
    assert [stage.background is None for stage in second] == [True, False, False]
    assert torch.equal(second[1].background(None).draw().index, second[2].background(None).draw().index)
    assert [len(reject.background_index(arm.name)) for arm in reject.arms] == [0, 160, 160]
    assert reject.baseline == "msp"


def test_the_second_step_keeps_the_network_and_adds_classes():
    pretrain, stage = method(arms=("reject",)).stages
    trained = pretrain.build_model()
    nn.init.uniform_(trained.head.bias)
    model = stage.build_model()
    drawn = model.head.weight[4:].clone()
    stage.take_over(model, trained.state_dict(), None)
    images = torch.rand(3, 1, 8, 8)
    trained.eval()
    model.eval()
    torch.testing.assert_close(model(images)[:, :4], trained(images))
    assert model.head.weight.shape == (9, 64)
    assert torch.equal(model.head.weight[4:], drawn)
    assert drawn.std() > 0


def test_weights_are_searched_on_training_images():
    """The second reject class is one that in-distribution images like; greedy search finds it out."""
    task = tiny_task()
    source = torch.Generator().manual_seed(0)
    shape = {id(task.id_train): 0.0, id(task.background): 3.0}

    def logits(images: object) -> Tensor:
        found = torch.randn(len(images), 4 + 2, generator=source)
        found[:, 4] += shape[id(images)]
        found[:, 5] += 4 - shape[id(images)]
        return found

    network = SimpleNamespace(logits=logits)
    predict = reject_scorer("weighted", 2, num_classes=4, seed=0)(network, task)
    id_logits, background_logits = logits(task.id_train), logits(task.background)
    network.logits = lambda images: id_logits
    of_id = predict(task.id_test)
    assert torch.equal(of_id.classes, id_logits[:, :4].argmax(1))
    network.logits = lambda images: background_logits
    found = auroc(of_id.scores, predict(task.id_test).scores)
    assert found > auroc(reject_sum_score(id_logits, 2), reject_sum_score(background_logits, 2)) + 0.1
    assert found > auroc(
        *(reject_weighted_score(v, 2, torch.tensor([1.0, 1.0])) for v in (id_logits, background_logits))
    )


def test_greedy_search_stops_at_the_first_weights_if_nothing_helps():
    assert greedy_weights(lambda weights: 0.5, 4).tolist() == [1.0] * 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_reject": 0}, "num_reject must be at least 1, or None, got 0"),
        (
            {"score": ("mean",)},
            "score must be of sum, max, weighted, entropy, entropy-difference, combined, got 'mean'",
        ),
        ({"score": ()}, "score must name at least one of sum"),
        ({"arms": ("reject", "ice")}, "arms must be of msp, oe, reject, got 'ice'"),
        ({"reject_weight": -1.0}, "reject_weight must be finite and at least 0, got -1.0"),
        ({"background_batch_size": 0}, "background_batch_size must be at least 1, got 0"),
        ({"batch_norm": "off"}, "batch_norm must be one of eval, train, got 'off'"),
    ],
)
def test_config_errors_name_the_field(options: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        RejectConfig(**options)


def test_every_score_beats_chance_from_the_command_line(tmp_path: Path):
    options = tiny_args(tmp_path)
    options = options[: options.index("--data.ood")]
    for name in ("--method.sample-rate", "--method.reweight.epochs"):
        i = options.index(name)
        options = [*options[:i], *options[i + 2 :]]
    for name in ("--method.pretrain.epochs", "--method.finetune.epochs"):
        options[options.index(name) + 1] = "10"
    # Noise like that of the background: Gaussian noise has a third of its contrast.
    np.save(tmp_path / "noise.npy", np.random.default_rng(5).integers(0, 256, (40, 8, 8)).astype(np.uint8))
    options += ["--data.ood", f"noise=npy:{tmp_path}/noise.npy"]
    scores = ("sum", "max", "weighted", "entropy", "entropy-difference", "combined")
    assert train.main(["reject", *options, "--method.score", *scores]) == 0
    metrics = json.loads((tmp_path / "runs" / "run" / "metrics.json").read_text())
    rows = ["msp", "oe", "reject", *(f"reject-{score}" for score in scores[1:])]
    assert list(metrics["arms"]) == rows
    for arm in rows:
        result = metrics["arms"][arm]
        assert result["accuracy"] > 0.5, f"{arm}: chance is 0.25"
        # Half of the mix are outliers, and most of them score high.
        assert 0 <= result["aurc"]["id"] <= result["aurc"]["mixed"] < 0.4
    for arm in rows[2:]:
        assert metrics["arms"][arm]["mean"]["auroc"] > 0.8, f"{arm}: chance is 0.5"
    # One network, whatever its score.
    assert len({metrics["arms"][arm]["accuracy"] for arm in rows[2:]}) == 1
