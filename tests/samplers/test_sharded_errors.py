"""Wrong use of a pool over 2, 3 and 4 processes: an error on every process, and nothing has changed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from fastood.samplers import BackgroundPool, ShardedBackgroundPool
from tests.support.gloo import gather, run_in_groups

Group = dist.ProcessGroup


def raises(call: Callable[[], Any], message: str, group: Group, kind: type[Exception] = ValueError) -> list[str]:
    """Require an error with a message on every process, and return the messages."""
    with pytest.raises((kind, ValueError), match=message) as found:
        call()
    return gather(str(found.value), group)


def make(rank: int, world_size: int, group: Group, folder: Path) -> None:
    """Pools that differ, and slices without an example."""
    last = rank == world_size - 1
    for one, other, message in (
        ({}, {"num_examples": 21}, "num_examples must be the same on every process, got 20 on rank 0 and 21"),
        ({}, {"epsilon": 0.75}, "epsilon must be the same on every process"),
        ({}, {"momentum": 0.5}, "momentum must be the same on every process"),
        ({}, {"initial_weight": 2.0}, "initial_weight must be the same on every process"),
        ({}, {"num_examples": 0}, "num_examples must be an int >= 1, got 0"),
        ({}, {"epsilon": 2}, r"epsilon must be in \[0, 1\], got 2"),
        ({}, {"device": "nowhere"}, "device"),
        ({"num_examples": world_size - 1}, {}, f"must give each of {world_size} processes an example, got"),
    ):
        options = {"num_examples": 20, **one, **(other if last else {}), "group": group}
        raises(lambda options=options: ShardedBackgroundPool(**options), message, group, Exception)
    if world_size == 4:
        raises(lambda: ShardedBackgroundPool(9, group=group), "3 processes have all of them; start at most 3", group)
    for pool, message in (
        (BackgroundPool(20 + last), "num_examples must be the same on every process, got 20 on rank 0 and 21"),
        (BackgroundPool(20, epsilon=0.75 if last else 0.5), "epsilon must be the same on every process"),
        (BackgroundPool(20, initial_weight=1.0 + last), "sums over the pool's weights must be the same"),
    ):
        raises(lambda pool=pool: pool.shard(rank, world_size, group=group), message, group)
    raises(lambda: BackgroundPool(20).shard(0, world_size, group=group), "rank must be that of the process", group)
    raises(lambda: BackgroundPool(20).shard(rank, True, group=group), "world_size must be that of the", group)
    whole = BackgroundPool(world_size - 1) if world_size > 2 else BackgroundPool(1)
    raises(lambda: whole.shard(rank, world_size, group=group), f"each of {world_size} processes an example", group)


def draw(rank: int, world_size: int, group: Group, folder: Path) -> None:
    pool = ShardedBackgroundPool(20, group=group)
    last = rank == world_size - 1
    generator = torch.Generator().manual_seed(rank)
    before = generator.get_state()
    differ = "the state of generator must be the same on every process"
    raises(lambda: pool.sample(6, generator=generator), differ, group)
    raises(lambda: pool.draw(6, generator=generator, replacement=False, verify=False), differ, group)
    raises(lambda: pool.select(0.5, generator=generator), differ, group)
    raises(lambda: pool.select_mask(0.5, generator=generator), differ, group)
    assert torch.equal(generator.get_state(), before)
    generator.manual_seed(0)
    before = generator.get_state()
    differ = "must be the same on every process, got"
    for call, message in (
        (lambda: pool.sample(6 + last, generator=generator), f"batch_size {differ} 6 on rank 0 and 7 on"),
        (lambda: pool.sample(6, generator=generator, stratified=last), f"stratified {differ} False on rank 0 and True"),
        (lambda: pool.sample(6, generator=generator, replacement=not last), f"replacement {differ}"),
        (lambda: pool.sample(6, generator=None if last else generator), "generator must be a torch"),
        (lambda: pool.sample(0 if last else 6, generator=generator), "batch_size must be an int >= 1, got 0"),
        (lambda: pool.sample(21, generator=generator, replacement=False), "at most the 20 examples with weight"),
        (lambda: pool.sample(2, generator=generator, replacement=False, stratified=True), "cannot be distinct"),
        (lambda: pool.sample(2, generator=generator, replacement=0 if last else True), "replacement must be"),
        (lambda: pool.select(0.5 if last else 0.6, generator=generator), f"rate {differ} 0.6 on rank 0 and 0.5"),
        (lambda: pool.select(2.0 if last else 0.6, generator=generator), r"rate must be in \(0, 1\], got 2.0"),
        (lambda: pool.select(0.5, generator=generator, calibrated=last), f"calibrated {differ}"),
        (lambda: pool.top(3 + last), f"k {differ} 3 on rank 0 and 4"),
        (lambda: pool.top(21 if last else 3), "k must be an int in 1 … 20, got 21"),
        (lambda: pool.histogram(0 if last else 3), "bins must be an int >= 1, got 0"),
        (lambda: pool.histogram(3 + last), f"bins {differ}"),
        (lambda: pool.top(3) if last else pool.histogram(3), "make the same call, got histogram on rank 0 and top on"),
    ):
        raises(call, message, group, Exception)
        assert torch.equal(generator.get_state(), before)


def ascend(rank: int, world_size: int, group: Group, folder: Path) -> None:
    pool = ShardedBackgroundPool(13, group=group)
    last = rank == world_size - 1
    limits = f"index must be in {pool.begin} … {pool.end - 1}, got"
    good, one = torch.tensor([pool.begin]), torch.ones(1)
    before = pool.state_dict()
    for index, loss, message in (
        (torch.tensor([13]), one, r"index must be in \d+ … 12, got 13 at position 0"),
        (torch.tensor([pool.begin, 0]), torch.ones(2), r"index must be in \d+ … 12, got 0 at position 1"),
        (good, torch.tensor([float("nan")]), r"got nan at position 0 \(example \d+\)"),
        (good, -one, r"per_sample_loss must be finite and >= 0, got -1.0"),
        (good.int(), one, "index must be int64"),
        (good, torch.ones(2), "per_sample_loss must have shape"),
        (None, one, "index must be a"),
    ):
        batch = (index, loss) if last else (good, one)
        texts = raises(lambda batch=batch: pool.ascend(*batch, lr=1.0), message, group, Exception)
        assert all(text.startswith(f"ascend failed on rank {world_size - 1}: ") for text in texts[:-1])
    if last:
        with pytest.raises(ValueError, match=limits):
            pool.importance(good - pool.begin)
    few = good if rank == 0 else good[:0]
    large, equal = torch.full((len(few),), 1e38), "must be the same on every process, got"
    for call, message in (
        (lambda: pool.ascend(few, large, lr=1e5), r"must stay in float32's range, got up to 1e\+38 · 100000"),
        (lambda: pool.ascend(good[:0], torch.ones(0), lr=1.0), "at least one example on some process"),
        (lambda: pool.ascend(good, one, lr=1.0 + last), rf"lr {equal} 1\.0 on rank 0 and 2\.0 on rank"),
        (lambda: pool.ascend(good, one, lr=-1.0 if last else 1.0), "lr must be finite in float32 and > 0, got -1"),
        (lambda: pool.ascend(good, one, lr=1.0, mode="sparse" if last else "exact"), f"mode {equal} exact on rank 0"),
    ):
        raises(call, message, group)
    # Draws that were not compared are found by the step, and only by the first one after them.
    for seed, size in ((rank, 6), (0, 6 + last)):
        index, *_ = pool.draw(size, generator=torch.Generator().manual_seed(seed), verify=False)
        loss = torch.ones(len(index))
        message = "generator and batch_size must be the same on every process"
        raises(lambda index=index, loss=loss: pool.ascend(index, loss, lr=1.0), message, group)
    for name, value in pool.state_dict().items():
        assert torch.equal(*(x if name == "scale" else x.to_local() for x in (value, before[name]))), name
    pool.draw(6, generator=torch.Generator().manual_seed(1), verify=False)
    pool.ascend(good, one, lr=1.0)
    assert pool.weights[0] != 1


def outside(rank: int, world_size: int, group: Group, folder: Path) -> None:
    """A process that is not in the group gets an error, and does not wait."""
    if world_size < 4:
        return
    pair = dist.new_group([0, 1])
    if rank < 2:
        ShardedBackgroundPool(10, group=pair)
    else:
        with pytest.raises(ValueError, match="group must hold this process"):
            ShardedBackgroundPool(10, group=pair)
        with pytest.raises(ValueError, match="group must hold this process"):
            BackgroundPool(10).shard(0, 2, group=pair)


def test_wrong_use_raises_on_every_process(tmp_path: Path) -> None:
    run_in_groups((make, draw, ascend, outside), tmp_path, sizes=(2, 4))
