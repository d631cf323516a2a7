"""Options of the trainer that must not change the result, and the running average, which does."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from torch import nn

from fastood.data import Augment
from fastood.models import Classifier
from fastood.train.acceleration import require_compiler
from fastood.train.config import RunConfig
from fastood.train.engine.checkpoint import CheckpointFolder
from fastood.train.engine.image_stage import ImageStage, ImageStageRun
from fastood.train.engine.stage import StageContext
from tests.support.tiny_run import tiny_task
from tests.train.engine.test_loop import make_stage, run, small_cnn, subset


class OneConvolution(Classifier):
    """Little to compile."""

    def __init__(self) -> None:
        super().__init__(feature_dim=4, num_classes=4)
        self.body = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU())

    def features(self, images: torch.Tensor) -> torch.Tensor:
        return self.body(images).mean(dim=(2, 3))


def start(stage: ImageStage, model: Classifier | None = None, **options) -> ImageStageRun:
    fabric = Fabric(accelerator="cpu", devices=1)
    context = StageContext(task=tiny_task(), augment=Augment(padding=0), seed=0, fabric=fabric)
    return stage.begin(small_cnn() if model is None else model, replace(context, **options))


def weights_after(steps: int, **options) -> tuple[list[float], dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    stage_run = start(make_stage(subset()), OneConvolution(), **options)
    losses = [stage_run.train_step() for _ in range(steps)]
    return losses, stage_run.state_dict()["model"]


@pytest.mark.parametrize(
    "options",
    [
        {"channels_last": False},
        pytest.param(
            {"compile": "default"},
            marks=pytest.mark.skipif(shutil.which("g++") is None, reason="TorchInductor wants a C++ compiler"),
        ),
    ],
)
def test_layout_and_compilation_change_rounding_alone(options: dict[str, object]):
    losses, weights = weights_after(4)
    other_losses, other_weights = weights_after(4, **options)
    torch.testing.assert_close(other_losses, losses, rtol=1e-4, atol=1e-5)
    assert other_weights.keys() == weights.keys()
    for name, value in weights.items():
        torch.testing.assert_close(other_weights[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_the_average_follows_the_weights_and_is_what_a_stage_ends_with():
    stage_run = start(make_stage(subset()), ema_decay=0.9)
    wanted: dict[str, torch.Tensor] = {}
    for _ in range(5):
        stage_run.train_step()
        for name, value in stage_run.model.state_dict().items():
            if value.is_floating_point():
                wanted[name] = 0.9 * wanted[name] + 0.1 * value if name in wanted else value.clone()
    stored = stage_run.state_dict()["model"]
    assert not torch.equal(stored["head.weight"], stage_run.model.head.weight)
    for name, value in wanted.items():
        torch.testing.assert_close(stored[name], value)
    plain = start(make_stage(subset()))
    for _ in range(5):
        plain.train_step()
    assert torch.equal(plain.model.head.weight, stage_run.model.head.weight), "it only watches"


def test_a_stopped_average_goes_on(tmp_path: Path):
    def finished(folder: Path) -> dict[str, torch.Tensor]:
        run(start(make_stage(subset()), ema_decay=0.9), folder)
        return CheckpointFolder(folder / "checkpoints").load("stage")["model"]

    whole = finished(tmp_path / "whole")
    broken = start(make_stage(subset()), ema_decay=0.9)
    for _ in range(7):
        broken.train_step()
    CheckpointFolder(tmp_path / "broken" / "checkpoints").save("stage", broken.state_dict())
    resumed = finished(tmp_path / "broken")
    assert all(torch.equal(resumed[name], value) for name, value in whole.items())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ema_decay": 1.0}, r"ema_decay must be in \(0, 1\), or None, got 1.0"),
        ({"compile": "max"}, "compile must be one of none, default, reduce-overhead, got 'max'"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        RunConfig(**options)


def test_compilation_without_a_compiler_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    require_compiler("none")
    with pytest.raises(ValueError, match=r"compile must be none if there is no C\+\+ compiler"):
        require_compiler("default")
