"""Training steps on a device: the host waits once for every ten of them, for their losses together."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric

from fastood.data import Augment
from fastood.losses import OutlierExposureLoss
from fastood.models import build_model
from fastood.samplers import BackgroundPool
from fastood.train.engine.adversarial import AdversarialBackground
from fastood.train.engine.background import Background, SubsetBackground
from fastood.train.engine.checkpoint import CheckpointFolder
from fastood.train.engine.failure import NonFiniteLossError
from fastood.train.engine.image_stage import ImageStage
from fastood.train.engine.loop import run_stage
from fastood.train.engine.objective import LogitObjective
from fastood.train.engine.schedule import Schedule
from fastood.train.engine.stage import StageContext
from fastood.train.engine.step_reader import READ_EVERY, StepReader
from tests.emulation.device import emulated_cuda
from tests.emulation.waits import count_host_waits
from tests.support.one_process import one_process
from tests.support.tiny_run import tiny_task


def pool(context: StageContext, mode: str) -> AdversarialBackground:
    device = context.fabric.device
    generator = torch.Generator(device).manual_seed(1)
    weights = BackgroundPool(160, device=device)
    return AdversarialBackground(weights, batch_size=24, learning_rate=100.0, generator=generator, mode=mode)


def subset(context: StageContext) -> SubsetBackground:
    return SubsetBackground(torch.arange(40), batch_size=24, generator=torch.Generator().manual_seed(1))


def stage_of(background: Callable[[StageContext], Background] | None, **options: Any) -> ImageStage:
    return ImageStage(
        name="stage",
        rng_name="stage",
        schedule=Schedule(**({"epochs": 100, "learning_rate": 0.05} | options)),
        build_model=lambda: build_model(
            "small-cnn", num_classes=4, in_channels=1, image_size=8, generator=torch.Generator().manual_seed(5)
        ),
        objective=lambda: LogitObjective(OutlierExposureLoss(weight=0.5, reduction="mean")),
        batch_size=16,
        background=background,
    )


def on_device() -> StageContext:
    return StageContext(task=tiny_task(), augment=Augment(), seed=0, fabric=Fabric(accelerator="cuda", devices=1))


@pytest.mark.parametrize(
    "background",
    [None, subset, lambda context: pool(context, "exact"), lambda context: pool(context, "sparse")],
    ids=["none", "subset", "exact", "sparse"],
)
def test_ten_steps_wait_once(background: Callable[[StageContext], Background] | None) -> None:
    with torch.random.fork_rng(devices=[]), emulated_cuda(), one_process():
        stage, context = stage_of(background), on_device()
        run = stage.begin(stage.build_model(), context)
        reader = StepReader(context.fabric)
        reader.add(run.train_step())  # makes the buffers of the optimiser
        reader.read(stop=False, accuracy_counts=run.take_accuracy_counts(), scalars=run.scalars())
        torch.cuda.synchronize()
        with count_host_waits() as waits:
            for _ in range(READ_EVERY):
                reader.add(run.train_step())
        assert not waits, str(waits)
        with count_host_waits() as waits:
            reading = reader.read(stop=False, accuracy_counts=run.take_accuracy_counts(), scalars=run.scalars())
        assert len(waits) == 1, str(waits)
        assert len(reading.losses) == READ_EVERY


@pytest.mark.parametrize("background", [None, lambda context: pool(context, "sparse")], ids=["none", "pool"])
@pytest.mark.parametrize("is_fast", [False, True], ids=["device behind", "device ahead"])
def test_a_loss_that_is_not_finite_is_found_late_and_named(
    background: Callable[[StageContext], Background] | None, is_fast: bool, tmp_path: Path
) -> None:
    """By the read of ten steps, or before by a draw from the pool, which has refused the loss."""
    with torch.random.fork_rng(devices=[]), emulated_cuda(), one_process():
        stage = stage_of(background, learning_rate=1e30)
        run = stage.begin(stage.build_model(), on_device())
        if is_fast:
            step = run.train_step
            run.train_step = lambda: (step(), torch.cuda.synchronize())[0]
        with pytest.raises(
            NonFiniteLossError, match=r"stage 'stage', step [1-9] of 600: the loss is .*; in-distrib.*; no"
        ):
            run_stage(
                run,
                checkpoints=CheckpointFolder(tmp_path),
                checkpoint_every=200,
                tensorboard_folder=tmp_path / "tensorboard",
            )
    assert not list(tmp_path.glob("*.pt"))
