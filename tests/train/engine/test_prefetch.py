"""Batches drawn ahead: how stale the weights behind them are, going on after a stop, and shares of two processes."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from lightning_fabric import Fabric

from fastood.data import Augment
from fastood.data.loaders import LoaderPlan
from fastood.data.loaders.choice import dali_installed
from fastood.losses import OutlierExposureLoss
from fastood.models import Classifier, build_model
from fastood.samplers import BackgroundPool
from fastood.train.engine.adversarial import AdversarialBackground
from fastood.train.engine.background import Drawn
from fastood.train.engine.checkpoint import CheckpointFolder
from fastood.train.engine.image_stage import ImageStage, ImageStageRun
from fastood.train.engine.objective import LogitObjective
from fastood.train.engine.prefetch import PrefetchedBatches
from fastood.train.engine.schedule import Schedule
from fastood.train.engine.stage import StageContext
from tests.support.image_loaders import AUGMENT, EVERY_LOADER, open_named, random_images
from tests.support.tiny_run import tiny_task

WORLD_SIZE = 2


@EVERY_LOADER
@pytest.mark.parametrize("depth", [0, 1, 2, 4])
def test_the_draws_of_a_step_are_of_the_weights_depth_steps_before(name, depth):
    images, pool = random_images(), BackgroundPool(50)
    source = AdversarialBackground(
        pool, batch_size=16, learning_rate=1000.0, generator=torch.Generator().manual_seed(1)
    )
    batches = PrefetchedBatches(
        open_named(name, images, depth=depth),
        source.draw,
        augment=AUGMENT,
        height=16,
        generator=torch.Generator().manual_seed(2),
    )
    weights_before_step, used = [], []
    for step in range(10):
        weights_before_step.append(pool.state_dict())
        drawn, pixels = batches.next()
        used.append((drawn.index, pixels))
        # Another part of the pool is the hard one at every step, so that no two steps draw from the same weights.
        source.observe(torch.arange(50), 5.0 * (torch.arange(50) % 10 == step).float())
    batches.close()

    def drawn_with_lag(lag: int) -> list[torch.Tensor]:
        generator, indices = torch.Generator().manual_seed(1), []
        for step in range(10):
            then = BackgroundPool(50)
            then.load_state_dict(weights_before_step[max(0, step - lag)])
            indices.append(then.sample(16, generator=generator)[0])
        return indices

    crops = torch.Generator().manual_seed(2)
    for expected, (index, pixels) in zip(drawn_with_lag(depth), used, strict=True):
        assert torch.equal(index, expected)
        assert torch.equal(pixels, AUGMENT.apply(images, index, AUGMENT.draw(16, height=16, generator=crops)))
    for lag in {0, 1, 2, 3, 4, 5} - {depth}:
        others = drawn_with_lag(lag)
        assert not all(torch.equal(index, other) for other, (index, _) in zip(others, used, strict=True))


def small_cnn() -> Classifier:
    generator = torch.Generator().manual_seed(5)
    return build_model("small-cnn", num_classes=4, in_channels=1, image_size=8, dropout=0.0, generator=generator)


def start(name: str, depth: int, pool: BackgroundPool) -> ImageStageRun:
    stage = ImageStage(
        name="stage",
        rng_name="stage",
        batch_size=16,
        build_model=small_cnn,
        schedule=Schedule(epochs=2, learning_rate=0.05),
        objective=lambda: LogitObjective(OutlierExposureLoss(weight=0.5, reduction="mean")),
        background=lambda context: AdversarialBackground(
            pool, batch_size=24, learning_rate=100.0, generator=torch.Generator().manual_seed(1)
        ),
    )
    context = StageContext(
        task=tiny_task(),
        augment=Augment(flip=True),
        seed=0,
        fabric=Fabric(accelerator="cpu", devices=1),
        loading=LoaderPlan(name=name, prefetch_depth=depth, reason="tested"),
    )
    return stage.begin(small_cnn(), context)


@EVERY_LOADER
@pytest.mark.parametrize("depth", [0, 2])
def test_a_stopped_run_goes_on_to_the_same_weights(name, depth, tmp_path: Path):
    pools = [BackgroundPool(160) for _ in range(3)]
    whole = start(name, depth, pools[0])
    losses = [whole.train_step() for _ in range(12)]
    whole.close()

    stopped = start(name, depth, pools[1])
    assert [stopped.train_step() for _ in range(5)] == losses[:5]
    checkpoints = CheckpointFolder(tmp_path)
    checkpoints.save("stage", stopped.state_dict())
    stopped.train_step()
    stopped.close()
    # Another loader goes on: all give the same pixels.
    resumed = start("resident", depth, pools[2])
    resumed.load_state_dict(checkpoints.load("stage"))
    assert [resumed.train_step() for _ in range(7)] == losses[5:]
    for value, expected in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(value, expected)
    assert torch.equal(pools[2].weights, pools[0].weights)


def test_another_depth_cannot_go_on():
    ahead, behind = start("resident", 2, BackgroundPool(160)), start("resident", 0, BackgroundPool(160))
    ahead.train_step()
    with pytest.raises(ValueError, match="written 2 batches ahead, got a loader of prefetch depth 0"):
        behind.load_state_dict(ahead.state_dict())


def serve_share(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=WORLD_SIZE)
    images, whole = random_images(), BackgroundPool(50)
    shard = whole.shard(rank, WORLD_SIZE)
    for name in ("resident", "dataloader", *(("dali",) if dali_installed() else ())):
        drawn, crops = torch.Generator().manual_seed(3), torch.Generator().manual_seed(rank)

        def choose(drawn=drawn) -> Drawn:
            index, _ = shard.sample(16, generator=drawn)
            return Drawn(index=index, size=len(index))

        batches = PrefetchedBatches(
            open_named(name, images, depth=1), choose, augment=AUGMENT, height=16, generator=crops
        )
        served = [(part.index, pixels) for part, pixels in (batches.next() for _ in range(4))]
        batches.close()
        crops = torch.Generator().manual_seed(rank)
        for index, pixels in served:
            assert ((index >= shard.begin) & (index < shard.end)).all()
            draws = AUGMENT.draw(len(index), height=16, generator=crops)
            assert torch.equal(pixels, AUGMENT.apply(images, index, draws))
        both: list[list[int]] = [[] for _ in range(WORLD_SIZE)]
        dist.all_gather_object(both, [len(index) for index, _ in served])
        assert [sum(counts) for counts in zip(*both, strict=True)] == [16] * 4
    dist.destroy_process_group()


def test_two_processes_are_served_their_own_images(tmp_path: Path):
    mp.spawn(serve_share, args=(str(tmp_path),), nprocs=WORLD_SIZE)
