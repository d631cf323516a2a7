"""BAL as a method: the tiny run from the command line, its frozen classifier, stopping and going on, errors."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fastood.detectors.bal import BoundarySettings
from fastood.models import ModelConfig
from fastood.train import cli as train
from fastood.train.arm import Arm
from fastood.train.engine.interrupt import TrainingInterrupted
from fastood.train.methods.bal.arms import ARMS
from fastood.train.methods.bal.gan_stage import BoundaryStageRun
from fastood.train.methods.bal.method import BAL, BALConfig
from fastood.train.trained_network import Outputs
from tests.support.tiny_run import tiny_args, tiny_task

SMALL = ModelConfig(name="small-cnn", dropout=0.0)


def method(**options: object) -> BAL:
    return BALConfig(**options).build(SMALL, task=tiny_task(), seed=0)


def bal_args(folder: Path, *, name: str = "run") -> list[str]:
    """The tiny run with BAL's options in place of resampling's."""
    options = tiny_args(folder, name=name)
    i, j = options.index("--method.sample-rate"), options.index("--data.ood")
    own = {
        "method.pretrain.epochs": 4,
        "method.pretrain.learning-rate": 0.01,
        "method.boundary.steps": 30,
        "method.boundary.batch-size": 16,
        "method.boundary.hidden": 32,
        "method.boundary.learning-rate": 0.001,
    }
    flat = [part for option, value in own.items() for part in (f"--{option}", str(value))]
    return ["bal", *options[:i], *flat, *options[j:]]


def test_each_score_by_hand(generator: torch.Generator):
    """Of logits and features that are given; ODIN without a step is the tempered softmax."""
    outputs = Outputs(
        logits=torch.randn(6, 4, generator=generator).double(), features=torch.randn(6, 3, generator=generator)
    )
    classes = outputs.logits.argmax(1)
    made = method(arms=("softmax", "odin", "bal", "bal-p2"), odin_temperature=10.0, odin_epsilon=0.0)

    class Discriminator(nn.Module):
        def forward(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            assert torch.equal(labels, classes)
            return features.sum(1)

    network = SimpleNamespace(
        logits=lambda images: outputs.logits,
        outputs=lambda images: outputs,
        over_batches=lambda images, compute: compute(outputs.logits.clone().view(6, 1, 2, 2)),
        module=nn.ModuleDict({"discriminator": Discriminator()}),
        device=torch.device("cpu"),
    )

    class Callable(SimpleNamespace):
        def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
            return inputs.flatten(1)

    p1, p2 = outputs.logits.softmax(1).amax(1), outputs.features.sum(1).sigmoid().double()
    want = {"softmax": -p1, "odin": -(outputs.logits / 10).softmax(1).amax(1), "bal": -p1 * p2, "bal-p2": -p2}
    for arm in made.arms:
        predicted = arm.scorer(Callable(**vars(network)), tiny_task())(None)
        assert torch.equal(predicted.scores.argsort(), want[arm.name].argsort()), arm.name
        assert torch.equal(predicted.classes, classes)


def test_variants_differ_as_the_tables_say():
    made = method(arms=tuple(ARMS))
    settings = {stage.name: stage.settings for stage in made.stages[1:]}
    assert list(settings) == [name for name, row in ARMS.items() if row.changes is not None]
    assert [(s.shuffle, s.uniform) for s in settings.values()][:4] == [
        (True, True),
        (False, False),
        (True, False),
        (False, True),
    ]
    assert settings["bal-uniform"].sampling == "uniform"
    assert settings["bal-gaussian"].sampling == "gaussian"
    assert settings["bal-log-d"].negative_form == "log-d"
    assert settings["bal-0.3"].uniform_weight == 0.3
    assert settings["bal-printed"] == BoundarySettings.as_printed()
    assert (settings["bal-features"].axes, settings["bal-no-seeking"].mode_seeking_weight) == ("features", 0)
    assert settings["bal-projection"].conditioning == "projection"
    stages = {arm.name: arm.stage for arm in made.arms}
    assert (stages["softmax"], stages["odin"], stages["bal-p2"]) == ("pretrain", "pretrain", "bal")
    assert made.baseline == "softmax"
    assert method(arms=("bal",)).baseline == "bal"


def test_every_gan_begins_alike():
    made = method(arms=("bal", "bal-ts"))
    first, second = (stage.build_model().state_dict() for stage in made.stages[1:])
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"arms": ("gan",)}, "arms must be of softmax, odin, bal, .*, got 'gan'"),
        ({"arms": ()}, "arms must name at least one of softmax"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"odin_epsilon": -1.0}, "odin_epsilon must be finite and at least 0, got -1.0"),
    ],
)
def test_config_errors_name_the_field(options: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        BALConfig(**options)


def test_tiny_run_leaves_the_classifier_to_the_bit(tmp_path: Path):
    """From the command line; BAL's arm has the accuracy and every tensor of the network it stands on."""
    assert train.main([*bal_args(tmp_path), "--method.arms", "softmax", "odin", "bal", "bal-p2"]) == 0
    run = tmp_path / "runs" / "run"
    metrics = json.loads((run / "metrics.json").read_text())
    arms = metrics["arms"]
    assert arms["bal"]["accuracy"] == arms["softmax"]["accuracy"] > 0.3
    assert arms["bal"]["background_size"] == 0
    assert arms["bal"]["ood"]["stripes"]["auroc"]["mean"] > 0.55
    plain, bal = (load_file(run / "models" / f"{arm}.safetensors") for arm in ("softmax", "bal"))
    for name, value in plain.items():
        assert torch.equal(bal[f"classifier.{name}"], value), name
    assert [path.name for path in (run / "figures").glob("features_*")] == ["features_bal.png"]
    assert "Features: BAL" in (run / "report.html").read_text()
    # What the softmax calls surer than another the score may not: it is another score.
    scores = load_file(run / "scores.safetensors")
    assert not torch.equal(scores["bal/id"].argsort(), scores["softmax/id"].argsort())


def test_stopped_in_the_gan_and_resumed_is_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Stopped between two checkpoints of the GAN's stage, whose networks, Adams and draws all go on."""
    assert train.main(bal_args(tmp_path, name="whole")) == 0
    train_step = BoundaryStageRun.train_step

    def stop_at_17(run: BoundaryStageRun) -> float:
        if run.step == 17:
            raise TrainingInterrupted(run.name, run.step, tmp_path)
        return train_step(run)

    monkeypatch.setattr(BoundaryStageRun, "train_step", stop_at_17)
    assert train.main(bal_args(tmp_path, name="stopped")) == 130
    monkeypatch.undo()
    assert train.main([*bal_args(tmp_path, name="stopped"), "--resume"]) == 0
    whole, stopped = (
        load_file(tmp_path / "runs" / name / "models" / "bal.safetensors") for name in ("whole", "stopped")
    )
    for name, value in whole.items():
        assert torch.equal(stopped[name], value), name


def test_stage_names_what_went_wrong(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture):
    def diverge(*args: object) -> None:
        raise FloatingPointError("the generator's loss is nan")

    monkeypatch.setattr("fastood.detectors.bal.BoundaryTraining.step", diverge)
    assert train.main(bal_args(tmp_path)) == train.SOME_FAILED
    assert "stage 'bal', step 0 of 30: the generator's loss is nan" in capsys.readouterr().err


def test_settings_of_the_gan_reach_it():
    made = method(boundary=BoundarySettings(hidden=24, noise_dim=5, conditioning="concatenation"))
    network = made.stages[1].build_model()
    assert network.discriminator.body[0].in_features == network.classifier.feature_dim + 4
    assert network.generator.body[0].in_features == 5 + 4
    assert isinstance(made.arms[0], Arm)
    assert not any(value.requires_grad for value in network.classifier.parameters())
