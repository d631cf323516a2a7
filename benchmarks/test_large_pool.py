"""Background resampling over packed pools of tiny images, from 50,000 to ten million of them.

The step is the trainer's, with network, loaders and optimiser, on images that stay in their file. Next to it: the step
with a fixed subset of the pool, which draws without weights and learns none, and draw, importance and ascent without a
network, whose ratio to the step is the pool's share of it.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from harness import Comparison, Run, compare, host_growth
from large_pools import write_large_pool
from lightning_fabric import Fabric
from torch import Tensor

from fastood.data import Augment, DataConfig, DetectionTask, load_task
from fastood.losses import OutlierExposureLoss
from fastood.models import build_model
from fastood.samplers import AscentMode, BackgroundPool
from fastood.train.engine.adversarial import AdversarialBackground
from fastood.train.engine.background import Background, SubsetBackground
from fastood.train.engine.image_stage import ImageStage
from fastood.train.engine.objective import LogitObjective
from fastood.train.engine.schedule import Schedule
from fastood.train.engine.stage import StageContext

Record = Callable[[Comparison, Run], None]
SIZES = (50_000, 1_000_000, 10_000_000)
SMALLEST = 50_000
SIZE, CLASSES, BATCH, STEPS = 8, 10, 128, 4
ALPHA, LEARNING_RATE, WEIGHT_LEARNING_RATE = 0.5, 0.001, 100.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder for pools, with in-distribution images."""
    folder = tmp_path_factory.mktemp("large")
    np.save(folder / "x.npy", np.random.default_rng(0).integers(256, size=(2000, SIZE, SIZE), dtype=np.uint8))
    np.save(folder / "y.npy", np.arange(2000) % CLASSES)
    return folder


@pytest.fixture(scope="module", params=SIZES)
def count(request: pytest.FixtureRequest, folder: Path) -> Iterator[int]:
    """Return the number of images of a pool that is in the page cache, and lies on the disk for these tests alone."""
    number = request.param
    if request.config.getoption("--tiny"):
        number //= 500
    pool = write_large_pool(folder / str(number), number)
    yield number
    for file in pool.iterdir():
        file.unlink()


def config_of(folder: Path, count: int) -> DataConfig:
    """Return the options of a task with the pool of `count` images."""
    return DataConfig(
        in_dist=f"npy:{folder}/x.npy,{folder}/y.npy",
        background=f"packed:{folder}/{count}" if count else "none",
        ood=("uniform",),
        image_size=SIZE,
        noise_size=100,
    )


def test_loading(folder: Path, count: int, device: str, budget: dict[str, float], record: Record) -> None:
    """Compare a task with a pool, whole and a slice, with the task without background."""
    if device != "cpu":
        pytest.skip("reads files")
    providers = {name: loading(folder, name, count) for name in ("fastood", "fastood, 1 of 4 slices", "no background")}
    shape = f"{count}x1x{SIZE}x{SIZE}"
    comparison = compare("loading a task", shape, providers, subject="fastood", dtype="uint8", device=device, **budget)
    with multiprocessing.get_context("spawn").Pool(1) as process:
        peaks = process.apply(growth, (folder, tuple(providers), count))
    timings = {name: replace(timing, peak_bytes=peaks[name]) for name, timing in comparison.timings.items()}
    record(replace(comparison, timings=timings), providers["fastood"])


def loading(folder: Path, name: str, count: int) -> Run:
    """Return a call that loads the task and identifies its background, as the beginning of a run does."""
    config = config_of(folder, 0 if name == "no background" else count)
    share = (1, 4) if "slices" in name else None
    return lambda: load_task(config, seed=0, share=share).background_digest()


def growth(folder: Path, names: tuple[str, ...], count: int) -> dict[str, int]:
    """Return the bytes by which this process grows in one call of each provider, after one that imports everything."""
    loading(folder, "no background", 0)()
    return {name: host_growth(loading(folder, name, count)) for name in names}


def adversarial(count: int, mode: AscentMode, device: torch.device | str = "cpu") -> AdversarialBackground:
    """Return draws from a pool of `count` images on a device, with ascent of a mode."""
    return AdversarialBackground(
        BackgroundPool(count, epsilon=0.5, momentum=0.9, device=device),
        batch_size=BATCH,
        learning_rate=WEIGHT_LEARNING_RATE,
        generator=torch.Generator(device).manual_seed(0),
        mode=mode,
    )


def subset(count: int) -> SubsetBackground:
    """Return a fixed subset, spread over the pool."""
    index = torch.linspace(0, count - 1, min(count, SMALLEST), dtype=torch.float64).long()
    return SubsetBackground(index, batch_size=BATCH, generator=torch.Generator().manual_seed(0))


def trainer(task: DetectionTask, name: str, background: Callable[[StageContext], Background], device: str) -> Run:
    """Return some steps of the trainer."""
    stage = ImageStage(
        name="reweight",
        rng_name="reweight",
        schedule=Schedule(epochs=1_000_000, learning_rate=LEARNING_RATE, decay_every=None),
        build_model=lambda: build_model(
            name, num_classes=CLASSES, in_channels=1, image_size=SIZE, generator=torch.Generator().manual_seed(0)
        ),
        objective=lambda: LogitObjective(OutlierExposureLoss(weight=ALPHA, reduction="mean")),
        batch_size=BATCH,
        background=background,
        batch_norm="eval",
        dropout=False,
    )
    fabric = Fabric(accelerator=device, devices=1)
    run = stage.begin(stage.build_model(), StageContext(task=task, augment=Augment(), seed=0, fabric=fabric))

    def steps() -> None:
        for _ in range(STEPS):
            run.train_step()

    return steps


def pool_alone(count: int, mode: AscentMode) -> Run:
    """Return draws, importance and ascent of as many steps, without network and images."""
    background, loss = adversarial(count, mode), torch.rand(BATCH, generator=torch.Generator().manual_seed(1))

    def steps() -> None:
        for _ in range(STEPS):
            index = background.draw().index
            background.importance(index)
            background.observe(index, loss)

    return steps


@pytest.mark.parametrize("network", ["small-cnn"])
def test_step(folder: Path, count: int, network: str, device: str, budget: dict[str, float], record: Record) -> None:
    """Compare the step of sparse ascent with the exact one, with a fixed subset, and with the pool alone."""
    task = load_task(config_of(folder, count), seed=0)
    assert isinstance(task.background.images, Tensor)
    for rows in torch.split(task.background.images, 1 << 16):
        rows.max()  # Read once, so that the file is in the page cache.
    providers = {
        "fastood": trainer(task, network, lambda context: adversarial(count, "sparse", device), device),
        "exact ascent": trainer(task, network, lambda context: adversarial(count, "exact", device), device),
        "fixed subset": trainer(task, network, lambda context: subset(count), device),
        "pool alone": pool_alone(count, "sparse"),
        "pool alone, exact": pool_alone(count, "exact"),
    }
    shape = f"{count}x1x{SIZE}x{SIZE}, {network}, {STEPS} steps of {BATCH}+{BATCH}"
    comparison = compare("step over a packed pool", shape, providers, subject="fastood", device=device, **budget)
    record(comparison, providers["fastood"])
